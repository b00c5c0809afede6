"""An inductive guide: entities are known by their features alone, so that it has a posterior for new ones too."""

from __future__ import annotations

from types import EllipsisType

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.guide import Guide
from kgpyro.guides.lookup import LookupTable
from kgpyro.guides.mlp import network
from kgpyro.setting import Setting


class Features(Guide):
    """``q(h | features of e)`` for entities, through ``hidden`` units; a table for relations.

    Raises InputError where no features are given.
    """

    inductive = True
    features: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, kg: Setting, sites: set[str], hidden: int = 128):
        super().__init__(kg, sites)
        if kg.features is None:
            raise InputError("guide features knows entities by their features; give them with --features FILE.")
        self.register_buffer("features", kg.features)
        self.register_buffer("centre", kg.features.mean(0))
        self.register_buffer("spread", kg.features.std(0, unbiased=False).clamp_min(1e-6))
        self.families = kg.families
        family, size = kg.family("entity"), kg.size("entity")
        self.network = network(kg.features.shape[1], hidden, family.loc_size(size), family.scale_size(size))
        self.relation = LookupTable.of(kg, "relation")

    def posterior(self, kind: str, symbols: Tensor | EllipsisType) -> TorchDistribution:
        family = self.families[kind]
        if kind == "relation":
            return family(*self.relation(symbols))
        both = self.network((self.features[symbols] - self.centre) / self.spread)
        loc_size = both.shape[-1] - 1 if family.spherical else both.shape[-1] // 2
        return family(both[..., :loc_size], both[..., loc_size:])
