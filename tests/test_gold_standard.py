"""LIM's predictive probabilities against Pyro's NUTS on the very same model."""

from __future__ import annotations

import pytest
import torch

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.posterior.fitted import Posterior

BOUND = 0.09  # mean absolute difference of a fact's probability that we accept of a mean-field posterior
OPTIONS = {"model": "lim", "score": "DistMult", "dim": 2, "prior": "normal(scale=1.5)", "inverse": False}
OPTIONS["closed_world"] = "local"


@pytest.fixture(scope="module")
def fitted(tiny: Graph) -> Posterior:
    return kgpyro.fit(tiny, **OPTIONS, epochs=500, lr=0.15, precision="64", progress=False, device="cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def nuts_probabilities(tiny: Graph) -> torch.Tensor:
    """Posterior predictive probability of every fact of every training query, by NUTS."""
    options = {key: value for key, value in OPTIONS.items() if key != "kl_schedule"}
    gold = kgpyro.fit(tiny, **options, inference="nuts", warmup_draws=150, posterior_draws=300, progress=False)  # type: ignore[arg-type]
    queries = tiny.training_queries
    return gold.probabilities(queries.anchor, queries.relation, draws=300)


def difference(posterior: Posterior, gold: torch.Tensor) -> float:
    queries = posterior.graph.training_queries
    ours = posterior.probabilities(queries.anchor, queries.relation, draws=2000)
    return float((ours - gold).abs().mean())


def test_lim_predicts_like_nuts(fitted: Posterior, nuts_probabilities: torch.Tensor) -> None:
    found = difference(fitted, nuts_probabilities)
    print(f"\nmean absolute difference from NUTS: {found:.4f}")
    assert found < BOUND


@pytest.mark.parametrize("inference", ["hmc", "uha"])
def test_moved_draws_predict_like_nuts(tiny: Graph, nuts_probabilities: torch.Tensor, inference: str) -> None:
    """Hamiltonian steps from the guide's draws mend what independence costs."""
    how = {"inference": inference, "warmup_draws": 200, "posterior_draws": 640, "epochs": 400, "lr": 0.05}
    moved = kgpyro.fit(tiny, **OPTIONS, **how, progress=False, device="cpu")  # type: ignore[arg-type]
    queries = tiny.training_queries
    p = moved.probabilities(queries.anchor, queries.relation, draws=640)
    assert float((p - nuts_probabilities).abs().mean()) < BOUND / 3
    if inference == "hmc":
        assert moved.metrics["hmc"]["r_hat"] < 1.1 and 0.6 < moved.metrics["hmc"]["acceptance"] < 0.99


@pytest.mark.parametrize("spoil", ["scales times five", "one entity's means negated", "prior"])
def test_a_wrong_guide_does_not(tiny: Graph, fitted: Posterior, nuts_probabilities: torch.Tensor, spoil: str) -> None:
    wrong = Posterior(tiny, fitted.program, fitted.guide, fitted.config)
    saved = {k: v.clone() for k, v in fitted.guide.state_dict().items()}
    with torch.no_grad():
        if spoil == "scales times five":
            fitted.guide.entity.log_scale.add_(1.6)
            fitted.guide.relation.log_scale.add_(1.6)
        elif spoil == "prior":
            fitted.guide.entity.loc.zero_()
        else:
            fitted.guide.entity.loc[tiny.entity_id("b")].neg_()
            fitted.guide.entity.loc[tiny.entity_id("d")].neg_()
    found = difference(wrong, nuts_probabilities)
    fitted.guide.load_state_dict(saved)
    print(f"\n{spoil}: {found:.4f}")
    assert found > BOUND
