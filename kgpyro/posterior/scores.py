"""Log-odds of facts under the posterior: their means, draws, and predictive probabilities, of candidates or of facts.

A model is replayed on draws of its latents (:mod:`kgpyro.posterior.replay`). Where its labels are what the setting's
likelihood makes of the latents as they are (:class:`Standard`), closed forms take the place of the replay.

A fact has two readings where relations have inverses, φ(h, r, t) and φ(t, r⁻¹, h). Its log-odds are their mean plus the
relation's intercept, in each draw: one probability, whichever end is asked for. The bound of a fit, which counts half
of the log-likelihood of each reading, is a bound of this model too, since softplus is convex.

A categorical likelihood says how probable it is that one answer of a query is this candidate. A query with n answers
holds a fact with about n times that probability. So the log-odds of a fact are taken as those of being the answer plus
the logarithm of how many answers such a query has in training, the mean over both of its queries; what is left to the
base rate :meth:`Posterior.recalibrate` fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from kgpyro.errors import InputError
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
            mine = (place == i).nonzero()
            for part in everyone.split(max(1, 4 * AT_ONCE // len(everyone))):
                back = replayed_logits(self.program, self.guide, values, part, relation.expand(len(part)), number)
                read[mine, part] = back[:, anchor[mine.squeeze(1)]].T
        return (own + read) / 2

    def _latent_rows(self, row: Tensor) -> Tensor:
        """Whose latents queries of these rows read: their own relation's row, and then that of its other reading."""
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
        """Query vectors of a linear score, ``(b, d_e)``; of both readings where relations have inverses.

        Args:
            anchor: latents of the given entities, ``(b, d_e)``.
            relations: those of :meth:`_latent_rows`.
            reverse: which ask for heads, ``(b,)``, bool.
        """
        score = self.kg.score
        if not self.inverse:
            return score.queries(anchor, relations, reverse)
        own, back = relations.chunk(2)
        return (score.tail_query(anchor, own) + score.head_query(anchor, back)) / 2

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
        if self.form is None or self.form.per_fact:
            return self._replayed(self.joint(number), anchor, row, number)[:, candidates].clone()
        if not self._by_rows:
            return self._closed_logits(self.joint(number), anchor, row, candidates)
        ids, part = self._ids(candidates), torch.tensor([number], device=self.device)
        scores = torch.empty(len(anchor), len(ids), dtype=self.dtype, device=self.device)
        head, relations = (
            self._of_pool(*of, part, 0)[0] for of in (("entity", anchor), ("relation", self._latent_rows(row)))
        )
        for block in self._blocks(len(ids)):
            scores[:, block] = self._read(head, row, self._of_pool("entity", ids[block], part, 0)[0], relations, True)
        return scores.add_(self._intercepts(part, 0)[0, row % self.graph.num_relations].unsqueeze(-1))

    def _closed_logits(
        self, values: Mapping[str, Tensor], anchor: Tensor, row: Tensor, candidates: Tensor | EllipsisType
    ) -> Tensor:
        """Log-odds ``(b, c)`` in closed form, given all latents."""
        assert self.form is not None
        entities, relations = values[self._site("entity")], values[self._site("relation")][self._latent_rows(row)]
        if self.kg.categorical:
            return _log_odds(self._read(entities[anchor], row, entities, relations, False))[:, candidates]
        scores = self._read(entities[anchor], row, entities[candidates], relations, True)
        if self.form.intercept:
            scores = scores + values["intercept"][row % self.graph.num_relations].unsqueeze(-1)
        return scores

    def _ids(self, candidates: Tensor | EllipsisType) -> Tensor:
        if isinstance(candidates, EllipsisType):
            return torch.arange(self.graph.num_entities, device=self.device)
        return candidates

    def _blocks(self, count: int) -> list[slice]:
        """So many entities, in parts of whose latents there are few enough at once."""
        size = max(1, AT_ONCE // max(self.kg.entity_size, 1))
        return [slice(start, start + size) for start in range(0, count, size)]

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
            drawn = self._member_rows(1, anchor, self._latent_rows(row))
            head, relations, intercepts = (table[0] for table in drawn)
            return self._noisy(head, relations, intercepts, anchor, row, candidates)

    @property
    def _score_noise(self) -> bool:
        """Whether the score of a candidate is Gaussian, given the query."""
        if self.guide is None or self.form is None or not self.kg.score.linear:
            return False
        return is_gaussian(self.guide.posterior("entity", torch.zeros(1, dtype=torch.long, device=self.device)))

    def _noisy(
        self, head: Tensor, relations: Tensor, intercepts: Tensor, anchor: Tensor, row: Tensor,
        candidates: Tensor | EllipsisType,
    ) -> Tensor:  # fmt: skip
        """Log-odds ``(b, c)`` with each score drawn on its own, given draws of queries' ends and relations."""
        assert self.guide is not None and self.form is not None
        R = self.graph.num_relations
        if self.inverse and self.kg.categorical:
            query = self.kg.score.tail_query(head, relations[: len(row)])
        else:
            query = self._query(head, relations, row >= R)
        ids, squares = self._ids(... if self.kg.categorical else candidates), query.square()
        scores = torch.empty(len(query), len(ids), dtype=self.dtype, device=self.device)
        for block in self._blocks(len(ids)):
            q = self.guide.posterior("entity", ids[block]).base_dist
            mean, variance = query @ q.loc.mT, squares @ q.scale.square().mT
            scores[:, block] = mean.addcmul_(variance.clamp_min_(1e-20).sqrt_(), torch.randn_like(mean))
        if not self.form.per_fact:  # a self-loop has the anchor's draw at both ends
            loops = (query * head).sum(-1, keepdim=True)
            scores = torch.where(anchor.unsqueeze(1) == ids, loops, scores)
        if self.kg.categorical:
            return _log_odds(scores)[:, candidates]
        return scores + intercepts[row % R].unsqueeze(-1)

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
                entities, relations = self._moments()
                scores = self._read(entities[anchor], row, entities, relations[self._latent_rows(row)], both)
                if not self.form.per_fact:
                    scores.scatter_add_(1, anchor[:, None], self._loops(self._variance(anchor), relations, row, both))
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
                total += self._read(entities[anchor], row, entities, relations[self._latent_rows(row)], both)
        return total / draws

    def _loops(self, variance: Tensor, relations: Tensor, row: Tensor, both: bool) -> Tensor:
        """What variances add to the mean score of a query's anchor with itself, ``(b, 1)``."""

        def added(rows: Tensor) -> Tensor:
            each, place = torch.unique(rows, return_inverse=True)
            return (variance * self.kg.score.self_loop_weights(relations[each], self.kg.entity_size)[place]).sum(-1)

        own = added(row if self.inverse else row % self.graph.num_relations)
        return (own if not (both and self.inverse) else (own + added(self.other(row))) / 2).unsqueeze(1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Posterior means of entities and relations; cached by member."""
        assert self.guide is not None
        if self.guide.member not in self._means:
            entities, relations = (posterior_mean(self.guide.posterior(kind, ...)) for kind in ("entity", "relation"))
            self._means[self.guide.member] = entities, relations
        return self._means[self.guide.member]

    def _spreads(self) -> tuple[Tensor, Tensor]:
        """Of each entity's latents the squared length of the mean and the mean variance, ``(E,)``; cached by member."""
        assert self.guide is not None
        if (cached := self._lengths.get(self.guide.member)) is None:
            entities, variances = self._moments()[0], []
            for block in self._blocks(len(entities)):
                ids = torch.arange(len(entities), device=self.device)[block]
                variances.append(posterior_variance(self.guide.posterior("entity", ids)).mean(1))
            cached = self._lengths[self.guide.member] = entities.square().sum(1), torch.cat(variances)
        return cached

    def _variance(self, entities: Tensor) -> Tensor:
        """Posterior variances of these entities, ``(n,) -> (n, d)``."""
        assert self.guide is not None
        return posterior_variance(self.guide.posterior("entity", entities))

    @torch.no_grad()
    def check_form(self, queries: int = 8) -> None:
        """Hold the closed form against the model replayed on the same draw; where they differ, predict by replay."""
        if self.form is None or self.form.per_fact:
            return
        asked = self.graph.training_queries
        index = torch.linspace(0, len(asked) - 1, min(queries, len(asked))).long()
        anchor, row = asked.anchor[index].to(self.device), asked.relation[index].to(self.device)
        values = self.joint(0)
        closed, replayed = self._closed_logits(values, anchor, row, ...), self._replayed(values, anchor, row, 0)
        if not torch.allclose(closed, replayed, rtol=1e-3, atol=1e-3, equal_nan=True):
            self.form = None


def _log_odds(scores: Tensor) -> Tensor:
    """Of each candidate being the answer, from scores of all, ``(b, E)``."""
    log_p = scores.log_softmax(-1).clamp_max(-1e-7)
    return log_p - (-torch.expm1(log_p)).log()
