"""Scores under the posterior: their exact means, draws, and predictive probabilities, of all candidates or of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.program.families import is_gaussian, posterior_mean, posterior_variance
from kgpyro.program.likelihood import AllCandidates
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide

Moments = tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor] | None]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with the random state of a seed, and give the caller's back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class PosteriorScores:
    """Scores of a graph's facts under a guide.

    Attributes:
        graph: the graph, all three splits.
        kg: the setting: score, priors, intercepts.
        guide: ``q(h | symbol)``.
    """

    def __init__(self, graph: Graph, kg: Setting, guide: Guide):
        self.graph, self.kg, self.guide = graph, kg.eval(), guide.eval()
        self._cached: dict[int, Moments] = {}

    def forget(self) -> None:
        """Drop what is cached of the guide; for whoever trains it further."""
        self._cached.clear()

    @contextmanager
    def draw(self, number: int) -> Iterator[None]:
        """Run in the random state of a draw's number; a mixture's members take turns."""
        with seeded(number), self.guide.using(number):
            yield

    def in_turn(self, draws: int, first: int = 0) -> Iterator[int]:
        """Each member of a mixture in turn, from that of draw ``first`` on, with its share of ``draws`` draws."""
        members = self.guide.members
        for i in range(min(draws, members)):
            with self.guide.using(first + i):
                yield len(range(i, draws, members))

    @property
    def inverse(self) -> bool:
        return self.kg.num_relations == 2 * self.graph.num_relations

    def _rows(self, row: Tensor) -> tuple[Tensor, Tensor | None]:
        """The relation latents of query rows (``p``, or ``p + R`` for heads), and which queries ask for heads."""
        if self.inverse:
            return row, None
        return row % self.graph.num_relations, row >= self.graph.num_relations

    @torch.no_grad()
    def mean_scores(self, anchor: Tensor, row: Tensor, draws: int = 32) -> Tensor:
        """Posterior mean of the score of every candidate, shapes ``(b,), (b,) -> (b, E)``.

        Exact for multilinear scores: under independent latents the score of the means, and for the self-loop of a
        global latent that plus its variances. For the other scores the mean of ``draws`` posterior draws, the same in
        every call. Relation rows are ``p`` for tail queries and ``p + R`` for head queries.
        """
        anchor, row = anchor.to(self.device), row.to(self.device)
        relation, reverse = self._rows(row)
        if self.kg.score.multilinear:
            found = None
            for _ in self.in_turn(self.guide.members):
                entities, relations, loops = self._moments()
                scores = self.kg.score.candidates(entities[anchor], relations[relation], entities, reverse)
                if loops is not None:
                    scores = scores.scatter_add(1, anchor[:, None], loops(anchor, relation)[:, None])
                found = scores if found is None else found + scores
            assert found is not None
            return found / self.guide.members if self.guide.members > 1 else found
        total = torch.zeros(len(anchor), self.graph.num_entities, device=self.device, dtype=self.dtype)
        for number in range(draws):
            with self.draw(number):
                total += self._draw_scores(anchor, row) - self.kg.intercept[relation].unsqueeze(-1)
        return total / draws

    def intercepts(self, row: Tensor) -> Tensor:
        """``b_p`` of relation rows, shape of ``row``: what turns their scores into log-odds."""
        return self.kg.intercept.detach()[self._rows(row.to(self.device))[0]]

    def _moments(self) -> Moments:
        """Posterior means of entities and relations, and what a self-loop adds to their score; cached by member."""
        if self.guide.member not in self._cached:
            q, kg = self.guide.posterior("entity", ...), self.kg
            entities, relations = posterior_mean(q), posterior_mean(self.guide.posterior("relation", ...))
            loops = None
            if self._global_latents:
                variance, weights = posterior_variance(q), kg.score.self_loop_weights(relations, kg.entity_size)
                loops = lambda e, r: (variance[e] * weights[r]).sum(-1)  # noqa: E731
            self._cached[self.guide.member] = entities, relations, loops
        return self._cached[self.guide.member]

    @torch.no_grad()
    def probabilities(
        self, anchor: Tensor, row: Tensor, draws: int = 100, candidates: Tensor | EllipsisType = ...
    ) -> Tensor:
        """Monte-Carlo posterior predictive probability of candidates (all, or ids ``(c,)``), ``(b, E)`` or ``(b, c)``.

        Of the fact that one makes with the query, or under the categorical likelihood that it is the answer. Queries
        are ``anchor`` and ``row`` of shape ``(b,)``.
        """
        return self._mean_probabilities(anchor, row, range(draws), candidates)

    def _mean_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: range, candidates: Tensor | EllipsisType
    ) -> Tensor:
        """Mean over the draws of these numbers."""
        anchor, row = anchor.to(self.device), row.to(self.device)
        columns = self.graph.num_entities if isinstance(candidates, EllipsisType) else len(candidates)
        total = torch.zeros(len(anchor), columns, device=self.device, dtype=self.dtype)
        for number in numbers:
            with self.draw(number):
                total += self._draw_logits(anchor, row, candidates).sigmoid_()
        return total / len(numbers)

    @torch.no_grad()
    def joint_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: Sequence[int], candidates: Tensor | EllipsisType = ...
    ) -> Iterator[Tensor]:
        """Probabilities of candidates in joint draws of all latents, ``(b, E)`` or ``(b, c)`` for each number.

        Global latents (LIM) are one table of entities and one of relations, which a number's facts share, in this call
        and in any other. Where each fact has latents of its own (LFM) labels are independent given the guide, and
        every draw has the posterior predictive probability (of a mixture's member).
        """
        anchor, row = anchor.to(self.device), row.to(self.device)
        candidates = candidates if isinstance(candidates, EllipsisType) else candidates.to(self.device)
        if not self._global_latents:
            found: dict[int, Tensor] = {}
            for number in numbers:
                member = number % self.guide.members
                if member not in found:
                    its_draws = range(member, 100 * self.guide.members, self.guide.members)
                    found[member] = self._mean_probabilities(anchor, row, its_draws, candidates)
                yield found[member]
            return
        relation, reverse = self._rows(row)
        for number in numbers:
            entities, relations = self._joint_latents(number)
            scores = self.kg.score.candidates(entities[anchor], relations[relation], entities[candidates], reverse)
            yield (scores + self.kg.intercept[relation].unsqueeze(-1)).sigmoid_()

    @torch.no_grad()
    def joint_pairs(self, anchor: Tensor, row: Tensor, candidate: Tensor, number: int) -> Tensor:
        """Probabilities of paired queries and candidates in the joint draw of a number, ``(n,) -> (n,)``.

        Where each fact has latents of its own they are drawn here, from the global random state.
        """
        anchor, row, candidate = (ids.to(self.device) for ids in (anchor, row, candidate))
        at_once = max(1, (1 << 23) // max(self.kg.entity_size, self.kg.relation_size))
        parts = torch.arange(len(anchor), device=self.device).split(at_once)
        if not self._global_latents:
            drawn = [self._draw_pairs(anchor[i], row[i], candidate[i], draws=1, first=number)[0] for i in parts]
        else:
            entities, relations = self._joint_latents(number)
            drawn = []
            for i in parts:
                relation, reverse = self._rows(row[i])
                scores = self.kg.score.facts(entities[anchor[i]], relations[relation], entities[candidate[i]], reverse)
                drawn.append(scores + self.kg.intercept[relation])
        return torch.cat(drawn).sigmoid_()

    def share_observed(self, anchor: Tensor, candidate: Tensor) -> Tensor:
        """How probable it is that the graph holds a fact if it is true, shapes broadcast."""
        complete = anchor.to(self.device) == candidate.to(self.device)
        return torch.where(complete, 1.0, self.kg.completeness)

    def _joint_latents(self, number: int) -> tuple[Tensor, Tensor]:
        """One draw of all entities and all relations, the same at every call with a number."""
        with self.draw(number):
            return self.guide.posterior("entity", ...).rsample(), self.guide.posterior("relation", ...).rsample()

    @property
    def device(self) -> torch.device:
        return self.kg.intercept.device

    @property
    def dtype(self) -> torch.dtype:
        return self.kg.intercept.dtype

    @property
    def _global_latents(self) -> bool:
        """Whether an entity has one latent for all its facts (LIM), or one per fact (LFM)."""
        return "entities" in self.guide.sites

    def _draw_logits(self, anchor: Tensor, row: Tensor, candidates: Tensor | EllipsisType = ...) -> Tensor:
        """Log-odds of candidates (all, or ids ``(c,)``) in one posterior draw, ``(b, E)`` or ``(b, c)``.

        Under the Bernoulli likelihood those of the facts that they make, under the categorical one those of being the
        answer.
        """
        if not self.kg.categorical:
            return self._draw_scores(anchor, row, candidates)
        log_p = self._draw_scores(anchor, row).log_softmax(-1).clamp_max(-1e-7)[:, candidates]
        return log_p - (-torch.expm1(log_p)).log()

    def refuse_categorical(self, what: str) -> None:
        """Raise InputError where the likelihood does not say how probable a single fact is."""
        if self.kg.categorical:
            raise InputError(
                f"{what} need the probability that a fact is true, and a categorical likelihood says only which entity "
                f"answers a query; fit with --likelihood bernoulli."
            )

    def _draw_scores(self, anchor: Tensor, row: Tensor, candidates: Tensor | EllipsisType = ...) -> Tensor:
        """``φ + b_p`` of candidates (all, or ids ``(c,)``) in one posterior draw, ``(b, E)`` or ``(b, c)``.

        Under local noise rows are independent draws, also of the same query; else they share one table.
        """
        relation, reverse = self._rows(row)
        kg, q = self.kg, self.guide.posterior("entity", candidates)
        r = self.guide.posterior("relation", relation).rsample()
        if kg.score.linear and is_gaussian(q):
            head = self.guide.posterior("entity", anchor).rsample()
            facts = AllCandidates(kg.score, head, r, q.base_dist.loc, kg.intercept[relation], reverse)
            logits = facts.with_local_noise(q.base_dist).logits
            if self._global_latents:  # a self-loop's score has the anchor's draw at both ends
                ids = torch.arange(self.graph.num_entities, device=self.device)[candidates]
                loops = kg.score.facts(head, r, head, reverse) + kg.intercept[relation]
                logits = torch.where(anchor.unsqueeze(1) == ids, loops.unsqueeze(1), logits)
            return logits
        table = self.guide.posterior("entity", ...).rsample()
        head = table[anchor] if self._global_latents else self.guide.posterior("entity", anchor).rsample()
        return AllCandidates(kg.score, head, r, table[candidates], kg.intercept[relation], reverse).logits

    def _draws(self, anchor: int, row: int, candidates: Tensor, draws: int, seed: int) -> Tensor:
        """Draws of the logits of one query's candidates, ``(draws, c)``."""
        a, r = (torch.tensor([value], device=self.device) for value in (anchor, row))
        cheap, found = self._cheap_draws, []
        with seeded(seed):
            for share in self.in_turn(draws):
                if cheap:
                    found.append(self._draw_logits(a.expand(share), r.expand(share), candidates))
                else:
                    found += [self._draw_logits(a, r, candidates) for _ in range(share)]
        return torch.cat(found)

    def _draw_pairs(self, anchor: Tensor, row: Tensor, candidate: Tensor, draws: int, first: int = 0) -> Tensor:
        """Draws of the logits of paired queries and candidates, ``(n,) -> (draws, n)``, each fact's its own."""
        shares = self.in_turn(draws, first)
        return torch.cat([self._draw_pairs_of_member(anchor, row, candidate, share) for share in shares])

    def _draw_pairs_of_member(self, anchor: Tensor, row: Tensor, candidate: Tensor, draws: int) -> Tensor:
        relation, reverse = self._rows(row)
        shape = torch.Size([draws])
        head, tail = (self.guide.posterior("entity", e).rsample(shape) for e in (anchor, candidate))
        r = self.guide.posterior("relation", relation).rsample(shape)
        if self._global_latents:
            tail = torch.where((anchor == candidate).unsqueeze(-1), head, tail)
        flip = None if reverse is None else reverse.expand(draws, -1)
        return self.kg.score.facts(head, r, tail, flip) + self.kg.intercept[relation]

    @property
    def _cheap_draws(self) -> bool:
        """Whether rows of one call are independent draws: local noise, no table drawn."""
        one = torch.zeros(1, dtype=torch.long, device=self.device)
        return self.kg.score.linear and is_gaussian(self.guide.posterior("entity", one))
