"""Whether predicted probabilities mean what they say, and maps that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import special

from kgpyro.display import new_figure
from kgpyro.errors import InputError

Facts: TypeAlias = pd.DataFrame | Mapping[str, np.ndarray]
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
        _refuse_one_label(self.labels)

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
        from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score  # imported here: it takes a second

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


def _refuse_one_label(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise InputError("calibration needs true facts and false ones; these labels are all the same.")


def logit(probabilities: Any) -> np.ndarray:
    """Log-odds; probabilities of 0 and 1 stand for ``SMALLEST`` and one minus it."""
    p = np.clip(np.asarray(probabilities, dtype=float), SMALLEST, 1 - SMALLEST)
    return special.logit(p)


# What recalibration may go by, each as a number that grows or falls evenly: columns of a frame of predicted facts.
EVIDENCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "probability": logit,
    "score": lambda score: score,
    "std": lambda std: np.log(std + SMALLEST),
    "epistemic": lambda nats: np.log(nats + SMALLEST),
    "aleatoric": lambda nats: np.log(nats + SMALLEST),
    "frequency": np.log1p,
}
METHODS = {
    "temperature": ["probability"],
    "platt": ["probability"],
    "isotonic": ["probability"],
    "stacked": [*EVIDENCE],
}


@dataclass(frozen=True)
class Recalibration:
    """A map of predictions to probabilities, fitted to labels: ``p' = f(Σ_k weight_k evidence_k + intercept)``.

    ``temperature``: ``f`` the sigmoid, of ``logit p / T`` (Guo et al. 2017); ``platt``: of ``a logit p + b`` (Platt
    1999); ``stacked``: of all ``EVIDENCE``, so that the model's doubt counts along with its score; ``isotonic``: ``f``
    rises in ``steps`` of ``logit p``, linear between them (Zadrozny & Elkan 2002), and stays ``1/(n + 2)`` away from 0
    and 1, for ``n`` facts cannot say more.
    """

    method: str
    weights: Mapping[str, float]
    intercept: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()

    @classmethod
    def fit(cls, facts: Facts, labels: np.ndarray, method: str = "isotonic") -> Recalibration:
        """Fit to predicted facts, whose columns :meth:`kgpyro.Posterior.facts` describes, and their labels ``(n,)``.

        Raises InputError for an unknown method, or labels that are all the same.
        """
        from sklearn.isotonic import IsotonicRegression  # imported here: they take a second
        from sklearn.linear_model import LogisticRegression

        if method not in METHODS:
            raise InputError(f"unknown recalibration {method!r}; choose from {', '.join(METHODS)}.")
        _refuse_one_label(labels)
        x, n = _evidence(facts, METHODS[method]), len(labels)
        if method == "isotonic":
            line = IsotonicRegression(y_min=1 / (n + 2), y_max=1 - 1 / (n + 2)).fit(x[:, 0], labels)
            steps = tuple(zip(line.X_thresholds_.tolist(), line.y_thresholds_.tolist(), strict=True))
            return cls(method, {"probability": 1.0}, steps=steps)
        regression = LogisticRegression(C=np.inf, fit_intercept=method != "temperature", tol=1e-8, max_iter=10_000)
        scale = x.std(0).clip(SMALLEST)
        weights = regression.fit(x / scale, labels).coef_[0] / scale
        intercept = float(np.ravel(regression.intercept_)[0])
        return cls(method, dict(zip(METHODS[method], weights.tolist(), strict=True)), intercept)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Recalibration:
        """From its fields as plain data. Raises InputError for what no fit gives."""
        try:
            steps = tuple((float(x), float(y)) for x, y in fields["steps"])
            weights = {str(name): float(weight) for name, weight in fields["weights"].items()}
            found = cls(str(fields["method"]), weights, float(fields["intercept"]), steps)
            values = np.array([found.intercept, *weights.values(), *np.ravel(steps)])
            if [*weights] != METHODS[found.method] or not np.isfinite(values).all() or list(steps) != sorted(steps):
                raise ValueError("no such map")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no recalibration ({error}); remove it, and recalibrate the run.") from error
        return found

    def __call__(self, facts: Facts) -> dict[str, np.ndarray]:
        """The recalibrated ``probability``, and ``low`` and ``high`` where the facts have them.

        Both bounds go through the map as the probability does; ``stacked`` leaves them as far away from it in log-odds
        as they were, since it knows the whole posterior of a fact only.
        """
        x = _evidence(facts, [*self.weights]) @ np.array([*self.weights.values()]) + self.intercept
        at, slope = logit(facts["probability"]), 1.0 if len(self.weights) > 1 else self.weights["probability"]
        moved = {key: x + slope * (logit(facts[key]) - at) for key in ("low", "high") if key in facts}
        return {key: self._f(value) for key, value in {"probability": x, **moved}.items()}

    def _f(self, x: np.ndarray) -> np.ndarray:
        return np.interp(x, *np.array(self.steps).T) if self.steps else special.expit(x)


def _evidence(facts: Facts, names: Sequence[str]) -> np.ndarray:
    return np.stack([EVIDENCE[name](np.asarray(facts[name], dtype=float)) for name in names], axis=1)
