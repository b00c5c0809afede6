"""The Bernoulli likelihood of facts, over all candidates of a query at once or one sampled fact at a time."""

from __future__ import annotations

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from kgpyro.scoring import Score


class AllCandidates(TorchDistribution):
    """Independent Bernoulli labels of the facts that all candidates make with each of ``b`` queries.

        y_c ~ Bernoulli(sigmoid(φ(anchor, relation, candidate_c) + b_relation)),  c = 1 … E

    Batch shape ``(b,)``, event shape ``(E,)``. A value is a ``(b, E)`` tensor of 0 and 1, dense or sparse (COO); the
    log-probability costs one matrix product, and one sum over the observed facts.

    Args:
        score: the scoring function.
        anchor: latents of the given entities, shape ``(b, d_e)``.
        relation: latents of the relations, shape ``(b, d_r)``.
        table: latents of all candidates, shape ``(E, d_e)``.
        intercept: ``b_p`` of each query, shape ``(b,)``.
        reverse: which queries ask for heads, shape ``(b,)``, bool; None for none.
        anchor_ids: entity ids of the anchors, shape ``(b,)``: where candidate and anchor are the same entity.
    """

    support = constraints.independent(constraints.boolean, 1)
    has_rsample = False

    def __init__(
        self,
        score: Score,
        anchor: Tensor,
        relation: Tensor,
        table: Tensor,
        intercept: Tensor,
        reverse: Tensor | None = None,
        anchor_ids: Tensor | None = None,
    ):
        self.score, self.anchor, self.relation, self.table = score, anchor, relation, table
        self.intercept, self.reverse, self.anchor_ids = intercept, reverse, anchor_ids
        self._noise: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(torch.Size([len(anchor)]), torch.Size([len(table)]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> AllCandidates:
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"queries {tuple(self.batch_shape)} cannot be expanded to {tuple(batch_shape)}")
        return self

    def with_local_noise(self, loc: Tensor, scale: Tensor, shared: bool) -> AllCandidates:
        """The same facts with every score drawn on its own, given that candidates are Normal(loc, scale).

        For a score ``⟨u, h_o⟩`` and Gaussian ``h_o`` the score is Gaussian with mean ``u·μ_o`` and variance ``u²·σ_o²``
        (Kingma et al. 2015). Each fact's expected log-likelihood is the same as with one shared draw of the table,
        which is all the ELBO depends on; the noise of its gradient is far smaller. ``shared`` says that anchors are
        rows of the same draw: a self-loop then keeps the drawn score, whose two ends are one latent.
        """
        new = AllCandidates(
            self.score, self.anchor, self.relation, self.table, self.intercept, self.reverse, self.anchor_ids
        )
        new._noise = (loc, scale, shared)
        return new

    @property
    def logits(self) -> Tensor:
        """``φ + b_p``, shape ``(b, E)``; drawn afresh at each call under local noise."""
        if self._noise is None:
            scores = self.score.candidates(self.anchor, self.relation, self.table, self.reverse)
            return scores + self.intercept.unsqueeze(-1)
        loc, scale, shared = self._noise
        query = self.score.queries(self.anchor, self.relation, self.reverse)
        mean, variance = query @ loc.mT, query.square() @ scale.square().mT
        scores = torch.addcmul(mean, variance.clamp_min(1e-20).sqrt(), torch.randn_like(mean))
        if shared and self.anchor_ids is not None:
            own = self.score.compare(query, self.table[self.anchor_ids])
            scores = scores.scatter(1, self.anchor_ids.unsqueeze(1), own.unsqueeze(1))
        return scores + self.intercept.unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        logits = self.logits
        if not value.is_sparse:
            return -F.binary_cross_entropy_with_logits(logits, value.to(logits), reduction="none").sum(-1)
        rows, columns = value._indices()
        observed = logits.new_zeros(len(logits)).index_add(0, rows, logits[rows, columns])
        return observed - F.softplus(logits).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.logits.sigmoid().expand(torch.Size(sample_shape) + self.shape()))


class LocalNoise(Messenger):
    """Effect handler: the local reparameterisation trick, applied to whatever likelihood admits it.

    Runs around a model that is replayed against ``guide_trace``. Where an observed site is an :class:`AllCandidates`
    whose table is the value the guide drew at a Normal site, and whose score is linear in the candidate, the fact's
    scores are drawn instead of the candidates' latents. Everything else is left as the model wrote it. A handler, so
    that neither models nor guides know of it: the model goes on saying what is true, this says how to integrate it.
    """

    def __init__(self, guide_trace: Trace):
        super().__init__()
        self.normals = []
        for name, site in guide_trace.nodes.items():
            fn = site.get("fn") if site["type"] == "sample" else None
            if isinstance(fn, dist.Independent) and isinstance(fn.base_dist, dist.Normal):
                self.normals.append((name, site["value"], fn.base_dist))

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] or not isinstance(fn, AllCandidates) or not fn.score.linear:
            return
        for name, drawn, normal in self.normals:
            same_memory = fn.table.data_ptr() == drawn.data_ptr() and fn.table.shape == drawn.shape
            if same_memory:
                msg["fn"] = fn.with_local_noise(normal.loc, normal.scale, shared=name == "entities")
