"""Priors whose parameters are learned, or have priors of their own."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Parts

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.inference.elbo import WeightedELBO

GRANULARITIES = ("learn", "learn_per_dim", "learn_per_symbol")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("estimator", ["local", "shared", "plain"])
def test_a_learned_scale_finds_its_closed_form(tiny: Graph, granularity: str, estimator: str) -> None:
    """``s² = mean(μ² + σ²)`` over what the scale serves maximises the bound."""
    parts = Parts(tiny, "lim", f"normal(scale={granularity})", dim=6)
    prior = parts.kg.symbol_prior("entity")
    with torch.no_grad():
        for parameter in parts.guide.parameters():
            parameter.copy_(torch.randn_like(parameter))
    optimizer = torch.optim.LBFGS(prior.parameters(), lr=1, max_iter=200, line_search_fn="strong_wolfe")
    batch = parts.batches(torch.arange(len(parts.batches)))
    elbo = WeightedELBO(estimator=estimator)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        elbo.terms(parts.model, parts.guide, parts.kg, batch).kl.backward()
        return torch.tensor(elbo.terms(parts.model, parts.guide, parts.kg, batch).kl.item())

    optimizer.step(loss)
    table = parts.guide.entity
    squares = table.loc.square() + (2 * table.log_scale).exp()
    expected = {"learn": squares.mean(), "learn_per_dim": squares.mean(0), "learn_per_symbol": squares.mean(1, True)}
    torch.testing.assert_close(prior.values()["scale"].square(), expected[granularity], rtol=1e-4, atol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("prior", ["normal(scale=half_cauchy(0.7))", "laplace(scale=per_dim(gamma(2, 3)))"])
def test_a_latent_scale_in_the_bound(tiny: Graph, prior: str) -> None:
    """The KL is ``E_q(s)[KL(q(h) ‖ p(h|s))] + KL(q(s) ‖ p(s))``: against the sum over many draws of s, by hand."""
    parts = Parts(tiny, "lim", prior)
    batch = parts.batches(torch.arange(len(parts.batches)))
    elbo = WeightedELBO(estimator="shared")
    drawn = torch.tensor([elbo.terms(parts.model, parts.guide, parts.kg, batch).kl.item() for _ in range(700)])

    by_hand = torch.zeros(700)
    hyper = {"half_cauchy": dist.HalfCauchy(0.7), "gamma": dist.Gamma(2.0, 3.0)}[
        "gamma" if "gamma" in prior else "half_cauchy"
    ]
    family = dist.Laplace if "laplace" in prior else dist.Normal
    with torch.no_grad():
        for kind in ("entity", "relation"):
            table = getattr(parts.guide, kind)
            q_scale = dist.LogNormal(
                parts.guide.field(f"{kind}_scale").loc, parts.guide.field(f"{kind}_scale").log_scale.exp()
            )
            q = dist.Normal(table.loc, table.log_scale.exp())
            for i in range(700):
                s = q_scale.sample()
                h = q.sample()
                by_hand[i] += (q_scale.log_prob(s) - hyper.log_prob(s)).sum()
                by_hand[i] += (q.log_prob(h) - family(0.0, s).log_prob(h)).sum()
    error = ((drawn.var() + by_hand.var()) / 700).sqrt()
    assert abs(drawn.mean() - by_hand.mean()) < 4 * error


def test_nested_scales_as_in_a_horseshoe(tiny: Graph) -> None:
    prior = "normal(scale=per_symbol(half_cauchy(scale=half_cauchy(0.1))))"
    parts = Parts(tiny, "lim", prior)
    sites = {"entity_scale": (5, 1), "entity_scale_scale": (), "relation_scale": (4, 1), "relation_scale_scale": ()}
    assert {site: shape for site, (_, shape) in parts.kg.hyper_latents.items()} == sites
    trace = pyro.poutine.trace(parts.model).get_trace(parts.kg, parts.batches(torch.arange(2)))
    assert {site: tuple(trace.nodes[site]["value"].shape) for site in sites} == sites
    pyro.clear_param_store()
    assert trace.nodes["entities"]["fn"].base_dist.scale[1, 0] == trace.nodes["entity_scale"]["value"][1, 0]


@pytest.mark.parametrize("model", ["lim", "lfm"])
@pytest.mark.parametrize("negatives", [None, 2])
@pytest.mark.parametrize("prior", ["normal(scale=learn_per_symbol)", "gamma(rate=per_symbol(gamma))"])
def test_a_parameter_per_symbol_meets_its_symbols(tiny: Graph, model: str, negatives: int | None, prior: str) -> None:
    """Whatever plate a latent lives in, its prior is that of its own symbol."""
    parts = Parts(tiny, model, prior, negatives=negatives)
    name = "scale" if "scale" in prior else "rate"
    values = {"entity": torch.arange(1.0, 6.0), "relation": torch.arange(11.0, 15.0)}
    if name == "scale":
        with torch.no_grad():
            for kind, value in values.items():
                parts.kg.symbol_prior(kind).learned["scale"].copy_(value.log().unsqueeze(-1))
    batch = parts.batches(torch.tensor([1, 3]))
    known = {f"{kind}_{name}": value.unsqueeze(-1) for kind, value in values.items()} if name == "rate" else {}
    conditioned = pyro.poutine.condition(parts.model, data=known)
    trace = pyro.poutine.trace(conditioned).get_trace(parts.kg, batch)
    pyro.clear_param_store()
    for site, its in parts.sites.items():
        if its.frame is not None and its.kind is not None:
            with getattr(batch, its.frame)() as symbols:
                pass
            expected = values[its.kind] if symbols is ... else values[its.kind][symbols]
            found = getattr(trace.nodes[site]["fn"].base_dist, name)[:, 0]
            torch.testing.assert_close(found, expected.expand_as(found))


@pytest.mark.parametrize("schedule", ["warmup", "constant"])
@pytest.mark.parametrize("granularity", [*GRANULARITIES, "half_cauchy(1)"])
def test_a_cold_start_does_not_shrink_the_prior_to_nothing(schedule: str, granularity: str) -> None:
    options = {"model": "lim", "epochs": 40, "kl_schedule": schedule, "progress": False}
    options |= {"closed_world": "local", "kl_weight": 0.5}  # a colder posterior, whose latents say more
    posterior = kgpyro.fit("nations", prior=f"normal(scale={granularity})", **options)
    assert (posterior.prior_parameters()["mean"] > 0.15).all()
    assert min(posterior.metrics["kl_per_latent"].values()) > 5


@pytest.mark.parametrize("granularity", [*GRANULARITIES, "half_cauchy", "per_symbol(half_cauchy)", "learn(0.3)"])
@pytest.mark.parametrize("negatives", ["all", 3])
def test_fit_and_files(tiny: Graph, tmp_path: Path, granularity: str, negatives: int | str) -> None:
    prior = f"normal(scale={granularity})"
    posterior = kgpyro.fit(
        tiny, model="lim", prior=prior, dim=4, epochs=2, negatives=negatives, out=tmp_path / "run", progress=False
    )
    assert posterior.metrics["elbo_per_fact"] < 0
    assert posterior.metrics["kl_per_latent"].keys() == {"entities", "relations"}
    again = kgpyro.load(tmp_path / "run")
    assert again.config["prior"].startswith("normal(scale=")
    for key, value in posterior.kg.symbol_prior("entity").values().items():
        assert torch.equal(value, again.kg.symbol_prior("entity").values()[key])
    for key, value in posterior.guide.state_dict().items():
        assert torch.equal(value, again.guide.state_dict()[key])


def test_a_learned_scale_raises_the_bound() -> None:
    options = {"model": "lim", "epochs": 60, "progress": False, "kl_schedule": "constant"}
    bounds = [
        kgpyro.fit("nations", prior=prior, **options).metrics["elbo_per_fact"]
        for prior in ("normal(scale=4)", "normal(scale=learn(4))")
    ]
    assert bounds[1] > bounds[0] + 0.05
