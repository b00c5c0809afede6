"""The exact all-candidates log-likelihood, in one pass over the candidate table, gradients included.

For ``b`` query vectors ``u`` and candidates ``h_c`` the log-likelihood of all facts of each query is

    ℓ_b = Σ_{c observed} s_bc - Σ_c softplus(s_bc),      s_bc = ⟨u_b, h_c⟩ + intercept_b.

Its derivative with respect to a score is ``1[observed] - sigmoid(s_bc)``: known as soon as the score is. So one walk
over blocks of candidates computes value and gradients together, and a ``(b, E)`` matrix never exists: memory is that
of the tables. With Gaussian candidates ``N(μ_c, σ_c²)`` the score itself is drawn, from ``N(⟨u, μ_c⟩, ⟨u², σ_c²⟩)``.

A score may be a negative Euclidean distance instead, by products too: ``‖u - h‖² = ‖u‖² - 2⟨u, h⟩ + ‖h‖²``.

A fact whose label ``y`` is between 0 and 1 has ``y s`` in the first sum.

Where a true fact is observed with probability ``κ < 1`` only, an unobserved one's ``-softplus(s)`` becomes
``log(1 - κ sigmoid(s)) = softplus(s + log(1 - κ)) - softplus(s)``, and an observed one has ``log κ`` on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kgpyro.kernels.gaussian import autocast_dtype, fast_exp

BLOCK = 1536  # candidates at a time: with fewer, threads wait for each other more often; more leave the cache
GPU_BLOCK = 1 << 15  # a GPU wants few and large launches
FACTORS = 16  # of a product whose logarithm stands for as many softplus
Block = tuple[int, Tensor, Tensor, Any, Any, Any]  # of candidates, as Walk.blocks tells
Noise = Callable[[int, int], Tensor]


def all_candidates_log_prob(
    query: Tensor,
    loc: Tensor,
    log_scale: Tensor | None,
    intercept: Tensor,
    observed: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None],
    excluded: Tensor | None = None,
    completeness: float = 1.0,
    never_missing: Tensor | None = None,
    weight: Tensor | None = None,
    span: tuple[int, int] | None = None,
    distance: bool = False,
) -> Tensor:
    """The log-likelihood of all facts of each query, shape ``(b,)``, or its weighted sum over queries.

    With weights value and gradients take one walk, without them two. Under autocast the matrix products run in its
    dtype and accumulate in float32; everything else stays as it is.

    Args:
        query: query vectors, shape ``(b, d)``.
        loc: candidates, shape ``(E, d)``; their means where ``log_scale`` is given.
        log_scale: logarithms of standard deviations, shape ``(E, d)``, for scores drawn on their own; None for
            candidates as they are. The observed facts' linear part is then its exact mean over the draw.
        intercept: shape ``(b,)``.
        observed: rows of ``query`` and candidate ids of the observed facts, both ``(p,)``; and their labels ``(p,)``,
            which are 1 where there are none.
        excluded: one candidate per query that is left out of the sum over all candidates, shape ``(b,)``.
        completeness: ``κ``, the probability with which a true fact is observed.
        never_missing: one candidate per query, shape ``(b,)``, whose fact is observed if it is true.
        weight: shape ``(b,)``.
        span: where the candidates are some of all that there are, the number of the first and how many all are: their
            noise is then that of the same candidates among all.
        distance: whether scores are ``-‖u_b - h_c‖ + intercept_b``; these are not drawn, and take no autocast.
    """
    device = query.device.type
    half = None if distance else autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        first, total = span or (0, len(loc))
        noise = None if log_scale is None else _noise(query, first, total)
        walk = Walk(query, loc, log_scale, noise, half, distance, intercept, first)
        rows, columns, labels = (*observed, None)[:3]
        labels = torch.ones_like(rows, dtype=query.dtype) if labels is None else labels
        facts = _Facts(walk, intercept, rows, columns, labels, excluded, completeness, never_missing)
        return _AllCandidates.apply(query, loc, log_scale, intercept, weight, facts)


def block_size(like: Tensor) -> int:
    return BLOCK if like.device.type == "cpu" else GPU_BLOCK


def _noise(query: Tensor, first: int, total: int) -> Noise:
    """Standard normals of the scores of any block of candidates.

    Every block takes the same normals under fresh signs: each score's noise is exactly standard normal, any two of a
    query are uncorrelated, and a step draws ``b · BLOCK`` numbers instead of ``b · E``.
    """
    size = block_size(query)
    b, blocks = len(query), -(-total // size)
    normal = torch.randn(b, min(size, total), dtype=query.dtype, device=query.device)
    signs = torch.ones_like(normal[:, :1])
    if blocks > 1:
        signs = torch.randint(0, 2, (b, blocks), device=query.device).to(query.dtype).mul_(2).sub_(1)

    def noise(start: int, count: int) -> Tensor:
        block, place = divmod(first + start, size)
        return normal[:, place : place + count] * signs[:, block, None]

    return noise


@dataclass(frozen=True)
class Walk:
    """A walk over blocks of candidates. The arguments are as of :func:`all_candidates_log_prob`.

    Attributes:
        noise: standard normals ``(b, count)`` of the scores from candidate ``start`` on, where these are drawn.
        half: the dtype of products; None for that of their factors.
        first: the number of the first candidate among all.
        per_nat: of the unit that scores are in, how many a nat has.
    """

    query: Tensor
    loc: Tensor
    log_scale: Tensor | None
    noise: Noise | None
    half: torch.dtype | None
    distance: bool
    intercept: Tensor | None = None
    first: int = 0
    per_nat: float = 1.0

    def blocks(self) -> Iterator[Block]:
        """First candidate, scores ``(b, c)``, candidates; where scores are drawn, variances, deviation and noise; of
        distances the distances for a deviation."""
        half, scaled = self.half, not self.distance and self.per_nat != 1
        query = self.query * self.per_nat if scaled else self.query
        squares = query.square().sum(-1, keepdim=True) if self.distance else None
        left, table = _cast(query, half), _cast(self.loc, half)
        squared = None if self.log_scale is None else _cast(query.square(), half)
        size = block_size(query)
        for end in range(size - self.first % size, len(table) + size, size):  # of the blocks of all candidates
            start = max(0, end - size)
            part, distances = table[start:end], None
            if squares is None:
                scores = (left @ part.mT).to(query.dtype)
            else:
                distances = torch.addmm(squares + part.square().sum(-1), left, part.mT, alpha=-2)
                rounding = 4 * torch.finfo(table.dtype).eps * squares  # what it leaves of 0
                scores = distances.clamp_min_(rounding).sqrt_() * -self.per_nat
            if self.intercept is not None:
                scores.add_(self.intercept.unsqueeze(-1))
            if self.log_scale is None or self.noise is None or squared is None:
                yield start, scores, part, None, distances, None
                continue
            variance = _cast(fast_exp(self.log_scale[start:end], 2), half)
            deviation = (squared @ variance.mT).to(scores.dtype).clamp_min_(1e-20).sqrt_()
            noise = self.noise(start, len(part))
            yield start, scores.addcmul_(deviation, noise), part, variance, deviation, noise


class ScoreGradients:
    """The gradients of ``-Σ_bc weight_b p_bc s_bc`` for queries, candidates and log-scales, block after block.

    ``p`` are taken for constants.
    """

    def __init__(self, walk: Walk, weight: Tensor):
        self.walk, self.weight = walk, weight
        query, half = walk.query, walk.half
        weighted = query * -weight.unsqueeze(-1)
        self.right = _cast(weighted, half)
        self.d_query, self.d_loc = torch.zeros_like(query), torch.empty_like(walk.loc)
        self.d_log_scale = None
        if walk.log_scale is not None:
            self.right_squared = _cast(walk.per_nat * weighted * query, half)
            self.d_squared, self.d_log_scale = torch.zeros_like(query), torch.empty_like(walk.log_scale)

    def subtract(self, p: Tensor, block: Block) -> None:
        """Those of a block, given ``p`` of its scores, shape ``(b, c)``; its noise is overwritten."""
        start, _, part, variance, deviation, noise = block
        rows, walk = slice(start, start + len(part)), self.walk
        if self.d_log_scale is not None:
            slope = _cast(noise.mul_(p).div_(deviation), walk.half)  # 2 p ds/d variance, in nats
            self.d_squared += slope @ variance
            _product(slope.mT, self.right_squared, self.d_log_scale[rows]).mul_(variance)
        if walk.distance:  # of which the gradient for u_b is Σ_c p_bc (u_b - h_c) / ‖u_b - h_c‖
            p = p / deviation
            self.d_query.addcmul_(walk.query, p.sum(-1, keepdim=True))
        p = _cast(p, walk.half)
        self.d_query -= p @ part
        _product(p.mT, self.right, self.d_loc[rows])
        if walk.distance:
            self.d_loc[rows].addcmul_(part, (self.weight.to(p) @ p).unsqueeze(-1))

    def total(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """For ``query``, ``loc`` and ``log_scale``."""
        if self.d_log_scale is not None:
            self.d_query.addcmul_(self.walk.query, self.d_squared, value=-self.walk.per_nat)
        self.d_query *= self.weight.unsqueeze(-1)
        return self.d_query, self.d_loc, self.d_log_scale


@dataclass(frozen=True)
class _Facts:
    """The likelihood of the facts whose scores a walk makes, their noise already drawn."""

    walk: Walk
    intercept: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    excluded: Tensor | None
    completeness: float
    never_missing: Tensor | None

    def value(self) -> Tensor:
        """``ℓ``, shape ``(b,)``."""
        total = self._observed(self.walk.loc.index_select(0, self.columns))
        for start, scores, *_ in self.walk.blocks():
            drop(scores, start, None, self.excluded)
            total -= F.softplus(scores).sum(-1)
            if self.completeness < 1:
                total += F.softplus(self._missing(scores, start)).sum(-1)
        return total

    def value_and_gradients(self, weight: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """``ℓ``, and the gradients of ``Σ_b weight_b ℓ_b`` for query, loc, log_scale and intercept."""
        answers = self.walk.loc.index_select(0, self.columns)
        total = self._observed(answers)
        gradients = ScoreGradients(self.walk, weight)
        d_intercept = torch.zeros_like(self.intercept).index_add_(0, self.rows, self.labels)
        for block in self.walk.blocks():
            start, scores, *_ = block
            drop(scores, start, None, self.excluded)
            missing = self._missing(scores, start) if self.completeness < 1 else None
            p, softplus = _sigmoid_and_softplus(scores)
            total -= softplus
            if missing is not None:
                missing, softplus = _sigmoid_and_softplus(missing)
                total += softplus
                p.sub_(missing)
            d_intercept -= p.sum(-1)
            gradients.subtract(p, block)
        d_query, d_loc, d_log_scale = gradients.total()
        to_loc, to_query = self.walk.query.index_select(0, self.rows), answers
        if self.walk.distance:
            to_loc = F.normalize(to_loc - answers)
            to_query = -to_loc
        counted = (weight[self.rows] * self.labels).unsqueeze(-1)
        d_query.index_add_(0, self.rows, to_query * counted)
        d_loc.index_add_(0, self.columns, to_loc * counted)
        return total, [d_query, d_loc, d_log_scale, d_intercept * weight]

    def _observed(self, answers: Tensor) -> Tensor:
        """``Σ_{c observed} (s_bc + log κ)`` without noise, shape ``(b,)``, given the observed candidates ``(p, d)``."""
        queries = self.walk.query[self.rows]
        scores = -(queries - answers).norm(dim=-1) if self.walk.distance else (queries * answers).sum(-1)
        scores = scores + self.intercept[self.rows]
        if self.completeness < 1:
            scores += math.log(self.completeness)
            if self.never_missing is not None:
                scores -= math.log(self.completeness) * (self.never_missing[self.rows] == self.columns)
        return torch.zeros_like(self.intercept).index_add_(0, self.rows, scores * self.labels)

    def _missing(self, scores: Tensor, start: int) -> Tensor:
        """``s + log(1 - κ)`` of a block's facts, minus infinity where a fact is not missing."""
        missing = scores + math.log1p(-self.completeness)
        drop(missing, start, self.rows, self.columns)
        drop(missing, start, None, self.never_missing)
        return missing


def _cast(x: Tensor, half: torch.dtype | None) -> Tensor:
    return x if half is None else x.to(half)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` in ``out``, whatever its dtype."""
    return torch.mm(a, b, out=out) if out.dtype == a.dtype else out.copy_(a @ b)


def _sigmoid_and_softplus(scores: Tensor) -> tuple[Tensor, Tensor]:
    """``sigmoid(s)``, shape ``(b, c)``, and ``Σ_c softplus(s_bc)``, shape ``(b,)``. ``scores`` are overwritten.

    A softplus costs four times what a sigmoid does. By ``softplus(s) = max(s, 0) - log max(p, 1 - p)``, with ``p`` its
    sigmoid, one logarithm serves ``FACTORS`` of them, whose product cannot vanish, as each is at least ½.
    """
    p = scores.sigmoid()
    if scores.shape[1] % FACTORS:
        return p, F.softplus(scores).sum(-1)
    total = scores.clamp_min_(0).sum(-1)
    factors = torch.sub(1, p, out=scores).clamp_min_(p).unflatten(1, (FACTORS, -1))
    return p, total.sub_(factors.prod(1).log_().sum(-1))


def drop(scores: Tensor, start: int, rows: Tensor | None, columns: Tensor | None) -> None:
    """Minus infinity for candidates ``(n,)`` of a block's rows ``(n,)``, or one of each row; in place."""
    if columns is not None:
        rows = torch.arange(len(scores), device=scores.device) if rows is None else rows
        within, size = columns - start, scores.shape[1]
        nothing = scores.new_zeros(())
        added = torch.where((within >= 0) & (within < size), nothing - torch.inf, nothing)  # no wait for the device
        scores.index_put_((rows, within.clamp(0, size - 1)), added, accumulate=True)


class _AllCandidates(torch.autograd.Function):
    """Value and, of a weighted sum, its gradients in ``forward``; without weights these wait for ``backward``'s."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, loc: Tensor, log_scale: Any, intercept: Tensor, weight: Tensor | None, facts: _Facts
    ) -> Tensor:
        ctx.facts, ctx.gradients = facts, None
        if weight is None or not any(ctx.needs_input_grad):
            value = facts.value()
        else:
            value, ctx.gradients = facts.value_and_gradients(weight)
        return value if weight is None else (value * weight).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so good for one backward pass
        if gradients is None:
            _, gradients = ctx.facts.value_and_gradients(upstream)
        else:
            gradients = [None if g is None else g.mul_(upstream) for g in gradients]
        return *gradients, None, None
