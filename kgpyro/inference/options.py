"""The options of a fit: checked, completed by their defaults, and told in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.schedules import LR_SCHEDULES, SCHEDULES
from kgpyro.inference.training import OPTIMIZERS
from kgpyro.names import GUIDES, MODELS, name_of, resolve
from kgpyro.program.interactions import SCORES, Score, resolve_score
from kgpyro.program.likelihood import ESTIMATORS, LIKELIHOODS
from kgpyro.program.priors import PriorLike, resolve_prior

EXACT_UP_TO = 100_000  # entities up to which all candidates are the default
ALL_QUERIES_UP_TO = 50_000  # queries up to which all of a full closed world are summed by default


def config_of(graph: Graph, options: Mapping[str, Any], saving: bool) -> dict[str, Any]:
    """The options as ``config.yaml`` has them. Raises InputError for one that cannot be."""
    _check_numbers(options)
    _check_choices(
        kl_schedule=(options["kl_schedule"], SCHEDULES),
        lr_schedule=(options["lr_schedule"], LR_SCHEDULES),
        optimizer=(options["optimizer"], tuple(OPTIMIZERS)),
        estimator=(options["estimator"], ESTIMATORS),
        likelihood=(options["likelihood"], LIKELIHOODS),
        closed_world=(options["closed_world"], (None, "local", "full")),
        inference=(options["inference"], ("svi", "nuts")),
        precision=(options["precision"], ("32", "64", "bf16", "16")),
    )
    config = {"dataset": graph.source or graph.name, **options}
    config["model"] = _named(options["model"], MODELS, "model", saving)
    config["guide"] = _named(options["guide"], GUIDES, "guide", saving)
    config |= {key: _prior_text(options[key]) for key in ("prior", "entity_prior", "relation_prior")}
    config["score"] = _score_text(options["score"])
    if isinstance(options["features"], (Path, pd.DataFrame)):
        config["features"] = str(options["features"]) if isinstance(options["features"], Path) else None
    categorical = options["likelihood"] == "categorical"
    if options["negatives"] is None:
        config["negatives"] = "all" if categorical or graph.num_entities <= EXACT_UP_TO else 100
    if options["closed_world"] is None:
        config["closed_world"] = "local" if categorical or config["negatives"] != "all" else "full"
    if categorical and (config["negatives"], options["completeness"], config["closed_world"]) != ("all", 1, "local"):
        raise InputError(
            "--likelihood categorical draws each query's answers from all entities; leave out --negatives and "
            "--completeness and --closed-world."
        )
    nuts = options["inference"] == "nuts"
    config["inverse"] = not nuts if options["inverse"] is None else options["inverse"]
    every = 2 * graph.num_relations * graph.num_entities
    if config["closed_world"] == "local":
        if options["unanswered"] is not None:
            raise InputError("--unanswered draws from the queries of a full closed world; add --closed-world full.")
    elif options["unanswered"] is None:
        few = nuts or every <= ALL_QUERIES_UP_TO or config["negatives"] != "all"
        config["unanswered"] = "all" if few else max(1, options["batch_size"] // 8)
    if config["negatives"] != "all" and config["unanswered"] not in (None, "all"):
        raise InputError("--unanswered draws whole queries, so it does not go with --negatives; leave one of them out.")
    if config["early_stopping"] and not len(graph.valid):
        raise InputError(f"--early-stopping watches validation triples, and graph {graph.name!r} has none.")
    if config["negatives"] == "all" and options["negative_weight"] is not None:
        raise InputError("--negative-weight weighs drawn candidates; give it together with --negatives K.")
    return config


def objective_name(config: Mapping[str, Any], point: bool = False) -> str:
    """What was optimised, in words; of a point estimate it is no bound."""
    if config.get("likelihood") == "categorical":
        facts = "answers drawn from all candidates (categorical)"
    elif config["negatives"] == "all":
        facts = "exact over all candidates"
    elif config["negative_weight"] is None:
        facts = f"Bernoulli-sampled, {config['negatives']} unobserved candidates per query with 1/b weights (unbiased)"
    else:
        facts = (
            f"negative sampling, {config['negatives']} candidates per query with weight {config['negative_weight']:g}: "
            f"NOT the ELBO over all facts"
        )
    if config["closed_world"] == "local":
        facts += " of the queries that training answers (local closed world)"
    elif config["unanswered"] != "all":
        facts += f", those of {config['unanswered']} random queries without an answer in each step among them"
    if config["completeness"] < 1:
        facts += f", of which the graph is taken to hold {config['completeness']:g} of the true ones"
    weight = config["kl_weight"]
    bound = "log joint density (a point estimate, no bound)" if point else "ELBO"
    bound += "" if weight == 1 else f" with {'prior' if point else 'KL'} weight {weight:.3g}"
    if config.get("kl_frequency"):
        bound += f", times each symbol's (facts / mean) ** {config['kl_frequency']:g}"
    return f"{bound}, {facts}; KL schedule {config['kl_schedule']}"


def _named(given: Any, table: dict[str, str], kind: str, saving: bool) -> Any:
    resolve(given, table, kind)
    try:
        return name_of(given, table, kind)
    except InputError:
        if saving:
            raise
        return given


def _prior_text(prior: PriorLike | None) -> Any:
    if prior is None:
        return None
    return resolve_prior(prior).text or prior


def _score_text(given: str | Score | Callable) -> Any:
    score = resolve_score(given)
    return score.name if isinstance(given, str) or SCORES.get(score.name.lower()) is score else given


def _check_numbers(options: Mapping[str, Any]) -> None:
    drawn = 1 if options["negatives"] in (None, "all") else options["negatives"]
    if not isinstance(drawn, int):
        raise InputError(f"--negatives is 'all' or a whole number; got {drawn!r}.")
    unanswered = 1 if options["unanswered"] in (None, "all") else options["unanswered"]
    if not isinstance(unanswered, int):
        raise InputError(f"--unanswered is 'all' or a whole number; got {unanswered!r}.")
    positive = {name: options[name] for name in ("dim", "epochs", "batch_size", "lr")}
    positive |= {name: options[name] for name in ("warmup_draws", "posterior_draws")}
    positive |= {"negatives": drawn, "unanswered": unanswered}
    at_least_0 = {
        name: options[name]
        for name in ("negative_weight", "kl_weight", "kl_frequency", "early_stopping", "checkpoint_every")
    }
    for name, value in positive.items():
        if not value > 0 or math.isinf(value):
            raise InputError(f"--{name.replace('_', '-')} must be a positive number; got {value}.")
    for name, least in at_least_0.items():
        if least is not None and (not least >= 0 or math.isinf(least)):
            raise InputError(f"--{name.replace('_', '-')} must be at least 0; got {least}.")
    if not 0 <= options["warmup"] <= 1:
        raise InputError(f"--warmup is a share of all steps, from 0 to 1; got {options['warmup']}.")
    if not 0 < options["completeness"] <= 1:
        raise InputError(f"--completeness is a probability above 0 and up to 1; got {options['completeness']}.")
    if min(options["devices"], options["nodes"]) < 1:
        raise InputError(f"--devices and --nodes must be at least 1; got {options['devices']} and {options['nodes']}.")


def _check_choices(**given: tuple[Any, tuple[str | None, ...]]) -> None:
    for name, (value, choices) in given.items():
        if value not in choices:
            raise InputError(
                f"unknown --{name.replace('_', '-')} {value!r}; choose from {', '.join(filter(None, choices))}."
            )
