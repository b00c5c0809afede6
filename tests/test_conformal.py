"""Answer sets: the quantile by hand, coverage where facts are exchangeable, and what a posterior makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from test_posterior import posterior_of
from torch import Tensor

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.evaluation.conformal import ENOUGH, Thresholds, misfit, open_candidates


def test_misfits_are_shares_of_what_is_open(tiny: Graph) -> None:
    p = torch.tensor([[0.5, 0.2, 0.1, 0.2, 0.4]])
    is_open = open_candidates(torch.tensor([0]), torch.tensor([1]), tiny.training_queries, 5)  # a likes b, c and d
    assert is_open.tolist() == [[True, False, False, False, True]]
    found = misfit(p, is_open)
    assert float(found[0, 0]) == pytest.approx(-math.log(0.5 / 0.9))
    assert float(found[0, 4]) == pytest.approx(-math.log(0.4 / 0.9))
    assert found[0, 1] == math.inf


@pytest.mark.parametrize(("coverage", "rank"), [(0.5, 5), (0.9, 9), (0.05, 1)])
def test_the_threshold_is_the_conformal_quantile(coverage: float, rank: int) -> None:
    thresholds = Thresholds(torch.arange(1.0, 10.0), torch.zeros(9, dtype=torch.long), 1)
    assert thresholds.at(0, coverage, False) == rank


def test_too_few_facts_for_a_coverage() -> None:
    thresholds = Thresholds(torch.arange(1.0, 10.0), torch.zeros(9, dtype=torch.long), 1)
    assert thresholds.at(0, 0.95, False) == math.inf
    assert thresholds.at(1, 0.9, False) == math.inf  # no heads at all
    with pytest.raises(InputError, match="no validation facts"):
        Thresholds(torch.zeros(0), torch.zeros(0, dtype=torch.long), 1).at(0, 0.9, False)
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(InputError, match="probability between 0 and 1"):
            thresholds.at(0, wrong, False)


def test_relations_of_their_own() -> None:
    sizes = {0: ENOUGH, 1: ENOUGH - 1, 2: 4, 3: 5}  # the last one asks for heads
    row = torch.cat([torch.full((n,), r) for r, n in sizes.items()])
    misfits, order = torch.randn(len(row)).sort()
    thresholds = Thresholds(misfits, row[order], 3)
    mine, small = misfits[row[order] == 0], misfits[(row[order] == 1) | (row[order] == 2)]
    assert thresholds.at(0, 0.5, True) == float(mine[math.ceil((ENOUGH + 1) * 0.5) - 1])
    assert thresholds.at(1, 0.5, True) == thresholds.at(2, 0.5, True) == float(small[math.ceil(24 * 0.5) - 1])


@pytest.mark.parametrize(("large", "small", "each"), [(500, 25, 19), (1000, 10, 10)])
def test_small_relations_keep_the_promise(large: int, small: int, each: int) -> None:
    """One large relation whose answers are easy, many small ones whose answers are hard: .90 is held on both."""
    sizes = torch.tensor([large, *[each] * small])
    row = torch.repeat_interleave(torch.arange(small + 1), sizes)
    hard = (row > 0).double()
    covered = torch.zeros(2)
    for repeat in range(40):
        torch.manual_seed(repeat)
        misfits, order = (torch.randn(len(row)).double() + 3 * hard).sort()
        thresholds = Thresholds(misfits, row[order], small + 1)
        bounds = torch.tensor([thresholds.at(r, 0.9, True) for r in range(small + 1)])
        inside = (torch.randn(50, len(row)) + 3 * hard <= bounds[row]).double().mean(0)
        covered += torch.stack([inside.mean(), inside[row > 0].mean()]) / 40
    assert covered[0] >= 0.89 and covered[1] >= 0.88


def test_coverage_of_exchangeable_facts() -> None:
    """Answers drawn from a wrong model's graph: the sets have their coverage all the same."""
    torch.manual_seed(0)
    entities, n = 30, 1500

    def triples() -> Tensor:
        head = torch.randint(entities, (n,))
        tail = (head + torch.poisson(torch.full((n,), 3.0)).long()) % entities
        return torch.stack([head, torch.zeros_like(head), tail], dim=1)

    def wrong_model(anchor: Tensor, row: Tensor) -> Tensor:
        away = (torch.arange(entities) - anchor.unsqueeze(1)) % entities
        return (-0.2 * away).exp() / 2

    known = Graph("one", tuple(map(str, range(entities))), ("r",), triples()[:1], triples(), triples()).training_queries
    thresholds = Thresholds.of(wrong_model, triples(), known, entities)
    test = triples()
    anchor, row = test[:, 0], test[:, 1]
    inside = misfit(wrong_model(anchor, row), open_candidates(anchor, row, known, entities)).gather(1, test[:, 2:])
    covered = float((inside <= thresholds.at(0, 0.8, False)).double().mean())
    assert 0.8 - 0.04 < covered < 0.9


@pytest.mark.parametrize("model", ["lim", "lfm"])
def test_a_posteriors_sets(tiny: Graph, model: str) -> None:
    posterior = posterior_of(tiny, model=model)
    all_open = posterior.predict_set(head="a", relation="likes", coverage=0.9)  # two facts say nothing at 90 %
    assert set(all_open["tail"]) == {"a", "e"}
    assert all_open["probability"].is_monotonic_decreasing
    some = posterior.predict_set(tail="c", relation="likes", coverage=0.3, draws=20)
    assert some.columns[0] == "head"
    assert len(some) < 4
    with pytest.raises(InputError, match="a relation and either a head or a tail"):
        posterior.predict_set(head="a")


def test_coverage_on_a_real_graph() -> None:
    posterior = kgpyro.fit("umls", model="lim", prior="normal(scale=0.5)", dim=40, epochs=20, progress=False)
    graph, hits, sizes = posterior.graph, [], []
    for head, relation, tail in graph.test[::20].tolist():
        names = {"head": graph.entities[head], "relation": graph.relations[relation]}
        members = posterior.predict_set(**names, coverage=0.8)["tail"]
        hits.append(graph.entities[tail] in set(members))
        sizes.append(len(members))
    assert 0.6 < sum(hits) / len(hits) <= 1.0
    assert sum(sizes) / len(sizes) < 20


def test_a_watched_split_is_told(tiny: Graph) -> None:
    posterior = posterior_of(tiny, early_stopping=3)
    with pytest.warns(UserWarning, match="early stopping has chosen this fit"):
        posterior.predict_set(head="a", relation="likes", coverage=0.5)
