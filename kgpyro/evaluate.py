"""``python -m kgpyro.evaluate``."""

from kgpyro.commands import door

door(__name__, __file__)
