"""An amortised guide: a narrow embedding of each symbol, and one network that all of a kind share."""

from __future__ import annotations

import math
from types import EllipsisType

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.guide import Guide
from kgpyro.setting import Setting


def network(inputs: int, hidden: int, loc_size: int, scale_size: int) -> nn.Sequential:
    """One hidden layer, from an input to a location and a log-scale; the log-scales start at ``-½ log d``."""
    last = nn.Linear(hidden, loc_size + scale_size)
    nn.init.constant_(last.bias[loc_size:], -math.log(loc_size) / 2)
    nn.init.normal_(last.weight[loc_size:], std=0.01)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)


class MLP(Guide):
    """``q(h | symbol)`` from an embedding of ``width`` numbers per symbol, through ``hidden`` units.

    Has ``width`` parameters per symbol and ``hidden · (width + 2d)`` once, where a table has ``2d`` per symbol.
    """

    def __init__(self, kg: Setting, sites: set[str], width: int = 32, hidden: int = 128):
        super().__init__(kg, sites)
        self.families = kg.families
        self.embeddings, self.networks = nn.ModuleDict(), nn.ModuleDict()
        for kind, family in kg.families.items():
            self.embeddings[kind] = nn.Embedding(kg.count(kind), width, sparse=kg.sparse)
            sizes = family.loc_size(kg.size(kind)), family.scale_size(kg.size(kind))
            self.networks[kind] = network(width, hidden, *sizes)

    def posterior(self, kind: str, symbols: Tensor | EllipsisType) -> TorchDistribution:
        embedding, family = self.embeddings[kind], self.families[kind]
        inputs = embedding.weight if isinstance(symbols, EllipsisType) else embedding(symbols)
        both = self.networks[kind](inputs)
        loc_size = both.shape[-1] - 1 if family.spherical else both.shape[-1] // 2
        return family(both[..., :loc_size], both[..., loc_size:])
