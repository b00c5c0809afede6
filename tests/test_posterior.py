"""What a posterior says: mean scores, predictive probabilities, predictions, files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
import yaml
from conftest import Parts, pairwise

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior

CONFIG = {
    "model": "lim", "prior": "normal", "entity_prior": None, "relation_prior": None, "score": "DistMult",
    "guide": "lookup", "dim": 4, "inverse": True, "closed_world": "local", "unanswered": None, "negatives": "all",
    "negative_weight": None, "likelihood": "bernoulli", "completeness": 1.0,
}  # fmt: skip


def posterior_of(graph: Graph, **changed: object) -> Posterior:
    config = CONFIG | changed
    parts = Parts(graph, config["model"], config["prior"], config["score"], inverse=config["inverse"])  # type: ignore[arg-type]
    with torch.no_grad():
        parts.guide.entity.loc.normal_()  # type: ignore[union-attr, operator]
        parts.guide.entity.log_scale.fill_(-0.5)  # type: ignore[union-attr, operator]
    return parts.posterior(**config)


@pairwise(
    inverse=[True, False],
    model=["lim", "lfm"],
    score=["DistMult", "ComplEx", "RESCAL", "CP", "TransE-L2"],
    prior=["normal", "gamma", "uniform"],
)
def test_mean_scores_are_the_mean_of_drawn_scores(
    tiny: Graph, model: str, score: str, prior: str, inverse: bool
) -> None:
    posterior = posterior_of(tiny, model=model, score=score, prior=prior, inverse=inverse)
    anchor, row = torch.arange(4), torch.arange(4)
    draws = 1500 if model == "lim" else 300  # latents of facts are drawn anew for each of them
    with torch.no_grad():
        posterior.guide.field("intercept").loc.zero_()  # type: ignore[union-attr, operator]
        posterior.guide.field("intercept").log_scale.fill_(-9.0)  # type: ignore[union-attr, operator]
        drawn = torch.stack([*posterior.answer_logits(anchor, row, draws, seed=2)])
    expected = drawn.mean(0)
    exact = posterior.mean_scores(anchor, row, draws=draws, both=True)
    monte_carlo = drawn.std(0) / draws**0.5 * (1 if posterior.kg.score.multilinear else 2**0.5)
    assert ((exact - expected).abs() < 5 * monte_carlo + 1e-4).all()
    pairs = torch.tensor([0, 1, 1]), torch.tensor([2, 1, 4])  # a self-loop among them
    R = tiny.num_relations
    each = torch.arange(R).repeat(3)
    facts = torch.stack([pairs[0].repeat_interleave(R), each, pairs[1].repeat_interleave(R)], 1)
    drawn = posterior.fact_logits(facts, draws, seed=1)
    found = posterior.mean_relation_scores(*pairs, draws).flatten()
    monte_carlo = drawn.std(0) / draws**0.5 * (1 if posterior.kg.score.multilinear else 2**0.5)
    assert ((found - drawn.mean(0)).abs() < 5 * monte_carlo + 1e-4).all()


def test_relations_are_ranked_too(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    table = posterior.evaluate(relations=True)
    assert table.drop(index="relation", level="side").equals(posterior.evaluate())
    known, mrr = torch.cat([tiny.train, tiny.valid, tiny.test]), []
    for h, r, t in tiny.test:
        scores = posterior.mean_relation_scores(h[None], t[None])[0]
        others = known[(known[:, 0] == h) & (known[:, 2] == t) & (known[:, 1] != r), 1].tolist()
        mrr.append(1 / (1 + sum(bool(scores[o] > scores[r]) for o in range(len(scores)) if o not in others)))
    assert table.loc[("filtered", "relation"), "mrr"] == pytest.approx(sum(mrr) / len(mrr))


@pytest.mark.parametrize("inverse", [True, False])
def test_a_prediction(tiny: Graph, inverse: bool) -> None:
    posterior = posterior_of(tiny, inverse=inverse)
    table = posterior.predict(head="a", relation="likes", top=None)
    assert list(table.columns) == [
        "tail", "probability", "std", "low", "high", "aleatoric", "epistemic", "score", "frequency",
        "error", "known",
    ]  # fmt: skip
    assert set(table["tail"]) == set(tiny.entities)
    assert (table["probability"].diff().dropna() <= 0).all()
    assert ((table["low"] <= table["high"]) & table["low"].between(0, 1) & table["high"].between(0, 1)).all()
    assert set(table.loc[table["known"] == "train", "tail"]) == {"b", "c", "d"}
    heads = posterior.predict(tail="c", relation="likes", top=2)
    assert heads.columns[0] == "head"
    assert len(heads) == 2
    pd.testing.assert_frame_equal(heads, posterior.predict(tail="c", relation="likes", top=2))
    assert (
        dict(
            zip(*posterior.predict(tail="c", relation="likes", top=None)[["head", "known"]].T.to_numpy(), strict=True)
        )["b"]
        == "test"
    )


@pytest.mark.parametrize("score", ["DistMult", "TransE-L1"])
def test_predicted_probabilities_are_the_posterior_predictive(tiny: Graph, score: str) -> None:
    posterior = posterior_of(tiny, score=score)
    table = posterior.predict(head="a", relation="knows", top=None, draws=3000).set_index("tail")["probability"]
    anchor, row = torch.tensor([tiny.entity_id("a")]), torch.tensor([tiny.relation_id("knows")])
    expected = posterior.probabilities(anchor, row, draws=3000)[0].numpy()
    np.testing.assert_allclose(table[list(tiny.entities)].to_numpy(), expected, atol=0.04)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"head": "a"}, "needs two of"),
        ({"relation": "likes"}, "needs two of"),
        ({"head": "a", "tail": "b", "relation": "likes"}, "needs two of"),
        ({"head": "z", "relation": "likes"}, "no entity 'z'"),
        ({"head": "a", "relation": "hates"}, "no relation 'hates'"),
    ],
)
def test_unusable_queries(tiny: Graph, query: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        posterior_of(tiny).predict(**query)  # type: ignore[arg-type]


def test_evaluation(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    assert posterior.evaluate()["mrr"].between(0, 1).all()
    assert posterior.evaluate("valid", by="probability", draws=10)["mr"].between(1, 5).all()
    assert posterior.evaluate(per_relation=True).index.names == ["relation", "side"]
    with pytest.raises(InputError, match="did you mean 'test'"):
        posterior.evaluate("tset")
    with pytest.raises(InputError, match="by 'score' or 'probability'"):
        posterior.evaluate(by="luck")


def saved(tiny: Graph, folder: Path, **changed: object) -> Path:
    posterior_of(tiny, **changed).save(folder)
    return folder


def test_a_folder_is_enough(tiny: Graph, tmp_path: Path) -> None:
    run = saved(tiny, tmp_path / "run")
    again = kgpyro.load(run)
    assert again.graph.entities == tiny.entities
    assert torch.equal(again.graph.test, tiny.test)
    assert repr(again) == "Posterior(lim, DistMult, dim 4, graph 'tiny')"
    with pytest.raises(InputError, match="holds another run"):
        again.save(run)


def spoil(run: Path, file: str, content: bytes) -> None:
    (run / file).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("posterior.safetensors", b"\x80\x04pickle", "damaged"),
        ("graph.safetensors", b"{", "damaged"),
        ("graph.safetensors", b"", "damaged"),
        ("config.yaml", b"a: [", "damaged"),
        ("metrics.json", b"", "damaged"),
        ("config.yaml", yaml.safe_dump(CONFIG | {"dim": 6}).encode(), "do not fit"),
        (
            "config.yaml",
            yaml.safe_dump(CONFIG | {"prior": "os:system"}).encode(),
            "your own prior os:system",
        ),
        (
            "config.yaml",
            yaml.safe_dump(CONFIG | {"guide": "os:system"}).encode(),
            "your own guide os:system",
        ),
        ("config.yaml", b"!!python/object/apply:os.system ['true']", "damaged"),
    ],
)
def test_damaged_runs(tiny: Graph, tmp_path: Path, file: str, content: bytes, words: str) -> None:
    run = saved(tiny, tmp_path / "run")
    spoil(run, file, content)
    with pytest.raises(InputError, match=words):
        kgpyro.load(run)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        kgpyro.load(tmp_path)


def test_own_code_is_named_again(tiny: Graph, tmp_path: Path) -> None:
    run = saved(tiny, tmp_path / "run", prior="test_priors:MyPrior")
    with pytest.raises(InputError, match="`run_prior` test_priors:MyPrior"):
        kgpyro.load(run)
    assert kgpyro.load(run, prior="test_priors:MyPrior").kg.priors()[0](...).base_dist.mean[0] == 1.0


def test_metrics_are_json(tiny: Graph, tmp_path: Path) -> None:
    posterior = posterior_of(tiny)
    posterior.metrics = {"test": posterior.evaluation("test")}
    posterior.save(tmp_path / "run")
    read = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"mrr", "mr", "hits@1", "hits@3", "hits@10", "amri"} == set(read["test"]["realistic"])


@pytest.mark.parametrize("options", [{}, {"inference": "hmc", "warmup_draws": 5, "posterior_draws": 64}])
def test_a_posterior_can_be_pickled(tiny: Graph, options: dict, tmp_path: Path) -> None:
    """By its run's files, which hold no code, so that joblib and multiprocessing can send it."""
    quick = {"model": "lim", "dim": 2, "epochs": 3, "progress": False, "device": "cpu"}
    posterior = kgpyro.fit(tiny, **(quick | options))  # type: ignore[arg-type]
    posterior.recalibrate("platt", draws=10)
    again = pickle.loads(pickle.dumps(posterior))
    query = {"head": "a", "relation": "likes", "draws": 10}
    pd.testing.assert_frame_equal(again.predict(**query), posterior.predict(**query))
    assert again.metrics == posterior.metrics and again.recalibration == posterior.recalibration
    moved = again.to(torch.device("cpu"))
    posterior.save(tmp_path / "run")
    loaded = kgpyro.load(tmp_path / "run", device="cpu")
    assert loaded.device == torch.device("cpu") and loaded.predict(**query).equals(posterior.predict(**query))
    with pytest.raises(InputError, match="`device` cuda:63 is not on this machine"):
        kgpyro.load(tmp_path / "run", device="cuda:63")
    assert moved is again and moved.predict(**query).equals(posterior.predict(**query))
    own = kgpyro.fit(tiny, prior=lambda size: dist.Normal(0.0, 1.0), **quick)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Python object"):
        pickle.dumps(own)
