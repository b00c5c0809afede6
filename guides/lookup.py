"""The paper's guide: a lookup network from a symbol to the location and scale of its latents' posterior."""

from __future__ import annotations

import math

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from kgpyro.batches import Batch
from kgpyro.setting import Setting


class LookupTable(nn.Module):
    """Location and scale of every symbol of one kind: ``(n, d)`` and ``(n, s)``, the scale through a softplus.

    Locations start at Xavier's (Glorot & Bengio 2010), scales at ``1/√d``, as in the paper.
    """

    def __init__(self, count: int, size: int, scale_size: int):
        super().__init__()
        self.loc = nn.Parameter(nn.init.xavier_uniform_(torch.empty(count, size)))
        start = math.log(math.expm1(1 / math.sqrt(size)))
        self.raw_scale = nn.Parameter(torch.full((count, scale_size), start))

    def forward(self, symbols: Tensor | slice) -> tuple[Tensor, Tensor]:
        return self.loc[symbols], softplus(self.raw_scale[symbols]) + 1e-6


class Lookup(nn.Module):
    """``q(h | symbol)``: one table for entities, one for relations, whichever sites of the model they serve.

    Args:
        kg: the setting, for sizes and posterior families.
        sites: names of the model's latent sites.
    """

    def __init__(self, kg: Setting, sites: set[str]):
        super().__init__()
        self.sites = sites
        self.families = kg.families
        self.tables = nn.ModuleDict(
            {
                kind: LookupTable(kg.count(kind), kg.size(kind), kg.family(kind).scale_size(kg.size(kind)))
                for kind in ("entity", "relation")
            }
        )

    def posterior(self, kind: str, symbols: Tensor | slice) -> TorchDistribution:
        """``q(h | symbols)`` for ids of a kind (``"entity"`` or ``"relation"``): batch ``(n,)``, event ``(d,)``."""
        return self.families[kind](*self.tables[kind](symbols))

    def forward(self, kg: Setting, batch: Batch) -> None:
        for plate, sites in batch.frames():
            if present := sites.keys() & self.sites:
                with plate():
                    for site in sorted(present):
                        pyro.sample(site, self.posterior(*sites[site]))
