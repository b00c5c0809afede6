"""Graphs that say how sure they are of each fact: read, kept, fitted as soft labels, and held to predictions."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Parts, pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.isotonic import IsotonicRegression

import kgpyro
from kgpyro.commands import calibrate as calibrate_command
from kgpyro.commands import evaluate as evaluate_command
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Recalibration, quantiles_at, rising_quantiles
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


def test_a_fact_given_twice_has_the_mean_confidence() -> None:
    rows = [["b", "r", "a", "0.2"], ["a", "r", "b", "0.4"], ["b", "r", "a", "0.7"], ["b", "r", "a", "0.9"]]
    graph = Graph.from_triples("twice", rows, [], [])
    assert graph.names(graph.train) == [("b", "r", "a"), ("a", "r", "b")]
    assert graph.confidences["train"].tolist() == pytest.approx([0.6, 0.4])


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
    mean_error = float((found["probability"] - found["confidence"]).abs().mean())
    assert metrics["mae"] == metrics["mae_of_mean"] == pytest.approx(mean_error) and "median" not in found
    again = kgpyro.load(tmp_path / "run")
    assert again.graph.checksum == graph.checksum
    pd.testing.assert_frame_equal(again.confidences(rank=False), posterior.confidences(rank=False))
    calibrate = [str(tmp_path / "run"), "--method", "isotonic", "--negatives"]
    assert calibrate_command([*calibrate, "none"]) == 0  # to the confidences of valid facts alone
    assert "mae_of_mean" in capsys.readouterr().out
    again = kgpyro.load(tmp_path / "run")
    raw, mapped = (one.confidences("valid", rank=False) for one in (posterior, again))
    rising = IsotonicRegression().fit_transform(raw["probability"], raw["confidence"])
    assert mapped["probability"].mean() == pytest.approx(raw["confidence"].mean(), abs=0.01)
    assert np.abs(mapped["probability"] - rising).mean() < 0.03  # between the centres of its steps ours is linear
    off = (mapped[["probability", "median"]].sub(mapped["confidence"], axis=0)).abs()
    metrics = mapped.attrs["metrics"]
    assert (metrics["mse"], metrics["mae_of_mean"]) == pytest.approx(
        ((off["probability"] ** 2).mean(), off["probability"].mean())
    )
    assert metrics["mae"] == pytest.approx(off["median"].mean()) and metrics["mae"] <= metrics["mae_of_mean"]
    inside = (mapped["low"] <= mapped["confidence"]) & (mapped["confidence"] <= mapped["high"])
    assert metrics["coverage"] == inside.mean() >= 0.9  # of the facts that they were fitted to
    assert "of the confidence" in mapped.attrs["intervals"] and "of the probability" in raw.attrs["intervals"]
    assert evaluate_command([str(tmp_path / "run")]) == 0
    assert "predicted confidences" in capsys.readouterr().out
    for ask, why in (
        (lambda: posterior.confidences("dev"), "no confidences of a split 'dev'"),
        (lambda: kgpyro.abstention(posterior), "neither true nor false"),
        (lambda: posterior.calibration("test"), "neither true nor false"),
        (lambda: posterior.decide("test"), "neither true nor false"),
        (lambda: posterior.confidences(frame[["head", "relation", "tail"]]), "no column 'confidence'"),
        (lambda: kgpyro.fit(graph, completeness=0.5, progress=False), "says how sure it is of each fact"),
        (lambda: kgpyro.fit(graph, likelihood="categorical", progress=False), "says how sure it is of each fact"),
    ):
        with pytest.raises(InputError, match=why):
            ask()


def test_a_map_that_has_seen_facts_of_no_confidence() -> None:
    """Facts that no split holds are predicted to have none; a map of listed facts alone knows only what these have."""
    rng = np.random.default_rng(0)
    pairs = [(h, t) for h in range(30) for t in range(30)]
    rows = [
        [f"{h}", "r", f"{t}", rng.uniform(0.3, 0.9)] for h, t in pairs if (h < 15) == (t < 15) and rng.uniform() < 0.6
    ]
    graph = Graph.from_dataframe(pd.DataFrame(rows, columns=["head", "relation", "tail", "confidence"]), holdout=0.2)
    options: dict[str, Any] = {"model": "lim", "dim": 4, "epochs": 80, "batch_size": 32, "kl_weight": 0.1}
    posterior = kgpyro.fit(graph, **options, progress=False, device="cpu")
    labelled = kgpyro.labelled_facts(graph, "test", "random", seed=1)
    n = len(graph.test)
    assert labelled["label"].tolist() == [*graph.confidence("test").tolist(), *[0] * (len(labelled) - n)]
    found = {}
    for negatives in (None, "none"):
        posterior.recalibrate("isotonic", negatives, draws=50)
        assert posterior.recalibration is not None
        assert posterior.recalibration.negatives == (negatives or "random")
        found[negatives] = posterior.confidences(labelled.rename(columns={"label": "confidence"}), 50, rank=False)
    both, listed = found.values()
    assert both.attrs["metrics"]["mse"] < listed.attrs["metrics"]["mse"]
    assert both.attrs["metrics"]["mae"] < listed.attrs["metrics"]["mae"]
    assert both["probability"][n:].mean() < 0.5 * listed["probability"][n:].mean()
    again = Recalibration.of(json.loads(json.dumps(asdict(posterior.recalibration))))
    assert again == posterior.recalibration


# ---- the distribution of confidences --------------------------------------------------------------------------------


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and confidences of which they are the means: most are a little above, a few far below."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(0.1, 0.8, n)
    return predicted, np.where(
        rng.uniform(size=n) < 0.8, 1.2 * predicted, 0.2 * predicted * (1 + rng.uniform(-1, 1, n))
    )


def test_the_median_has_the_least_absolute_error() -> None:
    """On facts that the quantiles were not fitted to: as many below them as they say, and least pinball loss."""
    rows = rising_quantiles(*skewed(20_000, 0), np.ones(20_000))
    predicted, given = skewed(20_000, 1)
    levels = [0.05, 0.1, 0.5, 0.95]
    found = dict(zip(levels, quantiles_at(rows, predicted, levels), strict=True))
    assert np.abs(found[0.5] - given).mean() < 0.85 * np.abs(predicted - given).mean()
    assert ((predicted - given) ** 2).mean() < ((found[0.5] - given) ** 2).mean()
    assert np.abs(found[0.5] - 1.2 * predicted).mean() < 0.01  # the median, as it is


@pytest.mark.parametrize("level", [0.013, 0.05, 0.5, 0.8, 0.95])
def test_quantiles_have_their_share_below(level: float) -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0.05, 0.95, (2, 20_000))
    given = rng.beta(4 * predicted, 4 * (1 - predicted))
    rows = rising_quantiles(predicted[0], given[0], np.ones(20_000))
    (found,) = quantiles_at(rows, predicted[1], [level])
    assert (given[1] < found).mean() == pytest.approx(level, abs=0.01)  # three Monte-Carlo errors
    exact = stats.beta.ppf(level, 4 * predicted[1], 4 * (1 - predicted[1]))
    assert np.abs(found - exact).mean() < 0.03


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 3)), min_size=1, max_size=200))
@settings(max_examples=20)
def test_quantiles_rise_and_do_not_cross(facts: list[tuple[float, float, int]]) -> None:
    predicted, given_, counts = np.array(facts).T
    rows = rising_quantiles(predicted, given_, counts)
    at = np.linspace(0, 1, 50)
    found = np.array(quantiles_at(rows, at, np.linspace(0, 1, 7)))
    assert (np.diff(found, axis=0) >= -1e-6).all() and (np.diff(found, axis=1) >= -1e-6).all()
    assert found.min() >= 0 and found.max() <= 1


def test_a_fact_that_stands_for_many_counts_as_many() -> None:
    rng = np.random.default_rng(0)
    given_, counts = rng.uniform(size=40), rng.integers(1, 5, 40)
    one, other = (
        rising_quantiles(np.full(len(y), 0.5), y, w)
        for y, w in ((given_, counts), (given_.repeat(counts), np.ones(counts.sum())))
    )
    np.testing.assert_allclose(np.array(one)[0], np.array(other)[0], atol=0.05)


def test_ndcg_by_hand() -> None:
    gains = torch.tensor([0.2, 0.9], dtype=torch.double)
    best = 0.9 / math.log2(2) + 0.2 / math.log2(3)
    assert ndcg(gains, torch.tensor([2, 1])) == pytest.approx(1.0)
    assert ndcg(gains, torch.tensor([1, 4])) == pytest.approx((0.2 / math.log2(2) + 0.9 / math.log2(5)) / best)
