"""``python -m kgpyro.predict``."""

from kgpyro.commands import door

door(__name__, __file__)
