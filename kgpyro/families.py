"""Posterior families: which distribution a guide samples at a site whose prior has a given support.

A family turns a location and a scale in *unconstrained* space into a distribution on the support:

| support of the prior | posterior family |
|---|---|
| real | Normal |
| positive | LogNormal |
| any other interval or half line | a Normal pushed through ``biject_to(support)`` |
| the unit sphere | power spherical (De Cao & Aziz 2020) |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import power_spherical
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import biject_to, register_kl

from kgpyro.errors import InputError


class HypersphericalUniform(power_spherical.HypersphericalUniform, TorchDistributionMixin):
    """The uniform distribution on the unit sphere of ``R^dim``, with Pyro's shapes."""

    has_rsample = True
    support = constraints.sphere

    def __init__(self, dim: int, validate_args: bool | None = None, batch_shape: torch.Size = torch.Size()):
        torch.distributions.Distribution.__init__(self, batch_shape, torch.Size([int(dim)]), validate_args=False)
        self.dim = int(dim)
        self.device, self.dtype = torch.device("cpu"), torch.get_default_dtype()

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> HypersphericalUniform:
        new = HypersphericalUniform(self.dim, batch_shape=torch.Size(batch_shape))
        new.device, new.dtype = self.device, self.dtype
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return super().rsample(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return -self.entropy().to(value).expand(value.shape[:-1])

    def entropy(self) -> Tensor:
        half = torch.tensor(self.dim / 2, dtype=torch.float64)
        area = np.log(2) + half * np.log(np.pi) - torch.lgamma(half)
        return area.to(device=self.device, dtype=self.dtype).expand(self.batch_shape)


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
    def coordinate_variance(self) -> Tensor:
        """The diagonal of the covariance (De Cao & Aziz 2020, equation 15), shape ``(*batch, d)``."""
        t = self.base_dist.marginal_t
        alpha, beta = t.base_dist.concentration1, t.base_dist.concentration0
        ratio = ((alpha + beta) / (2 * beta)).unsqueeze(-1)
        return t.variance.unsqueeze(-1) * ((1 - ratio) * self.loc.square() + ratio)


class Normal(dist.Normal):
    """Pyro's Normal, drawn in one pass and with half the memory."""

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> Normal:
        return Normal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise)


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    # the entropy of a power spherical from De Cao & Aziz 2020, equation 17
    return q.entropy().to(p.loc) - p.entropy()


def is_gaussian(distribution: Any) -> bool:
    """Whether a distribution is a table of independent Normals."""
    return isinstance(distribution, dist.Independent) and isinstance(distribution.base_dist, dist.Normal)


@dataclass(frozen=True)
class Family:
    """A posterior family for latents of one support.

    Attributes:
        support: the prior's constraint, per coordinate (or the sphere).
    """

    support: constraints.Constraint

    @property
    def spherical(self) -> bool:
        return self.support is constraints.sphere

    def scale_size(self, size: int) -> int:
        """How many scales a latent of length ``size`` has."""
        return 1 if self.spherical else size

    def __call__(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The posterior, event ``(d,)``, of ``loc`` ``(*, d)`` and ``scale`` ``(*, d)`` (on the sphere ``(*, 1)``)."""
        if self.spherical:
            unit = loc / torch.linalg.vector_norm(loc, dim=-1, keepdim=True).clamp_min(1e-7)
            return PowerSpherical(unit, scale.squeeze(-1).pow(-2))  # scale is an angle: concentration 1/scale²
        if self.support is constraints.real:
            return Normal(loc, scale).to_event(1)
        if self.support is constraints.positive:
            return dist.LogNormal(loc, scale).to_event(1)
        return dist.TransformedDistribution(dist.Normal(loc, scale), [biject_to(self.support)]).to_event(1)


def family_for(prior: TorchDistribution) -> Family:
    """The posterior family that fits the support of a prior. Raises InputError where there is none."""
    support = prior.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.sphere or support is constraints.real:
        return Family(support)
    bounded = (constraints.interval, constraints.greater_than, constraints.greater_than_eq, constraints.less_than)
    if isinstance(support, bounded):
        return Family(_scalar(support))
    raise InputError(
        f"no posterior family fits the support {support} of the prior; "
        f"kgpyro has families for real, positive, interval and sphere supports."
    )


def _scalar(support: constraints.Constraint) -> constraints.Constraint:
    """The same bounds as plain numbers, where every coordinate shares them."""
    bounds = []
    for name, absent in (("lower_bound", -math.inf), ("upper_bound", math.inf)):
        bound = torch.as_tensor(getattr(support, name, absent)).flatten()
        if not bool((bound == bound[0]).all()):
            raise InputError(f"the prior's support {support} differs from coordinate to coordinate; give one for all.")
        bounds.append(float(bound[0]))
    low, high = bounds
    if math.isfinite(low) and math.isfinite(high):
        return constraints.interval(low, high)
    if math.isfinite(low):
        return constraints.positive if low == 0 else constraints.greater_than(low)
    return constraints.less_than(high) if math.isfinite(high) else constraints.real


def posterior_mean(q: TorchDistribution) -> Tensor:
    """The mean of a posterior of these families, shape ``(*, d)``: in closed form, or by :func:`_quadrature`."""
    try:
        return q.mean
    except NotImplementedError:
        return _quadrature(q, lambda value: value)


def posterior_variance(q: TorchDistribution) -> Tensor:
    """The variance of each coordinate, shape ``(*, d)``: in closed form, or by :func:`_quadrature`."""
    if isinstance(q, PowerSpherical):
        return q.coordinate_variance
    try:
        return q.variance
    except NotImplementedError:
        mean = _quadrature(q, lambda value: value)
        return _quadrature(q, lambda value: (value - mean).square())


def _quadrature(q: TorchDistribution, function: Callable[[Tensor], Tensor], nodes: int = 32) -> Tensor:
    """``E_q[function]`` of a pushed-forward Normal by Gauss–Hermite quadrature (Golub & Welsch 1969); deterministic."""
    inner = q.base_dist  # Independent(TransformedDistribution(Normal, …), 1)
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    total = torch.zeros_like(inner.base_dist.loc)
    for x, w in zip(points, weights / weights.sum(), strict=True):
        value = inner.base_dist.loc + x * inner.base_dist.scale
        for transform in inner.transforms:
            value = transform(value)
        total = total + w * function(value)
    return total
