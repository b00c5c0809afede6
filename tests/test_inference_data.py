"""The export to ArviZ: every group against what it must be, by hand, and the plots that live on it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats
from test_posterior import posterior_of

import kgpyro
import kgpyro.posterior.inference_data
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.inference_data import _some_facts, load_arviz

arviz, NEW = load_arviz()
GROUPS = {"posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data"}


def values(data: Any, group: str, variable: str) -> np.ndarray:
    """Without the chain."""
    return data[group][variable].to_numpy()[0]


def logits_by_hand(data: Any, inverse: bool) -> np.ndarray:
    """DistMult's, the mean of both readings, from the exported latents, ``(draws, facts)``."""
    posterior = data["posterior"]
    columns = []
    for fact in data["log_likelihood"]["fact"].to_numpy():
        head, relation, tail = str(fact).split(" ")
        h, t = (posterior["entities"].sel(entity=name).to_numpy()[0] for name in (head, tail))
        readings = [relation, f"{relation}_inverse"] if inverse else [relation]
        r = np.mean([posterior["relations"].sel(relation=name).to_numpy()[0] for name in readings], axis=0)
        columns.append((h * r * t).sum(-1) + posterior["intercept"].sel(intercept_relation=relation).to_numpy()[0])
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("inverse", [True, False])
def test_a_draw_is_one_draw_in_every_group(tiny: Graph, inverse: bool) -> None:
    posterior = posterior_of(tiny, inverse=inverse)
    data = posterior.to_arviz(draws=400)
    names = ["knows", "likes"] + ["knows_inverse", "likes_inverse"] * inverse
    assert set(data["posterior"]["relation"].to_numpy()) == set(names)
    assert data["posterior"]["entities"].dims == ("chain", "draw", "entity", "entity_dim")
    assert data["posterior"]["relations"].shape == (1, 400, len(names), 4)

    logits = logits_by_hand(data, inverse)
    p = 1 / (1 + np.exp(-logits))
    facts = [str(fact).split(" ") for fact in data["observed_data"]["fact"].to_numpy()]
    train = {(tiny.entities[h], tiny.relations[r], tiny.entities[t]) for h, r, t in tiny.train.tolist()}
    y = np.array([tuple(fact) in train for fact in facts])
    np.testing.assert_array_equal(data["observed_data"]["y"].to_numpy(), y)
    assert 0 < y.sum() < len(y) == len(set(map(tuple, facts)))
    assert ["b", "likes", "b"] in facts
    expected = -np.logaddexp(0, np.where(y, -logits, logits))
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected, rtol=1e-3, atol=1e-5)

    predicted = values(data, "posterior_predictive", "y")
    assert set(np.unique(predicted)) == {0, 1}
    centred = p - p.mean(0)  # labels go with the probability of their own draw
    error = 5 * np.sqrt((p * (1 - p) * centred**2).sum())
    assert (centred**2).sum() > 2 * error
    assert abs(((predicted - p) * centred).sum()) < error


def test_a_draw_of_a_mixture_is_one_draw(tiny: Graph) -> None:
    options: dict[str, Any] = {"model": "lim", "guide": "mixture(members=2)", "score": "DistMult", "dim": 4}
    data = kgpyro.fit(tiny, epochs=2, progress=False, **options).to_arviz(draws=20)
    logits, y = logits_by_hand(data, True), data["observed_data"]["y"].to_numpy()
    expected = -np.logaddexp(0, np.where(y, -logits, logits))
    np.testing.assert_allclose(values(data, "log_likelihood", "y"), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["lim", "lfm"])
def test_latents_and_facts_are_of_the_guide(tiny: Graph, model: str) -> None:
    posterior = posterior_of(tiny, model=model, score="TransE-L2", inverse=False)
    data = posterior.to_arviz(draws=3000)
    for kind, variable in (("entity", "entities"), ("relation", "relations")):
        q = posterior.guide.posterior(kind, ...).base_dist
        drawn, scale = values(data, "posterior", variable), q.scale.detach().numpy()
        assert (abs(drawn.mean(0) - q.loc.detach().numpy()) < 5 * scale / 3000**0.5).all()
        np.testing.assert_allclose(drawn.std(0), scale, rtol=0.08)
    facts = [str(fact).split(" ") for fact in data["observed_data"]["fact"].to_numpy()]
    expected = posterior.facts(facts, draws=3000, seed=1)
    likelihood = np.exp(values(data, "log_likelihood", "y"))
    found = np.where(data["observed_data"]["y"].to_numpy() == 1, likelihood, 1 - likelihood)
    assert (abs(found.mean(0) - expected["probability"]) < 5 * expected["std"] * (2 / 3000) ** 0.5 + 1e-3).all()
    np.testing.assert_allclose(found.std(0), expected["std"], rtol=0.12, atol=1e-3)


def test_priors_are_drawn_with_their_parameters(tiny: Graph) -> None:
    chosen = {"entities": ["c", "a"], "relations": ["likes"]}
    prior = "normal(scale=per_symbol(half_cauchy(half_cauchy(0.5))))"
    posterior = posterior_of(tiny, prior=prior)
    data = posterior.to_arviz(draws=1000, **chosen)
    assert list(data["prior"]["entity"].to_numpy()) == ["c", "a"]
    assert list(data["prior"]["relation"].to_numpy()) == ["likes", "likes_inverse"]
    for group in ("prior", "posterior"):
        assert data[group]["entity_scale"].dims == ("chain", "draw", "entity")
        assert data[group]["relation_scale_scale"].dims == ("chain", "draw")
    scale = values(data, "prior", "entity_scale")
    assert (values(data, "prior", "entities") / scale[:, :, None]).std((0, 2)) == pytest.approx(1, rel=0.06)
    # a half-Cauchy's median is its scale
    assert np.median(values(data, "prior", "entity_scale_scale")) == pytest.approx(0.5, rel=0.2)
    assert np.median(scale / values(data, "prior", "entity_scale_scale")[:, None]) == pytest.approx(1, rel=0.2)
    q = posterior.guide.field("entity_scale")
    with torch.no_grad():
        q.loc.copy_(torch.arange(5.0)[:, None])
    drawn = values(posterior.to_arviz(draws=300, **chosen), "posterior", "entity_scale")
    np.testing.assert_allclose(np.log(drawn).mean(0), [2, 0], atol=0.1)

    learned = posterior_of(tiny, prior="normal(scale=learn_per_symbol)")
    with torch.no_grad():
        learned.kg.symbol_prior("entity").learned["scale"].copy_(torch.arange(5.0)[:, None])
    drawn = values(learned.to_arviz(draws=1000, **chosen), "prior", "entities")
    np.testing.assert_allclose(drawn.std((0, 2)), np.exp([2, 0]), rtol=0.06)


@pytest.mark.parametrize("prior", ["gamma", "mixture_of_diag_normals", "hyperspherical_uniform", "dirichlet"])
def test_priors_of_every_shape(tiny: Graph, prior: str) -> None:
    posterior = posterior_of(tiny, prior=prior)
    drawn = values(posterior.to_arviz(draws=400), "prior", "entities")
    expected = posterior.kg.priors()[0](...).sample(torch.Size([2000]))
    for entity in range(tiny.num_entities):
        for found, known in ((drawn[:, entity, 0], expected[:, 0]), (drawn[:, entity].max(-1), expected.amax(-1))):
            assert stats.ks_2samp(found, known.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("inverse", [True, False])
def test_subsamples(tiny: Graph, inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = posterior_of(tiny, score="ComplEx", inverse=inverse)
    monkeypatch.setattr(kgpyro.posterior.inference_data, "SYMBOLS", 3)
    data, again = (posterior.to_arviz(draws=50, facts=8, observed=0.5) for _ in range(2))
    assert data["posterior"].sizes["entity"] == data["prior"].sizes["entity"] == 3
    assert data["observed_data"]["y"].to_numpy().tolist() == [1] * 4 + [0] * 4
    for group in GROUPS:
        for variable in data[group].data_vars:
            np.testing.assert_array_equal(data[group][variable], again[group][variable])
    others = {tuple(posterior.to_arviz(draws=1, facts=8, seed=i)["posterior"]["entity"].to_numpy()) for i in range(9)}
    assert len(others) > 2
    monkeypatch.setattr(kgpyro.posterior.inference_data, "VALUES", 400)
    assert posterior.to_arviz(draws=50)["posterior"].sizes["entity"] == 2


@pytest.mark.parametrize("enumerated", [True, False])
def test_facts_are_a_fair_sample(enumerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell is as likely as any other; observed ones come at their base rate."""
    rows = [[f"e{i}", "r", f"e{i * j % 30}"] for i in range(30) for j in range(1, 1 + i % 3)]
    graph = Graph.from_triples("made", rows, [["e1", "r", "e0"]], [["e1", "r", "e0"]])
    if not enumerated:
        monkeypatch.setattr(kgpyro.posterior.inference_data, "FACTS", 0)
    base_rate = len(graph.train) / graph.num_entities**2
    torch.manual_seed(0)
    asked = [_some_facts(posterior_of(graph), 100, None) for _ in range(60)]
    labels = torch.cat([y for _, y in asked])
    assert len(labels) == 6000
    assert float(labels.mean()) == pytest.approx(base_rate, abs=5 * (base_rate / 6000) ** 0.5)
    facts = torch.cat([fact for fact, _ in asked])
    for column in (0, 2):
        counts = torch.bincount(facts[:, column], minlength=graph.num_entities)
        assert ((counts - 6000 / graph.num_entities).abs() < 5 * (6000 / graph.num_entities) ** 0.5).all()


def test_unusable_requests(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = posterior_of(tiny)
    with pytest.raises(InputError, match="no entity 'z'"):
        posterior.to_arviz(entities=["z"])
    with pytest.raises(InputError, match="no relation 'hates'"):
        posterior.to_arviz(relations=["hates"])
    with pytest.raises(InputError, match="from 0 to 1; got 2"):
        posterior.to_arviz(observed=2)
    with pytest.raises(InputError, match="draws must be a positive number; got 0"):
        posterior.to_arviz(draws=0)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(InputError, match=r"pip install arviz, or kgpyro\[arviz\]"):
        posterior.to_arviz()


def plots(data: Any) -> dict[str, Any]:
    """A figure by each of ArviZ's plots that the README names."""
    loo = arviz.loo(data, pointwise=True)
    assert np.isfinite(loo.pareto_k).all()
    names = {"var_names": ["entities"], "coords": {"entity": ["a"], "entity_dim": [0, 1]}}
    if NEW:
        made = {
            "pair": arviz.plot_pair(data, **names),
            "forest": arviz.plot_forest(data, **names),
            "pava": arviz.plot_ppc_pava(data, data_type="binary"),
            "khat": arviz.plot_khat(loo),
        }
        return {name: collection.viz["figure"].item() for name, collection in made.items()}
    made = {
        "pair": arviz.plot_pair(data, **names),
        "forest": arviz.plot_forest(data, **names),
        "ppc": arviz.plot_ppc(data, num_pp_samples=50, random_seed=0),
        "separation": arviz.plot_separation(data, y="y"),
        "khat": arviz.plot_khat(loo),
    }
    return {name: np.ravel(axes)[0].figure for name, axes in made.items()}


def test_plots(tiny: Graph) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = posterior_of(tiny).to_arviz(draws=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ's own
        figures = plots(data)
    for figure in figures.values():
        figure.canvas.draw()
        assert any(axes.has_data() for axes in figure.axes)
    plt.close("all")
