"""Likelihoods over all candidates of a query at once: a Bernoulli of every fact, or a categorical of the answers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from kgpyro.kernels.candidates import all_candidates_log_prob, log_normaliser
from kgpyro.kernels.gaussian import gaussian_draw, gaussian_draw_and_kl
from kgpyro.program.families import is_gaussian, log_scale_of
from kgpyro.program.interactions import Score

ESTIMATORS = ("local", "shared", "plain")
LIKELIHOODS = ("bernoulli", "categorical")


class AllCandidates(TorchDistribution):
    """Independent Bernoulli labels of the facts that all candidates make with each of ``b`` queries.

        y_c ~ Bernoulli(κ sigmoid(φ(anchor, relation, candidate_c) + b_relation)),  c = 1 … E

    Batch shape ``(b,)``, event shape ``(E,)``. A value is a ``(b, E)`` tensor of 0 and 1, dense or sparse (COO); the
    log-probability costs one matrix product, and one sum over the observed facts.

    Args:
        score: the scoring function.
        anchor: latents of the given entities, shape ``(b, d_e)``.
        relation: latents of the relations, shape ``(b, d_r)``.
        table: latents of all candidates, shape ``(E, d_e)``.
        intercept: ``b_p`` of each query, shape ``(b,)``.
        reverse: which queries ask for heads, shape ``(b,)``, bool; None for none.
        symbols: entity ids of the anchors and row ids of the relations, both ``(b,)``.
        completeness: ``κ``, the probability with which a true fact between two entities is observed (Elkan & Noto
            2008); it is 1 for those of an entity with itself, where ``symbols`` tell which these are.
    """

    support: constraints.Constraint = constraints.independent(constraints.boolean, 1)
    has_rsample = False

    def __init__(
        self,
        score: Score,
        anchor: Tensor,
        relation: Tensor,
        table: Tensor,
        intercept: Tensor,
        reverse: Tensor | None = None,
        symbols: tuple[Tensor, Tensor] | None = None,
        completeness: float = 1.0,
    ):
        self.score, self.anchor, self.relation, self.table = score, anchor, relation, table
        self.intercept, self.reverse, self.symbols, self.completeness = intercept, reverse, symbols, completeness
        self._kernel = False
        self._candidates: dist.Normal | None = None
        self._own: Tensor | None = None
        super().__init__(torch.Size([len(anchor)]), torch.Size([len(table)]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> AllCandidates:
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"queries {tuple(self.batch_shape)} cannot be expanded to {tuple(batch_shape)}")
        return self

    def with_kernel(self) -> AllCandidates:
        """The same facts, their log-probability computed in one pass that never stores a ``(b, E)`` matrix."""
        return self._changed(_kernel=self.score.linear)

    def with_local_noise(self, candidates: dist.Normal, own: Tensor | None = None) -> AllCandidates:
        """The same facts with every score drawn on its own, given Gaussian candidates.

        For a score ``⟨u, h_o⟩`` and Gaussian ``h_o`` the score is Gaussian with mean ``u·μ_o`` and variance ``u²·σ_o²``
        (Kingma et al. 2015). Each fact's expected log-likelihood is the same as with one shared draw of the table,
        which is all the ELBO depends on; the noise of its gradient is far smaller. ``own`` are entity ids ``(b,)``
        where an anchor is the same latent as a candidate: that self-loop's score keeps the anchor's draw at both ends.
        """
        return self._changed(_candidates=candidates, _own=own)

    def with_own_draws(self, entities: dist.Normal | None, relations: dist.Normal | None) -> AllCandidates:
        """The same facts with a fresh draw of anchor or relation for every query instead of one per symbol."""
        assert self.symbols is not None
        anchor = self.anchor if entities is None else _draw(entities, self.symbols[0])
        relation = self.relation if relations is None else _draw(relations, self.symbols[1])
        return self._changed(anchor=anchor, relation=relation)

    def with_anchors_of_table(self) -> AllCandidates:
        """The same facts, the anchors, which are rows of the table, looked up in it by :func:`_rows`."""
        assert self.symbols is not None
        return self._changed(anchor=_rows(self.table, self.symbols[0]))

    def _changed(self, **changes: Any) -> AllCandidates:
        new = copy.copy(self)
        new.__dict__.update(changes)
        return new

    @property
    def logits(self) -> Tensor:
        """``φ + b_p``, the log-odds that a fact is true, ``(b, E)``; drawn afresh at each call under local noise."""
        if self._candidates is None:
            scores = self.score.candidates(self.anchor, self.relation, self.table, self.reverse)
            return scores + self.intercept.unsqueeze(-1)
        loc, scale = self._candidates.loc, self._candidates.scale
        query = self.score.queries(self.anchor, self.relation, self.reverse)
        mean, variance = query @ loc.mT, query.square() @ scale.square().mT
        scores = torch.addcmul(mean, variance.clamp_min(1e-20).sqrt(), torch.randn_like(mean))
        if self._own is not None:
            own = self.score.compare(query, self.anchor)
            scores = scores.scatter(1, self._own.unsqueeze(1), own.unsqueeze(1))
        return scores + self.intercept.unsqueeze(-1)

    @property
    def observed_logits(self) -> Tensor:
        """The log-odds that a fact is observed, ``(b, E)``; drawn afresh at each call under local noise."""
        logits = self.logits
        loops = None
        if self.symbols is not None:
            loops = self.symbols[0].unsqueeze(1) == torch.arange(len(self.table), device=logits.device)
        return observed_logits(logits, self.completeness, loops)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._kernel:
            return self._kernel_log_prob(value if value.is_sparse else value.to_sparse())
        logits = self.observed_logits
        if not value.is_sparse:
            return -F.binary_cross_entropy_with_logits(logits, value.to(logits), reduction="none").sum(-1)
        rows, columns = value._indices()
        observed = logits.new_zeros(len(logits)).index_add(0, rows, logits[rows, columns])
        return observed - F.softplus(logits).sum(-1)

    def _kernel_log_prob(self, value: Tensor) -> Tensor:
        query = self.score.queries(self.anchor, self.relation, self.reverse)
        rows, columns = value._indices()
        missing = self.completeness, None if self.symbols is None else self.symbols[0]
        if self._candidates is None:
            return all_candidates_log_prob(query, self.table, None, self.intercept, (rows, columns), None, *missing)
        loc, log_scale, own = self._candidates.loc, log_scale_of(self._candidates), self._own
        if own is None:
            return all_candidates_log_prob(query, loc, log_scale, self.intercept, (rows, columns), None, *missing)
        loops = columns == own[rows]
        others = rows[~loops], columns[~loops]
        score = self.score.compare(query, self.anchor) + self.intercept
        observed = torch.zeros_like(score).index_fill(0, rows[loops], 1.0)
        loop = observed * score - F.softplus(score)
        return loop + all_candidates_log_prob(query, loc, log_scale, self.intercept, others, own, *missing)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.observed_logits.sigmoid().expand(torch.Size(sample_shape) + self.shape()))


class Answers(AllCandidates):
    """The answers of each of ``b`` queries, each drawn from all candidates on its own.

        answer ~ Categorical(softmax_c φ(anchor, relation, candidate_c)),  c = 1 … E

    The likelihood of Lacroix et al. 2018 (and of every "1vsAll" loss): it says which entities answer a query, and
    nothing of how many do. Batch shape ``(b,)``, event shape ``(E,)``. A value counts a query's answers, a ``(b, E)``
    tensor, dense or sparse; its log-probability is that of the answers in their order, one term each.

    Args:
        score, anchor, relation, table, reverse, symbols: as of :class:`AllCandidates`.
        number: of answers of each query, shape ``(b,)``; what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        score: Score,
        anchor: Tensor,
        relation: Tensor,
        table: Tensor,
        number: Tensor,
        reverse: Tensor | None = None,
        symbols: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__(score, anchor, relation, table, torch.zeros_like(anchor[:, 0]), reverse, symbols)
        self.number = number

    def log_prob(self, value: Tensor) -> Tensor:
        if not self._kernel:
            return (value.to_dense() * self.logits.log_softmax(-1)).sum(-1)
        query = self.score.queries(self.anchor, self.relation, self.reverse)
        rows, columns = (value if value.is_sparse else value.to_sparse())._indices()
        table, log_scale, own = self.table, None, self._own
        if self._candidates is not None:  # the observed scores are taken at their means, as they enter linearly
            table, log_scale = self._candidates.loc, log_scale_of(self._candidates)
        scores = (query[rows] * _rows(table, columns)).sum(-1)
        normaliser = log_normaliser(query, table, log_scale, own)
        if own is not None:
            loops = self.score.compare(query, self.anchor)
            scores = torch.where(columns == own[rows], loops[rows], scores)
            normaliser = torch.logaddexp(normaliser, loops)
        return torch.zeros_like(normaliser).index_add(0, rows, scores - normaliser[rows])

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            counts = [
                dist.Multinomial(int(n), logits=logits).sample(sample_shape)
                for n, logits in zip(self.number, self.logits, strict=True)
            ]
            return torch.stack(counts, -2)


def observed_logits(logits: Tensor, completeness: float, never_missing: Tensor | None = None) -> Tensor:
    """The log-odds that a fact is observed, ``logit(κ sigmoid(s))`` from those that it is true, elementwise.

    Where it is ``never_missing``, of the shape of ``logits``, they are the same.
    """
    if completeness == 1:
        return logits
    observed = logits - F.softplus(logits + math.log1p(-completeness)) + math.log(completeness)
    return observed if never_missing is None else torch.where(never_missing, logits, observed)


def _rows(table: Tensor, ids: Tensor) -> Tensor:
    """``table[ids]``, of a table whose gradient is dense by other uses: that of this one has these rows only."""
    return F.embedding(ids, table, sparse=table.device.type in ("cpu", "cuda"))


def _draw(normal: dist.Normal, rows: Tensor) -> Tensor:
    return gaussian_draw(normal.loc[rows], log_scale_of(normal)[rows])


class Postpone(Messenger):
    """Effect handler around a guide: Gaussian tables are not drawn yet, for the model may say how, or not at all.

    In place of the draw stands NaN, without memory of its own but with a place in the autograd graph, by which
    :class:`Integrate` knows its rows. A use that ``Integrate`` does not replace makes the bound NaN, and the bound is
    then computed again with every latent drawn.
    """

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if not msg["done"] and not msg["is_observed"] and is_gaussian(fn) and torch.is_grad_enabled():
            nan = torch.full_like(fn.base_dist.loc[:1, :1].detach(), torch.nan).requires_grad_()
            msg["value"] = nan.expand(fn.shape())
            msg["done"] = True


def _postponed(value: Tensor) -> bool:
    return value.numel() > 1 and not any(value.stride())


class Integrate(Messenger):
    """Effect handler: how a step integrates over the latents of an :class:`AllCandidates`.

    Runs around a model that is replayed against ``guide_trace``; everything but the likelihood is left as the model
    wrote it. A handler, so that neither models nor guides know of it: the model goes on saying what is true, this says
    how to integrate it. The estimators all have the same expectation:

    * ``plain``: Pyro's own: one draw of every latent, all scores of a batch in one matrix;
    * ``shared``: the same draws, log-likelihood and gradients by :func:`kgpyro.kernels.all_candidates_log_prob`;
    * ``local``: the local reparameterisation trick on top. Where the table is the value the guide drew at a Normal
      site, each fact's score is drawn instead of the candidates' latents; and where anchors or relations are rows of
      such a value, each query draws its own.

    What a score or a guide does not admit falls back to the estimator before it.

    Args:
        guide_trace: a run of the guide.
        estimator: one of the above.
        draw: draw at the model's sites what the guide postponed, each in one pass with its KL.

    Attributes:
        kl: by site, the KL of each latent that was drawn along with it.
    """

    def __init__(self, guide_trace: Trace, estimator: str, draw: bool = False):
        super().__init__()
        self.estimator, self.draw = estimator, draw
        self.guide = guide_trace.nodes
        self.kl: dict[str, Tensor] = {}
        self.normals: list[tuple[Tensor, dist.Normal]] = []
        for site in guide_trace.nodes.values():
            if site["type"] == "sample" and is_gaussian(site["fn"]):
                self.normals.append((site["value"], site["fn"].base_dist))

    def _pyro_sample(self, msg: dict) -> None:
        if msg["is_observed"] and isinstance(msg["fn"], AllCandidates):
            msg["fn"] = self._likelihood(msg["fn"])
        elif self.draw and msg["done"] and _postponed(msg["value"]):
            q, p = self.guide[msg["name"]]["fn"], msg["fn"]
            if is_gaussian(p) and p.event_shape == q.event_shape:
                a, b = q.base_dist, p.base_dist
                drawn = gaussian_draw_and_kl(a.loc, log_scale_of(a), b.loc, b.scale)
                msg["value"], self.kl[msg["name"]] = drawn
            else:
                msg["value"] = q.rsample()
            self.normals.append((msg["value"], q.base_dist))

    def _likelihood(self, fn: AllCandidates) -> AllCandidates:
        fn = fn.with_kernel()
        candidates = next((normal for drawn, normal in self.normals if _same_memory(fn.table, drawn)), None)
        if self.estimator == "local" and candidates is not None and fn.score.linear:
            own = None
            if fn.symbols is not None:
                entities = self._drawn_rows(fn.anchor, fn.symbols[0])
                own = fn.symbols[0] if entities is candidates else None
                fn = fn.with_own_draws(entities, self._drawn_rows(fn.relation, fn.symbols[1]))
            fn = fn.with_local_noise(candidates, own)
        elif candidates is not None and fn.table.requires_grad and fn.symbols is not None:
            entities = self._drawn_rows(fn.anchor, fn.symbols[0])
            fn = fn.with_anchors_of_table() if entities is candidates else fn
        return fn

    def _drawn_rows(self, latents: Tensor, rows: Tensor) -> dist.Normal | None:
        """The Normal whose draw has ``latents`` as the given rows, if any does."""
        for drawn, normal in self.normals:
            fits = len(drawn) > int(rows.max()) and drawn.shape[1:] == latents.shape[1:]
            if fits and not _same_memory(drawn, latents) and _are_rows(latents, drawn, rows):
                return normal
        return None


def _are_rows(latents: Tensor, drawn: Tensor, rows: Tensor) -> bool:
    """Whether ``latents`` is ``drawn[rows]``: by its history, or by value where gradients are not recorded."""
    if not drawn.requires_grad:
        return torch.equal(drawn[rows], latents)
    step = latents.grad_fn
    if step is None or step.name() != "IndexBackward0" or step.next_functions[0][0] is not drawn.grad_fn:
        return False
    indices = step._saved_indices  # type: ignore[attr-defined]
    return len(indices) == 1 and torch.equal(indices[0], rows)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape
