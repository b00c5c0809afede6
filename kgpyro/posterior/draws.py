"""Draws of a model's latents, from a guide or from a set of them; nothing that asks for draws knows which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
FEWEST = 4  # draws of all latents that can be kept, below which joint draws are made row by row
AT_ONCE = 1 << 22  # numbers of latents or scores at once
POOL = 1 << 22  # standard normals that the draws of a large graph are made of, in pieces of 32
TOGETHER = 64  # symbols of a large graph whose draws are made together, where they are no Normals
Tables = tuple[Tensor, Tensor, Tensor]  # draws of entities (S, m, d_e), relations (S, k, d_r), intercepts (S, R)


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
        self._means: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, tuple[Tensor, Tensor]] = {}
        self._tables: dict[tuple[int, int], Tables] = {}
        self._pools: dict[int, Tensor] = {}
        self._levels: dict[tuple[int, int], Tensor] = {}
        self._asked: dict[tuple[str, int, int], tuple[Tensor, Any]] = {}

    def forget(self) -> None:
        """Drop what is cached of the posterior; for whoever trains it further."""
        self._means.clear()
        self._lengths.clear()
        self._tables.clear()
        self._pools.clear()
        self._levels.clear()
        self._asked.clear()

    def in_turn(self, draws: int, first: int = 0) -> Iterator[int]:
        """Each member of a mixture in turn, from that of draw ``first`` on, with its share of ``draws`` draws."""
        if self.guide is None:
            yield draws
            return
        for i in range(min(draws, self.guide.members)):
            with self.guide.using(first + i):
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

    def joint(self, number: int) -> dict[str, Tensor]:
        """The latents that are not of single facts in a numbered draw, the same at every call: values by site."""
        if self.samples is not None:
            return {name: value[number % len(value)] for name, value in self.samples.items()}
        assert self.guide is not None
        return joint_draw(self.program, self.guide, number)

    def _site(self, kind: str) -> str:
        frame = f"{kind}_plate"
        if self.guide is not None:
            return next(name for name, its in self.guide.symbols[frame] if its == kind)
        return {"entity": "entities", "relation": "relations"}[kind]

    def _rows(self, draws: int) -> Tables:
        """Draws of all latents, from the present random state; members of a mixture have their shares, in turn."""
        if self.samples is not None:
            of = next(iter(self.samples.values()))
            index = torch.linspace(0, len(of) - 1, min(draws, len(of)), device=self.device).round().long()
            e, r = (self.samples[self._site(kind)][index] for kind in ("entity", "relation"))
            return e, r, self.samples.get("intercept", e.new_zeros(len(of), self.graph.num_relations))[index]
        found = [self._member_rows(share, ..., ...) for share in self.in_turn(draws)]
        e, r, b = (torch.cat(parts) for parts in zip(*found, strict=True))
        return e, r, b

    @property
    def kept(self) -> int:
        """How many draws of all latents are few enough to be kept."""
        kg = self.kg
        return KEPT // (kg.num_entities * kg.entity_size + kg.num_relations * kg.relation_size)

    def drawn(self, draws: int, seed: int, part: Tensor, entities: Tensor, relations: Tensor) -> Tables:
        """Part ``(n,)`` of so many draws of the latents with these ids, ``(m,)`` and ``(k,)``; the same in every call.

        All of a small graph's are drawn together and kept. Of a large one's, Normals are made of slices of one pool of
        standard normals, which begin at a place of their symbol and draw.
        """
        if draws > self.kept and self.samples is None:
            e, r = (self._of_pool(*of, part, seed) for of in (("entity", entities), ("relation", relations)))
            return e, r, self._intercepts(part, seed)
        e, r, b = self._cached(self._tables, (draws, seed), seed, lambda: self._rows(draws))
        each = part.unsqueeze(1)
        return e[each, entities], r[each, relations], b[part]

    @staticmethod
    def _cached(cache: dict[Any, Any], key: Any, seed: int, make: Callable[[], Any]) -> Any:
        """What was made for a key, or is made now, by a seed; the last four are kept."""
        found = cache.get(key)
        if found is None:
            with seeded(seed):
                found = make()
            for old in list(cache)[:-3]:
                cache.pop(old, None)
            cache[key] = found
        return found

    def _of_pool(self, kind: str, ids: Tensor, part: Tensor, seed: int) -> Tensor:
        """Draws of a kind's latents by their numbers, ``(n, m, d)``; members of a mixture take turns."""
        assert self.guide is not None
        size = self.kg.size(kind)
        normals = partial(torch.randn, POOL // 32, 32, dtype=self.dtype, device=self.device)
        pool = self._cached(self._pools, seed, seed, normals)
        drawn = pool.new_empty(len(part), len(ids), size)
        if not len(ids):
            return drawn
        for member in range(self.guide.members):
            mine = (part % self.guide.members == member).nonzero().squeeze(-1)
            with self.guide.using(member):
                q, normal = self._rows_of(kind, ids)
                if normal is not None:
                    pieces = torch.arange(-(-size // len(pool[0])), device=self.device)
                    place = _scattered(part[mine].unsqueeze(1), 2 * ids + (kind == "entity")) % (
                        len(pool) - len(pieces)
                    )
                    rows = pool.index_select(0, (place.unsqueeze(-1) + pieces).flatten())
                    rows = (
                        rows.view(len(mine), len(ids), pieces.numel() * len(pool[0]))[..., :size]
                        .mul_(q.base_dist.scale)
                        .add_(q.base_dist.loc)
                    )
                    if self.guide.members == 1:
                        return rows
                    drawn[mine] = rows
                    continue
                for block in (ids // TOGETHER).unique().tolist():
                    here = (ids // TOGETHER == block).nonzero().squeeze(-1)
                    end = min(self.kg.count(kind), (block + 1) * TOGETHER)
                    rows = self.guide.posterior(kind, torch.arange(block * TOGETHER, end, device=self.device))
                    for i in mine.tolist():
                        with seeded(_seed_of(int(part[i]), seed, 2 * block + (kind == "entity"))):
                            drawn[i, here] = rows.rsample()[ids[here] - block * TOGETHER]
        return drawn

    def _rows_of(self, kind: str, ids: Tensor) -> tuple[Any, tuple[Tensor, Tensor] | None]:
        """The posterior of these ids, and location and scale of Normals; kept for the last few tensors of ids."""
        assert self.guide is not None
        key = (kind, self.guide.member, id(ids))
        if key not in self._asked or self._asked[key][0] is not ids:
            q = self.guide.posterior(kind, ids)
            normal = (q.base_dist.loc, q.base_dist.scale) if is_gaussian(q) else None
            for old in list(self._asked)[:-2]:
                self._asked.pop(old, None)
            self._asked[key] = ids, (q, normal)
        return self._asked[key][1]

    def _intercepts(self, part: Tensor, seed: int) -> Tensor:
        assert self.guide is not None and self.form is not None
        if not self.form.intercept:
            return torch.zeros(len(part), self.graph.num_relations, dtype=self.dtype, device=self.device)
        found = []
        for number in part.tolist():
            if (drawn := self._levels.get((number, seed))) is None:
                if len(self._levels) * self.graph.num_relations > AT_ONCE:
                    self._levels.clear()
                with seeded(_seed_of(number, seed, -1)), self.guide.using(number):
                    drawn = self._levels[number, seed] = self.guide.field("intercept")().rsample().detach()
            found.append(drawn)
        return torch.stack(found)

    @property
    def _by_rows(self) -> bool:
        """Whether there are so many latents that the rows that are asked for are drawn alone (:meth:`_of_pool`)."""
        standard = self.form is not None and not self.form.per_fact and self.samples is None and not self.kg.categorical
        return standard and self.kept < FEWEST

    def numbers(self, draws: int, seed: int) -> range:
        """The numbers of so many joint draws; of stored ones all, at most."""
        draws = draws if self.samples is None else min(draws, len(next(iter(self.samples.values()))))
        first = 0 if self.samples is not None else seed * (1 << 20)
        return range(first, first + draws)

    def _member_rows(self, draws: int, entities: Tensor | EllipsisType, relations: Tensor | EllipsisType) -> Tables:
        """Draws of these latents from the member of a mixture in use."""
        assert self.guide is not None and self.form is not None
        shape = torch.Size([draws])
        e = self.guide.posterior("entity", entities).rsample(shape)
        r = self.guide.posterior("relation", relations).rsample(shape)
        if not self.form.intercept:
            return e, r, e.new_zeros(draws, self.graph.num_relations)
        return e, r, self.guide.field("intercept")().rsample(shape)


def _seed_of(number: int, seed: int, of: int) -> int:
    """A seed for a numbered draw of something; PyTorch's generators look at the lower 32 bits of one."""
    return int(_scattered(torch.tensor(number + (seed % (1 << 40) << 20)), torch.tensor(of)))


def _scattered(number: Tensor, of: Tensor) -> Tensor:
    """A number from 0 to 2⁶² for each draw of something, as good as random (splitmix64; Steele et al. 2014)."""
    x = (of + 1) * 0x1E3779B97F4A7C15 + (number + 1) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * 0x14D049BB133111EB
    return (x ^ (x >> 31 & (1 << 33) - 1)) & (1 << 62) - 1
