"""A batch of facts as a model sees it: the plates over its entities, relations and facts, and what each counts for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, TypeAlias

import pyro
import torch
from torch import Tensor

from kgpyro.program.lazy import Labels, observed_of
from kgpyro.program.owners import Share

# ids of symbols, shape (n,), or all of them
Symbols: TypeAlias = Tensor | EllipsisType


@contextmanager
def _plate(name: str, size: int, scale: Tensor | float, yields: Any, **noted: Any) -> Iterator[Any]:
    """A plate whose sites count ``scale`` times, with notes on them for guides and estimators.

    It can be opened again in the same run, for no handler sees the site of its subsample.
    """
    with pyro.poutine.block():
        plate = pyro.plate(name, size)
    with pyro.poutine.infer_config(config_fn=lambda _: noted), plate, pyro.poutine.scale(scale=scale):
        yield yields


@dataclass(frozen=True)
class Held:
    """The facts of a batch that the graph holds, each as its query reads it; those that ask for tails are first.

    Attributes:
        anchor, candidate: their ends, as rows of the batch's ``entities``, shape ``(n,)``.
        ahead: how many ask for tails. The others are read backwards: the anchor is the fact's tail.
        relation: of the facts, shape ``(n,)``.
    """

    anchor: Tensor
    candidate: Tensor
    ahead: int
    relation: Tensor


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
        total: sum of the weights of all queries there are.
        categorical: whether a query's answers are one draw each, so that the query is one term.
        relation_weight: what the question for the relation of a held fact counts for.
        share: where processes share the entities and the batch is of all of this one's: which these are; then
            ``num_entities`` and ``y`` are of these, ``anchor`` is of all.
    """

    entities: Symbols
    entity_scale: Tensor | None
    anchor: Tensor
    relation: Tensor
    reverse: Tensor | None
    query_weight: Tensor
    candidate: Symbols
    query: Tensor | None
    weight: Tensor | None
    y: Tensor | None
    total: float
    num_entities: int
    num_relations: int
    categorical: bool = False
    relation_weight: float = 0.0
    share: Share | None = None

    def unlabelled(self) -> Batch:
        """The same facts without labels: a model run on them draws these."""
        return replace(self, y=None)

    def of_own(self, share: Share) -> Batch:
        """The part of a batch of all candidates whose candidates this process owns."""
        y = self.y
        if y is not None:
            row, column, labels = observed_of(y)
            own, shape = share.own(column), (len(self.anchor), len(share))
            labels = None if labels is None else labels[own]
            y = Labels.at(row[own], column[own] - share.first, shape, y.dtype, labels)
        return replace(self, y=y, num_entities=len(share), share=share)

    def entity_plate(self) -> AbstractContextManager[Symbols]:
        """The entities, for latents that exist once per entity, shape ``(m,)``: all, or those that the facts touch.

        An entity enters a batch in proportion to its facts. It pays, per occurrence, its KL over its expected number of
        occurrences: linear in the counts, hence unbiased, where one scale for all entities would not be.

        Yields the entities' ids, as the other plates yield those of their symbols; ``...`` for all.
        """
        size = self.num_entities if isinstance(self.entities, EllipsisType) else len(self.entities)
        scale = 1.0 if self.entity_scale is None else self.entity_scale
        return self._plate_of("entity_plate", "entity", "entity", size, scale)

    def relation_plate(self) -> AbstractContextManager[Symbols]:
        """The relations and their inverses, for latents that exist once per relation, shape ``(num_relations,)``."""
        return self._plate_of("relation_plate", "relation", "relation_row", self.num_relations, 1.0)

    def fact_heads(self) -> AbstractContextManager[Symbols]:
        """The given ends of facts, for latents that exist once per fact, shape ``(b,)``.

        The facts of a query share one draw, scaled by the number of terms it stands for: the ELBO is a sum of terms
        that depend on one fact each, so its expectation is that of a draw per fact. Yields the entities' ids.
        """
        scale = self.terms_per_query * self.query_weight
        return self._plate_of("fact_heads", "entity", "fact_head", len(self.anchor), scale)

    def fact_relations(self) -> AbstractContextManager[Symbols]:
        """The relations of facts, likewise. Yields the relations' rows."""
        scale = self.terms_per_query * self.query_weight
        return self._plate_of("fact_relations", "relation", "fact_relation", len(self.anchor), scale)

    def fact_tails(self) -> AbstractContextManager[Symbols]:
        """The other ends of facts, shape ``(n,)`` or ``(E,)``.

        Each single fact has a draw of its own; where every query meets every entity, a candidate's facts share one.
        """
        if self.query is None:
            return self._plate_of("fact_tails", "entity", "fact_tail", self.num_entities, self.total)
        return self._plate_of("fact_tails", "entity", "fact_tail", len(self.query), self.fact_weight)

    def _plate_of(self, frame: str, kind: str, name: str, size: int, scale: Any) -> AbstractContextManager[Symbols]:
        return _plate(name, size, scale, self.symbols(frame), symbols=(frame, kind))

    def symbols(self, frame: str) -> Symbols:
        """The ids of the symbols that a plate of this batch yields, by the plate's name."""
        if frame == "entity_plate":
            return self.entities
        if frame == "relation_plate":
            return ...
        if frame == "fact_relations":
            return self.relation
        rows = self.anchor if frame == "fact_heads" else self.candidate
        return rows if isinstance(self.entities, EllipsisType) else self.entities[rows]

    def fact_plate(self) -> AbstractContextManager[None]:
        """The facts: batch shape ``(b,)`` with an event over all candidates, or ``(n,)`` single facts."""
        weight = self.fact_weight
        return _plate("fact", len(weight), weight, None, weighted=True)

    @property
    def fact_weight(self) -> Tensor:
        """What the log-likelihood counts for, of each query ``(b,)`` or of each single fact ``(n,)``."""
        if self.query is None or self.weight is None:
            return self.query_weight
        return self.weight * self.query_weight[self.query]

    @property
    def terms_per_query(self) -> Tensor:
        """The number of terms of the log-likelihood that a query's facts stand for, shape ``(b,)``."""
        if self.categorical or self.query is None or self.weight is None:
            every = self.num_entities if self.share is None else self.share.total
            return torch.full_like(self.query_weight, 1 if self.categorical else every)
        return torch.zeros_like(self.query_weight).index_add(0, self.query, self.weight)

    @property
    def asks_relations(self) -> bool:
        """Whether the relations of held facts are asked for: with a weight for that, where there are such facts."""
        return self.relation_weight != 0 and self.y is not None and len(self._observed(self.y)[0]) > 0

    def _observed(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Query, candidate and label of every fact that the graph holds; None for labels of 1."""
        if self.query is None or isinstance(self.candidate, EllipsisType):
            return observed_of(y)
        (place,) = y.nonzero().unbind(1)
        return self.query[place], self.candidate[place], y[place]

    def held_plate(self) -> AbstractContextManager[Held]:
        """The facts that the graph holds, each once as its query reads it, shape ``(n,)``."""
        assert self.y is not None
        query, candidate, sure = self._observed(self.y)
        weight = self.relation_weight * self.query_weight[query] * (1 if sure is None else sure)
        row, R = self.relation[query], self.num_relations if self.reverse is not None else self.num_relations // 2
        backward = row >= R if self.reverse is None else self.reverse[query]
        order = backward.byte().argsort(stable=True)
        ahead = len(order) - int(backward.sum())
        held = Held(self.anchor[query][order], candidate[order], ahead, row[order] % R)
        return _plate("held", len(order), weight[order], held, weighted=True, held=True)
