"""The parts that a configuration names: batches, setting, model and guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.names import GUIDES, MODELS, resolve
from kgpyro.posterior.replay import Program
from kgpyro.program.batches import Batches
from kgpyro.program.interactions import resolve_score
from kgpyro.program.likelihood import Answers
from kgpyro.program.owners import Share
from kgpyro.program.priors import resolve_prior
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, OwnParameters, Site, latent_sites, pyro_alone, run_of
from kgpyro.randomness import seeded

LOOKED_AT = 1 << 18  # queries, of which two show the form of a model


def batches_of(graph: Graph, config: Mapping[str, Any], dtype: torch.dtype, share: Share | None = None) -> Batches:
    """What the steps of a fit see."""
    full = config["closed_world"] == "full"
    pooled = full and config["unanswered"] == "all"
    drawn = 0 if pooled or not full else int(config["unanswered"])
    sampled = None if config["negatives"] == "all" else int(config["negatives"])
    return Batches(
        graph.queries_of("full" if pooled else "local"),
        graph.num_entities,
        config["inverse"],
        sampled,
        config["negative_weight"],
        dtype,
        drawn,
        config["likelihood"] == "categorical",
        config.get("relation_weight", 0.0),
        share,
    )


def build_setting(
    graph: Graph, config: Mapping[str, Any], features: Tensor | None = None, share: Share | None = None
) -> Setting:
    """The setting that a configuration names. Raises InputError for names there are none of."""
    relation_rows = graph.num_relations * (2 if config["inverse"] else 1)
    entity_prior = resolve_prior(config["entity_prior"] or config["prior"])
    relation_prior = resolve_prior(config["relation_prior"] or config["prior"])
    score = resolve_score(config["score"])
    priors = entity_prior, relation_prior
    kg = Setting(graph.num_entities, relation_rows, score, config["dim"], *priors, graph.num_relations)
    kg.features, kg.completeness, kg.share = features, config["completeness"], share
    kg.categorical = config["likelihood"] == "categorical"
    return kg


def program_of(model: str | Callable, kg: Setting, batches: Batches) -> Program:
    """A model ready to run: a function, a module, or a class of modules that is built with the setting."""
    found = resolve(model, MODELS, "model")
    found = found(kg) if isinstance(found, type) else found
    if isinstance(found, nn.Module):
        found = found.to(kg.start)
    program = Program(kg, found, OwnParameters(), batches)
    with pyro_alone(), program.parameters:
        trace = run_of(found, kg, first_batch(batches))
    asked = [name for name in trace.observation_nodes if trace.nodes[name]["infer"].get("held")]
    if batches.relation_weight and not asked:
        raise InputError(
            "the model does not ask for relations (batch.held_plate); fit `model` lim, or leave out `relation_weight`."
        )
    labels = [name for name in trace.observation_nodes if name not in asked]
    if len(labels) > 1:
        raise InputError(f"the model observes {', '.join(labels)}; it can observe the labels only.")
    for name in labels:
        if kg.categorical and not isinstance(trace.nodes[name]["fn"], Answers):
            raise InputError("the model has a likelihood of its own, not kg.likelihood; leave out `likelihood`.")
        program = Program(kg, found, program.parameters, batches, name)
    return program


def sites_of(program: Program) -> dict[str, Site]:
    """The latent sites of a program's model. Raises InputError for what kgpyro cannot fit."""
    with pyro_alone(), program.parameters, seeded(0):
        return latent_sites(program.model, program.kg, first_batch(program.batches))


def first_batch(batches: Batches) -> Any:
    """That of the two queries with the most answers, of the first ``LOOKED_AT``."""
    counts = batches.queries.indptr[: LOOKED_AT + 1].diff()
    most = counts.topk(min(2, len(counts))).indices
    return batches.alone(most)(torch.arange(len(most), device=most.device))


def build_guide(guide: str | Callable, kg: Setting, sites: Mapping[str, Site]) -> Guide:
    """The guide that a configuration names, over a model's latent sites. Raises InputError for what is no guide."""
    built = resolve(guide, GUIDES, "guide")(kg, sites)
    if not isinstance(built, Guide):
        raise InputError(f"guide {guide} gives {type(built).__name__}; derive it from kgpyro.Guide.")
    return built
