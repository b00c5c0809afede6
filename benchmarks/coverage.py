"""How often intervals hold the true probability, by simulation through ``kgpyro.simulation_check``.

    python benchmarks/coverage.py            # appends to results/coverage.json; what stands there is not run again
    python benchmarks/coverage.py --sizes 6  # the small graphs alone
    python benchmarks/coverage.py --table

Graphs are drawn from the LIM with normal priors, base rate .1, intercepts N(logit .1, 3²), one latent per relation.
Every row fits them by the public ``fit``, to convergence.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import kept
import pandas as pd

import kgpyro

RESULTS = Path(__file__).resolve().parent / "results" / "coverage.json"
SIZES = {6: (2, 2, 100), 25: (3, 8, 20), 100: (3, 8, 4)}  # entities: relations, dim, graphs
SVI = {"optimizer": "adam", "lr": 0.02, "lr_schedule": "linear", "epochs": 2500, "estimator": "plain", "inverse": False}
WAYS: dict[str, dict[str, Any]] = {
    "lookup": SVI,
    "lowrank": SVI | {"guide": "lowrank(rank=8)"},
    "flow": SVI | {"guide": "flow"},
    "mixture": SVI | {"guide": "mixture(members=4)"},
    "uha": SVI | {"inference": "uha", "lr": 0.03, "epochs": 400, "posterior_draws": 256},
    "uha, mixture": SVI
    | {"guide": "mixture(members=4)", "inference": "uha", "lr": 0.03, "epochs": 400, "posterior_draws": 256},
    "hmc": SVI | {"inference": "hmc", "epochs": 1000, "warmup_draws": 300, "posterior_draws": 640},
    "nuts": {"inference": "nuts", "warmup_draws": 300, "posterior_draws": 300},
}
NO_NUTS = 100  # entities from which on NUTS takes hours


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["entities"], row["score"], row["way"]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The shares that 90 % intervals hold: exact draws at the smallest graphs, and at 25 entities by way."""
    frame = pd.DataFrame(rows)
    mean = frame.groupby(["entities", "way"])["coverage_90"].mean()
    found = {"coverage_90_nuts": mean.xs("nuts", level="way").mean()}
    if 25 in mean.index.get_level_values("entities"):
        at = mean.loc[25]
        guides = at.drop(["nuts", "hmc"], errors="ignore")
        found["coverage_90_default_25"] = at["lookup"]
        found["coverage_90_best_25"] = at.drop("nuts", errors="ignore").max()
        found["coverage_90_best_guide_25"] = guides.max()
    return {name: round(float(value), 4) for name, value in found.items()}


def table(rows: list[dict[str, Any]]) -> str:
    out = ["| entities | score | by | graphs | 50 % | 80 % | 90 % | 95 % | mean abs. error | seconds a graph |"]
    out.append("|---:|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=key):
        cells = [f"{row[f'coverage_{level}']:.3f}" for level in (50, 80, 90, 95)]
        cells[2] += f" ± {row['error_90']:.3f}"
        ends = f"{row['mae']:.3f} | {row['seconds']:.0f}"
        out.append(
            f"| {row['entities']} | {row['score']} | {row['way']} | {row['graphs']} | {' | '.join(cells)} | {ends} |"
        )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--scores", nargs="+", default=["DistMult", "ComplEx"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--graphs", type=float, default=1.0, help="times as many graphs")
    parser.add_argument("--table", action="store_true", help="print what stands there, and run nothing")
    arguments = parser.parse_args()
    rows = kept.rows_in(RESULTS)
    if arguments.table:
        print(table(rows))
        return
    for entities in arguments.sizes:
        relations, dim, graphs = SIZES[entities]
        for score in arguments.scores:
            for way in arguments.ways:
                if (entities, score, way) in map(key, rows) or (way == "nuts" and entities >= NO_NUTS):
                    continue
                started, number = time.monotonic(), max(2, round(graphs * arguments.graphs))
                options = WAYS[way] | {"score": score, "dim": dim, "device": "cpu"}
                found = kgpyro.simulation_check((entities, relations), graphs=number, **options)
                seconds = (time.monotonic() - started) / number
                row = {"entities": entities, "score": score, "way": way, "graphs": number, "seconds": round(seconds, 1)}
                row |= {f"coverage_{round(100 * level)}": v for level, v in found.coverage["coverage"].items()}
                row |= {"error_90": found.coverage["error"][0.9], "mae": found.error, "ranks": found.ranks.tolist()}
                rows.append(row)
                kept.keep(RESULTS, rows, ratios(rows) if any(row["way"] == "nuts" for row in rows) else {})
                print(f"{entities} entities, {score}, {way}\n{found}\n", flush=True)


if __name__ == "__main__":
    main()
