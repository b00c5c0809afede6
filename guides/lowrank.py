"""A guide whose dimensions are correlated: a low-rank Gaussian for every symbol."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from kgpyro.guides.lookup import LookupTable
from kgpyro.program.plates import Symbols
from kgpyro.program.setting import RowsOf, Setting
from kgpyro.program.variational import Guide, Site


class LowRank(Guide):
    """``q(h | symbol)`` with covariance ``W Wᵀ + diag(σ²)``, ``W`` of ``rank`` columns (Ong et al. 2018)."""

    def __init__(self, kg: Setting, sites: Mapping[str, Site], rank: int = 4):
        super().__init__(kg, sites)
        self.rows_of = RowsOf(kg.sparse)
        self.tables, self.factors = nn.ModuleDict(), nn.ParameterDict()
        for kind, family in kg.families.items():
            family.refuse_sphere("lowrank")
            self.tables[kind] = LookupTable.of(kg, kind)
            size = family.loc_size(kg.size(kind))
            self.factors[kind] = nn.Parameter(0.1 * torch.randn(kg.count(kind), size * rank) / (size * rank) ** 0.5)

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        loc, log_scale = self.tables[kind](symbols)
        factors = self.rows_of(self.factors[kind], symbols).unflatten(-1, (loc.shape[-1], -1))
        with torch.autocast(loc.device.type, enabled=False):  # in half precision I + WᵀW is hardly positive definite
            base = dist.LowRankMultivariateNormal(loc, factors, (2 * log_scale).exp())
        return self.families[kind].push(base)
