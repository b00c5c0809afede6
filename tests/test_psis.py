"""Pareto k-hat: the importance ratios by quadrature and in distribution, and k where it is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Parts
from scipy import stats

import kgpyro
import kgpyro.checking.psis
from kgpyro.checking.psis import KHat
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior


def nothing_learnt(head: torch.Tensor, relation: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    return 0 * (head * relation * tail).sum(-1)


def posterior_of(graph: Graph, **options: Any) -> tuple[Posterior, Parts]:
    parts = Parts(graph, **options)
    return parts.posterior(model=options.get("model", "lim")), parts


@pytest.fixture(scope="module")
def pair() -> Graph:
    return Graph.from_triples("pair", [["a", "r", "b"], ["b", "r", "b"]], [["a", "r", "a"]], [["a", "r", "a"]])


def test_repeats_and_their_spread(pair: Graph) -> None:
    posterior, _ = posterior_of(pair, dim=1)
    found = kgpyro.psis_khat(posterior, 200, 3)
    each = [kgpyro.checking.psis._pareto_shape(part) for part in found.log_ratios.reshape(3, 200)]
    assert found.k == pytest.approx(np.mean(each)) and found.spread == pytest.approx(np.std(each, ddof=1))
    assert math.isnan(kgpyro.psis_khat(posterior, 200).spread)
    assert kgpyro.psis_khat(posterior, 200).k == pytest.approx(each[0])
    with pytest.raises(InputError, match="at least one estimate"):
        kgpyro.psis_khat(posterior, 200, 0)


def test_every_member_of_a_mixture_could_have_drawn_it(pair: Graph) -> None:
    """Members that are alike make the ratios of one, and members far apart ``log M`` more than each alone."""
    (one, parts), (other, mixture) = (posterior_of(pair, dim=1, guide=g) for g in ("lookup", "mixture(members=2)"))
    with torch.no_grad():
        for kind in ("entity", "relation"):
            table = getattr(parts.guide, kind)
            for member in getattr(mixture.guide, kind):
                member.load_state_dict(table.state_dict())
    alone = kgpyro.psis_khat(one, 200).log_ratios
    np.testing.assert_allclose(kgpyro.psis_khat(other, 200).log_ratios, alone, rtol=1e-4)
    with torch.no_grad():
        mixture.guide.entity[1].loc.add_(100.0)
    even = kgpyro.psis_khat(other, 200).log_ratios[::2] - alone[::2]
    np.testing.assert_allclose(even, math.log(2), rtol=1e-3)


@pytest.mark.usefixtures("double")
def test_the_evidence_by_quadrature(pair: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entities and a relation with one number each: the mean ratio is ``p(y)``, the sum over a grid of them."""
    posterior, parts = posterior_of(pair, dim=1, inverse=False)
    with torch.no_grad():
        for table in (parts.guide.entity, parts.guide.relation):
            table.loc.copy_(torch.tensor([0.2, -0.1])[: len(table.loc), None])
            table.log_scale.fill_(math.log(1.1))
    axis, levels = torch.linspace(-8, 8, 41), torch.linspace(-18, 18, 73)
    a, b, r, intercept = torch.meshgrid(axis, axis, axis, levels, indexing="ij")
    log_joint = sum(torch.distributions.Normal(0.0, 1.0).log_prob(x) for x in (a, b, r))
    log_joint = log_joint + torch.distributions.Normal(0.0, 3.0).log_prob(intercept)
    # each query's facts: (a r ?) and (b r ?) ask for tails, (? r b) for heads
    facts = [(a, a, 0), (a, b, 1), (b, a, 0), (b, b, 1), (a, b, 1), (b, b, 1)]
    for head, tail, y in facts:
        logit = head * r * tail + intercept
        log_joint = log_joint + torch.distributions.Bernoulli(logits=logit).log_prob(torch.tensor(float(y))) / 2
    expected = float(log_joint.flatten().logsumexp(0)) + 3 * math.log(0.4) + math.log(0.5)
    found = kgpyro.psis_khat(posterior)
    weights = np.exp(found.log_ratios - expected)
    assert weights.mean() == pytest.approx(1, abs=5 * weights.std() / 1000**0.5)
    assert weights.std() / 1000**0.5 < 0.07
    assert found.k < 0.5
    assert found.latents == 4
    monkeypatch.setattr(kgpyro.checking.psis, "FACTS", 1)
    np.testing.assert_allclose(kgpyro.psis_khat(posterior, draws=100).log_ratios, found.log_ratios[:100])


@pytest.mark.usefixtures("double")
def test_k_where_it_is_known(pair: Graph) -> None:
    """Without information the posterior is the prior; a guide of scale s in one number has k = 1 - s²."""
    posterior, parts = posterior_of(
        pair, model="own_models:without_intercepts", score=nothing_learnt, dim=1, inverse=False
    )  # type: ignore[arg-type]
    with torch.no_grad():
        for table in (parts.guide.entity, parts.guide.relation):
            table.loc.zero_()
            table.log_scale.zero_()
    exact = kgpyro.psis_khat(posterior, draws=200)
    assert np.ptp(exact.log_ratios) < 1e-9
    assert exact.k < 0.5
    assert "below 0.5: close" in exact.reading

    parts.guide.entity.log_scale.data[1] = math.log(0.5)
    narrow = kgpyro.psis_khat(posterior, draws=1200)
    # log p(y, h) - log q(h) = log p(y) + log s + (1 - s²) z² / 2 for a standard normal z
    squares = (narrow.log_ratios - exact.log_ratios[0] - math.log(0.5)) * 2 / 0.75
    assert stats.kstest(squares, stats.chi2(1).cdf).pvalue > 1e-3
    assert narrow.k == pytest.approx(0.75, abs=0.3)

    parts.guide.entity.log_scale.data[1] = math.log(1.5)
    assert kgpyro.psis_khat(posterior, draws=500).k < 0


@pytest.mark.parametrize("prior", ["normal", "normal(scale=half_cauchy)", "gamma(rate=learn_per_symbol)"])
@pytest.mark.parametrize("inverse", [True, False])
def test_the_mean_log_ratio_is_the_bound(tiny: Graph, prior: str, inverse: bool) -> None:
    posterior, parts = posterior_of(tiny, prior=prior, inverse=inverse)
    found = kgpyro.psis_khat(posterior, draws=250).log_ratios
    terms = [parts.terms() for _ in range(250)]
    bound = np.array([float(t.log_likelihood - t.kl) for t in terms])
    error = math.sqrt((found.var() + bound.var()) / 250)
    assert abs(found.mean() - bound.mean()) < 4 * error
    assert found.std() > 0


def test_halved_scales_are_further_away(tiny: Graph) -> None:
    options = {"model": "lim", "dim": 2, "epochs": 150, "score": "DistMult", "progress": False}
    posterior = kgpyro.fit(tiny, prior="normal(scale=0.5)", **options)
    fitted = kgpyro.psis_khat(posterior, draws=300)
    assert math.isfinite(fitted.k)
    again = kgpyro.psis_khat(posterior, draws=100)
    np.testing.assert_array_equal(fitted.log_ratios[:100], again.log_ratios)
    with torch.no_grad():
        for table in (posterior.guide.entity, posterior.guide.relation):
            table.log_scale -= math.log(2)  # type: ignore[union-attr, operator]
    halved = kgpyro.psis_khat(posterior, draws=300)
    assert halved.k > fitted.k + 0.2
    assert "jointly far" in halved.reading


def test_readings() -> None:
    said = [KHat(k, 3, np.zeros(1)).reading for k in (-math.inf, 0.49, 0.5, 0.69, 0.7, math.inf, math.nan)]
    assert [words.split(":")[1].split(",")[0].split()[0] for words in said] == [
        "close", "close", "not", "not", "jointly", "jointly", "jointly",
    ]  # fmt: skip


def test_own_models(tiny: Graph) -> None:
    posterior, _ = posterior_of(tiny)
    expected = kgpyro.psis_khat(posterior, draws=100).log_ratios
    other, parts = posterior_of(tiny, model="own_code:shared_scale")  # the LIM, written otherwise
    parts.guide.load_state_dict(posterior.guide.state_dict())  # type: ignore[union-attr]
    found = kgpyro.psis_khat(other, draws=100).log_ratios
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_refusals(tiny: Graph) -> None:
    with pytest.raises(InputError, match="a point estimate is no posterior"):
        kgpyro.psis_khat(posterior_of(tiny, guide="point")[0])
    with pytest.raises(InputError, match="fit `model` lim"):
        kgpyro.psis_khat(posterior_of(tiny, model="lfm")[0])
    with pytest.raises(InputError, match="at least 100, not 99"):
        kgpyro.psis_khat(posterior_of(tiny)[0], draws=99)
    with pytest.raises(InputError, match="are 54,002 numbers here"):
        kgpyro.psis_khat(posterior_of(tiny, dim=6000)[0])
    posterior, _ = posterior_of(tiny, guide="features", features=torch.randn(5, 3))
    with pytest.raises(InputError, match="without the entities that training has not seen"):
        kgpyro.psis_khat(posterior)
