"""What every model is given: sizes, priors, the scoring function and the relations' intercepts."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.batches import Batch
from kgpyro.families import Family
from kgpyro.likelihood import AllCandidates
from kgpyro.priors import Prior
from kgpyro.scoring import Score


class Setting(nn.Module):
    """The parts a generative model is written with.

    Attributes:
        num_entities: number of entities.
        num_relations: number of relation rows: twice the relations where each has an inverse.
        entity_prior, relation_prior: Pyro distributions with event shape ``(d_e,)`` and ``(d_r,)``.
        score: the scoring function.
        sparse: whether gradients of tables should hold only the rows that a step used.
        intercept: ``b_p``, a learnt parameter of shape ``(num_relations,)``.
    """

    def __init__(
        self, num_entities: int, num_relations: int, score: Score, dim: int, entity_prior: Prior, relation_prior: Prior
    ):
        super().__init__()
        self.num_entities, self.num_relations, self.score = num_entities, num_relations, score
        self.sparse = False
        self.entity_size, self.relation_size = score.sizes(dim)
        self._priors = {"entity": entity_prior, "relation": relation_prior}
        self.families: dict[str, Family] = {kind: prior.family(self.size(kind)) for kind, prior in self._priors.items()}
        self.intercept = nn.Parameter(torch.zeros(num_relations))

    def size(self, kind: str) -> int:
        """Length of the latents of a kind, ``"entity"`` or ``"relation"``."""
        return self.entity_size if kind == "entity" else self.relation_size

    def count(self, kind: str) -> int:
        """Number of symbols of a kind."""
        return self.num_entities if kind == "entity" else self.num_relations

    def family(self, kind: str) -> Family:
        """The posterior family that fits a kind's prior."""
        return self.families[kind]

    @property
    def entity_prior(self) -> TorchDistribution:
        return self._priors["entity"].distribution(self.entity_size, like=self.intercept.detach())

    @property
    def relation_prior(self) -> TorchDistribution:
        return self._priors["relation"].distribution(self.relation_size, like=self.intercept.detach())

    def start_intercept(self, observed: Tensor, facts: Tensor) -> None:
        """Start ``b_p`` at the log-odds of the base rate, from the numbers of observed and all facts per relation."""
        rate = (observed + 0.5) / (facts + 1.0)
        with torch.no_grad():
            self.intercept.copy_(torch.logit(rate))

    def bernoulli(self, head: Tensor, relation: Tensor, tail: Tensor, batch: Batch) -> TorchDistribution:
        """``Bernoulli(sigmoid(φ(h_s, h_p, h_o) + b_p))`` of a batch's facts.

        Args:
            head: latents of the queries' given ends, shape ``(b, d_e)``.
            relation: latents of the queries' relations, shape ``(b, d_r)``.
            tail: latents of the facts' other ends: ``(n, d_e)``, or ``(E, d_e)`` where every query meets every entity.

        In a query that asks for heads the two ends swap roles. Batch shape ``(n,)``; or ``(b,)`` with event ``(E,)``.
        """
        intercept = self.intercept[batch.relation]
        if batch.query is None:
            symbols = batch.anchor, batch.relation
            return AllCandidates(self.score, head, relation, tail, intercept, batch.reverse, symbols)
        reverse = None if batch.reverse is None else batch.reverse[batch.query]
        scores = self.score.facts(head[batch.query], relation[batch.query], tail, reverse)
        return dist.Bernoulli(logits=scores + intercept[batch.query])
