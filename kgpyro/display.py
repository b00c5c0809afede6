"""What results look like: text in a terminal, short HTML in a notebook, figures, and folders of both."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from kgpyro.errors import InputError


def as_html(title: str, values: Mapping[str, object], *tables: pd.DataFrame, notes: str = "") -> str:
    """A title, named values, and tables, as HTML; all text is escaped."""
    left = "style='text-align:left'"
    rows = "".join(
        f"<tr><th {left}>{escape(key)}</th><td {left}>{escape(str(v))}</td></tr>" for key, v in values.items()
    )
    parts = [f"<b>{escape(title)}</b>", f"<table>{rows}</table>" if rows else ""]
    parts += [rounded(table).to_html() for table in tables if not table.empty]
    parts += [f"<div>{escape(note)}</div>" for note in notes.splitlines()]
    return f"<div class='kgpyro'>{''.join(parts)}</div>"


def as_text(table: pd.DataFrame, index: bool = True, width: int | None = None) -> str:
    """A table as a terminal shows it, small numbers with as many digits as they need; names cut to fit a width."""
    shown = rounded(table)
    for longest in (None, 50, 40, 34, 28, 22, 16, 10):
        text = shown.to_string(index=index, max_colwidth=longest)
        if width is None or max(map(len, text.splitlines())) <= width:
            break
    return text


def told(*parts: str, warnings: Iterable[str]) -> str:
    """Paragraphs, those that are not empty, and then what is to be warned of."""
    return "\n\n".join([*filter(None, parts), *(f"WARNING: {warning}" for warning in warnings)])


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its floating-point columns written out: three digits of the largest, ranks and seconds one."""
    shown = {}
    for name in [name for name in table.columns if table[name].dtype == float]:
        largest = table[name].abs().replace(math.inf, 0).max()
        digits = max(3, 2 - math.floor(math.log10(largest))) if 1e-12 < largest < 0.1 else 3
        form = f"{{:.{1 if name in ('mr', 'seconds') else digits}f}}".format
        shown[name] = table[name].map(form, na_action="ignore").fillna("-")
    return table.assign(**shown)


class Metrics(dict[str, Any]):
    """What ``metrics.json`` holds: by split the ranking metrics, the bound and its parts, the objective, warnings.

    A dictionary of plain numbers and strings that prints as a table.
    """

    @property
    def table(self) -> pd.DataFrame:
        """Realistic ranking metrics: a row per split and side (both, head, tail: filtered), and one raw per split."""
        rows = {}
        for split in ("test", "valid"):
            if split in self:
                rows[split, "both"] = self[split]["realistic"]
                rows |= {(split, side): self[split][side]["realistic"] for side in ("head", "tail")}
                rows[split, "both, raw"] = self[split]["raw"]["realistic"]
        return pd.DataFrame(rows).T

    @property
    def values_in_words(self) -> dict[str, str]:
        """The recipe and the objective, and the bound with its parts."""
        said = {key: self[key] for key in ("recipe", "objective") if key in self}
        if "elbo_per_fact" not in self:
            return said
        bound = "log joint" if self["objective"].startswith("log joint") else "ELBO"
        return said | {
            bound: f"{self['elbo_per_fact']:.3f} ± {self['elbo_error']:.3f} nats per training fact, untempered "
            f"(log-likelihood {self['log_likelihood_per_fact']:.3f}, KL {self['kl_per_fact']:.3f})",
        }

    def __or__(self, other: Mapping[str, Any]) -> Metrics:  # type: ignore[override]
        return Metrics({**self, **other})

    def __repr__(self) -> str:
        parts = ["\n".join(f"{name:9}  {text}" for name, text in self.values_in_words.items())]
        if not (table := self.table).empty:
            parts += [as_text(table), "filtered unless marked raw, all entities ranked, realistic ties"]
        return told(*parts, warnings=self.get("warnings", ()))

    def _repr_html_(self) -> str:
        notes = [f"WARNING: {warning}" for warning in self.get("warnings", ())]
        return as_html("Metrics", self.values_in_words, self.table, notes="\n".join(notes))


# Okabe & Ito 2008: told apart by all kinds of eyes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plain(name: str) -> str:
    """A name as matplotlib shows it as it is, dollars and all."""
    return name.replace("$", r"\$")


def axes_of(ax: Any, width: float, height: float) -> tuple[Any, Any]:
    """The figure and the Axes to draw into: those given, or new ones of this size. InputError without matplotlib."""
    figure = new_figure(width, height) if ax is None else ax.figure
    axes = figure.subplots() if ax is None else ax
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _show(figure: Any) -> None:
    """In a notebook as its output, elsewhere in a window of pyplot."""
    with suppress(ImportError):
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is not None:
            display(figure)
            return
    from matplotlib import pyplot

    manager: Any = pyplot.figure(figsize=figure.get_size_inches()).canvas.manager
    manager.canvas.figure = figure
    figure.set_canvas(manager.canvas)
    pyplot.show()


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
    figure.show = partial(_show, figure)
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
