"""``kgpyro.fit``: from a graph and names to a fitted posterior."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from kgpyro.data.features import FeaturesLike, load_features
from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.data.stored import GRAPH, read_graph
from kgpyro.display import Metrics
from kgpyro.errors import InputError
from kgpyro.files import claim
from kgpyro.inference.checkpoint import FILE as CHECKPOINT
from kgpyro.inference.checkpoint import Checkpoint, Checkpoints
from kgpyro.inference.elbo import WeightedELBO, estimate_elbo
from kgpyro.inference.empirical_bayes import ClosedForm
from kgpyro.inference.hmc import moved_draws
from kgpyro.inference.nuts import posterior_by_nuts, refuse_chains
from kgpyro.inference.options import EXACT_UP_TO, Options, objective_name
from kgpyro.inference.progress import Progress
from kgpyro.inference.recipes import FREE, recipe_for
from kgpyro.inference.training import SPARSE_OPTIMIZERS, Diverged, KLSchedule, Training, precision_in_use, train
from kgpyro.inference.uha import annealed_draws
from kgpyro.inference.verdict import warnings_of
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.runs import (
    OWN,
    POSTERIOR,
    check_writable_config,
    is_own_code,
    new_run_folder,
    provenance,
    read_config,
    refusing,
    start_run,
)  # fmt: skip
from kgpyro.posterior.sharded import ShardedPosterior, refuse_no_option, share_of
from kgpyro.posterior.streaming import LIKE, SAME, start_at
from kgpyro.program.sites import PER_FACT
from kgpyro.randomness import seeded

LONG, LOOKED_AT = 20, 500_000_000  # epochs from which on, and cells up to which, a fit is validated halfway as well
ENOUGH = 100  # training facts below which little can be learned
TOO_FEW = "The graph has {} training facts, too few to say much: expect wide intervals, and ranks near chance."
LINKED, LINK = 20, 4_000_000_000  # draws and cells behind the link from a categorical fit's evidence to log-odds
MOVES = {  # what is done to a guide's draws, and how that is told
    "hmc": (moved_draws, "; then moved by HMC in {chains} chains, R-hat of the log density {r_hat:.2f}"),
    "uha": (annealed_draws, "; then annealed in {steps} leapfrog steps, to a bound of {bound_per_fact:.4f} per fact"),
}
NOT_MIXED = "The chains have not mixed: R-hat {r_hat:.2f} of the log density (1.05 is the most); raise `warmup_draws`."


@dataclass(frozen=True)
class Watched:
    """Who sees a fit: its progress bars, Lightning's loggers and callbacks; and where its random numbers come from."""

    progress: bool
    logger: Any
    callbacks: Sequence[Any]
    randomness: seeded


def fit(
    graph: Any = None,
    options: Options | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    start: Posterior | None = None,
    progress: bool = True,
    logger: Any = None,
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Posterior:
    """Fit a Bayesian knowledge-graph embedding, by variational inference or Monte Carlo.

    Ctrl-C stops the fit after the current step; it is then evaluated, and saved to ``out``, as if it were complete. A
    second Ctrl-C stops at once. Fits in several threads do not disturb each other.

    Args:
        graph: whatever :func:`kgpyro.load_graph` takes, such as the name of a data set, a folder, a file or a table;
            with ``resume`` it is the run's.
        options: :class:`kgpyro.Options`, each of which can be given by its name as well: ``fit(graph, model="lim")``.
            If none is given, or only dimension, epochs, seed, device and the like, the options are those of a recipe
            for the size of the graph (``kgpyro.inference.recipes``); ``metrics["recipe"]`` says which and why.
        out: folder for the run's files; it must not hold another run.
        resume: folder of an interrupted fit, to be continued: the result is that of an uninterrupted fit. All options
            are those of the run; only your own code has to be named again.
        start: a posterior of this graph or of another, whose parameters the fit starts from. It must have the same
            model, score, dim, guide and likelihood. Symbols are matched by name; new ones start as usual. Of these
            options, and of priors, completeness and closed world, those not given are taken from the posterior.
        progress: show progress bars.
        logger: a logger of Lightning, such as a TensorBoardLogger, or a list of them; each gets a row per epoch.
        callbacks: a callback of Lightning, or a list of them; they get the trainer and the module of this fit.
        changes: options by name; they replace those of ``options``.

    Returns:
        The posterior. Its ``metrics`` hold the test and validation ranks and the ELBO (of several processes, only in
        the first).

    Raises:
        InputError: an argument that is wrong, in one sentence.
    """
    if not isinstance(options, Options | None):
        raise InputError("`options` is a kgpyro.Options; single options are given by name, as in fit(graph, dim=50).")
    loggers = logger if logger is True else _of_lightning("logger", logger or (), pl.loggers.Logger)
    callbacks = _of_lightning("callbacks", callbacks, pl.Callback)
    if start is not None:
        if not isinstance(start, Posterior):
            raise InputError(f"`start` is a posterior, such as kgpyro.load(folder); got {start!r}.")
        if resume is not None:
            raise InputError("`start` begins a new fit and does not go with `resume`; leave one of them out.")
        changes = ({} if options else {key: start.config[key] for key in LIKE if key in start.config}) | changes
    given = {**({} if options is None else vars(options)), **changes}
    chosen = Options.of(given)
    folder = None if out is None else Path(out)
    saved = None
    if resume is not None:
        folder = Path(resume) if folder is None else folder
        graph, chosen, saved = _resumed(Path(resume), folder, graph, chosen)
    elif graph is None:
        raise InputError("name a data set, or give triples, or a run to `resume`.")
    graph = load_graph(graph)
    recipe = recipe_for(graph)
    if saved is not None:
        followed = all(saved.get(key) == value for key, value in recipe.options.items() if key not in FREE)
    elif followed := given.keys() <= FREE:
        chosen = Options.of({**recipe.options, **given})
    config = chosen.resolved(graph, saving=folder is not None)
    if config["shard"]:
        refuse_no_option(config | {"resume": resume, "start": start})
    for key, value in (saved or {}).items():
        if key in config and key not in ("dataset", "checkpoint_every") and config[key] != value:
            raise InputError(f"`{key}` is {value} in the run in {folder}; `resume` cannot change it.")
    if folder is not None:
        check_writable_config(config)
        if saved is None:
            new_run_folder(folder)
        else:
            config["dataset"] = saved["dataset"]
    training = torch.inference_mode(False), torch.enable_grad()
    with training[0], training[1], ExitStack() as held, seeded(config["seed"]) as randomness:

        def begin() -> None:
            assert folder is not None and isinstance(graph, Graph)
            held.enter_context(claim(folder))
            if saved is None:
                new_run_folder(folder)
                held.push(partial(_clear, folder))
                start_run(folder, graph, config)

        watched = Watched(progress, loggers or False, callbacks, randomness)
        posterior, complete = _fit(graph, config, chosen.features, watched, folder, begin, start)
        if followed and posterior.metrics:
            posterior.metrics["recipe"] = f"{recipe.name} graph: {recipe.why}"
        if folder is not None and posterior.metrics:
            posterior.save(folder, unfinished=True)
            if complete:
                (folder / CHECKPOINT).unlink(missing_ok=True)
        if (share := posterior.kg.share) is not None and share.rank:
            posterior.metrics = Metrics()  # the first process reports
    return posterior


def _of_lightning(name: str, given: Any, kind: type) -> list[Any]:
    """A logger or callback, or several, as a list. Raises InputError for what is none of Lightning's."""
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in found:
        if not isinstance(one, kind):
            raise InputError(f"`{name}` must be of lightning.pytorch's class {kind.__name__}, or a list; got {one!r}.")
    return found


def _signature() -> inspect.Signature:
    """That of :func:`fit` with every option by its name, for whoever asks a notebook for it."""
    own = [p for name, p in inspect.signature(fit).parameters.items() if name != "changes"]
    each = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(Options).parameters.values()]
    return inspect.signature(fit).replace(parameters=[*own[:2], *each, *own[2:]])


fit.__signature__ = _signature()  # type: ignore[attr-defined]


def _clear(folder: Path, failure: type[BaseException] | None, *_: Any) -> None:
    """Leave no trace of a fit that failed before its first checkpoint."""
    if failure is not None and not (folder / CHECKPOINT).exists() and not (folder / POSTERIOR).exists():
        for file in ("config.yaml", GRAPH):
            (folder / file).unlink(missing_ok=True)


def _resumed(resume: Path, folder: Path, given: Any, options: Options) -> tuple[Graph, Options, dict[str, Any]]:
    """The graph of an unfinished run, its options, with those given anew, and its configuration."""
    if folder.resolve() != resume.resolve():
        raise InputError(f"`resume` {resume} goes on in that folder; leave out `out` {folder}.")
    if not (resume / "config.yaml").is_file():
        raise InputError(f"{resume} holds no run to resume: config.yaml is missing there.")
    if (resume / POSTERIOR).is_file() and not (resume / CHECKPOINT).is_file():
        raise InputError(f"the fit in {resume} has finished; there is nothing to resume.")
    with refusing(resume):
        saved, graph = read_config(resume), read_graph(resume)
    if given is not None and load_graph(given).checksum != graph.checksum:
        raise InputError(f"the run in {resume} is of another graph than the one given; leave that out.")
    merged = {}
    for field in fields(Options):
        key, value = field.name, getattr(options, field.name)
        default = isinstance(value, (str, int, float, type(None))) and value == field.default
        merged[key] = saved.get(key, value) if default else value
        if default and key in ("model", *OWN) and is_own_code(merged[key]):
            raise InputError(
                f"the run in {resume} is of your own {key} {merged[key]}; name it again to have it imported: "
                f"`{key}` {merged[key]}."
            )
    return graph, Options.of(merged), saved


def _fit(
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
    started = time.monotonic()
    graph, values = whole, None
    if features is not None:
        graph, values = whole.training_part(), load_features(features, whole)
    share = share_of(config, graph.num_entities) if config["shard"] else None
    dtype = torch.float64 if config["precision"] == "64" or config["inference"] == "nuts" else torch.float32
    batches = batches_of(graph, config, dtype, share)
    kg = build_setting(graph, config, None if values is None else values[whole.seen].to(dtype), share).to(dtype)
    if values is not None and not bool(whole.seen.all()):
        kg.refuse_a_parameter_per_entity()
    kg.start_at_base_rates(batches)
    program = program_of(config["model"], kg, batches)
    sites = sites_of(program)
    if share is not None:  # as a run draws each process' own rows
        watched.randomness.reseed(config["seed"])
    alone = config["devices"] * config["nodes"] == 1  # several processes average dense gradients, if they share none
    kg.sparse = config["negatives"] != "all" and (alone or bool(share)) and config["optimizer"] in SPARSE_OPTIMIZERS
    if start is not None and (start.guide is None or config["inference"] == "nuts"):
        raise InputError("`start` gives a guide its parameters, and draws (of NUTS, HMC or UHA) have none.")
    if config["inference"] == "nuts":
        return posterior_by_nuts(whole, program, sites, config, watched.progress, begin if folder else None), True
    if config["inference"] in MOVES:
        refuse_chains(program, sites, config["inference"].upper(), learns=True)
    guide = build_guide(config["guide"], kg, sites).to(dtype)
    if guide.point and config["inference"] in MOVES:
        raise InputError(
            f"`inference` {config['inference']} begins at a guide's draws; choose a `guide` that has some."
        )
    if values is not None and not guide.inductive:
        raise InputError(f"guide {config['guide']} makes no use of `features`; add `guide` features.")
    per_fact = any(site.frame in PER_FACT for site in sites.values())
    if config["kl_weight"] is None:
        config["kl_weight"] = 1 / batches.total if per_fact else 1.0
    if config["finish"] and (guide.point or guide.inductive or guide.members > 1):
        raise InputError(f"`finish` map has no posterior mean to train on with guide {config['guide']}; leave it out.")
    closed_form = ClosedForm(kg, guide, batches, per_fact) if config["learn_by"] == "em" else None

    posterior = (Posterior if share is None else ShardedPosterior)(graph, program, guide, config)
    precision = precision_in_use(config["precision"], config["device"])
    posterior.provenance = provenance(whole, config | {"precision": precision})
    if start is not None:
        for key in SAME:
            if config[key] != start.config.get(key):
                raise InputError(
                    f"`start` has {key} {start.config.get(key)}, the fit {config[key]}; let them be the same."
                )
        start_at(posterior.modules(), graph, start.modules(), start.graph)

    def validate() -> float:
        posterior.forget()
        return posterior.evaluation("valid")["realistic"]["mrr"]

    steps = math.ceil(len(batches) / config["batch_size"])
    schedule = KLSchedule(config["kl_schedule"], config["kl_weight"], config["warmup"], steps, config["epochs"])
    elbo = WeightedELBO(config["kl_weight"], config["estimator"], program.parameters)
    how = config["optimizer"], config["lr"], config["batch_size"], config["seed"], config["lr_schedule"]
    more = watched.randomness, per_fact, config["kl_frequency"], closed_form
    module = Training(kg, program.model, guide, elbo, batches, schedule, *how, *more)
    progress = watched.progress
    watches = alone and config["epochs"] >= LONG and 0 < len(whole.valid) * graph.num_entities <= LOOKED_AT
    look = config["epochs"] // 2 if watches and not config["early_stopping"] else 0
    validations = config["early_stopping"], config["validate_every"]
    bar = Progress(validate, steps * config["epochs"], *validations, progress, look)
    callbacks: list[pl.Callback] = [bar, *watched.callbacks]
    if folder is not None:
        callbacks.append(Checkpoints(bar, folder, config["checkpoint_every"], begin))
        if (checkpoint := Checkpoint.read(folder)) is not None:
            with refusing(folder):
                checkpoint.put_into(module, bar)
    how_many = config["devices"], config["nodes"]
    try:
        where = config["device"], precision
        rank = train(module, config["epochs"], *where, callbacks, *how_many, bar.interrupt, watched.logger)
    except Diverged as failure:
        raise _save_good(posterior, module, bar, folder, failure) from failure
    posterior.forget()
    complete = bar.finished
    if config["finish"] and complete:
        bar, started = bar.followed_by(Progress(validate, bar.steps, *validations, progress)), time.monotonic()
        point: Any = build_guide("point", kg, sites).to(kg.start)
        point.start_at(guide)
        guide, module, folder, config["guide"] = point, module.at_its_end(point), None, "point"
        posterior, came_from = Posterior(graph, program, guide, config), posterior.provenance
        posterior.provenance = came_from
        train(module, config["epochs"], *where, [bar, *watched.callbacks], 1, 1, bar.interrupt, watched.logger)
        posterior.forget()
    posterior.log = bar.table
    posterior.seconds = round(bar.before + time.monotonic() - started, 1)
    if rank and share is None:
        return posterior, complete  # the first process says how good it is

    facts = batches
    if config["negatives"] != "all" or config["relation_weight"]:  # the bound is of the graph over all candidates
        few = config["negatives"] if graph.num_entities > EXACT_UP_TO else "all"
        whole_facts = {"negatives": few, "negative_weight": None, "relation_weight": 0.0}
        facts = batches_of(graph, config | whole_facts, dtype, share)
    with seeded(config["seed"]):
        bound, error, terms = estimate_elbo(
            elbo, kg, program.model, guide, facts.to(posterior.device), progress=progress
        )
    if module.failures and not math.isfinite(bound):
        raise _save_good(posterior, module, bar, folder, Diverged(module.cause()))
    moved: dict[str, Any] = {}
    if config["inference"] in MOVES:
        move, told = MOVES[config["inference"]]
        with seeded(config["seed"]):
            how_long = config["warmup_draws"], config["posterior_draws"]
            samples, moved = move(program, guide, sites, *how_long, progress)
        moved_posterior = Posterior(whole, program, None, config, samples=samples)
        moved_posterior.provenance, moved_posterior.log = posterior.provenance, posterior.log
        moved_posterior.seconds = round(bar.before + time.monotonic() - started, 1)
        posterior = moved_posterior
    posterior.check_form()
    if values is not None:
        posterior = posterior.extend(whole, values)
    if config["likelihood"] == "categorical" and len(whole.valid) and share is None:  # evidence to log-odds of facts
        most = max(100, LINK // (4 * LINKED * whole.num_entities))  # true and open facts, each in two queries
        posterior.recalibrate("per_relation", draws=LINKED, most=most)
    measured = {s: posterior.evaluation(s, progress) for s in ("test", "valid") if len(getattr(whole, s))}
    posterior.metrics = Metrics(measured) | {
        "elbo_per_fact": bound,
        "elbo_error": error,
        "log_likelihood_per_fact": float(terms.log_likelihood),
        "kl_per_fact": float(terms.kl),
        "kl_per_latent": terms.kl_per_latent,
        "objective": objective_name(config, guide.point) + (told.format(**moved) if moved else ""),
        **({config["inference"]: moved} if moved else {}),
        "warnings": whole.problems
        + warnings_of(config, module, bar, terms, per_fact, measured.get("valid"))
        + ([TOO_FEW.format(len(graph.train))] if len(graph.train) < ENOUGH else [])
        + ([NOT_MIXED.format(**moved)] if moved.get("r_hat", 0) > 1.05 else []),
    }
    return posterior, complete


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
