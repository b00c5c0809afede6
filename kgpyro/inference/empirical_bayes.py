"""Learned scales of priors in closed form, given a guide: the M-step of Bamler, Salehi & Mandt (2019).

The expected log density of a prior is highest where a statistic ``t`` of its latents has its mean under the guide:

    normal        scale = √t        t = (h - loc)²
    n3            strength = 1/t    t = |h|³
    complex_n3    strength = 1/t    t = |z|³ / 2, at both places of a complex coordinate z
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to

from kgpyro.errors import InputError
from kgpyro.program.batches import Batches
from kgpyro.program.families import posterior_mean, posterior_variance
from kgpyro.program.n3 import N3, ComplexN3, expected_cubes, expected_radii_cubed
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide

LEARNED = {dist.Normal: ("scale", 0.5), N3: ("strength", -1.0), ComplexN3: ("strength", -1.0)}  # = t ** power
DAMPING = 0.5  # of t: a step goes this share of the way


class ClosedForm:
    """Sets the learned scales of a setting's priors, which are then no longer learned by gradients.

    One per symbol begins with ``1/t`` in proportion to the training facts that the symbol is in (at least 1), around
    the value that the prior says.

    Args:
        kg: the setting.
        guide: of independent coordinates with Gaussian marginals, else of the Gaussian that has their moments.
        batches: of the fit.

    Raises:
        InputError: the guide is a point estimate, whose scale would fall to nothing, or there is nothing to learn so.
    """

    def __init__(self, kg: Setting, guide: Guide, batches: Batches):
        self.kg, self.guide = kg, guide
        self.learned: dict[str, tuple[str, float]] = {}
        for kind in kg.families:
            prior = kg.symbol_prior(kind)
            name, power = LEARNED.get(type(_of_coordinates(prior.distribution(kg.start, ...))), ("", 1.0))
            if name in prior.learned:
                self.learned[kind] = name, power
            elif prior.learned:
                raise InputError(
                    f"`learn_by` em learns the scale of normal and the strength of n3 and complex_n3, and not the "
                    f"parameters of the {kind} prior {prior.prior.text}; leave it out."
                )
        if not self.learned:
            raise InputError("`learn_by` em has nothing to learn; give a `prior` such as normal(scale=learn).")
        if guide.point:
            raise InputError("`learn_by` em goes by the spread of the posterior, and guide point has none.")
        counts = batches.occurrences()
        for kind, (name, _) in self.learned.items():
            prior = kg.symbol_prior(kind)
            value, per = prior.learned[name].requires_grad_(False), prior.unknown[name].per
            if guide.per_fact and per != "symbol":
                raise InputError(
                    f"where latents are of facts (lfm), `learn_by` em learns one {name} per symbol; write "
                    f"learn_per_symbol, or leave it out."
                )
            if per == "symbol":
                n = counts[kind].clamp_min(1).to(value).unsqueeze(-1)
                self._set(kind, self._statistic(kind) * n.mean() / n)

    @torch.no_grad()
    def step(self, weights: Mapping[str, Tensor] | None = None, damping: float = DAMPING) -> None:
        """Go a share of the way to the maximum, given the guide as it is.

        Args:
            weights: what the KL of each symbol counts for, by kind, where not 1.
            damping: the share.
        """
        for kind, (name, _) in self.learned.items():
            prior = self.kg.symbol_prior(kind)
            found = self._expected(kind, _of_coordinates(prior.distribution(self.kg.start, ...)))
            weight = (weights or {}).get(kind)
            weight = found.new_ones(len(found), 1) if weight is None else weight.unsqueeze(-1)
            if (per := prior.unknown[name].per) != "symbol":
                found = (found * weight).sum(0) / weight.sum()
            best = found if per == "dim" else found.mean(-1, keepdim=per == "symbol")
            self._set(kind, self._statistic(kind).lerp(best, damping))

    def _expected(self, kind: str, prior: TorchDistribution) -> Tensor:
        """The mean of ``t`` at every place of every symbol, ``(n, d)``; of a mixture over its members."""
        total: Tensor | float = 0.0
        for number in range(self.guide.members):
            with self.guide.using(number):
                q = self.guide.posterior(kind, ...)
            mean, variance = posterior_mean(q), posterior_variance(q)
            if isinstance(prior, ComplexN3):
                total = total + expected_radii_cubed(mean, variance.sqrt()).tile(2) / 2
            elif isinstance(prior, N3):
                total = total + expected_cubes(mean, variance.sqrt())
            else:
                total = total + (mean - prior.loc).square() + variance
        return torch.as_tensor(total) / self.guide.members

    def _statistic(self, kind: str) -> Tensor:
        """The mean of ``t`` for which the present values are the best."""
        name, power = self.learned[kind]
        return self.kg.symbol_prior(kind).values()[name].detach() ** (1 / power)

    @torch.no_grad()
    def _set(self, kind: str, statistic: Tensor) -> None:
        name, power = self.learned[kind]
        prior = self.kg.symbol_prior(kind)
        constraint = prior.unknown[name].constraint
        prior.learned[name].copy_(biject_to(constraint).inv(statistic.clamp_min(1e-30) ** power))


def _of_coordinates(prior: TorchDistribution) -> TorchDistribution:
    return prior.base_dist if isinstance(prior, dist.Independent) else prior
