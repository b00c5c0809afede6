"""What results look like: metrics as text in a terminal, and everything as short HTML in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import pandas as pd


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


def as_text(table: pd.DataFrame, index: bool = True) -> str:
    """A table as a terminal shows it, numbers with three digits (mean ranks with one)."""
    return rounded(table).to_string(index=index)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its floating-point columns written out: three digits, ranks and seconds one."""
    formats = {c: "{:.1f}" if c in ("mr", "seconds") else "{:.3f}" for c in table.columns if table[c].dtype == float}
    return table.assign(**{c: table[c].map(form.format, na_action="ignore").fillna("-") for c, form in formats.items()})


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
        """The objective, and the bound with its parts."""
        if "objective" not in self:
            return {}
        bound = "log joint" if self["objective"].startswith("log joint") else "ELBO"
        return {
            "objective": self["objective"],
            bound: f"{self['elbo_per_fact']:.3f} ± {self['elbo_error']:.3f} nats per training fact, untempered "
            f"(log-likelihood {self['log_likelihood_per_fact']:.3f}, KL {self['kl_per_fact']:.3f})",
        }

    def __or__(self, other: Mapping[str, Any]) -> Metrics:  # type: ignore[override]
        return Metrics({**self, **other})

    def __repr__(self) -> str:
        parts = ["\n".join(f"{name:9}  {text}" for name, text in self.values_in_words.items())]
        if not (table := self.table).empty:
            parts += [as_text(table), "filtered unless marked raw, all entities ranked, realistic ties"]
        return "\n\n".join([*filter(None, parts), *(f"WARNING: {warning}" for warning in self.get("warnings", ()))])

    def _repr_html_(self) -> str:
        notes = [f"WARNING: {warning}" for warning in self.get("warnings", ())]
        return as_html("Metrics", self.values_in_words, self.table, notes="\n".join(notes))
