"""What the uncertainty is worth: base rates, calibration, abstention, answer sets, each beside a point estimate.

    KGPYRO_DATA=FOLDER python benchmarks/uncertainty.py          # what results/uncertainty.json has is not run again
    KGPYRO_DATA=FOLDER python benchmarks/uncertainty.py --graphs kinship umls
    python benchmarks/uncertainty.py --table

Every row of a graph has the same dimension, epochs, completeness (1) and validation split. Kinship and UMLS are split
anew: a fifth is held out, half of it to fit maps to. ``predictive`` is the posterior's mean of a fact's probability,
``plug-in`` the sigmoid of the mean of its log-odds. ``open`` labels stand for all facts that training lacks. The table
leaves out Platt's map and random negatives, whose rows are in the file too. ``ppi5k`` is an uncertain graph.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import machine
from scipy.special import expit
from torch import Tensor

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.evaluation.calibration import Calibration, Recalibration
from kgpyro.evaluation.conformal import Thresholds, misfit, open_candidates

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "uncertainty.json"
SEEDS = (0, 1, 2)
COMMON: dict[str, Any] = {"model": "lim", "progress": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "kinship": {"dim": 100, "epochs": 60},
    "umls": {"dim": 100, "epochs": 60},
    "codex-s": {
        "dim": 200, "epochs": 60, "entity_prior": "normal(scale=0.35)", "relation_prior": "normal(scale=3)",
        "kl_weight": 0.5, "closed_world": "local", "precision": "bf16",
    },
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {"LIM": {}, "mixture": {"guide": "mixture(members=4)"}}
METHODS["point estimate"] = {"guide": "point"}
UNSURE = {  # most facts are in training read backwards, which DistMult cannot tell apart
    "score": "DistMult", "inverse": False, "dim": 128, "epochs": 30, "batch_size": 512, "negatives": 5,
    "negative_weight": 0.5, "prior": "normal(scale=1)", "kl_weight": 0.005, "optimizer": "adam", "lr": 0.01,
    "lr_schedule": "linear",
}  # fmt: skip
NEGATIVES = {"codex-s": ("verified",), "kinship": ("open", "hard", "random"), "umls": ("open", "hard", "random")}
DRAWS = 200
Row = dict[str, Any]


def graph_of(name: str, seed: int) -> Graph:
    """Kinship and UMLS with a fifth held out anew; codex-s as it is."""
    whole = kgpyro.load_graph(name)
    if name == "codex-s":
        return whole
    triples = torch.cat([whole.train, whole.valid, whole.test])
    triples = triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))]
    n = len(triples) // 10
    return Graph(f"{name}-20", whole.entities, whole.relations, triples[2 * n :], triples[:n], triples[n : 2 * n])


def confidence_rows(method: str, seed: int) -> Iterator[Row]:
    """Errors of the predicted confidences of ppi5k, and how many of the given ones are in the 90 % intervals."""
    graph = kgpyro.load_graph("ppi5k")
    posterior = kgpyro.fit(graph, **COMMON, **UNSURE, **METHODS[method], seed=seed)
    draws = 2 if method == "point estimate" else DRAWS
    names = ["head", "relation", "tail", "confidence"]
    file = Path(os.environ["KGPYRO_DATA"]) / "ppi5k" / "test_with_negatives.txt"
    whole = pd.read_csv(file, sep="\t", header=None, names=names, dtype=dict.fromkeys(names[:3], str))
    for how in ("none", "isotonic"):
        posterior.recalibrate(how, draws=draws)
        for facts, given in (("test", "test"), ("test and as many negatives", whole)):
            found = posterior.confidences(given, draws=draws, rank=facts == "test").attrs["metrics"]
            yield {"part": "confidences", "facts": facts, "map": how, "seconds": posterior.seconds} | found


def rows_of(name: str, method: str, seed: int) -> Iterator[Row]:
    """Metrics of raw and recalibrated probabilities, abstention and answer sets of one fit."""
    if name == "ppi5k":
        yield from confidence_rows(method, seed)
        return
    graph = graph_of(name, seed)
    posterior = kgpyro.fit(graph, **COMMON, **OPTIONS[name], **METHODS[method], seed=seed)
    draws = 2 if method == "point estimate" else DRAWS
    yield {"part": "ranking", "mrr": posterior.metrics["test"]["realistic"]["mrr"], "seconds": posterior.seconds}
    for negatives in NEGATIVES[name]:
        labelled = {split: kgpyro.labelled_facts(graph, split, negatives, seed) for split in ("valid", "test")}
        found = {split: posterior.facts(facts, draws=draws) for split, facts in labelled.items()}
        for kind in ("predictive", "plug-in")[: 1 if method == "point estimate" else 2]:
            valid, test = (
                f if kind == "predictive" else f.assign(probability=expit(f["score"])) for f in found.values()
            )
            for how in ("raw", "platt", "isotonic"):
                p = test["probability"] if how == "raw" else mapped(valid, labelled["valid"], how)(test)
                row = {"part": "calibration", "negatives": negatives, "kind": kind, "map": how}
                yield row | measured(np.asarray(p), labelled["test"])
    yield from set_rows(posterior)


def mapped(facts: pd.DataFrame, labelled: pd.DataFrame, how: str) -> Recalibration:
    return Recalibration.fit(facts, labelled["label"].to_numpy(), how, labelled["weight"].to_numpy())


def measured(p: np.ndarray, labelled: pd.DataFrame) -> Row:
    """Calibration metrics, and the AURC of decisions at one half that are withheld by their distance from it."""
    labels, weights = labelled["label"].to_numpy(), labelled["weight"].to_numpy()
    order = np.argsort(-np.abs(p - 0.5), kind="stable")
    wrong, w = ((p > 0.5) != labels)[order], weights[order]
    risk = np.cumsum(w * wrong) / np.cumsum(w)
    return Calibration(p, labels, "", weights).metrics | {"aurc": float((risk * w).sum() / w.sum())}


# ---- answer sets ----------------------------------------------------------------------------------------------------


def set_rows(posterior: kgpyro.Posterior) -> Iterator[Row]:
    """Coverage and mean size of 90 % answer sets on test facts: by predictive probabilities, and by the score alone."""
    graph = posterior.graph
    probabilities = partial(posterior.probabilities, draws=100)
    calibrated = posterior.thresholds(100)
    for name, per_relation in (("predictive", False), ("predictive, per relation", True)):
        sizes, covered = over_test(graph, probabilities, misfit, partial(calibrated.at, per_relation=per_relation))
        yield {"part": "answer sets", "by": name, "coverage": covered, "size": sizes}
    scores: Callable[[Tensor, Tensor], Tensor] = posterior.mean_scores

    def minus(values: Tensor, is_open: Tensor) -> Tensor:
        return -values.double().masked_fill(~is_open, -torch.inf)

    alone = Thresholds.of(scores, graph.valid, graph.training_queries, graph.num_entities, minus)
    sizes, covered = over_test(graph, scores, minus, partial(alone.at, per_relation=False))
    yield {"part": "answer sets", "by": "score", "coverage": covered, "size": sizes}


def over_test(
    graph: Graph, values: Callable[[Tensor, Tensor], Tensor], measure: Callable[[Tensor, Tensor], Tensor], at: Callable
) -> tuple[float, float]:
    """Mean size of the sets and the share that holds the true answer, over heads and tails of all test facts."""
    head, relation, tail = graph.test.unbind(1)
    anchor, answer = torch.cat([head, tail]), torch.cat([tail, head])
    row = torch.cat([relation, relation + graph.num_relations])
    threshold = {r: at(r, 0.9) for r in row.unique().tolist()}
    limit = torch.tensor([threshold[r] for r in row.tolist()], dtype=torch.double)
    sizes, covered = [], []
    for part in torch.arange(len(row)).split(256):
        is_open = open_candidates(anchor[part], row[part], graph.training_queries, graph.num_entities)
        inside = (measure(values(anchor[part], row[part]).cpu(), is_open) <= limit[part, None]) & is_open
        sizes.append(inside.sum(1))
        covered.append(inside[torch.arange(len(part)), answer[part]])
    return float(torch.cat(sizes).double().mean()), float(torch.cat(covered).double().mean())


# ---- all of it ------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> dict[str, float]:
    """The ratios, of means over seeds."""
    table = pd.DataFrame(rows)
    found = {}
    open_ = table[(table["part"] == "calibration") & (table["negatives"] == "open") & (table["kind"] == "predictive")]
    for name in ("umls", "kinship"):
        lim = open_[(open_["graph"] == name) & (open_["method"] == "LIM")]
        for how in ("raw", "isotonic") if len(lim) else ():
            suffix = "" if how == "isotonic" else "_raw"
            found[f"expected_over_true_{name}{suffix}"] = float(lim[lim["map"] == how]["expected_over_true"].mean())
            found[f"ece_open_{name}{suffix}"] = float(lim[lim["map"] == how]["ece"].mean())
    if "confidences" in set(table["part"]):
        unsure = table[(table["part"] == "confidences") & (table["method"] == "LIM")].groupby(["map", "facts"])
        for metric in ("mse", "mae", "coverage"):
            mean = unsure[metric].mean()
            for how, suffix in (("none", "_raw"), ("isotonic", "")):
                found[f"ppi5k_{metric}{suffix}"] = float(mean[how, "test"])
            found[f"ppi5k_{metric}_with_negatives"] = float(mean["none", "test and as many negatives"])
    calibration = table[table["part"] == "calibration"]
    place = ["graph", "negatives", "map"]
    metrics = ["log_score", "aurc"]
    ours = calibration[calibration["method"] == "LIM"].groupby([*place, "kind"])[metrics].mean()
    point = calibration[calibration["method"] == "point estimate"].groupby(place)[metrics].mean()
    predictive = ours.xs("predictive", level="kind")
    for name, other in (("plugin", ours.xs("plug-in", level="kind")), ("point", point)):
        other = other.reindex(predictive.index)
        better = (predictive["log_score"] > other["log_score"]) & (predictive["aurc"] < other["aurc"])
        found[f"share_of_rows_predictive_beats_{name}"] = float(better.mean())
    return {name: round(value, 4) for name, value in found.items()}


def markdown(rows: list[Row]) -> str:
    table = pd.DataFrame(rows)
    metrics = ["ece", "brier", "log_score", "auroc", "aurc", "expected_over_true"]
    out = [f"| graph, labels | method | {' | '.join(metrics)} |", f"|---|---|{'---:|' * len(metrics)}"]
    part = table[(table["part"] == "calibration") & (table["map"] != "platt") & (table["negatives"] != "random")]
    for (graph, labels, method, kind, how), group in part.groupby(
        ["graph", "negatives", "method", "kind", "map"], sort=False
    ):
        cells = [f"{group[m].mean():.4f} ± {group[m].std():.4f}" for m in metrics]
        out.append(f"| {graph}, {labels} | {method}, {kind}, {how} | {' | '.join(cells)} |")
    out += ["", "| 90 % answer sets | method | by | coverage | mean size |", "|---|---|---|---:|---:|"]
    part = table[table["part"] == "answer sets"]
    for (graph, method, by), group in part.groupby(["graph", "method", "by"], sort=False):
        spread = f"{group['coverage'].mean():.3f} ± {group['coverage'].std():.3f}"
        out.append(f"| {graph} | {method} | {by} | {spread} | {group['size'].mean():.1f} |")
    if "confidences" in set(table["part"]):
        out += [
            "",
            "| ppi5k | method | map | MSE | MAE | in 90 % intervals | nDCG |",
            "|---|---|---|---:|---:|---:|---:|",
        ]
        part = table[table["part"] == "confidences"]
        for (facts, method, how), group in part.groupby(["facts", "method", "map"], sort=False):
            cells = [f"{group[m].mean():.4f} ± {group[m].std():.4f}" for m in ("mse", "mae", "coverage")]
            ranked = "–" if group["ndcg"].isna().all() else f"{group['ndcg'].mean():.3f}"
            out.append(f"| {facts} | {method} | {how} | {' | '.join(cells)} | {ranked} |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results; what it has is kept")
    graphs = [*OPTIONS, "ppi5k"]
    parser.add_argument("--graphs", nargs="+", default=graphs, choices=graphs)
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    done = {(row["graph"], row["method"], row["seed"]) for row in rows}
    for seed in () if arguments.table else SEEDS:
        for graph in arguments.graphs:
            for method in METHODS:
                if (graph, method, seed) in done or (graph, method) == ("ppi5k", "mixture"):
                    continue
                rows += [{"graph": graph, "method": method, "seed": seed} | row for row in rows_of(graph, method, seed)]
                print(f"{graph}, {method}, seed {seed}", flush=True)
                kept = {"machine": machine(), "version": kgpyro.__version__, "rows": rows}
                if {row["method"] for row in rows} >= {"LIM", "point estimate"}:
                    kept["ratios"] = summary(rows)
                arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{markdown(rows)}\n")
    for name, value in summary(rows).items():
        print(f"{name:40} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
