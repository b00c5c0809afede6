"""Predictive multiplicity: on how many queries equally good fits disagree (Zhu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.evaluation.ranking import HITS, rank_triples
from kgpyro.posterior.asked import refuse_numbers
from kgpyro.posterior.fitted import Posterior


def multiplicity(
    fits: Posterior | Sequence[Posterior],
    *,
    split: Literal["valid", "test"] = "test",
    by: Literal["score", "probability"] = "score",
    draws: int = 10,
    within: float = 0.01,
) -> pd.DataFrame:
    """The share of held-out queries on which equally good models give conflicting predictions.

    A model's prediction is whether the true answer is among its first k (filtered, realistic ranks). The first model is
    the baseline; its competitors are the others whose Hits@k is at most ``within`` away. Ambiguity is the share of
    queries on which any competitor disagrees with the baseline; discrepancy is the largest share on which one
    of them does (Zhu et al. 2024, after Marx et al. 2020). Ambiguity grows with the number of models.

    Args:
        fits: of one graph, such as with several seeds; or one posterior, whose joint draws are the models, a mixture's
            from its members in turn.
        split: ``"valid"`` or ``"test"``.
        by: what several fits rank by: score (its posterior mean) or probability (the posterior predictive).
        draws: how many of one posterior.
        within: largest difference of Hits@k.

    Returns:
        A row per k: ``hits`` of the baseline, ``competitors`` (their number), ``ambiguity`` and ``discrepancy``.

    Raises:
        InputError: fewer than two models, fits of other graphs, or no such triples.
    """
    several = [fits] if isinstance(fits, Posterior) else list(fits)
    refuse_numbers(draws=draws)
    if len({one.graph.checksum for one in several}) > 1:
        raise InputError("multiplicity is of fits of one graph; these are of several.")
    if isinstance(fits, Posterior):
        graph = fits.graph
        asked = getattr(graph, split), graph.known_queries, graph.num_entities
        ranks = [rank_triples(partial(_draw, fits, number), *asked) for number in range(draws)]
    else:
        ranks = [one.ranks(split, by) for one in several]
    if len(ranks) < 2 or not len(ranks[0]):
        raise InputError("multiplicity needs two models at least, and held-out triples; give more `fits` or `draws`.")
    realistic = torch.stack([torch.tensor((r["optimistic"] + r["pessimistic"]).to_numpy()) / 2 for r in ranks])
    rows = {}
    for k in HITS:
        hit = realistic <= k
        share = hit.double().mean(1)
        competing = hit[1:][(share[1:] - share[0]).abs() <= within + 1e-12]
        differ = (competing != hit[0]).double()
        some = len(differ) > 0
        rows[k] = {
            "hits": float(share[0]),
            "competitors": len(differ),
            "ambiguity": float(differ.amax(0).mean()) if some else float("nan"),
            "discrepancy": float(differ.mean(1).max()) if some else float("nan"),
        }
    return pd.DataFrame(rows).T.astype({"competitors": int}).rename_axis("k")


def _draw(posterior: Posterior, number: int, anchor: Tensor, row: Tensor) -> Tensor:
    return next(posterior.joint_probabilities(anchor, row, [number]))
