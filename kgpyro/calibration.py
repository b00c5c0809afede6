"""Whether predicted probabilities mean what they say, and maps that make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from kgpyro.errors import InputError
from kgpyro.plotting import new_figure

METHODS = ("temperature", "platt", "isotonic")
SMALLEST = 1e-12  # probabilities are kept this far from 0 and 1 where their logarithms are taken


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities beside labels.

    Attributes:
        probabilities: shape ``(n,)``.
        labels: 0 or 1, shape ``(n,)``, both among them.
        negatives: where the zeros come from (:func:`kgpyro.labelled_facts`).
    """

    probabilities: np.ndarray
    labels: np.ndarray
    negatives: str = ""

    def __post_init__(self) -> None:
        if len(np.unique(self.labels)) < 2:
            raise InputError("calibration needs true facts and false ones; these labels are all the same.")

    def reliability(self, bins: int = 10) -> pd.DataFrame:
        """By bins of equal width: mean ``predicted`` probability, ``observed`` share of true facts, ``facts``."""
        index = np.minimum((self.probabilities * bins).astype(int), bins - 1)
        frame = pd.DataFrame({"predicted": self.probabilities, "observed": self.labels}).groupby(index)
        table = frame.mean().assign(facts=frame.size())
        return table.set_axis([f"{i / bins:.2g}-{(i + 1) / bins:.2g}" for i in table.index]).rename_axis("bin")

    @property
    def ece(self) -> float:
        """Expected calibration error: ``Σ_bins n_bin / n |observed - predicted|`` (Naeini et al. 2015)."""
        table = self.reliability()
        return float(((table.observed - table.predicted).abs() * table.facts).sum() / table.facts.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """``ece``, ``brier``, ``log_score`` (mean log-probability of the labels, in nats) and ``auroc``."""
        p = np.clip(self.probabilities, SMALLEST, 1 - SMALLEST)
        return {
            "ece": self.ece,
            "brier": float(brier_score_loss(self.labels, p)),
            "log_score": -float(log_loss(self.labels, p)),
            "auroc": float(roc_auc_score(self.labels, self.probabilities)),
        }

    def figure(self, **others: Calibration) -> Any:
        """Reliability diagram, of this and others, with how many facts each bin has. InputError without matplotlib."""
        figure = new_figure(4.5, 5.5)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        for i, (name, one) in enumerate({"predicted": self, **others}.items()):
            table, colour = one.reliability(), f"C{i}"
            label = f"{name.replace('_', ' ')}, ECE {one.ece:.3f}"
            top.plot(table.predicted, table.observed, "o-", markersize=4, color=colour, label=label)
            bottom.hist(one.probabilities, bins=20, range=(0, 1), histtype="step", color=colour)
        top.set(ylabel="share of true facts", title=f"negatives: {self.negatives}" if self.negatives else "")
        top.legend(frameon=False)
        bottom.set(xlabel="predicted probability", ylabel="facts", xlim=(0, 1))
        return figure


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds; probabilities of 0 and 1 stand for ``SMALLEST`` and one minus it."""
    p = np.clip(np.asarray(probabilities, dtype=float), SMALLEST, 1 - SMALLEST)
    return np.log(p) - np.log1p(-p)


@dataclass(frozen=True)
class Recalibration:
    """A rising map of probabilities to probabilities, fitted to labels: ``p' = f(slope · logit p + intercept)``.

    ``temperature``: slope ``1/T``, ``f`` the sigmoid (Guo et al. 2017); ``platt``: slope and intercept (Platt 1999);
    ``isotonic``: ``f`` rises in ``steps``, linear between them (Zadrozny & Elkan 2002), and stays ``1/(n + 2)`` away
    from 0 and 1, for ``n`` facts cannot say more.
    """

    method: str
    slope: float = 1.0
    intercept: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()

    @classmethod
    def fit(cls, given: Calibration, method: str = "isotonic") -> Recalibration:
        """Fit to labelled predictions. Raises InputError for an unknown method."""
        x, y, n = logit(given.probabilities), given.labels, len(given.labels)
        if method == "isotonic":
            line = IsotonicRegression(y_min=1 / (n + 2), y_max=1 - 1 / (n + 2)).fit(x, y)
            return cls(method, steps=tuple(zip(line.X_thresholds_.tolist(), line.y_thresholds_.tolist(), strict=True)))
        if method not in METHODS:
            raise InputError(f"unknown recalibration {method!r}; choose from {', '.join(METHODS)}.")
        regression = LogisticRegression(C=np.inf, fit_intercept=method == "platt", tol=1e-8).fit(x[:, None], y)
        return cls(method, float(regression.coef_[0, 0]), float(np.ravel(regression.intercept_)[0]))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Recalibration:
        """From its fields as plain data. Raises InputError for what no fit gives."""
        try:
            steps = tuple((float(x), float(y)) for x, y in fields["steps"])
            found = cls(str(fields["method"]), float(fields["slope"]), float(fields["intercept"]), steps)
            values = np.array([found.slope, found.intercept, *np.ravel(steps)])
            if found.method not in METHODS or not np.isfinite(values).all() or list(steps) != sorted(steps):
                raise ValueError("no rising map")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no recalibration ({error}); remove it, and recalibrate the run.") from error
        return found

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The recalibrated probabilities, any shape."""
        x = self.slope * logit(probabilities) + self.intercept
        return np.interp(x, *np.array(self.steps).T) if self.steps else 1 / (1 + np.exp(-x))
