"""Promises by validation facts: sets of answers that hold the true one, and decisions that are seldom wrong.

Sets are those of split-conformal prediction. How ill a candidate ``c`` fits a query is measured by its share of the
predictive probability of all open candidates,

    a(q, c) = -log(p_c / Σ_{c' open} p_c').

The threshold is the ``⌈(n + 1)(coverage)⌉``-th smallest of the true answers' values over the ``n`` validation facts
(Vovk et al. 2005; Angelopoulos & Bates 2021), for tails and heads apart, and on wish for each relation. If test facts
are exchangeable with them, a set holds the true answer with at least that probability. Open are all candidates that
training does not answer, for validation and test facts alike: only then are they exchangeable.

Decisions abstain by Learn-then-Test. Of facts whose certainty is at least ``λ``, decided at one half, a share ``R(λ)``
is decided wrongly. Among ``k`` such facts of a calibration set the errors are binomial, so ``R(λ) > risk`` is rejected
where as few errors as were seen have a probability of at most ``1 - confidence``. From the surest facts on ``λ`` falls
as long as every step is rejected (fixed-sequence testing; Angelopoulos et al. 2021, *Learn then Test*).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from kgpyro.data.queries import Queries
from kgpyro.errors import InputError

ENOUGH = 20  # validation facts from which on a relation has a threshold of its own
STEPS = 400  # certainties that are tried, from 1/2 down to 0


def misfit(probabilities: Tensor, is_open: Tensor) -> Tensor:
    """``a(q, c)`` of all candidates, shapes ``(b, E), (b, E) -> (b, E)``; infinite for candidates that are not open."""
    p = probabilities.double().clamp_min(1e-300) * is_open
    return -(p / p.sum(-1, keepdim=True)).log()


@dataclass(frozen=True)
class Thresholds:
    """The true answers' misfits over a calibration set.

    Attributes:
        misfits: ascending, shape ``(n,)``.
        row: the query row of each (``p`` for tails, ``p + R`` for heads), shape ``(n,)``.
        num_relations: ``R``.
    """

    misfits: Tensor
    row: Tensor
    num_relations: int

    @classmethod
    def of(
        cls,
        probabilities: Callable[[Tensor, Tensor], Tensor],
        triples: Tensor,
        known: Queries,
        num_entities: int,
        measure: Callable[[Tensor, Tensor], Tensor] = misfit,
    ) -> Thresholds:
        """Of the head and the tail of every triple, ``known`` answers of its query left out.

        ``probabilities`` are those of all entities, ``(anchor (b,), row (b,)) -> (b, E)``; ``measure`` as ``misfit``.
        """
        head, relation, tail = triples.unbind(1)
        anchor, answer = torch.cat([head, tail]), torch.cat([tail, head])
        row = torch.cat([relation, relation + known.num_relations])
        found = []
        for part in torch.arange(len(row)).split(max(1, (1 << 22) // num_entities)):
            is_open = open_candidates(anchor[part], row[part], known, num_entities)
            is_open[torch.arange(len(part)), answer[part]] = True
            p = probabilities(anchor[part], row[part]).cpu()
            found.append(measure(p, is_open)[torch.arange(len(part)), answer[part]])
        misfits, order = torch.cat(found).sort()
        return cls(misfits, row[order], known.num_relations)

    def at(self, row: int, coverage: float, per_relation: bool) -> float:
        """The largest misfit that a set of this coverage admits for a query row.

        Relations with fewer than ``ENOUGH`` facts share the threshold of a group of their own, since those of all
        relations together are mostly of the large ones.

        Raises InputError for a coverage outside (0, 1), or where there are no facts to calibrate with.
        """
        if not 0 < coverage < 1:
            raise InputError(f"`coverage` is a probability between 0 and 1; got {coverage}.")
        if not len(self.misfits):
            raise InputError("the graph has no validation facts to calibrate answer sets with.")
        alike = (self.row >= self.num_relations) == (row >= self.num_relations)
        if per_relation:
            counts = torch.bincount(self.row, minlength=2 * self.num_relations)
            alike = self.row == row if int(counts[row]) >= ENOUGH else alike & (counts < ENOUGH)[self.row]
        mine = self.misfits[alike]
        rank = math.ceil((len(mine) + 1) * coverage)
        return float(mine[rank - 1]) if rank <= len(mine) else math.inf


def open_candidates(anchor: Tensor, row: Tensor, known: Queries, num_entities: int) -> Tensor:
    """Which candidates a query leaves open, ``(b, E)``: all but its known answers."""
    is_open = torch.ones(len(anchor), num_entities, dtype=torch.bool)
    is_open[known.answer_pairs(known.positions(anchor, row))] = False
    return is_open


def refuse_no_risk(risk: float, confidence: float) -> None:
    """Raise InputError for what is no probability strictly between 0 and 1."""
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"`{name}` is a probability between 0 and 1; got {value}.")


def certain_enough(certainty: np.ndarray, wrong: np.ndarray, risk: float, confidence: float) -> float:
    """The least certainty at which decisions keep the risk; infinite where too few facts show that any do.

    ``certainty``, ``(n,)``: distances of probabilities from one half; ``wrong``: whether the decisions there are.
    """
    fewest = math.ceil(math.log(1 - confidence) / math.log(1 - risk))  # below which no errors at all prove nothing
    found = math.inf
    first = max(fewest, min(4 * fewest, len(wrong) // 4))  # a single error among very few would end it there
    for level in np.linspace(0.5, 0.0, STEPS + 1):
        decided = certainty >= level
        if (k := int(decided.sum())) < first:
            continue
        if binom.cdf(int(wrong[decided].sum()), k, risk) > 1 - confidence:
            break
        found = float(level)
    return found
