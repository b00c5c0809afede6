"""``kgpyro.fit``: from a graph and names to a fitted posterior."""

from __future__ import annotations

import inspect
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pandas as pd
import pyro
import torch

from kgpyro.data.features import FeaturesLike, load_features
from kgpyro.data.graph import Graph, load_graph
from kgpyro.display import Metrics
from kgpyro.errors import InputError
from kgpyro.files import claim
from kgpyro.inference.checkpoint import FILE as CHECKPOINT
from kgpyro.inference.checkpoint import Checkpoint, Checkpoints
from kgpyro.inference.elbo import Terms, WeightedELBO
from kgpyro.inference.memory import shortage
from kgpyro.inference.training import (
    LR_SCHEDULES,
    OPTIMIZERS,
    SCHEDULES,
    SPARSE_OPTIMIZERS,
    Diverged,
    KLSchedule,
    Progress,
    Training,
    estimate_elbo,
    latent_sites,
    precision_in_use,
    train,
)
from kgpyro.names import GUIDES, MODELS, name_of, resolve
from kgpyro.posterior.fitted import Posterior, build_guide, build_setting
from kgpyro.posterior.runs import (
    OWN,
    POSTERIOR,
    check_writable_config,
    is_own_code,
    new_run_folder,
    provenance,
    read_config,
    read_graph,
    refusing,
    start_run,
)
from kgpyro.posterior.scores import seeded
from kgpyro.program.batches import Batches
from kgpyro.program.interactions import SCORES, Score, resolve_score
from kgpyro.program.likelihood import ESTIMATORS, LIKELIHOODS
from kgpyro.program.priors import PriorLike, resolve_prior

COLLAPSED = 1.0  # nats of KL per latent vector below which a posterior says next to nothing about its symbol
_ONE_AT_A_TIME = threading.RLock()  # Pyro's handlers and PyTorch's random state are the whole process'
EXACT_UP_TO = 100_000  # entities up to which all candidates are the default


def fit(
    graph: Graph | str | Path | None = None,
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
    likelihood: Literal["bernoulli", "categorical"] = "bernoulli",
    completeness: float = 1.0,
    closed_world: Literal["local", "full"] = "local",
    lr: float = 0.1,
    lr_schedule: Literal["constant", "linear"] = "constant",
    optimizer: Literal["adagrad", "adam", "adamw", "rmsprop", "sgd"] = "adagrad",
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: Literal["32", "64", "bf16", "16"] = "32",
    early_stopping: int = 0,
    validate_every: int = 5,
    checkpoint_every: float = 60.0,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Posterior:
    """Fit a Bayesian knowledge-graph embedding by stochastic variational inference.

    Ctrl-C ends the fit after the present step; it is then evaluated, and saved where ``out`` says, as if it were
    complete. A second one stops at once. Fits in several threads wait for each other.

    Args:
        graph: a Graph, the name of a data set, or a folder of triples files; with ``resume`` it is the run's.
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
            normalising flow), features(hidden=128) (entities known by --features alone), mixture(members=4) (several
            lookup tables with starts of their own, as in an ensemble), point (a point estimate), or your own as
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
        likelihood: bernoulli (each fact of a query is true or not; the paper's), or categorical (each answer of a query
            is drawn from all entities, which says who answers and not whether a fact is true).
        completeness: probability with which a true fact between two entities is in the training graph; at 1 whatever it
            lacks is false, below 1 a fact may be true and missing (Elkan & Noto 2008).
        closed_world: local (the facts are those of queries that training answers), or full (of every entity and
            relation, so that where training answers nothing all is false); for small, dense graphs.
        lr: learning rate.
        lr_schedule: constant, or linear (from --lr down to 0 over the fit; for Adam, whose steps do not shrink by
            themselves).
        optimizer: adagrad, adam, adamw, rmsprop or sgd.
        seed: of initial values, batches and draws.
        device: auto, cpu, gpu, or mps.
        devices: processes on each node, one per device; they share every batch (PyTorch's DistributedDataParallel).
        nodes: machines; for torchrun and Slurm, which start the processes themselves, say how many there are.
        precision: bits of floating point: 32, 64, or mixed bf16 (32 on a processor without bf16 products) or 16.
        early_stopping: epochs without a better validation MRR after which to stop; the best state is kept (0: never).
        validate_every: epochs between validations where early stopping asks for them.
        checkpoint_every: seconds between checkpoints in --out, at least (0: after every step); longer where writing
            them would take more than a fiftieth of the time.
        out: folder for the run's files; it must not hold another run.
        resume: folder of a fit that was interrupted, to go on to the very result it would have had. All options are
            those of the run; only your own code is to be named again.
        progress: show progress bars.

    Returns:
        The posterior; its ``metrics`` hold the test and validation ranks and the ELBO (in the first process only, where
        there are several).

    Raises:
        InputError: whatever of the above cannot be, in one sentence.
    """
    options = {name: value for name, value in locals().items() if name not in ("graph", "out", "resume", "progress")}
    folder = None if out is None else Path(out)
    saved = None
    if resume is not None:
        folder = Path(resume) if folder is None else folder
        graph, options, saved = _resumed(Path(resume), folder, graph, options)
    elif graph is None:
        raise InputError("name a data set or a folder of triples files, or a run to --resume.")
    graph = graph if isinstance(graph, Graph) else load_graph(graph)
    config = _config(graph, options, folder is not None)
    for key, value in (saved or {}).items():
        if key in config and key not in ("dataset", "checkpoint_every") and config[key] != value:
            raise InputError(f"--{key.replace('_', '-')} is {value} in the run in {folder}; --resume cannot change it.")
    if folder is not None:
        check_writable_config(config)
        if saved is None:
            new_run_folder(folder)
        else:
            config["dataset"] = saved["dataset"]
    with _ONE_AT_A_TIME, ExitStack() as held, seeded(config["seed"]), pyro.validation_enabled(False):

        def begin() -> None:
            assert folder is not None and isinstance(graph, Graph)
            held.enter_context(claim(folder))
            if saved is None:
                new_run_folder(folder)
                held.push(partial(_clear, folder))
                start_run(folder, graph, config)

        posterior, complete = _fit(graph, config, options["features"], progress, folder, begin)
        if folder is not None and posterior.metrics:
            posterior.save(folder, unfinished=True)
            if complete:
                (folder / CHECKPOINT).unlink(missing_ok=True)
    return posterior


def _clear(folder: Path, failure: type[BaseException] | None, *_: Any) -> None:
    """Leave no trace of a fit that failed before its first checkpoint."""
    if failure is not None and not (folder / CHECKPOINT).exists() and not (folder / POSTERIOR).exists():
        for file in ("config.yaml", "graph.json"):
            (folder / file).unlink(missing_ok=True)


def _resumed(
    resume: Path, folder: Path, given: Graph | str | Path | None, options: dict[str, Any]
) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """The graph of an unfinished run, its options, with those given anew, and its configuration."""
    if folder.resolve() != resume.resolve():
        raise InputError(f"--resume {resume} goes on in that folder; leave out --out {folder}.")
    if not (resume / "config.yaml").is_file():
        raise InputError(f"{resume} holds no run to resume: config.yaml is missing there.")
    if (resume / POSTERIOR).is_file() and not (resume / CHECKPOINT).is_file():
        raise InputError(f"the fit in {resume} has finished; there is nothing to resume.")
    with refusing(resume):
        saved, graph = read_config(resume), read_graph(resume)
    if given is not None and (given if isinstance(given, Graph) else load_graph(given)).checksum != graph.checksum:
        raise InputError(f"the run in {resume} is of another graph than the one given; leave that out.")
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit).parameters.items()}
    merged = {}
    for key, value in options.items():
        default = isinstance(value, (str, int, float, type(None))) and value == defaults[key]
        merged[key] = saved.get(key, value) if default else value
        if default and key in ("model", *OWN) and is_own_code(merged[key]):
            raise InputError(
                f"the run in {resume} is of your own {key} {merged[key]}; name it again to have it imported: "
                f"--{key.replace('_', '-')} {merged[key]}, or {key}='{merged[key]}' in Python."
            )
    return graph, merged, saved


def _config(graph: Graph, options: Mapping[str, Any], saving: bool) -> dict[str, Any]:
    """The options as ``config.yaml`` has them. Raises InputError for one that cannot be."""
    _check_numbers(options)
    _check_choices(
        kl_schedule=(options["kl_schedule"], SCHEDULES),
        lr_schedule=(options["lr_schedule"], LR_SCHEDULES),
        optimizer=(options["optimizer"], tuple(OPTIMIZERS)),
        estimator=(options["estimator"], ESTIMATORS),
        likelihood=(options["likelihood"], LIKELIHOODS),
        closed_world=(options["closed_world"], ("local", "full")),
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
    if categorical and (config["negatives"], options["completeness"], options["closed_world"]) != ("all", 1, "local"):
        raise InputError(
            "--likelihood categorical draws each query's answers from all entities; leave out --negatives and "
            "--completeness and --closed-world."
        )
    if config["early_stopping"] and not len(graph.valid):
        raise InputError(f"--early-stopping watches validation triples, and graph {graph.name!r} has none.")
    if config["negatives"] == "all" and options["negative_weight"] is not None:
        raise InputError("--negative-weight weighs drawn candidates; give it together with --negatives K.")
    return config


def _fit(
    whole: Graph,
    config: dict[str, Any],
    features: FeaturesLike | None,
    progress: bool,
    folder: Path | None,
    begin: Callable[[], None],
) -> tuple[Posterior, bool]:
    """The posterior, and whether its fit came to its end.

    Args:
        folder: for checkpoints; where it holds one, the fit goes on from there.
        begin: called in the first process before anything is written to it.
    """
    started = time.monotonic()
    graph, values = whole, None
    if features is not None:
        graph, values = whole.training_part(), load_features(features, whole)
    dtype = torch.float64 if config["precision"] == "64" else torch.float32
    queries = graph.queries_of(config["closed_world"])
    sampled = None if config["negatives"] == "all" else int(config["negatives"])
    batches = Batches(queries, graph.num_entities, config["inverse"], sampled, config["negative_weight"], dtype)
    kg = build_setting(graph, config, None if values is None else values[whole.seen].to(dtype)).to(dtype)
    if values is not None and not bool(whole.seen.all()):
        kg.refuse_a_parameter_per_entity()
    kg.start_at_base_rates(batches)
    found = resolve(config["model"], MODELS, "model")
    model = found(kg).to(dtype) if isinstance(found, type) else found
    sites = latent_sites(model, kg, batches)
    alone = config["devices"] * config["nodes"] == 1  # several processes average dense gradients
    kg.sparse = sampled is not None and alone and config["optimizer"] in SPARSE_OPTIMIZERS
    if short := shortage(kg, config, batches.num_observed / len(batches)):
        print(f"kgpyro: {short}", file=sys.stderr)
    guide = build_guide(config, kg, sites).to(dtype)
    if values is not None and not guide.inductive:
        raise InputError(f"guide {config['guide']} makes no use of --features; add --guide features.")
    local = not sites & {"entities", "relations"}
    if config["kl_weight"] is None:
        config["kl_weight"] = 2.0 / len(queries) if local else 1.0

    posterior = Posterior(graph, kg, guide, config)
    precision = precision_in_use(config["precision"], config["device"])
    posterior.provenance = provenance(whole, config | {"precision": precision})

    def validate() -> float:
        posterior.forget()
        return posterior.evaluation("valid")["realistic"]["mrr"]

    steps = math.ceil(len(queries) / config["batch_size"])
    schedule = KLSchedule(config["kl_schedule"], config["kl_weight"], config["warmup"], steps, config["epochs"])
    elbo = WeightedELBO(config["kl_weight"], config["estimator"])
    how = config["optimizer"], config["lr"], config["batch_size"], config["seed"], config["lr_schedule"]
    module = Training(kg, model, guide, elbo, batches, schedule, *how)
    bar = Progress(validate, steps * config["epochs"], config["early_stopping"], config["validate_every"], progress)
    callbacks: list[pl.Callback] = [bar]
    if folder is not None:
        callbacks.append(Checkpoints(bar, folder, config["checkpoint_every"], begin))
        if (checkpoint := Checkpoint.read(folder)) is not None:
            with refusing(folder):
                checkpoint.put_into(module, bar)
    how_many = config["devices"], config["nodes"]
    try:
        rank = train(module, config["epochs"], config["device"], precision, callbacks, *how_many, bar.interrupt)
    except Diverged as failure:
        raise _save_good(posterior, module, bar, folder, failure) from failure
    posterior.forget()
    posterior.log = bar.table
    posterior.seconds = round(bar.before + time.monotonic() - started, 1)
    if rank:
        return posterior, bar.finished  # the first process says how good it is

    facts = batches
    if sampled is not None:
        few = sampled if graph.num_entities > EXACT_UP_TO else None
        facts = Batches(queries, graph.num_entities, config["inverse"], few, dtype=dtype)
    with seeded(config["seed"]):
        bound, error, terms = estimate_elbo(elbo, kg, model, guide, facts.to(posterior.device), progress=progress)
    if module.failures and not math.isfinite(bound):
        raise _save_good(posterior, module, bar, folder, Diverged(module.cause()))
    if values is not None:
        posterior = posterior.extend(whole, values)
    held_out = [split for split in ("test", "valid") if len(getattr(whole, split))]
    posterior.metrics = Metrics({split: posterior.evaluation(split, progress) for split in held_out}) | {
        "elbo_per_fact": bound,
        "elbo_error": error,
        "log_likelihood_per_fact": float(terms.log_likelihood),
        "kl_per_fact": float(terms.kl),
        "kl_per_latent": terms.kl_per_latent,
        "objective": objective_name(config, guide.point),
        "warnings": whole.problems + _warnings(config, module, bar, terms, local),
    }
    return posterior, bar.finished


def _save_good(
    posterior: Posterior, module: Training, bar: Progress, folder: Path | None, failure: Diverged
) -> InputError:
    """Save the state of the last checkpoint (or the present one), if its loss is finite; what to tell the user."""
    if folder is None:
        return failure
    if (checkpoint := Checkpoint.read(folder)) is not None:
        checkpoint.put_into(module, bar)
    with torch.no_grad():
        module.bound(
            module.kg, module.batches.to(module.kg.intercept.device)(module.index.to(module.kg.intercept.device))
        )
    last = module.elbo.last
    if not math.isfinite(last.log_likelihood - last.kl):
        return failure
    posterior.forget()
    posterior.log, posterior.metrics = bar.table, Metrics(warnings=[str(failure)])
    posterior.save(folder, unfinished=True)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return InputError(f"{failure} The last good state, after {module.step} steps, is saved in {folder}.")


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
    if config.get("closed_world") == "full":
        facts += " of all queries, answered or not (full closed world)"
    if config["completeness"] < 1:
        facts += f", of which the graph is taken to hold {config['completeness']:g} of the true ones"
    weight = config["kl_weight"]
    bound = "log joint density (a point estimate, no bound)" if point else "ELBO"
    bound += "" if weight == 1 else f" with {'prior' if point else 'KL'} weight {weight:.3g}"
    return f"{bound}, {facts}; KL schedule {config['kl_schedule']}"


def _warnings(config: Mapping[str, Any], module: Training, bar: Progress, terms: Terms, local: bool) -> list[str]:
    found = []
    if not bar.finished:
        found.append(f"The fit was interrupted after {module.step} of {bar.steps} steps; --resume goes on with it.")
    collapsed = [site for site, kl in terms.kl_per_latent.items() if kl < COLLAPSED]
    if collapsed:
        way_out = "lower --kl-weight" if local else "train longer, or lower --kl-weight"
        found.append(
            f"The posterior has collapsed to the prior at {', '.join(sorted(collapsed))} (mean KL per latent below "
            f"{COLLAPSED:g} nat): these latents carry next to no information about their symbols; {way_out}."
        )
    if module.skipped:
        found.append(f"{module.skipped} of {module.step} steps were left out: their loss or gradient was not finite.")
    if not module.schedule.reached(module.step):
        found.append(
            f"The fit ended after {module.step} steps, before the KL weight reached its target at "
            f"{module.schedule.warmup_steps}."
        )
    return found


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
    positive = {name: options[name] for name in ("dim", "epochs", "batch_size", "lr")} | {"negatives": drawn}
    at_least_0 = {
        name: options[name] for name in ("negative_weight", "kl_weight", "early_stopping", "checkpoint_every")
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


def _check_choices(**given: tuple[Any, tuple[str, ...]]) -> None:
    for name, (value, choices) in given.items():
        if value not in choices:
            raise InputError(f"unknown --{name.replace('_', '-')} {value!r}; choose from {', '.join(choices)}.")
