"""Tables of Gaussian latents: drawn, compared with a prior, or both, in one pass over blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 300_000  # numbers at a time, which stay in the cache
GPU_BLOCK = 1 << 30
LARGE = 1 << 16  # numbers, of which drawing is worth a generator of its own
Noise = Callable[[Tensor], Tensor]


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of matrix products under autocast, or None outside of it."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def gaussian_draw(loc: Tensor, log_scale: Tensor) -> Tensor:
    """A reparameterised draw of ``N(loc, exp(log_scale)²)``, shapes ``(n, d) -> (n, d)``, in one pass over blocks."""
    return _Gaussian.apply(loc, log_scale, None, None, True)[0]


def gaussian_kl(loc: Tensor, log_scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """``KL(N(loc, exp(log_scale)²) ‖ N(prior_loc, prior_scale²))`` over the last dimension, ``(n, d) -> (n,)``.

    In one pass over blocks of rows. The prior's parameters broadcast with the tables; expanded ones cost no memory.
    """
    return _Gaussian.apply(loc, log_scale, _compact(prior_loc), _compact(prior_scale), False)[1]


def gaussian_draw_and_kl(
    loc: Tensor, log_scale: Tensor, prior_loc: Tensor, prior_scale: Tensor, noise: Noise | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`gaussian_draw` and :func:`gaussian_kl` in one pass, whose gradients come from one pass too.

    ``noise`` makes standard normals of the shape of its argument, for blocks of rows one after another.
    """
    return _Gaussian.apply(loc, log_scale, _compact(prior_loc), _compact(prior_scale), noise or True)


class _Gaussian(torch.autograd.Function):
    """A draw ``h = μ + σε``, its KL from a Normal prior, or both.

    Nothing but the draw itself is kept for ``backward``: ``∂h/∂log σ = σε = h - μ``.
    """

    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, log_scale: Tensor, prior_loc: Tensor | None, prior_scale: Tensor | None,
        draw: bool | Noise,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        h = torch.empty_like(loc) if draw else None
        noise = (draw if callable(draw) else _normals(loc)) if draw else None
        kl = None if prior_scale is None else loc.new_empty(loc.shape[:-1])
        for rows in _row_blocks(loc):
            scale = fast_exp(log_scale[rows])
            if h is not None and noise is not None:
                torch.addcmul(loc[rows], scale, noise(scale), out=h[rows])
            if kl is not None and prior_loc is not None and prior_scale is not None:
                s0 = _rows_of(prior_scale, rows)
                squares = (loc[rows] - _rows_of(prior_loc, rows)).square_().addcmul_(scale, scale)
                if s0.shape[-1] == 1:
                    ratios = squares.sum(-1).div_(s0.squeeze(-1).square())
                else:
                    ratios = squares.div_(s0.square()).sum(-1)
                logs = (s0.log() - 0.5).expand(-1, loc.shape[-1]).sum(-1)
                torch.sub(logs, log_scale[rows].sum(-1), out=kl[rows]).add_(ratios, alpha=0.5)
        ctx.save_for_backward(loc, log_scale, prior_loc, prior_scale, h)
        ctx.set_materialize_grads(False)
        return h, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Any, d_kl: Any) -> tuple[Tensor | None, ...]:
        if d_h is None and d_kl is None:
            return (None,) * 5
        loc, log_scale, prior_loc, prior_scale, h = ctx.saved_tensors
        d_h = d_h.to_dense() if d_h is not None and d_h.is_sparse else d_h  # of a draw of which only rows were used
        # In one piece with room to spare: once freed, it takes the next step's draw and its gradient. glibc cannot put
        # an aligned table where one of the same size was.
        d_loc, d_log_scale = loc.new_empty(2, len(loc) + _rows_a_block(loc), *loc.shape[1:])[:, : len(loc)]
        d_m0, d_s0 = (
            torch.zeros_like(x) if n else None
            for x, n in zip((prior_loc, prior_scale), ctx.needs_input_grad[2:4], strict=True)
        )
        for rows in _row_blocks(loc):
            to_loc, to_log_scale = d_loc[rows], d_log_scale[rows]
            if d_kl is None:
                to_loc.copy_(d_h[rows])
                torch.sub(h[rows], loc[rows], out=to_log_scale).mul_(d_h[rows])
                continue
            s0, upstream = _rows_of(prior_scale, rows), d_kl[rows].unsqueeze(-1)
            precision = upstream / s0.square()
            shift, variance = loc[rows] - _rows_of(prior_loc, rows), fast_exp(log_scale[rows], 2)
            torch.mul(shift, precision, out=to_loc)
            torch.mul(variance, precision, out=to_log_scale).sub_(upstream)
            if d_m0 is not None:
                _rows_of(d_m0, rows).sub_(to_loc.sum_to_size(_rows_of(d_m0, rows).shape))
            if d_s0 is not None:
                by_scale = (upstream - variance.addcmul_(shift, shift).mul_(precision)).div_(s0)
                _rows_of(d_s0, rows).add_(by_scale.sum_to_size(_rows_of(d_s0, rows).shape))
            if d_h is not None:
                to_loc.add_(d_h[rows])
                to_log_scale.addcmul_(torch.sub(h[rows], loc[rows], out=shift), d_h[rows])
        return d_loc, d_log_scale, d_m0, d_s0, None


def _normals(table: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that draws standard normals of the shape of its argument, for all of a table block by block.

    PyTorch's generator on a CPU is serial, and most of its time goes to the Mersenne twister. For a large table it
    seeds NumPy's SFC64 instead, whose bits, 32 a number, become normal by the inverse of their distribution function,
    on all cores. Half-precision products keep 8 or 11 bits of a draw; under autocast it has 16 random ones.
    """
    if table.device.type != "cpu" or table.dtype != torch.float32 or table.numel() < LARGE:
        return torch.randn_like
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    quantiles = _quantiles() if autocast_dtype("cpu") else None

    def draw(like: Tensor) -> Tensor:
        n = like.numel()
        each = 2 if quantiles is None else 4  # numbers of 64 bits
        bits = torch.from_numpy(generator.integers(low, high, -(-n // each), dtype=np.int64, endpoint=True))
        if quantiles is not None:
            return quantiles.index_select(0, bits.view(torch.uint16)[:n].to(torch.int64)).view(like.shape)
        uniform = bits.view(torch.int32)[:n].to(torch.float32)
        uniform.mul_((1 - 2**-24) * 2**-31)  # between -1 and 1, and neither of them
        return uniform.erfinv_().mul_(math.sqrt(2)).view(like.shape)

    return draw


@cache
def _quantiles() -> Tensor:
    """The normal distribution in 65,536 equally likely values, up to 4.3, of variance 1."""
    values = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.double) + 0.5) / (1 << 16))
    return (values / values.square().mean().sqrt()).float()


def fast_exp(x: Tensor, times: float = 1.0) -> Tensor:
    """``exp(times · x)``; PyTorch's ``exp2`` takes half the time of its ``exp``."""
    return (x * (times / math.log(2))).exp2_()


def _compact(parameter: Tensor) -> Tensor:
    """An expanded tensor without its repetitions: of length 1 in every dimension where all is the same."""
    for dim, stride in enumerate(parameter.stride()):
        parameter = parameter if stride else parameter.narrow(dim, 0, 1)
    return parameter


def _rows_of(parameter: Tensor, rows: slice) -> Tensor:
    return parameter if len(parameter) == 1 else parameter[rows]


def _rows_a_block(table: Tensor) -> int:
    return max(1, (BLOCK if table.device.type == "cpu" else GPU_BLOCK) // max(1, table[:1].numel()))


def _row_blocks(table: Tensor) -> list[slice]:
    size = _rows_a_block(table)
    return [slice(start, start + size) for start in range(0, len(table), size)]
