"""What a prior claims, and fits side by side, each against a count by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import kgpyro
from kgpyro.checking.comparison import compare, held_out
from kgpyro.checking.prior_predictive import prior_predictive
from kgpyro.commands import check as check_command
from kgpyro.commands import priors as priors_command
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.names import MODELS
from kgpyro.posterior.fitted import Posterior


def test_a_prior_without_spread_claims_the_base_rate(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgpyro.program.setting.INTERCEPT_SCALE", 1e-4)
    found = prior_predictive(tiny, "normal(scale=1e-4)", "DistMult", draws=50, dim=2, queries=200)
    facts = 2 * torch.bincount(tiny.train[:, 1]).double() + 0.5  # each asked twice, in 2 · 25 cells
    rate = torch.logit(facts / (2 * 25 + 1)).mean().sigmoid()
    for relation, name in enumerate(tiny.relations):
        row = found.density.set_index("relation").loc[name]
        assert row["mean"] == pytest.approx(float(rate), rel=1e-4)
        assert row["graph"] == pytest.approx(float((tiny.train[:, 1] == relation).sum()) / 25)
    expected = found.density["mean"].mean() * tiny.num_entities
    answers = found.summary.loc["answers of a random query"]
    assert answers["mean"] == pytest.approx(expected, rel=0.05)
    assert answers["graph"] == pytest.approx(len(tiny.train) / 10, rel=0.1)
    assert not found.warnings


def test_the_spread_of_scores_is_that_of_the_prior(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """DistMult of ``d`` dimensions under N(0, s²) has scores of variance ``d s⁶``; a self-loop's is larger."""
    monkeypatch.setattr("kgpyro.program.setting.INTERCEPT_SCALE", 1e-4)
    found = prior_predictive(tiny, "normal(scale=0.8)", "DistMult", draws=400, dim=6, facts=50)
    probability = np.clip(found.probabilities, 1e-12, 1 - 1e-12)
    logits = np.log(probability / (1 - probability)).reshape(400, 2, 50)
    centred = logits - np.array([np.median(logits[:, r]) for r in range(2)])[None, :, None]
    loops = 1 / 5
    expected = 6 * 0.8**6 * ((1 - loops) + loops * 3)
    assert centred.var() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("prior", "warns"), [("normal", True), ("normal(scale=0.1)", False), ("normal(scale=half_cauchy(0.01))", False)]
)
def test_it_warns_of_certainty(prior: str, warns: bool) -> None:
    found = prior_predictive("nations", prior, draws=5, facts=100)
    assert bool(found.warnings) == warns
    assert all("piles probabilities up at 0 and 1" in warning for warning in found.warnings)


def test_it_is_repeatable_and_draws_no_one_elses_numbers(tiny: Graph) -> None:
    state = torch.random.get_rng_state()
    first, second = (prior_predictive(tiny, "laplace", draws=3, dim=4) for _ in range(2))
    assert np.array_equal(first.probabilities, second.probabilities)
    assert torch.equal(state, torch.random.get_rng_state())


def test_command_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prior", "normal(scale=2)", "--draws", "3", "--facts", "50", "--out", str(tmp_path / "check")]
    assert check_command(options) == 0
    printed = capsys.readouterr().out
    assert "answers of a random query" in printed
    assert "WARNING: The prior piles probabilities up" in printed
    assert {f.name for f in (tmp_path / "check").iterdir()} == {
        "prior_summary.csv",
        "prior_density.csv",
        "prior_predictive.png",
    }
    (tmp_path / "file").write_text("")
    for wrong, words in (
        (["--prior", "nromal"], "unknown prior"),
        (["--draws", "0"], "--draws must be a positive number"),
        (["--out", str(tmp_path / "file")], "cannot be written"),
    ):
        assert check_command(["--facts", "5", *wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_table_of_priors_is_the_readmes(capsys: pytest.CaptureFixture[str]) -> None:
    assert priors_command([]) == 0
    table = capsys.readouterr().out.strip()
    readme = (Path(kgpyro.__file__).parent.parent / "docs" / "priors.md").read_text(encoding="utf-8")
    assert table in readme, "regenerate it with: python -m kgpyro priors"


# ---- comparing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fits() -> dict[str, list[Posterior]]:
    options = {"dim": 20, "progress": False}
    good = [kgpyro.fit("nations", model="lim", prior="normal(scale=0.5)", epochs=40, seed=s, **options) for s in (0, 1)]
    return {"worse": [kgpyro.fit("nations", model="lim", epochs=1, **options)], "good": good}


def test_a_comparison(fits: dict[str, list[Posterior]]) -> None:
    table = compare({"worse": fits["worse"][0], "good": fits["good"]}, draws=10)
    assert list(table.index) == ["good", "worse"]
    mrr = [p.metrics["test"]["realistic"]["mrr"] for p in fits["good"]]
    assert table.loc["good", "mrr"] == pytest.approx(np.mean(mrr))
    assert table.loc["good", "mrr_se"] == pytest.approx(np.std(mrr, ddof=1) / math.sqrt(2))
    assert math.isnan(table.loc["worse", "mrr_se"])
    assert table.loc["good", "log_density"] > table.loc["worse", "log_density"]
    sizes = 2 * 20 * (14 + 2 * 55) + 2 * 55
    assert (table["parameters"] == sizes).all()
    by_calibration = compare(fits, draws=2, by="calibration_error")
    assert by_calibration["calibration_error"].is_monotonic_increasing


def test_held_out_facts_by_hand(fits: dict[str, list[Posterior]]) -> None:
    """Candidates of the test split's queries, less what train and valid answer, labelled by test."""
    posterior = fits["good"][0]
    graph = posterior.graph
    probabilities, labels = held_out(posterior, "test", draws=2, queries=10_000, seed=0)
    asked = {(h, r, "tail") for h, r, _ in graph.test.tolist()} | {(t, r, "head") for _, r, t in graph.test.tolist()}
    known = {tuple(t) for t in torch.cat([graph.train, graph.valid]).tolist()}
    test = {tuple(t) for t in graph.test.tolist()}
    both = [((e, r, c) if side == "tail" else (c, r, e)) for e, r, side in asked for c in range(14)]
    open_facts = [f for f in both if f not in known]
    assert len(labels) == len(open_facts)
    assert int(labels.sum()) == sum(f in test for f in open_facts)
    assert ((probabilities > 0) & (probabilities < 1)).all()


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ({}, {}, "there is nothing to compare"),
        ([], {}, "`fits` is a dict of posteriors by name"),
        ({"a": []}, {}, "there is nothing to compare"),
        (None, {"by": "beauty"}, "cannot sort by 'beauty'"),
        (None, {"split": "train"}, "without metrics of its train split"),
    ],
)
def test_what_cannot_be_compared(fits: dict, given: dict | None, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(fits if given is None else given, **options)


def test_fits_of_different_graphs(fits: dict[str, list[Posterior]], tiny: Graph) -> None:
    other = kgpyro.fit(tiny, model=next(iter(MODELS)), dim=4, epochs=1, progress=False)
    with pytest.raises(InputError, match="different graphs: nations, tiny"):
        compare(fits | {"other": other})


def test_a_figure_drawn_anew(tiny: Graph) -> None:
    """Where another prior's figure was, nothing of that is left."""
    wide, narrow = (prior_predictive(tiny, f"normal(scale={scale})", draws=2, dim=4) for scale in (9, 0.1))
    figure = wide.figure()
    before = figure._repr_png_()
    again = narrow.figure(figure)
    assert again is figure
    assert again._repr_png_() == narrow.figure()._repr_png_() != before
