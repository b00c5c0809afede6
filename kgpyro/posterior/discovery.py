"""Facts of the whole graph that are not known: the probable ones, and those whose labels would say most.

The mutual information of a fact's label and the latents, ``H[E p] - E H[p]`` over the posterior, is what a label is
expected to take off the entropy of the latents (BALD; Houlsby et al. 2011). Facts are too many to keep draws of each:
two running sums per fact of a block of queries are enough, and of each block only its best facts are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.evaluation.conformal import open_candidates
from kgpyro.posterior.answers import Answers
from kgpyro.posterior.draws import AT_ONCE
from kgpyro.posterior.uncertainty import entropy, label_entropy
from kgpyro.randomness import seeded

MEASURES = ("epistemic", "entropy", "probability")
FACTS_AT_MOST = 10_000_000
WORTH = 100  # cells that take as long in a matrix product as one by itself


def _blocks(
    what: str, relations: Iterable[int], heads_of: Callable[[int], Tensor], total: int, most: int, progress: bool
) -> Iterator[tuple[int, Tensor]]:
    """Relations with the heads of ``most`` queries at a time."""
    with tqdm(total=total, desc=what, unit="query", disable=not progress, leave=False) as bar:
        for relation in relations:
            for heads in heads_of(relation).split(max(1, most)):
                yield relation, heads
                bar.update(len(heads))


@torch.no_grad()
def discovered(
    posterior: Answers, above: float, relation: int | None, draws: int, seed: int, progress: bool = False
) -> Iterator[pd.DataFrame]:
    """Frames of the facts of each block of queries ``(head, relation, ?)``, as :meth:`.Answers.facts` has them."""
    graph, size = posterior.graph, posterior.graph.num_entities
    everyone, relations = torch.arange(size), range(graph.num_relations) if relation is None else [relation]
    least = {row: _least(posterior, above, graph.relations[row]) for row in relations}
    walk = relations, lambda _: everyone, size * len(relations), 4 * AT_ONCE // size
    for row, heads in _blocks("discover", *walk, progress):
        rows = torch.full_like(heads, row)
        cells = open_candidates(heads, rows, graph.known_queries, size)
        if (p := least[row]) is not None:
            cells &= _possible(posterior, heads, rows, p, draws, seed).cpu()
        for part in cells.nonzero().split(AT_ONCE):
            found = torch.stack([heads[part[:, 0]], torch.full_like(part[:, 0], row), part[:, 1]], 1)
            table = posterior.facts(found, draws=draws, seed=seed)
            yield table[table["probability"] >= above].drop(columns="known")


def _possible(posterior: Answers, heads: Tensor, rows: Tensor, least: float, draws: int, seed: int) -> Tensor:
    """Which cells ``(b, E)`` may have a mean probability of ``least`` over all draws, seen from the first ones."""
    total, number = torch.zeros((), device=posterior.device), len(posterior.numbers(draws, seed))
    alive = torch.ones((), dtype=torch.bool)
    for done, logits in enumerate(posterior.answer_logits(heads, rows, draws, seed), 1):
        total = total + logits.sigmoid_()
        if number - done < least * number:
            alive = total + (number - done) >= (least - 1e-5) * number
            if int(alive.sum()) * WORTH < alive.numel():
                break
    return alive


def _least(posterior: Answers, above: float, relation: str) -> float | None:
    """The least probability of a relation's fact before recalibration that is ``above`` after it; None for no bound."""
    if posterior.kg.categorical or posterior._by_evidence:
        return None
    if posterior.recalibration is None:
        return above
    low, high = -40.0, 40.0  # log-odds
    for _ in range(60):
        middle = (low + high) / 2
        p = np.array([1 / (1 + math.exp(-middle))])
        moved = posterior.recalibration({"probability": p, "relation": np.array([relation])})[0]
        low, high = (low, middle) if moved >= above else (middle, high)
    return 1 / (1 + math.exp(-low))


@torch.no_grad()
def shortlist(
    posterior: Answers, size: int, by: str, draws: int, relation: int | None, queries: int | None, seed: int,
    progress: bool = False,
) -> Tensor:  # fmt: skip
    """The facts that training lacks with the highest measure, best first, as ids of shape ``(size or fewer, 3)``."""
    graph, count = posterior.graph, posterior.graph.num_entities
    total = count * (graph.num_relations if relation is None else 1)
    queries = max(1, FACTS_AT_MOST // count) if queries is None else queries
    with seeded(seed):
        asked = torch.arange(total) if total <= queries else torch.randint(total, (queries,)).unique()
    row, head = asked // count + (relation or 0), asked % count
    most = AT_ONCE // max(count, posterior.kg.entity_size, posterior.kg.relation_size)
    best, chosen = torch.empty(0), torch.empty(0, 3, dtype=torch.long)
    walk = row.unique().tolist(), lambda p: head[row == p], len(asked), most
    for p, heads in _blocks("acquire", *walk, progress):
        mean, aleatoric = _moments(posterior, heads, p, draws, seed)
        if by != "probability":
            mean = label_entropy(mean) - (aleatoric if by == "epistemic" else 0)
        values = mean.cpu()
        values[~open_candidates(heads, torch.full_like(heads, p), graph.training_queries, count)] = -math.inf
        top, where = values.flatten().topk(min(size, values.numel()))
        facts = torch.stack([heads[where // count], torch.full_like(where, p), where % count], dim=1)
        best, kept = torch.cat([best.to(top), top]).topk(min(size, len(best) + len(top)))
        chosen = torch.cat([chosen, facts])[kept]
    return chosen[best.isfinite()]


def _moments(posterior: Answers, heads: Tensor, relation: int, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean probability and mean entropy, in nats, of all facts of a relation with these heads, ``(b, E)`` each."""
    mean = aleatoric = torch.zeros((), device=posterior.device)
    count = len(posterior.numbers(draws, seed))
    for logits in posterior.answer_logits(heads, torch.full_like(heads, relation), draws, seed):
        mean = mean + logits.sigmoid() / count
        aleatoric = aleatoric + entropy(logits) / count
    return mean, aleatoric


def unknown(triples: Tensor, graph: Graph) -> Tensor:
    """The distinct triples that training lacks, shapes ``(n, 3) -> (m, 3)``."""
    triples = triples.cpu().unique(dim=0)
    return triples[~torch.isin(graph._keys(triples), graph._keys(graph.train))]
