"""``kgpyro.fit``: from a graph and names to a fitted posterior."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyro
import torch

from kgpyro.batches import Batches
from kgpyro.elbo import Terms, WeightedELBO
from kgpyro.errors import InputError
from kgpyro.features import FeaturesLike, load_features
from kgpyro.graph import Graph, load_graph
from kgpyro.likelihood import ESTIMATORS
from kgpyro.names import GUIDES, MODELS, name_of, resolve
from kgpyro.posterior import Posterior, build_guide, build_setting
from kgpyro.priors import PriorLike, resolve_prior
from kgpyro.runs import check_writable_config, new_run_folder, provenance
from kgpyro.scores import seeded
from kgpyro.scoring import SCORES, Score, resolve_score
from kgpyro.training import (
    OPTIMIZERS,
    SCHEDULES,
    SPARSE_OPTIMIZERS,
    KLSchedule,
    Progress,
    Training,
    estimate_elbo,
    latent_sites,
    train,
)

COLLAPSED = 1.0  # nats of KL per latent vector below which a posterior says next to nothing about its symbol
EXACT_UP_TO = 100_000  # entities up to which all candidates are the default


def fit(
    graph: Graph | str | Path,
    *,
    model: str | Callable = "lfm",
    prior: PriorLike = "normal",
    entity_prior: PriorLike | None = None,
    relation_prior: PriorLike | None = None,
    score: str | Score | Callable = "ComplEx",
    guide: str | Callable = "lookup",
    features: FeaturesLike | None = None,
    dim: int = 100,
    epochs: int = 100,
    batch_size: int = 256,
    negatives: int | Literal["all"] | None = None,
    negative_weight: float | None = None,
    kl_weight: float | None = None,
    kl_schedule: Literal["warmup", "constant", "compression"] = "warmup",
    warmup: float = 0.3,
    estimator: Literal["local", "shared", "plain"] = "local",
    inverse: bool = True,
    lr: float = 0.1,
    optimizer: Literal["adagrad", "adam", "adamw", "rmsprop", "sgd"] = "adagrad",
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: Literal["32", "64", "bf16", "16"] = "32",
    early_stopping: int = 0,
    validate_every: int = 5,
    out: str | Path | None = None,
    progress: bool = True,
) -> Posterior:
    """Fit a Bayesian knowledge-graph embedding by stochastic variational inference.

    Args:
        graph: a Graph, the name of a data set, or a folder of triples files.
        model: generative model: lim (latents per entity and relation), lfm (latents per fact), or your own as
            package.module:object.
        prior: prior of all latents: a family of pyro.distributions such as normal, a call such as laplace(scale=0.5),
            your own as package:MyPrior; in Python also a Pyro distribution.
        entity_prior: prior of entity latents where it differs from --prior.
        relation_prior: prior of relation latents where it differs from --prior.
        score: scoring function: DistMult, ComplEx, TransE-L1, TransE-L2, RESCAL, CP, RotatE, pykeen:NAME, or your own
            (h, r, t) -> score as package.module:function.
        guide: variational family: lookup (a location and scale per symbol), mlp(width=32, hidden=128) (a narrow
            embedding through a shared network), lowrank(rank=4) (correlated dimensions), flow(layers=2, hidden=64) (a
            normalising flow), features(hidden=128) (entities known by --features alone), or your own as
            package.module:object.
        features: file with features of the entities: CSV, TSV or parquet with names in the first column, or npy with a
            row per entity; in Python also a DataFrame indexed by name. Entities that training lacks then take no part
            in it, and are predicted all the same.
        dim: real numbers per entity latent; ComplEx, CP and RotatE split them in two halves.
        epochs: passes over the training queries.
        batch_size: queries per step.
        negatives: all (every entity is a candidate of every query; the exact objective), or the number of unobserved
            candidates drawn per query, weighted so that the objective stays unbiased. Default: all up to 100,000
            entities, 100 above.
        negative_weight: fixed weight of a drawn candidate instead of the unbiased one; 1 is plain negative sampling, a
            different objective.
        kl_weight: weight of the KL divergence at the end of its schedule. Default: 1 where latents are global (lim); 2
            over the number of training queries where they are per fact (lfm), since at 1 that model's optimum is the
            prior.
        kl_schedule: warmup (from 0, linearly), constant, or compression (Blundell et al. 2015).
        warmup: share of all steps that the warm-up takes.
        estimator: how a step integrates over the latents: local (each score has noise of its own, where score and guide
            admit it), shared (one draw of all latents), or plain (the same in plain Pyro, without the fused kernel).
        inverse: give every relation an inverse with latents of its own, which answers head queries.
        lr: learning rate.
        optimizer: adagrad, adam, adamw, rmsprop or sgd.
        seed: of initial values, batches and draws.
        device: auto, cpu, gpu, or mps.
        devices: processes on each node, one per device; they share every batch (PyTorch's DistributedDataParallel).
        nodes: machines; for torchrun and Slurm, which start the processes themselves, say how many there are.
        precision: bits of floating point: 32, 64, or mixed bf16 or 16.
        early_stopping: epochs without a better validation MRR after which to stop; the best state is kept (0: never).
        validate_every: epochs between validations where early stopping asks for them.
        out: folder for the run's files; it must not hold another run.
        progress: show progress bars.

    Returns:
        The posterior; its ``metrics`` hold the test and validation ranks and the ELBO (in the first process only, where
        there are several).

    Raises:
        InputError: whatever of the above cannot be, in one sentence.
    """
    graph = graph if isinstance(graph, Graph) else load_graph(graph)
    _check_numbers(dim, epochs, batch_size, negatives, negative_weight, kl_weight, warmup, lr, early_stopping)
    if min(devices, nodes) < 1:
        raise InputError(f"--devices and --nodes must be at least 1; got {devices} and {nodes}.")
    _check_choices(kl_schedule=(kl_schedule, SCHEDULES), optimizer=(optimizer, tuple(OPTIMIZERS)))
    _check_choices(estimator=(estimator, ESTIMATORS), precision=(precision, ("32", "64", "bf16", "16")))
    if negatives is None:
        negatives = "all" if graph.num_entities <= EXACT_UP_TO else 100
    if negatives == "all" and negative_weight is not None:
        raise InputError("--negative-weight weighs drawn candidates; give it together with --negatives K.")
    config: dict[str, Any] = {
        "dataset": graph.source or graph.name,
        "model": _named(model, MODELS, "model", out),
        "prior": _prior_text(prior),
        "entity_prior": _prior_text(entity_prior),
        "relation_prior": _prior_text(relation_prior),
        "score": _score_text(score),
        "guide": _named(guide, GUIDES, "guide", out),
        "features": None if features is None or isinstance(features, pd.DataFrame) else str(features),
        "dim": dim,
        "epochs": epochs,
        "batch_size": batch_size,
        "negatives": negatives,
        "negative_weight": negative_weight,
        "kl_weight": kl_weight,
        "kl_schedule": kl_schedule,
        "warmup": warmup,
        "estimator": estimator,
        "inverse": inverse,
        "lr": lr,
        "optimizer": optimizer,
        "seed": seed,
        "device": device,
        "devices": devices,
        "nodes": nodes,
        "precision": precision,
        "early_stopping": early_stopping,
        "validate_every": validate_every,
    }
    if out is not None:
        new_run_folder(out)
        check_writable_config(config)
    with seeded(seed), pyro.validation_enabled(False):
        posterior = _fit(graph, config, features, progress)
    if out is not None and posterior.metrics:
        posterior.save(out)
    return posterior


def _fit(whole: Graph, config: dict[str, Any], features: FeaturesLike | None, progress: bool) -> Posterior:
    started = time.monotonic()
    graph, values = whole, None
    if features is not None:
        graph, values = whole.training_part(), load_features(features, whole)
    dtype = torch.float64 if config["precision"] == "64" else torch.float32
    queries = graph.training_queries
    sampled = None if config["negatives"] == "all" else int(config["negatives"])
    batches = Batches(queries, graph.num_entities, config["inverse"], sampled, config["negative_weight"], dtype)
    kg = build_setting(graph, config, None if values is None else values[whole.seen].to(dtype)).to(dtype)
    kg.start_at_base_rates(batches)
    found = resolve(config["model"], MODELS, "model")
    model = found(kg).to(dtype) if isinstance(found, type) else found
    sites = latent_sites(model, kg, batches)
    alone = config["devices"] * config["nodes"] == 1  # several processes average dense gradients
    kg.sparse = sampled is not None and alone and config["optimizer"] in SPARSE_OPTIMIZERS
    guide = build_guide(config, kg, sites).to(dtype)
    if values is not None and not guide.inductive:
        raise InputError(f"guide {config['guide']} makes no use of --features; add --guide features.")
    local = not sites & {"entities", "relations"}
    if config["kl_weight"] is None:
        config["kl_weight"] = 2.0 / len(queries) if local else 1.0

    posterior = Posterior(graph, kg, guide, config)
    posterior.provenance = provenance(whole, config)

    def validate() -> float:
        posterior.forget()
        return posterior.evaluation("valid")["realistic"]["mrr"]

    steps = math.ceil(len(queries) / config["batch_size"])
    schedule = KLSchedule(config["kl_schedule"], config["kl_weight"], config["warmup"], steps, config["epochs"])
    elbo = WeightedELBO(config["kl_weight"], config["estimator"])
    how = config["optimizer"], config["lr"], config["batch_size"], config["seed"]
    module = Training(kg, model, guide, elbo, batches, schedule, *how)
    bar = Progress(validate, config["early_stopping"], config["validate_every"], progress)
    where = config["device"], config["precision"]
    rank = train(module, config["epochs"], *where, bar, config["devices"], config["nodes"])
    posterior.forget()
    posterior.log = bar.table
    posterior.seconds = round(time.monotonic() - started, 1)
    if rank:
        return posterior  # the first process says how good it is

    facts = batches
    if sampled is not None:
        few = sampled if graph.num_entities > EXACT_UP_TO else None
        facts = Batches(queries, graph.num_entities, config["inverse"], few, dtype=dtype)
    with seeded(config["seed"]):
        bound, error, terms = estimate_elbo(elbo, kg, model, guide, facts.to(posterior.device), progress=progress)
    if values is not None:
        posterior = posterior.extend(whole, values)
    posterior.metrics = {
        "test": posterior.evaluation("test", progress),
        "valid": posterior.evaluation("valid", progress),
        "elbo_per_fact": bound,
        "elbo_error": error,
        "log_likelihood_per_fact": float(terms.log_likelihood),
        "kl_per_fact": float(terms.kl),
        "kl_per_latent": terms.kl_per_latent,
        "objective": objective_name(config),
        "warnings": whole.problems + _warnings(config, bar.table, terms, local, schedule),
    }
    return posterior


def objective_name(config: Mapping[str, Any]) -> str:
    """What was optimised, in words."""
    if config["negatives"] == "all":
        facts = "exact over all candidates"
    elif config["negative_weight"] is None:
        facts = f"Bernoulli-sampled, {config['negatives']} unobserved candidates per query with 1/b weights (unbiased)"
    else:
        facts = (
            f"negative sampling, {config['negatives']} candidates per query with weight {config['negative_weight']:g}: "
            f"NOT the ELBO over all facts"
        )
    weight = config["kl_weight"]
    bound = "ELBO" if weight == 1 else f"ELBO with KL weight {weight:.3g}"
    return f"{bound}, {facts}; KL schedule {config['kl_schedule']}"


def _warnings(config: Mapping[str, Any], log: Any, terms: Terms, local: bool, schedule: KLSchedule) -> list[str]:
    found = []
    collapsed = [site for site, kl in terms.kl_per_latent.items() if kl < COLLAPSED]
    if collapsed:
        way_out = "lower --kl-weight" if local else "train longer, or lower --kl-weight"
        found.append(
            f"The posterior has collapsed to the prior at {', '.join(sorted(collapsed))} (mean KL per latent below "
            f"{COLLAPSED:g} nat): these latents carry next to no information about their symbols; {way_out}."
        )
    steps = len(log) * schedule.steps_per_epoch
    if not schedule.reached(steps):
        found.append(
            f"The fit ended after {steps} steps, before the KL weight reached its target at {schedule.warmup_steps}."
        )
    return found


def _named(given: Any, table: dict[str, str], kind: str, out: Any) -> Any:
    resolve(given, table, kind)
    try:
        return name_of(given, table, kind)
    except InputError:
        if out is not None:
            raise
        return given


def _prior_text(prior: PriorLike | None) -> Any:
    if prior is None:
        return None
    return resolve_prior(prior).text or prior


def _score_text(given: str | Score | Callable) -> Any:
    score = resolve_score(given)
    return score.name if isinstance(given, str) or SCORES.get(score.name.lower()) is score else given


def _check_numbers(
    dim: int,
    epochs: int,
    batch_size: int,
    negatives: Any,
    negative_weight: float | None,
    kl_weight: float | None,
    warmup: float,
    lr: float,
    early_stopping: int,
) -> None:
    drawn = 1 if negatives in (None, "all") else negatives
    if not isinstance(drawn, int):
        raise InputError(f"--negatives is 'all' or a whole number; got {negatives!r}.")
    positive: dict[str, float] = {"dim": dim, "epochs": epochs, "batch-size": batch_size, "negatives": drawn, "lr": lr}
    at_least_0 = {"negative-weight": negative_weight, "kl-weight": kl_weight, "early-stopping": early_stopping}
    for name, value in positive.items():
        if not value > 0 or math.isinf(value):
            raise InputError(f"--{name} must be a positive number; got {value}.")
    for name, least in at_least_0.items():
        if least is not None and (not least >= 0 or math.isinf(least)):
            raise InputError(f"--{name} must be at least 0; got {least}.")
    if not 0 <= warmup <= 1:
        raise InputError(f"--warmup is a share of all steps, from 0 to 1; got {warmup}.")


def _check_choices(**given: tuple[Any, tuple[str, ...]]) -> None:
    for name, (value, choices) in given.items():
        if value not in choices:
            raise InputError(f"unknown --{name.replace('_', '-')} {value!r}; choose from {', '.join(choices)}.")
