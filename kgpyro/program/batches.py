"""Which facts a training step sees, and the scales that make their sum an unbiased estimate of the whole.

The exact objective sums over all facts of all training queries: for each query, every entity as a candidate, labelled
1 where the triple was observed and 0 elsewhere (local closed world). A batch is a random set of queries with

* **all candidates**: every fact of those queries, or
* **Bernoulli sampling**: their observed facts, and K unobserved ones per query with replacement, each weighted by
  ``(number of unobserved candidates) / K`` (the paper's 1/b). With a fixed ``negative_weight`` it is plain negative
  sampling, a different objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import pyro
import torch
from torch import Tensor

from kgpyro.data.graph import Queries

# ids of symbols, shape (n,), or all of them
Symbols: TypeAlias = Tensor | EllipsisType
# a plate, and for each site in it: whose latents they are ("entity" or "relation"), and of which ids
Frame = tuple[Callable[[], AbstractContextManager[Any]], dict[str, tuple[str, Symbols]]]


@dataclass(frozen=True)
class Batch:
    """The facts of one step.

    Attributes:
        index: which of the ``num_queries`` training queries the batch holds, shape ``(b,)``.
        entities: ids of the entities that the batch's facts touch, shape ``(m,)``; ``...`` for all.
        entity_scale: for some entities, what each one's KL counts for, shape ``(m,)``; else None.
        anchor: the entity each query gives, as a row of ``entities``, shape ``(b,)``.
        relation: the row of each query's relation, shape ``(b,)``.
        reverse: which queries ask for heads, shape ``(b,)``, bool; None where inverse relations have their own rows.
        candidate: the fact's other end, as a row of ``entities``, shape ``(n,)``; ``...`` where every query meets every
            entity.
        query: for sampled facts, the position in the batch of each fact's query, shape ``(n,)``; else None.
        weight: for sampled facts, how many facts of its query each stands for, shape ``(n,)``; else None.
        y: labels: shape ``(n,)``, or sparse ``(b, E)`` where every query meets every entity.
        facts_per_query: number of facts a query's sampled facts stand for, shape ``(b,)``.
    """

    index: Tensor
    entities: Tensor | EllipsisType
    entity_scale: Tensor | None
    anchor: Tensor
    relation: Tensor
    reverse: Tensor | None
    candidate: Tensor | EllipsisType
    query: Tensor | None
    weight: Tensor | None
    y: Tensor
    facts_per_query: Tensor
    num_queries: int
    num_entities: int
    num_relations: int

    @contextmanager
    def entity_plate(self) -> Iterator[Symbols]:
        """The entities, for latents that exist once per entity, shape ``(m,)``: all, or those that the facts touch.

        An entity enters a batch in proportion to its facts. It pays, per occurrence, its KL over its expected number of
        occurrences: linear in the counts, hence unbiased, where one scale for all entities would not be.

        Yields the entities' ids, as the other plates yield those of their symbols; ``...`` for all.
        """
        if self.entity_scale is None:
            with pyro.plate("entity", self.num_entities):
                yield self.entities
        else:
            with pyro.plate("entity", len(self.entity_scale)), pyro.poutine.scale(scale=self.entity_scale):
                yield self.entities

    @contextmanager
    def relation_plate(self) -> Iterator[Symbols]:
        """The relations, for latents that exist once per relation, shape ``(num_relations,)``."""
        with pyro.plate("relation_row", self.num_relations):
            yield ...

    @contextmanager
    def query_plate(self) -> Iterator[tuple[Symbols, Symbols]]:
        """The queries, subsampled: for latents of the anchor and relation of a fact, shape ``(b,)``.

        The facts of a query share one draw, scaled by the number of facts it stands for: the ELBO is a sum of terms
        that depend on one fact each, so its expectation is that of a draw per fact. Yields anchors and relations.
        """
        plate = pyro.plate("query", self.num_queries, subsample_size=len(self.index), subsample=self.index)
        with plate, pyro.poutine.scale(scale=self.facts_per_query):
            yield self._entity_ids(self.anchor), self.relation

    @contextmanager
    def candidate_plate(self) -> Iterator[Symbols]:
        """The candidates of facts, for latents of the fact's other end, shape ``(n,)`` or ``(E,)``.

        Each sampled fact has a draw of its own; where every query meets every entity, a candidate's facts share one.
        """
        if self.query is None:
            with pyro.plate("candidate", self.num_entities), pyro.poutine.scale(scale=float(self.num_queries)):
                yield self._entity_ids(self.candidate)
        else:
            with pyro.plate("candidate", len(self.query)), pyro.poutine.scale(scale=self._fact_scale()):
                yield self._entity_ids(self.candidate)

    @contextmanager
    def fact_plate(self) -> Iterator[None]:
        """The facts: batch shape ``(b,)`` with an event over all candidates, or ``(n,)`` sampled facts."""
        if self.query is None:
            with pyro.plate("fact", self.num_queries, subsample_size=len(self.index), subsample=self.index):
                yield
        else:
            with pyro.plate("fact", len(self.query)), pyro.poutine.scale(scale=self._fact_scale()):
                yield

    def frames(self) -> list[Frame]:
        """Every plate a latent can live in, with the sites kgpyro knows there and the symbols they stand for."""
        return [
            (self.entity_plate, {"entities": ("entity", self.entities)}),
            (self.relation_plate, {"relations": ("relation", ...)}),
            (
                self.query_plate,
                {"head": ("entity", self._entity_ids(self.anchor)), "relation": ("relation", self.relation)},
            ),
            (self.candidate_plate, {"tail": ("entity", self._entity_ids(self.candidate))}),
        ]

    def _entity_ids(self, rows: Symbols) -> Symbols:
        return rows if isinstance(self.entities, EllipsisType) else self.entities[rows]

    def _fact_scale(self) -> Tensor:
        assert self.weight is not None
        return self.weight * (self.num_queries / len(self.index))


class Batches:
    """Makes the batch of any set of training queries.

    Args:
        queries: the training queries.
        num_entities: number of candidates.
        inverse: whether inverse relations have rows of their own.
        negatives: unobserved candidates drawn per query; None for all candidates.
        negative_weight: weight of a drawn candidate; None for the unbiased one.
        dtype: of weights and labels.
    """

    def __init__(
        self,
        queries: Queries,
        num_entities: int,
        inverse: bool,
        negatives: int | None = None,
        negative_weight: float | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.queries, self.num_entities, self.inverse = queries, num_entities, inverse
        self.negatives, self.negative_weight = negatives, negative_weight
        self.dtype = dtype or torch.get_default_dtype()
        # key of the i-th answer (from 0) of query q: q·(E+1) + (number of unobserved candidates before it)
        rank = torch.arange(len(queries.answers)) - torch.repeat_interleave(queries.indptr[:-1], queries.counts)
        owner = torch.repeat_interleave(torch.arange(len(queries)), queries.counts)
        self._gap_keys = owner * (num_entities + 1) + queries.answers - rank
        self._occurrences = None if negatives is None else self._expected_occurrences(negatives)

    def __len__(self) -> int:
        return len(self.queries)

    def to(self, device: torch.device | str) -> Batches:
        if self.queries.anchor.device != torch.device(device):
            self.queries, self._gap_keys = self.queries.to(device), self._gap_keys.to(device)
            self._occurrences = None if self._occurrences is None else self._occurrences.to(device)
        return self

    @property
    def num_relation_rows(self) -> int:
        return self.queries.num_relations * (2 if self.inverse else 1)

    @property
    def num_observed(self) -> int:
        """Observed facts over all queries: each triple counts once as a tail and once as a head query's answer."""
        return len(self.queries.answers)

    def _expected_occurrences(self, negatives: int) -> Tensor:
        """How often each entity is expected among anchors and candidates of one random query, shape ``(E,)``."""
        queries, counts = self.queries, self.queries.counts
        rate = (negatives / (self.num_entities - counts).clamp(min=1)) * (counts < self.num_entities)
        total = torch.bincount(queries.anchor, minlength=self.num_entities).double() + rate.double().sum()
        owner_rate = torch.repeat_interleave(1.0 - rate.double(), counts)  # observed, hence never drawn
        return total.index_add_(0, queries.answers, owner_rate).div_(len(queries)).to(self.dtype)

    def __call__(self, index: Tensor) -> Batch:
        """The batch of the queries ``index``, shape ``(b,)``, with fresh negatives where they are sampled."""
        row, answer = self.queries.answer_pairs(index)
        if self.negatives is None:
            return self._batch(index, ..., None, None, self._sparse_labels(len(index), row, answer))
        drawn_row, drawn = self.draw_negatives(index, self.negatives)
        return self.with_negatives(index, drawn_row, drawn)

    def draw_negatives(self, index: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """``number`` unobserved candidates per query, uniform with replacement: batch rows, entity ids.

        A query that every entity answers gives none.
        """
        unobserved = self.num_entities - self.queries.counts[index]
        row = torch.repeat_interleave(torch.arange(len(index), device=index.device), (unobserved > 0) * number)
        position = (torch.rand(len(row), device=index.device, dtype=torch.float64) * unobserved[row]).long()
        return row, self.nth_unobserved(index[row], position)

    def nth_unobserved(self, query: Tensor, position: Tensor) -> Tensor:
        """The entity at ``position`` (from 0) among those that do not answer ``query``; both of shape ``(n,)``."""
        keys = query * (self.num_entities + 1) + position
        passed = torch.searchsorted(self._gap_keys, keys, right=True) - self.queries.indptr[query]
        return position + passed

    def with_negatives(self, index: Tensor, row: Tensor, negative: Tensor) -> Batch:
        """The batch of the observed facts of ``index`` and the given unobserved ones (batch rows, entity ids)."""
        observed_row, observed = self.queries.answer_pairs(index)
        counts = self.queries.counts[index]
        if self.negative_weight is None:
            drawn = torch.bincount(row, minlength=len(index)).clamp(min=1)
            negative_weight = ((self.num_entities - counts) / drawn).to(self.dtype)[row]
        else:
            negative_weight = torch.full_like(row, self.negative_weight, dtype=self.dtype)
        ones = torch.ones_like(observed_row, dtype=self.dtype)
        return self._batch(
            index,
            torch.cat([observed, negative]),
            torch.cat([observed_row, row]),
            torch.cat([ones, negative_weight]),
            torch.cat([ones, torch.zeros_like(negative_weight)]),
        )

    def _batch(
        self, index: Tensor, candidate: Tensor | EllipsisType, query: Tensor | None, weight: Tensor | None, y: Tensor
    ) -> Batch:
        relation, anchor = self.queries.relation[index], self.queries.anchor[index]
        entities: Tensor | EllipsisType = ...
        entity_scale = None
        if self._occurrences is not None and not isinstance(candidate, EllipsisType):
            both = torch.cat([anchor, candidate])
            entities, row, count = torch.unique(both, return_inverse=True, return_counts=True)
            anchor, candidate = row.split([len(anchor), len(candidate)])
            entity_scale = count / (self._occurrences[entities] * len(index))
        facts = torch.full((len(index),), float(self.num_entities), dtype=self.dtype, device=index.device)
        if query is not None and weight is not None:
            facts = torch.zeros_like(facts).index_add(0, query, weight)
        return Batch(
            index=index,
            entities=entities,
            entity_scale=entity_scale,
            anchor=anchor,
            relation=relation if self.inverse else relation % self.queries.num_relations,
            reverse=None if self.inverse else relation >= self.queries.num_relations,
            candidate=candidate,
            query=query,
            weight=weight,
            y=y,
            facts_per_query=facts,
            num_queries=len(self.queries),
            num_entities=self.num_entities,
            num_relations=self.num_relation_rows,
        )

    def _sparse_labels(self, rows: int, row: Tensor, answer: Tensor) -> Tensor:
        ones = torch.ones(len(row), dtype=self.dtype, device=row.device)
        shape = (rows, self.num_entities)
        return torch.sparse_coo_tensor(
            torch.stack([row, answer]), ones, shape, is_coalesced=True, check_invariants=False
        )
