"""Where to look next: the unknown facts whose labels would say most about the latents.

The mutual information of a fact's label and the latents, ``H[E p] - E H[p]`` over the posterior, is what a label is
expected to take off the entropy of the latents (BALD; Houlsby et al. 2011). Facts are too many to keep draws of each:
two running sums per fact of a block of queries are enough, and of each block only its best facts are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.evaluation.conformal import open_candidates
from kgpyro.posterior.scores import PosteriorScores
from kgpyro.posterior.uncertainty import entropy, label_entropy
from kgpyro.randomness import seeded

MEASURES = ("epistemic", "entropy", "probability")
NUMBERS_AT_ONCE = 1 << 22
FACTS_AT_MOST = 10_000_000


@torch.no_grad()
def shortlist(
    posterior: PosteriorScores,
    size: int,
    by: str,
    draws: int,
    relation: int | None,
    queries: int | None,
    seed: int,
    progress: bool = False,
) -> Tensor:
    """The facts that training lacks with the highest measure, best first, as ids of shape ``(size or fewer, 3)``.

    Args:
        by: one of ``MEASURES``, estimated over ``draws`` posterior draws.
        relation: only facts of this relation.
        queries: largest number of queries ``(head, relation, ?)`` to look at, at random. Default: as many as have
            ``FACTS_AT_MOST`` facts.
    """
    graph, count = posterior.graph, posterior.graph.num_entities
    total = count * (graph.num_relations if relation is None else 1)
    queries = max(1, FACTS_AT_MOST // count) if queries is None else queries
    longest = max(count, posterior.kg.entity_size, posterior.kg.relation_size)
    best, chosen = torch.empty(0), torch.empty(0, 3, dtype=torch.long)
    with seeded(seed):
        asked = torch.arange(total) if total <= queries else torch.randint(total, (queries,)).unique()
        row, head = asked // count + (relation or 0), asked % count
        blocks = [
            (int(p), part) for p in row.unique() for part in head[row == p].split(max(1, NUMBERS_AT_ONCE // longest))
        ]
        for p, heads in tqdm(blocks, desc="acquire", unit="block", disable=not progress, leave=False):
            values = _measure(by, *_moments(posterior, heads, p, draws, seed)).cpu()
            values[~open_candidates(heads, torch.full_like(heads, p), graph.training_queries, count)] = -math.inf
            top, where = values.flatten().topk(min(size, values.numel()))
            facts = torch.stack([heads[where // count], torch.full_like(where, p), where % count], dim=1)
            best, kept = torch.cat([best.to(top), top]).topk(min(size, len(best) + len(top)))
            chosen = torch.cat([chosen, facts])[kept]
    return chosen[best.isfinite()]


def unknown(triples: Tensor, graph: Graph) -> Tensor:
    """The distinct triples that training lacks, shapes ``(n, 3) -> (m, 3)``."""
    triples = triples.cpu().unique(dim=0)
    return triples[~torch.isin(graph._keys(triples), graph._keys(graph.train))]


def _measure(by: str, mean: Tensor, aleatoric: Tensor) -> Tensor:
    if by == "probability":
        return mean
    return label_entropy(mean) - (aleatoric if by == "epistemic" else 0)


def _moments(posterior: PosteriorScores, heads: Tensor, relation: int, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean probability and mean entropy, in nats, of all facts of a relation with these heads, ``(b, E)`` each."""
    heads = heads.to(posterior.device)
    mean = aleatoric = torch.zeros((), device=posterior.device)
    for logits in posterior.answer_logits(heads, torch.full_like(heads, relation), draws, seed):
        mean = mean + logits.sigmoid() / draws
        aleatoric = aleatoric + entropy(logits) / draws
    return mean, aleatoric
