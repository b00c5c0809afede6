"""What a batch holds, and that batches of several queries are worth what all queries are."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Parts
from test_exactness import TOLERANCE, Fixed, all_facts, kl_by_symbol
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.program.batches import Batches
from kgpyro.program.plates import Batch

R = 2  # relations of the tiny graph


@pytest.fixture(scope="module")
def full() -> Graph:
    """A tail query that all three entities answer, and one that all but one do."""
    train = ["a r a", "a r b", "a r c", "b r a", "b r c"]
    return Graph.from_triples("full", [line.split() for line in train], [], [])


def every_pair(parts: Parts) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    """All batches of two queries, each with every outcome of drawing an unobserved candidate for both."""
    found = []
    for pair in itertools.combinations(range(len(parts.batches)), 2):
        index, options = torch.tensor(pair), []
        for query in pair:
            known = set(parts.batches.queries.answer_pairs(torch.tensor([query]))[1].tolist())
            options.append([e for e in range(parts.graph.num_entities) if e not in known])
        outcomes = [{"row": torch.tensor([0, 1]), "negative": torch.tensor(d)} for d in itertools.product(*options)]
        found.append((index, outcomes))
    return found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("model", ["lim", "lfm"])
def test_pairs_of_queries_with_drawn_candidates_are_unbiased(tiny: Graph, model: str) -> None:
    """Likelihood and KL, in the mean over every batch of two queries and every draw."""
    parts = Parts(tiny, model, negatives=1)
    fixed, pairs = Fixed(parts), every_pair(parts)
    likelihood = kl = 0.0
    for index, outcomes in pairs:
        share = 1 / len(pairs) / len(outcomes)
        likelihood += share * sum(fixed.log_likelihood(parts.batches.with_negatives(index, **o)) for o in outcomes)
        kl += share * sum(float(parts.terms(index, **o).kl) for o in outcomes)
    entity, relation = kl_by_symbol(parts)
    if model == "lim":
        expected = float(entity.sum() + relation.sum())
    else:
        expected = sum(float(entity[a] + relation[r] + entity[c]) / 2 for r, a, c, _ in all_facts(parts))
    assert likelihood == pytest.approx(fixed.enumerated(), abs=TOLERANCE)
    assert kl == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("negatives", [None, 2])
def test_what_a_batch_holds(tiny: Graph, inverse: bool, negatives: int | None) -> None:
    queries = tiny.training_queries
    batches = Batches(queries, 5, inverse, negatives)
    index = torch.tensor([4, 0, 6])
    batch = batches(index)
    ids = torch.arange(5) if negatives is None else batch.entities
    assert isinstance(ids, Tensor)
    assert torch.equal(ids[batch.anchor], queries.anchor[index])
    asks_for_heads = queries.relation[index] >= R
    assert asks_for_heads.any() and not asks_for_heads.all()
    if inverse:
        assert batch.reverse is None and torch.equal(batch.relation, queries.relation[index])
    else:
        assert batch.reverse is not None and torch.equal(batch.reverse, asks_for_heads)
        assert torch.equal(batch.relation, queries.relation[index] % R)
    assert batch.num_relations == batches.num_relation_rows == (2 * R if inverse else R)
    assert (batch.total, batch.num_entities, batches.num_observed) == (len(queries) / 2, 5, 7)
    assert batch.query_weight.tolist() == pytest.approx([len(queries) / 3 / 2] * 3)
    assert batch.terms_per_query.tolist() == [5, 5, 5]
    known = {(b, a) for b, i in enumerate(index.tolist()) for a in answers(batches, i)}
    if negatives is None:
        assert batch.candidate is ... and batch.entities is ... and batch.entity_scale is None
        assert batch.query is None and batch.weight is None
        assert batch.y.shape == (3, 5) and batch.unlabelled().y is None
        assert set(map(tuple, batch.y.nonzero().tolist())) == known
    else:
        check_sampled(batch, known, ids)


def answers(batches: Batches, query: int) -> list[int]:
    return batches.queries.answer_pairs(torch.tensor([query]))[1].tolist()


def check_sampled(batch: Batch, known: set[tuple[int, int]], ids: Tensor) -> None:
    """Only the rows that its facts touch, each as often as it does, and every fact with its weight."""
    assert batch.query is not None and batch.weight is not None and isinstance(batch.candidate, Tensor)
    touched = torch.cat([ids[batch.anchor], ids[batch.candidate]])
    assert torch.equal(ids, touched.unique())
    facts = list(zip(batch.query.tolist(), ids[batch.candidate].tolist(), strict=True))
    assert set(itertools.compress(facts, batch.y.bool())) == known
    assert not known & set(itertools.compress(facts, ~batch.y.bool()))
    unobserved = torch.tensor([5 - sum(b == row for b, _ in known) for row in range(3)])
    torch.testing.assert_close(batch.weight, torch.where(batch.y == 1, 1.0, unobserved[batch.query] / 2))
    assert batch.entity_scale is not None and batch.entity_scale.shape == ids.shape


def test_expected_occurrences_are_those_of_many_batches(tiny: Graph) -> None:
    """An entity's KL counts once in the mean: its scale is its count over what is expected."""
    batches = Batches(tiny.training_queries, 5, True, 3)
    paid = torch.zeros(5)
    for _ in range(3000):
        batch = batches(torch.randperm(len(batches))[:4])
        assert isinstance(batch.entities, Tensor) and batch.entity_scale is not None
        paid[batch.entities] += batch.entity_scale
    torch.testing.assert_close(paid / 3000, torch.ones(5), atol=0.05, rtol=0)


def test_drawn_candidates_are_uniform(tiny: Graph) -> None:
    batches = Batches(tiny.training_queries, 5, True, 1)
    index = torch.arange(len(batches))
    row, drawn = batches.draw_negatives(index, 4000)
    assert torch.equal(row, index.repeat_interleave(4000))
    counts = torch.zeros(len(batches), 5).index_put((row, drawn), torch.ones(len(row)), accumulate=True)
    for query in range(len(batches)):
        open_ = [e for e in range(5) if e not in answers(batches, query)]
        expected = torch.zeros(5).index_fill(0, torch.tensor(open_), 4000 / len(open_))
        torch.testing.assert_close(counts[query], expected, atol=250, rtol=0)
        assert (counts[query][answers(batches, query)] == 0).all()


def test_a_query_that_every_entity_answers_draws_none(full: Graph) -> None:
    batches = Batches(full.training_queries, 3, True, 2)
    counts = batches.queries.counts
    whole, nearly = int((counts == 3).nonzero()[0]), int((counts == 2).nonzero()[0])
    row, drawn = batches.draw_negatives(torch.tensor([nearly, whole]), 2)
    assert row.tolist() == [0, 0]
    assert set(drawn.tolist()) == set(range(3)) - set(answers(batches, nearly))
    assert batches(torch.tensor([nearly, nearly, whole])).terms_per_query.tolist() == [3, 3, 3]
    batch = batches(torch.tensor([nearly, whole]))
    assert batch.weight is not None and batch.weight.tolist() == [1, 1, 1, 1, 1, 0.5, 0.5]
    assert batch.terms_per_query.tolist() == [3, 3]
    paid = torch.zeros(3)
    for _ in range(2000):
        batch = batches(torch.randint(len(batches), (1,)))
        assert isinstance(batch.entities, Tensor) and batch.entity_scale is not None
        paid[batch.entities] += batch.entity_scale
    torch.testing.assert_close(paid / 2000, torch.ones(3), atol=0.1, rtol=0)


@pytest.mark.parametrize("negatives", [None, 2])
@pytest.mark.parametrize("weight", [None, 3.0])
def test_numbers_have_the_dtype_that_was_asked_for(tiny: Graph, negatives: int | None, weight: float | None) -> None:
    for dtype in (None, torch.float64, torch.float16):
        batch = Batches(tiny.training_queries, 5, True, negatives, weight, dtype)(torch.tensor([0, 1]))
        for numbers in (batch.y, batch.terms_per_query, batch.weight, batch.entity_scale):
            assert numbers is None or numbers.dtype == (dtype or torch.float32)
        if weight is not None and batch.weight is not None:
            assert set(batch.weight[batch.y == 0].tolist()) == {3.0}
            assert batch.terms_per_query.tolist() == [n + 6 for n in tiny.training_queries.counts[:2].tolist()]


def test_on_another_device(tiny: Graph) -> None:
    batches = Batches(tiny.training_queries, 5, True, 2)
    queries = batches.queries
    assert batches.to("cpu") is batches and batches.queries is queries
    made = {name for name, table in vars(batches).items() if isinstance(table, Tensor)}
    batches(torch.tensor([0]))
    assert made < {name for name, table in vars(batches).items() if isinstance(table, Tensor)}
    moved = batches.to("meta")
    assert moved.queries.answers.device.type == "meta"
    assert made == {name for name, table in vars(moved).items() if isinstance(table, Tensor)}, "tables were left behind"
