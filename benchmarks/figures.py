"""Draw the committed results of speed.py and scale.py.

python benchmarks/figures.py    # writes benchmarks/results/speed.png and scale.png
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"


def speed() -> None:
    """Seconds per step, ours beside the peers'."""
    result = json.loads((RESULTS / "speed.json").read_text())
    rows = [r for r in result["rows"] if not r["name"].endswith("evaluation") and not r["name"].startswith("nations")]
    colours = ["#c44e52" if r["name"].startswith("kgpyro") else "#8c8c8c" for r in rows]
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    axis.barh([r["name"].replace("_", " ") for r in rows], [1e3 * r["seconds"] for r in rows], color=colours)
    axis.invert_yaxis()
    axis.set(xlabel="ms per step, median", title="FB15k-237, ComplEx 100, 512 queries a step")
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result["machine"], x=0.99, ha="right", fontsize=7, color="grey")
    figure.savefig(RESULTS / "speed.png", dpi=120)


def scale() -> None:
    """Time per observed fact and memory, against the number of entities."""
    result = json.loads((RESULTS / "scale.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for regime, colour in (("sampled", "#c44e52"), ("all", "#4c72b0")):
        rows = [
            r for r in result["rows"] if r["name"].startswith(regime) and not r["name"].endswith("10,000,000 triples")
        ]
        entities = [int(r["name"].split(", ")[1].split(" ")[0].replace(",", "")) for r in rows]
        left.loglog(entities, [1e6 * r["seconds_per_fact"] for r in rows], "o-", color=colour, label=regime)
        right.loglog(entities, [r["peak_mb"] for r in rows], "o-", color=colour, label=f"{regime}, peak")
        right.loglog(entities, [r["state_mb"] for r in rows], ":", color=colour, label=f"{regime}, state")
    left.set(xlabel="entities", ylabel="µs per observed fact")
    right.set(xlabel="entities", ylabel="MB")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result["machine"], x=0.99, ha="right", fontsize=7, color="grey")
    figure.savefig(RESULTS / "scale.png", dpi=120)


if __name__ == "__main__":
    speed()
    scale()
