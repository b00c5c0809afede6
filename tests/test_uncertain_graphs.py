"""Graphs that say how sure they are of each fact: read, kept, fitted as soft labels, and held to predictions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Parts, pairwise
from sklearn.isotonic import IsotonicRegression

import kgpyro
from kgpyro.commands import calibrate as calibrate_command
from kgpyro.commands import evaluate as evaluate_command
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.evaluation.ranking import ndcg

ROWS = {
    "train": "a r b 0.9|a r c 0.2|b r c 1|c s a 0.5|c s c 0.3",
    "valid": "b s a 0.25",
    "test": "c r b 0.75|a s c 0",
}


def triples(split: str) -> list[list[str]]:
    return [line.split() for line in ROWS[split].split("|")]


@pytest.fixture
def unsure() -> Graph:
    return Graph.from_triples("unsure", *(triples(split) for split in ROWS))


def test_confidences_stay_with_their_triples(unsure: Graph, tmp_path: Path) -> None:
    wanted = {tuple(row[:3]): float(row[3]) for split in ROWS for row in triples(split)}
    for split, text in ROWS.items():
        (tmp_path / f"{split}.txt").write_text(text.replace(" ", "\t").replace("|", "\n") + "\n")
    unsure.to_folder(tmp_path / "again")
    frame = unsure.to_dataframe()
    for graph in (
        unsure,
        kgpyro.load_graph(tmp_path),
        kgpyro.load_graph(tmp_path / "again"),
        Graph.from_dataframe(frame.sample(frac=1, random_state=0)),
    ):
        for split in ROWS:
            found = dict(zip(graph.names(getattr(graph, split)), graph.confidences[split].tolist(), strict=True))
            assert found == {tuple(row[:3]): wanted[tuple(row[:3])] for row in triples(split)}
    held = Graph.from_dataframe(pd.concat([frame.drop(columns="split")] * 1), holdout=0.2)
    for split in ROWS:
        for name, value in zip(held.names(getattr(held, split)), held.confidence(split).tolist(), strict=True):
            assert value == wanted[name]
    assert unsure.checksum != Graph.from_triples("unsure", *([r[:3] for r in triples(s)] for s in ROWS)).checksum


@pytest.mark.parametrize("wrong", ["1.5", "-0.1", "nan", "sure", ""])
def test_what_is_no_confidence(wrong: str) -> None:
    with pytest.raises(InputError, match=r"train, row 2: 4 columns, .* is no confidence from 0 to 1"):
        Graph.from_triples("x", [["a", "r", "b", "0.5"], ["b", "r", "a", wrong]], [], [])


def test_all_rows_have_one_or_none() -> None:
    for rows in ([["a", "r", "b", "0.5"], ["b", "r", "a"]], [["b", "r", "a"], ["a", "r", "b", "0.5"]]):
        with pytest.raises(InputError, match=r"train, row 2: [34] columns"):
            Graph.from_triples("x", rows, [], [])


@pairwise(
    model=["lim", "lfm"], inverse=[True, False], estimator=["plain", "shared", "local"], closed_world=["local", "full"]
)
@pytest.mark.usefixtures("double")
def test_each_cell_has_its_own_label(
    unsure: Graph, model: str, inverse: bool, estimator: str, closed_world: str
) -> None:
    """The log-likelihood is Σ y log p + (1 - y) log(1 - p) over both queries of each cell, by enumeration."""
    parts = Parts(unsure, model, inverse=inverse, closed_world=closed_world, guide="point")
    with torch.no_grad():
        for name, value in parts.guide.named_parameters():
            value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape) * (2 if "relation" in name else 1))
    found = float(parts.terms(estimator=estimator).log_likelihood)
    label = {(h, r, t): y for (h, r, t), y in zip(unsure.train.tolist(), unsure.confidences["train"].tolist())}  # type: ignore[misc] # noqa: B905
    e, w = (parts.guide.posterior(kind, ...).mean.detach() for kind in ("entity", "relation"))
    b = parts.guide.field("intercept")().mean.detach()
    total, R = 0.0, unsure.num_relations
    for r in range(R):
        for anchor in range(3):
            for heads in (False, True):
                cells = [(t, r, anchor) if heads else (anchor, r, t) for t in range(3)]
                if closed_world == "local" and not any(cell in label for cell in cells):
                    continue
                row = r + R if heads and inverse else r
                for candidate, cell in enumerate(cells):
                    p = float(((e[anchor] * w[row] * e[candidate]).sum() + b[r]).sigmoid())
                    y = label.get(cell, 0.0)
                    total += (y * math.log(p) + (1 - y) * math.log(1 - p)) / 2
    assert found == pytest.approx(total, abs=1e-5)


def test_a_fit_predicts_confidences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Soft labels from a bilinear truth: better than a constant, saved and loaded, and reported."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20, 3)), rng.normal(size=(2, 3))
    rows = [
        [f"e{h}", f"r{r}", f"e{t}", 1 / (1 + math.exp(-2 * (x[h] * w[r] * x[t]).sum()))]
        for h in range(20)
        for r in range(2)
        for t in range(20)
    ]
    frame = pd.DataFrame(rows, columns=["head", "relation", "tail", "confidence"])
    graph = Graph.from_dataframe(frame, holdout=0.1, seed=1)
    options: dict[str, Any] = {"model": "lim", "score": "DistMult", "dim": 4, "epochs": 150}
    options |= {"negatives": 1, "negative_weight": 0.01}  # what is not listed is not known
    posterior = kgpyro.fit(graph, **options, progress=False, device="cpu", out=tmp_path / "run")
    found = posterior.confidences()
    metrics = found.attrs["metrics"]
    constant = float(((found["confidence"] - found["confidence"].mean()) ** 2).mean())
    assert metrics["mse"] < 0.6 * constant and 0 < metrics["coverage"] <= 1 and 0.5 < metrics["ndcg"] <= 1
    assert metrics["mae"] == pytest.approx(float((found["probability"] - found["confidence"]).abs().mean()))
    again = kgpyro.load(tmp_path / "run")
    assert again.graph.checksum == graph.checksum
    pd.testing.assert_frame_equal(again.confidences(rank=False), posterior.confidences(rank=False))
    assert calibrate_command([str(tmp_path / "run"), "--method", "isotonic"]) == 0  # to the confidences of valid facts
    assert "isotonic" in capsys.readouterr().out
    again = kgpyro.load(tmp_path / "run")
    raw, mapped = (one.confidences("valid", rank=False) for one in (posterior, again))
    rising = IsotonicRegression().fit_transform(raw["probability"], raw["confidence"])
    assert mapped["probability"].mean() == pytest.approx(raw["confidence"].mean(), abs=0.01)
    assert np.abs(mapped["probability"] - rising).mean() < 0.03  # between the centres of its steps ours is linear
    assert evaluate_command([str(tmp_path / "run")]) == 0
    assert "predicted confidences" in capsys.readouterr().out
    for ask, why in (
        (lambda: posterior.confidences("dev"), "no confidences of a split 'dev'"),
        (lambda: posterior.recalibrate(negatives="open"), "leave out `negatives`"),
        (lambda: posterior.calibration("test"), "neither true nor false"),
        (lambda: posterior.decide("test"), "neither true nor false"),
        (lambda: posterior.confidences(frame[["head", "relation", "tail"]]), "no column 'confidence'"),
        (lambda: kgpyro.fit(graph, completeness=0.5, progress=False), "says how sure it is of each fact"),
        (lambda: kgpyro.fit(graph, likelihood="categorical", progress=False), "says how sure it is of each fact"),
    ):
        with pytest.raises(InputError, match=why):
            ask()


def test_ndcg_by_hand() -> None:
    gains = torch.tensor([0.2, 0.9], dtype=torch.double)
    best = 0.9 / math.log2(2) + 0.2 / math.log2(3)
    assert ndcg(gains, torch.tensor([2, 1])) == pytest.approx(1.0)
    assert ndcg(gains, torch.tensor([1, 4])) == pytest.approx((0.2 / math.log2(2) + 0.9 / math.log2(5)) / best)
