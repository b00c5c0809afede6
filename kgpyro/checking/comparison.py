"""Fits side by side: bounds, predictions of what was held out, costs; and on how much equally good ones disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.queries import Queries
from kgpyro.errors import InputError, meant
from kgpyro.evaluation.conformal import open_candidates
from kgpyro.evaluation.ranking import HITS, at_once, rank_triples
from kgpyro.posterior.asked import refuse_numbers
from kgpyro.posterior.fitted import Posterior

BINS = torch.logspace(-6, 0, 25).double()  # of predicted probabilities, where facts are rare
HIGHER_IS_BETTER = {"elbo_per_fact": True, "log_density": True, "mrr": True, "calibration_error": False}


def compare(
    fits: Mapping[str, Posterior | Sequence[Posterior]],
    *,
    split: Literal["valid", "test"] = "test",
    by: Literal["elbo_per_fact", "log_density", "mrr", "calibration_error"] = "elbo_per_fact",
    draws: int = 50,
    queries: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Several fits of one graph, best first.

    Args:
        fits: by name, a posterior, or several of the same configuration with other seeds.
        split: ``"valid"`` or ``"test"``: what counts as held out.
        by: the column to sort by.
        draws: posterior draws behind predictive probabilities. The log of their mean is biased low: by .016 nats per
            held-out fact at 50 draws on UMLS.
        queries: largest number of held-out queries, at random.
        seed: of their choice.
        progress: show a progress bar.

    Returns:
        A row per name: ``elbo_per_fact`` (untempered, nats per training fact; NaN for a point estimate or NUTS);
        ``log_density``, the log posterior predictive density of all candidates of the held-out queries that training
        and validation leave open, in nats per held-out fact; ``mrr`` (filtered, realistic); ``calibration_error``, how
        far expected and observed numbers of facts are apart in bins of predicted probability, over the number of facts,
        which it may exceed; ``parameters``; ``seconds``. A graph without such a split has no columns of it.
        Where several posteriors are given their mean, and ``…_se``, its standard error.

    Raises:
        InputError: no fits, fits of other graphs, a posterior without metrics or with a categorical likelihood, or an
            unknown column.
    """
    if not isinstance(fits, Mapping):
        raise InputError("`fits` is a dict of posteriors by name, such as {'normal': first, 'laplace': second}.")
    groups = {name: [given] if isinstance(given, Posterior) else list(given) for name, given in fits.items()}
    if not groups or not all(groups.values()):
        raise InputError("there is nothing to compare: give at least one posterior for each name.")
    if by not in HIGHER_IS_BETTER:
        raise InputError(f"cannot sort by {by!r}; {meant(by, HIGHER_IS_BETTER)}")
    graphs = {(p.graph.name, p.graph.num_entities, len(p.graph.train)) for group in groups.values() for p in group}
    if len(graphs) > 1:
        raise InputError(f"these posteriors are of different graphs: {', '.join(sorted(name for name, *_ in graphs))}.")
    every = [(name, posterior) for name, group in groups.items() for posterior in group]
    bar = tqdm(every, desc="compare", unit="fit", disable=not progress, leave=False)
    rows = [_one(posterior, split, draws, queries, seed) for _, posterior in bar]
    by_name = pd.DataFrame(rows, index=[name for name, _ in every]).groupby(level=0, sort=False)
    table = by_name.mean()
    if len(every) > len(groups):
        table = table.join(by_name.sem().add_suffix("_se"))
    measures = [c for m in HIGHER_IS_BETTER for c in (m, f"{m}_se") if c in table]
    table = table[[*measures, "parameters", "seconds"]].astype({"parameters": int})
    return table.sort_values(by, ascending=not HIGHER_IS_BETTER[by])


def _one(posterior: Posterior, split: str, draws: int, queries: int, seed: int) -> dict[str, float]:
    held, metrics = len(getattr(posterior.graph, split)), posterior.metrics
    if held and split not in metrics:
        raise InputError(f"a posterior without metrics of its {split} split cannot be compared; fit or load it anew.")
    posterior.refuse_categorical("comparisons")
    point = posterior.guide is not None and posterior.guide.point
    row = {"elbo_per_fact": float("nan") if point else metrics.get("elbo_per_fact", float("nan"))}
    if held:
        probabilities, labels = held_out(posterior, split, draws, queries, seed)
        off = torch.zeros(len(BINS) + 1).double()
        off.index_add_(0, torch.bucketize(probabilities, BINS), probabilities - labels)
        facts = labels.sum().clamp_min(1)
        p = probabilities.clamp(1e-12, 1 - 1e-12)
        row["log_density"] = float(torch.where(labels > 0, p.log(), (-p).log1p()).sum() / facts)
        row["mrr"] = metrics[split]["realistic"]["mrr"]
        row["calibration_error"] = float(off.abs().sum() / facts)
    modules = posterior.modules().values()
    row["parameters"] = sum(p.numel() for module in modules for p in module.parameters())
    row["seconds"] = posterior.seconds or float(posterior.log.get("seconds", pd.Series([0.0])).iloc[-1])
    return row


def held_out(posterior: Posterior, split: str, draws: int, queries: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictive probabilities and labels of all candidates of held-out queries that other splits leave open."""
    graph = posterior.graph
    asked = Queries.of(getattr(graph, split), graph.num_relations)
    others = {"test": [graph.train, graph.valid], "valid": [graph.train]}[split]
    known = Queries.of(torch.cat(others), graph.num_relations)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(asked), generator=generator)[:queries]
    probabilities, labels = [], []
    for index in chosen.split(at_once(graph.num_entities)):
        anchor, row = asked.anchor[index], asked.relation[index]
        p = posterior.probabilities(anchor, row, draws=draws).cpu().double()
        y, is_open = torch.zeros_like(p), open_candidates(anchor, row, known, graph.num_entities)
        y[asked.answer_pairs(index)] = 1.0
        probabilities.append(p[is_open])
        labels.append(y[is_open])
    return torch.cat(probabilities), torch.cat(labels)


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
    realistic = np.stack([(one["optimistic"] + one["pessimistic"]) / 2 for one in ranks])
    rows = {}
    for k in HITS:
        hit = realistic <= k
        share = hit.mean(1)
        competing = hit[1:][np.abs(share[1:] - share[0]) <= within + 1e-12]
        differ = pd.DataFrame(competing != hit[0], dtype=float)
        worst = {"ambiguity": differ.max().mean(), "discrepancy": differ.mean(axis=1).max()}
        rows[k] = {"hits": share[0], "competitors": len(differ)} | worst
    return pd.DataFrame(rows).T.astype({"competitors": int}).rename_axis("k")


def _draw(posterior: Posterior, number: int, anchor: Tensor, row: Tensor) -> Tensor:
    return next(posterior.joint_probabilities(anchor, row, [number]))
