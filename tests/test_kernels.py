"""The fused likelihood: gradients by finite differences, equality with the plain version, its noise."""

from __future__ import annotations

import own_code
import pytest
import torch
import torch.nn.functional as F
from conftest import Parts
from scipy.stats import kstest, norm
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence

from kgpyro.data.graph import Graph
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.kernels import candidates as kernels
from kgpyro.kernels import gaussian
from kgpyro.kernels.candidates import all_candidates_log_prob
from kgpyro.program.plates import Batch

pytestmark = pytest.mark.usefixtures("double")
B, E, D = 3, 7, 4
OBSERVED = torch.tensor([0, 0, 2]), torch.tensor([1, 6, 3])
SURE = torch.tensor([6, 4, 1])  # a candidate of each query that cannot be missing


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 3)
    monkeypatch.setattr("kgpyro.kernels.gaussian.BLOCK", 3)
    monkeypatch.setattr(kernels, "FACTORS", 3)  # in whole blocks, and not in the last one


def arguments(local: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    log_scale = torch.rand(E, D).add_(0.2).log_().requires_grad_() if local else None
    return (
        *(torch.randn(s, requires_grad=True) for s in ((B, D), (E, D))),
        log_scale,
        torch.randn(B, requires_grad=True),
    )


def naive(
    query: Tensor,
    loc: Tensor,
    log_scale: Tensor | None,
    intercept: Tensor,
    excluded: Tensor | None,
    kappa: float,
    distance: bool = False,
) -> Tensor:
    """The formula, with the kernel's noise laid out in full."""
    scores = query @ loc.mT + intercept[:, None]
    if distance:
        scores = intercept[:, None] - (query[:, None] - loc).norm(dim=-1)
    drawn = scores
    if log_scale is not None:
        noise = kernels._noise(query, 0, E)
        blocks = [noise(3 * i, min(3, E - 3 * i)) for i in range(3)]
        drawn = scores + (query.square() @ (2 * log_scale).exp().mT).sqrt() * torch.cat(blocks, dim=1)
    summed = F.softplus(drawn)
    if kappa < 1:
        chance = torch.full((B, E), kappa).scatter(1, SURE[:, None], 1.0)
        missing = torch.ones(B, E).index_put(OBSERVED, torch.zeros(3))
        summed = missing * -torch.log1p(-chance * drawn.sigmoid()) + (1 - missing) * (summed - chance.log())
    if excluded is not None:
        summed = summed.scatter(1, excluded[:, None], 0.0)
    observed = torch.zeros(B).index_add(0, OBSERVED[0], scores[OBSERVED])
    return observed - summed.sum(1)


@pytest.mark.parametrize("kind", ["product", "drawn", "distance"])
@pytest.mark.parametrize("excluded", [None, torch.tensor([2, 0, 6])])
@pytest.mark.parametrize("weight", [torch.full((B,), 2.5), torch.tensor([1.0, -0.5, 3.0])])
@pytest.mark.parametrize("kappa", [1.0, 0.7])
def test_value_and_gradients(kind: str, excluded: Tensor | None, weight: Tensor, kappa: float) -> None:
    local, distance = kind == "drawn", kind == "distance"
    inputs, more = arguments(local), {"distance": distance}

    def fused(*given: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return all_candidates_log_prob(*given, OBSERVED, excluded, kappa, SURE, **more) * weight  # type: ignore

    def summed(*given: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return all_candidates_log_prob(*given, OBSERVED, excluded, kappa, SURE, weight, **more)  # type: ignore

    torch.manual_seed(3)
    expected = naive(*inputs, excluded, kappa, distance) * weight
    torch.testing.assert_close(summed(*inputs), expected.sum())
    torch.testing.assert_close(fused(*inputs), expected)
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), expected)
    wanted = [x for x in inputs if x is not None]
    theirs = torch.autograd.grad(expected.sum(), wanted)
    for ours in (
        torch.autograd.grad(fused(*inputs).sum(), wanted),
        torch.autograd.grad(2 * summed(*inputs) / 2, wanted),
    ):
        torch.testing.assert_close(ours, theirs)
    rounding = 1e-12  # a repeated backward pass is computed afresh
    assert gradcheck(lambda *x: fused(x[0], x[1], x[2] if local else None, x[-1]).sum(), wanted, nondet_tol=rounding)


def test_distances_of_points_that_coincide() -> None:
    """Where a query is a candidate, rounding leaves its distance near 0, and gradients are those of the others."""
    query, loc, _, intercept = arguments(False)
    loc = loc.detach().index_copy(0, torch.tensor([2, 4, 5]), query.detach()).requires_grad_()
    summed = all_candidates_log_prob(query, loc, None, intercept, OBSERVED, weight=torch.ones(B), distance=True)
    expected = naive(query, loc, None, intercept, None, 1.0, distance=True).sum()
    torch.testing.assert_close(summed, expected, atol=1e-5, rtol=0)
    inputs = [query, loc, intercept]
    found, wanted = (torch.autograd.grad(each, inputs) for each in (summed, expected))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("local", [False, True])
def test_labels_between_0_and_1(local: bool) -> None:
    """A soft label is the mixture of a true and a false fact, in value and gradients."""
    inputs, labels, weight = arguments(local), torch.tensor([0.2, 1.0, 0.7]), torch.tensor([1.0, 0.5, 3.0])

    def summed(*given: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return all_candidates_log_prob(*given, (*OBSERVED, labels), weight=weight)  # type: ignore[arg-type]

    def part(*given: Tensor | None, i: int) -> Tensor:
        torch.manual_seed(3)
        kept = torch.arange(3) != i
        seen = OBSERVED[0][kept], OBSERVED[1][kept]
        return all_candidates_log_prob(*given, seen, weight=weight)  # type: ignore[arg-type]

    def whole(*given: Tensor | None) -> Tensor:
        torch.manual_seed(3)
        return all_candidates_log_prob(*given, OBSERVED, weight=weight)  # type: ignore[arg-type]

    def expected(*given: Tensor | None) -> Tensor:
        return whole(*given) - sum((1 - float(labels[i])) * (whole(*given) - part(*given, i=i)) for i in range(3))

    wanted = [x for x in inputs if x is not None]
    torch.testing.assert_close(summed(*inputs), expected(*inputs))
    ours, theirs = (torch.autograd.grad(f(*inputs), wanted) for f in (summed, expected))
    torch.testing.assert_close(ours, theirs)


def test_noise_is_standard_normal_and_uncorrelated() -> None:
    draws = []
    for _ in range(4000):
        noise = kernels._noise(torch.zeros(1, D), 0, E)
        draws.append(torch.cat([noise(3 * i, min(3, E - 3 * i))[0] for i in range(3)]))
    noise = torch.stack(draws)
    torch.testing.assert_close(noise.mean(0), torch.zeros(E), atol=0.08, rtol=0)
    torch.testing.assert_close(torch.cov(noise.T), torch.eye(E), atol=0.12, rtol=0)


def test_softplus_by_products_holds_for_any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FACTORS", 16)
    spread = torch.tensor([[0.1], [3.0], [30.0], [300.0], [-torch.inf]], dtype=torch.float32)
    scores = spread * torch.linspace(0.01, 1, 64, dtype=torch.float32)
    for given in (scores, -scores[:-1], scores.sin()[:-1] * spread[:-1]):
        p, total = kernels._sigmoid_and_softplus(given.clone())
        torch.testing.assert_close(p, given.sigmoid())
        exact = F.softplus(given.double()).sum(-1)
        torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=64 * 2**-24)


@pytest.mark.parametrize("half", [False, True])
def test_many_normals_are_standard_and_follow_the_seed(half: bool) -> None:
    table = torch.empty(701, 301, dtype=torch.float32)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            noise = gaussian._normals(table)
        return torch.cat([noise(part) for part in table.split(256)])

    assert torch.equal(draw(1), draw(1))
    drawn = draw(3).double()
    assert (len(drawn.unique()) <= 1 << 16) == half
    assert not torch.equal(drawn.float(), draw(1))
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    tail = kstest(drawn[drawn.abs() > 3].abs().numpy(), lambda x: 1 - norm.sf(x) / norm.sf(3))
    assert tail.pvalue > 0.01
    assert drawn.corrcoef().fill_diagonal_(0).abs().max() < 0.35
    assert gaussian._normals(table[:100]) is torch.randn_like


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products(dtype: torch.dtype) -> None:
    inputs = [None if x is None else x.detach().float().requires_grad_() for x in arguments(True)]
    torch.manual_seed(1)
    full = all_candidates_log_prob(*inputs, OBSERVED)  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=dtype):
        half = all_candidates_log_prob(*inputs, OBSERVED)  # type: ignore[arg-type]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.2, rtol=0.02)
    assert not torch.equal(half, full)


@pytest.mark.parametrize("model", ["lim", "lfm"])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize(
    "score", ["DistMult", "ComplEx", "RESCAL", "CP", "TransE-L2", "RotatE", "TransE-L1", "pykeen:HolE"]
)
@pytest.mark.parametrize("completeness", [1.0, 0.8])
def test_shared_estimator_is_plain_pyro(
    tiny: Graph, model: str, inverse: bool, score: str, completeness: float
) -> None:
    """The fused path and the plain one give the same loss and the same gradients for the same draw."""
    parts = Parts(tiny, model, score=score, inverse=inverse, completeness=completeness)
    batch = parts.batches(torch.tensor([0, 3, 4]))
    modules = torch.nn.ModuleList([parts.kg, parts.guide])
    found = {}
    for estimator in ("plain", "shared"):
        torch.manual_seed(5)
        loss = WeightedELBO(estimator=estimator).differentiable_loss(parts.model, parts.guide, parts.kg, batch)
        found[estimator] = [loss, *torch.autograd.grad(loss, list(modules.parameters()))]
    for plain, shared in zip(found["plain"], found["shared"], strict=True):
        torch.testing.assert_close(shared, plain)


@pytest.mark.parametrize("model", ["lim", "lfm"])
def test_local_estimator_has_the_smaller_gradient_variance(tiny: Graph, model: str) -> None:
    parts = Parts(tiny, model, score="ComplEx")
    batch = parts.batches(torch.arange(len(parts.batches)))
    with torch.no_grad():
        parts.guide.field("intercept").log_scale.fill_(-9.0)
    parameters = [*parts.guide.entity.parameters(), *parts.guide.relation.parameters()]
    variance = {}
    mean = {}
    for estimator in ("shared", "local"):
        drawn = []
        for _ in range(300):
            loss = WeightedELBO(estimator=estimator).differentiable_loss(parts.model, parts.guide, parts.kg, batch)
            drawn.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        stacked = torch.stack(drawn)
        variance[estimator], mean[estimator] = stacked.var(0), stacked.mean(0)
    assert variance["local"].sum() < 0.8 * variance["shared"].sum()
    error = ((variance["local"] + variance["shared"]) / 300).sqrt()
    z = (mean["local"] - mean["shared"]) / error.clamp_min(1e-9)
    assert z.abs().max() < 5
    assert z.square().mean() < 1.5


@pytest.mark.parametrize("shape", [(7, D), (1, D), (7, 1), (1, 1)])
@pytest.mark.parametrize("draw", [False, True])
def test_gaussian_tables(shape: tuple[int, int], draw: bool) -> None:
    """Draw and KL by their textbook formulas, with the gradients of all four parameters."""
    loc, log_scale = (torch.randn(7, D, requires_grad=True) for _ in range(2))
    prior = torch.randn(shape, requires_grad=True), torch.rand(shape).add_(0.5).requires_grad_()
    inputs = (loc, log_scale, *prior)

    def fused(*given: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(2)
        expanded = (*given[:2], *(x.expand(7, D) for x in given[2:]))
        return gaussian.gaussian_draw_and_kl(*expanded) if draw else (gaussian.gaussian_kl(*expanded),)

    torch.manual_seed(2)
    noise = torch.cat([torch.randn(min(3, 7 - i), D) for i in range(0, 7, 3)])
    drawn = (loc + log_scale.exp() * noise,) if draw else ()
    expected = *drawn, kl_divergence(Normal(loc, log_scale.exp()), Normal(*prior)).sum(-1)
    torch.testing.assert_close(fused(*inputs), expected)
    assert gradcheck(fused, inputs)
    assert not draw or gradcheck(lambda *x: fused(*x)[0], inputs[:2] + tuple(x.detach() for x in prior))


def likelihood_of(elbo: WeightedELBO, parts: Parts, batch: Batch) -> float:
    elbo.differentiable_loss(parts.model, parts.guide, parts.kg, batch)
    return float(elbo.last.log_likelihood)


@pytest.mark.parametrize("model", ["lim", "lfm"])
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_late_draws_do_not_change_the_bound(tiny: Graph, model: str, estimator: str) -> None:
    """With tables drawn as late as the estimator admits, the bound has the mean of plain Pyro's."""
    parts = Parts(tiny, model, score="ComplEx")
    batch = parts.batches(torch.arange(len(parts.batches)))
    mean, error = [], []
    for name in (estimator, "plain"):
        elbo = WeightedELBO(estimator=name, parameters=parts.program.parameters)
        drawn = torch.tensor([likelihood_of(elbo, parts, batch) for _ in range(600)])
        mean.append(drawn.mean())
        error.append(drawn.var() / 600)
    assert abs(mean[0] - mean[1]) < 4 * (error[0] + error[1]).sqrt()


@pytest.mark.parametrize("prior", ["normal", "cauchy"])
@pytest.mark.parametrize("model", ["lim", "own_code:shared_scale", "own_code:doubled_relations"])
@pytest.mark.parametrize("guide", ["lookup", "own_code:Chained"])
def test_a_table_is_drawn_once_where_it_is_used(tiny: Graph, prior: str, model: str, guide: str) -> None:
    """A user's likelihood or guide needs the latents themselves, and so does a KL without a closed form."""
    parts = Parts(tiny, model, prior, guide=guide)
    elbo = WeightedELBO(estimator="local", parameters=parts.program.parameters)
    model_trace, _ = elbo._get_trace(parts.model, parts.guide, (parts.kg, parts.batches(torch.arange(3))), {})
    entities = model_trace.nodes["entities"]["value"]
    assert (entities._made is None) == (model != "own_code:shared_scale" and guide == "lookup")
    loss = elbo.differentiable_loss(parts.model, parts.guide, parts.kg, parts.batches(torch.arange(3)))
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.guide.parameters())


def test_labels_are_drawn_as_often_as_they_are_probable(tiny: Graph) -> None:
    parts = Parts(tiny, completeness=0.6)
    batch = parts.batches(torch.arange(3))
    facts = parts.kg.likelihood(torch.randn(5, 4), torch.randn(4, 4), torch.randn(2), batch)
    drawn = facts.sample(torch.Size([20_000])).mean(0)
    chance = torch.full((3, 5), 0.6).scatter(1, batch.anchor[:, None], 1.0)
    torch.testing.assert_close(drawn, chance * facts.true_logits.sigmoid(), atol=0.02, rtol=0)
    torch.testing.assert_close(facts.log_prob(torch.ones(3, 5)), (chance * facts.true_logits.sigmoid()).log().sum(1))


def test_a_transformed_table_is_not_taken_for_the_drawn_one(tiny: Graph) -> None:
    """A factor of one changes no value, yet it has a gradient."""
    parts, gradients = Parts(tiny, score="ComplEx"), {}
    batch = parts.batches(torch.arange(len(parts.batches)))
    for estimator in ("plain", "local"):
        model = own_code.Tempered(parts.kg)
        elbo = WeightedELBO(estimator=estimator, parameters=parts.program.parameters)
        found = []
        for _ in range(400):
            loss = elbo.differentiable_loss(model, parts.guide, parts.kg, batch)
            found.append(torch.autograd.grad(loss, model.log_temperature)[0])
        gradients[estimator] = torch.stack(found)
    plain, local = gradients.values()
    assert abs(local.mean() - plain.mean()) < 4 * ((plain.var() + local.var()) / 400).sqrt()
    assert local.var() > 0
