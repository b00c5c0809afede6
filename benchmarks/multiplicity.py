"""Distributions over candidates: calibrated or not; and on how many queries equally good fits disagree.

    KGPYRO_DATA=FOLDER python benchmarks/multiplicity.py  # what results/multiplicity.json has is not run again
    KGPYRO_DATA=FOLDER python benchmarks/multiplicity.py --graphs nations --fits LIM
    python benchmarks/multiplicity.py --table

Five seeds of each fit; and the draws of the first posterior, and the members of the first mixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from kept import keep, parser, rows_in

import kgpyro
from kgpyro.posterior.building import build_guide, sites_of

RESULTS = Path(__file__).resolve().parent / "results" / "multiplicity.json"
SMALL: dict[str, Any] = {"dim": 100, "epochs": 60, "kl_weight": 0.5, "closed_world": "local"}
CODEX = SMALL | {"dim": 200, "epochs": 60, "estimator": "shared", "precision": "bf16"}
GRAPHS = {"nations": SMALL, "kinship": SMALL, "umls": SMALL, "codex-s": CODEX}
CATEGORICAL = {"likelihood": "categorical", "kl_weight": 0.1, "prior": "normal(scale=0.3)", "closed_world": None}
FITS: dict[str, dict[str, Any]] = {
    "LIM": {"prior": "normal(scale=0.5)"},
    "LIM, categorical": CATEGORICAL | {"optimizer": "adam", "lr": 0.01, "lr_schedule": "linear"},
    "mixture of 4": {"prior": "normal(scale=0.5)", "guide": "mixture(members=4)"},
    "point estimate": {"guide": "point", "kl_weight": 0.0, "early_stopping": 10},
}
SEEDS = 5


def members(posterior: kgpyro.Posterior) -> list[kgpyro.Posterior]:
    """Each member of a mixture as a posterior of its own."""
    found = []
    for number in range(posterior.guide.members):
        guide: Any = build_guide("lookup", posterior.kg, sites_of(posterior.program))
        guide.entity, guide.relation = posterior.guide.entity[number], posterior.guide.relation[number]
        guide.fields = posterior.guide.fields
        config = posterior.config | {"guide": "lookup"}
        found.append(kgpyro.Posterior(posterior.graph, posterior.program, guide, config))
    return found


def measured(graph: str, how: str) -> list[dict[str, Any]]:
    options = {"model": "lim", "progress": False} | GRAPHS[graph] | FITS[how]
    fits = [kgpyro.fit(graph, **options, seed=seed) for seed in range(SEEDS)]
    said = pd.DataFrame([one.evaluate(distribution=True).loc[("filtered", "both")] for one in fits])
    row = {"graph": graph, "fit": how} | said.mean().to_dict() | {f"{c}_std": said[c].std() for c in ("ece", "nll")}
    row["raw_ece"] = fits[0].evaluate(distribution=True).loc[("raw", "both"), "ece"]
    sets: dict[str, Any] = {"seeds": fits}
    if how != "point estimate":
        sets["draws"] = fits[0]
    if fits[0].guide.members > 1:
        sets["members"] = members(fits[0])
    rows = []
    for models, given in sets.items():
        table = kgpyro.multiplicity(given, draws=SEEDS)
        each = {f"{name}@{k}": float(table.loc[k, name]) for name in table.columns for k in table.index}
        rows.append(row | {"models": models} | each)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Two tables: of distributions, and of multiplicity."""
    frame = pd.DataFrame(rows)
    out = ["| graph | fit | MRR | Hits@1 | NLL | ECE | ACE | ECE, raw |", "|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in frame[frame["models"] == "seeds"].to_dict("records"):
        cells = [f"{row['mrr']:.3f}", f"{row['hits@1']:.3f}", f"{row['nll']:.2f} ± {row['nll_std']:.2f}"]
        cells += [f"{row['ece']:.3f} ± {row['ece_std']:.3f}", f"{row['ace']:.3f}", f"{row['raw_ece']:.3f}"]
        out.append(f"| {row['graph']} | {row['fit']} | {' | '.join(cells)} |")
    sides = [f"{name}, k = {k}" for k in (1, 10) for name in ("competitors", "ambiguity", "discrepancy")]
    out += ["", f"| graph | fit | models | {' | '.join(sides)} |", f"|---|---|---|{'---:|' * 6}"]
    for row in frame.to_dict("records"):
        cells = []
        for k in (1, 10):
            cells.append(f"{row[f'competitors@{k}']:.0f} of {3 if row['models'] == 'members' else SEEDS - 1}")
            for name in ("ambiguity", "discrepancy"):
                value = row[f"{name}@{k}"]
                cells.append("–" if pd.isna(value) else f"{100 * value:.1f} %")
        out.append(f"| {row['graph']} | {row['fit']} | {row['models']} | {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    options = parser(__doc__, GRAPHS)
    options.add_argument("--fits", nargs="+", default=list(FITS), choices=list(FITS))
    arguments = options.parse_args()
    rows = rows_in(RESULTS)
    done = {(row["graph"], row["fit"]) for row in rows}
    asked = [(graph, how) for graph in arguments.graphs for how in arguments.fits if (graph, how) not in done]
    for graph, how in [] if arguments.table else asked:
        rows += measured(graph, how)
        keep(RESULTS, rows)
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
