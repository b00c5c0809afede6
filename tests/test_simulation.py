"""What a simulation says of intervals, where it is known: draws from the prior, narrower ones, and the truth itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kgpyro
from kgpyro import Graph, InputError, Options
from kgpyro.checking import simulation
from kgpyro.checking.simulation import _Truth

SIZE = (12, 3)
CHOSEN: dict[str, Any] = {"model": "lim", "dim": 4, "score": "DistMult", "inverse": False}


class Prior:
    """Draws of facts' log-odds from the prior, shrunk towards their mean; the truth is one more such draw."""

    def __init__(self, share: float):
        self.share, truth = share, _Truth(SIZE, Options.of(CHOSEN), 0.1)
        torch.manual_seed(1)
        self.logits = torch.stack([truth.draw()[2].logit() for _ in range(400)])

    def fact_logits(self, cells: Tensor, draws: int) -> Tensor:
        place = (cells[:, 0] * SIZE[1] + cells[:, 1]) * SIZE[0] + cells[:, 2]
        logits = self.logits[:, place]
        return logits.mean(0) + self.share * (logits - logits.mean(0))


@pytest.mark.parametrize(("share", "covers"), [(1.0, True), (0.4, False)])
def test_draws_as_wide_as_the_truth_cover_what_they_promise(
    monkeypatch: pytest.MonkeyPatch, share: float, covers: bool
) -> None:
    prior = Prior(share)
    monkeypatch.setattr(simulation, "fit", lambda graph, options, progress: prior)
    found = kgpyro.simulation_check(SIZE, graphs=30, draws=400, progress=False, **CHOSEN)
    off = (found.coverage["coverage"] - found.coverage.index).abs()
    assert bool((off < 4 * found.coverage["error"] + 0.02).all()) == covers
    assert found.ranks.sum() == pytest.approx(1) and (np.ptp(found.ranks) < 0.05) == covers
    assert found.graphs == 30 and found.error > 0


def test_a_graph_holds_the_share_of_true_facts_that_is_complete() -> None:
    """With completeness 1/2 half of the true facts between two entities are there, and all self-loops."""
    held, expected = np.zeros(2), np.zeros(2)
    truth = _Truth(SIZE, Options.of({**CHOSEN, "completeness": 0.5}), 0.3)
    torch.manual_seed(0)
    for _ in range(60):
        graph, cells, p = truth.draw()
        for i, loops in enumerate((cells[:, 0] == cells[:, 2], cells[:, 0] != cells[:, 2])):
            expected[i] += float(p[loops].sum())
        same = graph.train[:, 0] == graph.train[:, 2]
        held += [int(same.sum()), int((~same).sum())]
    assert held / expected == pytest.approx([1.0, 0.5], rel=0.1)


def test_a_fit_is_held_to_the_truth(tiny: Graph) -> None:
    found = kgpyro.simulation_check(tiny, graphs=2, draws=50, epochs=5, progress=False, dim=2, score="DistMult")
    assert found.coverage["coverage"].between(0, 1).all() and found.coverage["coverage"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"likelihood": "categorical"}, "true or not; leave `likelihood` at bernoulli"),
        ({"model": "lfm"}, "facts that share latents"),
        ({"graphs": 0}, "`graphs` and `facts` must be at least 1"),
        ({"base_rate": 1.5}, "`base_rate` is a probability between 0 and 1; got 1.5"),
        ({"size": (1, 1)}, "at least two entities"),
        ({"size": (3000, 3)}, "27,000,000 facts are too many to draw"),
    ],
)
def test_what_cannot_be_simulated(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kgpyro.simulation_check(**{"size": SIZE, "progress": False, "epochs": 1, **options})
