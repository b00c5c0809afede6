"""Search for a configuration, and ask whether the ELBO would have chosen it: a bound needs no validation triples.

    python benchmarks/search.py nations kinship umls --trials 40
    python benchmarks/search.py --table

Optuna (Akiba et al. 2019) maximises the validation MRR of the LIM over learning rate, batch, dimension, prior, KL
weight, likelihood (Bernoulli over all or over sampled candidates, or in a full closed world; categorical) and
completeness. Every trial also has its untempered ELBO per fact and its test MRR, which nothing is chosen by.
Trials are kept in ``benchmarks/results/search.jsonl`` as they end; an interrupted search goes on with those missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

import kgpyro

RESULTS = Path(__file__).resolve().parent / "results" / "search.jsonl"
SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    "lr": optuna.distributions.FloatDistribution(0.02, 0.3, log=True),
    "batch_size": optuna.distributions.CategoricalDistribution([64, 128, 256]),
    "dim": optuna.distributions.CategoricalDistribution([50, 100, 200]),
    "family": optuna.distributions.CategoricalDistribution(["normal", "laplace", "student_t"]),
    "scale": optuna.distributions.FloatDistribution(0.2, 2.0, log=True),
    "learned": optuna.distributions.CategoricalDistribution([False, True]),
    "kl_weight": optuna.distributions.FloatDistribution(0.25, 1.0, log=True),
    "likelihood": optuna.distributions.CategoricalDistribution(["bernoulli", "sampled", "full", "categorical"]),
    "completeness": optuna.distributions.CategoricalDistribution([1.0, 0.9, 0.8]),
}
NEGATIVES = 30  # where candidates are sampled


def options_of(found: dict[str, Any]) -> dict[str, Any]:
    """A trial's parameters as options of a fit."""
    found = dict(found)
    family, scale = found.pop("family"), f"{found.pop('scale'):.3g}"
    prior = f"{family}(scale={f'learn({scale})' if found.pop('learned') else scale})"
    likelihood, completeness = found.pop("likelihood"), found.pop("completeness")
    if likelihood == "categorical":
        found["likelihood"] = likelihood
    else:
        extra = {"sampled": {"negatives": NEGATIVES}, "full": {"closed_world": "full"}}
        found |= {"completeness": completeness} | extra.get(likelihood, {})
    return {"model": "lim", "prior": prior, "epochs": 60, **found}


def search(graph: str, trials: int) -> None:
    """Run the trials of a graph that are missing."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    done = [trial for trial in read() if trial["graph"] == graph]
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(params=trial["parameters"], distributions=SPACE, value=trial["valid_mrr"])
        )
    for number in range(len(done), trials):
        asked = study.ask(SPACE)
        options = options_of(asked.params)
        m = kgpyro.fit(graph, **options, progress=False).metrics
        trial = {"graph": graph, "parameters": asked.params, "options": options, "elbo": m["elbo_per_fact"]}
        trial |= {f"{split}_mrr": m[split]["realistic"]["mrr"] for split in ("valid", "test")}
        study.tell(asked, trial["valid_mrr"])
        with RESULTS.open("a") as file:
            file.write(json.dumps(trial) + "\n")
        print(f"{graph} {number}: valid MRR {trial['valid_mrr']:.3f}, ELBO {trial['elbo']:.3f}, {options}", flush=True)


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
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for graph in arguments.graphs:
        search(graph, arguments.trials)
    if arguments.table:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
