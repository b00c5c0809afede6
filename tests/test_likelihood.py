"""The likelihoods as distributions, by every estimator, and the tables that are drawn when they are used."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import kl_divergence

from kgpyro.kernels import candidates as kernels
from kgpyro.program.families import Normal
from kgpyro.program.interactions import SCORES
from kgpyro.program.lazy import Labels, Lazy, Undrawn, observed_of
from kgpyro.program.likelihood import AllCandidates, Answers, Given, Rows, SingleFacts, observed_logits, true_logits_of

B, E, D = 3, 7, 4
MANY = 40_000  # rows of the same query: as many draws in one call
BOTH = pytest.mark.parametrize("kind", [AllCandidates, Answers])


@pytest.fixture(autouse=True)
def in_double_and_small_blocks(double: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 3)
    monkeypatch.setattr("kgpyro.kernels.gaussian.BLOCK", 3)


def given(score: str = "complex", kappa: float = 1.0, rows: int = B, table: Tensor | None = None) -> Given:
    """Three different queries, or one of them ``rows`` times; anchors are rows of the table, as in the LIM."""
    table = torch.randn(E, D) if table is None else table
    relations = torch.randn(2, SCORES[score].sizes(D)[1])
    anchors = torch.tensor([4, 0, 6]) if rows == B else torch.full((rows,), 4)
    asked = torch.tensor([1, 0, 1]) if rows == B else torch.full((rows,), 1)
    reverse = torch.tensor([False, True, True]) if rows == B else torch.full((rows,), True)
    intercept = torch.tensor([0.5, -1.0, 2.0]) if rows == B else torch.full((rows,), 0.5)
    latents = Rows(table, anchors), Rows(relations, asked), Rows(table)
    return Given(SCORES[score], *latents, intercept, reverse, anchors, kappa)


def labels(rows: int = B) -> Tensor:
    """With a self-loop among them: candidate 4 of the first query."""
    value = torch.zeros(rows, E)
    value[0, [1, 4]] = value[1, 5] = value[2, [0, 2, 6]] = 1
    return value


def sharp(loc: Tensor) -> Undrawn:
    return Undrawn.of(Normal(loc, torch.full_like(loc, -40.0)).to_event(1))


@BOTH
@pytest.mark.parametrize("score", ["distmult", "complex", "transe-l2", "rescal"])
@pytest.mark.parametrize("kappa", [1.0, 0.7])
def test_every_way_to_the_same_probability(kind: type[AllCandidates], score: str, kappa: float) -> None:
    """By the formula; with labels dense and lazy; by every estimator, with noise so small that it does not show."""
    facts, value = kind(given(score, kappa)), labels()
    g = facts.given
    scores = g.score.candidates(g.anchor.values, g.relation.values, g.candidate.values, g.reverse)
    if kind is Answers:
        expected = (value * scores.log_softmax(1)).sum(1)
        torch.testing.assert_close(facts.true_logits, torch.logit(scores.softmax(1)))
    else:
        logits = scores + g.intercept[:, None]
        chance = torch.full((B, E), kappa).scatter(1, g.loops[:, None], 1.0) * logits.sigmoid()
        expected = torch.where(value == 1, chance.log(), torch.log1p(-chance)).sum(1)
        torch.testing.assert_close(facts.true_logits, logits)
        torch.testing.assert_close(facts.logits, torch.logit(chance))
    row, column = value.nonzero().unbind(1)
    lazy = Labels.at(row, column, (B, E), value.dtype)
    table = g.candidate.table
    undrawn = Given(**{**vars(g), "candidate": Rows(sharp(table))})
    loop = sharp(table)
    global_ = Given(**{**vars(g), "candidate": Rows(loop), "anchor": Rows(loop, g.anchor.ids)})
    for way in (facts, facts.by("shared"), kind(undrawn).by("local"), kind(global_).by("local")):
        for y in (value, lazy):
            torch.testing.assert_close(way.log_prob(y), expected)
    assert (facts.batch_shape, facts.event_shape) == ((B,), (E,))


def test_single_facts_are_those_of_the_matrix() -> None:
    g = given(kappa=0.7)
    query, candidate = torch.tensor([0, 0, 1, 2]), torch.tensor([4, 1, 5, 6])
    loops = g.loops[query] == candidate
    single = Given(**{**vars(g), "candidate": Rows(g.candidate.table, candidate), "loops": loops, "query": query})
    torch.testing.assert_close(SingleFacts(single).logits, AllCandidates(g).logits[query, candidate])
    torch.testing.assert_close(true_logits_of(SingleFacts(single)), AllCandidates(g).true_logits[query, candidate])


@BOTH
@pytest.mark.parametrize("kappa", [1.0, 0.7])
@pytest.mark.parametrize("loops", [True, False])
def test_local_noise_has_the_mean_of_drawn_latents(kind: type[AllCandidates], kappa: float, loops: bool) -> None:
    """One table drawn for each of many runs, against scores drawn on their own in one."""
    value = torch.zeros(MANY, E)
    value[:, [2, 4]] = 1
    q = Normal(torch.randn(E, D) / 2, torch.full((E, D), -0.5)).to_event(1)
    g = given(kappa=kappa, rows=MANY)
    table = Undrawn.of(q)
    anchor = Rows(table, g.anchor.ids) if loops else Rows(torch.randn(E, D), g.anchor.ids)
    local = kind(Given(**{**vars(g), "candidate": Rows(table), "anchor": anchor})).by("local").log_prob(value)
    drawn = []
    one = given(kappa=kappa, rows=1)
    relations = g.relation.table
    for _ in range(4000):
        latents = q.sample()
        mine = Rows(latents, one.anchor.ids) if loops else Rows(anchor.table, one.anchor.ids)
        changed = {"candidate": Rows(latents), "anchor": mine, "relation": Rows(relations, one.relation.ids)}
        drawn.append(kind(Given(**{**vars(one), **changed})).log_prob(value[:1]))
    plain = torch.cat(drawn)
    assert abs(plain.mean() - local.mean()) < 5 * (plain.var() / 4000 + local.var() / MANY).sqrt()


def test_every_query_draws_its_own() -> None:
    q = Normal(torch.randn(E, D), torch.randn(E, D) / 2)
    drawn = Rows(Undrawn.of(q.to_event(1)), torch.full((MANY,), 4)).own_draw
    torch.testing.assert_close(drawn.mean(0), q.loc[4], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), q.scale[4], rtol=0.03, atol=0)
    table = torch.randn(E, D)
    assert torch.equal(Rows(table, torch.tensor([1, 1])).own_draw, table[[1, 1]])


def test_anchors_have_gradients_of_their_rows_only() -> None:
    table = torch.randn(E, D, requires_grad=True)
    g = given(table=table)
    (found,) = torch.autograd.grad(AllCandidates(g).by("shared").log_prob(labels()).sum(), table)
    (expected,) = torch.autograd.grad(AllCandidates(g).log_prob(labels()).sum(), table)
    torch.testing.assert_close(found, expected)


def test_the_log_odds_of_being_observed() -> None:
    logits = torch.tensor([[-30.0, -1.0, 0.0, 2.0, 40.0]])
    assert observed_logits(logits, 1.0) is logits
    expected = torch.logit(0.6 * logits.sigmoid())
    torch.testing.assert_close(observed_logits(logits, 0.6), expected)
    never = torch.tensor([[True, False, True, False, False]])
    torch.testing.assert_close(observed_logits(logits, 0.6, never), torch.where(never, logits, expected))


@BOTH
def test_shapes(kind: type[AllCandidates]) -> None:
    facts = kind(given())
    assert facts.expand(torch.Size([2, B])).log_prob(labels()).shape == (2, B)
    assert facts.sample().shape == (B, E)
    assert facts.sample(torch.Size([2, 5])).shape == (2, 5, B, E)
    assert facts.support.check(facts.sample()).all()


@pytest.mark.parametrize("prior", [dist.Normal(0.5, 2.0), dist.Laplace(0.0, 1.0)])
def test_a_table_is_drawn_when_it_is_used(prior: dist.TorchDistribution) -> None:
    loc, log_scale = (torch.randn(E, D, requires_grad=True) for _ in range(2))
    q = Normal(loc, log_scale).to_event(1)
    table = Undrawn.of(q)
    table.prior = prior.expand((E, D)).to_event(1)
    assert (table.shape, table.dtype, len(table), table._made) == ((E, D), torch.float64, E, None)
    first = table[torch.tensor([1, 2])]
    assert torch.equal(first, table[[1, 2]]) and first.requires_grad and not isinstance(first, Lazy)
    if isinstance(prior, dist.Normal):
        expected = kl_divergence(dist.Normal(loc, log_scale.exp()), prior).sum(1)
        torch.testing.assert_close(table.kl, expected)
    else:
        assert table.kl is None
    z = (torch.stack([Undrawn.of(q) * 1 for _ in range(3000)]) - loc) / log_scale.exp()
    torch.testing.assert_close(z.mean(0), torch.zeros(E, D), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(E, D), atol=0.1, rtol=0)


def test_labels_are_where_the_ones_are() -> None:
    row, column = torch.tensor([0, 2]), torch.tensor([1, 3])
    y = Labels.at(row, column, (3, 4), torch.float64)
    assert observed_of(y) == (row, column, None) and y._made is None
    dense = y + 0
    assert dense.sum() == 2 and dense[2, 3] == 1
    assert [x.tolist() for x in observed_of(dense)[:2]] == [row.tolist(), column.tolist()]


def test_labels_follow_their_probabilities() -> None:
    facts = AllCandidates(given(kappa=0.6))
    drawn = facts.sample(torch.Size([20_000])).mean(0)
    torch.testing.assert_close(drawn, facts.logits.sigmoid(), atol=0.02, rtol=0)
    torch.testing.assert_close(facts.log_prob(torch.ones(B, E)), F.logsigmoid(facts.logits).sum(1))
