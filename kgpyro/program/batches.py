"""Which facts a training step sees, and what each counts for, so that their sum is an unbiased estimate of the whole.

The data are all cells (head, relation, tail), labelled 1 (or with its confidence) where the training graph holds the
triple and 0 elsewhere.
Each cell is asked twice, as an answer of its tail query and of its head query, and counts for one half in each. A batch
holds

* **all candidates** of random queries: those that training answers, and, in the full closed world, others that it does
  not: all of them in turn, or a random few per step, each weighted by the inverse of its chance; or
* **Bernoulli sampling**: the observed facts of random queries, and K unobserved ones per query with replacement, each
  weighted by ``(number of unobserved candidates) / K`` (the paper's 1/b). With a fixed ``negative_weight`` it is plain
  negative sampling, a different objective; or
* **listed facts**, each once, with weight 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TypeAlias

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from kgpyro.data.queries import Queries
from kgpyro.program.lazy import Labels

# ids of symbols, shape (n,), or all of them
Symbols: TypeAlias = Tensor | EllipsisType


class _Mark(Messenger):
    """Notes at every site inside what its rows are, for guides and estimators."""

    def __init__(self, key: str, value: object):
        super().__init__()
        self.key, self.value = key, value

    def _pyro_sample(self, msg: dict) -> None:
        msg["infer"] = {**(msg["infer"] or {}), self.key: self.value}


def _plate(name: str, size: int) -> pyro.plate:
    """A plate that can be opened again in the same run, for no handler sees the site of its subsample."""
    with pyro.poutine.block():
        return pyro.plate(name, size)


@dataclass(frozen=True)
class Batch:
    """The facts of one step.

    Attributes:
        entities: ids of the entities that the batch's facts touch, shape ``(m,)``; ``...`` for all.
        entity_scale: for some entities, what each one's KL counts for, shape ``(m,)``; else None.
        anchor: the entity each query gives, as a row of ``entities``, shape ``(b,)``.
        relation: the row of each query's relation, shape ``(b,)``: that of its inverse where it asks for heads.
        reverse: which queries ask for heads, shape ``(b,)``, bool; None where inverse relations have their own rows.
        query_weight: what each query's facts count for, shape ``(b,)``: ½ over its chance to be in the batch.
        candidate: the fact's other end, as a row of ``entities``, shape ``(n,)``; ``...`` where every query meets every
            entity.
        query: for single facts, the position in the batch of each fact's query, shape ``(n,)``; else None.
        weight: for single facts, how many facts of its query each stands for, shape ``(n,)``; else None.
        y: labels: shape ``(n,)``, or ``(b, E)`` where every query meets every entity; None where they are not known.
        terms_per_query: the number of terms of the log-likelihood that a query's facts stand for, shape ``(b,)``.
        total: sum of the weights of all queries there are.
    """

    entities: Tensor | EllipsisType
    entity_scale: Tensor | None
    anchor: Tensor
    relation: Tensor
    reverse: Tensor | None
    query_weight: Tensor
    candidate: Tensor | EllipsisType
    query: Tensor | None
    weight: Tensor | None
    y: Tensor | None
    terms_per_query: Tensor
    total: float
    num_entities: int
    num_relations: int

    def unlabelled(self) -> Batch:
        """The same facts without labels: a model run on them draws these."""
        return replace(self, y=None)

    @contextmanager
    def entity_plate(self) -> Iterator[Symbols]:
        """The entities, for latents that exist once per entity, shape ``(m,)``: all, or those that the facts touch.

        An entity enters a batch in proportion to its facts. It pays, per occurrence, its KL over its expected number of
        occurrences: linear in the counts, hence unbiased, where one scale for all entities would not be.

        Yields the entities' ids, as the other plates yield those of their symbols; ``...`` for all.
        """
        with _Mark("symbols", ("entity_plate", "entity")):
            if isinstance(self.entities, EllipsisType):
                with _plate("entity", self.num_entities):
                    yield ...
            else:
                scale = 1.0 if self.entity_scale is None else self.entity_scale
                with _plate("entity", len(self.entities)), pyro.poutine.scale(scale=scale):
                    yield self.entities

    @contextmanager
    def relation_plate(self) -> Iterator[Symbols]:
        """The relations and their inverses, for latents that exist once per relation, shape ``(num_relations,)``."""
        with _Mark("symbols", ("relation_plate", "relation")), _plate("relation_row", self.num_relations):
            yield ...

    @contextmanager
    def fact_heads(self) -> Iterator[Symbols]:
        """The given ends of facts, for latents that exist once per fact, shape ``(b,)``.

        The facts of a query share one draw, scaled by the number of terms it stands for: the ELBO is a sum of terms
        that depend on one fact each, so its expectation is that of a draw per fact. Yields the entities' ids.
        """
        with _Mark("symbols", ("fact_heads", "entity")), self._queries("fact_head"):
            yield self._entity_ids(self.anchor)

    @contextmanager
    def fact_relations(self) -> Iterator[Symbols]:
        """The relations of facts, likewise. Yields the relations' rows."""
        with _Mark("symbols", ("fact_relations", "relation")), self._queries("fact_relation"):
            yield self.relation

    @contextmanager
    def fact_tails(self) -> Iterator[Symbols]:
        """The other ends of facts, shape ``(n,)`` or ``(E,)``.

        Each single fact has a draw of its own; where every query meets every entity, a candidate's facts share one.
        """
        with _Mark("symbols", ("fact_tails", "entity")):
            if self.query is None:
                with _plate("fact_tail", self.num_entities), pyro.poutine.scale(scale=self.total):
                    yield self._entity_ids(self.candidate)
            else:
                with _plate("fact_tail", len(self.query)), pyro.poutine.scale(scale=self.fact_weight):
                    yield self._entity_ids(self.candidate)

    @contextmanager
    def fact_plate(self) -> Iterator[None]:
        """The facts: batch shape ``(b,)`` with an event over all candidates, or ``(n,)`` single facts."""
        weight = self.fact_weight
        with _Mark("weighted", True), _plate("fact", len(weight)), pyro.poutine.scale(scale=weight):
            yield

    def symbols(self, frame: str) -> Symbols:
        """The ids of the symbols that a plate of this batch yields, by the plate's name."""
        if frame == "entity_plate":
            return self.entities
        if frame == "relation_plate":
            return ...
        if frame == "fact_relations":
            return self.relation
        return self._entity_ids(self.anchor if frame == "fact_heads" else self.candidate)

    @property
    def fact_weight(self) -> Tensor:
        """What the log-likelihood counts for, of each query ``(b,)`` or of each single fact ``(n,)``."""
        if self.query is None or self.weight is None:
            return self.query_weight
        return self.weight * self.query_weight[self.query]

    @contextmanager
    def _queries(self, name: str) -> Iterator[None]:
        with _plate(name, len(self.anchor)), pyro.poutine.scale(scale=self.terms_per_query * self.query_weight):
            yield

    def _entity_ids(self, rows: Symbols) -> Symbols:
        return rows if isinstance(self.entities, EllipsisType) else self.entities[rows]


class Batches:
    """Makes the batch of any set of training queries.

    Args:
        queries: the training queries.
        num_entities: number of candidates.
        inverse: whether inverse relations have rows of their own.
        negatives: unobserved candidates drawn per query; None for all candidates.
        negative_weight: weight of a drawn candidate; None for the unbiased one.
        dtype: of weights and labels.
        unanswered: how many of the queries that are not among ``queries`` join each batch, at random (0: none).
        categorical: whether a query's answers are one draw each, so that the query is one term.
    """

    def __init__(
        self,
        queries: Queries,
        num_entities: int,
        inverse: bool,
        negatives: int | None = None,
        negative_weight: float | None = None,
        dtype: torch.dtype | None = None,
        unanswered: int = 0,
        categorical: bool = False,
    ):
        self.queries, self.num_entities, self.inverse = queries, num_entities, inverse
        self.negatives, self.negative_weight, self.categorical = negatives, negative_weight, categorical
        self.dtype = dtype or torch.get_default_dtype()
        # key of the i-th answer (from 0) of query q: q·(E+1) + (number of unobserved candidates before it)
        rank = torch.arange(len(queries.answers)) - torch.repeat_interleave(queries.indptr[:-1], queries.counts)
        owner = torch.repeat_interleave(torch.arange(len(queries)), queries.counts)
        self._gap_keys = owner * (num_entities + 1) + queries.answers - rank
        self.num_unanswered = 2 * queries.num_relations * num_entities - len(queries)
        self.unanswered = min(unanswered, self.num_unanswered)
        keys = queries.relation * num_entities + queries.anchor
        self._query_gaps = keys - torch.arange(len(queries)) if self.unanswered else keys[:0]
        self._occurrences = None if negatives is None else self._expected_occurrences(negatives)

    def __len__(self) -> int:
        return len(self.queries)

    def to(self, device: torch.device | str) -> Batches:
        if self.queries.anchor.device != torch.device(device):
            self.queries, self._gap_keys = self.queries.to(device), self._gap_keys.to(device)
            self._query_gaps = self._query_gaps.to(device)
            self._occurrences = None if self._occurrences is None else self._occurrences.to(device)
        return self

    @property
    def num_relation_rows(self) -> int:
        return self.queries.num_relations * (2 if self.inverse else 1)

    @property
    def num_observed(self) -> float:
        """Observed facts, each counted once: half of the answers of tail and head queries."""
        return len(self.queries.answers) / 2

    @property
    def total(self) -> float:
        """What all queries together count for: ½ each."""
        return (len(self) + (self.num_unanswered if self.unanswered else 0)) / 2

    def _expected_occurrences(self, negatives: int) -> Tensor:
        """How often each entity is expected among anchors and candidates of one random query, shape ``(E,)``."""
        queries, counts = self.queries, self.queries.counts
        rate = (negatives / (self.num_entities - counts).clamp(min=1)) * (counts < self.num_entities)
        total = torch.bincount(queries.anchor, minlength=self.num_entities).double() + rate.double().sum()
        owner_rate = torch.repeat_interleave(1.0 - rate.double(), counts)  # observed, hence never drawn
        return total.index_add_(0, queries.answers, owner_rate).div_(len(queries)).to(self.dtype)

    def occurrences(self) -> dict[str, Tensor]:
        """How many training facts each entity and each relation's row is in, by kind."""
        queries = self.queries
        rows = queries.relation if self.inverse else queries.relation % queries.num_relations
        return {
            "entity": torch.bincount(queries.answers, minlength=self.num_entities),
            "relation": torch.bincount(rows, queries.counts, minlength=self.num_relation_rows),
        }

    def __call__(self, index: Tensor) -> Batch:
        """The batch of the queries ``index``, shape ``(b,)``, with fresh draws of whatever is sampled."""
        if self.negatives is not None:
            return self.with_negatives(index, *self.draw_negatives(index, self.negatives))
        others = torch.randint(max(1, self.num_unanswered), (self.unanswered,), device=index.device)
        return self.with_unanswered(index, others)

    def with_unanswered(self, index: Tensor, others: Tensor) -> Batch:
        """The batch of the queries ``index``, and of those of the given places among the unanswered, ``(u,)``."""
        key = others + torch.searchsorted(self._query_gaps, others, right=True)
        row, places = self.queries.answer_places(index)
        weight = torch.full((len(index),), len(self) / len(index) / 2, dtype=self.dtype, device=index.device)
        if len(others):
            weight = torch.cat([weight, weight.new_full((len(others),), self.num_unanswered / len(others) / 2)])
        anchor = torch.cat([self.queries.anchor[index], key % self.num_entities])
        relation = torch.cat([self.queries.relation[index], key // self.num_entities])
        answer, shape = self.queries.answers[places], (len(anchor), self.num_entities)
        y = Labels.at(row, answer, shape, self.dtype, self._confidence(places))
        return self._batch(anchor, relation, weight, ..., None, None, y)

    def _confidence(self, places: Tensor) -> Tensor | None:
        """Of the answers at these places, ``(p,)``; None where all are sure."""
        return None if self.queries.confidences is None else self.queries.confidences[places].to(self.dtype)

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
        observed_row, places = self.queries.answer_places(index)
        observed, sure = self.queries.answers[places], self._confidence(places)
        counts = self.queries.counts[index]
        if self.negative_weight is None:
            drawn = torch.bincount(row, minlength=len(index)).clamp(min=1)
            negative_weight = ((self.num_entities - counts) / drawn).to(self.dtype)[row]
        else:
            negative_weight = torch.full_like(row, self.negative_weight, dtype=self.dtype)
        ones = torch.ones_like(observed_row, dtype=self.dtype)
        return self._batch(
            self.queries.anchor[index],
            self.queries.relation[index],
            torch.full((len(index),), len(self) / len(index) / 2, dtype=self.dtype, device=index.device),
            torch.cat([observed, negative]),
            torch.cat([observed_row, row]),
            torch.cat([ones, negative_weight]),
            torch.cat([ones if sure is None else sure, torch.zeros_like(negative_weight)]),
        )

    def listed(self, facts: Tensor, y: Tensor | None = None) -> Batch:
        """The batch of single facts ``(anchor, relation row, candidate)``, shape ``(n, 3)``, each once."""
        anchor, relation, candidate = facts.unbind(1)
        ones, query = torch.ones(len(facts), dtype=self.dtype, device=facts.device), torch.arange(len(facts))
        batch = self._batch(anchor, relation, ones, candidate, query.to(facts.device), ones, y, touched=True)
        return replace(batch, entity_scale=None, terms_per_query=ones)

    def asked(self, anchor: Tensor, relation: Tensor) -> Batch:
        """The batch of all candidates of the given queries, shapes ``(b,)``, each once and without labels."""
        ones = torch.ones(len(anchor), dtype=self.dtype, device=anchor.device)
        return self._batch(anchor, relation, ones, ..., None, None, None)

    def _batch(
        self,
        anchor: Tensor,
        relation: Tensor,
        query_weight: Tensor,
        candidate: Tensor | EllipsisType,
        query: Tensor | None,
        weight: Tensor | None,
        y: Tensor | None,
        touched: bool = False,
    ) -> Batch:
        entities: Tensor | EllipsisType = ...
        entity_scale = None
        if not isinstance(candidate, EllipsisType) and (touched or self._occurrences is not None):
            both = torch.cat([anchor, candidate])
            entities, row, count = torch.unique(both, return_inverse=True, return_counts=True)
            anchor, candidate = row.split([len(anchor), len(candidate)])
            if self._occurrences is not None:
                entity_scale = count / (self._occurrences[entities] * len(anchor))
        terms = torch.full((len(anchor),), float(self.num_entities), dtype=self.dtype, device=anchor.device)
        if self.categorical:
            terms = torch.ones_like(terms)
        elif query is not None and weight is not None:
            terms = torch.zeros_like(terms).index_add(0, query, weight)
        return Batch(
            entities=entities,
            entity_scale=entity_scale,
            anchor=anchor,
            relation=relation if self.inverse else relation % self.queries.num_relations,
            reverse=None if self.inverse else relation >= self.queries.num_relations,
            query_weight=query_weight,
            candidate=candidate,
            query=query,
            weight=weight,
            y=y,
            terms_per_query=terms,
            total=self.total,
            num_entities=self.num_entities,
            num_relations=self.num_relation_rows,
        )
