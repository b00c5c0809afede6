"""Knowing when to abstain: how wrong decisions are when the least certain are withheld, by what counts as certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

from kgpyro.data.labelled import labelled_facts
from kgpyro.display import new_figure
from kgpyro.evaluation.calibration import Recalibration, logit
from kgpyro.evaluation.conformal import open_candidates
from kgpyro.evaluation.ranking import at_once
from kgpyro.posterior.asked import fact_ids
from kgpyro.posterior.predictions import Predictions

CRITERIA = ("score", "margin", "std", "epistemic", "frequency", "probability", "stacked")
SHOWN = {"stacked": "tab:blue", "score": "tab:orange", "epistemic": "tab:green", "frequency": "tab:red"}  # as curves


@dataclass(frozen=True)
class Abstention:
    """Decisions whether facts are true, and their certainty by each criterion.

    Attributes:
        facts: a row per labelled fact: ``head``, ``relation``, ``tail``, ``label``, ``decision``, and a column of
            certainty (the higher the surer) per criterion.
        negatives: where the false facts come from (:func:`kgpyro.labelled_facts`).
    """

    facts: pd.DataFrame
    negatives: str

    @property
    def errors(self) -> np.ndarray:
        """Which decisions are wrong, shape ``(n,)``, 0 or 1."""
        return (self.facts["decision"] != self.facts["label"]).to_numpy(dtype=float)

    @property
    def table(self) -> pd.DataFrame:
        """By criterion: ``aurc``; the risk when only the surest half, or four in five, are decided; best first."""
        rows = {}
        for name in CRITERIA:
            risk = risk_coverage(self.errors, self.facts[name].to_numpy())
            n = len(risk)
            rows[name] = {"aurc": risk.mean(), "risk at 50 %": risk[n // 2 - 1], "risk at 80 %": risk[n * 4 // 5 - 1]}
        return pd.DataFrame(rows).T.rename_axis("withheld by").sort_values("aurc")

    def figure(self) -> Any:
        """Risk over coverage by four of the criteria, and the area under the curve of each.

        Curves begin where a twentieth is decided: fewer decisions have no rate to speak of. InputError without
        matplotlib.
        """
        figure = new_figure(9, 3.8)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, colour in SHOWN.items():
            risk = risk_coverage(self.errors, self.facts[name].to_numpy())
            part = np.arange(1, len(risk) + 1) / len(risk) >= 0.05
            left.plot(np.linspace(0, 1, len(risk) + 1)[1:][part], risk[part], color=colour, linewidth=2, label=name)
        left.set(xlabel="coverage: share of facts decided", ylabel="risk: share of wrong decisions", xlim=(0, 1))
        left.set_ylim(bottom=0)
        left.legend(frameon=False, title="withheld by")
        area = self.table["aurc"].iloc[::-1]
        bars = right.barh(area.index, area, color=[SHOWN.get(name, "lightgrey") for name in area.index])
        right.bar_label(bars, fmt="%.3f", padding=3)
        right.set(xlabel="area under the curve", xlim=(0, 1.25 * max(area.max(), 1e-3)))
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"false facts: {self.negatives}", fontsize=10, color="grey")
        return figure


def risk_coverage(errors: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """Mean error of the ``k`` surest decisions, ``k = 1 … n``; its mean is the AURC (Geifman & El-Yaniv 2017).

    Decisions of equal certainty have an equal share of their errors.
    """
    at = np.unique(-certainty, return_inverse=True)[1]
    shared = np.bincount(at, errors) / np.bincount(at)
    ordered = shared[np.sort(at)]
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1)


def abstention(
    posterior: Predictions, split: str = "test", negatives: str | None = None, draws: int = 500, seed: int = 0
) -> Abstention:
    """How well a posterior knows which of its decisions to withhold.

    A fact is predicted to be true if its posterior predictive probability, after Platt scaling on the validation split,
    is above one half. The criteria measure how certain a decision is:

    * ``score``: how far the posterior mean of the score is from one half, put to scale in the same way: what a point
      estimate can say;
    * ``margin``: how far it is from the score of the best open answer to the same query, tails asked for;
    * ``std``, ``epistemic``: how little the probability varies over the posterior, and the mutual information;
    * ``frequency``: how often training has the rarer of the two entities;
    * ``probability``: how far the predictive probability is from one half;
    * ``stacked``: the same of the probability that goes by all of these (:class:`.Recalibration`).

    Args:
        posterior: of a fit.
        split: ``"valid"`` or ``"test"``.
        negatives: verified, hard or random (:func:`kgpyro.labelled_facts`); for both splits the same.
        draws: posterior draws behind each probability.
        seed: of draws and corruptions.

    Raises:
        InputError: unknown names, facts with confidences, or verified negatives of a graph that has none.
    """
    predicted, labels = {}, {}
    for part in dict.fromkeys(("valid", split)):
        posterior._refuse_confidences(part)
        labels[part] = labelled_facts(posterior.graph, part, negatives, seed)
        ids = fact_ids(posterior.graph, labels[part])
        found = posterior.facts(ids, draws, seed=seed, recalibrated=False)
        predicted[part] = found.assign(margin=_margins(posterior, ids), point=expit(found["score"]))
    scaled = {}
    for name, method, column in (
        ("score", "platt", "point"),
        ("probability", "platt", "probability"),
        ("stacked", "stacked", "probability"),
    ):
        valid, here = (frame.assign(probability=frame[column]) for frame in (predicted["valid"], predicted[split]))
        scaled[name] = logit(Recalibration.fit(valid, labels["valid"]["label"].to_numpy(), method)(here))
    here = predicted[split]
    certainty = {name: np.abs(value) for name, value in scaled.items()}
    certainty |= {"std": -here["std"], "epistemic": -here["epistemic"], "frequency": here["frequency"]}
    certainty["margin"] = here["margin"].abs()
    decision = (scaled["probability"] > 0).astype(int)
    return Abstention(labels[split].assign(decision=decision, **certainty), labels[split].attrs["negatives"])


def _margins(posterior: Predictions, ids: Tensor) -> np.ndarray:
    """Of facts ``(n, 3)``: how far the posterior mean of the score is above the best open tail's."""
    known, found = posterior.graph.training_queries, []
    for part in ids.split(at_once(posterior.graph.num_entities)):
        here = torch.arange(len(part))
        scores = posterior.mean_scores(part[:, 0], part[:, 1], both=True).cpu()
        others = open_candidates(part[:, 0], part[:, 1], known, posterior.graph.num_entities)
        others[here, part[:, 2]] = False
        best = scores.masked_fill(~others, -torch.inf).amax(1)
        found.append(scores[here, part[:, 2]] - best)
    return torch.cat(found).double().numpy()
