"""Search for a configuration, and ask whether the ELBO would have chosen it: a bound needs no validation triples.

    python benchmarks/search.py nations kinship umls --trials 40
    python benchmarks/search.py --table

:func:`kgpyro.search` maximises the validation MRR of the LIM over learning rate, batch, dimension, prior, KL weight,
likelihood (Bernoulli over all or over sampled candidates, or in a full closed world; categorical) and completeness.
Every trial also has its untempered ELBO per fact and its test MRR, which nothing is chosen by. A search is kept in
``runs/search/GRAPH`` as it goes, and goes on from there; its trials end in ``benchmarks/results/search.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import kgpyro

RESULTS = Path(__file__).resolve().parent / "results" / "search.jsonl"
NEGATIVES = 30  # where candidates are sampled


def space(trial: Any) -> dict[str, Any]:
    """The options of a trial."""
    family = trial.suggest_categorical("family", ["normal", "laplace", "student_t"])
    scale = f"{trial.suggest_float('scale', 0.2, 2.0, log=True):.3g}"
    scale = f"learn({scale})" if trial.suggest_categorical("learned", [False, True]) else scale
    found: dict[str, Any] = {
        "lr": trial.suggest_float("lr", 0.02, 0.3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "dim": trial.suggest_categorical("dim", [50, 100, 200]),
        "prior": f"{family}(scale={scale})",
        "kl_weight": trial.suggest_float("kl_weight", 0.25, 1.0, log=True),
    }
    likelihood = trial.suggest_categorical("likelihood", ["bernoulli", "sampled", "full", "categorical"])
    if likelihood == "categorical":
        return found | {"likelihood": likelihood}
    world = {"sampled": {"negatives": NEGATIVES}, "full": {"closed_world": "full"}}
    found |= world.get(likelihood, {"closed_world": "local"})
    return found | {"completeness": trial.suggest_categorical("completeness", [1.0, 0.9, 0.8])}


def search(graph: str, trials: int) -> None:
    """Run the trials of a graph that are missing, and put them all in the place of those that the results have."""
    found = kgpyro.search(graph, trials, out=Path("runs/search") / graph, space=space, model="lim", epochs=60)
    measures = ["elbo_per_fact", "valid_mrr", "test_mrr"]
    left_out = {"trial", "seconds", "failure", *measures}
    rows = [trial for trial in read() if trial["graph"] != graph]
    for trial in json.loads(found[found["valid_mrr"].notna()].to_json(orient="records")):
        options = {key: value for key, value in trial.items() if key not in left_out and value is not None}
        elbo, *mrr = (trial[name] for name in measures)
        rows.append({"graph": graph, "options": options, "elbo": elbo, "valid_mrr": mrr[0], "test_mrr": mrr[1]})
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    """By graph: what validation MRR and ELBO choose, what the choices are worth, and how far they rank trials alike.

    Bounds on different data do not compare, so the ELBO chooses among the trials of a local closed world, of a full
    one, and among the categorical ones.
    """
    out = [
        "| graph | likelihood: trials | chosen by | options | ELBO per fact | valid MRR | test MRR | correlation |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for graph, trials in pd.DataFrame(read()).groupby("graph"):
        data = trials["options"].map(lambda options: options.get("likelihood") or options.get("closed_world", "local"))
        for kind, part in trials.groupby(data):
            kind = kind if kind == "categorical" else f"Bernoulli, {kind} closed world"
            alike = part["elbo"].corr(part["valid_mrr"], method="spearman")
            for by, column in (("validation MRR", "valid_mrr"), ("ELBO", "elbo")):
                best = part.loc[part[column].idxmax()]
                chosen = {
                    k: v
                    for k, v in best["options"].items()
                    if k not in ("model", "epochs", "likelihood", "closed_world")
                }
                text = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items())
                numbers = f"{best['elbo']:.2f} | {best['valid_mrr']:.3f} | {best['test_mrr']:.3f} | {alike:.2f}"
                out.append(f"| {graph} | {kind}: {len(part)} | {by} | {text} | {numbers} |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="*", help="names of data sets")
    parser.add_argument("--trials", type=int, default=40, help="of each graph, in all")
    parser.add_argument("--table", action="store_true", help="print what was chosen")
    arguments = parser.parse_args()
    for graph in arguments.graphs:
        search(graph, arguments.trials)
    if arguments.table:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
