"""Cold posteriors: ranks and calibration at KL weights below 1 and at 1, and what of the difference is whose fault.

    KGPYRO_DATA=FOLDER python benchmarks/cold.py             # what results/cold.json has is not run again
    KGPYRO_DATA=FOLDER python benchmarks/cold.py --seeds 0   # one seed
    python benchmarks/cold.py --table

On codex-s, whose false facts people have verified: the KL weight with fixed priors; priors that are learned, or of
another family; guides that are richer; other data (a full closed world). On a thinned Nations: exact draws (HMC).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from kept import keep, parser, rows_in

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.evaluation.calibration import Calibration, Recalibration

RESULTS = Path(__file__).resolve().parent / "results" / "cold.json"
CODEX: dict[str, Any] = {
    "dim": 200, "epochs": 60, "entity_prior": "normal(scale=0.35)", "relation_prior": "normal(scale=3)",
    "closed_world": "local", "precision": "bf16",
}  # fmt: skip
LEARNED = {"entity_prior": None, "relation_prior": None, "prior": "normal(scale=learn)"}
ROWS: dict[str, dict[str, Any]] = {
    "KL weight 1/4": {"kl_weight": 0.25},
    "KL weight 1/2": {"kl_weight": 0.5},
    "KL weight 1": {},
    "scales learned, 1/2": LEARNED | {"kl_weight": 0.5},
    "scales learned, 1": LEARNED,
    "scales learned per symbol, 1": LEARNED | {"prior": "normal(scale=learn_per_symbol)"},
    "n3, strength learned, 1": LEARNED | {"prior": "complex_n3(strength=learn)"},
    "KL by frequency, 1": {"kl_frequency": 0.75},
    "lowrank guide, 1": {"guide": "lowrank(rank=4)"},
    "mixture of 4, 1": {"guide": "mixture(members=4)"},
    "completeness 0.9, 1": {"completeness": 0.9},
    "asked for relations too, 1": {"relation_weight": 1.0},
    "full closed world, 1/2": {"closed_world": "full", "kl_weight": 0.5},
    "full closed world, 1": {"closed_world": "full"},
}
FEW = 500  # facts that a thinned Nations keeps to fit to
THIN: dict[str, Any] = {"dim": 16, "epochs": 400, "inverse": False, "estimator": "plain", "lr_schedule": "linear"}
THIN_ROWS: dict[str, dict[str, Any]] = {
    "KL weight 1/4": {"kl_weight": 0.25},
    "KL weight 1/2": {"kl_weight": 0.5},
    "KL weight 1": {},
    "exact draws (HMC)": {"inference": "hmc", "warmup_draws": 300, "posterior_draws": 640},
    "scales learned, 1": {"prior": "normal(scale=learn)"},
}
GRAPHS = {"codex-s": (CODEX, ROWS), "nations-500": (THIN, THIN_ROWS)}


def graph_of(name: str, seed: int) -> Graph:
    """codex-s as it is; of Nations ``FEW`` training facts, as many of the others to fit maps to, and the rest."""
    if name == "codex-s":
        return kgpyro.load_graph(name)
    whole = kgpyro.load_graph("nations")
    triples = torch.cat([whole.train, whole.valid, whole.test])
    triples = triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))]
    valid, test = triples[FEW : 2 * FEW], triples[2 * FEW :]
    return Graph(name, whole.entities, whole.relations, triples[:FEW], valid, test)


def measured(name: str, how: str, seed: int) -> dict[str, Any]:
    """Ranks, and the calibration of one fit, as fitted and after Platt's map."""
    base, rows = GRAPHS[name]
    graph = graph_of(name, seed)
    posterior = kgpyro.fit(graph, model="lim", seed=seed, progress=False, **base | rows[how])
    found = {"graph": name, "how": how, "seed": seed, "seconds": posterior.seconds}
    for split in ("valid", "test"):
        found[f"{split}_mrr"] = posterior.metrics[split]["realistic"]["mrr"]
    found["elbo_per_fact"] = posterior.metrics.get("elbo_per_fact")
    kind = "verified" if name == "codex-s" else "open"
    labelled = {split: kgpyro.labelled_facts(graph, split, kind, seed) for split in ("valid", "test")}
    facts = {split: posterior.facts(one, draws=200) for split, one in labelled.items()}
    valid, test = labelled["valid"], labelled["test"]
    platt = Recalibration.fit(facts["valid"], valid["label"].to_numpy(), "platt", valid["weight"].to_numpy())
    for key, p in {"raw": facts["test"]["probability"].to_numpy(), "platt": platt(facts["test"])}.items():
        metrics = Calibration(p, test["label"].to_numpy(), kind, test["weight"].to_numpy()).metrics
        found |= {f"{metric}_{key}": metrics[metric] for metric in ("ece", "brier", "log_score")}
    return found | {"auroc": metrics["auroc"], "expected_over_true": metrics["expected_over_true"]}


def table(rows: list[dict[str, Any]]) -> str:
    columns = ["valid_mrr", "test_mrr", "ece_raw", "log_score_raw", "brier_platt", "log_score_platt"]
    out = [f"| graph | fit | seeds | {' | '.join(c.replace('_', ' ') for c in columns)} |"]
    out.append(f"|---|---|---:|{'---:|' * len(columns)}")
    for (graph, how), part in pd.DataFrame(rows).groupby(["graph", "how"], sort=False):
        spread = [f"{part[c].mean():.3f}" + (f" ± {part[c].std():.3f}" if len(part) > 1 else "") for c in columns]
        out.append(f"| {graph} | {how} | {len(part)} | {' | '.join(spread)} |")
    return "\n".join(out)


def main() -> None:
    options = parser(__doc__, GRAPHS)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = options.parse_args()
    rows = rows_in(RESULTS)
    done = {(row["graph"], row["how"], row["seed"]) for row in rows}
    for seed in () if arguments.table else arguments.seeds:
        for graph in arguments.graphs:
            for how in GRAPHS[graph][1]:
                if (graph, how, seed) in done:
                    continue
                rows.append(measured(graph, how, seed))
                keep(RESULTS, rows)
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
