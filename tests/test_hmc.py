"""Chains of Hamiltonian Monte Carlo: their density is the model's, they keep it, and what cannot have them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Parts
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.hmc import Chains, moved_draws

QUICK: dict[str, Any] = {"model": "lim", "dim": 2, "epochs": 5, "inference": "hmc", "warmup_draws": 10}
QUICK |= {"posterior_draws": 128, "progress": False, "device": "cpu"}


def of_few(kg: Any, batch: Any) -> None:
    """A LIM that indexes its rows from the left, so that it runs for one set of latents at a time."""
    (entity_prior, relation_prior), intercepts = kg.priors(), kg.intercepts()
    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as r:
        relations = pyro.sample("relations", relation_prior(r))
    query = entities[batch.anchor] * relations[batch.relation]
    logits = query @ entities.T + intercepts[batch.relation % kg.relations].unsqueeze(-1)
    with batch.fact_plate():
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize(("model", "prior"), [("lim", "normal"), ("lim", "gamma"), (of_few, "normal")])
@pytest.mark.usefixtures("double")
def test_the_density_is_the_models(tiny: Graph, model: Any, prior: str, inverse: bool) -> None:
    parts = Parts(tiny, model, prior, inverse=inverse, closed_world="full")
    chains = Chains(parts.program, parts.guide, parts.sites, 5)
    assert chains.together == (model == "lim")
    found, slopes = chains.gradient(chains.starts)
    values, log_det = chains.values(chains.starts)
    for i in range(5):
        given = poutine.condition(parts.model, {name: value[i] for name, value in values.items()})
        trace = prune_subsample_sites(poutine.trace(given).get_trace(parts.kg, chains.batch))
        assert float(found[i]) == pytest.approx(float(trace.log_prob_sum() + log_det[i]), abs=1e-8)
    nudge = 1e-6 * torch.randn_like(slopes)
    change = chains.log_density(chains.starts + nudge) - chains.log_density(chains.starts - nudge)
    torch.testing.assert_close(change / 2, (slopes * nudge).sum(1), rtol=1e-5, atol=1e-9)
    assert (log_det == 0).all() if prior == "normal" else (log_det != 0).all()


@pytest.mark.usefixtures("double")
def test_chains_keep_a_posterior_that_is_the_prior(tiny: Graph) -> None:
    """Where the data say nothing, moved draws have the prior's mean and spread."""

    def nothing(kg: Any, batch: Any) -> None:
        (entity_prior, _), intercepts = kg.priors(), kg.intercepts()
        with batch.entity_plate() as e:
            entities = pyro.sample("entities", entity_prior(e))
        none = 0 * (entities.sum(-1).sum(-1, keepdim=True) + intercepts.sum(-1)).tanh()
        logits = none.unsqueeze(-1).expand(*none.shape[:-1], len(batch.anchor), batch.num_entities)
        with batch.fact_plate():
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y)

    parts = Parts(tiny, nothing, "gamma(3, 2)", closed_world="full")  # type: ignore[arg-type]
    samples, went = moved_draws(parts.program, parts.guide, parts.sites, 100, 640, progress=False)
    values = samples["entities"].flatten()
    assert len(samples["entities"]) == 640 and 0.6 < went["acceptance"] < 0.95
    assert float(values.mean()) == pytest.approx(1.5, abs=0.05)
    assert float(values.std()) == pytest.approx(3**0.5 / 2, abs=0.06)


def test_hmc_is_an_engine(tiny: Graph, tmp_path: Path) -> None:
    posterior = kgpyro.fit(tiny, **QUICK, out=tmp_path / "run")
    assert posterior.metrics["hmc"]["chains"] == 64 and "elbo_per_fact" in posterior.metrics
    assert posterior.guide is None and len(posterior.samples["entities"]) == 128  # type: ignore[index]
    again = kgpyro.load(tmp_path / "run")
    facts = [("a", "likes", "b"), ("b", "knows", "c")]
    assert again.facts(facts).equals(posterior.facts(facts))
    assert len(again.evaluate()) == 6


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "lfm"}, "HMC needs latents that all facts share"),
        ({"negatives": 3}, "leave out `negatives`"),
        ({"kl_weight": 0.5}, "leave `kl_weight` at 1"),
        ({"kl_frequency": 0.5}, "leave `kl_weight` at 1"),
    ],
)
def test_hmc_refuses_in_a_sentence(tiny: Graph, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        kgpyro.fit(tiny, **(QUICK | options))


def test_draws_can_be_compared(nations: Graph) -> None:
    quick = QUICK | {"score": "DistMult", "posterior_draws": 64}
    moved = kgpyro.fit(nations, **quick)
    guide = kgpyro.fit(nations, **(quick | {"inference": "svi"}))
    table = kgpyro.compare({"moved": moved, "guide": guide}, draws=20)
    assert set(table.index) == {"moved", "guide"} and table["log_density"].notna().all()
