"""Each score's triple form, all-tails form and all-heads form against a naive formula, triple by triple."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.program.interactions import SCORES, TripleScore, resolve_score

pytestmark = pytest.mark.usefixtures("double")
DIM, ENTITIES, QUERIES = 6, 7, 4


def complex_vector(x: Tensor) -> Tensor:
    return torch.complex(x[: len(x) // 2], x[len(x) // 2 :])


NAIVE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "DistMult": lambda h, r, t: sum(h[i] * r[i] * t[i] for i in range(DIM)),
    "ComplEx": lambda h, r, t: (complex_vector(h) * complex_vector(r) * complex_vector(t).conj()).sum().real,
    "TransE-L1": lambda h, r, t: -sum(abs(h[i] + r[i] - t[i]) for i in range(DIM)),
    "TransE-L2": lambda h, r, t: -(sum((h[i] + r[i] - t[i]) ** 2 for i in range(DIM)) ** 0.5),
    "RESCAL": lambda h, r, t: sum(h[i] * r[i * DIM + j] * t[j] for i in range(DIM) for j in range(DIM)),
    "CP": lambda h, r, t: sum(h[i] * r[i] * t[DIM // 2 + i] for i in range(DIM // 2)),
    "RotatE": lambda h, r, t: -torch.linalg.vector_norm(
        complex_vector(h) * torch.polar(torch.ones_like(r), r) - complex_vector(t)
    ),
    "pykeen:HolE": lambda h, r, t: sum(
        r[k] * h[i] * t[(k + i) % DIM] for k in range(DIM) for i in range(DIM)
    ),
    "pykeen:TransE": lambda h, r, t: -(sum((h[i] + r[i] - t[i]) ** 2 for i in range(DIM)) ** 0.5),
}  # fmt: skip


def test_every_score_has_a_naive_formula() -> None:
    assert {s.name for s in SCORES.values()} <= set(NAIVE)


@pytest.mark.parametrize("name", NAIVE)
def test_all_forms_agree(name: str) -> None:
    score = resolve_score(name)
    entity_size, relation_size = score.sizes(DIM)
    table, relations = torch.randn(ENTITIES, entity_size), torch.randn(QUERIES, relation_size)
    anchors = torch.randint(ENTITIES, (QUERIES,))
    for reverse in (None, torch.tensor([True, False, False, True])):
        expected = torch.empty(QUERIES, ENTITIES)
        for q in range(QUERIES):
            for c in range(ENTITIES):
                ends = table[anchors[q]], table[c]
                head, tail = ends if reverse is None or not reverse[q] else ends[::-1]
                expected[q, c] = NAIVE[name](head, relations[q], tail)
                assert float(score.triples(head, relations[q], tail)) == pytest.approx(float(expected[q, c]), abs=1e-5)
        scores = score.candidates(table[anchors], relations, table, reverse)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
        each = score.facts(table[anchors], relations, table[:QUERIES], reverse)
        torch.testing.assert_close(each, expected[:, :QUERIES].diagonal(), atol=1e-5, rtol=0)
    tails = table[torch.randint(ENTITIES, (QUERIES,))]
    each = [[float(NAIVE[name](h, r, t)) for r in relations] for h, t in zip(table[anchors], tails, strict=True)]
    torch.testing.assert_close(score.relations(table[anchors], tails, relations), torch.tensor(each), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["DistMult", "ComplEx", "TransE-L2", "RESCAL", "RotatE"])
def test_agreement_with_pykeen(name: str) -> None:
    ours, theirs = resolve_score(name), resolve_score(f"pykeen:{name.removesuffix('-L2')}")
    h, t = torch.randn(QUERIES, DIM), torch.randn(QUERIES, DIM)
    r = torch.randn(QUERIES, ours.relation_size(DIM))
    theirs_r = torch.cat([r.cos(), r.sin()], dim=-1) if name == "RotatE" else r
    torch.testing.assert_close(ours.triples(h, r, t), theirs.triples(h, theirs_r, t), atol=1e-5, rtol=0)


def test_blocks_do_not_change_a_score() -> None:
    whole = resolve_score("pykeen:HolE")
    assert isinstance(whole, TripleScore)
    small = TripleScore("small", function=whole.function, block=2 * QUERIES * DIM)
    a, r, table = torch.randn(QUERIES, DIM), torch.randn(QUERIES, DIM), torch.randn(ENTITIES, DIM)
    torch.testing.assert_close(small.candidates(a, r, table), whole.candidates(a, r, table))


def my_score(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    return (head - relation - tail).sum(-1)


def test_a_users_own_function() -> None:
    for given in (my_score, f"{__name__}:my_score"):
        score = resolve_score(given)
        h, r, table = torch.randn(2, 3), torch.randn(2, 3), torch.randn(5, 3)
        torch.testing.assert_close(score.candidates(h, r, table)[1, 4], my_score(h[1], r[1], table[4]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("complax", "did you mean 'ComplEx'?"),
        ("pykeen:nothing", "no interaction 'nothing'"),
        ("pykeen:TuckER", "weights of its own"),
        ("pykeen:SimplE", "several vectors"),
        ("no.such.module:score", "cannot be imported"),
    ],
)
def test_unusable_scores(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_score(name)


@pytest.mark.parametrize("name", ["ComplEx", "CP", "RotatE", "pykeen:ComplEx"])
def test_odd_dimensions(name: str) -> None:
    with pytest.raises(InputError, match="even; got 5, try 6"):
        resolve_score(name).sizes(5)
