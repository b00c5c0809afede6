"""The exact all-candidates log-likelihood, in one pass over the candidate table, gradients included.

For ``b`` query vectors ``u`` and candidates ``h_c`` the log-likelihood of all facts of each query is

    ℓ_b = Σ_{c observed} s_bc - Σ_c softplus(s_bc),      s_bc = ⟨u_b, h_c⟩ + intercept_b.

Its derivative with respect to a score is ``1[observed] - sigmoid(s_bc)``: known as soon as the score is. So one walk
over blocks of candidates computes value and gradients together, and a ``(b, E)`` matrix never exists: memory is that
of the tables. With Gaussian candidates ``N(μ_c, σ_c²)`` the score itself is drawn, from ``N(⟨u, μ_c⟩, ⟨u², σ_c²⟩)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 512  # candidates at a time: a (b, BLOCK) block of scores stays in cache


def all_candidates_log_prob(
    query: Tensor,
    loc: Tensor,
    scale: Tensor | None,
    intercept: Tensor,
    observed: tuple[Tensor, Tensor],
    excluded: Tensor | None = None,
) -> Tensor:
    """The log-likelihood of all facts of each query, shape ``(b,)``.

    Under autocast the matrix products run in its dtype and accumulate in float32; everything else stays as it is.

    Args:
        query: query vectors, shape ``(b, d)``.
        loc: candidates, shape ``(E, d)``; their means where ``scale`` is given.
        scale: standard deviations, shape ``(E, d)``, for scores drawn on their own; None for candidates as they are.
            The observed facts' linear part is then its exact mean over the draw.
        intercept: shape ``(b,)``.
        observed: rows of ``query`` and candidate ids of the observed facts, both ``(p,)``.
        excluded: one candidate per query that is left out of the sum over all candidates, shape ``(b,)``.
    """
    device = query.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with torch.autocast(device, enabled=False):
        normal, signs = (None, None) if scale is None else _noise(query, len(loc))
        return _AllCandidates.apply(query, loc, scale, intercept, *observed, excluded, normal, signs, half)


def _noise(query: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """A block of standard normals, shape ``(b, BLOCK)``, and signs ``(b, blocks)``.

    Every block of candidates takes the same normals under fresh signs: each score's noise is exactly standard normal,
    any two of a query are uncorrelated, and a step draws ``b · BLOCK`` numbers instead of ``b · E``.
    """
    b, blocks = len(query), -(-candidates // BLOCK)
    normal = torch.randn(b, min(BLOCK, candidates), dtype=query.dtype, device=query.device)
    signs = torch.randint(0, 2, (b, blocks), device=query.device).to(query.dtype).mul_(2).sub_(1)
    return normal, signs


@dataclass(frozen=True)
class _Facts:
    """The arguments of :func:`all_candidates_log_prob`, with the noise already drawn and the products' dtype."""

    query: Tensor
    loc: Tensor
    scale: Tensor | None
    intercept: Tensor
    rows: Tensor
    columns: Tensor
    excluded: Tensor | None
    normal: Tensor | None
    signs: Tensor | None
    half: torch.dtype | None

    def value(self) -> Tensor:
        """``ℓ``, shape ``(b,)``."""
        total = self._observed()
        for start, scores, *_ in self._blocks():
            self._exclude(scores, start)
            total -= F.softplus(scores).sum(-1)
        return total

    def value_and_gradients(self, weight: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """``ℓ``, and the gradients of ``Σ_b weight_b ℓ_b`` for query, loc, scale and intercept."""
        q, rows, columns = self.query, self.rows, self.columns
        weighted = q if weight is None else q * weight.unsqueeze(-1)
        right = self._cast(weighted)
        right_squared = None if self.scale is None else self._cast(weighted * q)
        total = self._observed()
        d_query = torch.zeros_like(q).index_add_(0, rows, self.loc[columns])
        d_loc, d_scale = torch.empty_like(self.loc), None if self.scale is None else torch.empty_like(self.scale)
        d_squared = torch.zeros_like(q)
        d_intercept = torch.bincount(rows, minlength=len(q)).to(q.dtype)
        for start, scores, part, variance, deviation, noise in self._blocks():
            self._exclude(scores, start)
            total -= F.softplus(scores).sum(-1)
            p = scores.sigmoid_()
            d_intercept -= p.sum(-1)
            if self.scale is not None and d_scale is not None and right_squared is not None:
                slope = self._cast(noise.mul_(p).div_(deviation))  # -2 dℓ/d variance
                d_squared += slope @ variance
                scale = self.scale[start : start + BLOCK]
                d_scale[start : start + BLOCK] = (slope.mT @ right_squared).to(scale.dtype).mul_(scale).neg_()
            p = self._cast(p)
            d_query -= p @ part
            d_loc[start : start + BLOCK] = (p.mT @ right).neg_()
        d_loc.index_add_(0, columns, weighted[rows])
        if self.scale is not None:
            d_query.addcmul_(q, d_squared, value=-1)
        if weight is not None:
            d_query, d_intercept = d_query * weight.unsqueeze(-1), d_intercept * weight
        return total, [d_query, d_loc, d_scale, d_intercept]

    def _observed(self) -> Tensor:
        """``Σ_{c observed} s_bc`` without noise, shape ``(b,)``."""
        scores = (self.query[self.rows] * self.loc[self.columns]).sum(-1) + self.intercept[self.rows]
        return torch.zeros_like(self.intercept).index_add_(0, self.rows, scores)

    def _blocks(self) -> Iterator[tuple[int, Tensor, Tensor, Any, Any, Any]]:
        """First candidate, scores ``(b, c)``, candidates; where scores are drawn, variances, deviation, noise."""
        query, table = self._cast(self.query), self._cast(self.loc)
        squared = None if self.scale is None else self._cast(self.query.square())
        for block, start in enumerate(range(0, len(table), BLOCK)):
            part = table[start : start + BLOCK]
            scores = (query @ part.mT).to(self.query.dtype).add_(self.intercept.unsqueeze(-1))
            if self.scale is None or squared is None or self.normal is None or self.signs is None:
                yield start, scores, part, None, None, None
                continue
            variance = self._cast(self.scale[start : start + BLOCK].square())
            deviation = (squared @ variance.mT).to(scores.dtype).clamp_min_(1e-20).sqrt_()
            noise = self.normal[:, : len(part)] * self.signs[:, block, None]
            yield start, scores.addcmul_(deviation, noise), part, variance, deviation, noise

    def _exclude(self, scores: Tensor, start: int) -> None:
        if self.excluded is not None:
            here = ((self.excluded >= start) & (self.excluded < start + scores.shape[1])).nonzero().squeeze(-1)
            scores[here, self.excluded[here] - start] = -torch.inf

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.half is None else x.to(self.half)


class _AllCandidates(torch.autograd.Function):
    """Value in ``forward``, together with the gradient of the sum over queries; ``backward`` only scales it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        facts = _Facts(*arguments)
        if not any(ctx.needs_input_grad):
            return facts.value()
        value, ctx.gradients = facts.value_and_gradients()
        ctx.facts = facts
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so good for one backward pass
        if gradients is not None and bool((upstream == upstream[0]).all()):  # as in a subsampled plate
            gradients = [None if g is None else g.mul_(upstream[0]) for g in gradients]
        else:
            _, gradients = ctx.facts.value_and_gradients(upstream)
        return (*gradients, None, None, None, None, None, None)


def normal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """``KL(N(loc, scale²) ‖ N(prior_loc, prior_scale²))`` summed over the last dimension, shapes ``(n, d) -> (n,)``.

    The textbook formula, in one pass over blocks of rows, without intermediate tables. Differentiable in ``loc`` and
    ``scale``; the prior's parameters, of the same shape (expanded ones cost no memory), count as constants.
    """
    return _NormalKL.apply(loc, scale, prior_loc, prior_scale)


class _NormalKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale, prior_loc, prior_scale)
        result = loc.new_empty(loc.shape[:-1])
        for rows in _row_blocks(len(loc)):
            m0, inverse = _of_prior(prior_loc, rows), _of_prior(prior_scale, rows).reciprocal()
            ratio, shift = scale[rows] * inverse, (loc[rows] - m0).mul_(inverse)
            squares = torch.addcmul(shift.mul_(shift), ratio, ratio)
            result[rows] = squares.sub_(ratio.log_(), alpha=2).sum(-1).sub_(loc.shape[-1]).mul_(0.5)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, prior_loc, prior_scale = ctx.saved_tensors
        d_loc, d_scale = torch.empty_like(loc), torch.empty_like(scale)
        for rows in _row_blocks(len(loc)):
            m0, precision = _of_prior(prior_loc, rows), _of_prior(prior_scale, rows).square().reciprocal_()
            g = upstream[rows].unsqueeze(-1)
            torch.sub(loc[rows], m0, out=d_loc[rows]).mul_(precision).mul_(g)
            torch.mul(scale[rows], precision, out=d_scale[rows]).sub_(scale[rows].reciprocal()).mul_(g)
        return d_loc, d_scale, None, None


def _of_prior(parameter: Tensor, rows: slice) -> Tensor:
    """The given rows of a prior's parameter; a single one where an expanded parameter has the same everywhere."""
    return parameter[:1] if parameter.stride(0) == 0 else parameter[rows]


def _row_blocks(total: int) -> list[slice]:
    return [slice(start, start + 2 * BLOCK) for start in range(0, total, 2 * BLOCK)]
