"""The order of training queries, and the weight of the KL divergence at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class KLSchedule:
    """The KL weight at each step.

    * ``constant``: ``weight`` throughout.
    * ``warmup``: linearly from 0 to ``weight`` over the first ``warmup`` share of all steps, then ``weight``.
    * ``compression``: Blundell et al. 2015: in an epoch of M batches the i-th (from 1) gets ``weight · M 2^{M-i} /
      (2^M - 1)``, whose mean over the epoch is ``weight``.
    """

    def __init__(self, kind: str, weight: float, warmup: float, steps_per_epoch: int, epochs: int):
        self.kind, self.weight = kind, weight
        self.steps_per_epoch, self.steps = steps_per_epoch, steps_per_epoch * epochs
        self.warmup_steps = math.ceil(warmup * steps_per_epoch * epochs) if kind == "warmup" else 0

    def __call__(self, step: int) -> float:
        if self.kind == "compression":
            m, i = self.steps_per_epoch, step % self.steps_per_epoch + 1
            return self.weight * m * 2.0**-i / (1 - 2.0**-m)
        return self.weight * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.weight

    def reached(self, step: int) -> bool:
        """Whether the weight is at its target from this step on (in the mean over an epoch)."""
        return step >= self.warmup_steps


class RandomQueries:
    """The indices of all training queries, in a new order every epoch, ``size`` at a time.

    Of several processes each takes its share of every batch: the order is the same in all, drawn from a generator of
    its own.
    """

    def __init__(self, total: int, size: int, seed: int = 0, rank: int = 0, processes: int = 1):
        self.total, self.size, self.rank, self.processes = total, size, rank, processes
        self.generator = torch.Generator().manual_seed(seed)
        self.before = self.generator.get_state()
        self._skip = 0

    def go_on(self, before: Tensor, skip: int) -> None:
        """Start in the midst of an epoch: the generator's state before it, and how many of its batches are done."""
        self.generator.set_state(before)
        self._skip = skip

    def __len__(self) -> int:
        return math.ceil(self.total / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        self.before, skip, self._skip = self.generator.get_state(), self._skip, 0
        for batch in torch.randperm(self.total, generator=self.generator).split(self.size)[skip:]:
            share = batch[self.rank :: self.processes]
            yield share if len(share) else batch[:1]
