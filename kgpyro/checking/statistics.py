"""Statistics of a graph's cells ``(h, r, t)``, each with a label, and the choice of the cells that are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import torch
from scipy.sparse import csr_array, triu
from torch import Tensor

from kgpyro.data.graph import Graph

CELLS = 2_000_000  # of a graph up to which all are looked at; of more a sample is
PAIRS = 10  # pairs of relations that are checked for being inverses
FEW = 10.0  # facts added to a pair's before it is chosen by its share: a few are no evidence
BOUNDS = torch.tensor([0, 1, 2, 5, 10])
ANSWERS = ("no answer", "1 answer", "2 answers", "3-5 answers", "6-10 answers", "over 10 answers")
QUANTILES = torch.tensor([0.25, 0.5, 0.75, 0.9, 0.99, 1.0], dtype=torch.double)
FACTS, SHARES, SPREAD, DEGREES = "facts per relation", "answers per query", "spread of answers", "degrees"
SYMMETRY, INVERSE, TRIANGLES = "symmetry", "inverse pairs", "triangles"


@dataclass(frozen=True)
class Cells:
    """The cells that a graph and its replicates are compared over, and statistics of their labels.

    There are two groups of cells: those of queries ``(h, r, ?)`` with all tails, and those of a corner of the graph,
    some relations among some entities. Where the graph is small both are the whole graph.
    """

    graph: Graph
    head: Tensor  # of each query, (n,)
    relation: Tensor  # of each query, (n,), ascending
    entities: Tensor  # of the corner, ascending, (m,)
    relations: Tensor  # of the corner, ascending, (k,)

    @classmethod
    def of(cls, graph: Graph, queries: int, entities: int, seed: int) -> Cells:
        """All cells where there are at most ``CELLS``; else of uniformly random queries and entities, so many at most.

        The corner has the relations with the most training facts, as many as keep it at ``CELLS``.
        """
        size, relations, chosen = graph.num_entities, graph.num_relations, Random(seed)
        total, corner = size * relations, size
        asked: Sequence[int] = range(total)
        if size * total > CELLS:
            asked = sorted(chosen.sample(asked, min(queries, total)))
            corner = min(size, entities, math.isqrt(CELLS))
        query = torch.tensor(asked)
        among = torch.tensor(sorted(chosen.sample(range(size), corner)))
        frequency = torch.bincount(graph.train[:, 1], minlength=relations)
        common = frequency.argsort(descending=True, stable=True)[: CELLS // corner**2].sort().values
        return cls(graph, query % size, query // size, among, common)

    @property
    def all_queries(self) -> bool:
        return len(self.head) == self.graph.num_entities * self.graph.num_relations

    @property
    def complete(self) -> bool:
        """Whether the corner is the whole graph, and so all queries are there too."""
        return len(self.entities) == self.graph.num_entities and len(self.relations) == self.graph.num_relations

    @property
    def description(self) -> str:
        """What the cells are, in words."""
        size, relations = self.graph.num_entities, self.graph.num_relations
        if self.complete:
            return f"all {size * size * relations:,} cells"
        queries = f"{len(self.head):,} of {size * relations:,} queries (h, r, ?)"
        kinds = f"the {len(self.relations):,} most frequent of {relations:,} relations"
        return f"a sample: {queries}; {kinds} among {len(self.entities):,} of {size:,} entities"

    @cached_property
    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Training facts: of each query, ``(n,)``, and to each tail, ``(E,)``; labels in the corner, ``(k, m, m)``."""
        graph, size = self.graph, self.graph.num_entities
        head, relation, tail = graph.train.unbind(1)
        query, asked = self.relation * size + self.head, relation * size + head
        place = torch.searchsorted(query, asked).clamp(max=len(query) - 1)
        found = query[place] == asked
        counts = torch.bincount(place[found], minlength=len(query))
        received = torch.bincount(tail[found], minlength=size)
        k, m = len(self.relations), len(self.entities)
        kind = torch.full((graph.num_relations,), -1).index_put((self.relations,), torch.arange(k))
        entity = torch.full((size,), -1).index_put((self.entities,), torch.arange(m))
        where = torch.stack([kind[relation], entity[head], entity[tail]])
        labels = torch.zeros(k, m, m, dtype=torch.bool)
        labels[tuple(where[:, (where >= 0).all(0)])] = True
        return counts, received, labels

    @cached_property
    def inverse_pairs(self) -> tuple[Tensor, Tensor]:
        """Pairs of relations, by their places in the corner, with the largest shares of mirrored training facts."""
        labels = self.observed[2]
        k, m, _ = labels.shape
        labels = labels & ~torch.eye(m, dtype=torch.bool)
        kind, h, t = labels.nonzero().numpy().T
        ones = np.ones(len(kind))
        facts, mirrors = (csr_array((ones, (kind, cell)), shape=(k, m * m)) for cell in (h * m + t, t * m + h))
        both = triu(facts @ mirrors.T, 1).tocoo()
        p, q = (torch.as_tensor(x, dtype=torch.long) for x in (both.row, both.col))
        number = labels.sum((1, 2))
        share = torch.as_tensor(both.data) / (number[p] + number[q] + FEW)
        top = share.argsort(descending=True, stable=True)[:PAIRS]
        return p[top], q[top]

    @cached_property
    def names(self) -> list[tuple[str, str, str]]:
        """Of the statistics, those of queries and then those of the corner: family, statistic and relation."""
        relations = [self.graph.relations[i] for i in self.relations.tolist()]
        asked = [self.graph.relations[i] for i in self.relation.unique().tolist()]
        found = [(FACTS, "facts", name) for name in ("all", *asked)]
        found += [(SHARES, f"queries with {number}", "all") for number in ANSWERS]
        found += [(SPREAD, f"answers per query, {what}", "all") for what in ("standard deviation", "largest")]
        found += [(DEGREES, f"{way}-degree, quantile {x:.0%}", "all") for way in ("out", "in") for x in QUANTILES]
        places = zip(*(x.tolist() for x in self.inverse_pairs), strict=True)
        pairs = [f"{relations[p]} / {relations[q]}" for p, q in places]
        corner = [(SYMMETRY, "symmetry", name) for name in ("all", *relations)]
        corner += [(INVERSE, "inverse pair", name) for name in ("all", *pairs)]
        corner += [(TRIANGLES, "triangles", "all"), (TRIANGLES, "closed two-step paths", "all")]
        groups = ((found, self.all_queries), (corner, self.complete))
        return [(a, b if whole else f"{b} (sample)", c) for names, whole in groups for a, b, c in names]

    def of_queries(self, counts: Tensor, degrees: Tensor) -> Tensor:
        """Statistics of queries, from the answers of each, ``(n,)``, and the numbers of tails with 0, 1, … facts."""
        facts = torch.bincount(self.relation, counts.double(), minlength=self.graph.num_relations)
        out = torch.bincount(self.head, counts.double(), minlength=self.graph.num_entities)
        bins = torch.bincount(torch.bucketize(counts, BOUNDS), minlength=len(ANSWERS))
        answers = counts.double()
        found = [answers.sum()[None], facts[self.relation.unique()], bins / len(counts)]
        found += [answers.std(correction=0)[None], answers.max()[None]]
        found.append(torch.quantile(out[self.head.unique()], QUANTILES, interpolation="nearest"))
        place = (QUANTILES * (degrees.sum() - 1)).round().long()
        found.append(torch.searchsorted(degrees.cumsum(0), place, right=True).double())
        return torch.cat(found)

    def of_corner(self, labels: Tensor) -> Tensor:
        """Statistics of the corner's labels, shape ``(k, m, m)``, bool; facts of an entity with itself do not count."""
        labels = labels & ~torch.eye(len(self.entities), dtype=torch.bool)
        number, mirrored = (x.sum((1, 2)).double() for x in (labels, labels & labels.mT))
        multiplicity = labels.sum(0).double()
        p, q = self.inverse_pairs
        both = (labels[p] & labels[q].mT).sum((1, 2)).double()
        in_others = (multiplicity * multiplicity.mT).sum() - mirrored.sum()
        edges = (multiplicity > 0).float()
        paths = (edges @ edges).fill_diagonal_(0).double()
        closed = (paths * edges).sum()
        found = [_share(mirrored.sum(), number.sum())[None], _share(mirrored, number)]
        found += [_share(in_others, (len(number) - 1) * number.sum())[None], _share(2 * both, number[p] + number[q])]
        return torch.cat([*found, torch.stack([closed, _share(closed, paths.sum())])])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 of nothing."""
    return torch.where(whole > 0, part / whole.where(whole > 0, 1), 0)
