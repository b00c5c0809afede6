"""Fit configurations, append one result line per seed, and render the tables of docs/results.md.

    python benchmarks/accuracy.py benchmarks/configs/*.yaml --seeds 0 1 2
    python benchmarks/accuracy.py --table     # fits nothing
    python benchmarks/accuracy.py benchmarks/configs/priors/*.yaml --table priors
    python benchmarks/accuracy.py --relations lim-wn18rr

Each run is one JSON line in ``benchmarks/results/accuracy.jsonl``; what stands there already (same version of kgpyro,
configuration file, contents and seed) is not run again, and a run that was cut off goes on from its last checkpoint (in
``benchmarks/results/unfinished``), so an interrupted call can simply be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from machine import machine

import kgpyro
from kgpyro.inference.checkpoint import FILE as CHECKPOINT

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "accuracy.jsonl"
UNFINISHED = HERE / "results" / "unfinished"
COMPLEX = ("ComplEx", "RotatE", "CP")  # scores whose rank is half their dim
LONG = 60  # core-seconds from which on MRR per core-hour says something
FEW = 20  # relations up to which each one's metrics are kept


def read_lines() -> list[dict[str, Any]]:
    """What this version has measured."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [line for line in lines if line.get("version") == kgpyro.__version__]


def name_of(config: Path) -> str:
    """What results call a configuration: its path under ``configs``."""
    path = config.resolve()
    return path.relative_to(HERE / "configs").as_posix() if path.is_relative_to(HERE / "configs") else path.name


def digest(config: Path) -> str:
    return hashlib.sha256(config.read_bytes()).hexdigest()[:12]


def commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def unfinished(config: Path, seed: int) -> Path:
    """The folder of a run until its result line is written."""
    return UNFINISHED / f"{name_of(config).removesuffix('.yaml').replace('/', '-')}-{digest(config)}-{seed}"


def run(config: Path, seed: int) -> dict[str, Any]:
    options = yaml.safe_load(config.read_text())
    folder = unfinished(config, seed)
    if (folder / CHECKPOINT).is_file():
        posterior = kgpyro.fit(resume=folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        posterior = kgpyro.fit(options.pop("dataset"), **options, seed=seed, out=folder)
    resolved = posterior.config
    priors = [resolved[kind] or resolved["prior"] for kind in ("entity_prior", "relation_prior")]
    return {
        "graph": posterior.graph.name,
        "model": resolved["model"],
        "score": resolved["score"],
        "prior": priors[0] if len(set(priors)) == 1 else f"{priors[0]} / {priors[1]}",
        "seed": seed,
        "dim": resolved["dim"],
        "epochs": resolved["epochs"],
        "objective": posterior.metrics["objective"],
        "config": name_of(config),
        "config_sha": digest(config),
        "version": kgpyro.__version__,
        "commit": commit(),
        "seconds": posterior.seconds,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "device": str(posterior.device),
        "precision": posterior.provenance["precision"],
        "machine": machine(),
        "metrics": posterior.metrics,
    } | ({"relations": _relations(posterior)} if posterior.graph.num_relations <= FEW else {})


def _relations(posterior: kgpyro.Posterior) -> list[dict[str, Any]]:
    table = posterior.evaluate(per_relation=True)[["triples", "mrr", "hits@1", "hits@10"]]
    return table.reset_index().to_dict("records")


def table(folder: str) -> str:
    """Mean and spread over seeds of each configuration of a folder as it stands, as a Markdown table; beside those of
    the whole, what others published (``published.csv``).
    """
    current = {name_of(path): digest(path) for path in (HERE / "configs" / folder).glob("*.yaml")}
    rows = []
    for line in read_lines():
        if current.get(line["config"]) == line["config_sha"]:
            test = line["metrics"]["test"]["realistic"]
            point = "point estimate" in line["objective"]
            kind = f"{'point estimate' if point else line['model'].upper()}, {line['score']}"
            found = {"kind": kind, "rank": _rank(line), "cores": int(line["machine"].split(" threads")[0].split()[-1])}
            rows.append({k: line[k] for k in ("graph", "config", "seconds")} | test | line["metrics"] | found)
    frame = pd.DataFrame(rows)
    columns = ["graph", "model", "configuration or source", "seeds", "rank (dim)", "epochs", "MRR", "Hits@1", "Hits@10"]
    columns += ["ELBO per fact", "seconds", "cores", "core-seconds", "MRR per core-hour"]
    out = [f"| {' | '.join(columns)} |", f"|---|---|---|{'---:|' * (len(columns) - 3)}"]
    for (graph, model, config), part in frame.groupby(["graph", "kind", "config"]):
        means = [(f"{part[m].mean():.3f}", f" ± {part[m].std():.3f}") for m in ("mrr", "hits@1", "hits@10")]
        cells = [mean + spread if len(part) > 1 else mean for mean, spread in means]
        link = f"[{config.removesuffix('.yaml')}](../benchmarks/configs/{config})"
        elbo = "–" if model.startswith("point") else f"{part['elbo_per_fact'].mean():.2f}"
        seconds, cores = part["seconds"].median(), part["cores"].iloc[0]
        spent = seconds * cores
        each = f"{part['mrr'].mean() * 3600 / spent:.2g}" if spent >= LONG else "–"
        end = f"{elbo} | {seconds:.0f} | {cores} | {spent:.0f} | {each}"
        start = f"{len(part)} | {part['rank'].iloc[0]}"
        out.append(f"| {graph} | {model} | {link} | {start} | {' | '.join(cells)} | {end} |")
    if folder == ".":
        published = pd.read_csv(HERE / "published.csv", dtype=str).fillna("–")
        published = published[published["graph"].isin(frame["graph"])]
        for graph, model, source, *cells, rank, epochs in published.itertuples(index=False):
            out.append(f"| {graph} | {model} | {' | '.join([source, '–', rank, epochs, *cells])}{' | –' * 5} |")
    return "\n".join(out[:2] + sorted(out[2:], key=str.lower))


def _rank(line: dict[str, Any]) -> str:
    """A run's rank, the dim that it takes, and its epochs, of the configuration (with early stopping at most)."""
    options = yaml.safe_load((HERE / "configs" / line["config"]).read_text())
    dim, epochs = (options.get(key, line.get(key, getattr(kgpyro.Options(), key))) for key in ("dim", "epochs"))
    rank = f"{dim // 2} ({dim})" if line["score"] in COMPLEX else str(dim)
    return f"{rank} | {'≤ ' if options.get('early_stopping') else ''}{epochs}"


def best() -> str:
    """The configuration of each graph and model that validates best, beside the best published figure of the graph."""
    published = pd.read_csv(HERE / "published.csv", dtype=str)
    published = published.assign(mrr=pd.to_numeric(published["mrr"], errors="coerce")).dropna(subset="mrr")
    current = {name_of(path): digest(path) for path in (HERE / "configs").glob("*.yaml")}
    rows = []
    for line in read_lines():
        if current.get(line["config"]) == line["config_sha"] and "point estimate" not in line["objective"]:
            m = line["metrics"]
            rows.append({k: line[k] for k in ("graph", "model", "config", "seed")} | m["test"]["realistic"])
            rows[-1]["valid"] = m["valid"]["realistic"]["mrr"]
    for row in json.loads((HERE / "results" / "gpu.json").read_text())["rows"]:
        if row["name"].startswith("accuracy") and row["model"] != "point":
            rows.append({k: row[k] for k in ("graph", "model", "config", "seed", "mrr", "hits@10")})
            rows[-1]["valid"] = row["valid_mrr"]
    out = ["| graph | model | configuration | seeds | MRR | Hits@1 | Hits@10 | best published MRR |"]
    out.append("|---|---|---|---:|---:|---:|---:|---|")
    for (graph, model), part in pd.DataFrame(rows).groupby(["graph", "model"]):
        chosen = part.groupby("config")["valid"].mean().idxmax()
        part = part[part["config"] == chosen]
        means = [part[m].mean() for m in ("mrr", "hits@1", "hits@10")]
        cells = " | ".join("–" if pd.isna(mean) else f"{mean:.3f}" for mean in means)
        theirs = published[published["graph"] == graph].nlargest(1, "mrr")
        beside = "–" if theirs.empty else f"{theirs['mrr'].iloc[0]:.3g} ({theirs.iloc[0, 2]})".replace("0.", ".", 1)
        link = f"[{chosen.removesuffix('.yaml')}](benchmarks/configs/{chosen})"
        out.append(f"| {graph} | {model.upper()} | {link} | {part['seed'].nunique()} | {cells} | {beside} |")
    return "\n".join(out)


def relations_table(config: str) -> str:
    """A configuration's test metrics of each relation, subjects and objects apart, as means over seeds, beside what the
    paper's Tables 3 and 4 have of them (``published_relations.csv``).
    """
    current = digest(HERE / "configs" / f"{config}.yaml")
    lines = [line for line in read_lines() if line["config_sha"] == current and "relations" in line]
    frame = pd.DataFrame([row for line in lines for row in line["relations"]])
    paper = pd.read_csv(HERE / "published_relations.csv").set_index(["relation", "side"])
    sides = [f"{side}: MRR | Hits@1 | paper's | Hits@10 | paper's" for side in ("subject", "object")]
    out = [f"| relation | triples | {' | '.join(sides)} |", f"|---|{'---:|' * 11}"]
    for relation, part in sorted(frame.groupby("relation"), key=lambda found: -found[1]["triples"].iloc[0]):
        means = part.groupby("side")[["mrr", "hits@1", "hits@10"]].mean()
        cells = []
        for side, name in (("head", "subject"), ("tail", "object")):
            cells.append(f"{means.loc[side, 'mrr']:.3f}")
            for metric in ("hits@1", "hits@10"):
                theirs = paper[metric].get((relation, name))
                cells += [f"{means.loc[side, metric]:.3f}", "–" if theirs is None else f"{theirs:.3f}"]
        out.append(f"| {relation} | {part['triples'].iloc[0]} | {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="YAML files with the options of kgpyro.fit")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--table", nargs="?", const=".", help="print the results of all current configurations, or of a folder of them"
    )
    parser.add_argument("--best", action="store_true", help="print the README's table: a row per graph and model")
    parser.add_argument("--relations", metavar="NAME", help="print a configuration's results, relation by relation")
    arguments = parser.parse_args()
    if arguments.table and not (HERE / "configs" / arguments.table).is_dir():
        parser.error(f"--table takes a folder of configs, not {arguments.table}; name configurations before it")
    RESULTS.parent.mkdir(exist_ok=True)
    done = {(line["config"], line["config_sha"], line["seed"]) for line in read_lines()}
    for config in arguments.configs:
        for seed in arguments.seeds:
            if (name_of(config), digest(config), seed) not in done:
                with get_context("spawn").Pool(1) as fresh:  # a process of its own, whose peak memory is the run's
                    line = fresh.apply(run, (config, seed))
                with RESULTS.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                shutil.rmtree(unfinished(config, seed))
                print(
                    f"{name_of(config)} seed {seed}: test MRR {line['metrics']['test']['realistic']['mrr']:.4f}",
                    flush=True,
                )
    if arguments.table:
        print(table(arguments.table))
    if arguments.best:
        print(best())
    if arguments.relations:
        print(relations_table(arguments.relations))
    return 0


if __name__ == "__main__":
    sys.exit(main())
