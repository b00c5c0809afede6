"""Answers drawn from all candidates: their likelihood enumerated, its kernel, and what a posterior then says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Parts
from test_exactness import EVERY, TOLERANCE, Fixed, all_facts, share, splits
from torch import Tensor
from torch.autograd import gradcheck

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.kernels import candidates as kernels
from kgpyro.kernels.softmax import log_normaliser
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.interactions import SCORES
from kgpyro.program.likelihood import Answers, Given, Rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 3)
    monkeypatch.setattr("kgpyro.kernels.gaussian.BLOCK", 3)


def naive(
    query: Tensor, loc: Tensor, log_scale: Tensor | None, excluded: Tensor | None, seed: int, distance: bool
) -> Tensor:
    scores = -(query[:, None] - loc).norm(dim=-1) if distance else query @ loc.mT
    if log_scale is not None:
        noise = [
            torch.randn(3, w, generator=torch.Generator().manual_seed(seed + i)) for i, w in ((0, 3), (3, 3), (6, 1))
        ]
        scores = scores + torch.cat(noise, 1) * (query.square() @ (2 * log_scale).exp().mT).sqrt()
    if excluded is not None:
        scores = scores.scatter(1, excluded[:, None], -torch.inf)
    return scores.logsumexp(1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["product", "drawn", "distance"])
@pytest.mark.parametrize("excluded", [None, torch.tensor([2, 0, 6])])
def test_value_and_gradients_of_the_normaliser(kind: str, excluded: Tensor | None) -> None:
    local, distance = kind == "drawn", kind == "distance"
    inputs = [torch.randn(3, 4), 3 * torch.randn(7, 4), *([torch.rand(7, 4).log()] if local else [])]
    inputs = [x.requires_grad_() for x in inputs]

    def fused(query: Tensor, loc: Tensor, log_scale: Tensor | None = None) -> Tensor:
        torch.manual_seed(3)
        return log_normaliser(query, loc, log_scale, excluded, distance=distance)

    torch.manual_seed(3)
    seed = int(torch.randint(1 << 62, ()))
    expected = naive(inputs[0], inputs[1], inputs[2] if local else None, excluded, seed, distance)
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), expected)
    torch.testing.assert_close(fused(*inputs), expected)
    weight = torch.tensor([1.0, -0.5, 3.0])
    for ours, theirs in zip(
        torch.autograd.grad((weight * fused(*inputs)).sum(), inputs),
        torch.autograd.grad((weight * expected).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert gradcheck(fused, inputs, nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products(dtype: torch.dtype) -> None:
    inputs = torch.randn(3, 4), torch.randn(7, 4), torch.rand(7, 4).log()
    torch.manual_seed(1)
    full = log_normaliser(*inputs)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=dtype):
        half = log_normaliser(*inputs)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.02)
    assert not torch.equal(half, full)


def test_scores_that_overflow_an_exponential() -> None:
    query, table = torch.full((1, 1), 500.0, requires_grad=True), torch.tensor([[-1.0], [1.0], [0.9], [1.0]])
    found = log_normaliser(query, table, None)
    assert float(found.detach()) == pytest.approx(500 + math.log(2))
    assert torch.autograd.grad(found, query)[0].isfinite().all()


@pytest.mark.usefixtures("double")
@EVERY
@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_sum_to_the_likelihood(tiny: Graph, model: str, inverse: bool, size: int) -> None:
    parts = Parts(tiny, model, inverse=inverse, categorical=True)
    fixed = Fixed(parts)
    expected = 0.0
    for relation, anchor, candidate, label in all_facts(parts):
        scores = (fixed.entities[anchor] * fixed.relations[relation] * fixed.entities).sum(1)
        expected += float(label * (scores[candidate] - scores.exp().sum().log())) / 2
    total = sum(share(parts, i) * fixed.log_likelihood(parts.batches(i)) for i in splits(len(parts.batches), size))
    assert total == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.usefixtures("double")
@EVERY
@pytest.mark.parametrize("score", ["DistMult", "ComplEx", "TransE-L2", "RotatE", "TransE-L1", "pykeen:HolE"])
def test_shared_estimator_is_plain_pyro(tiny: Graph, model: str, inverse: bool, score: str) -> None:
    """The same draw, hence the same loss and gradients."""
    parts = Parts(tiny, model, score=score, inverse=inverse, categorical=True)
    batch = parts.batches(torch.tensor([0, 3, 4]))
    learned = list(parts.guide.parameters())
    found = {}
    for name in ("plain", "shared"):
        elbo = WeightedELBO(estimator=name)
        torch.manual_seed(5)
        loss = elbo.differentiable_loss(parts.model, parts.guide, parts.kg, batch)
        found[name] = [loss, *torch.autograd.grad(loss, learned)]
    for plain, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(other, plain)


@pytest.mark.usefixtures("double")
@EVERY
def test_local_estimator_has_the_mean_of_plain_pyro(tiny: Graph, model: str, inverse: bool) -> None:
    """With wide posteriors, so that it would show if scores of one query were not independent, or self-loops were."""
    parts = Parts(tiny, model, inverse=inverse, categorical=True)
    with torch.no_grad():
        for kind in (parts.guide.entity, parts.guide.relation):
            kind.log_scale.fill_(0.0)  # type: ignore[union-attr, operator]
            kind.loc.normal_()  # type: ignore[union-attr, operator]
    likelihood = {}
    for name in ("plain", "local"):
        drawn = [float(parts.terms(estimator=name).log_likelihood) for _ in range(500)]
        likelihood[name] = torch.tensor(drawn)
    plain, local = likelihood.values()
    assert abs(local.mean() - plain.mean()) < 4 * ((plain.var() + local.var()) / len(plain)).sqrt()
    assert local.var() < plain.var()


def test_answers_are_drawn_as_often_as_they_are_probable() -> None:
    latents = Rows(torch.randn(2, 3)), Rows(torch.randn(2, 3)), Rows(torch.randn(4, 3))
    answers = Answers(Given(SCORES["distmult"], *latents, torch.zeros(2), None, torch.tensor([0, 1])))
    drawn = answers.sample(torch.Size([20_000]))
    assert drawn.shape == (20_000, 2, 4)
    assert (drawn.sum(-1) == 1).all()
    torch.testing.assert_close(drawn.mean(0), answers.mean, atol=0.03, rtol=0)


@pytest.mark.usefixtures("double")
def test_an_lfm_pays_once_per_query(tiny: Graph) -> None:
    """The softmax makes a query one term: its head and relation are drawn once, each candidate's latent once."""
    parts = Parts(tiny, "lfm", categorical=True)
    kl = {k: float(parts.terms().kl_per_latent[k]) for k in ("head", "relation", "tail")}
    queries = len(parts.batches)
    expected = queries / 2 * (kl["head"] + kl["relation"] + tiny.num_entities * kl["tail"])
    assert float(parts.terms().kl) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module", params=["lim", "lfm"])
def fitted(request: pytest.FixtureRequest, tiny: Graph) -> Posterior:
    return kgpyro.fit(tiny, model=request.param, likelihood="categorical", dim=4, epochs=3, progress=False)


def test_a_fit_and_its_predictions(fitted: Posterior, tmp_path: Path) -> None:
    assert "categorical" in fitted.metrics["objective"]
    assert "intercept" not in fitted.guide.fields
    found = fitted.predict(head="a", relation="likes", top=None)
    assert found["probability"].sum() == pytest.approx(1, abs=1e-4)  # it is one of them
    one = fitted.predict(head="a", relation="likes", top=1)
    assert one["tail"][0] == found["tail"][0]
    fitted.save(tmp_path / "run")
    again = Posterior.load(tmp_path / "run")
    assert again.predict(head="a", relation="likes", top=None).equals(found)
    assert set(again.predict_set(head="a", relation="likes", coverage=0.5).columns) == {"tail", "probability", "known"}


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.acquire(),
        lambda p: p.to_arviz(),
        lambda p: kgpyro.posterior_predictive(p),
        lambda p: kgpyro.compare({"it": p}),
    ],
)
def test_what_it_does_not_say(fitted: Posterior, ask: Callable) -> None:
    with pytest.raises(InputError, match="fit with likelihood='bernoulli'"):
        ask(fitted)


def test_facts_have_a_probability_all_the_same(fitted: Posterior, tiny: Graph) -> None:
    """Log-odds of being the answer among open ones, plus the log of how many a query has, over both of a fact."""
    facts = torch.tensor([[0, 0, 1], [2, 1, 0], [1, 0, 1]])
    assert fitted.recalibration is not None and fitted.recalibration.method == "per_relation"  # the link of the fit
    fitted.recalibrate("none")
    found = fitted.fact_logits(facts, 3, seed=0)
    heads, relations, tails = tiny.train.T.tolist()
    known = set(zip(heads, relations, tails, strict=True))
    for draw in range(3):
        for i, (h, r, t) in enumerate(facts.tolist()):
            total = 0.0
            for anchor, row, answer, ends in ((h, r, t, heads), (t, r + 2, h, tails)):
                asked = torch.tensor([anchor]), torch.tensor([row])
                p = [*fitted.answer_logits(*asked, 3)][draw][0].double().sigmoid()
                cells = [(h, r, e) if ends is heads else (e, r, t) for e in range(tiny.num_entities)]
                others = sum(float(p[e]) for e, cell in enumerate(cells) if cell not in known and e != answer)
                same = [e for e, relation in zip(ends, relations, strict=True) if relation == r]
                usual = (len(same) + 1) / (len(set(same)) + 1)
                share = min(float(p[answer]) / (float(p[answer]) + others), 1 - 1e-7)
                odds = math.log(share / (1 - share))
                total += (odds + math.log((same.count(anchor) + usual) / 2)) / 2
            if not (fitted.form is not None and fitted.form.per_fact):  # there a draw is one of each fact's own
                assert float(found[draw, i]) == pytest.approx(total, rel=1e-2, abs=1e-3)
    assert torch.equal(fitted.fact_logits(facts.flip(0), 3), found.flip(1))
    posterior = fitted.facts(facts)
    assert posterior["probability"].between(0, 1).all()
    fitted.recalibrate("platt", draws=10)
    moved, answers = fitted.facts(facts), fitted.predict(head="a", relation="likes", top=None)
    assert not moved["probability"].equals(posterior["probability"])
    assert answers["probability"].sum() == pytest.approx(1, abs=1e-4)  # still of being the answer
    fitted.recalibrate("none")
