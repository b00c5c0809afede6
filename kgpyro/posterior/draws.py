"""Draws of a model's latents, from a guide or from a set of them; nothing that asks for draws knows which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.replay import Program, joint_draw, standard_form
from kgpyro.program.families import is_gaussian
from kgpyro.program.variational import Guide
from kgpyro.randomness import seeded

KEPT = 1 << 25  # numbers in the draws of all latents, up to which they are drawn whole and kept
AT_ONCE = 1 << 22  # numbers of latents or scores at once
POOL = 1 << 22  # standard normals that draws are made of where none are kept, in pieces of 32
TOGETHER = 64  # symbols whose draws are then made together, where they are no Normals
PLACES = {"relation": 0, "entity": 1, "intercept": -1}  # so that no two latents have one number


class Draws:
    """Draws of the latents of a program that was fitted to a graph.

    Attributes:
        graph: the graph, all three splits.
        kg: the setting: score, priors, likelihood.
        guide: ``q(h | symbol)``; None where the posterior is a set of draws.
        program: the model and what it takes to run it.
        samples: draws of every latent site, shape ``(S, *)`` each, where the posterior is a set of them.
        form: :class:`kgpyro.posterior.replay.Standard`, or None where every prediction is a replay.
    """

    def __init__(
        self, graph: Graph, program: Program, guide: Guide | None, samples: Mapping[str, Tensor] | None = None
    ):
        self.graph, self.program, self.kg = graph, program, program.kg.eval()
        self.guide = None if guide is None else guide.eval()
        self.samples = samples
        self.form = standard_form(program, guide)
        self._cache: dict[str, dict[Any, Any]] = defaultdict(dict)

    def forget(self) -> None:
        """Drop what is cached of the posterior; for whoever trains it further."""
        self._cache.clear()

    def _cached(self, what: str, key: Any, make: Callable[[], Any], last: int = 4) -> Any:
        """What was made for a key, or is made now; the ``last`` of each kind are kept."""
        cache = self._cache[what]
        if (found := cache.get(key)) is None:
            found = cache[key] = make()
            for old in list(cache)[:-last]:
                cache.pop(old, None)
        return found

    def in_turn(self, draws: int) -> Iterator[int]:
        """Each member of a mixture in turn, with its share of ``draws`` draws."""
        assert self.guide is not None
        for i in range(min(draws, self.guide.members)):
            with self.guide.using(i):
                yield len(range(i, draws, self.guide.members))

    @property
    def inverse(self) -> bool:
        return self.kg.num_relations == 2 * self.graph.num_relations

    @property
    def device(self) -> torch.device:
        return self.kg.start.device

    @property
    def dtype(self) -> torch.dtype:
        return self.kg.start.dtype

    def its_guide(self, what: str) -> Guide:
        """The guide. Raises InputError where the posterior is a set of draws."""
        if self.guide is None:
            raise InputError(
                f"{what} are of a guide's distributions, and this is a set of draws; fit with inference='svi'."
            )
        return self.guide

    def numbers(self, draws: int, seed: int) -> Sequence[int]:
        """The numbers of so many joint draws; of stored ones all at most, evenly spread."""
        if self.samples is None:
            first = (seed % (1 << 40)) << 20
            return range(first, first + draws)
        count = len(next(iter(self.samples.values())))
        return torch.linspace(0, count - 1, min(draws, count)).round().long().tolist()

    def joint(self, number: int) -> dict[str, Tensor]:
        """The latents that are not of single facts in a numbered draw, the same at every call: values by site."""
        if self.samples is not None:
            return {name: value[number % len(value)] for name, value in self.samples.items()}
        assert self.guide is not None
        return joint_draw(self.program, self.guide, number)

    def _site(self, kind: str) -> str:
        if self.guide is not None:
            return next(name for name, its in self.guide.symbols[f"{kind}_plate"] if its == kind)
        return {"entity": "entities", "relation": "relations"}[kind]

    @property
    def kept(self) -> int:
        """How many draws of all latents are few enough to be kept."""
        kg = self.kg
        return KEPT // (kg.num_entities * kg.entity_size + kg.num_relations * kg.relation_size)

    def drawn(self, kind: str, ids: Tensor, part: Sequence[int], draws: int | None, seed: int = 0) -> Tensor:
        """A kind's latents with these ids ``(m,)`` in some of so many draws, ``(n, m, d)``; the same in every call.

        Draws of a small graph are made all together and kept. Else Normals are slices of one pool of standard normals,
        which begin at a place of their symbol and draw.

        Args:
            kind: entity, relation, or intercept, whose one vector has a number per relation.
            ids: of the symbols.
            part: which draws, from 0 on; or where ``draws`` is None the numbers of ``n`` draws.
            draws: how many there are.
            seed: of them.
        """
        of = torch.as_tensor(part, device=self.device)
        if self.samples is not None:
            stored = self.samples[self._site(kind)] if kind != "intercept" else self.samples["intercept"].unsqueeze(1)
            index = of % len(stored) if draws is None else of.new_tensor(self.numbers(draws, seed))[of]
            return stored[index.unsqueeze(1), ids]
        if draws is not None and draws <= self.kept:
            return self._cached("tables", (draws, seed), lambda: self._tables(draws, seed))[kind][of.unsqueeze(1), ids]
        assert self.guide is not None
        if self.guide.members == 1:
            return self._of_member(kind, ids, of, seed)
        found = torch.empty(len(of), len(ids), self._size(kind), dtype=self.dtype, device=self.device)
        for member in range(self.guide.members):
            mine = (of % self.guide.members == member).nonzero().squeeze(-1)
            with self.guide.using(member):
                found[mine] = self._of_member(kind, ids, of[mine], seed)
        return found

    def _intercepts(self, part: Sequence[int], draws: int | None, seed: int = 0) -> Tensor:
        """Those of relations, ``(n, R)``, in the draws of :meth:`drawn`; 0 where there are none."""
        assert self.form is not None
        if not self.form.intercept:
            return torch.zeros(len(part), self.graph.num_relations, dtype=self.dtype, device=self.device)
        return self.drawn("intercept", torch.zeros(1, dtype=torch.long, device=self.device), part, draws, seed)[:, 0]

    def _size(self, kind: str) -> int:
        return self.graph.num_relations if kind == "intercept" else self.kg.size(kind)

    def _posterior(self, kind: str, ids: Tensor | EllipsisType) -> Any:
        """Of the symbols with these ids, by the member of a mixture in use."""
        assert self.guide is not None
        if kind != "intercept":
            return self.guide.posterior(kind, ids)
        q = self.guide.field("intercept")()
        return q.expand(torch.Size([1, *q.batch_shape])).to_event(1)

    def _tables(self, draws: int, seed: int) -> dict[str, Tensor]:
        """Draws of all latents, ``(draws, n, d)`` each; members of a mixture have their shares, in turn."""
        assert self.form is not None
        kinds, found = ("entity", "relation", *(["intercept"] * self.form.intercept)), []
        with seeded(seed):
            for share in self.in_turn(draws):
                found.append([self._posterior(kind, ...).rsample(torch.Size([share])) for kind in kinds])
        return {kind: torch.cat(parts) for kind, parts in zip(kinds, zip(*found, strict=True), strict=True)}

    def _of_member(self, kind: str, ids: Tensor, numbers: Tensor, seed: int) -> Tensor:
        """Numbered draws by the member of a mixture in use, ``(n, m, d)``, without a table of all."""
        assert self.guide is not None
        size, place = self._size(kind), PLACES[kind]
        drawn = torch.empty(len(numbers), len(ids), size, dtype=self.dtype, device=self.device)
        if not drawn.numel():
            return drawn
        q = self._cached("asked", (kind, self.guide.member, id(ids)), lambda: (ids, self._posterior(kind, ids)), 3)[1]
        if is_gaussian(q):
            pool = self._cached("pools", seed, lambda: self._pool(seed))
            pieces = torch.arange(-(-size // pool.shape[1]), device=self.device)
            start = _scattered(numbers.unsqueeze(1), 2 * ids + place) % (len(pool) - len(pieces))
            normals = pool.index_select(0, (start.unsqueeze(-1) + pieces).flatten()).view(len(numbers), len(ids), -1)
            return normals[..., :size].mul_(q.base_dist.scale).add_(q.base_dist.loc)
        blocks, count = ids // TOGETHER, 1 if kind == "intercept" else self.kg.count(kind)
        for block in blocks.unique().tolist():
            here, first = (blocks == block).nonzero().squeeze(-1), block * TOGETHER
            rows = self._posterior(kind, torch.arange(first, min(count, first + TOGETHER), device=self.device))
            for i, number in enumerate(numbers.tolist()):
                with seeded(_seed_of(number, seed, 2 * block + place)):
                    drawn[i, here] = rows.rsample()[ids[here] - first]
        return drawn

    def _pool(self, seed: int) -> Tensor:
        with seeded(seed):
            return torch.randn(POOL // 32, 32, dtype=self.dtype, device=self.device)


def _seed_of(number: int, seed: int, of: int) -> int:
    """A seed for a numbered draw of something; PyTorch's generators look at the lower 32 bits of one."""
    return int(_scattered(torch.tensor(number + (seed % (1 << 40) << 20)), torch.tensor(of)))


def _scattered(number: Tensor, of: Tensor) -> Tensor:
    """A number from 0 to 2⁶² for each draw of something, as good as random (splitmix64; Steele et al. 2014)."""
    x = (of + 1) * 0x1E3779B97F4A7C15 + (number + 1) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * 0x14D049BB133111EB
    return (x ^ (x >> 31 & (1 << 33) - 1)) & (1 << 62) - 1
