"""Posteriors as starts: of a fit by the names of symbols, and as the prior of new facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_answers import uneven
from test_posterior import posterior_of

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior import streaming
from kgpyro.posterior.fitted import Posterior

OPTIONS: dict[str, Any] = {"model": "lim", "score": "DistMult", "dim": 6, "progress": False}


def family(people: int = 12) -> list[tuple[str, str, str]]:
    """A graph with a rule: people like those of their team, and know those of the next."""
    rows, teams = [], people // 4
    for i in range(people):
        for j in range(people):
            if i != j and (i - j) % teams == 0:
                rows.append((f"p{i:02}", "likes", f"p{j:02}"))
            if (i - j) % teams == 1:
                rows.append((f"p{i:02}", "knows", f"p{j:02}"))
    return rows


@pytest.mark.parametrize("guide", ["lookup", "lowrank(rank=2)", "mlp(width=4, hidden=8)", "mixture(members=2)"])
def test_a_start_goes_by_names(guide: str) -> None:
    """A fit without steps to speak of is where it started, in a graph whose names stand elsewhere."""
    rows = family(8)
    before = Graph.from_triples("before", rows, [], [])
    other = [(f"q{h}", r, t) if h == "p07" else (h, r, t) for h, r, t in rows] + [("a0", "adores", "p01")]
    after = Graph.from_triples("after", other, [], [])
    prior = "normal(scale=learn_per_symbol)"
    first = kgpyro.fit(before, guide=guide, epochs=2, prior=prior, **OPTIONS)
    again = kgpyro.fit(after, start=first, epochs=1, lr=1e-9, progress=False)
    assert (again.config["dim"], again.config["prior"], again.config["guide"]) == (6, first.config["prior"], guide)
    old, new = first.embeddings(), again.embeddings()
    for kind in ("entity", "relation"):
        old, new = first.embeddings(kind), again.embeddings(kind)
        shared = old.index.intersection(new.index)
        assert len(shared) == (8 if kind == "entity" else 4)
        np.testing.assert_allclose(new.loc[shared], old.loc[shared], rtol=1e-4, atol=1e-5)
    scales = [p.kg.symbol_prior("entity").values()["scale"].detach() for p in (first, again)]
    place = after.entity_id("p03"), before.entity_id("p03")
    torch.testing.assert_close(scales[1][place[0]], scales[0][place[1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        again.guide.field("intercept").loc[after.relation_id("likes")],  # type: ignore[union-attr]
        first.guide.field("intercept").loc[before.relation_id("likes")],  # type: ignore[union-attr]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 8}, "`start` has dim 6, the fit 8"),
        ({"guide": "point"}, "`start` has guide lookup, the fit point"),
        ({"inference": "nuts", "inverse": False}, "draws .of NUTS, HMC or UHA. have none"),
        ({"resume": "somewhere"}, "does not go with `resume`"),
    ],
)
def test_no_start(options: dict[str, Any], words: str) -> None:
    graph = Graph.from_triples("g", family(5), [], [])
    start = kgpyro.fit(graph, epochs=1, **OPTIONS)
    with pytest.raises(InputError, match=words):
        kgpyro.fit(graph, start=start, epochs=1, progress=False, **options)


@pytest.mark.parametrize("seed", range(3))
def test_an_update_learns_and_forgets_nothing(seed: int) -> None:
    """Old facts are as probable as before; all facts nearly as in a fit of all facts."""
    rows = family()
    new = [rows[5], rows[50]]
    graph = Graph.from_triples("old", [row for row in rows if row not in new], [], [])
    before = kgpyro.fit(graph, epochs=100, seed=seed, **OPTIONS)
    after = before.update(new, seed=seed)
    whole = Graph.from_triples("all", rows, [], [])
    refit = kgpyro.fit(whole, start=before, epochs=60, seed=seed, progress=False)
    assert after.graph.entities == graph.entities
    assert len(after.graph.train) == len(rows)
    log_p = [float(np.log(p.facts(graph.to_dataframe(), draws=200)["probability"]).mean()) for p in (before, after)]
    assert log_p[1] > log_p[0] - 0.02
    was, found, wanted = (p.facts(new, draws=200)["probability"] for p in (before, after, refit))
    assert (found > was).all()
    assert (found - wanted).abs().max() < 0.2
    every = [p.facts(whole.to_dataframe(), draws=200)["probability"] for p in (after, refit)]
    assert (every[0] - every[1]).abs().mean() < 0.06


def test_an_update_with_new_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer's fact is learned, its other cells are false; sampled cells stand for all."""
    graph = Graph.from_triples("old", family(), [], [])
    before = kgpyro.fit(graph, epochs=60, **OPTIONS)
    new = [("zoe", "likes", "p01"), ("zoe", "likes", "p02"), ("p00", "adores", "zoe")]
    for cells in (200_000, 200):
        monkeypatch.setattr(streaming, "CELLS", cells)
        after = before.update(new, epochs=100)
        assert after.graph.entities == (*graph.entities, "zoe")
        assert after.graph.relations == (*graph.relations, "adores")
        p = after.facts([*new, ("zoe", "likes", "p09"), ("p05", "adores", "p07")], draws=200)["probability"]
        assert p[:2].min() > p[3:].max()
        drift = after.facts(graph.train, draws=200)["probability"] - before.facts(graph.train, draws=200)["probability"]
        assert drift.abs().mean() < 0.1


def test_the_objective_of_an_update() -> None:
    """Against the sum over all cells of a tiny graph: labels that changed, cells of new symbols, and the price."""
    old = Graph.from_triples("g", [("a", "r", "b"), ("b", "r", "a"), ("b", "s", "c")], [], [])
    larger, new = streaming.with_facts(old, [("a", "r", "c"), ("a", "r", "b"), ("d", "t", "a")])
    assert len(new) == 2
    cells, label, weight = streaming._cells(old, larger, new)
    E, R = larger.num_entities, larger.num_relations
    found = torch.zeros(2, E, R, E)
    found[label.long(), cells[:, 0], cells[:, 1], cells[:, 2]] += weight
    expected = torch.zeros(2, E, R, E)
    expected[0, old.num_entities :] = expected[0, :, old.num_relations :] = expected[0, :, :, old.num_entities :] = 1
    for h, r, t in new.tolist():
        expected[0, h, r, t] -= 1
        expected[1, h, r, t] = 1
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "lfm"}, "model lfm is not one of latents per symbol"),
        ({"guide": "mixture(members=2)"}, "no table of one Gaussian per symbol"),
        ({"closed_world": "local"}, "its data are not all facts"),
        ({"kl_frequency": 0.75}, "no posterior of them"),
        ({"prior": "gamma"}, "make no Gaussian per symbol"),
        ({"prior": "normal(scale=half_cauchy(1))"}, "parameters of its priors are latents"),
    ],
)
def test_what_cannot_be_updated(tiny: Graph, changed: dict[str, Any], words: str) -> None:
    posterior = uneven(tiny, **{"closed_world": "full", **changed})
    with pytest.raises(InputError, match=words):
        posterior.update([("e", "likes", "d")])


def test_nothing_to_update(tiny: Graph) -> None:
    with pytest.raises(InputError, match="training holds all of these facts"):
        posterior_of(tiny, closed_world="full").update(("a", "likes", "b"))


def test_held_out_facts_become_trainings(tiny: Graph, tmp_path: Any) -> None:
    after = posterior_of(tiny, closed_world="full", unanswered="all", seed=0, precision="32").update(
        ("d", "likes", "a"), epochs=2
    )
    assert after.facts(("d", "likes", "a"))["known"][0] == "train"
    assert len(after.graph.valid) == 0
    after.save(tmp_path / "run")
    again = Posterior.load(tmp_path / "run")
    assert again.facts(("d", "likes", "a")).equals(after.facts(("d", "likes", "a")))
