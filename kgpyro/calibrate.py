"""``python -m kgpyro.calibrate``."""

from kgpyro.commands import door

door(__name__, __file__)
