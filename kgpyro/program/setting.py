"""What every model is given: sizes, priors, the scoring function and the relations' intercepts."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import TypeAlias, cast

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.errors import InputError
from kgpyro.program.batches import Batch, Batches
from kgpyro.program.families import Family
from kgpyro.program.hyperpriors import SymbolPrior
from kgpyro.program.interactions import Score
from kgpyro.program.likelihood import AllCandidates, Answers, observed_logits
from kgpyro.program.priors import Prior

# of symbol ids, shape (n,), or ... for all
PriorOf: TypeAlias = Callable[[Tensor | EllipsisType], TorchDistribution]


class Setting(nn.Module):
    """The parts a generative model is written with.

    Attributes:
        num_entities: number of entities.
        num_relations: number of relation rows: twice the relations where each has an inverse.
        score: the scoring function.
        symbol_priors: the prior of each kind, with its learned parameters.
        intercept: ``b_p``, a learnt parameter of shape ``(num_relations,)``.
        features: of the entities, shape ``(num_entities, f)``; None where there are none.
        completeness: the probability with which a true fact between two entities is in the training graph.
        categorical: whether :meth:`likelihood` is of answers drawn from all candidates. Then there are no intercepts.
    """

    def __init__(
        self, num_entities: int, num_relations: int, score: Score, dim: int, entity_prior: Prior, relation_prior: Prior
    ):
        super().__init__()
        self.num_entities, self.num_relations, self.score = num_entities, num_relations, score
        self.entity_size, self.relation_size = score.sizes(dim)
        given = {"entity": entity_prior, "relation": relation_prior}
        self.families: dict[str, Family] = {kind: prior.family(self.size(kind)) for kind, prior in given.items()}
        self.symbol_priors = nn.ModuleDict(
            {kind: SymbolPrior(kind, prior, self.count(kind), self.size(kind)) for kind, prior in given.items()}
        )
        self.intercept = nn.Parameter(torch.zeros(num_relations))
        self.features: Tensor | None = None
        self.completeness = 1.0
        self.categorical = False
        self.sparse = False

    @property
    def sparse(self) -> bool:
        """Whether gradients of tables should hold only the rows that a step used."""
        return self._sparse

    @sparse.setter
    def sparse(self, value: bool) -> None:
        self._sparse = value
        for kind in self.families:
            self.symbol_prior(kind).sparse = value

    def size(self, kind: str) -> int:
        """Length of the latents of a kind, ``"entity"`` or ``"relation"``."""
        return self.entity_size if kind == "entity" else self.relation_size

    def count(self, kind: str) -> int:
        """Number of symbols of a kind."""
        return self.num_entities if kind == "entity" else self.num_relations

    def family(self, kind: str) -> Family:
        """The posterior family that fits a kind's prior."""
        return self.families[kind]

    def priors(self) -> tuple[PriorOf, PriorOf]:
        """The entities' and the relations' prior, each a function of the symbols: Pyro distributions, event ``(d,)``.

        Where a prior's parameters are latents with priors of their own, they are sampled here, outside any plate.
        """
        return self._prior("entity"), self._prior("relation")

    def symbol_prior(self, kind: str) -> SymbolPrior:
        """A kind's prior, with its learned parameters."""
        return cast(SymbolPrior, self.symbol_priors[kind])

    def refuse_a_parameter_per_entity(self) -> None:
        """Raise InputError where new entities would lack a parameter of their prior."""
        if any(u.per == "symbol" for u in self.symbol_prior("entity").prior.unknown.values()):
            raise InputError(
                "the entity prior has a parameter per entity, which new ones lack; learn it for all, or per dimension."
            )

    def _prior(self, kind: str) -> PriorOf:
        prior, like = self.symbol_prior(kind), self.intercept.detach()
        drawn = prior.draw(like)
        return lambda symbols: prior.distribution(like, symbols, drawn)

    @property
    def hyper_latents(self) -> dict[str, tuple[Prior, tuple[int, ...]]]:
        """Prior and shape of every latent that is a parameter of a prior, by its site."""
        return {site: found for kind in self.families for site, found in self.symbol_prior(kind).latents.items()}

    def start_at_base_rates(self, batches: Batches) -> None:
        """Start ``b_p`` where relations' facts are observed at their base rates among those of the training queries.

        Where answers are drawn from all candidates it cancels, and stays at 0.
        """
        if self.categorical:
            self.intercept.requires_grad_(False)
            return
        queries = batches.queries
        rows = queries.relation if batches.inverse else queries.relation % queries.num_relations
        facts = torch.bincount(rows, minlength=self.num_relations) * batches.num_entities
        observed = torch.bincount(rows, queries.counts.double(), minlength=self.num_relations)
        with torch.no_grad():
            true = (observed + 0.5) / (facts + 1.0) / self.completeness
            self.intercept.copy_(torch.logit(true.clamp_max(0.99)))

    def likelihood(self, head: Tensor, relation: Tensor, tail: Tensor, batch: Batch) -> TorchDistribution:
        """The likelihood of a batch's facts, as ``--likelihood`` says: :meth:`bernoulli` or :meth:`answers`."""
        return (self.answers if self.categorical else self.bernoulli)(head, relation, tail, batch)

    def answers(self, head: Tensor, relation: Tensor, tail: Tensor, batch: Batch) -> TorchDistribution:
        """``Categorical(softmax_o φ(h_s, h_p, h_o))`` of each answer of a batch's queries: :class:`Answers`.

        Arguments are as of :meth:`bernoulli`, with all entities as ``tail``. Batch shape ``(b,)``, event ``(E,)``.
        """
        number = batch.y.sum(-1).to_dense()
        symbols = batch.anchor, batch.relation
        return Answers(self.score, head, relation, tail, number, batch.reverse, symbols)

    def bernoulli(self, head: Tensor, relation: Tensor, tail: Tensor, batch: Batch) -> TorchDistribution:
        """``Bernoulli(κ sigmoid(φ(h_s, h_p, h_o) + b_p))`` of a batch's facts, ``κ`` the completeness.

        Args:
            head: latents of the queries' given ends, shape ``(b, d_e)``.
            relation: latents of the queries' relations, shape ``(b, d_r)``.
            tail: latents of the facts' other ends: ``(n, d_e)``, or ``(E, d_e)`` where every query meets every entity.

        In a query that asks for heads the two ends swap roles. Batch shape ``(n,)``; or ``(b,)`` with event ``(E,)``.
        """
        intercept = self.intercept[batch.relation]
        if batch.query is None:
            symbols = batch.anchor, batch.relation
            facts = self.score, head, relation, tail, intercept, batch.reverse, symbols
            return AllCandidates(*facts, completeness=self.completeness)
        reverse = None if batch.reverse is None else batch.reverse[batch.query]
        scores = self.score.facts(head[batch.query], relation[batch.query], tail, reverse)
        loops = torch.eq(batch.anchor[batch.query], torch.as_tensor(batch.candidate))
        return dist.Bernoulli(logits=observed_logits(scores + intercept[batch.query], self.completeness, loops))
