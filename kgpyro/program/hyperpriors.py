"""The prior of one kind of symbol at work in a model: its parameters fixed, learned, or drawn from priors of their own.

A parameter is learned by gradient, along with the guide: at its optimum the bound is that of empirical Bayes (for a
Normal's scale ``s² = mean(μ² + σ²)`` over the posteriors it serves; Bamler et al. 2019), and the same step serves every
parameter of every family, with and without subsampling, where a closed form exists for few of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import EllipsisType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn.functional import embedding

from kgpyro.program.priors import Prior, Unknown


class SymbolPrior(nn.Module):
    """The prior of all latents of a kind.

    Attributes:
        unknown: all parameters that are not numbers, ``scale_scale`` before the ``scale`` that it is of.
        learned: unconstrained values of the learned parameters, by name.
    """

    def __init__(self, kind: str, prior: Prior, count: int, size: int):
        super().__init__()
        self.kind, self.prior, self.count, self.size = kind, prior, count, size
        self.sparse = False
        self.learned = nn.ParameterDict()
        self.unknown = dict(_named(prior, ""))
        for name, unknown in self.unknown.items():
            if unknown.prior is None and unknown.start is not None:
                start = biject_to(unknown.constraint).inv(torch.tensor(unknown.start))
                self.learned[name] = nn.Parameter(start.expand(unknown.shape(count, size)).clone())
        self._fixed: dict[tuple, TorchDistribution] = {}

    @property
    def latents(self) -> dict[str, tuple[Prior, tuple[int, ...]]]:
        """The prior and shape of each parameter that is a latent itself, by its site."""
        found = ((name, u.prior, u.shape(self.count, self.size)) for name, u in self.unknown.items())
        return {f"{self.kind}_{name}": (prior, shape) for name, prior, shape in found if prior is not None}

    def values(self) -> dict[str, Tensor]:
        """The learned parameters, constrained, by name."""
        return {name: biject_to(self.unknown[name].constraint)(value) for name, value in self.learned.items()}

    def draw(self, like: Tensor) -> dict[str, Tensor]:
        """Sample the parameters that are latents, at their sites; to be called outside any plate."""
        drawn: dict[str, Tensor] = {}
        for name, unknown in self.unknown.items():
            if unknown.prior is not None:
                shape = unknown.shape(self.count, self.size)
                own = {key: self._value(f"{name}_{key}", drawn, ...) for key in unknown.prior.unknown}
                drawn[name] = pyro.sample(f"{self.kind}_{name}", unknown.prior.value(shape, like, own))
        return drawn

    def distribution(
        self, like: Tensor, symbols: Tensor | EllipsisType, drawn: dict[str, Tensor] | None = None
    ) -> TorchDistribution:
        """The prior of the given symbols: event shape ``(d,)``; batch shape ``(n,)``, or ``()`` where all share one.

        Latent parameters are at their ``drawn`` values, or else where their search starts.
        """
        if self.prior.unknown:
            known = self.learned.keys() | (drawn or {}).keys()
            values = {k: self._value(k, drawn or {}, symbols) for k in self.prior.unknown if k in known}
            return self.prior.distribution(self.size, like, values)
        key = like.device, like.dtype
        if key not in self._fixed:
            self._fixed[key] = self.prior.distribution(self.size, like)
        fixed = self._fixed[key]
        expands_in_place = isinstance(getattr(fixed, "base_dist", None), dist.ExpandedDistribution)
        return copy.deepcopy(fixed) if expands_in_place else fixed

    def _value(self, name: str, drawn: dict[str, Tensor], symbols: Tensor | EllipsisType) -> Tensor:
        unknown = self.unknown[name]
        if isinstance(symbols, EllipsisType) or unknown.per != "symbol":
            return drawn[name] if name in drawn else biject_to(unknown.constraint)(self.learned[name])
        if name in drawn:
            return drawn[name][symbols]
        return biject_to(unknown.constraint)(embedding(symbols, self.learned[name], sparse=self.sparse))


def _named(prior: Prior, prefix: str) -> Iterator[tuple[str, Unknown]]:
    for key, unknown in prior.unknown.items():
        name = f"{prefix}{key}"
        if unknown.prior is not None:
            yield from _named(unknown.prior, f"{name}_")
        yield name, unknown
