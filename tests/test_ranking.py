"""Ranks and metrics against PyKEEN's evaluator, fed with the same scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from pykeen.evaluation import RankBasedEvaluator
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.errors import InputError
from kgpyro.evaluation import ranking
from kgpyro.evaluation.ranking import (
    TIES,
    all_metrics,
    answer_distributions,
    calibration_error,
    metrics_table,
    per_relation_table,
    rank_metrics,
    rank_relations,
    rank_triples,
)

NAMES = {
    "mrr": "inverse_harmonic_mean_rank",
    "mr": "arithmetic_mean_rank",
    "amri": "adjusted_arithmetic_mean_rank_index",
}


def many_ties(entities: int, rows: int) -> Tensor:
    return torch.randint(0, 4, (rows, entities, entities)).float()


def ranked(graph: Graph, scores: Tensor) -> pd.DataFrame:
    return rank_triples(lambda a, r: scores[r, a], graph.test, graph.known_queries, graph.num_entities)


def pykeens(graph: Graph, scores: Tensor, filtered: bool) -> tuple[RankBasedEvaluator, dict]:
    evaluator = RankBasedEvaluator(filtered=filtered, clear_on_finalize=False)
    known = torch.cat([graph.train, graph.valid, graph.test])
    for target, column, shift in (("head", 0, graph.num_relations), ("tail", 2, 0)):
        for triple in graph.test:
            anchor, answer = triple[2 - column], triple[column]
            row = scores[triple[1] + shift, anchor].clone()
            if filtered:
                same = (known[:, 1] == triple[1]) & (known[:, 2 - column] == anchor) & (known[:, column] != answer)
                row[known[same][:, column]] = float("nan")
            evaluator.process_scores_(triple[None], target, row[None], row[answer][None, None])
    return evaluator, evaluator.finalize().to_dict()


def synthetic() -> Graph:
    rng = np.random.default_rng(0)
    triples = np.unique(rng.integers(0, [12, 3, 12], size=(200, 3)), axis=0)
    rng.shuffle(triples)
    named = [[f"e{h}", f"r{r}", f"e{t}"] for h, r, t in triples.tolist()]
    return Graph.from_triples("synthetic", named[:60], named[60:80], named[80:120])


@pytest.mark.parametrize("graph", [load_graph("nations"), synthetic()], ids=lambda g: g.name)
@pytest.mark.parametrize("ties", [True, False])
def test_agreement_with_pykeen(graph: Graph, ties: bool) -> None:
    shape = graph.num_entities, 2 * graph.num_relations
    scores = many_ties(*shape) if ties else torch.randn(shape[1], shape[0], shape[0])
    ours = ranked(graph, scores)
    for filtered, prefix in ((True, ""), (False, "raw_")):
        evaluator, theirs = pykeens(graph, scores, filtered)
        for side in ("head", "tail"):
            mine = ours[ours["side"] == side]
            for kind in ("optimistic", "pessimistic"):
                their_ranks = np.concatenate(evaluator.ranks[side, kind])
                np.testing.assert_array_equal(mine[f"{prefix}{kind}"].to_numpy(), their_ranks)
        for part, side in (
            (ours, "both"),
            (ours[ours["side"] == "head"], "head"),
            (ours[ours["side"] == "tail"], "tail"),
        ):
            for kind in ("optimistic", "realistic", "pessimistic"):
                metrics = rank_metrics(part, kind, raw=not filtered)
                for name, value in metrics.items():
                    if name == "amri" and kind != "realistic":
                        continue  # PyKEEN gives it for realistic ranks only
                    their_name = NAMES.get(name, name.replace("hits@", "hits_at_"))
                    assert value == pytest.approx(theirs[side][kind][their_name], abs=1e-6), (side, kind, name)


def test_blocks_do_not_change_ranks(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = many_ties(5, 4)
    whole = ranked(tiny, scores)
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 5)
    pd.testing.assert_frame_equal(ranked(tiny, scores), whole)


def test_entities_unseen_in_training_are_candidates(tiny: Graph) -> None:
    ranks = ranked(tiny, torch.zeros(4, 5, 5))
    assert set(ranks["raw_candidates"]) == {5}
    assert set(ranks["raw_pessimistic"]) == {5}


def test_tables() -> None:
    graph = synthetic()
    ranks = ranked(graph, many_ties(graph.num_entities, 2 * graph.num_relations))
    metrics, table = all_metrics(ranks), metrics_table(ranks)
    sides = {"both": ranks, "head": ranks[ranks["side"] == "head"], "tail": ranks[ranks["side"] == "tail"]}
    assert table.index.tolist() == [(s, e) for s in ("filtered", "raw") for e in sides]
    assert table.index.names == ["setting", "side"]
    for side, part in sides.items():
        assert len(part) == len(graph.test) * (2 if side == "both" else 1)
        for setting in ("filtered", "raw"):
            assert table.loc[(setting, side)].to_dict() == rank_metrics(part, "realistic", raw=setting == "raw")
        for ties in TIES:
            found = metrics if side == "both" else metrics[side]
            assert found[ties] == rank_metrics(part, ties, raw=False)
            assert metrics["raw"][ties] == rank_metrics(ranks, ties, raw=True)
    assert len(set(table["mrr"])) == 6  # every cell is of facts and a setting of its own


def test_table_by_relation() -> None:
    graph = synthetic()
    ranks = ranked(graph, many_ties(graph.num_entities, 2 * graph.num_relations))
    table = per_relation_table(ranks, graph)
    assert table.index.names == ["relation", "side"]
    assert table["triples"].dtype == int
    counts = torch.bincount(graph.test[:, 1]).tolist()
    assert table["triples"].tolist() == sorted(counts * 2, reverse=True)
    assert len(set(counts)) == 3
    for (relation, side), row in table.iterrows():
        part = ranks[(ranks["relation"] == graph.relations.index(relation)) & (ranks["side"] == side)]
        assert row.to_dict() == {"triples": len(part)} | rank_metrics(part, raw=False)


def test_relations_of_equal_size_stand_in_the_order_of_the_graph() -> None:
    names = [(f"a{i}", f"r{i:02}", f"b{i}") for i in range(20)]
    graph = Graph.from_triples("equal", names, names, names)
    ranks = ranked(graph, torch.zeros(40, 40, 40))
    assert [relation for relation, _ in per_relation_table(ranks, graph).index[::2]] == list(graph.relations)


def test_one_candidate_alone_has_no_adjusted_rank() -> None:
    ranks = ranked(Graph.from_triples("loop", [("a", "r", "a")], [], [("a", "r", "a")]), torch.zeros(2, 1, 1))
    assert ranks.drop(columns=["side", "relation"]).eq(1).all(axis=None)
    assert np.isnan(rank_metrics(ranks)["amri"])
    assert rank_metrics(ranks)["mrr"] == 1
    two = Graph.from_triples("two", [("a", "r", "b")], [], [("a", "r", "b")])
    assert rank_metrics(ranked(two, torch.arange(8.0).reshape(2, 2, 2)))["amri"] == 0  # of ranks 1 and 2 out of two


def test_scores_that_are_nan(tiny: Graph) -> None:
    with pytest.raises(InputError, match=r"^the posterior scores some facts as NaN; .* tighten the prior.$"):
        ranked(tiny, torch.full((4, 5, 5), float("nan")))


def test_no_triples(tiny: Graph) -> None:
    ranks = rank_triples(lambda a, r: torch.zeros(len(a), 5), tiny.test[:0], tiny.known_queries, 5)
    with pytest.raises(InputError, match=r"^there are no triples to rank.$"):
        rank_metrics(ranks)


def test_ranks_of_relations() -> None:
    """Against a count by hand: known relations of the same pair are removed, but the true one."""
    graph = synthetic()
    scores = torch.randint(0, 4, (graph.num_entities, graph.num_entities, graph.num_relations)).float()
    known = torch.cat([graph.train, graph.valid, graph.test])
    ranks = rank_relations(lambda h, t: scores[h, t], graph.test, known, graph.num_entities, graph.num_relations)
    held = set(map(tuple, known.tolist()))
    for i, (head, relation, tail) in enumerate(graph.test.tolist()):
        mine = scores[head, tail]
        for prefix, left in (
            ("raw_", range(graph.num_relations)),
            ("", [r for r in range(graph.num_relations) if r == relation or (head, r, tail) not in held]),
        ):
            better = sum(float(mine[r]) > float(mine[relation]) for r in left)
            as_good = sum(float(mine[r]) >= float(mine[relation]) for r in left)
            found = ranks.loc[i, [f"{prefix}{c}" for c in ("optimistic", "pessimistic", "candidates")]].tolist()
            assert found == [better + 1, as_good, len(left)]
    assert set(ranks["side"]) == {"relation"} and ranks["relation"].tolist() == graph.test[:, 1].tolist()


def test_distributions_over_candidates() -> None:
    """Against each query on its own, with other known answers and without them."""
    graph = synthetic()
    p = torch.rand(2 * graph.num_relations, graph.num_entities, graph.num_entities) ** 8
    found = answer_distributions(lambda a, r: p[r, a], graph.test, graph.known_queries, graph.num_entities)
    known = {tuple(triple) for triple in torch.cat([graph.train, graph.valid, graph.test]).tolist()}
    n = len(graph.test)
    for i, (h, r, t) in enumerate(graph.test.tolist()):
        for at, anchor, row, answer in ((i, t, r + graph.num_relations, h), (i + n, h, r, t)):
            raw = p[row, anchor].double().numpy()
            fact = (lambda c, t=t, r=r: (c, r, t)) if at < n else (lambda c, h=h, r=r: (h, r, c))
            other = [c for c in range(graph.num_entities) if fact(c) in known and c != answer]
            filtered = raw.copy()
            filtered[other] = 0
            for prefix, values in (("raw_", raw), ("", filtered)):
                values = values / values.sum()
                assert found[f"{prefix}confidence"][at] == pytest.approx(values.max())
                assert found[f"{prefix}correct"][at] == (values.argmax() == answer)
                assert found[f"{prefix}nll"][at] == pytest.approx(-np.log(max(values[answer], 1e-12)))
    ranks = ranked(graph, p)
    assert (found["correct"] == (ranks["pessimistic"] == 1)).all()
    metrics = rank_metrics(ranks.join(found), raw=True)
    assert metrics["nll"] == pytest.approx(found["raw_nll"].mean())
    assert metrics["ece"] == pytest.approx(calibration_error(found["raw_confidence"], found["raw_correct"]))


def test_calibration_errors() -> None:
    confidence, correct = np.array([0.05, 0.1, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    # of bins of width .1: {.05}, {.1}, {.95, 1}
    assert calibration_error(confidence, correct) == pytest.approx((0.05 + 0.9 + 0.95) / 4)
    assert calibration_error(confidence, correct, bins=2, equal_mass=True) == pytest.approx((0.85 + 0.95) / 4)
    rng = np.random.default_rng(0)
    confidence = rng.random(100_000)
    correct = (rng.random(100_000) < confidence).astype(float)
    assert calibration_error(confidence, correct) < 0.01
    assert calibration_error(confidence, correct, equal_mass=True) < 0.01
