"""A batch of facts as a model sees it: the plates over its entities, relations and facts, and what each counts for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TypeAlias

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor

from kgpyro.program.lazy import Labels, observed_of
from kgpyro.program.owners import Share

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
class Held:
    """The facts of a batch that the graph holds, each as its query reads it; those that ask for tails are first.

    Attributes:
        anchor, candidate: their ends, as rows of the batch's ``entities``, shape ``(n,)``.
        ahead: how many ask for tails. The others are read backwards: the anchor is the fact's tail.
        relation: of the facts, shape ``(n,)``.
        weight: what each counts for, shape ``(n,)``.
    """

    anchor: Tensor
    candidate: Tensor
    ahead: int
    relation: Tensor
    weight: Tensor


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
        relation_weight: what the question for the relation of a held fact counts for.
        share: where processes share the entities and the batch is of all of this one's: which these are; then
            ``num_entities`` and ``y`` are of these, ``anchor`` is of all.
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
    relation_weight: float = 0.0
    share: Share | None = None

    def unlabelled(self) -> Batch:
        """The same facts without labels: a model run on them draws these."""
        return replace(self, y=None)

    def of_own(self, share: Share, y: Tensor) -> Batch:
        """The part of a batch of all candidates, with labels ``(b, E)``, whose candidates this process owns."""
        row, column, labels = observed_of(y)
        own = share.own(column)
        labels = None if labels is None else labels[own]
        shape = len(self.anchor), len(share)
        mine = Labels.at(row[own], column[own] - share.first, shape, y.dtype, labels)
        return replace(self, y=mine, num_entities=len(share), share=share)

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

    @property
    def asks_relations(self) -> bool:
        """Whether the relations of held facts are asked for: with a weight for that, where there are such facts."""
        if self.relation_weight == 0 or self.y is None:
            return False
        return len(observed_of(self.y)[0]) > 0 if self.query is None else bool((self.y > 0).any())

    @contextmanager
    def held_plate(self) -> Iterator[Held]:
        """The facts that the graph holds, each once as its query reads it, shape ``(n,)``."""
        held = self._held()
        with (
            _Mark("weighted", True),
            _Mark("held", True),
            _plate("held", len(held.weight)),
            pyro.poutine.scale(scale=held.weight),
        ):
            yield held

    def _held(self) -> Held:
        assert self.y is not None
        if self.query is None:
            query, candidate, sure = observed_of(self.y)
        else:
            (place,) = self.y.nonzero().unbind(1)
            assert isinstance(self.candidate, Tensor)
            query, candidate, sure = self.query[place], self.candidate[place], self.y[place]
        weight = self.relation_weight * self.query_weight[query] * (1 if sure is None else sure)
        row, R = self.relation[query], self.num_relations if self.reverse is not None else self.num_relations // 2
        backward = row >= R if self.reverse is None else self.reverse[query]
        order = backward.byte().argsort(stable=True)
        ahead = len(order) - int(backward.sum())
        return Held(self.anchor[query][order], candidate[order], ahead, row[order] % R, weight[order])

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
