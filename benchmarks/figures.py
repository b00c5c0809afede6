"""Draw every figure of the README and the pages, from committed results or from fits of seconds.

python benchmarks/figures.py                  # all of them
python benchmarks/figures.py speed variance   # only these

Each file carries a checksum of what it was drawn from: this code, and the results, configurations and functions that
FIGURES names. tests/test_site.py tells which have to be drawn anew. `plates` needs Graphviz's `dot`; `explorer` is a
photograph of the notebook in a browser, and needs Chromium and the extra kgpyro[browser].
"""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kgpyro
from kgpyro.checking.abstention import Abstention
from kgpyro.checking.posterior_predictive import PosteriorPredictive
from kgpyro.checking.prior_predictive import PriorPredictive
from kgpyro.display import as_html
from kgpyro.evaluation.calibration import Calibration

ROOT = Path(__file__).resolve().parent.parent
BROWSER, NOTEBOOK = ROOT / "tests" / "browser.py", ROOT / "notebooks" / "02-priors.ipynb"
EXPLORER = ROOT / "kgpyro" / "reporting" / "explorer.py"
RESULTS, CONFIGS = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "configs"
RED, BLUE, GREEN, ORANGE, GREY = "tab:red", "tab:blue", "tab:green", "tab:orange", "#8c8c8c"
BARS = {  # of speed.json, as they are called in docs/speed.md
    "products_fp32": "bare products, float32",
    "products_bf16": "bare products, bfloat16",
    "plain_torch_point": "PyTorch, point estimate",
    "plain_torch_lim_shared": "PyTorch, LIM, one draw",
    "plain_torch_lim_local": "PyTorch, LIM, local noise",
    "naive_pyro": "Pyro (AutoNormal), LIM",
    "pykeen_lcwa": "PyKEEN, point estimate",
    "kgpyro_kernel_fp32": "kgpyro, kernel alone",
    "kgpyro_lim_shared_fp32": "kgpyro, LIM, one draw",
    "kgpyro_lim_shared_bf16": "the same, bfloat16",
    "kgpyro_lim_local_fp32": "kgpyro, LIM, local noise",
    "kgpyro_lim_local_bf16": "the same, bfloat16",
}


def plain(*panels: Any) -> None:
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


@cache
def fitted(config: str) -> kgpyro.Posterior:
    options = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    return kgpyro.fit(options.pop("dataset"), **options, device="cpu")


def speed() -> Figure:
    """Milliseconds a step, ours beside the peers'."""
    found = {row["name"]: 1e3 * row["seconds"] for row in results("speed")["rows"]}
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axis = figure.subplots()
    colours = [RED if name.startswith("kgpyro") else GREY for name in BARS]
    bars = axis.barh(range(len(BARS)), [found[name] for name in BARS], color=colours)
    axis.set_yticks(range(len(BARS)), BARS.values())
    axis.bar_label(bars, fmt="%.0f", padding=3)
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds a step, median", title="FB15k-237, ComplEx 100, 512 queries a step")
    axis.margins(x=0.1)
    plain(axis)
    return figure


def scale() -> Figure:
    """Time per observed fact and memory, against the number of entities."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for regime, colour, name in (("sampled", RED, "32 sampled candidates"), ("all", BLUE, "all candidates")):
        rows = [row for row in results("scale")["rows"] if row["name"].startswith(regime)]
        rows = [row for row in rows if not row["name"].endswith("10,000,000 triples")]
        entities = [int(row["name"].split(", ")[1].split(" ")[0].replace(",", "")) for row in rows]
        left.loglog(entities, [1e6 * row["seconds_per_fact"] for row in rows], "o-", color=colour, label=name)
        right.loglog(entities, [row["peak_mb"] for row in rows], "o-", color=colour, label="peak")
        right.loglog(entities, [row["state_mb"] for row in rows], ":", color=colour, label="parameters, optimiser")
    left.set(xlabel="entities", ylabel="µs per observed fact")
    right.set(xlabel="entities", ylabel="MB")
    left.set_yticks([30, 50, 100, 200, 500], ["30", "50", "100", "200", "500"])
    left.yaxis.set_minor_formatter("")
    left.legend(frameon=False)
    right.legend(*[part[:2] for part in right.get_legend_handles_labels()], frameon=False)
    plain(left, right)
    return figure


def soak() -> Figure:
    """Pace and memory over 100,000 steps, medians of each tenth."""
    found = results("soak")
    frame = pd.DataFrame(found["rows"])
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column, label in zip(panels, ("ms_per_step", "mb"), ("ms a step", "resident MB"), strict=True):
        panel.plot(frame["tenth"] * found["steps"] / 10, frame[column], "o-", color=BLUE)
        panel.set(xlabel="step", ylabel=label, ylim=(0, 1.2 * frame[column].max()))
    plain(*panels)
    return figure


def acquisition() -> Figure:
    """Test MRR and true facts found, against labels revealed: means over seeds, and their range."""
    frame = pd.DataFrame(results("acquisition")["rows"])
    graphs = list(frame["graph"].unique())
    figure = Figure(figsize=(4 * len(graphs), 6), layout="constrained")
    axes = figure.subplots(2, len(graphs), squeeze=False)
    colours = {"random": GREY, "probability": BLUE, "entropy": GREEN, "epistemic": RED}
    for column, graph in zip(axes.T, graphs, strict=True):
        for axis, measure, label in zip(column, ("mrr", "true_found"), ("test MRR", "true facts found"), strict=True):
            for strategy, colour in colours.items():
                rows = frame[(frame["graph"] == graph) & (frame["strategy"] == strategy)]
                by_round = rows.groupby("revealed")[measure].agg(["mean", "min", "max"])
                style = "--" if strategy == "entropy" else "-"  # over the line of the probability, where the two agree
                axis.plot(by_round["mean"], style, marker=".", color=colour, label=strategy)
                axis.fill_between(by_round.index, by_round["min"], by_round["max"], color=colour, alpha=0.12, lw=0)
            axis.set(xlabel="labels revealed", ylabel=label)
            plain(axis)
        column[0].set_title(graph)
    axes[0, 0].legend(frameon=False)
    return figure


def answers() -> Figure:
    """The README's query: the most probable answers, as intervals."""
    posterior = kgpyro.fit("umls", model="lim", dim=40, epochs=30, progress=False)
    rows = posterior.predict(head="virus", relation="causes", top=14)
    kinds = {"train": (GREY, "in training"), "test": (ORANGE, "held out, and true"), "": (BLUE, "not in the graph")}
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    for split, (colour, label) in kinds.items():
        found = rows[rows["known"].replace("valid", "test") == split]
        axis.scatter(found["probability"], found.index, color=colour, zorder=3, label=label)
        axis.hlines(found.index, found["low"], found["high"], color=colour, linewidth=4, alpha=0.4)
    axis.set_yticks(rows.index, rows["tail"].str.replace("_", " "))
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="probability, and 90 % of its posterior", title="(virus, causes, ?)")
    axis.legend(frameon=False, loc="lower right")
    plain(axis)
    return figure


def priors() -> Figure:
    return kgpyro.prior_predictive("umls", "normal", "ComplEx").figure()


def variance() -> Figure:
    return kgpyro.variance_figure(fitted("lim-umls"))


def fact() -> Figure:
    posterior = fitted("lim-umls")
    return kgpyro.fact_figure(posterior, *posterior.graph.names(posterior.graph.test[:1])[0])


def calibration() -> Figure:
    posterior = fitted("lim-kinship-incomplete")
    posterior.recalibrate("none")
    before = posterior.calibration(negatives="hard")
    posterior.recalibrate("isotonic", negatives="hard")
    return before.figure(isotonic=posterior.calibration(negatives="hard"))


def abstention() -> Figure:
    return kgpyro.abstention(fitted("lim-kinship-incomplete"), negatives="hard").figure()


def replicates() -> Figure:
    return kgpyro.posterior_predictive(fitted("lim-kinship-incomplete")).figure()


def explorer() -> Path:
    """Notebook 02 in JupyterLab, photographed by the test that clicks through it (`make test-browser`)."""
    subprocess.run([sys.executable, "-m", "pytest", "-q", str(BROWSER)], check=True)
    return ROOT / "artefacts" / "fitted.png"


def plates(model: str) -> str:
    """A model's plates as Pyro draws them, in Graphviz's language."""
    triples = [("a", "r", "b"), ("b", "r", "c"), ("c", "r", "a")]
    graph = kgpyro.Graph.from_triples("tiny", triples, [], [])
    program = kgpyro.fit(graph, model=model, dim=2, epochs=1, progress=False, device="cpu").program
    drawn = pyro.render_model(program.model, model_args=(program.kg, program.batches(torch.arange(2))))
    return drawn.source.replace("digraph {", 'digraph {\n\tbgcolor=white fontname="sans"\n\tnode [fontname="sans"]', 1)


def draw_plates(model: str) -> None:
    from graphviz import Source

    source = plates(model)
    picture = Source(source).pipe(format="svg", encoding="utf-8")
    (ROOT / "docs" / f"{model}.svg").write_text(picture.replace("</svg>", f"<!--\n{source}-->\n</svg>"))


def ran(notebook: Path) -> str:
    """The checksum of a notebook's cells (docs/notebooks.py)."""
    return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["ran"]


# by file: what draws it, and from what; drawn anew when any of these changes
FIGURES: dict[str, tuple[Callable[[], Figure | Path], tuple[Any, ...]]] = {
    "speed": (speed, (BARS, RESULTS / "speed.json")),
    "scale": (scale, (RESULTS / "scale.json",)),
    "soak": (soak, (RESULTS / "soak.json",)),
    "acquisition": (acquisition, (RESULTS / "acquisition.json",)),
    "answers": (answers, ()),
    "prior_predictive": (priors, (PriorPredictive.figure,)),
    "variance": (variance, (kgpyro.variance_figure, CONFIGS / "lim-umls.yaml")),
    "fact": (fact, (kgpyro.fact_figure, CONFIGS / "lim-umls.yaml")),
    "calibration": (calibration, (Calibration.figure, CONFIGS / "lim-kinship-incomplete.yaml")),
    "abstention": (abstention, (Abstention.figure, CONFIGS / "lim-kinship-incomplete.yaml")),
    "replicates": (replicates, (PosteriorPredictive.figure, CONFIGS / "lim-kinship-incomplete.yaml")),
    "explorer": (explorer, (EXPLORER, BROWSER, PriorPredictive.figure, as_html, ran(NOTEBOOK))),
}


def checksum(name: str) -> str:
    """Of all that a figure is drawn from."""
    found = hashlib.sha256()
    for source in (FIGURES[name][0], *FIGURES[name][1]):
        text = source.read_text() if isinstance(source, Path) else source
        found.update((inspect.getsource(text) if callable(text) else str(text)).encode())
    return found.hexdigest()


def draw(name: str) -> None:
    drawn, path, source = FIGURES[name][0](), RESULTS / f"{name}.png", {"Source": checksum(name)}
    if isinstance(drawn, Figure):
        return drawn.savefig(path, dpi=110, metadata=source)
    (written := PngInfo()).add_text(*source.popitem())
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, pnginfo=written, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*FIGURES, "plates"]:
        if name == "plates":
            for model in ("lim", "lfm"):
                draw_plates(model)
        else:
            draw(name)
