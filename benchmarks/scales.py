"""Scales of priors: fixed, learned by gradients, and learned by EM; and the point estimates at them.

    KGPYRO_DATA=FOLDER python benchmarks/scales.py             # what results/scales.json has is not run again
    KGPYRO_DATA=FOLDER python benchmarks/scales.py --graphs codex-s --seeds 0
    python benchmarks/scales.py --table

A LIM with a normal and with an N3 prior. Of the fixed scales the table has the one that validates best.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from kept import keep, parser, rows_in

import kgpyro

RESULTS = Path(__file__).resolve().parent / "results" / "scales.json"
SMALL: dict[str, Any] = {"dim": 100, "epochs": 60, "kl_weight": 0.5, "closed_world": "local"}
CODEX = SMALL | {"dim": 200, "epochs": 100, "estimator": "shared", "precision": "bf16"}
GRAPHS = {"kinship": SMALL, "umls": SMALL, "codex-s": CODEX}
PRIORS = {"normal": ("scale", (0.3, 0.5, 1.0)), "complex_n3": ("strength", (1.0, 5.0, 25.0))}
GRAIN = {"learn": "one", "learn_per_symbol": "per symbol"}


def rows_of() -> dict[tuple[str, str], dict[str, Any]]:
    """The options of each row, by prior and how its scale is found."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for prior, (name, values) in PRIORS.items():
        found |= {(prior, f"fixed, {value:g}"): {"prior": f"{prior}({name}={value})"} for value in values}
        for learn, grain in GRAIN.items():
            for how in ("gradients", "em"):
                found[prior, f"{how}, {grain}"] = {"prior": f"{prior}({name}={learn})", "learn_by": how}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds; of each prior's fixed scales that of the best validation MRR."""
    frame = pd.DataFrame(rows)
    keys = ["graph", "prior", "how", "finish"]
    frame["best"] = frame.groupby(keys)["valid_mrr"].transform("mean")
    frame["kind"] = frame["how"].str.split(",").str[0].where(frame["how"].str.startswith("fixed"), frame["how"])
    best = frame.groupby(["graph", "prior", "kind", "finish"])["best"].transform("max")
    frame = frame[frame["best"] == best]
    out = ["| graph | prior | scale | seeds | posterior: valid MRR | test MRR | point estimate: valid MRR | test MRR |"]
    out.append("|---|---|---|---:|---:|---:|---:|---:|")
    for (graph, prior, kind), part in frame.groupby(["graph", "prior", "kind"], sort=False):
        cells = []
        for finish in ("", "map"):
            one = part[part["finish"] == finish]
            for column in ("valid_mrr", "test_mrr"):
                spread = f" ± {one[column].std():.3f}" if len(one) > 1 else ""
                cells.append(f"{one[column].mean():.3f}{spread}" if len(one) else "–")
        if kind == "fixed":  # at the value that validates best, of the posterior and of the point estimate
            values = [part["how"][part["finish"] == finish].iloc[0].split(", ")[1] for finish in ("", "map")]
            kind = f"fixed, {' and '.join(values)}"
        out.append(f"| {graph} | {prior} | {kind} | {part['seed'].nunique()} | {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    options = parser(__doc__, GRAPHS)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = options.parse_args()
    rows = rows_in(RESULTS)
    done = {tuple(row[key] for key in ("graph", "prior", "how", "finish", "seed")) for row in rows}
    asked = [(seed, graph) for seed in arguments.seeds for graph in arguments.graphs]
    for seed, graph in () if arguments.table else asked:
        for (prior, how), chosen in rows_of().items():
            for finish in ("", "map"):
                row = {"graph": graph, "prior": prior, "how": how, "finish": finish, "seed": seed}
                if tuple(row.values()) in done:
                    continue
                more = {"seed": seed, "finish": finish or None, "progress": False}
                posterior = kgpyro.fit(graph, model="lim", **GRAPHS[graph] | chosen | more)
                row |= {f"{s}_mrr": posterior.metrics[s]["realistic"]["mrr"] for s in ("valid", "test")}
                rows.append(row | {"seconds": posterior.seconds})
                keep(RESULTS, rows)
                print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
