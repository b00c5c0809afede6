"""Whether predicted probabilities mean what they say, and maps that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from kgpyro.display import new_figure
from kgpyro.errors import InputError, meant

Facts: TypeAlias = pd.DataFrame | Mapping[str, np.ndarray]
FLATTEST = 1e-2  # slope of a map in log-odds where its labels say nothing
SMALLEST = 1e-12  # probabilities are kept this far from 0 and 1 where their logarithms are taken
LEVELS = 41  # quantiles of confidences that are kept, evenly from the smallest to the largest
BLOCK, BLOCKS = 50, 200  # facts of like predictions, at least, in at most so many blocks


@dataclass(frozen=True)
class Calibration:
    """Predicted probabilities beside labels.

    Attributes:
        probabilities: shape ``(n,)``.
        labels: 0 or 1, shape ``(n,)``, both among them.
        negatives: where the zeros come from (:func:`kgpyro.labelled_facts`).
        weights: how many facts each stands for, shape ``(n,)``; None for one.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    negatives: str = ""
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        _refuse_one_label(self.labels)

    @property
    def _weights(self) -> np.ndarray:
        return np.ones(len(self.labels)) if self.weights is None else self.weights

    @property
    def expected_over_true(self) -> float:
        """The sum of the probabilities over the number of true facts: 1 where the base rate is right."""
        return float((self.probabilities * self._weights).sum() / (self.labels * self._weights).sum())

    def reliability(self, bins: int = 10) -> pd.DataFrame:
        """By bins of equal width: mean ``predicted`` probability, ``observed`` share of true facts, ``facts``."""
        index, w = np.minimum((self.probabilities * bins).astype(int), bins - 1), self._weights
        frame = pd.DataFrame({"predicted": w * self.probabilities, "observed": w * self.labels, "facts": w})
        table = frame.groupby(index).sum()
        table[["predicted", "observed"]] = table[["predicted", "observed"]].div(table["facts"], axis=0)
        return table.set_axis([f"{i / bins:.2g}-{(i + 1) / bins:.2g}" for i in table.index]).rename_axis("bin")

    @property
    def ece(self) -> float:
        """Expected calibration error: ``Σ_bins n_bin / n |observed - predicted|`` (Naeini et al. 2015)."""
        table = self.reliability()
        return float(((table.observed - table.predicted).abs() * table.facts).sum() / table.facts.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """``ece``, ``brier``, ``log_score`` (mean log-probability of the labels, in nats), ``auroc`` and
        ``expected_over_true``.
        """
        from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score  # imported here: it takes a second

        p, w = np.clip(self.probabilities, SMALLEST, 1 - SMALLEST), self._weights
        return {
            "ece": self.ece,
            "brier": float(brier_score_loss(self.labels, p, sample_weight=w)),
            "log_score": -float(log_loss(self.labels, p, sample_weight=w)),
            "auroc": float(roc_auc_score(self.labels, self.probabilities, sample_weight=w)),
            "expected_over_true": self.expected_over_true,
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
METHODS = {name: ["probability"] for name in ("temperature", "platt", "isotonic", "per_relation")}
METHODS["stacked"] = [*EVIDENCE]


@dataclass(frozen=True)
class Recalibration:
    """A map of predictions to probabilities, fitted to labels: ``logit p' = f(Σ_k weight_k evidence_k + intercept)``.

    ``temperature``: ``f`` the identity, of ``logit p / T`` (Guo et al. 2017); ``platt``: of ``a logit p + b`` with
    Platt's targets (1999); ``stacked``: of all ``EVIDENCE``, the model's doubt among it, where that predicts left-out
    labels better than Platt's; ``per_relation``: a line ``a_r logit p + b_r`` for each relation, drawn to a common one
    as far as relations are alike; ``isotonic``: ``f`` is linear between the centres of the steps of the best rising
    function (Zadrozny & Elkan 2002), and stays ``1/(n + 2)`` away from 0 and 1, for ``n`` facts cannot say more. No map
    falls: where the labels want one that does, it hardly rises.

    Attributes:
        negatives: what the false labels were (:func:`kgpyro.labelled_facts`), which says whose base rate it has.
        relations: slope and intercept of each relation that has its own, by name.
        spread: on uncertain graphs, which confidences are given by which is predicted.
    """

    method: str
    weights: Mapping[str, float]
    intercept: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()
    negatives: str = ""
    relations: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    spread: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def fit(
        cls,
        facts: Facts,
        labels: np.ndarray,
        method: str = "isotonic",
        counts: np.ndarray | None = None,
        negatives: str = "",
    ) -> Recalibration:
        """Fit to predicted facts, whose columns :meth:`kgpyro.Posterior.facts` describes, and their labels ``(n,)``.

        Labels may lie between 0 and 1: confidences, of which the map then gives the expectation. Each stands for
        ``counts`` facts, shape ``(n,)``, or for one.

        Raises InputError for an unknown method, or labels that are all the same.
        """
        if method not in METHODS:
            raise InputError(f"unknown recalibration {method!r}; {meant(method, METHODS)}")
        _refuse_one_label(labels)
        counts = np.ones(len(labels)) if counts is None else counts
        x = _evidence(facts, METHODS[method])
        if method == "isotonic":
            return cls(method, {"probability": 1.0}, 0.0, _rising(x[:, 0], labels, counts), negatives)
        if method == "per_relation":
            (slope, intercept), lines = _line_per_relation(x[:, 0], labels, counts, np.asarray(facts["relation"]))
            return cls(method, {"probability": slope}, intercept, (), negatives, lines)
        weights, intercept = _regression(x, labels, counts, method != "temperature")
        if method == "stacked" and not (_worth_it(x, labels, counts) and np.corrcoef(x @ weights, x[:, 0])[0, 1] > 0):
            platt, intercept = _regression(x[:, :1], labels, counts)
            weights = np.concatenate([platt, np.zeros(x.shape[1] - 1)])
        return cls(method, dict(zip(METHODS[method], weights.tolist(), strict=True)), intercept, (), negatives)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Recalibration:
        """From its fields as plain data. Raises InputError for what no fit gives."""
        try:
            steps = tuple((float(x), float(y)) for x, y in fields["steps"])
            weights = {str(name): float(weight) for name, weight in fields["weights"].items()}
            about = str(fields.get("negatives", ""))
            lines = {str(name): (float(a), float(b)) for name, (a, b) in fields.get("relations", {}).items()}
            spread = tuple(tuple(float(x) for x in row) for row in fields.get("spread", ()))
            found = cls(str(fields["method"]), weights, float(fields["intercept"]), steps, about, lines, spread)
            numbers = [found.intercept], [*weights.values()], steps, [*lines.values()], spread
            finite = all(np.isfinite(np.array(part)).all() for part in numbers)
            rises = list(steps) == sorted(steps) and {len(row) for row in spread} <= {1 + LEVELS}
            if [*weights] != METHODS[found.method] or not finite or not rises:
                raise ValueError("no such map")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no recalibration ({error}); remove it, and recalibrate the run.") from error
        return found

    def __call__(self, facts: Facts) -> np.ndarray:
        """The recalibrated probabilities, shape ``(n,)``."""
        x = _evidence(facts, [*self.weights])
        if self.relations:
            line = self.weights["probability"], self.intercept
            relation = np.asarray(facts["relation"])
            each, place = np.unique(relation.astype(str), return_inverse=True)
            slope, intercept = np.array([self.relations.get(name, line) for name in each]).reshape(-1, 2)[place].T
            return special.expit(slope * x[:, 0] + intercept)
        x = x @ np.array([*self.weights.values()]) + self.intercept
        if not self.steps:
            return special.expit(x)
        at, value = np.array(self.steps).T
        beyond = FLATTEST * (np.minimum(x - at[0], 0) + np.maximum(x - at[-1], 0))
        return special.expit(np.interp(x, at, value) + beyond)

    def quantiles(self, probabilities: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
        """Quantiles of the confidences that sources give to facts of these recalibrated probabilities, ``(n,)`` each.

        At 0.5 it is the median, of which the mean absolute error is least. For maps with a ``spread``.
        """
        return quantiles_at(self.spread, probabilities, levels)


def _rising(x: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Centres of the steps of the best rising function, and their log-odds."""
    from sklearn.isotonic import IsotonicRegression  # imported here: it takes a second

    level = IsotonicRegression().fit_transform(x, labels, sample_weight=counts)
    y, block = np.unique(level, return_inverse=True)
    centre = np.bincount(block, counts * x) / np.bincount(block, counts)
    bounded = np.clip(y, 1 / (counts.sum() + 2), 1 - 1 / (len(labels) + 2))
    keep = np.concatenate([[True], np.diff(centre) > 0])
    return tuple(zip(centre[keep].tolist(), logit(bounded[keep]).tolist(), strict=True))


def _regression(
    x: np.ndarray, labels: np.ndarray, counts: np.ndarray, intercept: bool = True
) -> tuple[np.ndarray, float]:
    """Weights ``(k,)`` of evidence ``(n, k)`` and an intercept, by logistic regression on Platt's targets.

    The first weight, of the probability, is not negative; evidence that does not vary has none. With several columns
    the weights of the standardised evidence have a standard normal prior.
    """
    from sklearn.linear_model import LogisticRegression  # imported here: it takes a second

    target = _targets(labels, counts)
    spread = x.std(0)
    varies = spread > 1e-9 * (1 + np.abs(x).max(0))
    weights, shift = np.zeros(x.shape[1]), float(special.logit(np.average(target, weights=counts)))
    if varies.any():
        z = x[:, varies] / spread[varies]
        strength = np.inf if z.shape[1] == 1 else 1.0
        regression = LogisticRegression(C=strength, fit_intercept=intercept, tol=1e-8, max_iter=10_000)
        twice = np.concatenate([target * counts, (1 - target) * counts]) / counts.mean()
        regression.fit(np.concatenate([z, z]), np.repeat([1, 0], len(z)), sample_weight=twice)
        weights[varies] = regression.coef_[0] / spread[varies]
        shift = float(np.ravel(regression.intercept_)[0])
    if weights[0] < FLATTEST and (len(weights) == 1 or not weights[1:].any()):
        weights[0] = FLATTEST
        rate, centre = (np.average(values, weights=counts) for values in (target, x[:, 0]))
        shift = float(special.logit(rate) - FLATTEST * centre)
    return weights, shift if intercept else 0.0


def _targets(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Platt's, ``(n,)``: one more fact of either label than there are, so that no map has to be infinitely steep."""
    true, false = (counts * labels).sum(), (counts * (1 - labels)).sum()
    return labels * (true + 1) / (true + 2) + (1 - labels) / (false + 2)


def _line_per_relation(
    x: np.ndarray, labels: np.ndarray, counts: np.ndarray, relation: np.ndarray
) -> tuple[tuple[float, float], dict[str, tuple[float, float]]]:
    """Logistic regressions of labels on ``x``, all ``(n,)``: the common slope and intercept, and those by relation.

    Empirical Bayes: a relation's pair is Normal about the common one, and mean and covariance of that Normal are found
    by expectation maximisation with Laplace's approximation of each relation's posterior (a weak inverse-Wishart prior
    stands by where relations are few). A relation with few labels has nearly the common line.
    """
    middle, spread = x.mean(), x.std() + SMALLEST
    columns = np.stack([(x - middle) / spread, np.ones_like(x)], 1)
    names, group = np.unique(relation.astype(str), return_inverse=True)
    target = _targets(labels, counts)
    slope, intercept = _regression(x[:, None], labels, counts)
    mean = np.array([slope[0] * spread, intercept + slope[0] * middle])
    start = np.diag([0.25, 1.0])
    covariance, line = start, np.tile(mean, (len(names), 1))

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, values, len(names))

    for _ in range(50):
        precision = np.linalg.inv(covariance)
        for _ in range(20):  # Newton's method, in steps that cannot overshoot far
            p = special.expit((columns * line[group]).sum(1))
            slack, weight = counts * (target - p), counts * p * (1 - p)
            gradient = np.stack([sums(slack * c) for c in columns.T], 1) - (line - mean) @ precision
            entries = [[sums(weight * a * b) for b in columns.T] for a in columns.T]
            hessian = np.moveaxis(np.array(entries), -1, 0) + precision
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
            line = line + step / np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True))
            if np.abs(step).max() < 1e-6:
                break
        before, mean = mean, line.mean(0)
        off = line - mean
        covariance = (np.linalg.inv(hessian).sum(0) + off.T @ off + 2 * start) / (len(names) + 2)
        if np.abs(mean - before).max() < 1e-4:
            break
    least = FLATTEST * spread
    falls = line[:, 0] < least
    if falls.any():
        centre, rate = (sums(counts * value) / sums(counts) for value in (columns[:, 0], target))
        line[falls] = np.stack([np.full(len(names), least), special.logit(rate) - least * centre], 1)[falls]
    both = np.concatenate([[np.maximum(mean, [least, -np.inf])], line])
    slopes = both[:, 0] / spread
    pairs = list(zip(slopes.tolist(), (both[:, 1] - slopes * middle).tolist(), strict=True))
    return pairs[0], dict(zip(names.tolist(), pairs[1:], strict=True))


def _worth_it(x: np.ndarray, labels: np.ndarray, counts: np.ndarray, folds: int = 5) -> bool:
    """Whether all evidence predicts left-out labels better than the probability alone, in log score."""
    fold, score = np.random.default_rng(0).integers(folds, size=len(labels)), np.zeros(2)
    for i in range(folds):
        kept = fold != i
        if len(np.unique(labels[kept])) < 2 or kept.all():
            continue
        for j, columns in enumerate((slice(0, 1), slice(None))):
            weights, intercept = _regression(x[kept, columns], labels[kept], counts[kept])
            z, y = x[~kept, columns] @ weights + intercept, labels[~kept]
            score[j] += (counts[~kept] * (y * special.log_expit(z) + (1 - y) * special.log_expit(-z))).sum()
    return bool(score[1] > score[0])


def moved_logits(logits: Tensor, probability: Tensor) -> Tensor:
    """Draws of log-odds, ``(draws, n)``, each fact's shifted so that its mean probability is the one given, ``(n,)``.

    By Newton's method on the log-odds of the mean, within bounds that the shift cannot leave.
    """
    logits, wanted = logits.double(), torch.logit(probability.double().to(logits.device), eps=1e-15)
    low, high = wanted - logits.amax(0), wanted - logits.amin(0)
    shift = (wanted - torch.logit(logits.sigmoid().mean(0), eps=1e-15)).clamp(low, high)
    for _ in range(100):  # few are needed, but where draws are far apart
        p = (logits + shift).sigmoid()
        mean, slope = p.mean(0), (p * (1 - p)).mean(0)
        off = wanted - torch.logit(mean, eps=1e-15)
        low, high = torch.where(off > 0, shift, low), torch.where(off < 0, shift, high)
        step = shift + off * (mean * (1 - mean) / slope.clamp_min(1e-300)).clamp_max(1e6)
        shift = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        if float(off.abs().max()) < 1e-9:
            break
    return logits + shift


def _evidence(facts: Facts, names: Sequence[str]) -> np.ndarray:
    return np.stack([EVIDENCE[name](np.asarray(facts[name], dtype=float)) for name in names], axis=1)


def rising_quantiles(predicted: np.ndarray, given: np.ndarray, counts: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """The distribution of given confidences by predicted ones, all of shape ``(n,)``; each stands for ``counts`` facts.

    Blocks of facts with like predictions have the quantiles of given minus predicted, about their mean prediction. By
    isotonic regression each quantile then rises with the prediction (Casady & Cryer 1976), and they stay in order. A
    row per block has its mean prediction, which rises from row to row, and ``LEVELS`` quantiles minus it.
    """
    from sklearn.isotonic import IsotonicRegression  # imported here: it takes a second

    order = np.argsort(predicted, kind="stable")
    blocks = np.array_split(order, np.clip(len(order) // BLOCK, 1, BLOCKS))
    at = np.array([np.average(predicted[block], weights=counts[block]) for block in blocks])
    found = at[:, None] + [_quantiles((given - predicted)[block], counts[block]) for block in blocks]
    weights = [counts[block].sum() for block in blocks]
    rising = [IsotonicRegression().fit_transform(at, column, sample_weight=weights) for column in found.T]
    keep = np.concatenate([[True], np.diff(at) > 0])
    return tuple(tuple(row) for row in np.stack([at, *(rising - at)], 1)[keep].tolist())


def quantiles_at(rows: Sequence[Sequence[float]], predicted: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
    """Quantiles at levels from 0 to 1, ``(n,)`` each, for predictions ``(n,)``: linear between rows, and levels."""
    at, *off = np.array(rows).T
    found = []
    for place in np.array(levels) * (LEVELS - 1):
        below = min(int(place), LEVELS - 2)
        low, high = (np.interp(predicted, at, off[i]) for i in (below, below + 1))
        found.append(np.clip(predicted + low + (place - below) * (high - low), 0, 1))
    return found


def _quantiles(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``LEVELS`` quantiles of values ``(n,)``, linear between the middles of what each stands for."""
    order = np.argsort(values)
    middle = np.cumsum(counts[order]) - counts[order] / 2
    return np.interp(np.linspace(0, counts.sum(), LEVELS), middle, values[order])
