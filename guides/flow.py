"""A guide with a normalising flow: a Gaussian per symbol, bent by transformations that all of a kind share."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from kgpyro.guides.lookup import LookupTable
from kgpyro.program.plates import Symbols
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, Site


class Flow(Guide):
    """``q(h | symbol)`` through ``layers`` affine couplings (Dinh et al. 2017), with the halves swapped in between.

    A latent of a single dimension, which has no halves, keeps its Gaussian.
    """

    def __init__(self, kg: Setting, sites: Mapping[str, Site], layers: int = 2, hidden: int = 64):
        super().__init__(kg, sites)
        self.tables, self.couplings = nn.ModuleDict(), nn.ModuleDict()
        for kind, family in kg.families.items():
            family.refuse_sphere("flow")
            size = family.loc_size(kg.size(kind))
            self.tables[kind] = LookupTable.of(kg, kind)
            self.couplings[kind] = nn.ModuleList([_coupling(size, hidden) for _ in range(layers if size > 1 else 0)])

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        loc, log_scale = self.tables[kind](symbols)
        swap = torch.arange(loc.shape[-1], device=loc.device).flip(0)
        couplings = list(self.couplings[kind].children())
        steps = [step for coupling in couplings for step in (coupling, transforms.Permute(swap))]
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return self.families[kind].push(dist.TransformedDistribution(base, steps) if steps else base)


def _coupling(size: int, hidden: int) -> transforms.AffineCoupling:
    """One coupling that starts as the identity."""
    coupling = transforms.affine_coupling(size, hidden_dims=[hidden])
    last = [layer for layer in coupling.nn.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return coupling
