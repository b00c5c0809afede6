"""A posterior with several modes: an equally weighted mixture of lookup tables, each from a start of its own."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from kgpyro.guides.lookup import LookupTable
from kgpyro.program.plates import Symbols
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, Site


class Mixture(Guide):
    """``q(h) = 1/M Σ_m Π_symbols q_m(h | symbol)``: all latents of a draw come from the same member ``m``.

    What is optimised is the mean of the members' bounds, a bound too, since a mixture's entropy is at least the mean of
    its members' (Jaakkola & Jordan 1998). Each member finds a mode of its own, as in a deep ensemble (Wilson & Izmailov
    2020), and the posterior mean of a score is the mean over them. A step takes M times as long as with ``lookup``.
    """

    def __init__(self, kg: Setting, sites: Mapping[str, Site], members: int = 4):
        super().__init__(kg, sites)
        self.members = members
        self.entity = nn.ModuleList(LookupTable.of(kg, "entity") for _ in range(members))
        self.relation = nn.ModuleList(LookupTable.of(kg, "relation") for _ in range(members))

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        tables = self.entity if kind == "entity" else self.relation
        return self.families[kind](*tables[self.member](symbols))
