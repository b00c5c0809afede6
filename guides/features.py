"""An inductive guide: entities are known by their features alone, so that it has a posterior for new ones too."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.guides.lookup import LookupTable
from kgpyro.guides.mlp import Network
from kgpyro.program.plates import Symbols
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, Site


class Features(Guide):
    """``q(h | features of e)`` for entities, through ``hidden`` units; a table for relations.

    Raises InputError where no features are given.
    """

    inductive = True
    features: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, kg: Setting, sites: Mapping[str, Site], hidden: int = 128):
        super().__init__(kg, sites)
        if kg.features is None:
            raise InputError("guide features knows entities by their features; give them with `features` FILE.")
        self.register_buffer("features", kg.features)
        self.register_buffer("centre", kg.features.mean(0))
        self.register_buffer("spread", kg.features.std(0, unbiased=False).clamp_min(1e-6))
        self.network = Network(kg.features.shape[1], hidden, kg, "entity")
        self.relation = LookupTable.of(kg, "relation")

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        if kind == "relation":
            return self.families[kind](*self.relation(symbols))
        return self.families[kind](*self.network((self.features[symbols] - self.centre) / self.spread))
