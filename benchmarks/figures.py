"""Draw the committed results of speed.py, scale.py and acquisition.py, and figures of fits to umls and kinship.

python benchmarks/figures.py              # writes all of benchmarks/results/*.png that is drawn here
python benchmarks/figures.py paper        # only variance.png and fact.png, after a fit of a minute
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import yaml

import kgpyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

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


def acquisition() -> None:
    """Test MRR and true facts found, against labels revealed: means over seeds, and their range."""
    frame = pd.DataFrame(json.loads((RESULTS / "acquisition.json").read_text())["rows"])
    graphs = list(frame["graph"].unique())
    figure, axes = plt.subplots(2, len(graphs), figsize=(4 * len(graphs), 6), layout="constrained", squeeze=False)
    colours = {"random": "#8c8c8c", "probability": "#4c72b0", "entropy": "#55a868", "epistemic": "#c44e52"}
    dashes = {"entropy": "--"}  # over the line of the probability, where the two agree
    for column, graph in zip(axes.T, graphs, strict=True):
        for axis, measure, label in zip(column, ("mrr", "true_found"), ("test MRR", "true facts found"), strict=True):
            for strategy, colour in colours.items():
                rows = frame[(frame["graph"] == graph) & (frame["strategy"] == strategy)]
                by_round = rows.groupby("revealed")[measure].agg(["mean", "min", "max"])
                axis.plot(by_round["mean"], dashes.get(strategy, "-"), marker=".", color=colour, label=strategy)
                axis.fill_between(
                    by_round.index, by_round["min"], by_round["max"], color=colour, alpha=0.15, linewidth=0
                )
            axis.set(xlabel="labels revealed", ylabel=label)
            axis.spines[["top", "right"]].set_visible(False)
        column[0].set_title(graph)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "acquisition.png", dpi=120)


def paper() -> None:
    """Variance against frequency, and one test fact, of the LIM on umls."""
    options = yaml.safe_load((RESULTS.parent / "configs" / "lim-umls.yaml").read_text())
    posterior = kgpyro.fit(options.pop("dataset"), **options, device="cpu")
    kgpyro.variance_figure(posterior).savefig(RESULTS / "variance.png", dpi=120)
    fact = [names[i] for names, i in zip(_tables(posterior.graph), posterior.graph.test[0].tolist(), strict=True)]
    kgpyro.fact_figure(posterior, *fact).savefig(RESULTS / "fact.png", dpi=120)


def uncertainty() -> None:
    """Calibration, abstention and replicated graphs of the LIM on kinship."""
    options = yaml.safe_load((RESULTS.parent / "configs" / "lim-kinship-incomplete.yaml").read_text())
    posterior = kgpyro.fit(options.pop("dataset"), **options, device="cpu")
    before = posterior.calibration(negatives="hard")
    posterior.recalibrate("isotonic", negatives="hard")
    before.figure(isotonic=posterior.calibration(negatives="hard")).savefig(RESULTS / "calibration.png", dpi=120)
    kgpyro.abstention(posterior, negatives="hard").figure().savefig(RESULTS / "abstention.png", dpi=120)
    kgpyro.posterior_predictive(posterior).figure().savefig(RESULTS / "replicates.png", dpi=100)


def _tables(graph: kgpyro.Graph) -> tuple[tuple[str, ...], ...]:
    return graph.entities, graph.relations, graph.entities


if __name__ == "__main__":
    drawn = {"speed": speed, "scale": scale, "acquisition": acquisition, "paper": paper}
    drawn["uncertainty"] = uncertainty
    for name in sys.argv[1:] or drawn:
        drawn[name]()
