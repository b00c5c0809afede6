"""On how many queries equally good fits disagree, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError

QUICK: dict[str, Any] = {"model": "lim", "dim": 16, "epochs": 3, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def fits(nations: Graph) -> list[kgpyro.Posterior]:
    return [kgpyro.fit(nations, **QUICK, seed=seed) for seed in range(3)]


def hits(fit: kgpyro.Posterior, k: int) -> list[bool]:
    ranks = fit.ranks("test")
    return ((ranks["optimistic"] + ranks["pessimistic"]) / 2 <= k).tolist()


@pytest.mark.parametrize("within", [1.0, 0.02])
def test_by_hand(fits: list[kgpyro.Posterior], within: float) -> None:
    table = kgpyro.multiplicity(fits, within=within)
    for k in (1, 3, 10):
        base, *others = (hits(fit, k) for fit in fits)
        n = len(base)
        near = [one for one in others if abs(sum(one) - sum(base)) / n <= within]
        conflicts = [[a != b for a, b in zip(base, one, strict=True)] for one in near]
        assert table["competitors"][k] == len(near)
        assert table["hits"][k] == pytest.approx(sum(base) / n)
        if near:
            assert table["ambiguity"][k] == pytest.approx(sum(map(any, zip(*conflicts, strict=True))) / n)
            assert table["discrepancy"][k] == pytest.approx(max(map(sum, conflicts)) / n)
        else:
            assert table.loc[k, ["ambiguity", "discrepancy"]].isna().all()
    if within == 1.0:
        assert (table["ambiguity"] >= table["discrepancy"]).all()
        assert (table["discrepancy"] > 0).any()


def test_draws_of_one_posterior(nations: Graph, fits: list[kgpyro.Posterior]) -> None:
    few, many = (kgpyro.multiplicity(fits[0], draws=draws, within=1.0) for draws in (3, 6))
    assert (many["competitors"] == 5).all()
    assert (many["ambiguity"] >= few["ambiguity"]).all()
    assert few["ambiguity"][1] > 0
    point = kgpyro.fit(nations, **QUICK, guide="point")
    assert (kgpyro.multiplicity(point, draws=3)["ambiguity"] == 0).all()
    assert few["hits"].equals(many["hits"])


def test_what_has_no_multiplicity(tiny: Graph, fits: list[kgpyro.Posterior]) -> None:
    with pytest.raises(InputError, match="needs two models"):
        kgpyro.multiplicity(fits[:1])
    with pytest.raises(InputError, match="fits of one graph"):
        kgpyro.multiplicity([fits[0], kgpyro.fit(tiny, **QUICK)])
    with pytest.raises(InputError, match="`distribution` is of heads and tails"):
        fits[0].evaluate(distribution=True, relations=True)


def test_evaluate_measures_distributions(fits: list[kgpyro.Posterior]) -> None:
    table = fits[0].evaluate(distribution=True, draws=20)
    assert table.columns.tolist()[-3:] == ["nll", "ece", "ace"]
    assert (table["nll"] > 0).all()
    assert table.loc[("filtered", "both"), "nll"] < table.loc[("raw", "both"), "nll"]
    same = fits[0].evaluate()
    assert table[same.columns].equals(same)
