"""Every two of model, prior, guide and score together: a step, its gradients, a round trip through files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from conftest import Parts, pairwise

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.names import GUIDES, MODELS, STANDARD
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.interactions import SCORES
from kgpyro.program.priors import resolve_prior

SCORE_NAMES = sorted({s.name for s in SCORES.values()} | {"pykeen:HolE"})
HIERARCHICAL = ["normal(scale=learn)", "gamma(rate=learn_per_symbol)", "normal(scale=per_dim(half_cauchy))"]
SMALL = {"lookup": "lookup", "mlp": "mlp(width=3, hidden=4)", "features": "features(hidden=4)"}
SMALL |= {"lowrank": "lowrank(rank=2)", "flow": "flow(layers=2, hidden=3)", "point": "point"}
SMALL["mixture"] = "mixture(members=2)"


def refused(prior: str, guide: str) -> bool:
    return guide in ("lowrank", "flow") and resolve_prior(prior).family(4).spherical


PRIORS = [*STANDARD, *HIERARCHICAL]


def rows(prior: str) -> list[tuple[str, str, str]]:
    """Model, guide and score of each row of a prior in a covering array of strength two (pairwise testing)."""
    i, models, guides = PRIORS.index(prior), list(MODELS), list(GUIDES)
    places = range(i, i + len(SCORE_NAMES))
    return [(models[k % 2], guides[k % 7], score) for k, score in zip(places, SCORE_NAMES, strict=True)]


def test_the_rows_have_every_pair() -> None:
    every = [(prior, *row) for prior in PRIORS for row in rows(prior)]
    values = [set(column) for column in zip(*every, strict=True)]
    assert [len(v) for v in values] == [len(PRIORS), len(MODELS), len(GUIDES), len(SCORE_NAMES)]
    for a, b in itertools.combinations(range(4), 2):
        assert {(row[a], row[b]) for row in every} == set(itertools.product(values[a], values[b]))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_pair(tiny: Graph, tmp_path: Path, prior: str) -> None:
    for model, guide, score in rows(prior):
        if refused(prior, guide):
            with pytest.raises(InputError, match="not on the sphere"):
                Parts(tiny, model, prior, score, guide=SMALL[guide])
        else:
            one_step_and_a_round_trip(tiny, tmp_path / score, model, prior, guide, score)


def one_step_and_a_round_trip(graph: Graph, folder: Path, model: str, prior: str, guide: str, score: str) -> None:
    parts = Parts(graph, model, prior, score, guide=SMALL[guide], features=torch.randn(5, 2))
    modules = torch.nn.ModuleList([parts.kg, parts.guide])
    before = {k: v.clone() for k, v in modules.state_dict().items()}
    optimizer = torch.optim.Adagrad(modules.parameters(), lr=0.01)
    loss = WeightedELBO().differentiable_loss(parts.model, parts.guide, parts.kg, parts.batches(torch.arange(4)))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in modules.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    moved = {name for name, parameter in modules.named_parameters() if parameter.grad.abs().max() > 0}  # type: ignore[union-attr]
    waiting = {name for name, _ in modules.named_parameters() if "coupling" in name}  # behind a last layer that is zero
    assert moved | waiting >= {name for name, _ in modules.named_parameters()}
    same_gradients_as_plain_pyro(parts, list(modules.parameters()))
    optimizer.step()
    assert all(not torch.equal(before[k], v) for k, v in modules.state_dict().items() if k in moved)

    config = {"model": model, "prior": prior, "entity_prior": None, "relation_prior": None}
    config |= {"score": score, "guide": SMALL[guide], "dim": 4, "inverse": True, "closed_world": "local"}
    config |= {"unanswered": None, "negatives": "all", "negative_weight": None, "likelihood": "bernoulli"}
    posterior = parts.posterior(**config, completeness=1.0)
    posterior.metrics["elbo_per_fact"] = float(loss.detach())
    posterior.save(folder)
    again = Posterior.load(folder)
    for mine, its in ((parts.kg, again.kg), (parts.guide, again.guide)):
        for key, value in mine.state_dict().items():
            assert torch.equal(value, its.state_dict()[key]), key
    assert again.metrics == posterior.metrics
    queries = torch.tensor([0, 1]), torch.tensor([0, 3])
    assert torch.equal(posterior.mean_scores(*queries, draws=2), again.mean_scores(*queries, draws=2))
    assert torch.equal(posterior.probabilities(*queries, draws=2), again.probabilities(*queries, draws=2))


def same_gradients_as_plain_pyro(parts: Parts, parameters: list[torch.nn.Parameter]) -> None:
    """Kernel and late draws change nothing: with the same noise, loss and gradients are plain Pyro's."""
    batch, found = parts.batches(torch.arange(4)), []
    for estimator in ("plain", "shared"):
        torch.manual_seed(1)
        loss = WeightedELBO(estimator=estimator).differentiable_loss(parts.model, parts.guide, parts.kg, batch)
        found.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-3, atol=1e-3 * (1 + float(plain.abs().max())))


@pairwise(
    model=list(MODELS),
    guide=list(GUIDES),
    prior=["normal", "gamma", "dirichlet", "hyperspherical_uniform", HIERARCHICAL[2]],
)
@pytest.mark.usefixtures("double")
def test_gradients_are_those_of_plain_pyro(tiny: Graph, model: str, prior: str, guide: str) -> None:
    """One-draw gradients of the default estimator, averaged, against plain Pyro's: equal within their errors."""
    if refused(prior, guide):
        pytest.skip("refused, as the test above shows")
    parts = Parts(tiny, model, prior, "ComplEx", guide=SMALL[guide], features=torch.randn(5, 2))
    batch = parts.batches(torch.arange(len(parts.batches)))
    parameters = [*parts.guide.parameters(), *parts.kg.parameters()]
    moments = []
    for estimator in ("local", "plain"):
        elbo, drawn = WeightedELBO(estimator=estimator), []
        for _ in range(200):
            loss = elbo.differentiable_loss(parts.model, parts.guide, parts.kg, batch)
            drawn.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        stacked = torch.stack(drawn)
        moments.append((stacked.mean(0), stacked.var(0) / len(drawn)))
    (mean, error), (plain, plain_error) = moments
    z = (mean - plain) / (error + plain_error).sqrt().clamp_min(1e-8)
    assert z.square().mean() < 4  # the components are correlated, so few count
