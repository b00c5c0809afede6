"""``kgpyro.fit``: from a graph and names to a fitted posterior."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.data.stored import GRAPH, read_graph
from kgpyro.display import Metrics
from kgpyro.errors import InputError
from kgpyro.files import POSTERIOR, claim
from kgpyro.inference.checkpoint import FILE as CHECKPOINT
from kgpyro.inference.engines import Watched, fit_program
from kgpyro.inference.options import Options
from kgpyro.inference.recipes import FREE, recipe_for
from kgpyro.names import OWN
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.runs import (
    check_writable_config,
    is_own_code,
    new_run_folder,
    read_config,
    refusing,
    start_run,
)  # fmt: skip
from kgpyro.posterior.sharded import refuse_no_option
from kgpyro.posterior.streaming import LIKE
from kgpyro.randomness import seeded


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
        posterior, complete = fit_program(graph, config, chosen.features, watched, folder, begin, start)
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
