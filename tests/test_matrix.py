"""Every model × prior × score: a step, its gradients, and a round trip through files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Parts

from kgpyro.elbo import WeightedELBO
from kgpyro.graph import Graph
from kgpyro.names import MODELS
from kgpyro.posterior import Posterior
from kgpyro.priors import prior_names
from kgpyro.scoring import SCORES

SCORE_NAMES = sorted({s.name for s in SCORES.values()} | {"pykeen:HolE"})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prior", prior_names())
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_one_step_and_a_round_trip(tiny: Graph, tmp_path: Path, model: str, prior: str, score: str) -> None:
    parts = Parts(tiny, model, prior, score)
    modules = torch.nn.ModuleList([parts.kg, parts.guide])
    optimizer = torch.optim.Adagrad(modules.parameters(), lr=0.01)
    before = {k: v.clone() for k, v in modules.state_dict().items()}
    loss = WeightedELBO().differentiable_loss(parts.model, parts.guide, parts.kg, parts.batches(torch.arange(4)))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in modules.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    optimizer.step()
    assert all(not torch.equal(before[k], v) for k, v in modules.state_dict().items())

    config = {"model": model, "prior": prior, "entity_prior": None, "relation_prior": None}
    config |= {"score": score, "guide": "lookup", "dim": 4, "inverse": True}
    posterior = Posterior(tiny, parts.kg, parts.guide, config, {"elbo_per_fact": float(loss.detach())})
    posterior.save(tmp_path / "run")
    again = Posterior.load(tmp_path / "run")
    for mine, its in ((parts.kg, again.kg), (parts.guide, again.guide)):
        for key, value in mine.state_dict().items():
            assert torch.equal(value, its.state_dict()[key]), key
    assert again.metrics == posterior.metrics
    queries = torch.tensor([0, 1]), torch.tensor([0, 3])
    assert torch.equal(posterior.mean_scores(*queries, draws=2), again.mean_scores(*queries, draws=2))
    assert torch.equal(posterior.probabilities(*queries, draws=2), again.probabilities(*queries, draws=2))
