"""A point estimate in the place of a posterior: every latent at its most probable value, without any spread.

With KL weight 1 it maximises the joint density of labels and latents (maximum a posteriori), with 0 the likelihood: the
usual embedding model, with or without its regulariser. What is reported is a log joint density, not a bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import biject_to

from kgpyro.program.families import posterior_mean
from kgpyro.program.plates import Symbols
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, Site


class Point(Guide):
    """``δ(h - h(symbol))``, with ``h`` from a table that starts at Xavier's values (Glorot & Bengio 2010)."""

    point = True

    def __init__(self, kg: Setting, sites: Mapping[str, Site]):
        super().__init__(kg, sites)
        self.rows_of = {kind: kg.rows_of(kind) for kind in self.families}
        sizes = {kind: family.loc_size(kg.size(kind)) for kind, family in self.families.items()}
        self.tables = nn.ParameterDict({kind: kg.new_table(kind, size) for kind, size in sizes.items()})

    @torch.no_grad()
    def start_at(self, guide: Guide) -> None:
        """Begin at the posterior means of another guide of the same sites."""
        for kind, table in self.tables.items():
            support, mean = self.families[kind].support, posterior_mean(guide.posterior(kind, ...))
            free = support in (constraints.real, constraints.sphere)
            table.copy_(mean if free else biject_to(support).inv(mean))
        for site in self.fields:
            self.field(site).loc.copy_(guide.field(site).loc)

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        loc = self.rows_of[kind](self.tables[kind], symbols)
        return dist.Delta(self.families[kind].onto_support(loc)).to_event(1)
