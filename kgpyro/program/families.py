"""Posterior families: which distribution a guide samples at a site whose prior has a given support."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import power_spherical
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import biject_to, register_kl
from torch.distributions.transforms import ComposeTransform, StickBreakingTransform
from torch.distributions.utils import lazy_property

from kgpyro.errors import InputError
from kgpyro.kernels.gaussian import gaussian_draw
from kgpyro.randomness import seeded


class HypersphericalUniform(TorchDistribution):
    """The uniform distribution on the unit sphere of ``R^dim``."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, dim: int, validate_args: bool | None = None):
        self.like = torch.zeros(int(dim))  # what it draws has its device and dtype
        super().__init__(event_shape=self.like.shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> HypersphericalUniform:
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        normal = torch.randn(self._extended_shape(sample_shape), dtype=self.like.dtype, device=self.like.device)
        return F.normalize(normal, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.entropy().to(value).expand(value.shape[:-1])

    def entropy(self) -> Tensor:
        half = self.event_shape[0] / 2
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return self.like.new_tensor(area).expand(self.batch_shape)


class PowerSpherical(power_spherical.PowerSpherical, TorchDistributionMixin):
    """Power spherical with Pyro's shapes: unit vectors ``loc`` ``(*batch, d)``, concentration ``scale``."""

    arg_constraints: ClassVar = {"loc": constraints.sphere, "scale": constraints.positive}
    support = constraints.sphere

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None):
        super().__init__(loc, scale, validate_args=False)
        self._batch_shape, self._event_shape = scale.shape, loc.shape[-1:]

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> PowerSpherical:
        batch_shape = torch.Size(batch_shape)
        return PowerSpherical(self.loc.expand(batch_shape + self.event_shape), self.scale.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return self.loc * self.base_dist.marginal_t.mean.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """Of each coordinate, ``(*batch, d)``: the diagonal of De Cao & Aziz 2020, equation 15."""
        t = self.base_dist.marginal_t
        alpha, beta = t.base_dist.concentration1, t.base_dist.concentration0
        ratio = ((alpha + beta) / (2 * beta)).unsqueeze(-1)
        return t.variance.unsqueeze(-1) * ((1 - ratio) * self.loc.square() + ratio)


class ProjectedNormal(dist.ProjectedNormal):
    """Pyro's, with a density in every dimension: the direction of a draw from ``N(concentration, 1)`` in ``R^d``."""

    def log_prob(self, value: Tensor) -> Tensor:
        """``log ∫ N(r x | c, 1) r^{d-1} dr``, by the trapezoid rule around the integrand's mode, shape ``(*)``."""
        d, c = self.event_shape[0], self.concentration
        if d < 4:
            return super().log_prob(value)
        t = (c * value).sum(-1, keepdim=True)
        mode = (t + (t.square() + 4 * (d - 1)).sqrt()) / 2
        width = (1 + (d - 1) / mode.square()).rsqrt()
        r = (mode + torch.linspace(-9, 9, 73, dtype=t.dtype, device=t.device) * width).clamp_min(1e-30)
        integral = torch.logsumexp((d - 1) * r.log() - r.square() / 2 + r * t, -1) + (width.squeeze(-1) / 4).log()
        return integral - c.square().sum(-1) / 2 - d / 2 * math.log(2 * math.pi)


class Normal(dist.Normal):
    """Pyro's Normal, given the logarithm of its scale: drawn, and compared with a prior, in one pass."""

    def __init__(self, loc: Tensor, log_scale: Tensor):
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        torch.distributions.Distribution.__init__(self, self.loc.shape, validate_args=False)

    @lazy_property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> Normal:
        return Normal(self.loc.expand(batch_shape), self.log_scale.expand(batch_shape))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        if not shape:
            return self.loc + self.scale * torch.randn_like(self.loc)
        return gaussian_draw(self.loc.expand(shape), self.log_scale.expand(shape))


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    # the entropy of a power spherical from De Cao & Aziz 2020, equation 17
    return q.entropy().to(p.loc) - p.entropy()


def is_gaussian(fn: Any) -> bool:
    """Whether a distribution is a table of independent Normals, shape ``(n, d)``."""
    normal = isinstance(fn, dist.Independent) and isinstance(fn.base_dist, dist.Normal)
    return normal and len(fn.batch_shape) == len(fn.event_shape) == 1


def log_scale_of(normal: dist.Normal) -> Tensor:
    """The logarithm of a Normal's scale."""
    return normal.log_scale if isinstance(normal, Normal) else normal.scale.log()


@register_kl(torch.distributions.LowRankMultivariateNormal, torch.distributions.Independent)
def _kl_low_rank_independent(q: Any, p: Any) -> Tensor:
    if not isinstance(p.base_dist, dist.Normal):
        raise NotImplementedError
    m, s = p.base_dist.loc, p.base_dist.scale
    squares = ((q.variance + (q.loc - m).square()) / s.square()).sum(-1)
    capacitance = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # by the matrix determinant lemma
    log_det = 2 * capacitance + q._unbroadcasted_cov_diag.log().sum(-1)
    return (squares - q.event_shape[0] + 2 * s.log().expand_as(q.loc).sum(-1) - log_det) / 2


@register_kl(torch.distributions.Independent, torch.distributions.MultivariateNormal)
def _kl_independent_multivariate(q: Any, p: Any) -> Tensor:
    if not isinstance(q.base_dist, dist.Normal) or len(q.event_shape) != 1:
        raise NotImplementedError
    m, s, tril = q.base_dist.loc, q.base_dist.scale, p._unbroadcasted_scale_tril
    trace = (torch.cholesky_inverse(tril).diagonal(dim1=-2, dim2=-1) * s.square()).sum(-1)
    away = torch.linalg.solve_triangular(tril, (m - p.loc).unsqueeze(-1), upper=False).square().sum((-2, -1))
    logs = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - s.log().sum(-1)
    return (trace + away - q.event_shape[0]) / 2 + logs


@dataclass(frozen=True)
class Family:
    """A posterior family for latents of one support.

    Attributes:
        support: the prior's constraint: per coordinate, or the sphere, or the simplex.
    """

    support: constraints.Constraint

    def __deepcopy__(self, memo: dict) -> Family:
        return self  # constraints are known by identity

    @property
    def spherical(self) -> bool:
        return self.support is constraints.sphere

    def loc_size(self, size: int) -> int:
        """How many locations a latent of length ``size`` has."""
        return size - 1 if self.support is constraints.simplex else size

    def scale_size(self, size: int) -> int:
        """How many scales it has."""
        return 1 if self.spherical else self.loc_size(size)

    def __call__(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """The posterior, event ``(d,)``, of ``loc`` ``(*, d)`` and ``log_scale`` ``(*, d)``, on the sphere ``(*, 1)``.

        Both are unconstrained: what a network puts out.
        """
        if self.spherical:  # the scale is an angle: 1/scale² concentrates
            return PowerSpherical(self.onto_support(loc), (-2 * log_scale.squeeze(-1)).exp())
        if self.support is constraints.simplex:
            return self.push(Normal(loc, log_scale).to_event(1))
        return self.univariate(loc, log_scale).to_event(1)

    def univariate(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """The posterior of single numbers, batch shape that of ``loc``; not on the sphere or the simplex."""
        if self.support is constraints.real:
            return Normal(loc, log_scale)
        if self.support is constraints.positive:
            return dist.LogNormal(loc, log_scale.exp())
        return dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()), [biject_to(self.support)])

    def onto_support(self, loc: Tensor) -> Tensor:
        """Unconstrained numbers ``(*, loc_size)`` as a point of the support, ``(*, d)``."""
        if self.spherical:
            return loc / torch.linalg.vector_norm(loc, dim=-1, keepdim=True).clamp_min(1e-7)
        return loc if self.support is constraints.real else biject_to(self.support)(loc)

    def refuse_sphere(self, guide: str) -> None:
        """Raise InputError on the sphere, which is no image of ``R^d`` that :meth:`push` could reach."""
        if self.spherical:
            raise InputError(
                f"guide {guide} lives in R^d, not on the sphere of this prior; use lookup, mlp, features or point."
            )

    def push(self, base: TorchDistribution) -> TorchDistribution:
        """A distribution over ``R^loc_size``, event ``(loc_size,)``, pushed onto the support; not on the sphere."""
        real = self.support is constraints.real
        return base if real else dist.TransformedDistribution(base, [biject_to(self.support)])


def family_for(prior: TorchDistribution) -> Family:
    """The posterior family that fits the support of a prior. Raises InputError where there is none."""
    support = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support in (constraints.sphere, constraints.real, constraints.simplex, constraints.real_vector):
        return Family(constraints.real if support is constraints.real_vector else support)
    bounded = (constraints.interval, constraints.greater_than, constraints.greater_than_eq, constraints.less_than)
    if isinstance(support, bounded):
        return Family(_scalar(support))
    raise InputError(
        f"no posterior family fits the support {support} of the prior; "
        f"kgpyro has families for real, positive, interval, simplex and sphere supports."
    )


def _scalar(support: constraints.Constraint) -> constraints.Constraint:
    """The same bounds as plain numbers, where every coordinate shares them."""
    given = (("lower_bound", -math.inf), ("upper_bound", math.inf))
    bounds = [torch.as_tensor(getattr(support, name, absent)).unique() for name, absent in given]
    if max(map(len, bounds)) > 1:
        raise InputError(f"the prior's support {support} differs from coordinate to coordinate; give one for all.")
    low, high = map(float, bounds)
    if math.isfinite(low) and math.isfinite(high):
        return constraints.interval(low, high)
    if math.isfinite(low):
        return constraints.positive if low == 0 else constraints.greater_than(low)
    return constraints.less_than(high) if math.isfinite(high) else constraints.real


def posterior_mean(q: TorchDistribution) -> Tensor:
    """The mean of a posterior, shape ``(*, d)``: in closed form where there is one, else as :func:`_pushed_moments`."""
    try:
        return q.mean
    except NotImplementedError:
        return _pushed_moments(q)[0]


def posterior_variance(q: TorchDistribution) -> Tensor:
    """The variance of each coordinate, shape ``(*, d)``: in closed form, else as :func:`_pushed_moments`."""
    try:
        return q.variance
    except NotImplementedError:
        return _pushed_moments(q)[1]


DRAWS = 256  # for moments without any other way


def _pushed_moments(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and variance of a distribution pushed forward, deterministic.

    By Gauss–Hermite quadrature (Golub & Welsch 1969) where Gaussian coordinates are pushed one by one, or broken off a
    stick; else over ``DRAWS`` draws, the same in every call.
    """
    inner: Any = q.base_dist if isinstance(q, dist.Independent) else q
    base, transforms = inner.base_dist, inner.transforms
    gaussian = isinstance(base, (dist.Normal, dist.LowRankMultivariateNormal)) or is_gaussian(base)
    if gaussian and all(t.domain.event_dim == 0 for t in transforms):
        through = ComposeTransform(transforms)
        mean = quadrature(base, through)
        return mean, quadrature(base, lambda x: (through(x) - mean).square())
    if is_gaussian(base) and isinstance(transforms[0], StickBreakingTransform) and len(transforms) == 1:
        offset = torch.arange(base.event_shape[0], 0, -1).to(base.mean).log()

        def share(x: Tensor, sign: int, power: int) -> Tensor:
            return ((x - offset) * sign).sigmoid().pow(power)

        moments = []
        for power in (1, 2):
            broken, left = (quadrature(base, partial(share, sign=sign, power=power)) for sign in (1, -1))
            moments.append(F.pad(broken, (0, 1), value=1.0) * F.pad(left.cumprod(-1), (1, 0), value=1.0))
        return moments[0], moments[1] - moments[0].square()
    total = squares = torch.zeros(())
    with seeded(0), torch.no_grad():
        for _ in range(DRAWS):
            drawn = q.sample()
            total, squares = total + drawn, squares + drawn.square()
    return total / DRAWS, (squares / DRAWS - (total / DRAWS).square()).clamp_min(0)


def quadrature(base: TorchDistribution, function: Callable[[Tensor], Tensor], nodes: int = 32) -> Tensor:
    """``E[function]`` of each Gaussian coordinate, by Gauss–Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    loc, scale = base.mean, base.variance.sqrt()
    total = torch.zeros_like(loc)
    for x, w in zip(points, weights / weights.sum(), strict=True):
        total = total + w * function(loc + x * scale)
    return total
