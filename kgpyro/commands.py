"""The command line: ``fit``, ``evaluate``, ``predict``, ``check``, each over the typed signature of what it calls."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union

import docstring_parser
import pandas as pd
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from kgpyro.checking.posterior_predictive import PosteriorPredictive, posterior_predictive
from kgpyro.checking.prior_predictive import PriorPredictive, prior_predictive
from kgpyro.checking.psis import psis_khat
from kgpyro.data.reading import load_graph
from kgpyro.display import as_text, write
from kgpyro.errors import InputError
from kgpyro.inference.options import Options, is_union
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.runs import OWN
from kgpyro.program.priors import prior_table

LONGEST = 30  # misfits that a check prints

DATASET_HELP = "name of a data set (PyKEEN's, or a folder in $KGPYRO_DATA), or a folder with train, valid and test."


def add_options(parser: Any, function: Callable, skip: Set[str], given_only: bool = False) -> None:
    """One ``--option`` per keyword of a function: type and default from its signature, help from its docstring.

    The parser, or a group of one, leaves out of its result what is not given, where it is to have ``given_only``.
    """
    texts, hints = _documented(function), typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or name == "self":
            continue
        option, text, default = f"--{name.replace('_', '-')}", texts[name], parameter.default
        if given_only:
            text, default = f"{text} Default: {default}." if default is not None else text, SUPPRESS
        if _written(hints[name]) in (bool, Union[bool, None]):  # noqa: UP007
            parser.add_argument(option, action=ActionYesNo(yes_prefix="", no_prefix="no-"), default=default, help=text)
        else:
            kind: Any = _written(hints[name])
            parser.add_argument(option, type=kind, default=default, help=text)


def _documented(function: Callable) -> dict[str, str]:
    """What a function's docstring says of each parameter."""
    documented = docstring_parser.parse(inspect.getdoc(function) or "").params
    texts = {name.strip(): p.description or "" for p in documented for name in p.arg_name.split(",")}
    return {name: as_flags(" ".join(text.replace("%", "%%").split())) for name, text in texts.items()}


def as_flags(text: str) -> str:
    """A text of the library with the options that it names as a terminal knows them: `kl_weight` is --kl-weight."""
    return re.sub(r"`([a-z][a-z_]*)`", lambda found: "--" + found[1].replace("_", "-"), text)


def _written(hint: Any) -> Any:
    """The part of a type that can be written on a command line."""
    parts = [part for part in (typing.get_args(hint) if is_union(hint) else (hint,)) if _is_plain(part)]
    return Union[tuple(parts)]  # noqa: UP007


def _is_plain(hint: Any) -> bool:
    return hint in (str, int, float, bool, type(None)) or typing.get_origin(hint) is Literal


def fit_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro.fit``: fit, print the metrics, and save the run where ``--out`` says."""
    from kgpyro.inference.fitting import fit  # imported here: Lightning takes seconds

    parser = ArgumentParser(
        prog="python -m kgpyro.fit", description="Fit a Bayesian knowledge-graph embedding and say how good it is."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options.")
    parser.add_argument("--dataset", type=str, default="nations", help=DATASET_HELP)
    add_options(parser, Options, skip=set())
    own = {"out", "resume", "progress"}
    add_options(parser, fit, skip=inspect.signature(fit).parameters.keys() - own)
    parser.add_argument(
        "--per-relation",
        action=ActionYesNo(yes_prefix="", no_prefix="no-"),
        default=False,
        help="also print metrics per relation, head and tail prediction apart.",
    )

    def run(options: dict[str, Any]) -> None:
        per_relation, dataset = options.pop("per_relation"), options.pop("dataset")
        anew = options["resume"] is None or dataset != "nations"
        posterior = fit(dataset if anew else None, **options)
        if not posterior.metrics:
            return  # another process reports
        report(posterior)
        if per_relation:
            print(as_text(posterior.evaluate(per_relation=True)))
        if folder := options["out"] or options["resume"]:
            print(f"\nSaved in {folder}; python -m kgpyro.evaluate and kgpyro.predict work from there.")

    return _run(parser, arguments, run)


def evaluate_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro.evaluate DIR``: ranking metrics of a saved run."""
    parser = _run_parser("evaluate", "Filtered and raw ranking metrics of a saved run.")
    add_options(parser, Posterior.evaluate, skip=set())

    def run(options: dict[str, Any]) -> None:
        posterior = _load(options)
        table = posterior.evaluate(**options)
        print(f"{posterior}: {options['split']}, ranked by {options['by']}, realistic ranks\n\n{as_text(table)}")
        if options["split"] in posterior.graph.confidences:
            found = posterior.confidences(options["split"]).attrs["metrics"]
            print(f"\npredicted confidences\n{as_text(pd.DataFrame([found]), index=False)}")

    return _run(parser, arguments, run)


def predict_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro.predict DIR --head h --relation p``: the most probable answers, with intervals."""
    parser = _run_parser("predict", "The most probable tails (or heads) of a query, with their uncertainty.")
    add_options(parser, Posterior.predict, skip=set())

    def run(options: dict[str, Any]) -> None:
        posterior = _load(options)
        table = posterior.predict(**options)
        query = [options[name] or "?" for name in ("head", "relation", "tail")]
        print(f"({', '.join(query)}): low to high is the {table.attrs['intervals']}\n")
        shown = table.drop(columns=["score", "frequency"]).assign(known=table["known"].map(lambda s: s or "-"))
        print(as_text(shown, index=False))
        if posterior.recalibration is not None:
            print(f"\nprobabilities recalibrated ({posterior.recalibration.method}) on validation facts")

    return _run(parser, arguments, run)


def check_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro.check RUN`` for a fit, ``python -m kgpyro.check --prior …`` for a prior before any fit."""
    parser = _run_parser(
        "check",
        "How well a saved RUN reproduces the graph it was fitted to (posterior predictive); or, without one, what a "
        "--prior claims about a --dataset (nations by default) before any fact is seen (prior predictive).",
        optional=True,
    )
    by_mode: dict[str, Callable] = {"RUN": posterior_predictive, "--prior": prior_predictive}
    skip = {"posterior", "graph", "progress"}
    own = {mode: inspect.signature(function).parameters.keys() - skip for mode, function in by_mode.items()}
    both = own["RUN"] & own["--prior"]
    for mode, function in by_mode.items():
        group = parser.add_argument_group(f"with {mode}")
        add_options(group, function, skip | both, given_only=True)
    for name in sorted(both):
        texts = [f"{mode}: {_documented(function)[name]}" for mode, function in by_mode.items()]
        defaults = {mode: inspect.signature(function).parameters[name].default for mode, function in by_mode.items()}
        text = " ".join(texts) + " Default: " + ", ".join(f"{value} with {mode}" for mode, value in defaults.items())
        parser.add_argument(f"--{name}", type=int, default=SUPPRESS, help=f"{text}.")
    text = "folder for the tables and the figure; checks in the RUN's folder where there is one."
    parser.add_argument("--out", type=str | None, default=None, help=text)

    def run(options: dict[str, Any]) -> None:
        mode, other = ("--prior", "RUN") if options["run"] is None else ("RUN", "--prior")
        if wrong := sorted(options.keys() & (own[other] - both)):
            what = {"RUN": "is for the check of a RUN; name one", "--prior": "checks what is not fitted; leave RUN out"}
            raise InputError(f"--{wrong[0].replace('_', '-')} {what[other]}, or leave the option out.")
        folder, chosen = options.pop("out"), {name: options.pop(name) for name in own[mode] & options.keys()}
        found: PosteriorPredictive | PriorPredictive
        if mode == "RUN":
            folder = Path(options["run"]) / "checks" if folder is None else folder
            posterior = _load(options)
            found = posterior_predictive(posterior, progress=True, **chosen)
            print(f"{found.title}: the training graph against {len(found.replicated)} replicates of it\n")
            print(_misfits_first(found))
            with suppress(InputError):  # no ArviZ, a large graph, latents per fact
                khat = psis_khat(posterior, draws=200, progress=True)
                print(f"\nPSIS k = {khat.k:.2f}; {khat.reading}.")
        else:
            found = prior_predictive(_no_run(options), progress=True, **chosen)
            print(f"{found.title}: what the prior implies, mean and central 90 % over draws\n")
            print(found.summary.to_string(float_format="{:.3g}".format, na_rep="-"))
        for warning in found.warnings:
            print(f"\nWARNING: {as_flags(warning)}")
        if folder is not None:
            print(f"\nSaved in {folder}: {', '.join(found.save(folder))}.")

    return _run(parser, arguments, run)


def calibrate_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro.calibrate DIR``: what predicted probabilities are worth, and their recalibration."""
    parser = _run_parser("calibrate", "How well a run's probabilities agree with labels, and a map that makes them.")
    add_options(parser, Posterior.recalibrate, skip=set())

    def run(options: dict[str, Any]) -> None:
        folder = Path(options["run"])
        posterior = _load(options)
        asked = {key: options[key] for key in ("negatives", "draws", "seed")}
        posterior.recalibrate("none")
        before = posterior.calibration("test", **asked)
        posterior.recalibrate(**options)
        after = {} if posterior.recalibration is None else {options["method"]: posterior.calibration("test", **asked)}
        print(f"{posterior}: test triples and false facts ({before.negatives})\n")
        print(as_text(pd.DataFrame({name: one.metrics for name, one in {"as predicted": before, **after}.items()}).T))
        posterior.store_recalibration(folder)
        write(folder / "checks", {}, {"calibration.png": lambda: before.figure(**after)})
        state = "predictions go by recalibration.json" if after else "predictions are as the model makes them"
        print(f"\nSaved in {folder}: {state} from now on; checks/calibration.png.")

    return _run(parser, arguments, run)


def _misfits_first(found: PosteriorPredictive) -> str:
    """The misfits, then what is of all relations; the other rows are counted."""
    misfits = found.misfits
    rest = found.summary.drop(misfits.index)
    shown = pd.concat([misfits.head(LONGEST), rest[rest["relation"] == "all"]])
    shown = shown.assign(misfit=shown["misfit"].map({True: "MISFIT", False: ""}))
    shown = shown.drop(columns="family")
    table = shown.to_string(index=False, float_format="{:.4g}".format, na_rep="-", max_colwidth=50)
    return f"{table}\n\n{len(misfits)} of {len(found.summary)} statistics misfit; {len(shown)} are shown."


def _no_run(options: dict[str, Any]) -> str:
    """The data set of a check without a RUN. Raises InputError for options that only a run has a use for."""
    for key in ("features", *(f"run_{key}" for key in OWN)):
        if options[key] is not None:
            raise InputError(f"--{key.replace('_', '-')} is for the check of a RUN; name one, or leave it out.")
    return options["dataset"] or "nations"


def _run_parser(name: str, description: str, optional: bool = False) -> ArgumentParser:
    parser = ArgumentParser(prog=f"python -m kgpyro.{name}", description=description)
    if optional:
        parser.add_argument("run", type=str | None, nargs="?", default=None, help="folder of a saved run.")
    else:
        parser.add_argument("run", type=str, help="folder of a saved run.")
    parser.add_argument(
        "--dataset", type=str | None, default=None, help="another graph, whose entities have --features."
    )
    parser.add_argument(
        "--features", type=str | None, default=None, help="features of the entities, for runs with --guide features."
    )
    for key in OWN:
        text = f"name the run's own {key.replace('_', ' ')} again, where it is your code (package.module:object)."
        parser.add_argument(f"--run-{key.replace('_', '-')}", type=str | None, default=None, help=text)
    return parser


def _load(options: dict[str, Any]) -> Posterior:
    own = {key: options.pop(f"run_{key}") for key in OWN}
    dataset, features = options.pop("dataset"), options.pop("features")
    posterior = Posterior.load(options.pop("run"), **{k: v for k, v in own.items() if v is not None})
    if features is None and dataset is not None:
        raise InputError("--dataset puts the run to another graph, whose entities it must know by --features FILE.")
    if features is None:
        return posterior
    return posterior.extend(posterior.graph if dataset is None else load_graph(dataset), features)


def _run(parser: ArgumentParser, arguments: Sequence[str] | None, command: Callable[[dict[str, Any]], None]) -> int:
    parsed: Namespace = parser.parse_args(arguments)
    options = {key: value for key, value in parsed.as_dict().items() if key not in ("config", "print_config")}
    try:
        command(options)
    except InputError as error:
        print(f"kgpyro: error: {as_flags(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kgpyro: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def report(posterior: Posterior) -> None:
    """Print what was fitted, the objective, the bound, and the ranking metrics of the test and validation splits."""
    graph = posterior.graph
    sizes = f"{graph.num_entities} entities, {graph.num_relations} relations, {len(graph.train)} training triples"
    print(f"\n{posterior}: {sizes}")
    if not (learned := posterior.prior_parameters()).empty:
        print(f"\nparameters of the priors, over what each is learned for\n{as_text(learned, index=False)}\n")
    print(as_flags(str(posterior.metrics)))


def priors_command(arguments: Sequence[str] | None = None) -> int:
    """``python -m kgpyro priors``: the table of all priors that have a name, in Markdown."""
    ArgumentParser(prog="python -m kgpyro priors", description="All priors that have a name.").parse_args(arguments)
    print(prior_table())
    return 0


COMMANDS = {
    "fit": fit_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "check": check_command,
    "calibrate": calibrate_command,
    "priors": priors_command,
}


def main() -> int:
    """``kgpyro COMMAND …``."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"usage: kgpyro {{{','.join(COMMANDS)}}} …   (kgpyro fit --help says more)", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return COMMANDS[name](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
