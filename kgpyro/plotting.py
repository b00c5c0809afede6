"""The one door to matplotlib, which is optional."""

from __future__ import annotations

from typing import Any

from kgpyro.errors import InputError


def new_figure(width: float, height: float) -> Any:
    """A ``matplotlib.figure.Figure`` of a size in inches. Raises InputError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib; pip install matplotlib, or kgpyro[plots].") from error
    return Figure(figsize=(width, height), layout="constrained")
