"""Priors' scales in closed form, against numerical maxima; and the point estimate that is trained at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import Parts, pairwise
from torch.distributions import biject_to

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.inference.empirical_bayes import ClosedForm
from kgpyro.inference.training import Training

PRIORS = {"normal": "scale", "n3": "strength", "complex_n3": "strength"}
QUICK: dict[str, Any] = {"model": "lim", "score": "DistMult", "dim": 2, "epochs": 4, "device": "cpu", "progress": False}


def parts_of(graph: Graph, prior: str, guide: str = "lookup") -> Parts:
    parts = Parts(graph, prior=prior, dim=2, guide=guide)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in parts.guide.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.7)
    return parts


def best_by_search(parts: Parts, kind: str, name: str, weight: torch.Tensor) -> torch.Tensor:
    """The parameter at which the expected log prior of two coordinates is highest, by quadrature and L-BFGS."""
    prior = parts.kg.symbol_prior(kind)
    x, w = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(120))
    nodes, w = torch.cartesian_prod(x, x), torch.cartesian_prod(w, w).prod(-1) / w.sum() ** 2
    draws = []
    for number in range(parts.guide.members):
        with parts.guide.using(number):
            q = parts.guide.posterior(kind, ...).base_dist
        draws.append((q.loc + q.scale * nodes.unsqueeze(1)).detach())
    free = torch.zeros_like(prior.learned[name], requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = biject_to(prior.unknown[name].constraint)(free)
        p = prior.prior.distribution(2, parts.kg.start, {name: value})
        found = -sum(((w @ p.log_prob(each)) * weight).sum() for each in draws)
        found.backward()
        return found

    search.step(loss)
    return biject_to(prior.unknown[name].constraint)(free).detach()


@pytest.mark.usefixtures("double")
@pairwise(
    prior=list(PRIORS), how=["learn", "learn_per_dim", "learn_per_symbol"], guide=["lookup", "mixture"], weighted=[0, 1]
)
def test_a_step_is_the_maximum(tiny: Graph, prior: str, how: str, guide: str, weighted: int) -> None:
    name = PRIORS[prior]
    parts = parts_of(tiny, f"{prior}({name}={how}(0.7))", guide)
    counts = parts.batches.occurrences()
    weights = {kind: (n + 1.0) for kind, n in counts.items()} if weighted else {}
    step = ClosedForm(parts.kg, parts.guide, parts.batches)
    for kind in ("entity", "relation"):
        ones = torch.ones(parts.kg.count(kind))
        expected = best_by_search(parts, kind, name, weights.get(kind, ones))
        if (prior, how) == ("complex_n3", "learn_per_dim"):  # only their mean is known
            expected = expected.mean().expand(2)
        before = parts.kg.symbol_prior(kind).values()[name]
        power = 0.5 if prior == "normal" else -1.0
        half = (before ** (1 / power) + expected ** (1 / power)) / 2
        only = {kind: step.learned[kind]}
        step.learned, everything = only, step.learned
        step.step(weights)
        found = parts.kg.symbol_prior(kind).values()[name]
        torch.testing.assert_close(found, half**power, rtol=1e-5 if prior == "normal" else 4e-3, atol=0)
        step.step(weights, damping=1.0)
        found = parts.kg.symbol_prior(kind).values()[name]
        torch.testing.assert_close(found, expected, rtol=1e-5 if prior == "normal" else 4e-3, atol=0)
        step.learned = everything


@pytest.mark.usefixtures("double")
def test_scales_per_symbol_begin_by_count(tiny: Graph) -> None:
    parts = parts_of(tiny, "normal(scale=learn_per_symbol(0.5))")
    ClosedForm(parts.kg, parts.guide, parts.batches)
    counts = torch.tensor([5.0, 4.0, 2.0, 3.0, 0.0])  # of a to e in training, a self-loop twice
    n = counts.clamp_min(1)
    scale = parts.kg.symbol_prior("entity").values()["scale"].squeeze(-1)
    torch.testing.assert_close(scale**-2, 4 * n / n.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`learn_by` em has nothing to learn; give a `prior` such as normal"),
        ({"prior": "laplace(scale=learn)"}, "not the parameters of the entity prior laplace"),
        ({"prior": "normal(scale=learn)", "guide": "point"}, "guide point has none"),
        ({"prior": "n3(strength=learn)", "model": "lfm"}, "learns one strength per symbol; write learn_per_symbol"),
    ],
)
def test_what_em_cannot_learn(tiny: Graph, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kgpyro.fit(tiny, **(QUICK | options), learn_by="em")


@pytest.mark.parametrize(
    "options", [{"guide": "mixture"}, {"guide": "point"}, {"inference": "nuts"}, {"inference": "hmc"}, {"devices": 2}]
)
def test_what_cannot_be_finished(tiny: Graph, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`finish` map .*; leave it out"):
        kgpyro.fit(tiny, **(QUICK | options), finish="map")


@pytest.mark.parametrize(("model", "kl_weight"), [("lim", 0.05), ("lfm", 0.02)])
def test_a_finish_leaves_the_priors_and_comes_to_a_maximum(tiny: Graph, model: str, kl_weight: float) -> None:
    learned: list[Any] = []

    class Keep(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
            priors = {kind: module.kg.symbol_prior(kind) for kind in module.kg.families}
            learned.append({kind: prior.values()["scale"].clone() for kind, prior in priors.items()})

    options = QUICK | {"model": model, "prior": "normal(scale=learn_per_symbol)", "learn_by": "em", "precision": "64"}
    options |= {"optimizer": "adam", "lr_schedule": "linear", "lr": 0.1, "epochs": 120, "kl_frequency": 0.5}
    options |= {"closed_world": "local", "kl_weight": kl_weight}
    fitted = kgpyro.fit(tiny, **options, finish="map", callbacks=[Keep()])
    assert all(torch.equal(learned[0][kind], learned[1][kind]) for kind in ("entity", "relation"))
    assert len(fitted.history) == 2 * 120 == fitted.history["epoch"].iloc[-1]

    def gradient(weight: float) -> float:
        elbo = WeightedELBO(weight, "plain", fitted.program.parameters)
        n = {kind: count.clamp_min(1).double() for kind, count in fitted.program.batches.occurrences().items()}
        elbo.symbol_weights = {kind: (count / count.mean()) ** 0.5 for kind, count in n.items()}
        elbo.global_weight = None if model == "lim" else 1.0
        batch = fitted.program.batches(torch.arange(len(fitted.program.batches)))
        fitted.guide.zero_grad()
        elbo.differentiable_loss(fitted.program.model, fitted.guide, fitted.kg, batch).backward()
        return max(float(p.grad.abs().max()) for p in fitted.guide.parameters())

    assert gradient(kl_weight) < 0.01 < 0.05 < gradient(2 * kl_weight)


def test_a_finished_fit_says_what_it_is(tiny: Graph, tmp_path: Path) -> None:
    options = QUICK | {"prior": "complex_n3(strength=learn)", "score": "ComplEx", "finish": "map"}
    run = kgpyro.fit(tiny, **options, out=tmp_path / "run")
    loaded = kgpyro.load(tmp_path / "run")
    for each in (run, loaded):
        assert each.config["guide"] == "point"
        assert "a point estimate, no bound), begun at the mean of a posterior" in each.metrics["objective"]
        answers = each.predict(head="a", relation="likes")
        assert (answers["std"] == 0).all()
        assert np.allclose(answers["low"], answers["high"])
    assert loaded.evaluate().equals(run.evaluate())
    with pytest.raises(InputError, match="no posterior mean to train on with guide point"):
        kgpyro.fit(tiny, **{k: v for k, v in loaded.config.items() if k not in ("dataset", "inverse")})


def test_a_finish_that_is_killed_begins_again(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = QUICK | {"prior": "normal(scale=learn)", "finish": "map", "checkpoint_every": 0}
    expected, real = kgpyro.fit(tiny, **options), Training.training_step

    def killed(self: Training, *batch: Any) -> Any:
        if self.bound.guide.point and self.step == 2:
            raise KeyError("killed")
        return real(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Training, "training_step", killed)
        kgpyro.fit(tiny, **options, out=tmp_path / "run")
    found = kgpyro.fit(resume=tmp_path / "run", progress=False)
    assert found.metrics == expected.metrics
    assert found.guide.point


def test_a_finish_that_is_interrupted_says_so(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Training.training_step

    def interrupted(self: Training, *batch: Any) -> Any:
        if self.bound.guide.point and self.step == 1:
            self.trainer.callbacks[0].interrupt()
        return real(self, *batch)

    monkeypatch.setattr(Training, "training_step", interrupted)
    found = kgpyro.fit(tiny, **QUICK, finish="map")
    assert any("The point estimate was trained for 2 of" in one for one in found.metrics["warnings"])
