"""What a user brings: a model, a guide, a prior, as the README shows them; and some that cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from kgpyro import Guide
from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Site


def shared_scale(kg: Setting, batch: Batch) -> None:
    """The LIM, with a likelihood written out."""
    entity_prior, relation_prior = kg.priors()
    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as p:
        relations = pyro.sample("relations", relation_prior(p))
    scores = kg.score.candidates(entities[batch.anchor], relations[batch.relation], entities, batch.reverse)
    logits = scores + kg.intercepts()[batch.relation % kg.relations].unsqueeze(-1)
    with batch.fact_plate():
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y)


def doubled_relations(kg: Setting, batch: Batch) -> None:
    """The LIM with a function of the latents where the LIM has the latents."""
    entity_prior, relation_prior = kg.priors()
    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as p:
        relations = pyro.sample("relations", relation_prior(p))
    intercepts = kg.intercepts()
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, 2 * relations, intercepts, batch), obs=batch.y)


class Tempered(nn.Module):
    """A model with a parameter of its own: a temperature of the score."""

    def __init__(self, kg: Setting):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, kg: Setting, batch: Batch) -> None:
        entity_prior, relation_prior = kg.priors()
        with batch.entity_plate() as e:
            entities = pyro.sample("entities", entity_prior(e))
        with batch.relation_plate() as p:
            relations = pyro.sample("relations", relation_prior(p)) * self.log_temperature.exp()
        intercepts = kg.intercepts()
        with batch.fact_plate():
            pyro.sample("y", kg.likelihood(entities, relations, intercepts, batch), obs=batch.y)


class OneScale(Guide):
    """A guide with a location per symbol and one scale for all."""

    def __init__(self, kg: Setting, sites: Mapping[str, Site]):
        super().__init__(kg, sites)
        self.entity = nn.Parameter(0.1 * torch.randn(kg.count("entity"), kg.size("entity")))
        self.relation = nn.Parameter(0.1 * torch.randn(kg.count("relation"), kg.size("relation")))
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def posterior(self, kind: str, symbols: Tensor | EllipsisType) -> TorchDistribution:
        loc = getattr(self, kind)[symbols]
        return self.families[kind](loc, self.log_scale.expand_as(loc))


class Chained(OneScale):
    """A guide whose relations depend on the entities it drew."""

    def forward(self, kg: Setting, batch: Batch) -> None:
        self.sample_others()
        with batch.entity_plate():
            entities = pyro.sample("entities", self.posterior("entity", ...))
        with pyro.plate("relation_row", kg.num_relations):
            relations = self.posterior("relation", ...).base_dist
            pyro.sample("relations", self.families["relation"](relations.loc + entities.mean(0), relations.log_scale))


def half_laplace(size: int) -> TorchDistribution:
    return dist.Laplace(torch.zeros(size), 0.5 * torch.ones(size)).to_event(1)


def with_global_parameter(kg: Setting, batch: Batch) -> None:
    pyro.param("temperature", torch.ones(()))
    shared_scale(kg, batch)


def with_unknown_site(kg: Setting, batch: Batch) -> None:
    pyro.sample("mood", dist.Normal(0.0, 1.0))
    shared_scale(kg, batch)


def without_data(kg: Setting, batch: Batch) -> None:
    entity_prior, _ = kg.priors()
    with batch.entity_plate() as e:
        pyro.sample("entities", entity_prior(e))


def not_a_guide(kg: Setting, sites: Mapping[str, Site]) -> None:
    return None
