"""What to look at next: the same facts as from all draws of all facts at once."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from test_posterior import posterior_of

import kgpyro.posterior.discovery
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.discovery import MEASURES, shortlist
from kgpyro.posterior.fitted import Posterior

DRAWS = 4000
ERROR = 0.05  # of a measure over a few hundred draws, five standard errors


def every_fact(posterior: Posterior) -> pd.DataFrame:
    """All facts training lacks, measured with many draws of each, by name."""
    graph = posterior.graph
    triples = set(itertools.product(range(graph.num_entities), range(graph.num_relations), range(graph.num_entities)))
    left = torch.tensor(sorted(triples - {tuple(t) for t in graph.train.tolist()}))
    table = posterior.facts(left, draws=DRAWS, seed=7)
    table["entropy"] = table["aleatoric"] + table["epistemic"]
    return table.set_index(["head", "relation", "tail"])


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("relation", [None, 1])
def test_the_shortlist_is_the_top_of_all(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, by: str, relation: int | None
) -> None:
    """In blocks of two queries, given the moments of every fact: the best ones, in their order."""
    torch.manual_seed(3)
    mean = torch.rand(5, 2, 5)
    aleatoric = 0.5 * (-mean * mean.log() - (1 - mean) * (-mean).log1p()) * torch.rand(5, 2, 5)
    monkeypatch.setattr(kgpyro.posterior.discovery, "AT_ONCE", 10)
    monkeypatch.setattr(
        kgpyro.posterior.discovery,
        "_moments",
        lambda _, heads, p, draws, seed: (mean[heads, p].clone(), aleatoric[heads, p].clone()),
    )
    total = -mean * mean.log() - (1 - mean) * (-mean).log1p()
    value = {"probability": mean, "entropy": total, "epistemic": total - aleatoric}[by]
    train = {tuple(t) for t in tiny.train.tolist()}
    left = [(h, p, t) for h in range(5) for p in range(2) for t in range(5) if (h, p, t) not in train]
    left = [fact for fact in left if relation is None or fact[1] == relation]
    best = sorted(left, key=lambda fact: -float(value[fact]))
    for size in (7, 1000):
        found = shortlist(posterior_of(tiny), size, by, 1, relation, 100, 0)
        assert [tuple(fact) for fact in found.tolist()] == best[:size]


@pytest.mark.parametrize(
    ("model", "score", "inverse"),
    [("lim", "ComplEx", True), ("lim", "ComplEx", False), ("lfm", "RESCAL", True), ("lim", "TransE-L2", True)],
)
def test_running_sums_are_the_moments_of_the_draws(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, model: str, score: str, inverse: bool
) -> None:
    """Candidates in blocks of two; self-loops and an entity that training lacks included."""
    posterior = posterior_of(tiny, model=model, score=score, inverse=inverse)
    monkeypatch.setattr(kgpyro.posterior.discovery, "AT_ONCE", 2 * max(4, posterior.kg.relation_size))
    heads = torch.tensor([4, 0, 1])
    with torch.no_grad():
        mean, aleatoric = kgpyro.posterior.discovery._moments(posterior, heads, 1, 800, 0)
    table = posterior.facts(torch.tensor([[h, 1, t] for h in heads.tolist() for t in range(5)]), draws=DRAWS)
    np.testing.assert_allclose(mean.flatten(), table["probability"], atol=ERROR)
    np.testing.assert_allclose(aleatoric.flatten(), table["aleatoric"], atol=ERROR)


def test_the_best_facts(tiny: Graph) -> None:
    posterior = posterior_of(tiny, score="ComplEx")
    expected = every_fact(posterior)
    table = posterior.acquire(5, draws=200)
    assert list(table.columns) == ["head", "relation", "tail", "probability", "entropy", "epistemic"]
    rows = pd.MultiIndex.from_frame(table[["head", "relation", "tail"]])
    for column in MEASURES:
        np.testing.assert_allclose(table[column], expected.loc[rows, column], atol=ERROR)
    assert table["epistemic"].is_monotonic_decreasing
    assert table["epistemic"].iloc[0] == pytest.approx(expected["epistemic"].max(), abs=ERROR)
    pd.testing.assert_frame_equal(table, posterior.acquire(5, draws=200))


def test_what_training_holds_is_no_news(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """All facts asked for: what comes back are those that training lacks, of valid and test too, each once."""
    posterior = posterior_of(tiny)
    table = posterior.acquire(1000, draws=2)
    assert set(table[["head", "relation", "tail"]].itertuples(index=False, name=None)) == set(
        every_fact(posterior).index
    )
    assert len(table) == 2 * 25 - len(tiny.train)
    likes = posterior.acquire(1000, draws=2, relation="likes")
    assert len(likes) == 25 - 4
    assert set(likes["relation"]) == {"likes"}
    some = posterior.acquire(1000, draws=2, queries=3)
    assert 0 < len(some) <= 3 * 5
    assert len(some[["head", "relation"]].drop_duplicates()) <= 3
    monkeypatch.setattr(kgpyro.posterior.discovery, "FACTS_AT_MOST", 12)  # two queries
    assert len(posterior.acquire(1000, draws=2)[["head", "relation"]].drop_duplicates()) <= 2


def test_from_given_facts(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    pool = [("a", "likes", "b"), ("d", "likes", "a"), ("e", "knows", "e"), ("d", "likes", "a")]
    table = posterior.acquire(10, candidates=pool, by="probability")
    assert set(table["head"]) == {"d", "e"}
    assert len(table) == 2
    assert table["probability"].is_monotonic_decreasing
    expected = every_fact(posterior)["probability"]
    for row in table.itertuples():
        assert row.probability == pytest.approx(expected[row.head, row.relation, row.tail], abs=ERROR)
    assert posterior.acquire(10, candidates=pool, relation="knows")["head"].tolist() == ["e"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"by": "luck"}, "by epistemic, entropy, probability; not by 'luck'"),
        ({"n": 0}, "`n` must be a positive whole number; got 0"),
        ({"draws": 0}, "`draws` must be"),
        ({"queries": -1}, "`queries` must be"),
        ({"relation": "hates"}, "no relation 'hates'"),
        ({"candidates": [("a", "likes", "z")]}, "no entity 'z'"),
        ({"candidates": [("a", "likes", "b")]}, "training holds all of these facts"),
    ],
)
def test_what_cannot_be_acquired(tiny: Graph, given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        posterior_of(tiny).acquire(**given)
