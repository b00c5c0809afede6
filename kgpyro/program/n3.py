"""The nuclear 3-norm as a prior: density ``∝ exp(-λ |z|³ / 3)`` of each real or complex coordinate.

As a penalty of a point estimate it is N3 (Lacroix et al. 2018); as a prior it is a generalised normal of shape 3
(Bamler et al. 2019), lighter in the tails than a normal.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, register_kl

from kgpyro.program.families import quadrature

LOG_REAL = math.log(2 * math.gamma(4 / 3))  # of ∫ exp(-|x|³) dx
LOG_COMPLEX = math.log(2 * math.pi * math.gamma(2 / 3) / 3)  # of ∫ exp(-|z|³) dz over the plane


class N3(TorchDistribution):
    """Of a real coordinate, ``|x|³ ~ Gamma(1/3, λ/3)`` with a random sign; batch shape that of ``strength`` ``λ``."""

    arg_constraints: ClassVar = {"strength": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, strength: Tensor, validate_args: bool | None = None):
        self.strength = torch.as_tensor(strength)
        super().__init__(self.strength.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> N3:
        return N3(self.strength.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        sign = torch.randint(2, shape, device=self.strength.device) * 2 - 1
        return sign * _cube_root_of_gamma(1 / 3, self.strength, shape)

    def log_prob(self, value: Tensor) -> Tensor:
        rate = self.strength / 3
        return rate.log() / 3 - rate * value.abs().pow(3) - LOG_REAL

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.strength)

    @property
    def variance(self) -> Tensor:
        return (3 / self.strength).pow(2 / 3) / math.gamma(1 / 3)  # Γ(1) / Γ(1/3) · (λ/3)^(-2/3)


class ComplexN3(TorchDistribution):
    """Of complex coordinates, ``r³ ~ Gamma(2/3, λ/3)`` with a uniform angle.

    An event ``(d,)`` holds the real parts of ``d/2`` of them and then the imaginary ones, as ComplEx has them. A
    coordinate's strength is the mean of the two numbers in its places.
    """

    arg_constraints: ClassVar = {"strength": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, strength: Tensor, validate_args: bool | None = None):
        if strength.shape[-1] % 2:
            raise ValueError(f"latents of {strength.shape[-1]} numbers are no complex ones; give an even `dim`")
        self.strength = strength
        super().__init__(strength.shape[:-1], strength.shape[-1:], validate_args=validate_args)

    @property
    def each(self) -> Tensor:
        """The strength of each complex coordinate, ``(*, d/2)``."""
        return self.strength.unflatten(-1, (2, -1)).mean(-2)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> ComplexN3:
        return ComplexN3(self.strength.expand(torch.Size(batch_shape) + self.event_shape), validate_args=False)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.each.shape
        radius = _cube_root_of_gamma(2 / 3, self.each, shape)
        angle = 2 * math.pi * torch.rand(shape, dtype=radius.dtype, device=radius.device)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        rate, radius = self.each / 3, torch.linalg.vector_norm(value.unflatten(-1, (2, -1)), dim=-2)
        return (rate.log() * (2 / 3) - rate * radius.pow(3) - LOG_COMPLEX).sum(-1)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.strength)

    @property
    def variance(self) -> Tensor:
        each = (3 / self.each).pow(2 / 3) * (math.gamma(4 / 3) / math.gamma(2 / 3) / 2)  # half of E r²
        return torch.cat([each, each], -1)


def _cube_root_of_gamma(shape: float, strength: Tensor, size: torch.Size) -> Tensor:
    """``g^(1/3)`` of ``g ~ Gamma(shape, strength / 3)``, reparameterised."""
    standard = Gamma(torch.full(size, shape, dtype=strength.dtype, device=strength.device), 1.0, validate_args=False)
    return (3 * standard.sample() / strength).pow(1 / 3)


@register_kl(torch.distributions.Normal, N3)
def _kl_normal_n3(q: torch.distributions.Normal, p: N3) -> Tensor:
    rate, log_scale = p.strength / 3, q.scale.log()
    cube = expected_cubes(q.loc, q.scale)
    return rate * cube - rate.log() / 3 + LOG_REAL - log_scale - math.log(2 * math.pi * math.e) / 2


def expected_cubes(mean: Tensor, scale: Tensor) -> Tensor:
    """``E|x|³`` of Gaussians."""
    ratio = mean / (math.sqrt(2) * scale)
    cube = mean * (mean.square() + 3 * scale.square()) * ratio.erf()
    return cube + math.sqrt(2 / math.pi) * scale * (mean.square() + 2 * scale.square()) * (-ratio.square()).exp()


def expected_radii_cubed(mean: Tensor, scale: Tensor) -> Tensor:
    """``E|z|³`` of complex coordinates with independent Gaussian parts, ``(n, d) -> (n, d/2)``, by quadrature."""
    parts = zip(mean.chunk(2, -1), scale.chunk(2, -1), strict=True)
    real, imaginary = (torch.distributions.Normal(m, s, validate_args=False) for m, s in parts)
    return quadrature(real, lambda x: quadrature(imaginary, lambda y: torch.hypot(x, y).pow(3), 16), 16)
