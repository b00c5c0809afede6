"""Likelihoods of facts, given latents: a Bernoulli of every fact, or a categorical of a query's answers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from kgpyro.kernels.candidates import all_candidates_log_prob
from kgpyro.kernels.gaussian import gaussian_draw
from kgpyro.kernels.softmax import log_normaliser
from kgpyro.program.families import log_scale_of
from kgpyro.program.interactions import Score
from kgpyro.program.lazy import Undrawn, observed_of
from kgpyro.program.owners import Share


@dataclass(frozen=True)
class Rows:
    """Latents as rows of a table: ``table[..., ids, :]``, or the table as it is where ``ids`` is None.

    Where processes ``share`` the table it is this one's rows, and the ids are of any.
    """

    table: Tensor
    ids: Tensor | None = None
    share: Share | None = None

    @property
    def values(self) -> Tensor:
        if self.ids is None:
            return self.table[...]
        return self.table[..., self.ids, :] if self.share is None else self.share.lookup(self.table[...], self.ids)

    @property
    def sparse_values(self) -> Tensor:
        """The same of a plain table, with a gradient that has these rows alone: by other uses it is dense anyway."""
        if self.share or self.ids is None or self.table.dim() != 2 or self.table.device.type not in ("cpu", "cuda"):
            return self.values
        return F.embedding(self.ids, self.table[...], sparse=True)

    @property
    def own_draw(self) -> Tensor:
        """A draw for each row of a table that is not drawn, also where ids are equal; else :attr:`values`."""
        if self.ids is None or not isinstance(self.table, Undrawn):
            return self.values
        normal = self.table.fn.base_dist
        loc, log_scale = (Rows(x, self.ids, self.share).values for x in (normal.loc, log_scale_of(normal)))
        return gaussian_draw(loc, log_scale)


@dataclass(frozen=True)
class Given:
    """What the likelihood of a batch is given.

    Attributes:
        anchor, relation: latents of the queries' given ends, ``(b, d_e)``, and relations, ``(b, d_r)``.
        candidate: latents of the facts' other ends: ``(n, d_e)``, or ``(E, d_e)`` where every query meets them all.
        intercept: log-odds of each query's relation, shape ``(b,)``.
        reverse: which queries ask for heads, ``(b,)``, bool; None for none.
        loops: the candidate that is the anchor itself, of each query ``(b,)``, or which single facts are self-loops
            ``(n,)``, bool.
        completeness: ``κ``, the probability with which a true fact between two entities is observed (Elkan & Noto
            2008); it is 1 for self-loops.
        query: of single facts, the query of each, ``(n,)``.
        share: where processes share the candidates, which of them these are; ``loops`` then counts from its first.
    """

    score: Score
    anchor: Rows
    relation: Rows
    candidate: Rows
    intercept: Tensor
    reverse: Tensor | None
    loops: Tensor
    completeness: float = 1.0
    query: Tensor | None = None
    share: Share | None = None


class SingleFacts(dist.Bernoulli):
    """Labels of single facts, ``y ~ Bernoulli(κ sigmoid(φ + b))``; ``true_logits`` are ``φ + b``. All ``(n,)``."""

    def __init__(self, given: Given):
        self.given = given
        q, g = given.query, given
        reverse = None if g.reverse is None else g.reverse[q]
        scores = g.score.facts(g.anchor.values[..., q, :], g.relation.values[..., q, :], g.candidate.values, reverse)
        self.true_logits = scores + g.intercept[..., q]
        super().__init__(logits=observed_logits(self.true_logits, g.completeness, g.loops), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        return dist.Bernoulli(logits=self.logits.expand(batch_shape), validate_args=False)


class AllCandidates(TorchDistribution):
    """Independent Bernoulli labels of the facts that all candidates make with each of ``b`` queries.

        y_c ~ Bernoulli(κ sigmoid(φ(anchor, relation, candidate_c) + b_relation)),  c = 1 … E

    Batch shape ``(*, b)``, event shape ``(E,)``. The log-probability costs one matrix product, and one sum over the
    observed facts. ``estimator`` says how it is computed, with the same expectation over latents:

    * ``plain``: all scores in one matrix;
    * ``shared``: value and gradients in one pass that never stores a ``(b, E)`` matrix;
    * ``local``: the local reparameterisation trick (Kingma et al. 2015) on top. For a score ``⟨u, h_c⟩`` and Gaussian
      ``h_c`` the score is Gaussian with mean ``u·μ_c`` and variance ``u²·σ_c²``: each score is drawn on its own, and
      each query draws its own anchor and relation. A self-loop's score keeps the anchor's draw at both ends.

    ``shared`` takes inner products and Euclidean distances, ``local`` inner products with a table that a guide has yet
    to draw; elsewhere an estimator is the one before it.
    """

    support: constraints.Constraint = constraints.independent(constraints.boolean, 1)
    has_rsample = False

    def __init__(self, given: Given, estimator: str = "plain"):
        self.given, self.estimator = given, estimator
        tables = given.anchor, given.relation, given.candidate
        lead = torch.broadcast_shapes(*(r.table.shape[:-2] for r in tables), given.intercept.shape[:-1])
        batch_shape = torch.Size([*lead, given.intercept.shape[-1]])
        super().__init__(batch_shape, torch.Size([given.candidate.table.shape[-2]]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> AllCandidates:
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def by(self, estimator: str) -> AllCandidates:
        """The same facts by another estimator."""
        score = self.given.score
        walks = score.linear or score.norm == 2
        fused = walks and self.given.candidate.table.dim() == 2 == self.given.anchor.table.dim()
        return type(self)(self.given, estimator if fused else "plain")

    @property
    def true_logits(self) -> Tensor:
        """``φ + b``, the log-odds that a fact is true, ``(*, b, E)``."""
        return self.scores + self.given.intercept.unsqueeze(-1)

    @property
    def scores(self) -> Tensor:
        """``φ`` of all candidates, ``(*, b, E)``."""
        g = self.given
        scores = g.score.candidates(g.anchor.values, g.relation.values, g.candidate.values, g.reverse)
        return scores.expand(self.batch_shape + self.event_shape)

    @property
    def logits(self) -> Tensor:
        """The log-odds that a fact is observed, ``(*, b, E)``."""
        logits = self.true_logits
        loops = self.given.loops.unsqueeze(1) == torch.arange(self.event_shape[0], device=logits.device)
        return observed_logits(logits, self.given.completeness, loops)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        return self._plain(value) if self.estimator == "plain" else self._fused(value, None)

    def weighted_log_prob(self, value: Tensor, weight: Tensor) -> Tensor:
        """``Σ_b weight_b log p(value_b)``, value and gradients in one walk where the estimator has one."""
        if self.estimator == "plain":
            return (self._plain(value) * weight).sum()
        return self._fused(value, weight.expand(self.batch_shape))

    def _plain(self, value: Tensor) -> Tensor:
        logits = self.logits
        labels = value.to(logits).expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)

    def _fused(self, value: Tensor, weight: Tensor | None) -> Tensor:
        """The log-probabilities ``(b,)``, or their weighted sum."""
        g, (rows, columns, labels) = self.given, observed_of(value)
        query, loc, log_scale, own = self._walk()
        missing = g.completeness, g.loops, weight, self._span
        if own is None:
            observed = rows, columns, labels
            return all_candidates_log_prob(
                query, loc, log_scale, g.intercept, observed, None, *missing, not g.score.linear
            )
        # a self-loop's score is the anchor's with itself, so the walk goes without it
        score, loops = g.score.compare(query, self._anchor) + g.intercept, columns == own[rows]
        labels = torch.ones_like(rows, dtype=score.dtype) if labels is None else labels
        hit = torch.zeros_like(score).index_add(0, rows, labels * loops)
        observed = rows, columns, labels.masked_fill(loops, 0.0)
        total = all_candidates_log_prob(query, loc, log_scale, g.intercept, observed, own, *missing)
        loop = (hit * score - F.softplus(score)) * (1 if g.share is None else g.share.own(own + g.share.first))
        return total + (loop if weight is None else (loop * weight).sum())

    @property
    def _span(self) -> tuple[int, int] | None:
        """The first of the candidates and the number of all, where processes share them."""
        return None if self.given.share is None else (self.given.share.first, self.given.share.total)

    def _walk(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Query vectors ``(b, d)``, candidates, their log-scales where scores are drawn, and then the self-loops."""
        g, table = self.given, self.given.candidate.table
        global_latents = g.anchor.table is table
        if self.estimator == "local" and isinstance(table, Undrawn) and g.score.linear:
            self._anchor = g.anchor.own_draw
            query, normal = g.score.queries(self._anchor, g.relation.own_draw, g.reverse), table.fn.base_dist
            return query, normal.loc, log_scale_of(normal), g.loops if global_latents else None
        self._anchor = g.anchor.sparse_values if global_latents else g.anchor.values
        return g.score.queries(self._anchor, g.relation.values, g.reverse), table[...], None, None

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(torch.Size(sample_shape) + self.shape()))


class Answers(AllCandidates):
    """The answers of each of ``b`` queries, each drawn from all candidates on its own.

        answer ~ Categorical(softmax_c φ(anchor, relation, candidate_c)),  c = 1 … E

    The likelihood of Lacroix et al. 2018 (and of every "1vsAll" loss): it says which entities answer a query, and
    nothing of how many do. Batch shape ``(*, b)``, event shape ``(E,)``. A value counts a query's answers, ``(b, E)``;
    its log-probability is that of the answers in their order, one term each. A sample has one answer per query.
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)

    @property
    def true_logits(self) -> Tensor:
        """The log-odds that a candidate is the answer, ``(*, b, E)``."""
        log_p = self.scores.log_softmax(-1).clamp_max(-1e-7)
        return log_p - (-torch.expm1(log_p)).log()

    @property
    def mean(self) -> Tensor:
        return self.scores.softmax(-1)

    def _plain(self, value: Tensor) -> Tensor:
        return (value * self.scores.log_softmax(-1)).sum(-1)

    def _fused(self, value: Tensor, weight: Tensor | None) -> Tensor:
        rows, columns, labels = observed_of(value)
        query, loc, log_scale, own = self._walk()
        # the observed scores are taken at their means, as they enter linearly
        scores = self.given.score.compare(query[rows], Rows(loc, columns).sparse_values)
        normaliser = log_normaliser(query, loc, log_scale, own, self._span, not self.given.score.linear)
        if self.given.share is not None:
            normaliser = self.given.share.log_sum_exp(normaliser)
        if own is not None:
            loops = self.given.score.compare(query, self._anchor)
            scores = torch.where(columns == own[rows], loops[rows], scores)
            normaliser = torch.logaddexp(normaliser, loops)
        each = scores - normaliser[rows]
        each = each if labels is None else each * labels
        if weight is not None:
            return (each * weight[rows]).sum()
        return torch.zeros_like(normaliser).index_add(0, rows, each)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return dist.Multinomial(1, logits=self.scores, validate_args=False).sample(sample_shape)


def observed_logits(logits: Tensor, completeness: float, never_missing: Tensor | None = None) -> Tensor:
    """The log-odds that a fact is observed, ``logit(κ sigmoid(s))`` from those that it is true, elementwise.

    Where it is ``never_missing``, of the shape of ``logits``, they are the same.
    """
    if completeness == 1:
        return logits
    observed = logits - F.softplus(logits + math.log1p(-completeness)) + math.log(completeness)
    return observed if never_missing is None else torch.where(never_missing, logits, observed)


def true_logits_of(fn: Any) -> Tensor:
    """The log-odds that facts are true, from whatever distribution a model has at the site of their labels.

    Raises TypeError for one that is no distribution of independent labels.
    """
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, (SingleFacts, AllCandidates)):
        return fn.true_logits
    if isinstance(fn, torch.distributions.Bernoulli):
        return fn.logits
    raise TypeError(f"labels drawn from {type(fn).__name__} have no log-odds; use Bernoulli, or kg.likelihood")
