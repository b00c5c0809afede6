"""The command line. Each command is over a function of the library, which is imported once its options are read."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgpyro.arguments import Argument, Form, arguments_of, as_flags
from kgpyro.errors import InputError, meant
from kgpyro.files import refuse_no_run
from kgpyro.inference.options import Options
from kgpyro.names import OWN
from kgpyro.version import VERSION

if TYPE_CHECKING:
    import pandas as pd

    from kgpyro.posterior.fitted import Posterior

LONGEST = 30  # rows of a table that are shown where a file has the others
RUN = Argument("run", "folder of a saved run.")
NAMED = "name of a data set (PyKEEN's, or in $KGPYRO_DATA), or a folder or file of triples."
DATASET = Argument("dataset", NAMED, default="nations")
OF_RUN = {
    "device": Argument("device", "where to compute.", default="cpu"),
    "shard": Argument("shard", "spread the entities over the processes of torchrun.", (bool,)),
    "dataset": Argument("dataset", "another graph, whose entities have `features`."),
    "features": Argument("features", "features of the entities, for runs with `guide` features."),
    **{f"run_{key}": Argument(f"run_{key}", f"name the run's {key} again, where it is code of yours.") for key in OWN},
}
OF_FIT = {  # options of a fit, in the groups of its help
    "what is fitted": "dataset model prior score dim epochs seed device out config",
    "the graph": "columns holdout labels features",
    "prior and model": "entity_prior relation_prior guide inverse completeness",
    "likelihood": "likelihood closed_world unanswered negatives negative_weight relation_weight",
    "optimisation": "lr lr_schedule optimizer batch_size kl_weight kl_schedule kl_frequency warmup estimator "
    "early_stopping validate_every learn_by finish",
    "precision and devices": "precision devices nodes shard",
    "draws (uha, hmc, nuts)": "inference warmup_draws posterior_draws",
    "files and reports": "resume checkpoint_every per_relation progress",
}
OF_SEARCH = {"the search": "trials out seed progress", "the same in every trial": "model score epochs device", **OF_FIT}
OF_QUERY = {"a query: two of these": "head relation tail", "many": "queries facts above", "answers": "out top new"}
OF_CHECK = {
    "with RUN and without": "draws queries seed out",
    "with RUN": "entities",
    "without RUN": "prior score dim entity_prior relation_prior facts dataset",
}
CONFIG = Argument("config", "YAML file with any of these options, such as config.yaml of a run.")
PER_RELATION = Argument("per_relation", "also print metrics per relation, head and tail prediction apart.", (bool,))
QUERIES = Argument("queries", "file of queries with columns head, relation and tail, what is asked for empty or ?.")
FACTS = Argument("facts", "file of triples, for the probability of each.")
ABOVE = Argument("above", "all facts that the graph lacks and that are more probable than this.", (float,))
DRAWN = Argument("draws", "posterior draws (default: 500; with `queries` or `above` 100).", (int,))
OUT_FILE = Argument("out", "file for the answers: .csv, .tsv, .parquet or .json.")
DRAWS = Argument("draws", "graphs replicated (default: 100), or draws from the prior (default: 20).", (int,))
SAMPLED = Argument("queries", "queries sampled of a large graph (default: 2000), or in each draw (100).", (int,))
OUT_CHECK = Argument("out", "folder for tables and figure (default: checks in the folder of the RUN).")
OnWords = Callable[[Sequence[str]], int]  # what a command makes of the words of a command line: an exit code
COMMANDS: dict[str, OnWords] = {}


def command(of: str = "", without: str = "", extra: Sequence[Argument] = (), groups: Mapping[str, str] | None = None,
            place: Argument | None = None, nargs: str | None = None) -> Callable[..., OnWords]:  # fmt: skip
    """Make a command of a function, whose docstring says what it is for.

    Its options are the arguments of the public functions ``of``, but for those ``without``, and ``extra`` ones, in
    ``groups``; before them is what has no flag, ``place``, as often as ``nargs`` says.
    """

    def made(run: Callable[[dict[str, Any]], None]) -> OnWords:
        def on_words(words: Sequence[str]) -> int:
            for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows another one
                getattr(stream, "reconfigure", dict)(errors="replace")
            try:
                given = form(run).read(words)
                runs = given.get("run", [])
                for folder in [runs] if isinstance(runs, str) else runs:
                    refuse_no_run(folder)  # before PyTorch is imported, which takes seconds
                run(given)
                sys.stdout.flush()
            except InputError as error:
                say(f"kgpyro: error: {as_flags(str(error))}", sys.stderr)
                return 2
            except KeyboardInterrupt:
                say("kgpyro: interrupted", sys.stderr)
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which is flushed once more
                return 1
            return 0

        on_words.__doc__, COMMANDS[run.__name__] = run.__doc__, on_words
        return on_words

    def form(run: Callable[[dict[str, Any]], None]) -> Form:
        name = place.name.upper() if place else ""
        found = Form(called(run.__name__), run.__doc__, {None: name, "?": f"[{name}]", "+": f"{name} {name} …"}[nargs])
        if place:
            found.group("what", place, metavar=name, nargs=nargs)
        every = {key: one for public in reversed(of.split()) for key, one in arguments_of(public).items()}
        every |= {one.name: one for one in extra}
        for title, names in (groups or {}).items():
            found.group(title, *(every[key] for key in names.split() if key in every))
        found.group("options", *(one for key, one in every.items() if key not in without.split()))
        found.group("the run", *OF_RUN.values() if place is RUN else ())
        found.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this help.")
        return found

    return made


def say(text: str, file: Any = None) -> None:
    """Print a text, with control characters that a name may hold replaced; of several processes the first does."""
    processes = sys.modules.get("torch.distributed")
    if file is None and processes and processes.is_initialized() and processes.get_rank():
        return
    print(re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\ufffd", text), file=file)


def show(title: str, table: pd.DataFrame, index: bool = False) -> None:
    """Print a table that fits a terminal of 100 columns, the names in it cut where they must be."""
    from kgpyro.display import as_text

    say(f"{title}\n\n{as_text(table, index, width=100)}")


def called(name: str) -> str:
    """How a command is called, as this process was."""
    script = Path(sys.argv[0])
    if script.suffix != ".py" or script.parent.name != "kgpyro":
        return f"kgpyro {name}"
    return f"python -m kgpyro.{name}" if script.stem == name else f"python -m kgpyro {name}"


def graph_and_options(given: dict[str, Any], dataset: str | None = "nations") -> tuple[Any, dict[str, Any]]:
    """The graph, or what to load it by, and the options, checked before anything heavy is imported."""
    of_fit = arguments_of("Options").keys()
    dataset = given.pop("dataset", dataset)
    Options.of({name: value for name, value in given.items() if name in of_fit})
    reading = {name: given.pop(name) for name in arguments_of("load_graph").keys() - of_fit if name in given}
    if dataset is None:
        return None, given
    from kgpyro.data.reading import load_graph  # before what fits it is imported, which takes seconds

    return load_graph(dataset, **reading, **{key: given[key] for key in ("seed",) if key in given}), given


def load(options: dict[str, Any]) -> Posterior:
    """The run that the options name, over another graph where they do; these options are taken out."""
    from kgpyro.data.reading import load_graph
    from kgpyro.posterior import sharded

    own = {key: options.pop(f"run_{key}") for key in OWN if f"run_{key}" in options}
    own |= {key: options.pop(key) for key in ("shard", "device") if key in options}
    dataset, features = options.pop("dataset", None), options.pop("features", None)
    posterior = sharded.load(options.pop("run"), **own)
    if features is None and dataset is not None:
        raise InputError("`dataset` puts the run to another graph, whose entities it must know by `features` FILE.")
    if features is None:
        return posterior
    return posterior.extend(posterior.graph if dataset is None else load_graph(dataset), features)


@command("Options fit load_graph", "graph options logger callbacks name_or_folder source",
         (DATASET, CONFIG, PER_RELATION), OF_FIT)  # fmt: skip
def fit(given: dict[str, Any]) -> None:
    """Fit a model to a graph, and report its metrics."""
    per_relation = given.pop("per_relation", False)
    graph, options = graph_and_options(given, None if "resume" in given else "nations")
    if per_relation and options.get("shard"):
        raise InputError("`per_relation` takes the whole run, once `shard` has saved it: evaluate it afterwards.")
    from kgpyro.inference.fitting import fit

    posterior = fit(graph, **options)
    if not posterior.metrics:
        return  # another process reports
    g, c, folder = posterior.graph, posterior.config, options.get("out") or options.get("resume")
    prior = str(c["entity_prior"] or c["prior"]) + f", of relations {c['relation_prior']}" * bool(c["relation_prior"])
    sizes = f"{g.num_entities:,} entities, {g.num_relations:,} relations, {len(g.train):,} training triples"
    say(f"\nfitted     {c['model']}, {posterior.kg.score.name}, dim {c['dim']}, prior {prior}, guide {c['guide']}")
    say(f"graph      {g.name}: {sizes}")
    if not (learned := posterior.prior_parameters()).empty:
        show("\nparameters of the priors, over what each is learned for", learned)
    say(as_flags(str(posterior.metrics)))
    if per_relation:
        show("\nper relation, filtered", posterior.evaluate(per_relation=True).reset_index())
    head, relation, _ = (g.test if len(g.test) else g.train)[0].tolist()
    asked = shlex.join([f"--head={g.entities[head]}", f"--relation={g.relations[relation]}"])
    then = f"{called('predict')} {shlex.quote(str(folder or 'FOLDER'))} {asked}"
    say(f"\nsaved      {folder}\nnext       {then}" if folder else f"\nnot saved  with --out FOLDER, next comes {then}")


@command("Posterior.predict Posterior.answers Posterior.discover", "progress", (QUERIES, FACTS, ABOVE, DRAWN, OUT_FILE),
         OF_QUERY, RUN)  # fmt: skip
def predict(options: dict[str, Any]) -> None:
    """Show the most probable answers of queries, with their uncertainty."""
    from kgpyro.files import table_writer
    from kgpyro.posterior.fitted import Posterior

    ways = {"queries": "answers", "facts": "facts", "above": "discover"}
    asked = [name for name in ways if name in options]
    way = ways[asked[0]] if asked else "predict"
    what = [options.pop(asked[0])] if asked else []
    taken = inspect.signature(getattr(Posterior, way)).parameters
    out = options.get("out") if "out" in taken else options.pop("out", None)
    writer = table_writer(Path(out)) if out and "out" not in taken else None  # refuses what it will not write
    if options.get("shard") and out:
        raise InputError("`out` does not go with `shard`, whose processes would all write it; take what is printed.")
    if wrong := sorted(options.keys() - taken.keys() - {"run", *OF_RUN}):
        raise InputError(f"`{wrong[0]}` does not go with {f'`{asked[0]}`' if asked else 'a query'}; leave one out.")
    posterior = load(options)
    table = getattr(posterior, way)(*what, **options, **({"progress": True} if "progress" in taken else {}))
    if isinstance(table, int):
        return say(f"{table:,} facts\n\nsaved      {out}")
    if writer:
        writer(table)
    query = ", ".join(options.get(name, "?") for name in ("head", "relation", "tail"))
    title = f"{len(table):,} {'answers' if way == 'answers' else 'facts'}" if asked else f"({query})"
    hidden = {"score", "frequency", *(("aleatoric", "epistemic", "error") if asked else ())} & {*table}
    shown = table.head(LONGEST if out else len(table)).drop(columns=list(hidden)).replace({"known": {"": "-"}})
    show(title, shown) if len(table) else say(f"{title}\n\nnone")
    if len(table) and "intervals" in table.attrs:
        say("\n" + textwrap.fill(f"low to high: {table.attrs['intervals']}", 100))
    if posterior.recalibration is not None:
        say(f"\nprobabilities recalibrated ({posterior.recalibration.method}) on validation facts")
    if out:
        say(f"\nsaved      {out}")


@command("Posterior.evaluate", without="progress", place=RUN)
def evaluate(options: dict[str, Any]) -> None:
    """Measure how well a run ranks held-out facts."""
    posterior, split, by = load(options), options.get("split", "test"), options.get("by", "score")
    if not len(getattr(posterior.graph, split)):
        raise InputError(f"graph {posterior.graph.name!r} has no {split} triples to rank; choose another `split`.")
    table = posterior.evaluate(**options)
    table = table.reset_index() if options.get("per_relation") else table
    show(f"{posterior}: {split}, ranked by {by}, realistic ranks", table, index="relation" not in table)
    if split in posterior.graph.confidences:
        show("\npredicted confidences", table.from_records([posterior.confidences(split).attrs["metrics"]]))


@command("Posterior.recalibrate", place=RUN)
def calibrate(options: dict[str, Any]) -> None:
    """Test a run's probabilities on held-out facts, and recalibrate them."""
    from kgpyro.display import write

    folder, posterior = Path(options["run"]), load(options)
    asked = {key: options[key] for key in ("negatives", "draws", "seed") if key in options}
    if uncertain := "test" in posterior.graph.confidences:
        asked.pop("negatives", None)
    judged: Any = posterior.confidences if uncertain else posterior.calibration
    posterior.recalibrate("none")
    before = judged("test", **asked)
    posterior.recalibrate(**options)
    mapped = posterior.recalibration
    others = {mapped.method: judged("test", **asked)} if mapped else {}
    of = "confidences of test triples" if uncertain else f"test triples and false facts ({before.negatives})"
    found = {"as predicted": before, **others}.items()
    metrics = {name: one.attrs["metrics"] if uncertain else one.metrics for name, one in found}
    show(f"{posterior}: {of}", posterior.log.from_dict(metrics, "index"), index=True)
    posterior.store_recalibration(folder)
    state = "predictions go by recalibration.json" if mapped else "predictions are as the model makes them"
    if not uncertain:
        write(folder / "checks", {}, {"calibration.png": lambda: before.figure(**others)})
    say(f"\nsaved      {folder}: {state} from now on" + "; checks/calibration.png" * (not uncertain))


@command("posterior_predictive prior_predictive", "posterior graph progress", (DRAWS, SAMPLED, OUT_CHECK, DATASET),
         OF_CHECK, RUN, "?")  # fmt: skip
def check(options: dict[str, Any]) -> None:
    """Check whether a RUN reproduces its graph, or what a --prior claims."""
    of_run, of_prior = ({*arguments_of(name)} for name in ("posterior_predictive", "prior_predictive"))
    out, run, found = options.pop("out", None), options.get("run"), None  # type: Any, Any, Any
    if wrong := sorted(options.keys() - (of_run | {"run", *OF_RUN} if run else of_prior | {"dataset"})):
        why = "is for a check without RUN; leave RUN out" if run else "is for the check of a RUN; name one"
        raise InputError(f"`{wrong[0]}` {why}, or leave the option out.")
    if run:
        from kgpyro.checking.posterior_predictive import posterior_predictive
        from kgpyro.checking.psis import psis_khat

        posterior = load(options)
        found = posterior_predictive(posterior, progress=True, **options)
        say(as_flags(str(found)))
        with suppress(InputError):  # no ArviZ, a large graph, latents per fact
            khat = psis_khat(posterior, draws=200, repeats=3, progress=True)
            say(f"\nPSIS k = {khat.k:.2f} ± {khat.spread:.2f}; {khat.reading}.")
    else:
        graph, options = graph_and_options(options)
        from kgpyro.checking.prior_predictive import prior_predictive

        found = prior_predictive(graph, progress=True, **options)
        say(as_flags(str(found)))
    if folder := out or (run and Path(run) / "checks"):
        say(f"\nsaved      {folder}: {', '.join(found.save(folder))}")


@command("compare", without="fits progress", place=RUN, nargs="+")
def compare(options: dict[str, Any]) -> None:
    """Compare runs: bound, prediction of held-out facts, cost."""
    from kgpyro.checking.comparison import compare
    from kgpyro.posterior.runs import Run, is_own_code

    fits: dict[str, Any] = {}
    folders, of_run = options.pop("run"), {name: options.pop(name) for name in OF_RUN if name in options}
    for folder in folders:
        config = Run.read(folder).config  # each run is told of the code that is its own
        own = {k: v for k, v in of_run.items() if not k.startswith("run_") or is_own_code(config.get(k[len("run_") :]))}
        fits[folder if Path(folder).name in fits else Path(folder).name] = load({"run": folder, **own})
    table = compare(fits, progress=True, **options)
    show(f"best first by {options.get('by', 'elbo_per_fact')}", table.rename_axis("run").reset_index())


@command("search Options load_graph", "graph space name_or_folder source checkpoint_every", groups=OF_SEARCH,
         place=DATASET, nargs="?")  # fmt: skip
def search(given: dict[str, Any]) -> None:
    """Search for the options with the best validation MRR."""
    data = shlex.join(f"--{key}={given[key]}" for key in ("dataset", "columns", "holdout", "labels") if key in given)
    graph, options = graph_and_options(given)
    from kgpyro.inference.search import search

    table, folder = search(graph, **options), options.get("out")
    shown = table.loc[:, table.nunique() > 1] if len(table) > 1 else table  # what is the same in all says nothing
    show(f"{len(table)} trials, best first by validation MRR", shown.head(LONGEST))
    if folder:
        best = shlex.quote(str(Path(folder) / "best.yaml"))
        say(f"\nsaved      {folder}: trials.csv, best.yaml")
        say(f"next       {called('fit')} --config {best} {data} --out runs/best")


@command()
def priors(_: dict[str, Any]) -> None:
    """List all priors that have a name."""
    from kgpyro.program.priors import prior_table

    say(prior_table())


@command(place=DATASET, nargs="?")
def explore(options: dict[str, Any]) -> None:
    """Say how to explore priors in a notebook."""
    say("In a notebook of Jupyter (pip install 'kgpyro[jupyter]' jupyterlab; jupyter lab), run:\n")
    say(f"    import kgpyro\n    kgpyro.explore({options.get('dataset', 'nations')!r})")


def main(words: Sequence[str] | None = None) -> int:
    """``kgpyro COMMAND …``."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name.lower() in COMMANDS:
        return COMMANDS[name.lower()](rest)
    if name in ("-V", "--version"):
        say(f"kgpyro {VERSION}")
    elif name in ("-h", "--help"):
        say(f"usage: {called('COMMAND')} [--option VALUE …]\n\nBayesian knowledge-graph embeddings.\n")
        say("\n".join(f"  {key:<11}{one.__doc__}" for key, one in COMMANDS.items()))
        say(f"\n{called('COMMAND')} --help lists the options of a command.")
    else:
        near = meant(name, [*COMMANDS, "--help", "--version"])
        say(f"kgpyro: error: there is no {'option' if name[:1] == '-' else 'command'} {name}; {near}", sys.stderr)
        return 2
    return 0


def door(module: str, file: str) -> None:
    """``python -m kgpyro.COMMAND …``: what the module of that name does where it is the program that runs."""
    if module == "__main__":
        sys.exit(COMMANDS[Path(file).stem](sys.argv[1:]))
