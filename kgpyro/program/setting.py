"""What every model is given: sizes, priors, the scoring function, and the likelihood of a batch's facts."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType
from typing import TypeAlias, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro.errors import InputError
from kgpyro.program.batches import Batch, Batches
from kgpyro.program.families import Family
from kgpyro.program.hyperpriors import SymbolPrior
from kgpyro.program.interactions import Score
from kgpyro.program.likelihood import AllCandidates, Answers, Given, Rows, SingleFacts
from kgpyro.program.priors import Prior

# of symbol ids, shape (n,), or ... for all
PriorOf: TypeAlias = Callable[[Tensor | EllipsisType], TorchDistribution]
INTERCEPT_SCALE = 3.0  # of the prior of intercepts, in log-odds: base rates of relations differ by orders of magnitude


class Setting(nn.Module):
    """The parts a generative model is written with.

    Attributes:
        num_entities: number of entities.
        num_relations: number of relation rows: twice the relations where each has an inverse.
        relations: number of relations.
        score: the scoring function.
        symbol_priors: the prior of each kind, with its learned parameters.
        base_rate: mean over relations of the log-odds of the share of cells that training holds, shape ``()``.
        features: of the entities, shape ``(num_entities, f)``; None where there are none.
        completeness: the probability with which a true fact between two entities is in the training graph.
        categorical: whether :meth:`likelihood` is of answers drawn from all candidates, where intercepts cancel.
    """

    base_rate: Tensor
    start: Tensor

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        score: Score,
        dim: int,
        entity_prior: Prior,
        relation_prior: Prior,
        relations: int | None = None,
    ):
        super().__init__()
        self.num_entities, self.num_relations, self.score = num_entities, num_relations, score
        self.relations = num_relations if relations is None else relations
        self.entity_size, self.relation_size = score.sizes(dim)
        given = {"entity": entity_prior, "relation": relation_prior}
        self.families: dict[str, Family] = {kind: prior.family(self.size(kind)) for kind, prior in given.items()}
        self.symbol_priors = nn.ModuleDict(
            {kind: SymbolPrior(kind, prior, self.count(kind), self.size(kind)) for kind, prior in given.items()}
        )
        self.register_buffer("base_rate", torch.zeros(()))
        self.register_buffer("start", torch.zeros(self.relations), persistent=False)
        self.features: Tensor | None = None
        self.intercept_scale: float | Tensor = INTERCEPT_SCALE
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
        if next(self.parameters(), None) is not None:
            pyro.module("setting", self)
        return self._prior("entity"), self._prior("relation")

    def intercepts(self) -> Tensor:
        """Sample ``b_r ~ Normal(logit of the base rate, 3²)``, the log-odds of each relation's facts, shape ``(R,)``.

        Without it a score that is never positive could not call a fact likely, and one of a sparse graph would have to
        say "no" a hundred thousand times. Under the categorical likelihood it cancels, and is 0.
        """
        if self.categorical:
            return self.start.new_zeros(self.relations)
        prior = dist.Normal(self.base_rate, self.intercept_scale, validate_args=False)
        return pyro.sample("intercept", prior.expand([self.relations]).to_event(1), infer={"start": self.start})

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
        prior, like = self.symbol_prior(kind), self.start
        drawn = prior.draw(like)
        return lambda symbols: prior.distribution(like, symbols, drawn)

    @property
    def hyper_latents(self) -> dict[str, tuple[Prior, tuple[int, ...]]]:
        """Prior and shape of every latent that is a parameter of a prior, by its site."""
        return {site: found for kind in self.families for site, found in self.symbol_prior(kind).latents.items()}

    def start_at_base_rates(self, batches: Batches) -> None:
        """Start the search for the intercepts' posterior at the log-odds of each relation's share of observed cells.

        Their prior is centred at the mean of these.
        """
        queries = batches.queries
        rows = queries.relation % queries.num_relations
        asked = torch.bincount(rows, minlength=self.relations).double()
        if batches.unanswered:
            asked = torch.full_like(asked, 2.0 * batches.num_entities)
        facts = asked * batches.num_entities
        if queries.confidences is None:
            observed = torch.bincount(rows, queries.counts.double(), minlength=self.relations)
        else:
            each = torch.repeat_interleave(rows, queries.counts)
            observed = torch.bincount(each, queries.confidences.double(), minlength=self.relations)
        each = (observed + 0.5) / (facts + 1.0) / self.completeness
        with torch.no_grad():
            self.start.copy_(torch.logit(each.clamp_max(0.99)))
            self.base_rate.copy_(self.start.mean())

    def likelihood(self, entities: Tensor, relations: Tensor, intercepts: Tensor, batch: Batch) -> TorchDistribution:
        """The likelihood of a batch's facts, given one latent per entity and per relation.

        ``Bernoulli(κ sigmoid(φ(h_h, h_r, h_t) + b_r))`` of each fact, ``κ`` the completeness; or, where it is
        categorical, ``Categorical(softmax_t φ(h_h, h_r, h_t))`` of each answer of a query. In a query that asks for
        heads the two ends swap roles.

        Args:
            entities: latents, a row for each id that :meth:`Batch.entity_plate` yields, shape ``(m, d_e)``.
            relations: latents of the relations and their inverses, shape ``(num_relations, d_r)``.
            intercepts: log-odds of relations, shape ``(R,)``.

        Batch shape ``(n,)`` of single facts; or ``(b,)`` with event ``(E,)``.
        """
        candidate = Rows(entities, None if isinstance(batch.candidate, EllipsisType) else batch.candidate)
        return self._of(Rows(entities, batch.anchor), Rows(relations, batch.relation), candidate, intercepts, batch)

    def fact_likelihood(
        self, head: Tensor, relation: Tensor, tail: Tensor, intercepts: Tensor, batch: Batch
    ) -> TorchDistribution:
        """The same, given latents for every fact.

        Args:
            head: latents of the queries' given ends, shape ``(b, d_e)``.
            relation: latents of the queries' relations, shape ``(b, d_r)``.
            tail: latents of the facts' other ends: ``(n, d_e)``, or ``(E, d_e)`` where every query meets every entity.
            intercepts: log-odds of relations, shape ``(R,)``.
        """
        return self._of(Rows(head), Rows(relation), Rows(tail), intercepts, batch)

    def _of(self, anchor: Rows, relation: Rows, candidate: Rows, intercepts: Tensor, batch: Batch) -> TorchDistribution:
        if intercepts.dim() > 1:  # of vectorised particles, with a dimension for the plate of facts
            intercepts = intercepts.squeeze(-2)
        intercept = intercepts[..., batch.relation % self.relations]
        loops = batch.anchor if batch.query is None else torch.eq(batch.anchor[batch.query], batch.candidate)  # type: ignore[arg-type]
        given = Given(
            self.score, anchor, relation, candidate, intercept, batch.reverse, loops, self.completeness, batch.query
        )
        if self.categorical:
            if batch.query is not None:
                raise InputError("a categorical likelihood is of all candidates of a query, not of single facts.")
            return Answers(given)
        return AllCandidates(given) if batch.query is None else SingleFacts(given)
