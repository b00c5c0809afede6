"""The one door to matplotlib, which is optional, and folders of the tables and figures that a check leaves."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from kgpyro.errors import InputError


def new_figure(width: float, height: float) -> Any:
    """A ``matplotlib.figure.Figure`` of a size in inches, which a notebook shows where a cell ends with it.

    Raises InputError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib; pip install matplotlib, or kgpyro[plots].") from error
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = partial(png_of, figure)  # without pyplot, which would keep every figure in memory
    return figure


def png_of(figure: Any, dpi: int = 100) -> bytes:
    """A figure as a PNG file, by settings that take two thirds of the time: larger files, and letters as designed."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"text.hinting": "none"}):
        figure.savefig(file, format="png", dpi=dpi, pil_kwargs={"compress_level": 1})
    return file.getvalue()


def write(
    folder: str | Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Callable[[], Any]]
) -> list[str]:
    """Write tables as CSV and then figures as PNG, by file name; returns the names.

    Raises InputError where the folder cannot be written, or matplotlib is not installed.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_csv(folder / name, index=not isinstance(table.index, pd.RangeIndex))
        for name, figure in figures.items():
            figure().savefig(folder / name, dpi=150)
    except OSError as error:
        raise InputError(f"the check cannot be written to {folder}: {error}.") from error
    return [*tables, *figures]
