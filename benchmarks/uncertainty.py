"""What the uncertainty is worth: base rates, calibration, abstention, answer sets, each beside a point estimate.

    KGPYRO_DATA=FOLDER python benchmarks/uncertainty.py          # what results/uncertainty.json has is not run again
    KGPYRO_DATA=FOLDER python benchmarks/uncertainty.py --graphs kinship umls
    python benchmarks/uncertainty.py --table

Every row of a graph has the same dimension, epochs, completeness (1) and validation split. Kinship and UMLS are split
anew: a fifth is held out, half of it to fit maps to. ``predictive`` is the posterior's mean of a fact's probability,
``plug-in`` the sigmoid of the mean of its log-odds. The ensemble is four ComplEx models of PyKEEN, whose learning rate
validation chooses. ``open`` labels stand for all facts that training lacks. The table leaves out Platt's map and random
negatives, whose rows are in the file too. FB15k-237 and WN18RR have answer sets alone, of one table with the other
options of the recipe for graphs of their size. ``ppi5k`` is an uncertain graph, its mixture one of two tables.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import Tensor

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.evaluation.calibration import Calibration, Recalibration
from kgpyro.evaluation.conformal import Thresholds, misfit, open_candidates
from kgpyro.inference.recipes import recipe_for
from kgpyro.posterior.asked import fact_ids

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
ENSEMBLE = "PyKEEN ensemble"
MEMBERS = 4
LARGE = {"FB15k-237": 10, "WN18RR": 10}  # graphs that have answer sets alone, by draws behind their probabilities
BESIDE = {"ppi5k": ("mixture", "point estimate")} | dict.fromkeys(LARGE, ("LIM", "point estimate"))
LEVELS = (0.8, 0.9, 0.95)
UNSURE = {  # most facts are in training read backwards, which DistMult cannot tell apart
    "score": "DistMult", "inverse": False, "dim": 128, "epochs": 60, "batch_size": 512, "negatives": 5,
    "negative_weight": 0.5, "prior": "normal(scale=1)", "kl_weight": 0.001, "optimizer": "adam", "lr": 0.08,
    "lr_schedule": "linear",
}  # fmt: skip
NEGATIVES = {"codex-s": ("verified",), "kinship": ("open", "hard", "random"), "umls": ("open", "hard", "random")}
MAPS = (("none", "none", None), ("of facts", "isotonic", "none"), ("with negatives", "isotonic", "random"))
DRAWS = 200
Row = dict[str, Any]


def graph_of(name: str, seed: int) -> Graph:
    """Kinship and UMLS with a fifth held out anew; others as they are."""
    whole = kgpyro.load_graph(name)
    if name not in ("kinship", "umls"):
        return whole
    triples = torch.cat([whole.train, whole.valid, whole.test])
    triples = triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))]
    n = len(triples) // 10
    return Graph(f"{name}-20", whole.entities, whole.relations, triples[2 * n :], triples[:n], triples[n : 2 * n])


def confidence_rows(method: str, seed: int) -> Iterator[Row]:
    """Errors of the predicted confidences of ppi5k, and how many of the given ones are in the 90 % intervals.

    Of every line of the test file, as others count them: some facts are there twice, with two confidences.
    """
    graph = kgpyro.load_graph("ppi5k")
    guide = {"guide": "mixture(members=2)"} if method == "mixture" else METHODS[method]
    posterior = kgpyro.fit(graph, **COMMON, **UNSURE, **guide, seed=seed)
    draws = 2 if method == "point estimate" else 100
    names = ["head", "relation", "tail", "confidence"]
    file = Path(os.environ["KGPYRO_DATA"]) / "ppi5k" / "test_with_negatives.txt"
    whole = pd.read_csv(file, sep="\t", header=None, names=names, dtype=dict.fromkeys(names[:3], str))
    for name, how, negatives in MAPS:
        posterior.recalibrate(how, negatives, draws=draws)
        for facts, given in (("test", whole[whole["confidence"] > 0]), ("test and as many negatives", whole)):
            ranked = (name, facts) == ("none", "test")  # a map that rises ranks as none does
            found = posterior.confidences(given, draws=draws, rank=ranked).attrs["metrics"]
            yield {"part": "confidences", "facts": facts, "map": name, "seconds": posterior.seconds} | found


def rows_of(name: str, method: str, seed: int) -> Iterator[Row]:
    """Metrics of raw and recalibrated probabilities, abstention and answer sets of one fit."""
    if name == "ppi5k":
        yield from confidence_rows(method, seed)
        return
    graph = graph_of(name, seed)
    if method == ENSEMBLE:
        fitted: Any = Ensemble.fit(graph, OPTIONS[name], seed)
    else:
        fitted = kgpyro.fit(graph, **COMMON, **options_of(graph) | METHODS[method], seed=seed)
    draws = 2 if method == "point estimate" else LARGE.get(name, DRAWS)
    yield {"part": "ranking", "mrr": fitted.metrics["test"]["realistic"]["mrr"], "seconds": fitted.seconds}
    for negatives in NEGATIVES.get(name, ()):
        labelled = {split: kgpyro.labelled_facts(graph, split, negatives, seed) for split in ("valid", "test")}
        found = {split: fitted.facts(facts, draws=draws) for split, facts in labelled.items()}
        for kind in ("predictive", "plug-in")[: 1 if method == "point estimate" else 2]:
            valid, test = (
                f if kind == "predictive" else f.assign(probability=expit(f["score"])) for f in found.values()
            )
            for how in ("raw", "platt", "isotonic"):
                p = test["probability"] if how == "raw" else mapped(valid, labelled["valid"], how)(test)
                row = {"part": "calibration", "negatives": negatives, "kind": kind, "map": how}
                yield row | measured(np.asarray(p), labelled["test"])
    yield from set_rows(graph, partial(fitted.probabilities, draws=min(draws, 100)), fitted.mean_scores)


def options_of(graph: Graph) -> dict[str, Any]:
    own = OPTIONS.get(graph.name.removesuffix("-20"))
    return own or {key: value for key, value in recipe_for(graph).options.items() if key not in ("model", "guide")}


class Ensemble:
    """ComplEx models of PyKEEN from different starts, whose probabilities are averaged; asked as a posterior is."""

    def __init__(self, graph: Graph, models: list[Any], seconds: float):
        self.graph, self.models, self.seconds = graph, models, round(seconds, 1)
        ranks = [float(rank) for part in graph.test.split(256) for rank in self._ranks(part)]
        self.metrics = {"test": {"realistic": {"mrr": float(np.mean(1 / np.array(ranks)))}}}

    @classmethod
    def fit(cls, graph: Graph, options: dict[str, Any], seed: int) -> Ensemble:
        """The learning rate is the best in validation of the first member's; its fits count among the seconds."""
        began = time.monotonic()
        best = max((_member(graph, options, seed, rate) for rate in (0.003, 0.01, 0.03)), key=lambda found: found[0])
        models = [best[1], *(_member(graph, options, 1000 * i + seed, best[2])[1] for i in range(1, MEMBERS))]
        return cls(graph, models, time.monotonic() - began)

    def facts(self, triples: pd.DataFrame, draws: int) -> pd.DataFrame:
        ids = fact_ids(self.graph, triples)
        inner = ids * torch.tensor([1, 2, 1])  # PyKEEN's relations and their inverses in turn
        with torch.no_grad():
            both = [(model.predict_hrt(ids), model.score_hrt_inverse(inner.clone())) for model in self.models]
        logits = torch.stack([(forth + back)[:, 0] / 2 for forth, back in both])
        return pd.DataFrame({"probability": logits.sigmoid().mean(0).double(), "score": logits.mean(0).double()})

    def _logits(self, anchor: Tensor, row: Tensor) -> Iterator[Tensor]:
        """Each member's log-odds of all candidates, ``(b, E)``."""
        R = self.graph.num_relations
        heads = row >= R
        for model in self.models:
            logits = torch.empty(len(row), self.graph.num_entities)
            asked = torch.stack([anchor, row % R], 1)
            with torch.no_grad():
                logits[~heads] = model.predict_t(asked[~heads])
                logits[heads] = model.predict_h(asked[heads].flip(1))
            yield logits

    def probabilities(self, anchor: Tensor, row: Tensor, draws: int) -> Tensor:
        return torch.stack([logits.sigmoid() for logits in self._logits(anchor, row)]).mean(0)

    def mean_scores(self, anchor: Tensor, row: Tensor) -> Tensor:
        return torch.stack(list(self._logits(anchor, row))).mean(0)

    def _ranks(self, facts: Tensor) -> Tensor:
        """Filtered realistic ranks of heads and tails by the mean probability."""
        head, relation, tail = facts.unbind(1)
        R, known = self.graph.num_relations, self.graph.known_queries
        anchor, row, answer = torch.cat([head, tail]), torch.cat([relation, relation + R]), torch.cat([tail, head])
        p = self.probabilities(anchor, row, 0)
        own = p.gather(1, answer.unsqueeze(1))
        p[known.answer_pairs(known.positions(anchor, row))] = -1.0
        return 1 + (p > own).sum(1) + (p == own).sum(1) / 2


def _member(graph: Graph, options: dict[str, Any], seed: int, rate: float) -> tuple[float, Any, float]:
    """Validation MRR, model and learning rate of one ComplEx of PyKEEN, with all candidates of a query as labels."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ComplEx
    from pykeen.training import LCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory(graph.train, graph.num_entities, graph.num_relations, create_inverse_triples=True)
    model = ComplEx(
        triples_factory=factory, embedding_dim=options["dim"] // 2, loss="bcewithlogits", regularizer=None,
        random_seed=seed,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    loop = LCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer)
    batch = options.get("batch_size", kgpyro.Options().batch_size)
    loop.train(factory, num_epochs=options["epochs"], batch_size=batch, use_tqdm=False, num_workers=0)
    found = RankBasedEvaluator().evaluate(
        model, graph.valid, additional_filter_triples=[graph.train, graph.test], use_tqdm=False, batch_size=256
    )
    return float(found.get_metric("both.realistic.inverse_harmonic_mean_rank")), model, rate


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


def set_rows(
    graph: Graph, probabilities: Callable[[Tensor, Tensor], Tensor], scores: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Row]:
    """Coverage and mean size of answer sets on test facts: by predictive probabilities, and by the score alone."""

    def minus(values: Tensor, is_open: Tensor) -> Tensor:
        return -values.double().masked_fill(~is_open, -torch.inf)

    for name, values, measure in (("predictive", probabilities, misfit), ("score", scores, minus)):
        known = Thresholds.of(values, graph.valid, graph.training_queries, graph.num_entities, measure)
        ways = [(level, own) for level in LEVELS for own in ((False, True) if name == "predictive" else (False,))]
        found = over_test(
            graph, values, measure, [partial(known.at, coverage=at, per_relation=own) for at, own in ways]
        )
        for (level, own), (size, covered) in zip(ways, found, strict=True):
            by = f"{name}, per relation" if own else name
            yield {"part": "answer sets", "by": by, "level": level, "coverage": covered, "size": size}


def over_test(
    graph: Graph,
    values: Callable[[Tensor, Tensor], Tensor],
    measure: Callable[[Tensor, Tensor], Tensor],
    thresholds: list[Callable[[int], float]],
) -> list[tuple[float, float]]:
    """Mean size of the sets and the share that holds the true answer, over heads and tails of all test facts."""
    head, relation, tail = graph.test.unbind(1)
    anchor, answer = torch.cat([head, tail]), torch.cat([tail, head])
    row = torch.cat([relation, relation + graph.num_relations])
    rows = row.unique().tolist()
    limits = torch.empty(len(thresholds), 2 * graph.num_relations, dtype=torch.double)
    limits[:, rows] = torch.tensor([[at(r) for r in rows] for at in thresholds], dtype=torch.double)
    sizes, covered = [], []
    for part in torch.arange(len(row)).split(256):
        is_open = open_candidates(anchor[part], row[part], graph.training_queries, graph.num_entities)
        ill = measure(values(anchor[part], row[part]).cpu(), is_open).masked_fill(~is_open, torch.inf)
        inside = [(ill <= limit[row[part], None]) & is_open for limit in limits]
        sizes.append(torch.stack([each.sum(1) for each in inside], 1))
        covered.append(torch.stack([each[torch.arange(len(part)), answer[part]] for each in inside], 1))
    means = (torch.cat(each).double().mean(0).tolist() for each in (sizes, covered))
    return list(zip(*means, strict=True))


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
        unsure = table[(table["part"] == "confidences") & (table["method"] == "mixture")].groupby(["map", "facts"])
        for metric in ("mse", "mae", "mae_of_mean", "coverage"):
            mean = unsure[metric].mean()
            found[f"ppi5k_{metric}"] = float(mean["of facts", "test"])
            found[f"ppi5k_{metric}_with_negatives"] = float(mean["with negatives", "test and as many negatives"])
    calibration = table[table["part"] == "calibration"]
    place = ["graph", "negatives", "map"]
    metrics = ["log_score", "aurc"]
    ours = calibration[calibration["method"] == "LIM"].groupby([*place, "kind"])[metrics].mean()
    point = calibration[calibration["method"] == "point estimate"].groupby(place)[metrics].mean()
    predictive = ours.xs("predictive", level="kind")
    theirs = calibration[calibration["method"] == ENSEMBLE].groupby([*place, "kind"])[metrics].mean()
    others = [("plugin", ours.xs("plug-in", level="kind")), ("point", point)]
    if len(theirs):
        others.append(("ensemble", theirs.xs("predictive", level="kind")))
    for name, other in others:
        other = other.reindex(predictive.index)
        better = (predictive["log_score"] > other["log_score"]) & (predictive["aurc"] < other["aurc"])
        found[f"share_of_rows_predictive_beats_{name}"] = float(better.mean())
    return {name: round(value, 4) for name, value in found.items()}


def spread(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation over seeds, where there are several."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std():.{digits}f}"


def markdown(rows: list[Row]) -> str:
    table = pd.DataFrame(rows)
    metrics = ["ece", "brier", "log_score", "auroc", "aurc", "expected_over_true"]
    out = [f"| graph, labels | method | {' | '.join(metrics)} |", f"|---|---|{'---:|' * len(metrics)}"]
    part = table[(table["part"] == "calibration") & (table["map"] != "platt") & (table["negatives"] != "random")]
    for (graph, labels, method, kind, how), group in part.groupby(
        ["graph", "negatives", "method", "kind", "map"], sort=False
    ):
        cells = [spread(group[m], 4) for m in metrics]
        out.append(f"| {graph}, {labels} | {method}, {kind}, {how} | {' | '.join(cells)} |")
    heads = " | ".join(f"{level:.0%}: coverage | mean size" for level in LEVELS)
    out += ["", f"| answer sets | method | by | {heads} |", f"|---|---|---|{'---:|---:|' * len(LEVELS)}"]
    part = table[table["part"] == "answer sets"]
    for (graph, method, by), group in part.groupby(["graph", "method", "by"], sort=False):
        levels = (group[group["level"] == level] for level in LEVELS)
        cells = [f"{spread(of['coverage'], 3)} | {of['size'].mean():,.1f}" if len(of) else "– | –" for of in levels]
        out.append(f"| {graph} | {method} | {by} | {' | '.join(cells)} |")
    if "confidences" in set(table["part"]):
        out += [
            "",
            "| ppi5k | method | map | MSE | MAE | MAE of the mean | in 90 % intervals | nDCG |",
            "|---|---|---|---:|---:|---:|---:|---:|",
        ]
        part = table[table["part"] == "confidences"]
        for (facts, method, how), group in part.groupby(["facts", "method", "map"], sort=False):
            cells = [spread(group[m], 4) for m in ("mse", "mae", "mae_of_mean", "coverage")]
            ranked = "–" if group["ndcg"].isna().all() else f"{group['ndcg'].mean():.3f}"
            out.append(f"| {facts} | {method} | {how} | {' | '.join(cells)} | {ranked} |")
    return "\n".join(out)


def main() -> int:
    parser = kept.parser(__doc__, [*OPTIONS, *LARGE, "ppi5k"])
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results; what it has is kept")
    arguments = parser.parse_args()
    rows = kept.rows_in(arguments.json)
    done = {(row["graph"], row["method"], row["seed"]) for row in rows}
    for seed in () if arguments.table else SEEDS:
        for graph in arguments.graphs:
            for method in BESIDE.get(graph, (*METHODS, ENSEMBLE)):
                if (graph, method, seed) in done or (graph == "FB15k-237" and seed):  # an hour each
                    continue
                rows += [{"graph": graph, "method": method, "seed": seed} | row for row in rows_of(graph, method, seed)]
                print(f"{graph}, {method}, seed {seed}", flush=True)
                whole = {row["method"] for row in rows} >= {"LIM", "point estimate"}
                kept.keep(arguments.json, rows, summary(rows) if whole else {})
    print(f"{markdown(rows)}\n")
    for name, value in summary(rows).items():
        print(f"{name:40} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
