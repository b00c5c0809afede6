"""Uncorrected Hamiltonian annealing: its weights average to the evidence, its draws are the posterior's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Parts

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.elbo import WeightedELBO, estimate_elbo
from kgpyro.inference.hmc import Chains
from kgpyro.inference.uha import anneal, annealed_draws
from kgpyro.program.setting import INTERCEPT_SCALE

QUICK: dict[str, Any] = {"model": "lim", "dim": 2, "epochs": 5, "inference": "uha", "warmup_draws": 20}
QUICK |= {"posterior_draws": 100, "progress": False, "device": "cpu", "score": "DistMult"}


def intercepts_alone(kg: Any, batch: Any) -> None:
    """Facts whose probability is their relation's, so that the posterior is an integral over a line each."""
    logits = kg.intercepts()[..., batch.relation % kg.relations].unsqueeze(-1)
    with batch.fact_plate():
        pyro.sample(
            "y", dist.Bernoulli(logits=logits.expand(*logits.shape[:-1], batch.num_entities)).to_event(1), obs=batch.y
        )


def by_quadrature(parts: Parts) -> tuple[float, np.ndarray, np.ndarray]:
    """The log evidence, and mean and standard deviation of each relation's intercept."""
    graph, centre = parts.graph, float(parts.kg.base_rate.flatten()[0])
    b = np.linspace(centre - 30, centre + 30, 20_001)
    log_evidence, means, spreads = 0.0, [], []
    for r in range(graph.num_relations):
        true, cells = int((graph.train[:, 1] == r).sum()), graph.num_entities**2
        centre = float(parts.kg.base_rate.expand(graph.num_relations)[r])
        log_p = -((b - centre) ** 2) / 2 / INTERCEPT_SCALE**2 - math.log(INTERCEPT_SCALE * math.sqrt(2 * math.pi))
        log_p = log_p + true * b - cells * np.logaddexp(0, b)
        weight = np.exp(log_p - log_p.max())
        log_evidence += float(log_p.max() + np.log(weight.sum() * (b[1] - b[0])))
        weight /= weight.sum()
        means.append((weight * b).sum())
        spreads.append(math.sqrt((weight * b**2).sum() - means[-1] ** 2))
    return log_evidence, np.array(means), np.array(spreads)


@pytest.mark.parametrize(("steps", "inverse"), [(1, True), (8, False), (60, True)])
@pytest.mark.usefixtures("double")
def test_weights_average_to_the_evidence(tiny: Graph, steps: int, inverse: bool) -> None:
    """By quadrature, from a start that is far off, whatever the number of steps; the mean logarithm is a bound."""
    parts = Parts(tiny, intercepts_alone, inverse=inverse, closed_world="full")  # type: ignore[arg-type]
    log_evidence, means, spreads = by_quadrature(parts)
    density = Chains(parts.program, parts.guide, parts.sites, 4)
    start = torch.tensor(means) + torch.randn(4000, 2) * 1.4 * torch.tensor(spreads)
    z, log_weight = anneal(density, start, 1, steps, 0.4)
    weight = (log_weight - log_evidence).exp()
    assert float(weight.mean()) == pytest.approx(1.0, abs=5 * float(weight.std()) / math.sqrt(4000))
    assert float(log_weight.mean()) < log_evidence
    if steps == 60:
        assert float(log_weight.mean()) > log_evidence - 0.1
        assert z.mean(0).numpy() == pytest.approx(means, abs=0.08) and z.std(0).numpy() == pytest.approx(
            spreads, rel=0.06
        )


@pytest.mark.usefixtures("double")
def test_draws_are_of_the_posterior(tiny: Graph) -> None:
    """From a guide that was never fitted."""
    parts = Parts(tiny, intercepts_alone, closed_world="full")  # type: ignore[arg-type]
    log_evidence, means, spreads = by_quadrature(parts)
    with kgpyro.randomness.seeded(0):
        samples, went = annealed_draws(parts.program, parts.guide, parts.sites, 100, 600, progress=False)
    assert samples["intercept"].shape == (600, 2)
    assert samples["intercept"].mean(0).numpy() == pytest.approx(means, abs=0.12)
    assert samples["intercept"].std(0).numpy() == pytest.approx(spreads, rel=0.12)
    total = went["bound_per_fact"] * parts.batches.num_observed
    assert log_evidence - 0.1 < total < log_evidence + 3 * went["bound_error"] * parts.batches.num_observed


@pytest.mark.usefixtures("double")
def test_no_steps_are_the_guide(tiny: Graph) -> None:
    """Without a step the bound is the guide's, and each member keeps its mean and scale."""
    parts = Parts(tiny, inverse=False, closed_world="full")
    density = Chains(parts.program, parts.guide, parts.sites, 500)
    _, log_weight = anneal(density, density.starts, 1, 0, 0.1)
    elbo = WeightedELBO(1.0, "plain", parts.program.parameters)
    bound, error, _ = estimate_elbo(elbo, parts.kg, parts.model, parts.guide, parts.batches, progress=False)
    observed = parts.batches.num_observed
    error = math.hypot(error, float(log_weight.std()) / math.sqrt(500) / observed)
    assert float(log_weight.mean()) / observed == pytest.approx(bound, abs=4 * error)
    parts = Parts(tiny, inverse=False, closed_world="full", guide="mixture(members=3)")
    density = Chains(parts.program, parts.guide, parts.sites, 300)
    drawn = density.values(anneal(density, density.starts, 3, 0, 0.1)[0])[0]["entities"]
    for member in range(3):
        mine = parts.guide.entity[member].loc.detach()  # type: ignore[index, union-attr]
        scale = parts.guide.entity[member].log_scale.detach().exp()  # type: ignore[index, union-attr]
        assert float(((drawn[member::3].mean(0) - mine) / scale).abs().max()) < 0.6


@pytest.mark.parametrize("guide", ["lookup", "mixture(members=2)"])
def test_uha_is_an_engine(tiny: Graph, tmp_path: Path, guide: str) -> None:
    posterior = kgpyro.fit(tiny, **QUICK, guide=guide, out=tmp_path / "run")
    went = posterior.metrics["uha"]
    assert went["bound_per_fact"] > posterior.metrics["elbo_per_fact"] and went["steps"] == 20
    assert f"bound of {went['bound_per_fact']:.4f}" in posterior.metrics["objective"]
    assert posterior.guide is None and len(posterior.samples["entities"]) == 100  # type: ignore[index]
    again = kgpyro.load(tmp_path / "run")
    facts = [("a", "likes", "b"), ("b", "knows", "c")]
    assert again.facts(facts).equals(posterior.facts(facts)) and again.metrics["uha"] == went
    found = again.predict(head="a", relation="likes", top=None)
    assert found["low"].le(found["probability"]).all() and "those of uha cover 8" in found.attrs["intervals"]
    assert len(again.evaluate()) == 6 and again.to_arviz(draws=10) is not None
    assert len(kgpyro.compare({"one": again}, draws=20)) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "lfm"}, "UHA needs latents that all facts share"),
        ({"prior": "normal(scale=1)", "negatives": 3}, "leave out `negatives`"),
        ({"kl_weight": 0.5}, "`inference` uha is of the posterior itself; leave `kl_weight` at 1"),
        ({"guide": "point"}, "`inference` uha begins at a guide's draws; choose a `guide` that has some"),
        ({"guide": "point", "inference": "hmc"}, "`inference` hmc begins at a guide's draws"),
        ({"inference": "uhu"}, "did you mean"),
    ],
)
def test_uha_refuses_in_a_sentence(tiny: Graph, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        kgpyro.fit(tiny, **(QUICK | options))


def test_a_density_that_is_not_finite(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chains, "gradient", lambda self, z: (torch.full((len(z),), -math.inf), torch.zeros_like(z)))
    with pytest.raises(InputError, match="not finite at draws of its guide"):
        kgpyro.fit(tiny, **QUICK)


@pytest.mark.parametrize(("options", "steps"), [({"inference": "uha"}, 128), ({"inference": "hmc"}, 500), ({}, 500)])
def test_how_many_steps(tiny: Graph, options: dict[str, Any], steps: int) -> None:
    assert kgpyro.Options.of(options).resolved(tiny, saving=False)["warmup_draws"] == steps
