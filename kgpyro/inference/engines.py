"""From resolved options to a posterior: the program, its guide, and who fits them (SVI, then HMC or UHA; or NUTS)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgpyro.data.features import FeaturesLike, load_features
from kgpyro.data.graph import Graph
from kgpyro.display import Metrics
from kgpyro.errors import InputError
from kgpyro.inference.checkpoint import FILE as CHECKPOINT
from kgpyro.inference.checkpoint import Checkpoint, Checkpoints
from kgpyro.inference.elbo import estimate_elbo
from kgpyro.inference.empirical_bayes import ClosedForm
from kgpyro.inference.hmc import moved_draws
from kgpyro.inference.nuts import posterior_by_nuts, refuse_chains
from kgpyro.inference.options import EXACT_UP_TO, objective_name
from kgpyro.inference.progress import Progress
from kgpyro.inference.training import (
    SPARSE_OPTIMIZERS,
    Diverged,
    Training,
    is_alone,
    precision_in_use,
    train,
)
from kgpyro.inference.uha import annealed_draws
from kgpyro.inference.verdict import warnings_of
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.replay import Program
from kgpyro.posterior.runs import provenance, refusing
from kgpyro.posterior.sharded import ShardedPosterior, share_of
from kgpyro.posterior.streaming import SAME, start_at
from kgpyro.program.variational import Guide, Site
from kgpyro.randomness import seeded

LONG, LOOKED_AT = 20, 500_000_000  # epochs from which on, and cells up to which, a fit is validated halfway as well
LINKED, LINK = 20, 4_000_000_000  # draws and cells behind the link from a categorical fit's evidence to log-odds
MOVES = {  # what is done to a guide's draws, and how that is told
    "hmc": (moved_draws, "; then moved by HMC in {chains} chains, R-hat of the log density {r_hat:.2f}"),
    "uha": (annealed_draws, "; then annealed in {steps} leapfrog steps, to a bound of {bound_per_fact:.4f} per fact"),
}


@dataclass(frozen=True)
class Watched:
    """Who sees a fit: its progress bars, Lightning's loggers and callbacks; and where its random numbers come from."""

    progress: bool
    logger: Any
    callbacks: Sequence[Any]
    randomness: seeded


def fit_program(
    whole: Graph,
    config: dict[str, Any],
    features: FeaturesLike | None,
    watched: Watched,
    folder: Path | None,
    begin: Callable[[], None],
    start: Posterior | None = None,
) -> tuple[Posterior, bool]:
    """The posterior, and whether its fit came to its end.

    Args:
        folder: for checkpoints; where it holds one, the fit goes on from there.
        begin: called in the first process before anything is written to it.
    """
    started, how = time.monotonic(), config["inference"]
    values = None if features is None else load_features(features, whole)
    graph = whole if values is None else whole.training_part()
    program, sites = _program(graph, config, None if values is None else values[whole.seen])
    if values is not None and len(graph.entities) < len(whole.entities):
        program.kg.refuse_a_parameter_per_entity()
    if start is not None and (start.guide is None or how == "nuts"):
        raise InputError("`start` gives a guide its parameters, and draws (of NUTS, HMC or UHA) have none.")
    if how == "nuts":
        return posterior_by_nuts(whole, program, sites, config, watched.progress, begin if folder else None), True
    share = program.kg.share
    if share is not None:  # as a run draws each process' own rows
        watched.randomness.reseed(config["seed"])
    guide = _guide(program, sites, config)
    if config["kl_weight"] is None:
        config["kl_weight"] = 1 / program.batches.total if guide.per_fact else 1.0
    posterior = (Posterior if share is None else ShardedPosterior)(graph, program, guide, config)
    posterior.provenance = provenance(
        whole, config | {"precision": precision_in_use(config["precision"], config["device"])}
    )
    if start is not None:
        for key in SAME:
            if config[key] != (given := start.config.get(key)):
                raise InputError(f"`start` has {key} {given}, the fit {config[key]}; let them be the same.")
        start_at(posterior.modules(), graph, start.modules(), start.graph)

    em = ClosedForm(program.kg, guide, program.batches) if config["learn_by"] == "em" else None
    module = Training(program, guide, config, watched.randomness, em)
    bar = _bar(posterior, module, watched.progress, len(whole.valid))
    rank = _train(posterior, module, bar, watched, folder, begin)
    before, complete = bar.before, bar.finished
    if config["finish"] and complete:
        posterior, module, bar = _pointed(posterior, module, bar, sites, watched)
        folder = None  # its checkpoints are of the guide before
    posterior.log = bar.table
    posterior.seconds = round(before + time.monotonic() - started, 1)
    if rank and share is None:
        return posterior, complete  # the first process says how good it is

    bound = _bound(posterior, module, watched.progress)
    if module.failures and not math.isfinite(bound["elbo_per_fact"]):
        raise _save_good(posterior, module, bar, folder, Diverged(module.cause()))
    if how in MOVES:
        move, told = MOVES[how]
        with seeded(config["seed"]):
            drawn = move(program, guide, sites, config["warmup_draws"], config["posterior_draws"], watched.progress)
        fitted, posterior = posterior, Posterior(whole, program, None, config, log=posterior.log, samples=drawn[0])
        posterior.provenance, posterior.seconds = fitted.provenance, round(before + time.monotonic() - started, 1)
        bound |= {"objective": bound["objective"] + told.format(**drawn[1]), how: drawn[1]}
    posterior.check_form()
    if values is not None:
        posterior = posterior.extend(whole, values)
    if config["likelihood"] == "categorical" and len(whole.valid) and share is None:  # evidence to log-odds of facts
        most = max(100, LINK // (4 * LINKED * whole.num_entities))  # true and open facts, each in two queries
        posterior.recalibrate("per_relation", draws=LINKED, most=most)
    held_out = [split for split in ("test", "valid") if len(getattr(whole, split))]
    posterior.metrics = Metrics({s: posterior.evaluation(s, watched.progress) for s in held_out}) | bound
    posterior.metrics["warnings"] = whole.problems + warnings_of(posterior, module, bar)
    return posterior, complete


def _program(graph: Graph, config: dict[str, Any], values: Tensor | None) -> tuple[Program, dict[str, Site]]:
    """The model with all that its runs take, and its latent sites; ``values`` are features of the graph's entities."""
    share = share_of(config, graph.num_entities) if config["shard"] else None
    dtype = torch.float64 if config["precision"] == "64" or config["inference"] == "nuts" else torch.float32
    batches = batches_of(graph, config, dtype, share)
    kg = build_setting(graph, config, None if values is None else values.to(dtype), share).to(dtype)
    kg.start_at_base_rates(batches)
    # several processes average dense gradients, if they share none
    follows = (is_alone(config) or share is not None) and config["optimizer"] in SPARSE_OPTIMIZERS
    kg.sparse = config["negatives"] != "all" and follows
    program = program_of(config["model"], kg, batches)
    return program, sites_of(program)


def _guide(program: Program, sites: Mapping[str, Site], config: Mapping[str, Any]) -> Guide:
    """The guide that is named. Raises InputError where it does not go with the other options."""
    how, name = config["inference"], config["guide"]
    if how in MOVES:
        refuse_chains(program, sites, how.upper(), learns=True)
    guide = build_guide(name, program.kg, sites).to(program.kg.start.dtype)
    if guide.point and how in MOVES:
        raise InputError(f"`inference` {how} begins at a guide's draws; choose a `guide` that has some.")
    if program.kg.features is not None and not guide.inductive:
        raise InputError(f"guide {name} makes no use of `features`; add `guide` features.")
    if config["finish"] and (guide.point or guide.inductive or guide.members > 1):
        raise InputError(f"`finish` map has no posterior mean to train on with guide {name}; leave it out.")
    return guide


def _bar(posterior: Posterior, module: Training, progress: bool, validation: int) -> Progress:
    """What follows a fit: its bar, its log, and its validations."""
    config = module.config

    def validate() -> float:
        posterior.forget()
        return posterior.evaluation("valid")["realistic"]["mrr"]

    long = is_alone(config) and config["epochs"] >= LONG and not config["early_stopping"]
    looks = long and 0 < validation * posterior.graph.num_entities <= LOOKED_AT
    look = config["epochs"] // 2 if looks else 0
    return Progress(validate, module.schedule.steps, config["early_stopping"], config["validate_every"], progress, look)


def _train(
    posterior: Posterior,
    module: Training,
    bar: Progress,
    watched: Watched,
    folder: Path | None = None,
    begin: Callable[[], None] = lambda: None,
) -> int:
    """Go through the steps, from a checkpoint on where there is one; returns the rank of this process."""
    callbacks = [*watched.callbacks]
    if folder is not None:
        callbacks.append(Checkpoints(bar, folder, module.config["checkpoint_every"], begin))
        if (checkpoint := Checkpoint.read(folder)) is not None:
            with refusing(folder):
                checkpoint.put_into(module, bar)
    try:
        rank = train(module, bar, callbacks, watched.logger)
    except Diverged as failure:
        raise _save_good(posterior, module, bar, folder, failure) from failure
    posterior.forget()
    return rank


def _pointed(
    fitted: Posterior, module: Training, bar: Progress, sites: Mapping[str, Site], watched: Watched
) -> tuple[Posterior, Training, Progress]:
    """The fit's mean, trained on as a point estimate, at the KL weight and the priors that the fit came to."""
    program, config = fitted.program, fitted.config
    config["guide"] = "point"
    point: Any = build_guide("point", program.kg, sites).to(program.kg.start)
    point.start_at(fitted.guide)
    program.kg.requires_grad_(False)
    posterior = Posterior(fitted.graph, program, point, config)
    posterior.provenance = fitted.provenance
    module = Training(program, point, config | {"kl_schedule": "constant"}, watched.randomness)
    bar = bar.followed_by(_bar(posterior, module, watched.progress, 0))
    _train(posterior, module, bar, watched)
    return posterior, module, bar


def _bound(posterior: Posterior, module: Training, progress: bool) -> dict[str, Any]:
    """The bound of the graph over all candidates, whatever was trained on, and what its terms are."""
    config, graph, facts = posterior.config, posterior.graph, module.batches
    if config["negatives"] != "all" or config["relation_weight"]:
        few = config["negatives"] if graph.num_entities > EXACT_UP_TO else "all"
        whole = {"negatives": few, "negative_weight": None, "relation_weight": 0.0}
        facts = batches_of(graph, config | whole, module.kg.start.dtype, module.kg.share)
    with seeded(config["seed"]):
        what = module.kg, module.bound.model, module.bound.guide, facts.to(posterior.device)
        bound, error, terms = estimate_elbo(module.elbo, *what, progress=progress)
    return {
        "elbo_per_fact": bound,
        "elbo_error": error,
        "log_likelihood_per_fact": float(terms.log_likelihood),
        "kl_per_fact": float(terms.kl),
        "kl_per_latent": terms.kl_per_latent,
        "objective": objective_name(config, module.bound.guide.point),
    }


def _save_good(
    posterior: Posterior, module: Training, bar: Progress, folder: Path | None, failure: Diverged
) -> InputError:
    """Save the state of the last checkpoint (or the present one), if its loss is finite; what to tell the user."""
    if folder is None:
        return failure
    if (checkpoint := Checkpoint.read(folder)) is not None:
        checkpoint.put_into(module, bar)
    with torch.no_grad():
        module.bound(module.kg, module.batches.to(module.device)(module.index.to(module.device)))
    last = module.elbo.last
    if not math.isfinite(last.log_likelihood - last.price):
        return failure
    posterior.forget()
    posterior.log, posterior.metrics = bar.table, Metrics(warnings=[str(failure)])
    posterior.save(folder, unfinished=True)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return InputError(f"{failure} The last good state, after {module.step} steps, is saved in {folder}.")
