"""Labelled facts, how well probabilities agree with labels, maps that mend them, and what to abstain from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import kgpyro
from kgpyro.checking.abstention import CRITERIA, abstention, risk_coverage
from kgpyro.commands import calibrate as calibrate_command
from kgpyro.commands import predict as predict_command
from kgpyro.data.graph import Graph
from kgpyro.data.labelled import corruptions, labelled_facts, open_facts
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import METHODS, Calibration, Recalibration, logit, moved_logits


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
    assert facts.drop(columns="weight").to_numpy().tolist() == [["c", "likes", "b", 1], ["a", "likes", "a", 0]]
    posterior = kgpyro.fit(graph, model="lim", epochs=1, dim=2, progress=False, device="cpu", out=tmp_path / "run")
    again = kgpyro.load(tmp_path / "run").graph
    assert {k: v.tolist() for k, v in again.negatives.items()} == {"valid": [[1, 0, 1], [2, 0, 2]], "test": [[0, 0, 0]]}
    assert posterior.calibration(negatives="verified").negatives == "verified"


def test_negatives_of_unknown_entities_are_refused(tmp_path: Path) -> None:
    (write_graph(tmp_path) / "test_negatives.txt").write_text("a\tlikes\tzebra\n")
    with pytest.raises(InputError, match="no entity 'zebra'"):
        kgpyro.load_graph(tmp_path)


def test_what_cannot_be_labelled() -> None:
    graph = kgpyro.load_graph("nations")
    assert labelled_facts(graph).attrs["negatives"] == "random"
    for split, negatives, words in (
        ("train", None, "valid or test"), ("test", "easy", "choose from verified, hard, random, open"),
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
    facts["relation"] = rng.choice(["likes", "knows"], n)
    return facts, (rng.uniform(size=n) < 1 / (1 + np.exp(-(0.5 * x + 1)))).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_mends_what_it_can(method: str) -> None:
    facts, labels = made()
    fitted = Recalibration.fit(facts, labels, method, negatives="hard")
    found = fitted(facts)
    before, after = Calibration(facts["probability"].to_numpy(), labels), Calibration(found, labels)
    assert before.ece > 0.15
    assert after.ece < (before.ece if method == "temperature" else 0.02)
    truth = 0.5 * logit(facts["probability"]) + 1
    if method in ("platt", "stacked"):
        assert fitted.intercept == pytest.approx(1, abs=0.15)
        assert fitted.weights["probability"] == pytest.approx(0.5, abs=0.05)
        assert np.abs(logit(found) - truth).max() < 0.4
    if method != "stacked":  # distinct predictions (of a relation) stay distinct, in their order
        order = np.argsort(facts["probability"].to_numpy())
        order = order[(facts["relation"] == "likes").to_numpy()[order]] if method == "per_relation" else order
        assert (np.diff(found[order]) > 0).mean() > 0.999 and (np.diff(found[order]) >= 0).all()
    again = Recalibration.of(json.loads(json.dumps({**vars(fitted), "steps": fitted.steps})))
    assert again == fitted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["falling", "separable", "two facts", "constant"])
def test_recalibration_on_awkward_labels(method: str, case: str) -> None:
    """Maps rise and stay finite, whatever the labels; evidence that does not vary counts for nothing."""
    p, labels = {
        "falling": ([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.35], [0, 0, 0, 1, 1, 1, 1, 0]),
        "separable": ([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1], [1, 1, 1, 1, 0, 0, 0, 0]),
        "two facts": ([0.6, 0.4], [1, 0]),
        "constant": ([0.3] * 6, [1, 0, 0, 1, 0, 0]),
    }[case]
    facts = pd.DataFrame({"probability": p, "score": logit(p), "std": 0.1, "epistemic": 0.2, "frequency": 3})
    facts["aleatoric"], facts["relation"] = 0.4, "likes"
    found = Recalibration.fit(facts, np.array(labels), method)(facts)
    assert ((found > 1e-3) & (found < 1 - 1e-3)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    if case == "separable" and method == "platt":  # Platt's own targets: 5/6 and 1/6
        assert found.mean() == pytest.approx(0.5) and found.max() < 0.99


def test_a_line_for_each_relation() -> None:
    """Relations with many labels have their own, those with few the common one, shrunk as the others say."""
    rng = np.random.default_rng(3)
    sizes = np.array([4000] * 12 + [8] * 12)
    truth = np.stack([rng.normal(0.8, 0.2, len(sizes)), rng.normal(-1, 1.5, len(sizes))], 1)
    group = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(0, 2, len(group))
    p = 1 / (1 + np.exp(-(truth[group, 0] * x + truth[group, 1])))
    labels = (rng.uniform(size=len(x)) < p).astype(int)
    facts = pd.DataFrame({"probability": 1 / (1 + np.exp(-x)), "relation": [f"r{g}" for g in group]})
    fitted = Recalibration.fit(facts, labels, "per_relation")
    lines = np.array([fitted.relations[f"r{g}"] for g in range(len(sizes))])
    assert np.abs(lines - truth)[:12].max() < 0.25
    common = np.array([fitted.weights["probability"], fitted.intercept])
    assert np.abs(lines - common)[12:, 1].mean() < 0.7 * np.abs(truth - common)[12:, 1].mean()

    rare = group == 20  # the mode under the Normal of the others' lines, by an independent optimiser
    mean, spread = lines[:12].mean(0), np.cov(lines[:12].T)

    def loss(line: np.ndarray) -> float:
        sign, off = 2 * labels[rare] - 1, line - mean
        return float(
            np.logaddexp(0, -sign * (line[0] * x[rare] + line[1])).sum() + off @ np.linalg.solve(spread, off) / 2
        )

    np.testing.assert_allclose(lines[20], minimize(loss, mean).x, atol=0.35)
    platt = Recalibration.fit(facts, labels, "platt")
    scores = [Calibration(m(facts), labels).metrics["log_score"] for m in (platt, fitted)]
    assert scores[1] > scores[0] + 0.02
    elsewhere = facts[:5].assign(relation="unheard of")
    np.testing.assert_allclose(logit(fitted(elsewhere)), common[0] * x[:5] + common[1], atol=1e-6)


def test_counts_are_facts(posterior: kgpyro.Posterior) -> None:
    """A label that counts for three is three labels; the expected number of facts is the number of true ones."""
    facts, labels = made()
    counts = np.random.default_rng(1).integers(1, 4, len(labels))
    thrice = facts.loc[facts.index.repeat(counts)]
    for method in ("temperature", "isotonic"):
        one = Recalibration.fit(facts, labels, method, counts)(facts)
        other = Recalibration.fit(thrice, labels.repeat(counts), method)(facts)
        np.testing.assert_allclose(one, other, atol=2e-3)
    weighted = Calibration(facts["probability"].to_numpy(), labels, "", counts.astype(float))
    plain = Calibration(thrice["probability"].to_numpy(), labels.repeat(counts))
    assert weighted.metrics == pytest.approx(plain.metrics)
    for method in ("platt", "isotonic", "per_relation"):
        found = Calibration(Recalibration.fit(facts, labels, method, counts)(facts), labels, "", counts.astype(float))
        assert found.expected_over_true == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("wanted", [1e-9, 0.02, 0.5, 0.999])
def test_moved_draws_have_the_mean_they_should(wanted: float) -> None:
    logits = torch.cat([torch.randn(400, 5), 20 * torch.randn(400, 2), torch.full((400, 1), -3.0)], 1).double()
    moved = moved_logits(logits, torch.full((8,), wanted))
    np.testing.assert_allclose(moved.sigmoid().mean(0), wanted, rtol=1e-6)
    torch.testing.assert_close(moved - moved[:1], logits - logits[:1])


def test_every_column_follows_the_map(posterior: kgpyro.Posterior) -> None:
    facts = labelled_facts(posterior.graph, negatives="hard")[:60]
    for method in METHODS:
        posterior.recalibrate(method, negatives="hard", draws=100)
        assert posterior.recalibration is not None
        found, raw = (posterior.facts(facts, draws=100, recalibrated=moved) for moved in (True, False))
        p = found["probability"]
        np.testing.assert_allclose(p, posterior.recalibration(raw), rtol=1e-6)
        total = found["aleatoric"] + found["epistemic"]
        np.testing.assert_allclose(total, -p * np.log(p) - (1 - p) * np.log(1 - p), atol=1e-6)
        assert ((found["low"] <= p) & (p <= found["high"]) & (found["std"] <= 0.5)).all()
        np.testing.assert_allclose(found["error"], found["std"] / 10)
        query = {"head": "brazil", "relation": "commonbloc0", "draws": 100, "top": None}
        answers = posterior.predict(**query).set_index("tail")
        alone = posterior.facts([("brazil", "commonbloc0", tail) for tail in answers.index], draws=100)
        np.testing.assert_allclose(answers["probability"], alone["probability"], rtol=1e-5)
        assert (np.diff(answers["probability"]) <= 0).all()
    with pytest.raises(InputError, match="fitted to the valid split"):
        posterior.calibration("valid")
    posterior.recalibrate("none")


def test_open_facts_stand_for_all_that_training_lacks(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    known = everything(tiny)
    every = {(h, r, t) for h in range(5) for r in range(2) for t in range(5)} - known
    found, number = open_facts(tiny, 1000, seed=0)
    assert {tuple(t) for t in found.tolist()} == every and number == len(found) == len(every)
    drawn, number = open_facts(tiny, 39, seed=0)
    assert {tuple(t) for t in drawn.tolist()} <= every and (len(drawn), number) == (39, len(every))
    counts = torch.unique(torch.cat([open_facts(tiny, 39, seed=s)[0] for s in range(300)]), dim=0, return_counts=True)[
        1
    ]
    assert len(counts) == len(every) and (counts.double() / counts.double().mean() - 1).abs().max() < 0.3
    monkeypatch.setattr("kgpyro.data.labelled.OPEN", 10)
    facts = labelled_facts(tiny, negatives="open")
    assert facts["weight"].sum() == pytest.approx(len(every) + len(tiny.valid) + len(tiny.test))
    assert (facts["weight"] * facts["label"]).sum() == pytest.approx(len(tiny.valid) + len(tiny.test))


@pytest.mark.parametrize("negatives", ["open", "random"])
def test_some_labelled_facts_stand_for_all(negatives: str) -> None:
    graph = kgpyro.load_graph("nations")
    every, some = (labelled_facts(graph, "valid", negatives, most=most) for most in (None, 50))
    assert (some["label"] == 1).sum() == 50 and len(some) <= 100
    total = (every["weight"] * every["label"]).sum()
    assert (some["weight"] * some["label"]).sum() == pytest.approx(total)
    assert some["weight"].sum() == pytest.approx(every["weight"].sum(), rel=0.1)
    assert set(map(tuple, some[some["label"] == 1].iloc[:, :3].values)) <= set(map(tuple, every.iloc[:, :3].values))


def test_expected_facts_are_as_many_as_there_are() -> None:
    """A fifth of kinship held out: the probabilities of all unknown facts sum to the number of true ones."""
    whole = kgpyro.load_graph("kinships")
    triples = torch.cat([whole.train, whole.valid, whole.test])
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(0))
    part = triples[order]
    n = len(part) // 10
    graph = Graph("kinship-20", whole.entities, whole.relations, part[2 * n :], part[:n], part[n : 2 * n])
    posterior = kgpyro.fit(graph, model="lim", epochs=25, dim=50, progress=False, device="cpu")
    raw = posterior.calibration(draws=50)
    assert len(raw.labels) == n + 20_000
    posterior.recalibrate("isotonic", draws=50)
    after = posterior.calibration(draws=50)
    assert 1 / 1.5 < after.expected_over_true < 1.5
    assert after.ece <= raw.ece


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
    np.testing.assert_allclose(after["probability"], expected, rtol=1e-6)
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
