"""Entities' rows spread over processes: who owns which, others' rows looked up, and gradients sent back to the owner.

Every process owns the rows ``first`` to ``last`` of each entity table, its gradient and the optimiser's state of them.
Whatever else there is, relations and intercepts, is in every process, from the same seed. Random numbers of a row hang
on the row and not on who draws them, so that a fit comes out the same in any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 1 << 14  # drawn at once where a table begins


class Share:
    """The entities that this process owns, of ``total`` ones; the processes own as many each, give or take one.

    All but the attributes is collective: every process calls it, in the same order.

    Attributes:
        first, last: the ids of its entities are ``first`` up to ``last - 1``.
        rank, processes: which process this is, from 0, and of how many.
    """

    def __init__(self, total: int, rank: int, processes: int):
        self.total, self.rank, self.processes = total, rank, processes
        self.bounds = torch.arange(processes + 1) * total // processes
        self.first, self.last = self.bounds[rank : rank + 2].tolist()

    def __len__(self) -> int:
        return self.last - self.first

    def own(self, ids: Tensor) -> Tensor:
        """Which of these entities are this process's, bool, of the same shape."""
        return (ids >= self.first) & (ids < self.last)

    # ---- what processes tell each other -----------------------------------------------------------------------------

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.processes > 1:
            distributed.all_reduce(x)
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """All processes' ``x``, of one shape in all of them, shape ``(processes, *)``."""
        if self.processes == 1:
            return x.unsqueeze(0)
        found = [torch.empty_like(x) for _ in range(self.processes)]
        distributed.all_gather(found, x.contiguous())
        return torch.stack(found)

    def exchange(self, x: Tensor, give: list[int], take: list[int]) -> Tensor:
        """Send ``give[i]`` rows of ``x``, one after another, to process ``i``; and what is taken from each, in turn."""
        if self.processes == 1:
            return x
        found = x.new_empty(sum(take), *x.shape[1:])
        distributed.all_to_all_single(found, x.contiguous(), take, give)
        return found

    def barrier(self) -> None:
        if self.processes > 1:
            distributed.barrier()

    def lookup(self, table: Tensor, ids: Tensor, sparse: bool = True) -> Tensor:
        """Rows ``(m, d)`` of any entities ``(m,)``, from a table of which this process has its own ones.

        ``sparse`` is whether the table's gradient should hold only the rows that were asked for.
        """
        return _Lookup.apply(table, ids, self, sparse)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """``log Σ exp`` over all processes, elementwise."""
        return _LogSumExp.apply(x, self)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of parameters that all processes have."""
        whole = list(parameters)
        for p in whole:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if self.processes > 1 and whole:
            flat = self.sum(torch.cat([p.grad.flatten() for p in whole if p.grad is not None]))
            for p, part in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
                p.grad = part.view_as(p)

    # ---- random numbers ---------------------------------------------------------------------------------------------

    def start(self, count: int, size: int, like: Tensor) -> Tensor:
        """A new table's rows of this process, ``(n, size)``: Xavier's (Glorot & Bengio 2010) of one with all rows."""
        key, table = _key(), like.new_empty(len(self), size)
        for start in range(0, len(self), ROWS):
            part = table[start : start + ROWS]
            ids = torch.arange(self.first + start, self.first + start + len(part))
            part.copy_(_uniform(key, ids, part)).mul_(math.sqrt(6 / (count + size)))
        return table

    def noise(self, symbols: Tensor | EllipsisType) -> Callable[[Tensor], Tensor]:
        """What draws standard normals for the rows of these entities, ``...`` for all own ones, block after block."""
        key, place = _key(), 0

        def draw(like: Tensor) -> Tensor:
            nonlocal place
            start, place = place, place + len(like)
            if isinstance(symbols, EllipsisType):
                ids = torch.arange(self.first + start, self.first + place, device=like.device)
            else:
                ids = symbols[start:place]
            return _uniform(key, ids, like).erfinv_().mul_(math.sqrt(2))

        return draw


def is_spread(name: str) -> bool:
    """Whether a guide's parameter of that name is a table of entities."""
    return "entity" in name.split(".")


def _key() -> int:
    return int(torch.randint(1 << 62, ()))


def _uniform(key: int, ids: Tensor, like: Tensor) -> Tensor:
    """Numbers between -1 and 1, neither of them included, that hang on key, row and column alone, shape of ``like``.

    By splitmix64 (Steele et al. 2014), a counter-based generator.
    """
    size = like.shape[-1]
    x = ids.unsqueeze(1) * size + torch.arange(size, device=ids.device)
    x.mul_(0x9E3779B97F4A7C15 - (1 << 64)).add_(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor - (1 << 64))
    x.bitwise_xor_((x >> 31).bitwise_and_((1 << 33) - 1))
    bits = 53 if like.dtype == torch.float64 else 24
    return x.bitwise_right_shift_(64 - bits).to(like.dtype).add_(0.5).mul_(2.0 ** (1 - bits))


class _Lookup(torch.autograd.Function):
    """Ids go to the rows' owners, rows come back; gradients go the same way."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, share: Share, sparse: bool) -> Tensor:
        asked, order = ids.sort()
        owner = torch.searchsorted(share.bounds.to(ids.device), asked, right=True) - 1
        give = torch.bincount(owner, minlength=share.processes)
        ones = [1] * share.processes
        ctx.give, ctx.take = give.tolist(), share.exchange(give, ones, ones).tolist()
        wanted = share.exchange(asked, ctx.give, ctx.take) - share.first
        rows = share.exchange(table.index_select(0, wanted), ctx.take, ctx.give)
        ctx.save_for_backward(order, wanted)
        ctx.share, ctx.sparse, ctx.shape = share, sparse, table.shape
        return torch.empty_like(rows).index_copy_(0, order, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        order, wanted = ctx.saved_tensors
        found = ctx.share.exchange(upstream.index_select(0, order), ctx.give, ctx.take)
        if ctx.sparse:
            return torch.sparse_coo_tensor(wanted.unsqueeze(0), found, ctx.shape), None, None, None
        return found.new_zeros(ctx.shape).index_add_(0, wanted, found), None, None, None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share) -> Tensor:
        total = share.gathered(x).logsumexp(0)
        ctx.save_for_backward((x - total).exp_())
        ctx.share = share
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return ctx.share.sum(upstream.clone()).mul_(weight), None
