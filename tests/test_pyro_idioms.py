"""What a Pyro user expects of a model and a guide, with nothing of kgpyro's loop around them; and NUTS as an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from conftest import Parts
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

import kgpyro
from kgpyro import Graph, InputError, Posterior
from kgpyro.posterior.building import build_guide, sites_of

BOTH = pytest.mark.parametrize("model", ["lim", "lfm"])


@pytest.fixture(autouse=True)
def own_store(validated: None) -> Iterator[None]:
    """These tests use Pyro's global store as its users do."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains(nations: Graph, loss: type) -> None:
    options = {"model": "lim", "score": "ComplEx", "dim": 100, "closed_world": "full"}
    parts = Parts(nations, **options)  # type: ignore[arg-type]
    parts.kg.start_at_base_rates(parts.batches)
    parts.guide = build_guide("lookup", parts.kg, sites_of(parts.program))
    before = [p.detach().clone() for p in parts.guide.parameters()]
    svi = SVI(parts.model, parts.guide, pyro.optim.Adagrad({"lr": 0.1}), loss())
    for _ in range(60):
        for index in torch.randperm(len(parts.batches)).split(256):
            svi.step(parts.kg, parts.batches(index))
    assert all(not torch.equal(a, b) for a, b in zip(before, parts.guide.parameters(), strict=True))
    config = {"closed_world": "full", "model": "lim"}
    mine = Posterior(nations, parts.program, parts.guide, config).evaluation("test")["realistic"]["mrr"]
    fit = {"estimator": "plain", "kl_schedule": "constant", "epochs": 60, "progress": False}
    ours = kgpyro.fit(nations, **options, **fit).metrics["test"]["realistic"]["mrr"]  # type: ignore[arg-type]
    assert mine == pytest.approx(ours, abs=0.02)


@BOTH
@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_draws_labels_and_latents(tiny: Graph, model: str, parallel: bool) -> None:
    parts = Parts(tiny, model)
    batch = parts.batches(torch.tensor([0, 2])).unlabelled()
    drawn = Predictive(parts.model, guide=parts.guide, num_samples=5, parallel=parallel)(parts.kg, batch)
    assert drawn["y"].shape == (5, 2, tiny.num_entities)
    assert set(drawn["y"].unique().tolist()) <= {0.0, 1.0}
    assert drawn.keys() == parts.sites.keys() | {"y"}
    prior = Predictive(parts.model, num_samples=5)(parts.kg, batch)
    assert prior["y"].shape == (5, 2, tiny.num_entities)


@BOTH
def test_vectorised_particles_have_the_same_expectation(tiny: Graph, model: str) -> None:
    parts = Parts(tiny, model)
    batch = parts.batches(torch.arange(3))
    with torch.no_grad():
        together = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
        one = [Trace_ELBO().loss(parts.model, parts.guide, parts.kg, batch) for _ in range(400)]
        found = together.loss(parts.model, parts.guide, parts.kg, batch)
    error = np.std(one) * (1 / 400 + 1 / 2000) ** 0.5
    assert found == pytest.approx(np.mean(one), abs=4 * error)


@BOTH
def test_render_model_draws_the_plates(tiny: Graph, model: str) -> None:
    parts = Parts(tiny, model)
    drawn = pyro.render_model(parts.model, model_args=(parts.kg, parts.batches(torch.arange(2)))).source
    assert "cluster_fact" in drawn and "y" in drawn


def test_pyros_nuts_runs_on_the_lim(tiny: Graph) -> None:
    parts = Parts(tiny, dim=2, inverse=False, closed_world="full")
    chain = MCMC(NUTS(parts.model), num_samples=5, warmup_steps=5, disable_progbar=True)
    chain.run(parts.kg, parts.batches(torch.arange(len(parts.batches))))
    assert chain.get_samples()["entities"].shape == (5, tiny.num_entities, 2)


def test_nuts_is_an_engine(tiny: Graph, tmp_path: Path) -> None:
    options = {"model": "lim", "dim": 2, "inference": "nuts", "score": "DistMult", "progress": False}
    posterior = kgpyro.fit(tiny, **options, warmup_draws=20, posterior_draws=30, out=tmp_path / "run")  # type: ignore[arg-type]
    assert {"r_hat", "ess", "draws"} <= posterior.metrics["nuts"].keys()
    assert (tmp_path / "run" / "posterior.safetensors").is_file()
    again = kgpyro.load(tmp_path / "run")
    names = tiny.names(tiny.train)
    facts = posterior.facts(names)
    assert facts.equals(again.facts(names))
    e, w, b = (posterior.samples[s].double() for s in ("entities", "relations", "intercept"))  # type: ignore[index]
    h, r, t = tiny.train.unbind(1)
    expected = ((e[:, h] * w[:, r] * e[:, t]).sum(-1) + b[:, r]).sigmoid().mean(0)
    np.testing.assert_allclose(facts["probability"], expected.numpy(), rtol=1e-6)
    head, relation, _ = names[0]
    assert posterior.predict(head=head, relation=relation, top=None)["probability"].is_monotonic_decreasing
    assert len(posterior.acquire(2, draws=5)) == 2
    assert posterior.evaluate(by="probability").notna().all(axis=None)
    assert posterior.to_arviz(draws=10) is not None
    assert kgpyro.compare({"one": posterior})["elbo_per_fact"].isna().all()  # there is no bound of draws
    with pytest.raises(InputError, match="this is a set of draws"):
        kgpyro.variances(posterior)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": "lfm"}, "every fact has its own"),
        ({"dim": 20_000}, "NUTS is for small graphs: here 140,0"),
        ({"prior": "normal(scale=learn)"}, "learns no parameters"),
        ({"negatives": 3}, "the whole likelihood in every step"),
    ],
)
def test_nuts_refuses_in_a_sentence(tiny: Graph, options: dict, why: str) -> None:
    with pytest.raises(InputError, match=why):
        kgpyro.fit(tiny, inference="nuts", progress=False, **({"model": "lim"} | options))


def test_threads_do_not_meet(nations: Graph) -> None:
    """Four threads of predictions, beside a fit, have the results of one; the caller's random state is kept."""
    posterior = kgpyro.fit(nations, model="own_models:negated", dim=8, epochs=2, progress=False)
    lim = kgpyro.fit(nations, model="lim", dim=8, epochs=2, progress=False)
    head, relation, _ = nations.names(nations.test[:1])[0]
    names = nations.names(nations.test[:5])

    def work(found: dict) -> None:
        for p in (posterior, lim):
            found[p] = p.predict(head=head, relation=relation, draws=20), p.facts(names, draws=20)
        found["evaluated"] = (lim.evaluate("valid", by="probability", draws=5),)

    def fit(found: dict) -> None:
        found["fit"] = kgpyro.fit(nations, model="lim", dim=8, epochs=3, seed=5, progress=False).metrics

    torch.manual_seed(11)
    before = torch.get_rng_state()
    alone: dict = {}
    work(alone)
    fit(alone)
    assert torch.equal(torch.get_rng_state(), before)
    results: list[dict] = [{} for _ in range(5)]
    threads = [threading.Thread(target=fit if i == 4 else work, args=(results[i],)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results[:4]:
        for key in (posterior, lim, "evaluated"):
            assert all(a.equals(b) for a, b in zip(found[key], alone[key], strict=True))
    assert results[4]["fit"] == alone["fit"]
    assert torch.equal(torch.get_rng_state(), before)
