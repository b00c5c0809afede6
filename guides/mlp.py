"""An amortised guide: a narrow embedding of each symbol, and one network that all of a kind share."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.program.plates import Symbols
from kgpyro.program.setting import RowsOf, Setting
from kgpyro.program.variational import Guide, Site


class Network(nn.Sequential):
    """One hidden layer, from an input to a location and a log-scale; the log-scales start at ``-½ log d``."""

    def __init__(self, inputs: int, hidden: int, kg: Setting, kind: str):
        family, size = kg.family(kind), kg.size(kind)
        self.sizes = [family.loc_size(size), family.scale_size(size)]
        last = nn.Linear(hidden, sum(self.sizes))
        nn.init.constant_(last.bias[self.sizes[0] :], -math.log(self.sizes[0]) / 2)
        nn.init.normal_(last.weight[self.sizes[0] :], std=0.01)
        super().__init__(nn.Linear(inputs, hidden), nn.GELU(), last)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = super().forward(inputs).split(self.sizes, dim=-1)
        return loc, log_scale


class MLP(Guide):
    """``q(h | symbol)`` from an embedding of ``width`` numbers per symbol, through ``hidden`` units.

    Has ``width`` parameters per symbol and ``hidden · (width + 2d)`` once, where a table has ``2d`` per symbol.
    """

    def __init__(self, kg: Setting, sites: Mapping[str, Site], width: int = 32, hidden: int = 128):
        super().__init__(kg, sites)
        self.rows_of = RowsOf(kg.sparse)
        self.embeddings, self.networks = nn.ModuleDict(), nn.ModuleDict()
        for kind in kg.families:
            self.embeddings[kind] = nn.Embedding(kg.count(kind), width)
            self.networks[kind] = Network(width, hidden, kg, kind)

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        inputs = self.rows_of(self.embeddings[kind].get_parameter("weight"), symbols)
        return self.families[kind](*self.networks[kind](inputs))
