"""What every model is given: sizes, priors at work, the scoring function, and the likelihood of a batch's facts.

A prior's unknown parameters are learned by gradient, along with the guide: at its optimum the bound is that of
empirical Bayes (for a Normal's scale ``s² = mean(μ² + σ²)`` over the posteriors it serves; Bamler et al. 2019), and the
same step serves every parameter of every family, with and without subsampling. Or they are latents with priors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import TypeAlias, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.nn.functional import embedding

from kgpyro.errors import InputError
from kgpyro.program.batches import Batches
from kgpyro.program.families import Family
from kgpyro.program.interactions import Score
from kgpyro.program.likelihood import AllCandidates, Answers, Given, Rows, SingleFacts
from kgpyro.program.owners import Share
from kgpyro.program.plates import Batch, Held, Symbols
from kgpyro.program.priors import Prior, Unknown


@dataclass(frozen=True)
class RowsOf:
    """Looks up symbols in a table of a row for each, ``(n, d), (m,) -> (m, d)``; of ``...`` it is the table.

    The table's gradient has only these rows if it is ``sparse``. Where processes ``share`` it, each has its own.
    """

    sparse: bool
    share: Share | None = None

    def __call__(self, table: Tensor, symbols: Symbols) -> Tensor:
        if isinstance(symbols, EllipsisType):
            return table
        if self.share is not None:
            return self.share.lookup(table, symbols, self.sparse)
        return embedding(symbols, table, sparse=self.sparse)


class SymbolPrior(nn.Module):
    """The prior of all latents of a kind.

    Attributes:
        unknown: all parameters that are not numbers, by name: ``scale_scale`` before the ``scale`` that it is of.
        learned: unconstrained values of the learned parameters, by name.
    """

    def __init__(self, kind: str, prior: Prior, count: int, size: int):
        super().__init__()
        self.kind, self.prior, self.count, self.size = kind, prior, count, size
        self.learned = nn.ParameterDict()
        self.unknown = dict(_named(prior, ""))
        for name, unknown in self.unknown.items():
            if unknown.prior is None and unknown.start is not None:
                start = biject_to(unknown.constraint).inv(torch.tensor(unknown.start))
                self.learned[name] = nn.Parameter(start.expand(unknown.shape(count, size)).clone())
        self._fixed: dict[tuple, TorchDistribution] = {}

    @property
    def latents(self) -> dict[str, tuple[Prior, tuple[int, ...]]]:
        """The prior and shape of each parameter that is a latent itself, by its site."""
        found = ((name, u.prior, u.shape(self.count, self.size)) for name, u in self.unknown.items())
        return {f"{self.kind}_{name}": (prior, shape) for name, prior, shape in found if prior is not None}

    def values(self) -> dict[str, Tensor]:
        """The learned parameters, constrained, by name."""
        return {name: biject_to(self.unknown[name].constraint)(value) for name, value in self.learned.items()}

    def draw(self, like: Tensor) -> dict[str, Tensor]:
        """Sample the parameters that are latents, at their sites; to be called outside any plate."""
        drawn: dict[str, Tensor] = {}
        for name, unknown in self.unknown.items():
            if unknown.prior is not None:
                shape = unknown.shape(self.count, self.size)
                own = {key: self._value(f"{name}_{key}", drawn, ...) for key in unknown.prior.unknown}
                drawn[name] = pyro.sample(f"{self.kind}_{name}", unknown.prior.value(shape, like, own))
        return drawn

    def distribution(
        self, like: Tensor, symbols: Symbols, drawn: Mapping[str, Tensor] | None = None, sparse: bool = False
    ) -> TorchDistribution:
        """The prior of the given symbols: event shape ``(d,)``; batch shape ``(n,)``, or ``()`` where all share one.

        Latent parameters are at their ``drawn`` values, or else where their search starts. ``sparse`` is whether the
        gradient of a learned parameter per symbol should hold only these symbols' rows.
        """
        if self.prior.unknown:
            drawn = drawn or {}
            known = [k for k in self.prior.unknown if k in self.learned or k in drawn]
            values = {k: self._value(k, drawn, symbols, sparse) for k in known}
            return self.prior.distribution(self.size, like, values)
        key = like.device, like.dtype
        if key not in self._fixed:
            self._fixed[key] = self.prior.distribution(self.size, like)
        fixed = self._fixed[key]
        expands_in_place = isinstance(getattr(fixed, "base_dist", None), dist.ExpandedDistribution)
        return copy.deepcopy(fixed) if expands_in_place else fixed

    def _value(self, name: str, drawn: Mapping[str, Tensor], symbols: Symbols, sparse: bool = False) -> Tensor:
        unknown = self.unknown[name]
        every = isinstance(symbols, EllipsisType) or unknown.per != "symbol"
        if name in drawn:
            return drawn[name] if every else drawn[name][symbols]
        free = RowsOf(sparse)(self.learned[name], ... if every else symbols)
        return biject_to(unknown.constraint)(free)


def _named(prior: Prior, prefix: str) -> Iterator[tuple[str, Unknown]]:
    for key, unknown in prior.unknown.items():
        name = f"{prefix}{key}"
        if unknown.prior is not None:
            yield from _named(unknown.prior, f"{name}_")
        yield name, unknown


PriorOf: TypeAlias = Callable[[Symbols], TorchDistribution]
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
        share: where processes share the entities, which of them this one owns.
        sparse: whether gradients of tables should hold only the rows that a step used.
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
        self.families: dict[str, Family] = {}
        self.symbol_priors = nn.ModuleDict()
        for kind, prior in (("entity", entity_prior), ("relation", relation_prior)):
            self.families[kind] = prior.family(self.size(kind))
            self.symbol_priors[kind] = SymbolPrior(kind, prior, self.count(kind), self.size(kind))
        self.register_buffer("base_rate", torch.zeros(()))
        self.register_buffer("start", torch.zeros(self.relations), persistent=False)
        self.features: Tensor | None = None
        self.intercept_scale: float | Tensor = INTERCEPT_SCALE
        self.completeness = 1.0
        self.categorical = False
        self.sparse = False
        self.share: Share | None = None

    def size(self, kind: str) -> int:
        """Length of the latents of a kind, ``"entity"`` or ``"relation"``."""
        return self.entity_size if kind == "entity" else self.relation_size

    def count(self, kind: str) -> int:
        """Number of symbols of a kind."""
        return self.num_entities if kind == "entity" else self.num_relations

    def new_table(self, kind: str, size: int) -> Tensor:
        """A row for each symbol of a kind, ``(n, size)``, at Xavier's values (Glorot & Bengio 2010).

        Where processes share the entities these are the rows of this process.
        """
        if kind == "entity" and self.share is not None:
            return self.share.start(self.num_entities, size, self.start)
        return nn.init.xavier_uniform_(torch.empty(self.count(kind), size))

    def rows_of(self, kind: str) -> RowsOf:
        """What looks up symbols ``(n,)`` in such a table, whichever process has their rows."""
        return RowsOf(self.sparse, self.share if kind == "entity" else None)

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
        return lambda symbols: prior.distribution(like, symbols, drawn, self.sparse)

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
        share = (observed + 0.5) / (facts + 1.0) / self.completeness
        with torch.no_grad():
            self.start.copy_(torch.logit(share.clamp_max(0.99)))
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
        anchor, relation = Rows(entities, batch.anchor, batch.share), Rows(relations, batch.relation)
        return self._of(anchor, relation, candidate, intercepts, batch)

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

    def relation_likelihood(
        self, entities: Tensor, relations: Tensor, intercepts: Tensor, held: Held
    ) -> dist.Categorical:
        """Which relation holds between the ends of a fact, ``Categorical(softmax_r φ(h_h, h_r, h_t) + b_r)``.

        Given that exactly one of the R facts between two ends is true, these are the odds of a Bernoulli model of each.
        The arguments are those of :meth:`likelihood`, and what :meth:`Batch.held_plate` yields. A query that asks for
        heads reads its fact backwards, by the relations' inverses where there are such. Batch shape ``(n,)``.
        """
        anchor, candidate = (Rows(entities, ids).sparse_values for ids in (held.anchor, held.candidate))
        R, n = self.relations, held.ahead
        behind = (anchor[..., n:, :], candidate[..., n:, :], relations[..., R:, :])
        if len(relations) == R:
            behind = (candidate[..., n:, :], anchor[..., n:, :], relations)
        ahead = self.score.relations(anchor[..., :n, :], candidate[..., :n, :], relations[..., :R, :])
        scores = torch.cat([ahead, self.score.relations(*behind)], dim=-2)
        return dist.Categorical(logits=scores.to(anchor.dtype) + intercepts.unsqueeze(-2), validate_args=False)

    def _of(self, anchor: Rows, relation: Rows, candidate: Rows, intercepts: Tensor, batch: Batch) -> TorchDistribution:
        if intercepts.dim() > 1:  # of vectorised particles, with a dimension for the plate of facts
            intercepts = intercepts.squeeze(-2)
        intercept = intercepts[..., batch.relation % self.relations]
        own = batch.anchor if batch.share is None else batch.anchor - batch.share.first
        loops = own if batch.query is None else torch.eq(batch.anchor[batch.query], batch.candidate)  # type: ignore[arg-type]
        tables, asked = (anchor, relation, candidate), (batch.query, batch.share)
        given = Given(self.score, *tables, intercept, batch.reverse, loops, self.completeness, *asked)
        if self.categorical:
            if batch.query is not None:
                raise InputError("a categorical likelihood is of all candidates of a query, not of single facts.")
            return Answers(given)
        return AllCandidates(given) if batch.query is None else SingleFacts(given)
