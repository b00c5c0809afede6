"""The normaliser of a softmax over all candidates, in walks over the candidate table, gradients included.

Where a query's ``n_b`` answers are drawn from all candidates, ``ℓ_b = Σ_{c observed} s_bc - n_b log Σ_c exp s_bc``. The
derivative of the normaliser, ``softmax(s_b)_c``, takes a second walk, with the same noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kgpyro.kernels.candidates import ScoreGradients, Walk, block_size, drop
from kgpyro.kernels.gaussian import autocast_dtype


def log_normaliser(
    query: Tensor,
    loc: Tensor,
    log_scale: Tensor | None,
    excluded: Tensor | None = None,
    span: tuple[int, int] | None = None,
    distance: bool = False,
) -> Tensor:
    """``log Σ_c exp s_bc`` over all candidates, shape ``(b,)``.

    Arguments are as of :func:`kgpyro.kernels.candidates.all_candidates_log_prob`. It is no sum of terms of one score
    each, so that all scores drawn here are independent: each walk draws the noise of a block anew, by its seed.
    """
    device = query.device.type
    half = None if distance else autocast_dtype(device)
    seed = 0 if log_scale is None else int(torch.randint(1 << 62, ()))
    first, total = span or (0, len(loc))

    def noise(start: int, count: int) -> Tensor:
        size = block_size(query)
        place = (first + start) % size
        begin = first + start - place
        generator = torch.Generator(query.device).manual_seed(seed + begin)
        shape = len(query), min(size, total - begin)
        found = torch.randn(shape, generator=generator, dtype=query.dtype, device=query.device)
        return found[:, place : place + count]

    with torch.autocast(device, enabled=False):
        walk = Walk(query, loc, log_scale, noise, half, distance, None, first, 1 / math.log(2))  # with scores in bits
        return _LogNormaliser.apply(query, loc, log_scale, walk, excluded)


class _LogNormaliser(torch.autograd.Function):
    """A walk over the candidates in ``forward``, and one in ``backward``."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, loc: Tensor, log_scale: Any, walk: Walk, excluded: Tensor | None) -> Tensor:
        top, total = torch.full_like(query[:, :1], torch.finfo(query.dtype).min), torch.zeros_like(query[:, :1])
        for start, scores, *_ in walk.blocks():
            drop(scores, start, None, excluded)
            before, top = top, torch.maximum(top, scores.amax(-1, keepdim=True))
            total.mul_((before - top).exp2_()).add_(scores.sub_(top).exp2_().sum(-1, keepdim=True))
        ctx.walk, ctx.excluded, ctx.bits = walk, excluded, total.log2_().add_(top)
        return ctx.bits.squeeze(-1) * math.log(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ScoreGradients(ctx.walk, -upstream)
        for block in ctx.walk.blocks():
            drop(block[1], block[0], None, ctx.excluded)
            gradients.subtract(block[1].sub_(ctx.bits).exp2_(), block)
        return *gradients.total(), None, None
