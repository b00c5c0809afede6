"""Draws of a model's latents, from a guide or from a set of them; nothing that asks for draws knows which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.replay import Program, joint_draw, standard_form
from kgpyro.program.variational import Guide
from kgpyro.randomness import seeded

KEPT = 1 << 25  # numbers in the draws of all latents, up to which they are drawn whole and kept
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
        self._means: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._tables: dict[tuple[int, int], Tables] = {}

    def forget(self) -> None:
        """Drop what is cached of the posterior; for whoever trains it further."""
        self._means.clear()
        self._tables.clear()

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
            raise InputError(f"{what} are of a guide's distributions, and NUTS leaves draws; fit with inference='svi'.")
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

    def _rows(self, draws: int, entities: Tensor | EllipsisType, relations: Tensor | EllipsisType) -> Tables:
        """Draws of these latents, from the present random state; members of a mixture have their shares, in turn."""
        if self.samples is not None:
            of = next(iter(self.samples.values()))
            index = torch.linspace(0, len(of) - 1, min(draws, len(of)), device=self.device).round().long()
            e, r = (self.samples[self._site(kind)][index] for kind in ("entity", "relation"))
            b = self.samples.get("intercept", e.new_zeros(len(of), self.graph.num_relations))[index]
            return e[:, entities], r[:, relations], b
        found = [self._member_rows(share, entities, relations) for share in self.in_turn(draws)]
        e, r, b = (torch.cat(parts) for parts in zip(*found, strict=True))
        return e, r, b

    def drawn(self, draws: int, seed: int, entities: Tensor, relations: Tensor) -> Tables:
        """Draws of the latents with these ids, ``(m,)`` and ``(k,)``; all of a small graph's are drawn together."""
        kg = self.kg
        size = draws * (kg.num_entities * kg.entity_size + kg.num_relations * kg.relation_size)
        if size > KEPT and self.samples is None:
            with seeded(seed):
                return self._rows(draws, entities, relations)
        if (draws, seed) not in self._tables:
            with seeded(seed):
                whole = self._rows(draws, ..., ...)
            while len(self._tables) > 3:
                self._tables.pop(next(iter(self._tables)), None)
            self._tables[draws, seed] = whole
        e, r, b = self._tables[draws, seed]
        return e[:, entities], r[:, relations], b

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
