"""The likelihoods as distributions, with and without noise of their own, and the handlers that choose how to draw."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from conftest import Parts
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from kgpyro.data.graph import Graph
from kgpyro.kernels import candidates as kernels
from kgpyro.program.families import Normal
from kgpyro.program.interactions import SCORES
from kgpyro.program.likelihood import AllCandidates, Answers, Integrate, Postpone, observed_logits

B, E, D = 3, 7, 4
MANY = 40_000  # rows of the same query: as many draws in one call
BOTH = pytest.mark.parametrize("kind", [AllCandidates, Answers])


@pytest.fixture(autouse=True)
def in_double_and_small_blocks(double: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 3)
    monkeypatch.setattr("kgpyro.kernels.gaussian.BLOCK", 3)


def some(kind: type[AllCandidates], score: str = "complex", completeness: float = 1.0, rows: int = B) -> AllCandidates:
    """Three different queries, or one of them ``rows`` times; anchors are rows of the table, as in the models."""
    table, relations = torch.randn(E, D), torch.randn(2, SCORES[score].sizes(D)[1])
    anchors = torch.tensor([4, 0, 6]) if rows == B else torch.full((rows,), 4)
    asked = torch.tensor([1, 0, 1]) if rows == B else torch.full((rows,), 1)
    reverse = torch.tensor([False, True, True]) if rows == B else torch.full((rows,), True)
    facts = SCORES[score], table[anchors], relations[asked], table
    if kind is Answers:
        return Answers(*facts, torch.tensor([2.0, 1.0, 3.0]), reverse, (anchors, asked))
    intercept = torch.tensor([0.5, -1.0, 2.0]) if rows == B else torch.full((rows,), 0.5)
    return AllCandidates(*facts, intercept, reverse, (anchors, asked), completeness)


def labels(rows: int = B) -> Tensor:
    """With a self-loop among them: candidate 4 of the first query."""
    value = torch.zeros(rows, E)
    value[0, [1, 4]] = value[1, 5] = value[2, [0, 2, 6]] = 1
    return value


def exact(loc: Tensor) -> Normal:
    return Normal(loc, torch.full_like(loc, -40.0))


@BOTH
@pytest.mark.parametrize("score", ["distmult", "complex", "transe-l2", "rescal"])
@pytest.mark.parametrize("kappa", [1.0, 0.7])
def test_every_way_to_the_same_probability(kind: type[AllCandidates], score: str, kappa: float) -> None:
    """By the formula; dense and sparse; with the kernel; and with noise so small that it does not show."""
    facts = some(kind, score, kappa)
    value, logits = labels(), facts.logits
    torch.testing.assert_close(
        logits,
        facts.score.candidates(facts.anchor, facts.relation, facts.table, facts.reverse) + facts.intercept[:, None],
    )
    if kind is Answers:
        expected = (value * logits.log_softmax(1)).sum(1)
    else:
        chance = torch.full((B, E), kappa).scatter(1, facts.symbols[0][:, None], 1.0) * logits.sigmoid()  # type: ignore[index]
        expected = torch.where(value == 1, chance.log(), torch.log1p(-chance)).sum(1)
        torch.testing.assert_close(facts.observed_logits, torch.logit(chance))
    ways = [facts, facts.with_kernel()]
    if facts.score.linear:
        for own in (None, facts.symbols[0]):  # type: ignore[index]
            for known in (facts, facts.with_kernel()):
                ways.append(known.with_local_noise(exact(facts.table), own))
    for way in ways:
        for given in (value, value.to_sparse()):
            torch.testing.assert_close(way.log_prob(given), expected)
    assert (facts.batch_shape, facts.event_shape) == ((B,), (E,))


def test_without_symbols_nothing_is_known_to_be_complete() -> None:
    facts = some(AllCandidates, completeness=0.7)
    unknown = AllCandidates(facts.score, facts.anchor, facts.relation, facts.table, facts.intercept, facts.reverse)
    assert unknown.completeness == 1
    unknown.completeness = 0.7
    chance = 0.7 * unknown.logits.sigmoid()
    expected = torch.where(labels() == 1, chance.log(), torch.log1p(-chance)).sum(1)
    for way in (unknown, unknown.with_kernel(), unknown.with_kernel().with_local_noise(exact(facts.table))):
        torch.testing.assert_close(way.log_prob(labels()), expected)


@BOTH
def test_scores_drawn_on_their_own_have_the_latents_moments(kind: type[AllCandidates]) -> None:
    facts = some(kind, rows=MANY)
    q = Normal(torch.randn(E, D), torch.randn(E, D) / 2)
    u = facts.score.queries(facts.anchor[:1], facts.relation[:1], facts.reverse[:1])  # type: ignore[index]
    mean, variance = (u @ q.loc.mT)[0] + facts.intercept[0], (u.square() @ q.scale.square().mT)[0]
    for own in (None, facts.symbols[0]):  # type: ignore[index]
        drawn = facts.with_local_noise(q, own).logits
        expected, spread = mean.clone(), variance.clone()
        if own is not None:
            expected[4] = facts.score.compare(u, facts.anchor[:1])[0] + facts.intercept[0]
            spread[4] = 0
        torch.testing.assert_close(drawn.mean(0), expected, atol=5 * float(variance.max() / MANY) ** 0.5, rtol=0)
        torch.testing.assert_close(drawn.var(0), spread, rtol=0.04, atol=1e-12)
        correlation = torch.corrcoef(drawn[:, [0, 2, 5]].T)
        torch.testing.assert_close(correlation, torch.eye(3), atol=0.03, rtol=0)


@BOTH
@pytest.mark.parametrize("kappa", [1.0, 0.7])
@pytest.mark.parametrize("loops", [True, False])
def test_the_kernels_noise_has_the_mean_of_drawn_logits(kind: type[AllCandidates], kappa: float, loops: bool) -> None:
    facts, value = some(kind, completeness=kappa, rows=MANY), torch.zeros(MANY, E)
    value[:, [2, 4]] = 1
    q = Normal(torch.randn(E, D) / 2, torch.full((E, D), -0.5))
    noisy = facts.with_local_noise(q, facts.symbols[0] if loops else None)  # type: ignore[index]
    plain, fused = noisy.log_prob(value), noisy.with_kernel().log_prob(value)
    assert abs(plain.mean() - fused.mean()) < 5 * ((plain.var() + fused.var()) / MANY).sqrt()


def test_every_query_draws_its_own() -> None:
    facts = some(AllCandidates, rows=MANY)
    entities, relations = (Normal(torch.randn(n, D), torch.randn(n, D) / 2) for n in (E, 2))
    both = facts.with_own_draws(entities, relations)
    for drawn, q, row in ((both.anchor, entities, 4), (both.relation, relations, 1)):
        torch.testing.assert_close(drawn.mean(0), q.loc[row], atol=0.05, rtol=0)
        torch.testing.assert_close(drawn.std(0), q.scale[row], rtol=0.03, atol=0)
    assert facts.with_own_draws(None, relations).anchor is facts.anchor
    assert facts.with_own_draws(entities, None).relation is facts.relation
    assert both.table is facts.table


def test_the_log_odds_of_being_observed() -> None:
    logits = torch.tensor([[-30.0, -1.0, 0.0, 2.0, 40.0]])
    assert observed_logits(logits, 1.0) is logits
    expected = torch.logit(0.6 * logits.sigmoid())
    torch.testing.assert_close(observed_logits(logits, 0.6), expected)
    never = torch.tensor([[True, False, True, False, False]])
    torch.testing.assert_close(observed_logits(logits, 0.6, never), torch.where(never, logits, expected))


@BOTH
def test_shapes(kind: type[AllCandidates]) -> None:
    facts = some(kind)
    assert facts.expand(torch.Size([B])) is facts
    with pytest.raises(NotImplementedError, match=r"^queries \(3,\) cannot be expanded to \(2, 3\)$"):
        facts.expand(torch.Size([2, B]))
    assert facts.sample().shape == (B, E)
    assert facts.sample(torch.Size([2, 5])).shape == (2, 5, B, E)
    assert facts.support.check(facts.sample()).all()


def guide(loc: Tensor, log_scale: Tensor, dims: int = 1) -> None:
    with pyro.plate("entity", E):
        pyro.sample("entities", Normal(loc, log_scale).to_event(dims))
        pyro.sample("heavy", dist.Cauchy(loc, log_scale.exp()).to_event(dims))


def postponed(value: Tensor) -> bool:
    return bool(value.isnan().all())


def test_gaussian_draws_are_postponed() -> None:
    loc, log_scale = (torch.randn(E, D, requires_grad=True) for _ in range(2))
    trace = poutine.trace(Postpone()(guide)).get_trace(loc, log_scale)
    entities = trace.nodes["entities"]["value"]
    assert postponed(entities) and entities.shape == (E, D) and entities.requires_grad
    assert not postponed(trace.nodes["heavy"]["value"])
    assert entities.untyped_storage().nbytes() == 8  # it takes no memory
    with torch.no_grad():
        assert not postponed(poutine.trace(Postpone()(guide)).get_trace(loc, log_scale).nodes["entities"]["value"])
    observed = poutine.condition(guide, {"entities": torch.zeros(E, D)})
    assert not postponed(poutine.trace(Postpone()(observed)).get_trace(loc, log_scale).nodes["entities"]["value"])


@pytest.mark.parametrize("prior", [dist.Normal(0.5, 2.0), dist.Laplace(0.0, 1.0)])
@pytest.mark.parametrize("draw", [True, False])
def test_what_was_postponed_is_drawn_in_the_model(prior: dist.TorchDistribution, draw: bool) -> None:
    loc, log_scale = (torch.randn(E, D, requires_grad=True) for _ in range(2))

    def model() -> Tensor:
        with pyro.plate("entity", E):
            return pyro.sample("entities", prior.expand((D,)).to_event(1))

    def only_entities() -> None:
        with pyro.plate("entity", E):
            pyro.sample("entities", Normal(loc, log_scale).to_event(1))

    late = poutine.trace(Postpone()(only_entities)).get_trace()
    integrate = Integrate(late, "shared", draw=draw)
    drawn = integrate(poutine.replay(model, trace=late))()
    assert postponed(drawn) != draw
    if draw:
        q = dist.Normal(loc, log_scale.exp())
        assert integrate.normals[-1][0] is drawn
        if isinstance(prior, dist.Normal):
            torch.testing.assert_close(integrate.kl["entities"], kl_divergence(q, prior).sum(1))
        else:
            assert integrate.kl == {}
        repeated = [integrate(poutine.replay(model, trace=late))() for _ in range(3000)]
        z = (torch.stack(repeated) - loc) / log_scale.exp()
        torch.testing.assert_close(z.mean(0), torch.zeros(E, D), atol=0.1, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(E, D), atol=0.1, rtol=0)


def local_likelihood(
    tiny: Graph, change: Callable | None = None, estimator: str = "local", **options: str
) -> AllCandidates:
    """What ``Integrate`` makes of the likelihood of a model, whose drawn tables ``change`` may replace beforehand."""
    parts = Parts(tiny, score=options.get("score", "ComplEx"), inverse=True)
    batch = parts.batches(torch.tensor([0, 3, 4]))
    guide_trace = poutine.trace(parts.guide).get_trace(parts.kg, batch)

    def model() -> None:
        with batch.entity_plate():
            entities = pyro.sample("entities", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with batch.relation_plate():
            relations = pyro.sample("relations", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        head, relation, tail = entities[batch.anchor], relations[batch.relation], entities
        if change is not None:
            head, relation, tail = change(head, relation, tail)
        with batch.fact_plate():
            pyro.sample("y", parts.kg.likelihood(head, relation, tail, batch), obs=batch.y)

    integrated = Integrate(guide_trace, estimator)(poutine.replay(model, trace=guide_trace))
    found = poutine.trace(integrated).get_trace().nodes["y"]["fn"]
    found.batch = batch
    return found


def test_what_can_be_integrated_is(tiny: Graph) -> None:
    found = local_likelihood(tiny)
    assert found._kernel and found._candidates is not None
    assert torch.equal(found._own, found.batch.anchor)  # type: ignore[attr-defined, arg-type]
    shared = local_likelihood(tiny, estimator="shared")
    assert shared._kernel and shared._candidates is None and shared._own is None
    assert torch.equal(shared.anchor, shared.table[shared.batch.anchor])  # type: ignore[attr-defined]
    assert not torch.equal(found.anchor, found.table[found.batch.anchor])  # type: ignore[attr-defined]
    bent = local_likelihood(tiny, score="TransE-L2")
    assert not bent._kernel and bent._candidates is None


def test_anchors_have_gradients_of_their_rows_only(tiny: Graph) -> None:
    shared = local_likelihood(tiny, estimator="shared")
    assert shared.anchor.grad_fn.name() == "EmbeddingBackward0"  # type: ignore[union-attr]
    dense = shared._changed(anchor=shared.table[shared.batch.anchor])  # type: ignore[attr-defined]
    found, expected = (
        torch.autograd.grad(fn.log_prob(shared.batch.y).sum(), shared.table, retain_graph=True)[0]  # type: ignore[attr-defined]
        for fn in (shared, dense)
    )
    assert not found.is_sparse
    torch.testing.assert_close(found, expected)
    moved = local_likelihood(tiny, lambda h, r, t: (1 * h, r, t), estimator="shared")
    assert moved.anchor.grad_fn.name() == "MulBackward0"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "noisy", "own_head", "own_relation"),
    [
        (lambda h, r, t: (h, r, 1 * t), False, False, False),
        (lambda h, r, t: (1 * h, r, t), True, False, True),
        (lambda h, r, t: (h, 1 * r, t), True, True, False),
        (lambda h, r, t: (h.clone(), r, t), True, False, True),
        (lambda h, r, t: (t[torch.tensor([1, 1, 1])], r, t), True, False, True),
        (lambda h, r, t: (t[torch.tensor([0, 1, 2]), :], r, t), True, False, True),
    ],
)
def test_what_is_not_the_draw_itself_is_left_as_it_is(
    tiny: Graph, change: Callable, noisy: bool, own_head: bool, own_relation: bool
) -> None:
    before: dict[str, Tensor] = {}

    def remembered(*given: Tensor) -> tuple[Tensor, ...]:
        before["head"], before["relation"], _ = changed = change(*given)
        return changed

    found = local_likelihood(tiny, remembered)
    assert (found._candidates is not None) == noisy
    assert (found.anchor is not before["head"]) == own_head
    assert (found.relation is not before["relation"]) == own_relation
    assert (found._own is not None) == own_head


@torch.no_grad()
def test_rows_are_known_by_their_values_where_no_gradients_are(tiny: Graph) -> None:
    found = local_likelihood(tiny)
    assert found._candidates is not None and found._own is not None
    assert not torch.equal(found.relation, found.table[found.batch.relation])  # type: ignore[attr-defined]
    assert local_likelihood(tiny, lambda h, r, t: (1 * h, r, t))._own is not None
    assert local_likelihood(tiny, lambda h, r, t: (2 * h, r, t))._own is None


def test_labels_follow_their_probabilities() -> None:
    facts = some(AllCandidates, completeness=0.6)
    drawn = facts.sample(torch.Size([20_000])).mean(0)
    torch.testing.assert_close(drawn, facts.observed_logits.sigmoid(), atol=0.02, rtol=0)
    torch.testing.assert_close(facts.log_prob(torch.ones(B, E)), F.logsigmoid(facts.observed_logits).sum(1))
