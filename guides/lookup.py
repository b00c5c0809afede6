"""The paper's guide: a lookup network from a symbol to the location and scale of its latents' posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.program.plates import Symbols
from kgpyro.program.setting import RowsOf, Setting
from kgpyro.program.variational import Guide, Site


class LookupTable(nn.Module):
    """Location and log-scale of every symbol of one kind, shapes ``(n, d)`` and ``(n, s)``.

    Locations start at Xavier's (Glorot & Bengio 2010), scales at ``1/√d``, as in the paper. A sparse table's gradient
    has only the rows that a step used.
    """

    def __init__(self, loc: Tensor, scale_size: int, rows_of: RowsOf):
        super().__init__()
        self.rows_of = rows_of
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full((len(loc), scale_size), -math.log(loc.shape[1]) / 2))

    @classmethod
    def of(cls, kg: Setting, kind: str) -> LookupTable:
        """The table of a kind's symbols, in the sizes of its family."""
        family, size = kg.family(kind), kg.size(kind)
        return cls(kg.new_table(kind, family.loc_size(size)), family.scale_size(size), kg.rows_of(kind))

    def forward(self, symbols: Symbols) -> tuple[Tensor, Tensor]:
        return self.rows_of(self.loc, symbols), self.rows_of(self.log_scale, symbols)


class Lookup(Guide):
    """``q(h | symbol)``: one table for entities, one for relations, whichever sites of the model they serve."""

    def __init__(self, kg: Setting, sites: Mapping[str, Site]):
        super().__init__(kg, sites)
        self.entity, self.relation = LookupTable.of(kg, "entity"), LookupTable.of(kg, "relation")

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        table = self.entity if kind == "entity" else self.relation
        return self.families[kind](*table(symbols))
