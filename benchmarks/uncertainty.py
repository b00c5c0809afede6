"""What the uncertainty is worth: calibration, abstention, answer sets.

    KGPYRO_DATA=FOLDER python benchmarks/uncertainty.py --json benchmarks/results/uncertainty.json
    python benchmarks/uncertainty.py --table

Every part is one row of the JSON file, written as soon as it is known and not computed again. On codex-s the true facts
are the test triples and the false ones those that people found false; whatever is fitted to labels is fitted to the
validation split's. Three seeds; peers and baselines see the same facts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

import kgpyro
from kgpyro.checking.abstention import risk_coverage
from kgpyro.data.graph import Graph
from kgpyro.evaluation.calibration import Calibration, Recalibration
from kgpyro.evaluation.conformal import Thresholds, misfit, open_candidates

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "uncertainty.json"
SEEDS = (0, 1, 2)
COMMON = {"model": "lim", "dim": 200, "batch_size": 256, "precision": "bf16", "progress": False}
PRIORS = {"entity_prior": "normal(scale=0.35)", "relation_prior": "normal(scale=3)"}
METHODS: dict[str, dict[str, Any]] = {
    "LIM": COMMON | PRIORS | {"epochs": 100, "completeness": 0.5},
    "LIM, completeness 0.9": COMMON | PRIORS | {"epochs": 100, "completeness": 0.9},
    "point estimate": COMMON | PRIORS | {"epochs": 100, "guide": "point", "early_stopping": 10},
}
KINSHIP = {"model": "lim", "epochs": 60, "prior": "normal(scale=0.5)", "kl_schedule": "constant", "progress": False}
PARTS = {"calibration", "abstention"}
DRAWS = 500
RESAMPLES = 1000
Row = dict[str, Any]


# ---- calibration and abstention on codex-s --------------------------------------------------------------------------


def calibration_rows(method: str, seed: int) -> Iterator[Row]:
    """Metrics of raw and recalibrated probabilities; for posteriors also abstention and answer sets."""
    graph = kgpyro.load_graph("codex-s")
    if method == "PyKEEN RESCAL, MC dropout":
        predict = pykeen_dropout(graph, seed)
    else:
        posterior = kgpyro.fit(graph, **(METHODS[method] | {"seed": seed}))
        draws = 2 if method == "point estimate" else DRAWS
        predict = lambda facts: posterior.facts(facts, draws=draws)  # noqa: E731
        yield {"part": "ranking", "mrr": posterior.metrics["test"]["realistic"]["mrr"]}
    facts = {split: kgpyro.labelled_facts(graph, split) for split in ("valid", "test")}
    found = {split: predict(part) for split, part in facts.items()}
    labels = {split: part["label"].to_numpy() for split, part in facts.items()}
    kinds = {"predictive": found}
    if method.startswith("LIM"):
        kinds["plug-in"] = {s: f.assign(probability=expit(f["score"])) for s, f in found.items()}
    for kind, by_split in kinds.items():
        test = by_split["test"]
        yield {"part": "calibration", "kind": kind, "map": "raw"} | measured(test["probability"], labels["test"])
        for name in ("temperature", "platt", "isotonic", "stacked"):
            if name == "stacked" and not (kind == "predictive" and method.startswith("LIM")):
                continue
            p = Recalibration.fit(by_split["valid"], labels["valid"], name)(test)["probability"]
            yield {"part": "calibration", "kind": kind, "map": name} | measured(p, labels["test"])
    if method.startswith("LIM"):
        for negatives in ("verified", "hard", "random"):
            yield from abstention_rows(posterior, negatives)
    if method == "LIM":
        yield from set_rows(posterior)


def measured(probabilities: Any, labels: np.ndarray) -> Row:
    return Calibration(np.asarray(probabilities), labels).metrics


def abstention_rows(posterior: kgpyro.Posterior, negatives: str) -> Iterator[Row]:
    """AURC by criterion, and the ratio of the stacked one's to the score's over bootstrap resamples of the facts."""
    found = kgpyro.abstention(posterior, negatives=negatives, draws=DRAWS)
    for criterion, row in found.table.iterrows():
        yield {"part": "abstention", "negatives": negatives, "criterion": criterion, "aurc": float(row["aurc"])}
    rng, ratios = np.random.default_rng(0), []
    errors, stacked, score = found.errors, *(found.facts[c].to_numpy() for c in ("stacked", "score"))
    for _ in range(RESAMPLES):
        i = rng.integers(len(errors), size=len(errors))
        ratios.append(risk_coverage(errors[i], stacked[i]).mean() / risk_coverage(errors[i], score[i]).mean())
    low, high = np.quantile(ratios, [0.05, 0.95])
    yield {"part": "aurc interval", "negatives": negatives, "low": float(low), "high": float(high)}


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


def kinship_rows(method: str, seed: int) -> Iterator[Row]:
    yield from set_rows(kgpyro.fit("kinship", **(KINSHIP | {"seed": seed})))


# ---- PyKEEN with Monte-Carlo dropout --------------------------------------------------------------------------------


def pykeen_dropout(graph: Graph, seed: int, epochs: int = 120) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """RESCAL with dropout on all representations, cross-entropy over all tails; predictions average dropout masks.

    (PyKEEN's ComplEx admits no dropout on a CPU, and its TuckER takes ten times as long.)
    """
    from pykeen.models import ERModel
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory(graph.train, graph.num_entities, graph.num_relations, create_inverse_triples=True)
    shapes = {"entity": (64,), "relation": (64, 64)}
    options = {
        f"{kind}_representations_kwargs": {"shape": shape, "dropout": 0.3, "initializer": "xavier_normal"}
        for kind, shape in shapes.items()
    }
    model = ERModel(triples_factory=factory, interaction="rescal", random_seed=seed, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    queries, relations = graph.training_queries, graph.num_relations
    inverse = queries.relation >= relations  # PyKEEN numbers a relation 2 p and its inverse 2 p + 1
    asked = torch.stack([queries.anchor, 2 * (queries.relation - relations * inverse) + inverse], dim=1)
    for _ in range(epochs):
        for part in torch.randperm(len(queries)).split(256):
            labels = torch.zeros(len(part), graph.num_entities)
            labels[queries.answer_pairs(part)] = 1.0
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model.score_t(asked[part]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def predict(facts: pd.DataFrame) -> pd.DataFrame:
        h, r, t = graph.ids(facts[["head", "relation", "tail"]].to_numpy()).unbind(1)
        ways = torch.stack([h, 2 * r, t], 1), torch.stack([t, 2 * r + 1, h], 1)
        drawn = torch.stack([model.score_hrt(way).squeeze(1).sigmoid() for _ in range(DRAWS // 10) for way in ways])
        return pd.DataFrame({"probability": drawn.double().mean(0).numpy()})

    return predict


# ---- all of it ------------------------------------------------------------------------------------------------------

JOBS: list[tuple[str, str, Callable[[str, int], Iterator[Row]]]] = [
    *(("codex-s", method, calibration_rows) for method in METHODS),
    ("codex-s", "PyKEEN RESCAL, MC dropout", calibration_rows),
    ("kinship", "LIM", kinship_rows),
]


def summary(rows: list[Row]) -> dict[str, float]:
    """The ratios, of means over seeds; none before every part is there."""
    table = pd.DataFrame(rows)
    if not {"LIM", "point estimate"} <= set(table["method"]) or PARTS - set(table["part"]):
        return {}

    def mean(value: str, **where: Any) -> float:
        chosen = np.logical_and.reduce([table[key] == wanted for key, wanted in where.items()])
        return float(table.loc[chosen, value].mean())

    ours = {"part": "calibration", "method": "LIM", "kind": "predictive"}
    point = {"part": "calibration", "method": "point estimate", "kind": "predictive"}
    aurc = {"part": "abstention", "method": "LIM"}
    hard = [mean("aurc", **aurc, negatives=n, criterion="stacked") for n in ("verified", "hard")]
    alone = [mean("aurc", **aurc, negatives=n, criterion="score") for n in ("verified", "hard")]
    return {
        "ece_recalibrated_vs_platt": mean("ece", **ours, map="isotonic") / mean("ece", **point, map="platt"),
        "ece_raw_vs_point": mean("ece", **ours, map="raw") / mean("ece", **point, map="raw"),
        "aurc_vs_score_verified": hard[0] / alone[0],
        "aurc_vs_score_hard": sum(hard) / sum(alone),
        "auroc_minus_point": mean("auroc", **ours, map="raw") - mean("auroc", **point, map="raw"),
    }


def markdown(rows: list[Row]) -> str:
    """The README's tables: calibration, abstention, answer sets."""
    table = pd.DataFrame(rows)
    out = ["| codex-s, verified negatives | ECE | Brier | log score | AUROC |", "|---|---:|---:|---:|---:|"]
    part = table[table["part"] == "calibration"]
    for (method, kind, name), group in part.groupby(["method", "kind", "map"], sort=False):
        if name != "temperature":
            cells = [f"{group[m].mean():.3f} ± {group[m].std():.3f}" for m in ("ece", "brier", "log_score", "auroc")]
            out.append(f"| {method}, {kind}, {name} | {' | '.join(cells)} |")
    out += ["", "| AURC, LIM, withheld by | verified | hard | random |", "|---|---:|---:|---:|"]
    part = table[(table["part"] == "abstention") & (table["method"] == "LIM")]
    pivot = part.pivot_table(index="criterion", columns="negatives", values="aurc").sort_values("hard")
    out += [f"| {c} | {r['verified']:.4f} | {r['hard']:.4f} | {r['random']:.4f} |" for c, r in pivot.iterrows()]
    out += ["", "| 90 % answer sets | coverage | mean size |", "|---|---:|---:|"]
    for (graph, by), group in table[table["part"] == "answer sets"].groupby(["graph", "by"], sort=False):
        spread = f"{group['coverage'].mean():.3f} ± {group['coverage'].std():.3f}"
        out.append(f"| {graph}, by {by} | {spread} | {group['size'].mean():.1f} |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results; what it has is kept")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    arguments = parser.parse_args()
    rows = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    if not arguments.table:
        done = {(row["graph"], row["method"], row["seed"]) for row in rows}
        for seed in SEEDS:
            for graph, method, job in JOBS:
                if (graph, method, seed) not in done:
                    rows += [{"graph": graph, "method": method, "seed": seed} | row for row in job(method, seed)]
                    print(f"{graph}, {method}, seed {seed}", flush=True)
                    arguments.json.parent.mkdir(exist_ok=True)
                    arguments.json.write_text(json.dumps({"ratios": summary(rows), "rows": rows}, indent=1) + "\n")
    if ratios := summary(rows):
        print(f"{markdown(rows)}\n")
    for name, value in ratios.items():
        print(f"{name:28} {value:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
