"""Queries of a graph and their answers, in compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


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
        every = torch.cat([relation, relation + num_relations])  # in place from here on: there may be many
        every.mul_(base).add_(torch.cat([head, tail])).mul_(base).add_(torch.cat([tail, head]))
        keys = every.cpu() if confidences is None else every.cpu().clone()
        keys.numpy().sort()
        keys = torch.unique_consecutive(keys).to(every.device)
        sure = None
        if confidences is not None:
            sure = confidences.new_empty(len(keys))
            sure[torch.searchsorted(keys, every)] = torch.cat([confidences, confidences])
        del every
        queries = keys // base
        ends = keys.new_tensor([0]), (queries.diff() != 0).nonzero().squeeze(1) + 1, keys.new_tensor([len(keys)])
        indptr = torch.cat(ends)
        queries = queries[indptr[:-1]]
        return cls(queries % base, queries // base, indptr, keys % base, num_relations, sure)

    def with_unanswered(self, num_entities: int) -> Queries:
        """These, and all other queries of the entities and relations, without answers."""
        counts = self.counts.new_zeros(2 * self.num_relations * num_entities)
        counts[self.relation * num_entities + self.anchor] = self.counts
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        every = torch.arange(len(counts))
        anchor, relation = every % num_entities, every // num_entities
        return Queries(anchor, relation, indptr, self.answers, self.num_relations, self.confidences)

    def __len__(self) -> int:
        return len(self.anchor)

    @cached_property
    def counts(self) -> Tensor:
        """Number of answers per query, shape ``(n,)``."""
        return self.indptr.diff()

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
        counts = torch.where(index >= 0, self.counts[index], 0)
        rows = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        within = torch.arange(len(rows), device=index.device) - (counts.cumsum(0) - counts)[rows]
        return rows, self.indptr[index[rows]] + within

    def to(self, device: torch.device | str) -> Queries:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in given.items() if isinstance(x, Tensor)}
        return replace(self, **moved)
