"""Decisions with a promised error rate: by simulation, by hand, and of a posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest

import kgpyro
from kgpyro.errors import InputError
from kgpyro.evaluation.conformal import certain_enough


def drawn(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Certainties, and whether the decision is wrong: probabilities that are too sure of themselves."""
    logits = rng.normal(0, 3, n)
    true = rng.uniform(size=n) < 1 / (1 + np.exp(-0.4 * logits))
    p = 1 / (1 + np.exp(-logits))
    return np.abs(p - 0.5), (p > 0.5) != true


@pytest.mark.parametrize("risk", [0.15, 0.25])
def test_the_promise_holds(risk: float) -> None:
    """Over calibration sets, the true error rate of the decided exceeds the risk in at most 5 %; many decide."""
    rng = np.random.default_rng(0)
    certainty, wrong = drawn(400_000, rng)
    order = np.argsort(-certainty)
    could = ((np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)) <= risk).mean()  # who knew the truth
    broken, decided, repeats = 0, 0.0, 300
    for _ in range(repeats):
        least = certain_enough(*drawn(2000, rng), risk, 0.95)
        here = certainty >= least
        decided += here.mean() / repeats
        broken += bool(here.any()) and wrong[here].mean() > risk
    assert broken / repeats < 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5
    assert decided > 0.45 * could


def test_by_hand() -> None:
    sure = np.full(40, 0.4)
    assert certain_enough(sure, np.zeros(40, dtype=bool), 0.1, 0.95) == 0.0  # .9^40 < .05: nothing speaks against it
    assert certain_enough(sure[:20], np.zeros(20, dtype=bool), 0.1, 0.95) == math.inf  # .9^20 > .05: too few
    assert certain_enough(sure, np.arange(40) < 20, 0.1, 0.95) == math.inf
    mixed = np.concatenate([sure, np.full(40, 0.1)])
    least = certain_enough(mixed, np.arange(80) >= 40, 0.1, 0.95)  # the less certain half is wrong
    assert 0.1 < least <= 0.4


def test_a_posterior_decides() -> None:
    posterior = kgpyro.fit("umls", model="lim", dim=30, epochs=15, progress=False, device="cpu")
    facts = kgpyro.labelled_facts(posterior.graph, "test", "random")
    found = posterior.decide(facts, risk=0.1, draws=50)
    assert list(found.columns) == ["head", "relation", "tail", "probability", "decision"]
    decided = found["decision"] != "abstain"
    wrong = (found["decision"] == "true") != (facts["label"] == 1)
    assert decided.mean() > 0.3 and wrong[decided].mean() < 0.13
    assert (posterior.decide(facts, risk=0.001, draws=50)["decision"] == "abstain").mean() > (~decided).mean()
    for wrong_options, why in (
        ({"risk": 2}, "`risk` is a probability between 0 and 1"),
        ({"confidence": 1.0}, "`confidence` is a probability"),
        ({"negatives": "open"}, "choose random, hard or verified"),
    ):
        with pytest.raises(InputError, match=why):
            posterior.decide(facts, **wrong_options)  # type: ignore[arg-type]
