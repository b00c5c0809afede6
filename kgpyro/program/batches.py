"""Which facts a training step sees, and what each counts for, so that their sum is an unbiased estimate of the whole.

The data are all cells (head, relation, tail), labelled 1 (or with its confidence) where the training graph holds the
triple and 0 elsewhere. Each cell is asked twice, as an answer of its tail query and of its head query, and counts for
one half in each. A batch holds

* **all candidates** of random queries: those that training answers, and, in the full closed world, others that it does
  not: all of them in turn, or a random few per step, each weighted by the inverse of its chance; or
* **Bernoulli sampling**: the observed facts of random queries, and K unobserved ones per query with replacement, each
  weighted by ``(number of unobserved candidates) / K`` (the paper's 1/b). With a fixed ``negative_weight`` it is plain
  negative sampling, a different objective; or
* **listed facts**, each once, with weight 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from kgpyro.data.queries import Queries
from kgpyro.program.lazy import Labels
from kgpyro.program.owners import Share
from kgpyro.program.plates import Batch, Symbols


@dataclass(eq=False)
class Batches:
    """Makes the batch of any set of training queries.

    Args:
        queries: the training queries.
        num_entities: number of candidates.
        inverse: whether inverse relations have rows of their own.
        negatives: unobserved candidates drawn per query; None for all candidates.
        negative_weight: weight of a drawn candidate; None for the unbiased one.
        dtype: of weights and labels; None for PyTorch's default.
        unanswered: how many of the queries that are not among ``queries`` join each batch, at random (0: none).
        categorical: whether a query's answers are one draw each, so that the query is one term.
        relation_weight: what the question for a held fact's relation counts for, beside those for its ends.
        share: where processes share the entities, what this one owns: batches are then its part of those of all.
    """

    queries: Queries
    num_entities: int
    inverse: bool
    negatives: int | None = None
    negative_weight: float | None = None
    dtype: Any = None
    unanswered: int = 0
    categorical: bool = False
    relation_weight: float = 0.0
    share: Share | None = None

    def __post_init__(self) -> None:
        self.dtype = self.dtype or torch.get_default_dtype()
        self.unanswered = min(self.unanswered, self.num_unanswered)

    def __len__(self) -> int:
        return len(self.queries)

    def alone(self, index: Tensor) -> Batches:
        """The same of the queries ``index``, as if there were no others: what a look at a model's form takes."""
        return replace(self, queries=self.queries.taking(index))

    def to(self, device: torch.device | str) -> Batches:
        """The same batches, their tensors now on the device."""
        if self.queries.anchor.device != torch.device(device):
            self.queries = self.queries.to(device)
            for name in ("_gap_keys", "_query_gaps", "_occurrences"):  # the next step makes them there
                self.__dict__.pop(name, None)
        return self

    @cached_property
    def _gap_keys(self) -> Tensor:
        """Of the i-th answer (from 0) of query q: q·(E+1) + (number of unobserved candidates before it)."""
        queries, device = self.queries, self.queries.anchor.device
        first = torch.arange(len(self), device=device).mul_(self.num_entities + 1).add_(queries.indptr[:-1])
        keys = torch.repeat_interleave(first, queries.counts).add_(queries.answers)
        return keys.sub_(torch.arange(len(keys), device=device))

    @cached_property
    def _query_gaps(self) -> Tensor:
        """The number of unanswered queries before each query, ``(n,)``; none where none are drawn."""
        keys = self.queries.relation * self.num_entities + self.queries.anchor
        return keys - torch.arange(len(self), device=keys.device) if self.unanswered else keys[:0]

    @cached_property
    def _occurrences(self) -> Tensor | None:
        """How often each entity is expected among anchors and candidates of one random query, shape ``(E,)``."""
        if self.negatives is None:
            return None
        queries, counts = self.queries, self.queries.counts
        rate = (self.negatives / (self.num_entities - counts).clamp(min=1)) * (counts < self.num_entities)
        total = torch.bincount(queries.anchor, minlength=self.num_entities).double() + rate.double().sum()
        owner_rate = torch.repeat_interleave(1.0 - rate.double(), counts)  # observed, hence never drawn
        return total.index_add_(0, queries.answers, owner_rate).div_(len(queries)).to(self.dtype)

    @property
    def num_unanswered(self) -> int:
        """The number of queries that training does not answer."""
        return 2 * self.queries.num_relations * self.num_entities - len(self)

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
            row, negative = self.draw_negatives(index, self.negatives)
            if self.share is None:
                return self.with_negatives(index, row, negative)
            return self._of_own(index, row, negative, self.share)
        others = torch.randint(max(1, self.num_unanswered), (self.unanswered,), device=index.device)
        batch = self.with_unanswered(index, others)
        return batch if self.share is None else batch.of_own(self.share)

    def _of_own(self, index: Tensor, row: Tensor, negative: Tensor, share: Share) -> Batch:
        """This process's share of the queries of :meth:`with_negatives`, at what they count for among all."""
        step, own = share.processes, index[share.rank :: share.processes]
        mine, part = row % step == share.rank, len(own) / len(index)
        if not len(own):  # a query that counts for nothing, since none is not a batch
            own, mine, part = index[:1], row == 0, 1e-30
        batch = self.with_negatives(own, row[mine] // step, negative[mine])
        assert batch.entity_scale is not None
        return replace(batch, query_weight=batch.query_weight * part, entity_scale=batch.entity_scale * part)

    def with_unanswered(self, index: Tensor, others: Tensor) -> Batch:
        """The batch of the queries ``index``, and of those of the given places among the unanswered, ``(u,)``."""
        key = others + torch.searchsorted(self._query_gaps, others, right=True)
        row, places = self.queries.answer_places(index)
        weight = self._weight_of(index)
        if len(others):
            weight = torch.cat([weight, weight.new_full((len(others),), self.num_unanswered / len(others) / 2)])
        anchor = torch.cat([self.queries.anchor[index], key % self.num_entities])
        relation = torch.cat([self.queries.relation[index], key // self.num_entities])
        answer, shape = self.queries.answers[places], (len(anchor), self.num_entities)
        y = Labels.at(row, answer, shape, self.dtype, self._confidence(places))
        return self._batch(anchor, relation, weight, y=y)

    def _weight_of(self, index: Tensor) -> Tensor:
        """What random queries ``index`` of the answered ones count for, ``(b,)``."""
        return torch.full((len(index),), len(self) / len(index) / 2, dtype=self.dtype, device=index.device)

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
        sure, counts = self._confidence(places), self.queries.counts[index]
        if self.negative_weight is None:
            drawn = torch.bincount(row, minlength=len(index)).clamp(min=1)
            negative_weight = ((self.num_entities - counts) / drawn).to(self.dtype)[row]
        else:
            negative_weight = torch.full_like(row, self.negative_weight, dtype=self.dtype)
        ones = torch.ones_like(observed_row, dtype=self.dtype)
        return self._batch(
            self.queries.anchor[index],
            self.queries.relation[index],
            self._weight_of(index),
            torch.cat([self.queries.answers[places], negative]),
            torch.cat([observed_row, row]),
            torch.cat([ones, negative_weight]),
            torch.cat([ones if sure is None else sure, torch.zeros_like(negative_weight)]),
        )

    def listed(self, facts: Tensor, y: Tensor | None = None) -> Batch:
        """The batch of single facts ``(anchor, relation row, candidate)``, shape ``(n, 3)``, each once."""
        anchor, relation, candidate = facts.unbind(1)
        ones, query = torch.ones(len(facts), dtype=self.dtype, device=facts.device), torch.arange(len(facts))
        batch = self._batch(anchor, relation, ones, candidate, query.to(facts.device), ones, y, touched=True)
        return replace(batch, entity_scale=None, relation_weight=0.0)

    def asked(self, anchor: Tensor, relation: Tensor) -> Batch:
        """The batch of all candidates of the given queries, shapes ``(b,)``, each once and without labels."""
        ones = torch.ones(len(anchor), dtype=self.dtype, device=anchor.device)
        batch = self._batch(anchor, relation, ones)
        return batch if self.share is None else batch.of_own(self.share)

    def _batch(
        self,
        anchor: Tensor,
        relation: Tensor,
        query_weight: Tensor,
        candidate: Symbols = ...,
        query: Tensor | None = None,
        weight: Tensor | None = None,
        y: Tensor | None = None,
        touched: bool = False,
    ) -> Batch:
        entities: Symbols = ...
        entity_scale = None
        if not isinstance(candidate, EllipsisType) and (touched or self._occurrences is not None):
            both = torch.cat([anchor, candidate])
            entities, row, count = torch.unique(both, return_inverse=True, return_counts=True)
            anchor, candidate = row.split([len(anchor), len(candidate)])
            if self._occurrences is not None:
                entity_scale = count / (self._occurrences[entities] * len(anchor))
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
            total=self.total,
            num_entities=self.num_entities,
            num_relations=self.num_relation_rows,
            categorical=self.categorical,
            relation_weight=self.relation_weight,
        )
