"""What every guide is: a distribution over latents for every symbol, sampled at the model's sites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.program.batches import Batch
from kgpyro.program.priors import Prior
from kgpyro.program.setting import Setting


class Guide(nn.Module):
    """An amortised guide ``q(h | symbol)``. A subclass says what :meth:`posterior` is; the sites follow from it.

    A guide of your own, given as ``--guide package.module:MyGuide``, is such a subclass, called with the two arguments
    below.

    Args:
        kg: the setting: ``kg.count(kind)`` symbols, latents of length ``kg.size(kind)``, and ``kg.family(kind)``, which
            fits the prior's support, for each kind ``"entity"`` and ``"relation"``.
        sites: names of the model's latent sites.

    Attributes:
        families: the posterior family of each kind, ``"entity"`` and ``"relation"``.
        inductive: whether entities are known by ``kg.features`` alone, so that new ones have posteriors too; such a
            guide keeps them as its buffer ``features``.
        point: whether it gives every latent a value instead of a distribution, so that what is optimised is no bound.
        members: of how many equally weighted guides it is a mixture; :meth:`posterior` is that of number ``member``.
    """

    inductive = point = False
    members, member = 1, 0

    def __init__(self, kg: Setting, sites: set[str]):
        super().__init__()
        self.sites, self.families = sites, kg.families
        self.hyper = nn.ModuleDict({site: _HyperPosterior(*found) for site, found in kg.hyper_latents.items()})

    def posterior(self, kind: str, symbols: Tensor | EllipsisType) -> TorchDistribution:
        """``q(h | symbols)`` for ids of a kind: batch shape ``(n,)``, event shape ``(d,)``."""
        raise NotImplementedError

    @contextmanager
    def using(self, number: int) -> Iterator[None]:
        """Have :meth:`posterior` be that of member ``number`` of a mixture, counted round and round."""
        before, self.member = self.member, number % self.members
        try:
            yield
        finally:
            self.member = before

    def forward(self, kg: Setting, batch: Batch) -> None:
        """Sample every latent site of the model, in the plates the model has it in."""
        self.sample_hyper()
        for plate, sites in batch.frames():
            if present := sites.keys() & self.sites:
                with plate():
                    for site in sorted(present):
                        pyro.sample(site, self.posterior(*sites[site]))

    def sample_hyper(self) -> None:
        """Sample the parameters of the priors that are latents themselves, each from a posterior of its own."""
        for site, posterior in self.hyper.items():
            pyro.sample(site, posterior())


class _HyperPosterior(nn.Module):
    """A location and a log-scale for every value of a prior's parameter, in the family that fits its own prior."""

    def __init__(self, prior: Prior, shape: tuple[int, ...]):
        super().__init__()
        self.family = prior.family(1)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.full(shape, -1.0))

    def forward(self) -> TorchDistribution:
        return self.family.univariate(self.loc, self.log_scale).to_event(self.loc.dim())
