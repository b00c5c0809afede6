"""Draws of the log-odds of facts and of all answers to queries, each draw's latents the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.kernels.pairs import Pairs
from kgpyro.posterior.categorical import of_open_answers, usual_answers
from kgpyro.posterior.draws import AT_ONCE
from kgpyro.posterior.replay import replayed_logits
from kgpyro.posterior.scores import PosteriorScores
from kgpyro.program.families import posterior_mean


class DrawnLogits(PosteriorScores):
    """Draws of log-odds under a posterior."""

    @torch.no_grad()
    def fact_logits(self, facts: Tensor, draws: int, seed: int = 0) -> Tensor:
        """Draws of the log-odds of facts ``(head, relation, tail)``, shapes ``(n, 3) -> (draws, n)``.

        A draw's latents are the same for all facts where they are global. Equal facts have equal draws, whatever the
        order they stand in, and but for rounding whatever other facts are asked with them.
        """
        R, E = self.graph.num_relations, self.graph.num_entities
        if not len(facts):
            return torch.zeros(draws, 0, device=self.device)
        head, relation, tail = facts.to(self.device).unbind(1)
        key, place = torch.unique((head * R + relation) * E + tail, return_inverse=True)
        facts = torch.stack([key // (R * E), key // E % R, key % E], 1)
        if self.form is None or self.kg.categorical:
            return self._facts_by_query(facts, draws, seed)[:, place]
        ends, e = torch.unique(facts[:, [0, 2]], return_inverse=True)
        rows, row = torch.unique(facts[:, 1], return_inverse=True)
        count = len(rows)
        pairs, alone = self._pairs(e, row, count)
        order = torch.cat([*(mine[its.order] for mine, _, its in pairs), alone])
        place, relation = order.argsort()[place], facts[order, 1]
        logits = torch.empty(len(self.numbers(draws, seed)), len(place), dtype=self.dtype, device=self.device)
        done = 0
        both = torch.cat([rows, rows + R]) if self.inverse else rows
        for entities, relations, intercepts, tails in self.tables_of(draws, seed, ends, both):
            scores, end = logits.new_empty(len(entities), len(facts)), 0
            for mine, way, its in pairs:
                anchor, asked = its.queries // count, its.queries % count
                latents = torch.cat([asked + way * count, asked + (1 - way) * count]) if self.inverse else asked
                reverse = torch.full_like(asked, way, dtype=torch.bool)
                start, end = end, end + len(mine)
                for i in range(len(entities)):
                    its_relations = relations[i].index_select(0, latents)
                    query = self._query(entities[i].index_select(0, anchor), its_relations, reverse)
                    scores[i, start:end] = its.products(query, entities[i])
            at_once = max(1, AT_ONCE // (len(entities) * max(self.kg.entity_size, self.kg.relation_size)))
            for part in alone.split(at_once):
                t = entities[:, e[part, 1]]
                if tails is not None:  # a self-loop whose ends have draws of their own
                    t = torch.where((e[part, 0] == e[part, 1]).unsqueeze(-1), tails[:, e[part, 1]], t)
                start, end = end, end + len(part)
                scores[:, start:end] = self._both_ways(entities[:, e[part, 0]], relations, row[part], t)
            scores += intercepts.index_select(1, relation)
            torch.index_select(scores, 1, place, out=logits[done : done + len(scores)])
            done += len(scores)
        return logits

    def _pairs(self, ends: Tensor, row: Tensor, count: int) -> tuple[list[tuple[Tensor, int, Pairs]], Tensor]:
        """Facts of ends ``(n, 2)`` and rows ``(n,)`` by the queries they share, and those that go by themselves.

        Each stands with the end that more of them have in common, from which its score is one inner product.
        """
        every = torch.arange(len(row), device=self.device)
        if not self.kg.score.linear:
            return [], every
        assert self.form is not None
        keys = ends * count + row.unsqueeze(1)
        shared = [torch.unique(key, return_inverse=True, return_counts=True)[1:] for key in keys.unbind(1)]
        by_tail = shared[1][1][shared[1][0]] > shared[0][1][shared[0][0]]
        alone = (ends[:, 0] == ends[:, 1]) & self.form.per_fact
        found = []
        for way, mine in enumerate((every[~by_tail & ~alone], every[by_tail & ~alone])):
            if len(mine):
                found.append((mine, way, Pairs.of(keys[mine, way], ends[mine, 1 - way])))
        return found, every[alone]

    def _both_ways(self, head: Tensor, relations: Tensor, row: Tensor, tail: Tensor) -> Tensor:
        """Scores of facts in draws, ``(S, n)``, from latents of heads and tails, ``(S, n, d)``, and of relations."""
        score, own = self.kg.score, relations[:, row]
        forth = score.facts(head, own, tail)
        if not self.inverse:
            return forth
        back = relations[:, row + relations.shape[1] // 2]
        if score.linear:
            return (forth + (score.head_query(head, back) * tail).sum(-1)) / 2
        return (forth + score.facts(tail, back, head)) / 2

    def tables_of(
        self, draws: int, seed: int, entities: Tensor, relations: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """So many draws, in parts, and other ends of self-loops where facts have latents of their own."""
        assert self.form is not None
        size = len(entities) * self.kg.entity_size + len(relations) * self.kg.relation_size
        numbers = torch.arange(len(self.numbers(draws, seed)), device=self.device)
        for part in numbers.split(max(1, AT_ONCE // max(1, size))):
            tails = self.drawn(draws, seed + 1_000_003, part, entities, relations)[0] if self.form.per_fact else None
            yield (*self.drawn(draws, seed, part, entities, relations), tails)

    def _facts_by_query(self, facts: Tensor, draws: int, seed: int) -> Tensor:
        """The same from the log-odds of all candidates of both queries of each fact."""
        R, E, found = self.graph.num_relations, self.graph.num_entities, []
        ways = ((facts[:, 0], facts[:, 1], facts[:, 2]), (facts[:, 2], facts[:, 1] + R, facts[:, 0]))
        for number in self.numbers(draws, seed):
            values, total = self.joint(number), torch.zeros(len(facts), device=self.device, dtype=self.dtype)
            for anchor, row, answer in ways:
                key, place = torch.unique(row * E + anchor, return_inverse=True)
                for part in torch.arange(len(key), device=self.device).split(max(1, 4 * AT_ONCE // E)):
                    asked = key[part] % E, key[part] // E
                    here = (place >= part[0]) & (place <= part[-1])
                    query, candidate = place[here] - part[0], answer[here]
                    if self.kg.categorical:
                        logits = self._joint_logits(*asked, number, ...)
                        total[here] += of_open_answers(logits, self.graph, self._usual, *asked, query, candidate) / 2
                    else:
                        logits = replayed_logits(self.program, self.guide, values, *asked, number)
                        total[here] += logits[query, candidate] / 2
            found.append(total)
        return torch.stack(found)

    @cached_property
    def _usual(self) -> Tensor:
        return usual_answers(self.graph).to(self.kg.start)

    @torch.no_grad()
    def answer_logits(
        self, anchor: Tensor, row: Tensor, draws: int, seed: int = 0, candidates: Tensor | EllipsisType = ...
    ) -> Iterator[Tensor]:
        """Log-odds of candidates (all, or ids ``(c,)``) of queries ``(b,)`` in each of so many draws, ``(b, c)``.

        Of the facts that candidates make, in the draws of :meth:`fact_logits`; or of being the answer, where the
        likelihood is categorical.
        """
        anchor, row = anchor.to(self.device), row.to(self.device)
        if self.form is None or self.kg.categorical:
            yield from (self._joint_logits(anchor, row, number, candidates) for number in self.numbers(draws, seed))
            return
        R, each = self.graph.num_relations, torch.arange(len(row), device=self.device)
        ends, place = torch.unique(anchor, return_inverse=True)
        rows, latent = torch.unique(self._latent_rows(row), return_inverse=True)
        everyone, none = self._ids(candidates), rows[:0]
        forth = torch.where(row < R, latent[: len(row)], latent[-len(row) :])  # of the relation itself
        latents_of_loops = torch.cat([forth, latent[: len(row)] + latent[-len(row) :] - forth][: 1 + self.inverse])
        blocks = [(block, everyone[block]) for block in self._blocks(len(everyone))]
        for number in torch.arange(len(self.numbers(draws, seed)), device=self.device).split(1):
            entities, relations, intercepts = (drawn[0] for drawn in self.drawn(draws, seed, number, ends, rows))
            head, read = entities[place], relations[latent]
            scores = torch.empty(len(row), len(everyone), dtype=self.dtype, device=self.device)
            for block, ids in blocks:
                scores[:, block] = self._read(head, row, self.drawn(draws, seed, number, ids, none)[0][0], read, True)
            if self.form.per_fact:  # a self-loop whose ends have draws of their own
                tails = self.drawn(draws, seed + 1_000_003, number, ends, none)[0][:, place]
                loops = self._both_ways(head.unsqueeze(0), relations[latents_of_loops].unsqueeze(0), each, tails)
                scores = torch.where(anchor.unsqueeze(1) == everyone, loops.T, scores)
            yield scores.add_(intercepts[row % R].unsqueeze(-1))

    def _apart(self, queries: int, draws: int) -> Sequence[Tensor]:
        """All entities, in parts whose answers to so many queries are had one part after the other."""
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        if self.form is None or self.kg.categorical or self.samples is not None or draws <= self.kept:
            return [everyone]
        return everyone.split(max(1, AT_ONCE // (queries + self.kg.entity_size)))

    @torch.no_grad()
    def mean_relation_scores(self, head: Tensor, tail: Tensor, draws: int = 32) -> Tensor:
        """Posterior mean of the log-odds of every relation between pairs of ends, ``(b,), (b,) -> (b, R)``.

        Of both readings, and exact where ``mean_scores`` is; else the mean of ``draws`` posterior draws.
        """
        head, tail, R = head.to(self.device), tail.to(self.device), self.graph.num_relations
        if self.form is None or not self.kg.score.multilinear or self.guide is None:
            each = torch.arange(R, device=self.device).repeat(len(head))
            facts = torch.stack([head.repeat_interleave(R), each, tail.repeat_interleave(R)], 1)
            parts = facts.split(max(1, AT_ONCE // draws))
            return torch.cat([self.fact_logits(part, draws).mean(0) for part in parts]).view(-1, R)
        total, score, loops = self.kg.start.new_zeros(len(head), R), self.kg.score, head == tail
        for _ in self.in_turn(self.guide.members):
            entities, relations = self._moments()
            variance = None if self.form.per_fact or not bool(loops.any()) else self._variance(head[loops])
            for one, other, rows in ((head, tail, relations[:R]), (tail, head, relations[-R:]))[: 1 + self.inverse]:
                found = score.relations(entities[one], entities[other], rows)
                if variance is not None:
                    found[loops] += variance @ score.self_loop_weights(rows, self.kg.entity_size).mT
                total = total + found / (self.guide.members * (1 + self.inverse))
        return total + posterior_mean(self.guide.field("intercept")()) if self.form.intercept else total
