"""Queries of a graph and their answers, in compressed sparse rows."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 20  # answers, beyond which what indexing took is given back to the system


@dataclass(frozen=True)
class Queries:
    """Distinct queries and the sets of their answers, in compressed sparse rows.

    Attributes:
        anchor: the given entity, shape ``(n,)``.
        relation: the relation row, shape ``(n,)``: ``p`` asks for tails, ``p + R`` for heads.
        indptr: shape ``(n + 1,)``; query ``i`` has the answers ``indptr[i]:indptr[i + 1]``.
        answers: entity ids, ascending within a query, shape ``(indptr[-1],)``.
        confidences: of each answer, shape of ``answers``; None where all are sure.
    """

    anchor: Tensor
    relation: Tensor
    indptr: Tensor
    answers: Tensor
    num_relations: int
    confidences: Tensor | None = None

    @classmethod
    def of(cls, triples: Tensor, num_relations: int, confidences: Tensor | None = None) -> Queries:
        """The tail query and the head query of every triple, duplicates merged; ``confidences`` of the triples."""
        head, relation, tail = triples.unbind(1)
        base = int(max(head.max(), tail.max())) + 1
        # in place, as there may be many: a number for each way to read a triple
        every = head.new_empty(2 * len(triples))
        torch.mul(relation, base, out=every[: len(triples)]).add_(head).mul_(base).add_(tail)
        torch.add(relation, num_relations, out=every[len(triples) :]).mul_(base).add_(tail).mul_(base).add_(head)
        keys = every.cpu() if confidences is None else every.cpu().clone()
        keys.numpy().sort()
        keys = torch.unique_consecutive(keys).to(every.device)
        sure = None
        if confidences is not None:
            sure = confidences.new_empty(len(keys))
            sure[torch.searchsorted(keys, every)] = torch.cat([confidences, confidences])
        del every
        queries = keys // base
        bounds = [torch.tensor([True]), queries[1:] != queries[:-1], torch.tensor([True])]
        indptr = torch.cat([bound.to(keys.device) for bound in bounds]).nonzero().squeeze(1)
        queries = queries[indptr[:-1]]
        relation = queries // base
        if len(keys) > LARGE:
            _give_back()
        return cls(queries.remainder_(base), relation, indptr, keys.remainder_(base), num_relations, sure)

    def with_unanswered(self, num_entities: int) -> Queries:
        """These, and all other queries of the entities and relations, without answers."""
        counts = self.counts.new_zeros(2 * self.num_relations * num_entities)
        counts[self.relation * num_entities + self.anchor] = self.counts
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        every = torch.arange(len(counts))
        anchor, relation = every % num_entities, every // num_entities
        return Queries(anchor, relation, indptr, self.answers, self.num_relations, self.confidences)

    def taking(self, index: Tensor) -> Queries:
        """These of them, in this order."""
        places, counts = self.answer_places(index)[1], self.counts_of(index)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sure = None if self.confidences is None else self.confidences[places]
        return replace(
            self, anchor=self.anchor[index], relation=self.relation[index], indptr=indptr, answers=self.answers[places],
            confidences=sure,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.anchor)

    @cached_property
    def counts(self) -> Tensor:
        """Number of answers per query, shape ``(n,)``."""
        return self.indptr.diff()

    def counts_of(self, index: Tensor) -> Tensor:
        """The same of these queries, shape of ``index``, without all others'."""
        return self.indptr[index + 1] - self.indptr[index]

    @cached_property
    def _keys(self) -> Tensor:
        return self.anchor + self._base * self.relation

    @property
    def _base(self) -> int:
        return int(max(self.anchor.max(), self.answers.max())) + 1

    def positions(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Where the given queries stand, shape of ``anchor``; -1 for a query without a known answer."""
        keys = anchor + self._base * relation
        found = torch.searchsorted(self._keys, keys).clamp(max=len(self) - 1)
        known = (self.anchor[found] == anchor) & (self.relation[found] == relation)
        return torch.where(known, found, -1)

    def answer_pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All answers of the queries ``index`` (shape ``(b,)``, -1 for none): rows of ``index``, entity ids."""
        rows, places = self.answer_places(index)
        return rows, self.answers[places]

    def answer_places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The same with places among ``answers`` instead of ids."""
        counts = torch.where(index >= 0, self.counts_of(index), 0)
        rows = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        within = torch.arange(len(rows), device=index.device) - (counts.cumsum(0) - counts)[rows]
        return rows, self.indptr[index[rows]] + within

    def to(self, device: torch.device | str) -> Queries:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in given.items() if isinstance(x, Tensor)}
        return replace(self, **moved)


def _give_back() -> None:
    """Have the C library return what was freed, of which glibc keeps arrays of up to 32 MB."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
