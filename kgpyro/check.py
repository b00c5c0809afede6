"""``python -m kgpyro.check``."""

from kgpyro.commands import door

door(__name__, __file__)
