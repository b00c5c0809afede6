"""Log-odds of facts under the posterior: their means, draws, and predictive probabilities, of candidates or of facts.

A model is replayed on draws of its latents (:mod:`kgpyro.posterior.replay`). Where its labels are what the setting's
likelihood makes of the latents as they are (:class:`Standard`), closed forms take the place of the replay.

A fact has two readings where relations have inverses, φ(h, r, t) and φ(t, r⁻¹, h). Its log-odds are their mean plus the
relation's intercept, in each draw: one probability, whichever end is asked for. The bound of a fit, which counts half
of the log-likelihood of each reading, is a bound of this model too, since softplus is convex.

A categorical likelihood says how probable it is that one answer of a query is this candidate. The evidence for a fact
is the mean over both of its queries of what :mod:`kgpyro.posterior.uncertainty` makes of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.kernels.pairs import Pairs
from kgpyro.posterior.draws import AT_ONCE, Draws
from kgpyro.posterior.replay import replayed_logits
from kgpyro.posterior.uncertainty import log_odds, of_open_answers, usual_answers
from kgpyro.program.families import posterior_mean, posterior_variance

OTHER_END = 1_000_003  # added to a seed: of the other end of a self-loop, where facts have latents of their own


class PosteriorScores(Draws):
    """Scores of a graph's facts under a posterior."""

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

    # ---- candidates of queries --------------------------------------------------------------------------------------

    def answer_logits(
        self, anchor: Tensor, row: Tensor, draws: int, seed: int = 0, candidates: Tensor | EllipsisType = ...
    ) -> Iterator[Tensor]:
        """Log-odds of candidates (all, or ids ``(c,)``) of queries ``(b,)`` in each of so many draws, ``(b, c)``.

        Of the facts that candidates make, in the draws of :meth:`fact_logits`; or of being the answer, where the
        likelihood is categorical.
        """
        return self._logits(anchor, row, range(len(self.numbers(draws, seed))), draws, seed, candidates)

    @torch.no_grad()
    def probabilities(
        self, anchor: Tensor, row: Tensor, draws: int = 100, candidates: Tensor | EllipsisType = ...
    ) -> Tensor:
        """Monte-Carlo posterior predictive probability of candidates (all, or ids ``(c,)``), ``(b, E)`` or ``(b, c)``.

        Of the fact that one makes with the query, or under the categorical likelihood that it is the answer. Queries
        are ``anchor`` and ``row`` of shape ``(b,)``.
        """
        return _mean_probability(self.answer_logits(anchor, row, draws, 0, candidates), len(self.numbers(draws, 0)))

    @torch.no_grad()
    def joint_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: Sequence[int], candidates: Tensor | EllipsisType = ...
    ) -> Iterator[Tensor]:
        """Probabilities of candidates in joint draws of all latents, ``(b, E)`` or ``(b, c)`` for each number.

        Global latents (LIM) are one table of entities and one of relations, which a number's facts share, in this call
        and in any other. Where each fact has latents of its own (LFM) labels are independent given the guide, and
        every draw has the posterior predictive probability (of a mixture's member).
        """
        if self.form is None or not self.form.per_fact:
            yield from (logits.sigmoid_() for logits in self._logits(anchor, row, numbers, None, 0, candidates))
            return
        assert self.guide is not None
        found: dict[int, Tensor] = {}
        for number in numbers:
            if (member := number % self.guide.members) not in found:
                its = range(member, 100 * self.guide.members, self.guide.members)
                found[member] = _mean_probability(self._logits(anchor, row, its, None, 0, candidates), len(its))
            yield found[member]

    @torch.no_grad()
    def _logits(
        self, anchor: Tensor, row: Tensor, part: Sequence[int], draws: int | None, seed: int,
        candidates: Tensor | EllipsisType = ..., both: bool = True,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Log-odds ``(b, c)`` in each draw of a part, as :meth:`drawn` has it; of both readings, or the query's own."""
        anchor, row = anchor.to(self.device), row.to(self.device)
        if self.form is None:
            for number in part if draws is None else self.numbers(draws, seed):
                yield self._replayed(self.joint(number), anchor, row, number, both)[:, candidates].clone()
            return
        of = (..., False) if self.kg.categorical else (candidates, both)
        for number, scores in zip(part, self._scores(anchor, row, part, draws, seed, *of), strict=True):
            yield self._with_level(scores, row, self._intercepts([number], draws, seed)[0], candidates)

    def _with_level(self, scores: Tensor, row: Tensor, intercepts: Tensor, candidates: Tensor | EllipsisType) -> Tensor:
        """Log-odds from scores, those of all candidates where the likelihood is categorical."""
        if self.kg.categorical:
            return log_odds(scores.log_softmax(-1))[:, candidates]
        return scores.add_(intercepts[row % self.graph.num_relations].unsqueeze(-1))

    def _scores(
        self, anchor: Tensor, row: Tensor, part: Sequence[int], draws: int | None, seed: int,
        candidates: Tensor | EllipsisType, both: bool,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Scores ``(b, c)`` in each draw, in closed form."""
        assert self.form is not None
        R, each = self.graph.num_relations, torch.arange(len(row), device=self.device)
        ends, place = torch.unique(anchor, return_inverse=True)
        rows, latent = torch.unique(self._latent_rows(row), return_inverse=True)
        everyone = torch.arange(self.graph.num_entities, device=self.device)[candidates]
        forth = torch.where(row < R, latent[: len(row)], latent[-len(row) :])  # of the relation itself
        latents_of_loops = torch.cat([forth, latent[: len(row)] + latent[-len(row) :] - forth][: 1 + self.inverse])
        blocks = [(block, everyone[block]) for block in self._blocks(len(everyone))]
        for number in part:
            head = self.drawn("entity", ends, [number], draws, seed)[0, place]
            relations = self.drawn("relation", rows, [number], draws, seed)[0]
            read = relations[latent]
            scores = torch.empty(len(row), len(everyone), dtype=self.dtype, device=self.device)
            for block, ids in blocks:
                tails = self.drawn("entity", ids, [number], draws, seed)[0]
                scores[:, block] = self._read(head, row, tails, read, both)
            if self.form.per_fact:  # a self-loop whose ends have draws of their own
                tails = self.drawn("entity", ends, [number], draws, seed + OTHER_END)[:, place]
                loops = self._both_ways(head.unsqueeze(0), relations[latents_of_loops].unsqueeze(0), each, tails)
                scores = torch.where(anchor.unsqueeze(1) == everyone, loops.T, scores)
            yield scores

    def _replayed(
        self, values: Mapping[str, Tensor], anchor: Tensor, row: Tensor, number: int, both: bool = True
    ) -> Tensor:
        """Log-odds ``(b, E)`` by replay; of both readings of each fact, or of the query's own."""
        own = replayed_logits(self.program, self.guide, values, anchor, row, number)
        if not both or self.kg.categorical:
            return own
        size = self.graph.num_entities
        everyone = torch.arange(size, device=self.device)  # each candidate is the anchor of the other reading
        asked, place = torch.unique(self.other(row), return_inverse=True)
        read, few = torch.empty_like(own), max(1, AT_ONCE // (size * size * self.kg.entity_size))
        for first in range(0, len(asked), few):
            rows = asked[first : first + few]
            mine = ((place >= first) & (place < first + few)).nonzero().squeeze(1)
            for part in everyone.split(max(1, 4 * AT_ONCE // size)):
                asked_of = part.repeat(len(rows)), rows.repeat_interleave(len(part))
                back = replayed_logits(self.program, self.guide, values, *asked_of, number)
                back = back.unflatten(0, (len(rows), len(part)))[place[mine] - first, :, anchor[mine]]
                read[mine[:, None], part] = back
        return (own + read) / 2

    def _latent_rows(self, row: Tensor) -> Tensor:
        """Whose latents queries of these rows read: their own relation's row, then that of its other reading."""
        return torch.cat([row, self.other(row)]) if self.inverse else row % self.graph.num_relations

    def _read(self, anchor: Tensor, row: Tensor, candidates: Tensor, relations: Tensor, both: bool) -> Tensor:
        """Scores of candidates, ``(b, d_e), (b,), (c, d_e) -> (b, c)``, given latents of :meth:`_latent_rows`."""
        score, own, back = self.kg.score, relations[: len(row)], relations[-len(row) :]
        if score.linear and (both or not self.inverse):  # both readings in one product
            return self._query(anchor, relations, row >= self.graph.num_relations) @ candidates.mT
        if not self.inverse:
            return score.candidates(anchor, own, candidates, row >= self.graph.num_relations)
        scores = score.candidates(anchor, own, candidates)
        if not both:
            return scores
        return (scores + score.candidates(anchor, back, candidates, torch.ones_like(row, dtype=torch.bool))) / 2

    def _query(self, anchor: Tensor, relations: Tensor, reverse: Tensor) -> Tensor:
        """Query vectors of a linear score, ``(b, d_e)``, of all readings; ``reverse`` says which ask for heads."""
        score = self.kg.score
        if not self.inverse:
            return score.queries(anchor, relations, reverse)
        own, back = relations.chunk(2)
        return (score.tail_query(anchor, own) + score.head_query(anchor, back)) / 2

    def _blocks(self, count: int) -> list[slice]:
        """So many entities, in parts of whose latents there are few enough at once."""
        size = max(1, AT_ONCE // max(self.kg.entity_size, 1))
        return [slice(start, start + size) for start in range(0, count, size)]

    # ---- listed facts -----------------------------------------------------------------------------------------------

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
                    given = entities[i].index_select(0, anchor), relations[i].index_select(0, latents)
                    scores[i, start:end] = its.products(self._query(*given, reverse), entities[i])
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
        for part in torch.arange(len(self.numbers(draws, seed))).split(max(1, AT_ONCE // max(1, size))):
            e = self.drawn("entity", entities, part, draws, seed)
            tails = self.drawn("entity", entities, part, draws, seed + OTHER_END) if self.form.per_fact else None
            yield e, self.drawn("relation", relations, part, draws, seed), self._intercepts(part, draws, seed), tails

    def _facts_by_query(self, facts: Tensor, draws: int, seed: int) -> Tensor:
        """The same from the log-odds of all candidates of both queries of each fact."""
        R, E = self.graph.num_relations, self.graph.num_entities
        part = range(len(self.numbers(draws, seed)))
        found = torch.zeros(len(part), len(facts), device=self.device, dtype=self.dtype)
        usual = usual_answers(self.graph).to(self.kg.start) if self.kg.categorical else None
        ways = ((facts[:, 0], facts[:, 1], facts[:, 2]), (facts[:, 2], facts[:, 1] + R, facts[:, 0]))
        for anchor, row, answer in ways:
            key, place = torch.unique(row * E + anchor, return_inverse=True)
            for block in torch.arange(len(key), device=self.device).split(max(1, 4 * AT_ONCE // E)):
                asked = key[block] % E, key[block] // E
                here = ((place >= block[0]) & (place <= block[-1])).nonzero().squeeze(-1)
                query, candidate = place[here] - block[0], answer[here]
                for i, logits in enumerate(self._logits(*asked, part, draws, seed, both=False)):
                    if usual is not None:
                        found[i, here] += of_open_answers(logits, self.graph, usual, *asked, query, candidate) / 2
                    else:
                        found[i, here] += logits[query, candidate] / 2
        return found

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
        both = both and not self.kg.categorical
        if self.form is not None and self.kg.score.multilinear and self.guide is not None:
            members = self.guide.members
            each = (self._exact_means(anchor, row, both) for _ in self.in_turn(members))
            return reduce(Tensor.add_, each).div_(members)
        draws = draws if self.samples is None else len(next(iter(self.samples.values())))
        of = self._logits if self.form is None else self._scores
        return reduce(Tensor.add_, of(anchor, row, range(draws), draws, 0, ..., both)).div_(draws)

    def _exact_means(self, anchor: Tensor, row: Tensor, both: bool) -> Tensor:
        """The mean scores by the member of a mixture in use, of the candidates that this process owns."""
        assert self.guide is not None and self.form is not None
        (entities, relations), share = self._moments(), self.kg.share
        q = None if self.form.per_fact else self.guide.posterior("entity", anchor)
        head = entities[anchor] if share is None else posterior_mean(q)
        scores = self._read(head, row, entities, relations[self._latent_rows(row)], both)
        if q is not None:
            loops = self._loops(posterior_variance(q), relations, row, both)
            first, last = (0, len(entities)) if share is None else (share.first, share.last)
            own = ((anchor >= first) & (anchor < last)).nonzero().squeeze(-1)
            scores[own, anchor[own] - first] += loops[own, 0]
        return scores

    def _loops(self, variance: Tensor, relations: Tensor, row: Tensor, both: bool) -> Tensor:
        """What variances add to the mean score of a query's anchor with itself, ``(b, 1)``."""

        def added(rows: Tensor) -> Tensor:
            each, place = torch.unique(rows, return_inverse=True)
            return (variance * self.kg.score.self_loop_weights(relations[each], self.kg.entity_size)[place]).sum(-1)

        own = added(row if self.inverse else row % self.graph.num_relations)
        return (own if not (both and self.inverse) else (own + added(self.other(row))) / 2).unsqueeze(1)

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
            variance = posterior_variance(self.guide.posterior("entity", head[loops]))
            for one, other, rows in ((head, tail, relations[:R]), (tail, head, relations[-R:]))[: 1 + self.inverse]:
                found = score.relations(entities[one], entities[other], rows)
                if not self.form.per_fact:
                    found[loops] += variance @ score.self_loop_weights(rows, self.kg.entity_size).mT
                total = total + found / (self.guide.members * (1 + self.inverse))
        return total + posterior_mean(self.guide.field("intercept")()) if self.form.intercept else total

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Posterior means of entities and relations; cached by member."""
        assert self.guide is not None
        guide = self.guide
        each = (posterior_mean(guide.posterior(kind, ...)) for kind in ("entity", "relation"))
        entities, relations = self._cached("means", guide.member, lambda: [*each], guide.members)
        return entities, relations

    @torch.no_grad()
    def check_form(self) -> None:
        """Hold the closed form against the model replayed on the same draw; where they differ, predict by replay."""
        if self.form is None or self.form.per_fact:
            return
        asked = self.graph.training_queries
        index = torch.linspace(0, len(asked) - 1, min(8, len(asked))).long()
        anchor, row = asked.anchor[index].to(self.device), asked.relation[index].to(self.device)
        values, both = self.joint(0), not self.kg.categorical
        entities, relations = values[self._site("entity")], values[self._site("relation")][self._latent_rows(row)]
        scores = self._read(entities[anchor], row, entities, relations, both)
        levels = values["intercept"] if self.form.intercept else entities.new_zeros(self.graph.num_relations)
        closed, replayed = self._with_level(scores, row, levels, ...), self._replayed(values, anchor, row, 0)
        if not torch.allclose(closed, replayed, rtol=1e-3, atol=1e-3, equal_nan=True):
            self.form = None


def _mean_probability(each: Iterator[Tensor], draws: int) -> Tensor:
    return reduce(Tensor.add_, (logits.sigmoid_() for logits in each)).div_(draws)
