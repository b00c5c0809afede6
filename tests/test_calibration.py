"""Labelled facts, how well probabilities agree with labels, maps that mend them, and what to abstain from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import kgpyro
from kgpyro.checking.abstention import CRITERIA, abstention, risk_coverage
from kgpyro.commands import calibrate_command, predict_command
from kgpyro.data.graph import Graph
from kgpyro.data.labelled import corruptions, labelled_facts
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import METHODS, Calibration, Recalibration, logit


@pytest.fixture(scope="module")
def posterior() -> kgpyro.Posterior:
    return kgpyro.fit("nations", model="lim", epochs=8, dim=8, progress=False, device="cpu")


def everything(graph: Graph) -> set[tuple[int, ...]]:
    return {tuple(t) for split in (graph.train, graph.valid, graph.test) for t in split.tolist()}


@pytest.mark.parametrize("hard", [False, True])
def test_corruptions_are_false_and_hard_ones_fit_the_relation(hard: bool) -> None:
    graph = kgpyro.load_graph("kinships")
    false = corruptions(graph, graph.test, hard, seed=0)
    assert len(false) == len(graph.test)
    assert not everything(graph) & {tuple(t) for t in false.tolist()}
    moved = false != graph.test
    assert bool((moved.sum(1) == 1).all()) and not moved[:, 1].any()
    assert 0.4 < float(moved[:, 0].double().mean()) < 0.6
    slots = {(end, r, e) for h, r, t in graph.train.tolist() for end, e in ((0, h), (2, t))}
    fits = [
        (0 if moved[i, 0] else 2, r, h if moved[i, 0] else t) in slots for i, (h, r, t) in enumerate(false.tolist())
    ]
    assert all(fits) if hard else not all(fits)


def test_a_triple_without_false_neighbours_has_no_corruption(tiny: Graph) -> None:
    entities, r = range(tiny.num_entities), 0
    full = torch.tensor([[h, r, t] for h in entities for t in entities])
    graph = Graph("full", tiny.entities, tiny.relations, full, full[:2], full[:2])
    assert not len(corruptions(graph, graph.test, hard=False, seed=0))


def write_graph(folder: Path) -> Path:
    rows = {"train": "a likes b\nb likes c\nc likes a", "valid": "a likes c\nb likes a", "test": "c likes b"}
    rows |= {"test_negatives": "a likes a", "valid_negatives": "b likes b\nc likes c"}
    for name, text in rows.items():
        (folder / f"{name}.txt").write_text(text.replace(" ", "\t"))
    return folder


def test_verified_negatives_come_with_the_graph_and_the_run(tmp_path: Path) -> None:
    graph = kgpyro.load_graph(write_graph(tmp_path))
    facts = labelled_facts(graph)
    assert facts.attrs["negatives"] == "verified"
    assert facts.to_numpy().tolist() == [["c", "likes", "b", 1], ["a", "likes", "a", 0]]
    posterior = kgpyro.fit(graph, model="lim", epochs=1, dim=2, progress=False, device="cpu", out=tmp_path / "run")
    again = kgpyro.load(tmp_path / "run").graph
    assert {k: v.tolist() for k, v in again.negatives.items()} == {"valid": [[1, 0, 1], [2, 0, 2]], "test": [[0, 0, 0]]}
    assert posterior.calibration().negatives == "verified"


def test_negatives_of_unknown_entities_are_refused(tmp_path: Path) -> None:
    (write_graph(tmp_path) / "test_negatives.txt").write_text("a\tlikes\tzebra\n")
    with pytest.raises(InputError, match="no entity 'zebra'"):
        kgpyro.load_graph(tmp_path)


def test_what_cannot_be_labelled() -> None:
    graph = kgpyro.load_graph("nations")
    assert labelled_facts(graph).attrs["negatives"] == "random"
    for split, negatives, words in (
        ("train", None, "valid or test"), ("test", "easy", "choose from verified, hard, random"),
        ("test", "verified", "has no test_negatives.txt"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            labelled_facts(graph, split, negatives)


def test_calibration_error_by_hand() -> None:
    found = Calibration(np.array([0.1, 0.15, 0.9, 0.95, 1.0]), np.array([0, 1, 1, 1, 1]))
    table = found.reliability()
    assert table.facts.tolist() == [2, 3]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.125) + 3 * abs(1 - 0.95)) / 5)
    m = found.metrics
    assert m["brier"] == pytest.approx((0.01 + 0.85**2 + 0.01 + 0.05**2) / 5)
    assert m["log_score"] == pytest.approx((np.log(0.9) + np.log(0.15) + np.log(0.9) + np.log(0.95)) / 5, abs=1e-6)
    assert m["auroc"] == 1.0
    with pytest.raises(InputError, match="all the same"):
        Calibration(np.ones(3), np.ones(3))


def made(n: int = 20_000) -> tuple[pd.DataFrame, np.ndarray]:
    """Facts whose log-odds are half of, and one more than, what is predicted; and whose doubt tells nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, n)
    facts = pd.DataFrame({"probability": 1 / (1 + np.exp(-x)), "score": x + rng.normal(0, 1, n)})
    facts["low"], facts["high"] = (1 / (1 + np.exp(-(x + d))) for d in (-0.5, 0.5))
    for name in ("std", "epistemic", "aleatoric"):
        facts[name] = rng.uniform(0, 1, n)
    facts["frequency"] = rng.integers(0, 9, n)
    return facts, (rng.uniform(size=n) < 1 / (1 + np.exp(-(0.5 * x + 1)))).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_mends_what_it_can(method: str) -> None:
    facts, labels = made()
    fitted = Recalibration.fit(facts, labels, method)
    found = fitted(facts)
    before, after = Calibration(facts["probability"].to_numpy(), labels), Calibration(found["probability"], labels)
    assert before.ece > 0.15
    assert after.ece < (before.ece if method == "temperature" else 0.02)
    assert (found["low"] <= found["probability"]).all() and (found["probability"] <= found["high"]).all()
    assert (found["low"] < found["high"]).mean() > 0.9
    truth = 0.5 * logit(facts["probability"]) + 1
    if method in ("platt", "stacked"):
        assert fitted.intercept == pytest.approx(1, abs=0.15)
        assert fitted.weights["probability"] == pytest.approx(0.5, abs=0.05)
        assert np.abs(logit(found["probability"]) - truth).max() < 0.4
    if method == "platt":
        np.testing.assert_allclose(
            logit(found["low"]), logit(found["probability"]) - 0.5 * fitted.weights["probability"]
        )
    again = Recalibration.of(json.loads(json.dumps({**vars(fitted), "steps": fitted.steps})))
    assert again == fitted


def test_a_damaged_recalibration_is_refused() -> None:
    good = {"method": "platt", "weights": {"probability": 1.0}, "intercept": 0.0, "steps": []}
    assert Recalibration.of(good)
    for wrong in (
        {"method": "magic"},
        {"weights": {"score": 1.0}},
        {"intercept": float("nan")},
        {"steps": [[1, 0], [0, 1]]},
    ):
        with pytest.raises(InputError, match="no recalibration"):
            Recalibration.of({**good, **wrong})
    with pytest.raises(InputError, match="choose from temperature"):
        Recalibration.fit(*made(100), method="magic")


def test_predictions_go_through_the_map_and_it_is_stored(posterior: kgpyro.Posterior, tmp_path: Path) -> None:
    facts = labelled_facts(posterior.graph)
    before = posterior.facts(facts, draws=50)
    posterior.recalibrate("platt", negatives="hard", draws=50)
    assert posterior.recalibration is not None
    after, expected = posterior.facts(facts, draws=50), posterior.recalibration(before)
    for key in ("probability", "low", "high"):
        np.testing.assert_allclose(after[key], expected[key])
    pd.testing.assert_frame_equal(posterior.facts(facts, draws=50, recalibrated=False), before)
    assert np.abs(after["probability"] - before["probability"]).max() > 0.01
    posterior.save(tmp_path / "run")
    query = {"head": "brazil", "relation": "commonbloc0"}
    again = kgpyro.load(tmp_path / "run")
    assert again.recalibration == posterior.recalibration
    pd.testing.assert_frame_equal(again.predict(**query, draws=20), posterior.predict(**query, draws=20))
    posterior.recalibrate("none")
    pd.testing.assert_frame_equal(posterior.facts(facts, draws=50), before)


def test_the_command(posterior: kgpyro.Posterior, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    posterior.save(folder)
    quick = [str(folder), "--draws", "20"]
    assert calibrate_command([*quick, "--negatives", "random", "--method", "temperature"]) == 0
    printed = capsys.readouterr().out
    assert "as predicted" in printed and "temperature" in printed and "auroc" in printed
    assert (folder / "recalibration.json").exists() and (folder / "checks" / "calibration.png").stat().st_size > 10_000
    assert predict_command([str(folder), "--head", "brazil", "--relation", "embassy", "--draws", "10"]) == 0
    assert "recalibrated (temperature)" in capsys.readouterr().out
    assert calibrate_command([*quick, "--method", "none"]) == 0
    assert not (folder / "recalibration.json").exists()
    assert calibrate_command([*quick, "--negatives", "verified"]) == 2
    assert "none are verified" in capsys.readouterr().err


def test_risk_coverage_by_hand() -> None:
    errors = np.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(risk_coverage(errors, np.array([1, 4, 3, 2])), [0, 0, 1 / 3, 1 / 2])
    np.testing.assert_allclose(risk_coverage(errors, np.zeros(4)), [1 / 2] * 4)  # who cannot tell, withholds at random


def test_abstention(posterior: kgpyro.Posterior) -> None:
    found = abstention(posterior, negatives="hard", draws=200)
    assert set(found.table.index) == set(CRITERIA)
    assert (found.table["aurc"] <= found.errors.mean() * 1.3).all()
    assert found.table.loc["probability", "aurc"] < found.errors.mean()  # withholding helps
    facts = posterior.facts(found.facts, draws=200, recalibrated=False)
    np.testing.assert_allclose(found.facts["std"], -facts["std"])
    ids = posterior.graph.ids(found.facts[["head", "relation", "tail"]].to_numpy())
    for i in range(3):
        h, r, t = (column[i : i + 1] for column in ids.T)
        scores, known = posterior.mean_scores(h, r, both=True)[0], posterior.graph.training_queries
        others = set(range(posterior.graph.num_entities)) - set(known.answer_pairs(known.positions(h, r))[1].tolist())
        best = max(float(scores[e]) for e in others - {int(t)})
        assert found.facts["margin"][i] == pytest.approx(abs(float(scores[t]) - best), abs=1e-4)
    assert len(found.figure().axes) == 2
