"""``kgpyro.search``: options of a fit, chosen by its validation MRR, trial by trial (Optuna; Akiba et al. 2019)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.errors import InputError
from kgpyro.files import claim, write_text
from kgpyro.inference.fitting import fit
from kgpyro.inference.options import Options
from kgpyro.posterior.runs import check_writable_config


def _prior(trial: Any) -> str:
    family = trial.suggest_categorical("family", ["normal", "laplace", "student_t"])
    scale = f"{trial.suggest_float('scale', 0.2, 2.0, log=True):.3g}"
    return f"{family}(scale={f'learn({scale})' if trial.suggest_categorical('learned', [False, True]) else scale})"


SPACE: dict[str, Callable[[Any], Any]] = {
    "lr": lambda trial: trial.suggest_float("lr", 0.02, 0.3, log=True),
    "batch_size": lambda trial: trial.suggest_categorical("batch_size", [64, 128, 256, 512]),
    "dim": lambda trial: trial.suggest_categorical("dim", [50, 100, 200]),
    "prior": _prior,
}


def search(
    graph: Graph | str | Path,
    trials: int = 30,
    *,
    out: str | Path | None = None,
    space: Callable[[Any], Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Search for the options with the best validation MRR, by Optuna's tree-structured Parzen estimator.

    A trial is a fit. Its test MRR is in the table too, but nothing is chosen by it. An interrupted search that is
    continued finds what an uninterrupted one does.

    Args:
        graph: a Graph, the name of a data set, or a folder of triples files; with validation triples.
        trials: how many fits, those that `out` holds among them.
        out: folder for ``trials.csv``, a row per trial as they end; ``best.yaml``, the options of the best so far, for
            ``kgpyro fit --config``; and ``optuna.log``, from which the same search continues.
        space: ``trial -> options``, by the ``suggest_…`` methods of an Optuna trial. Default: learning rate, batch
            size, dimension, and the prior's family and scale, fixed or learned; of these, what ``options`` leave out.
        seed: of the search, and of each fit.
        progress: show a progress bar.
        options: of every fit (:class:`kgpyro.Options`).

    Returns:
        A row per trial, best first: ``trial``, ``valid_mrr``, ``test_mrr`` and ``elbo_per_fact`` (nats; NaN where there
        is none), ``seconds``, a column per option, and ``failure``, why a fit came to nothing.

    Raises:
        InputError: Optuna is not installed, no validation triples, an option that cannot be, a folder with another
            search, or all fits failed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise InputError("a search needs Optuna; pip install 'kgpyro[search]'.") from error
    graph = load_graph(graph)
    if not len(graph.valid):
        raise InputError(f"a search chooses by validation triples, and graph {graph.name!r} has none.")
    if trials < 1:
        raise InputError(f"`trials` must be a positive number; got {trials}.")
    Options.of({"seed": seed, **options}).resolved(graph, saving=out is not None)
    with ExitStack() as held:
        storage = None
        if out is not None:
            check_writable_config(options)
            held.enter_context(claim(Path(out)))
            storage = JournalStorage(JournalFileBackend(str(Path(out) / "optuna.log")))
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        held.callback(optuna.logging.set_verbosity, level)
        study = optuna.create_study(storage=storage, study_name="kgpyro", direction="maximize", load_if_exists=True)
        what = json.dumps({"graph": graph.checksum, "seed": seed, "options": options}, default=str, sort_keys=True)
        if study.user_attrs.setdefault("what", what) != what:
            raise InputError(f"`out` {out} holds another search; name a new folder, or give the options it had.")
        study.set_user_attr("what", what)
        running = optuna.trial.TrialState.RUNNING
        for stale in study.get_trials(states=(running,)):  # of a search that was killed
            study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
        table = _table(study)
        bar = held.enter_context(tqdm(total=trials, initial=len(table), desc="search", disable=not progress))
        while len(table) < trials:
            study.sampler = optuna.samplers.TPESampler(seed=seed + len(table))
            trial = study.ask()
            chosen = {name: choose(trial) for name, choose in SPACE.items() if name not in options and space is None}
            given = {"seed": seed, **(space(trial) if space else chosen), **options}
            row = _fitted(graph, given)
            trial.set_user_attr("row", row)
            study.tell(trial, row.get("valid_mrr"), state=optuna.trial.TrialState.FAIL if "failure" in row else None)
            table = _table(study)
            if out is not None:
                write_text(Path(out) / "trials.csv", table.to_csv(index=False))
                if "failure" not in table or table["failure"].isna().any():
                    best = {"dataset": graph.source or graph.name} | study.best_trial.user_attrs["row"]["options"]
                    write_text(Path(out) / "best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
            bar.update()
            bar.set_postfix({"best valid MRR": f"{table['valid_mrr'].max():.3f}"} if "valid_mrr" in table else {})
    if "valid_mrr" not in table:
        raise InputError(f"all {len(table)} fits failed; the last one: {table['failure'].iloc[-1]}")
    return table


def _fitted(graph: Graph, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial comes to. Raises KeyboardInterrupt where its fit was interrupted, so that it is done again."""
    try:
        posterior = fit(graph, **options, progress=False)
    except InputError as error:
        written = {k: v if isinstance(v, (int, float)) else str(v) for k, v in options.items()}
        return {"options": written, "failure": str(error)}
    metrics = posterior.metrics
    if any("was interrupted" in warning for warning in metrics["warnings"]):
        raise KeyboardInterrupt
    mrr = {f"{split}_mrr": metrics[split]["realistic"]["mrr"] for split in ("valid", "test") if split in metrics}
    mrr["elbo_per_fact"], mrr["seconds"] = metrics.get("elbo_per_fact"), round(posterior.seconds, 1)
    return mrr | {"options": {key: posterior.config[key] for key in options}}


def _table(study: Any) -> pd.DataFrame:
    """The trials that came to something, or to a failure of their own, best first."""
    ended = [trial.user_attrs["row"] for trial in study.get_trials() if trial.state.is_finished() and trial.user_attrs]
    table = pd.DataFrame([{"trial": i, **row, **row["options"]} for i, row in enumerate(ended)])
    table = table.drop(columns="options", errors="ignore")
    if "valid_mrr" not in table:
        return table
    return table.sort_values("valid_mrr", ascending=False, kind="stable", ignore_index=True)
