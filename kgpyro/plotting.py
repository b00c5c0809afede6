"""The one door to matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kgpyro.errors import InputError


def new_figure(width: float, height: float) -> Any:
    """A ``matplotlib.figure.Figure`` of a size in inches. Raises InputError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib; pip install matplotlib, or kgpyro[plots].") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, its folder made. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"the figure cannot be written to {path}: {error}.") from error
