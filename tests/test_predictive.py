"""The posterior predictive of facts: its moments by quadrature, its two kinds of doubt, and every way of asking."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import pairwise
from test_posterior import posterior_of

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.uncertainty import entropy, summary


def test_the_two_kinds_of_doubt_by_quadrature() -> None:
    """For a Gaussian logit, against Gauss-Hermite sums."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    weights /= weights.sum()
    for mean, scale in ((0.0, 1.0), (-3.0, 2.0), (4.0, 0.5)):
        p = 1 / (1 + np.exp(-(mean + scale * points)))
        expected_p = (weights * p).sum()
        h = -(weights * (p * np.log(p) + (1 - p) * np.log1p(-p))).sum()
        total = -(expected_p * math.log(expected_p) + (1 - expected_p) * math.log1p(-expected_p))
        found = summary(mean + scale * torch.randn(400_000, 1))
        assert float(found["probability"]) == pytest.approx(expected_p, abs=3e-3)
        assert float(found["std"]) == pytest.approx(math.sqrt((weights * p**2).sum() - expected_p**2), rel=0.02)
        assert float(found["aleatoric"]) == pytest.approx(h, rel=0.02)
        assert float(found["epistemic"]) == pytest.approx(total - h, rel=0.03)


def test_entropy_far_out() -> None:
    logits = torch.tensor([0.0, 40.0, -40.0, 3.0])
    p = torch.tensor(3.0).sigmoid()
    expected = [math.log(2), 41 * math.exp(-40), 41 * math.exp(-40), float(-p * p.log() - (1 - p) * (1 - p).log())]
    torch.testing.assert_close(entropy(logits.double()).float(), torch.tensor(expected), atol=1e-7, rtol=1e-2)


def test_certain_draws_leave_no_epistemic_doubt() -> None:
    found = summary(torch.full((50, 3), 1.5))
    assert found["epistemic"].abs().max() < 1e-6
    assert found["std"].abs().max() < 1e-6


@pairwise(model=["lim", "lfm"], score=["ComplEx", "TransE-L2", "pykeen:HolE"], inverse=[True, False])
def test_a_fact_has_one_probability(tiny: Graph, model: str, score: str, inverse: bool) -> None:
    """As a fact, as an answer of its tail query and of its head query; self-loops included; against the formula."""
    posterior = posterior_of(tiny, model=model, score=score, inverse=inverse)
    triples = [("a", "likes", "b"), ("b", "likes", "b"), ("e", "knows", "a")]
    for (head, relation, tail), row in zip(triples, posterior.facts(triples, draws=200).itertuples(), strict=True):
        tails = posterior.predict(head=head, relation=relation, top=None, draws=200).set_index("tail").loc[tail]
        heads = posterior.predict(tail=tail, relation=relation, top=None, draws=200).set_index("head").loc[head]
        assert tails["probability"] == pytest.approx(row.probability, rel=1e-5)
        assert heads["probability"] == pytest.approx(row.probability, rel=1e-5)
        assert row.error == pytest.approx(row.std / math.sqrt(200))
    table = posterior.facts(triples, draws=200)
    h, r, t = tiny.ids(triples).unbind(1)
    anchor, asked = torch.cat([h, t]), torch.cat([r, r + tiny.num_relations])
    by_query = posterior.probabilities(anchor, asked, draws=200)[torch.arange(6), torch.cat([t, h])].chunk(2)
    for found in by_query:
        np.testing.assert_allclose(found, table["probability"], rtol=1e-5)


def test_ways_of_giving_facts(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    rows = [("a", "likes", "b"), ("c", "knows", "d")]
    frame = pd.DataFrame(rows, columns=["head", "relation", "tail"])
    ids = torch.tensor([[tiny.entity_id(h), tiny.relation_id(r), tiny.entity_id(t)] for h, r, t in rows])
    first = posterior.facts(rows)
    for other in (frame, ids):
        pd.testing.assert_frame_equal(posterior.facts(other), first)
    with pytest.raises(InputError, match="no entity 'z'"):
        posterior.facts([("z", "likes", "b")])


def test_predictions_in_blocks_are_the_same(tiny: Graph) -> None:
    """The most probable answers are the same whether all are kept or only the best."""
    posterior = posterior_of(tiny, score="ComplEx")
    every = posterior.predict(head="a", relation="knows", top=None, draws=4000)
    best = posterior.predict(head="a", relation="knows", top=2, draws=4000)
    assert set(best["tail"]) == set(every["tail"][:2])
    np.testing.assert_allclose(best["probability"], every["probability"][:2], atol=0.03)
