"""Log-odds of facts under the posterior: their means, draws, and predictive probabilities, of candidates or of facts.

A model is replayed on draws of its latents (:mod:`kgpyro.posterior.replay`). Where its labels are what the setting's
likelihood makes of the latents as they are (:class:`Standard`), closed forms take the place of the replay.

A fact has two readings where relations have inverses, φ(h, r, t) and φ(t, r⁻¹, h). Its log-odds are their mean plus the
relation's intercept, in each draw: one probability, whichever end is asked for. The bound of a fit, which counts half
of the log-likelihood of each reading, is a bound of this model too, since softplus is convex.

A categorical likelihood says how probable it is that one answer of a query is this candidate. A query with n answers
holds a fact with about n times that probability. So the evidence for a fact is the mean over both of its queries of the
log-odds of being the answer, among those that training does not hold, plus ``log n``: half of what the query has in
training and half of what the relation's queries have. When a fit ends, a line per relation links that evidence to the
log-odds of facts (:meth:`Posterior.recalibrate`, ``per_relation``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.posterior.categorical import log_odds, of_open_answers, usual_answers
from kgpyro.posterior.draws import AT_ONCE, Draws
from kgpyro.posterior.replay import replayed_logits
from kgpyro.program.families import is_gaussian, posterior_mean, posterior_variance
from kgpyro.randomness import seeded


class PosteriorScores(Draws):
    """Scores of a graph's facts under a posterior."""

    @property
    def one_probability(self) -> bool:
        """Whether a fact has one probability, of both readings: a categorical likelihood has one of each answer."""
        return not self.kg.categorical

    def other(self, row: Tensor) -> Tensor:
        """The row that asks for the other end of the same relation."""
        return (row + self.graph.num_relations) % (2 * self.graph.num_relations)

    def refuse_categorical(self, what: str) -> None:
        """Raise InputError where the likelihood does not say how probable a single fact is."""
        if self.kg.categorical:
            raise InputError(
                f"{what} need the probability that a fact is true, and a categorical likelihood says only which entity "
                f"answers a query; fit with likelihood='bernoulli'."
            )

    def share_observed(self, anchor: Tensor, candidate: Tensor) -> Tensor:
        """How probable it is that the graph holds a fact if it is true, shapes broadcast."""
        complete = anchor.to(self.device) == candidate.to(self.device)
        return torch.where(complete, 1.0, self.kg.completeness)

    # ---- one draw of many queries -----------------------------------------------------------------------------------

    def _replayed(
        self, values: Mapping[str, Tensor], anchor: Tensor, row: Tensor, number: int, both: bool = True
    ) -> Tensor:
        """Log-odds ``(b, E)`` by replay; of both readings of each fact, or of the query's own."""
        own = replayed_logits(self.program, self.guide, values, anchor, row, number)
        if not both or not self.one_probability:
            return own
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        asked, place = torch.unique(self.other(row), return_inverse=True)
        read = torch.empty_like(own)
        for i, relation in enumerate(asked):  # every candidate as the anchor of the other reading
            back = replayed_logits(self.program, self.guide, values, everyone, relation.expand(len(everyone)), number)
            mine = place == i
            read[mine] = back[:, anchor[mine]].T
        return (own + read) / 2

    def _read(self, anchor: Tensor, row: Tensor, candidates: Tensor, relations: Tensor, both: bool) -> Tensor:
        """Scores of candidates, ``(b, d_e), (b,), (c, d_e) -> (b, c)``, given latents of all relations."""
        R, score = self.graph.num_relations, self.kg.score
        if not self.inverse:
            return score.candidates(anchor, relations[row % R], candidates, row >= R)
        if both and score.linear:  # both readings in one product
            forth, back = score.tail_query(anchor, relations[row]), score.head_query(anchor, relations[self.other(row)])
            return (forth + back) / 2 @ candidates.mT
        own = score.candidates(anchor, relations[row], candidates)
        if not both:
            return own
        reverse = torch.ones_like(row, dtype=torch.bool)
        return (own + score.candidates(anchor, relations[self.other(row)], candidates, reverse)) / 2

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
        found: dict[int, Tensor] = {}
        for number in numbers:
            if self.form is not None and self.form.per_fact:
                assert self.guide is not None
                member = number % self.guide.members
                if member not in found:
                    draws = range(member, 100 * self.guide.members, self.guide.members)
                    found[member] = self._mean_probabilities(anchor, row, draws, candidates)
                yield found[member]
            else:
                yield self._joint_logits(anchor, row, number, candidates).sigmoid_()

    def _joint_logits(self, anchor: Tensor, row: Tensor, number: int, candidates: Tensor | EllipsisType) -> Tensor:
        values = self.joint(number)
        if self.form is None or self.form.per_fact:
            return self._replayed(values, anchor, row, number)[:, candidates].clone()
        entities, relations = values[self._site("entity")], values[self._site("relation")]
        if self.kg.categorical:
            scores = self._read(entities[anchor], row, entities, relations, False)
            return log_odds(scores.log_softmax(-1))[:, candidates]
        scores = self._read(entities[anchor], row, entities[candidates], relations, True)
        if self.form.intercept:
            scores = scores + values["intercept"][row % self.graph.num_relations].unsqueeze(-1)
        return scores

    @torch.no_grad()
    def probabilities(
        self, anchor: Tensor, row: Tensor, draws: int = 100, candidates: Tensor | EllipsisType = ...
    ) -> Tensor:
        """Monte-Carlo posterior predictive probability of candidates (all, or ids ``(c,)``), ``(b, E)`` or ``(b, c)``.

        Of the fact that one makes with the query, or under the categorical likelihood that it is the answer. Queries
        are ``anchor`` and ``row`` of shape ``(b,)``.
        """
        return self._mean_probabilities(anchor.to(self.device), row.to(self.device), range(draws), candidates)

    def _mean_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: range, candidates: Tensor | EllipsisType
    ) -> Tensor:
        total: Tensor | None = None
        for number in numbers:
            p = self.draw_logits(anchor, row, number, candidates).sigmoid_()
            total = p if total is None else total.add_(p)
        assert total is not None
        return total / len(numbers)

    def draw_logits(self, anchor: Tensor, row: Tensor, number: int, candidates: Tensor | EllipsisType = ...) -> Tensor:
        """Log-odds of candidates in a numbered draw, ``(b, E)`` or ``(b, c)``.

        Where candidates' scores are Gaussian given the query, each is drawn on its own, and rows are independent draws.
        """
        if self.form is None or not self._score_noise:
            return self._joint_logits(anchor, row, number, candidates)
        assert self.guide is not None
        with seeded(number), self.guide.using(number):
            rows = torch.cat([row, self.other(row)]) if self.inverse else row % self.graph.num_relations
            head, relations, intercepts = (table[0] for table in self._member_rows(1, anchor, rows))
            own, back = relations[: len(row)], relations[-len(row) :]
            return self._noisy(head, own, back, intercepts, anchor, row, candidates)

    @property
    def _score_noise(self) -> bool:
        """Whether the score of a candidate is Gaussian, given the query."""
        if self.guide is None or self.form is None or not self.kg.score.linear:
            return False
        return is_gaussian(self.guide.posterior("entity", torch.zeros(1, dtype=torch.long, device=self.device)))

    def _noisy(
        self, head: Tensor, own: Tensor, back: Tensor, intercepts: Tensor, anchor: Tensor, row: Tensor,
        candidates: Tensor | EllipsisType,
    ) -> Tensor:  # fmt: skip
        """Log-odds ``(b, c)`` with each score drawn on its own, given draws of queries' ends and relations."""
        assert self.guide is not None and self.form is not None
        score, R = self.kg.score, self.graph.num_relations
        if not self.inverse:
            query = score.queries(head, own, row >= R)
        elif self.kg.categorical:
            query = score.tail_query(head, own)
        else:
            query = (score.tail_query(head, own) + score.head_query(head, back)) / 2
        everyone = candidates if not self.kg.categorical else ...
        q = self.guide.posterior("entity", everyone).base_dist
        mean, variance = query @ q.loc.mT, query.square() @ q.scale.square().mT
        scores = torch.addcmul(mean, variance.clamp_min(1e-20).sqrt(), torch.randn_like(mean))
        if not self.form.per_fact:  # a self-loop has the anchor's draw at both ends
            ids = torch.arange(self.graph.num_entities, device=self.device)[everyone]
            loops = (query * head).sum(-1, keepdim=True)
            scores = torch.where(anchor.unsqueeze(1) == ids, loops, scores)
        if self.kg.categorical:
            return log_odds(scores.log_softmax(-1))[:, candidates]
        return scores + intercepts[row % R].unsqueeze(-1)

    # ---- many draws of few facts ------------------------------------------------------------------------------------

    @torch.no_grad()
    def fact_logits(self, facts: Tensor, draws: int, seed: int = 0) -> Tensor:
        """Draws of the log-odds of facts ``(head, relation, tail)``, shapes ``(n, 3) -> (draws, n)``.

        A draw's latents are the same for all facts where they are global. Equal facts have equal draws, whatever the
        order they stand in.
        """
        facts, place = torch.unique(facts.to(self.device), dim=0, return_inverse=True)
        if not len(facts):
            return torch.zeros(draws, 0, device=self.device)
        if self.form is None or self.kg.categorical:
            return self._facts_by_query(facts, draws, seed)[:, place]
        ends, e = torch.unique(facts[:, [0, 2]], return_inverse=True)
        R = self.graph.num_relations
        rows = facts[:, 1].unique()
        row = torch.searchsorted(rows, facts[:, 1].contiguous())
        both = torch.cat([rows, rows + R]) if self.inverse else rows
        found = []
        for entities, relations, intercepts, tails in self.tables_of(draws, seed, ends, both):
            at_once = max(1, AT_ONCE // (len(entities) * max(self.kg.entity_size, self.kg.relation_size)))
            scores = []
            for part in torch.arange(len(facts), device=self.device).split(at_once):
                loop = (e[part, 0] == e[part, 1]).unsqueeze(-1)
                t = entities[:, e[part, 1]]
                t = t if tails is None else torch.where(loop, tails[:, e[part, 1]], t)
                _, at, count = torch.unique_consecutive(facts[part, :2], dim=0, return_inverse=True, return_counts=True)
                first = part[count.cumsum(0) - count]  # of the facts of each head and relation
                h, own = entities[:, e[first, 0]], relations[:, row[first]]
                back = relations[:, row[first] + len(rows)] if self.inverse else None
                scores.append(self._both_ways(h, own, back, t, at) + intercepts[:, facts[part, 1]])
            found.append(torch.cat(scores, 1))
        return torch.cat(found)[:, place]

    def _both_ways(self, head: Tensor, own: Tensor, back: Tensor | None, tail: Tensor, at: Tensor) -> Tensor:
        """Scores of facts in draws, ``(S, n)``: tails ``(S, n, d)`` of the heads and relations at ``at``, ``(n,)``."""
        score = self.kg.score
        if score.linear:
            query = score.tail_query(head, own)
            query = query if back is None else (query + score.head_query(head, back)) / 2
            return (query[:, at] * tail).sum(-1)
        forth = score.facts(head[:, at], own[:, at], tail)
        return forth if back is None else (forth + score.facts(tail, back[:, at], head[:, at])) / 2

    def tables_of(
        self, draws: int, seed: int, entities: Tensor, relations: Tensor, first: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The first draws of so many, in parts, and other ends of self-loops where facts have latents of their own."""
        assert self.form is not None
        size = len(entities) * self.kg.entity_size + len(relations) * self.kg.relation_size
        numbers = torch.arange(len(self.numbers(draws, seed)), device=self.device)[:first]
        for part in [numbers] if draws <= self.kept else numbers.split(max(1, 4 * AT_ONCE // max(1, size))):
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
        self, anchor: Tensor, row: Tensor, draws: int, seed: int = 0, first: int | None = None
    ) -> Iterator[Tensor]:
        """Log-odds of all candidates of queries ``(b,)`` in each of so many draws, or the ``first``, ``(b, E)``.

        Of the facts that candidates make, in the draws of :meth:`fact_logits`; or of being the answer, where the
        likelihood is categorical.
        """
        anchor, row = anchor.to(self.device), row.to(self.device)
        if self.form is None or self.kg.categorical:
            yield from (self._joint_logits(anchor, row, number, ...) for number in self.numbers(draws, seed)[:first])
            return
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        rows = torch.arange(self.kg.num_relations, device=self.device)
        relation, one_each = row % self.graph.num_relations, torch.arange(len(row), device=self.device)
        for entities, relations, intercepts, tails in self.tables_of(draws, seed, everyone, rows, first):
            for i in range(len(entities)):
                scores = self._read(entities[i, anchor], row, entities[i], relations[i], True)
                if tails is not None:
                    back = relations[i : i + 1, relation + self.graph.num_relations] if self.inverse else None
                    ends = entities[i : i + 1, anchor], relations[i : i + 1, relation]
                    loops = self._both_ways(*ends, back, tails[i : i + 1, anchor], one_each)[0]
                    scores[one_each, anchor] = loops
                yield scores + intercepts[i, relation].unsqueeze(-1)

    # ---- posterior means --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mean_scores(self, anchor: Tensor, row: Tensor, draws: int = 32, both: bool = False) -> Tensor:
        """Posterior mean of the score of every candidate, shapes ``(b,), (b,) -> (b, E)``.

        Exact for multilinear scores: under independent latents the score of the means, and for the self-loop of a
        global latent that plus its variances. For other scores and models the mean of ``draws`` posterior draws (of the
        log-odds, where the model is replayed), the same in every call.

        Args:
            both: of both readings of each fact; else of the query's own.
        """
        anchor, row = anchor.to(self.device), row.to(self.device)
        both = both and self.one_probability
        if self.form is not None and self.kg.score.multilinear and self.guide is not None:
            found = None
            for _ in self.in_turn(self.guide.members):
                entities, relations, variance = self._moments()
                scores = self._read(entities[anchor], row, entities, relations, both)
                if variance is not None:
                    scores = scores.scatter_add(1, anchor[:, None], self._loops(variance[anchor], relations, row, both))
                found = scores if found is None else found + scores
            assert found is not None
            return found / self.guide.members if self.guide.members > 1 else found
        draws = draws if self.samples is None else len(next(iter(self.samples.values())))
        total = torch.zeros(len(anchor), self.graph.num_entities, device=self.device, dtype=self.dtype)
        for number in range(draws):
            if self.form is None or self.form.per_fact:
                total += self._replayed(self.joint(number), anchor, row, number, both)
            else:
                values = self.joint(number)
                entities, relations = values[self._site("entity")], values[self._site("relation")]
                total += self._read(entities[anchor], row, entities, relations, both)
        return total / draws

    @torch.no_grad()
    def mean_relation_scores(self, head: Tensor, tail: Tensor, draws: int = 32) -> Tensor:
        """Posterior mean of the log-odds of every relation between pairs of ends, ``(b,), (b,) -> (b, R)``.

        Of both readings, and exact where :meth:`mean_scores` is; else the mean of ``draws`` posterior draws.
        """
        head, tail, R = head.to(self.device), tail.to(self.device), self.graph.num_relations
        if self.form is None or not self.kg.score.multilinear or self.guide is None:
            each = torch.arange(R, device=self.device).repeat(len(head))
            facts = torch.stack([head.repeat_interleave(R), each, tail.repeat_interleave(R)], 1)
            parts = facts.split(max(1, AT_ONCE // draws))
            return torch.cat([self.fact_logits(part, draws).mean(0) for part in parts]).view(-1, R)
        total, score, loops = self.kg.start.new_zeros(len(head), R), self.kg.score, head == tail
        for _ in self.in_turn(self.guide.members):
            entities, relations, variance = self._moments()
            for one, other, rows in ((head, tail, relations[:R]), (tail, head, relations[-R:]))[: 1 + self.inverse]:
                found = score.relations(entities[one], entities[other], rows)
                if variance is not None and bool(loops.any()):
                    found[loops] += variance[head[loops]] @ score.self_loop_weights(rows, self.kg.entity_size).mT
                total = total + found / (self.guide.members * (1 + self.inverse))
        return total + posterior_mean(self.guide.field("intercept")()) if self.form.intercept else total

    def _loops(self, variance: Tensor, relations: Tensor, row: Tensor, both: bool) -> Tensor:
        """What variances add to the mean score of a query's anchor with itself, ``(b, 1)``."""

        def added(rows: Tensor) -> Tensor:
            each, place = torch.unique(rows, return_inverse=True)
            return (variance * self.kg.score.self_loop_weights(relations[each], self.kg.entity_size)[place]).sum(-1)

        own = added(row if self.inverse else row % self.graph.num_relations)
        return (own if not (both and self.inverse) else (own + added(self.other(row))) / 2).unsqueeze(1)

    def _moments(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Posterior means of entities and relations, and variances of global entities; cached by member."""
        assert self.guide is not None and self.form is not None
        if self.guide.member not in self._means:
            q = self.guide.posterior("entity", ...)
            variance = None if self.form.per_fact else posterior_variance(q)
            self._means[self.guide.member] = (
                posterior_mean(q),
                posterior_mean(self.guide.posterior("relation", ...)),
                variance,
            )
        return self._means[self.guide.member]

    @torch.no_grad()
    def check_form(self, queries: int = 8) -> None:
        """Hold the closed form against the model replayed on the same draw; where they differ, predict by replay."""
        if self.form is None or self.form.per_fact:
            return
        asked = self.graph.training_queries
        index = torch.linspace(0, len(asked) - 1, min(queries, len(asked))).long()
        anchor, row = asked.anchor[index].to(self.device), asked.relation[index].to(self.device)
        closed = self._joint_logits(anchor, row, 0, ...)
        replayed = self._replayed(self.joint(0), anchor, row, 0)
        if not torch.allclose(closed, replayed, rtol=1e-3, atol=1e-3, equal_nan=True):
            self.form = None
