"""Models that are not LIM-shaped, each an equally valid program; and models whose plates are their own."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting


def latents(kg: Setting, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    entity_prior, relation_prior = kg.priors()
    with batch.entity_plate() as e:
        entities = pyro.sample("things", entity_prior(e))
    with batch.relation_plate() as r:
        relations = pyro.sample("links", relation_prior(r))
    return entities, relations, kg.intercepts()


def negated(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, -relations, intercepts, batch), obs=batch.y)


def tempered(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    temperature = pyro.sample("temperature", dist.LogNormal(0.0, 1.0))
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, relations / temperature, intercepts, batch), obs=batch.y)


def with_parameter(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    factor = pyro.param("factor", torch.tensor(0.5), constraint=dist.constraints.positive)
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, relations * factor, intercepts, batch), obs=batch.y)


def biased(kg: Setting, batch: Batch) -> None:
    """A popularity of every entity, as anchor and as candidate."""
    entities, relations, intercepts = latents(kg, batch)
    with batch.entity_plate():
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    logits = kg.score.candidates(entities[batch.anchor], relations[batch.relation], entities, batch.reverse)
    logits = logits + intercepts[batch.relation % kg.relations].unsqueeze(1) + bias[batch.anchor].unsqueeze(1) + bias
    with batch.fact_plate():
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y)


def by_index_select(kg: Setting, batch: Batch) -> None:
    """The LIM, with a likelihood of its own and rows looked up in another way."""
    entities, relations, intercepts = latents(kg, batch)
    head, relation = entities.index_select(0, batch.anchor), relations.index_select(0, batch.relation)
    logits = kg.score.candidates(head, relation, entities, batch.reverse)
    logits = logits + intercepts.index_select(0, batch.relation % kg.relations).unsqueeze(1)
    with batch.fact_plate():
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y)


def without_intercepts(kg: Setting, batch: Batch) -> None:
    entity_prior, relation_prior = kg.priors()
    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as r:
        relations = pyro.sample("relations", relation_prior(r))
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, relations, torch.zeros_like(kg.start), batch), obs=batch.y)


def in_its_own_plate(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    with pyro.plate("facts", len(batch.anchor)):
        pyro.sample("y", kg.likelihood(entities, relations, intercepts, batch), obs=batch.y)


def in_no_plate(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    pyro.sample("y", kg.likelihood(entities, relations, intercepts, batch), obs=batch.y)


def as_one_event(kg: Setting, batch: Batch) -> None:
    entities, relations, intercepts = latents(kg, batch)
    pyro.sample("y", kg.likelihood(entities, relations, intercepts, batch).to_event(1), obs=batch.y)


def raising(kg: Setting, batch: Batch) -> None:
    latents(kg, batch)
    raise RuntimeError("this model is broken")
