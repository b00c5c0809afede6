"""Replicated graphs: their statistics against loops, their p-values against enumeration, and misfits planted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import kgpyro
from kgpyro.checking import posterior_predictive as checking
from kgpyro.checking import statistics
from kgpyro.checking.posterior_predictive import PosteriorPredictive
from kgpyro.checking.statistics import Cells
from kgpyro.commands import check as check_command
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError

Labels = set[tuple[int, int, int]]


class Stub:
    """A posterior with given probabilities of all cells, shape ``(R, E, E)``, times a factor by the draw's parity."""

    def __init__(
        self, graph: Graph, p: Tensor, completeness: float = 1.0, odd: float = 1.0, closed_world: str = "full"
    ):
        self.graph, self.p, self.completeness, self.odd = graph, p, completeness, odd
        self.config = {"closed_world": closed_world}
        self.asked, self.form = 0, "closed"

    def refuse_categorical(self, what: str) -> None:
        pass

    def share_observed(self, anchor: Tensor, candidate: Tensor) -> Tensor:
        return torch.where(anchor == candidate, 1.0, self.completeness)

    def joint_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: Sequence[int], candidates: Tensor | EllipsisType = ...
    ) -> Iterator[Tensor]:
        for number in numbers:
            p = self.p[row, anchor][:, candidates] * (self.odd if number % 2 else 1.0)
            self.asked += p.numel()
            yield p


def check(posterior: Stub, draws: int = 100, **options: Any) -> PosteriorPredictive:
    return checking.posterior_predictive(posterior, draws, **options)  # type: ignore[arg-type]


def graph_of(labels: Tensor) -> Graph:
    """The graph of labels, shape ``(R, E, E)``."""
    relations, size, _ = labels.shape
    train = labels.nonzero()[:, [1, 0, 2]]
    names = (tuple(f"{letter}{i:04}" for i in range(number)) for letter, number in (("e", size), ("r", relations)))
    return Graph("drawn", *names, train, train[:1], train[:1])


def drawn(p: Tensor, seed: int = 17) -> Graph:
    """A graph of a model that is right; tests draw ``p`` itself with seed 0."""
    return graph_of(torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)) < p)


def mirrored_graph(size: int = 9, relations: int = 3) -> Graph:
    """Random facts, a third of which have a mirror image in their own or the next relation."""
    p = torch.full((relations, size, size), 0.15)
    labels = torch.rand(p.shape) < p
    mirrors = labels.mT & (torch.rand(p.shape) < 0.3)
    return graph_of(labels | mirrors | mirrors.roll(1, 0))


def by_loops(graph: Graph, labels: Labels, cells: Cells) -> dict[tuple[str, str], float]:
    """The statistics of facts, one by one."""
    names, found = graph.relations, {}
    asked = list(zip(cells.head.tolist(), cells.relation.tolist(), strict=True))
    facts = {f for f in labels if f[:2] in set(asked)}
    for r in {q[1] for q in asked}:
        found["facts", names[r]] = sum(f[1] == r for f in facts)
    found["facts", "all"] = len(facts)
    values = np.array([sum(f[:2] == query for f in facts) for query in asked])
    for name, low, high in (("no answer", 0, 0), ("1 answer", 1, 1), ("2 answers", 2, 2), ("3-5 answers", 3, 5),
                            ("6-10 answers", 6, 10), ("over 10 answers", 11, 10**9)):  # fmt: skip
        found[f"queries with {name}", "all"] = ((values >= low) & (values <= high)).mean()
    found["answers per query, standard deviation", "all"] = values.std()
    found["answers per query, largest", "all"] = values.max()
    outs = [sum(f[0] == e for f in facts) for e in {q[0] for q in asked}]
    ins = [sum(f[2] == e for f in facts) for e in range(graph.num_entities)]
    for way, degrees in (("out", outs), ("in", ins)):
        for x in (0.25, 0.5, 0.75, 0.9, 0.99, 1.0):
            found[f"{way}-degree, quantile {x:.0%}", "all"] = np.quantile(degrees, x, method="nearest")
    entities, relations = set(cells.entities.tolist()), cells.relations.tolist()
    facts = {(h, r, t) for h, r, t in labels if {h, t} <= entities and r in relations and h != t}
    number = {r: sum(f[1] == r for f in facts) for r in relations}
    holds = {(p, q): sum((t, q, h) in facts for h, r, t in facts if r == p) for p in relations for q in relations}
    found["symmetry", "all"] = sum(holds[r, r] for r in relations) / max(len(facts), 1)
    for r in relations:
        found["symmetry", names[r]] = holds[r, r] / max(number[r], 1)
    pairs = list(itertools.combinations(relations, 2))
    for p, q in pairs:
        found["inverse pair", f"{names[p]} / {names[q]}"] = 2 * holds[p, q] / max(number[p] + number[q], 1)
    both, either = (
        sum(values) for values in zip(*((2 * holds[p, q], number[p] + number[q]) for p, q in pairs), strict=True)
    )
    found["inverse pair", "all"] = both / max(either, 1)
    edges = {(h, t) for h, _, t in facts}
    paths = [(h, u) for (h, t), (s, u) in itertools.product(edges, edges) if t == s and h != u]
    found["triangles", "all"] = sum(path in edges for path in paths)
    found["closed two-step paths", "all"] = found["triangles", "all"] / max(len(paths), 1)
    return found


@pytest.mark.parametrize("sampled", [False, True])
def test_statistics_are_those_of_loops(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = mirrored_graph()
    if sampled:
        monkeypatch.setattr(statistics, "CELLS", 100)
    cells = Cells.of(graph, 17, 6, seed=3)
    replica = drawn(torch.full((3, 9, 9), 0.3))
    in_corner = torch.zeros(3, 9, 9, dtype=torch.bool)
    in_corner[replica.train[:, 1], replica.train[:, 0], replica.train[:, 2]] = True
    table = in_corner[cells.relation, cells.head]
    corner = in_corner[cells.relations][:, cells.entities][:, :, cells.entities]
    for one, (counts, received, labels) in ((graph, cells.observed), (replica, (table.sum(1), table.sum(0), corner))):
        values = torch.cat([cells.of_queries(counts, received.bincount()), cells.of_corner(labels)]).tolist()
        expected = by_loops(graph, {tuple(f) for f in one.train.tolist()}, cells)  # type: ignore[misc]
        assert len(values) == len(cells.names) >= 25
        for (_, statistic, relation), value in zip(cells.names, values, strict=True):
            assert statistic.endswith(" (sample)") == sampled
            assert value == pytest.approx(expected[statistic.removesuffix(" (sample)"), relation]), statistic
    if not sampled:
        assert {name[1:] for name in cells.names} >= {key for key in expected if key[0] != "inverse pair"}


def test_inverse_pairs_are_those_with_the_largest_shares() -> None:
    graph = mirrored_graph(12, 8)
    cells = Cells.of(graph, 1, 3, seed=0)
    facts = {tuple(f) for f in graph.train.tolist() if f[0] != f[2]}
    shares = {}
    for p, q in itertools.combinations(range(8), 2):
        both = sum((t, q, h) in facts for h, r, t in facts if r == p)
        shares[p, q] = both / (sum(f[1] in (p, q) for f in facts) + statistics.FEW)
    chosen = list(zip(*(x.tolist() for x in cells.inverse_pairs), strict=True))
    assert [shares[pair] for pair in chosen] == pytest.approx(sorted(shares.values(), reverse=True)[:10])


@pytest.mark.parametrize("most", [10**6, 2_000, 900])
@pytest.mark.parametrize("limits", [{}, {"queries": 40, "entities": 15}])
def test_replicates_that_are_the_graph_have_its_statistics(
    most: int, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "CELLS", most)
    monkeypatch.setattr(checking, "BLOCK", max(most, 1_000))
    graph = mirrored_graph(30, 3)
    certain = torch.zeros(3, 30, 30)
    certain[graph.train[:, 1], graph.train[:, 0], graph.train[:, 2]] = 1
    found = check(Stub(graph, certain), 3, **limits)
    np.testing.assert_allclose(found.summary["mean"], found.summary["graph"], rtol=1e-9)
    assert (found.summary["p_value"] == 1).all()
    assert not found.summary["misfit"].any()
    assert ("all 2,700 cells" in found.cells) == (most == 10**6)
    assert found.summary["statistic"].str.endswith("(sample)").any() == (most < 10**6)


@pytest.mark.parametrize("completeness", [1.0, 0.7])
def test_p_values_by_enumeration(completeness: float) -> None:
    """Labels with given probabilities are independent, and a number of facts is Poisson-binomial."""
    p = torch.rand(2, 6, 6).square()
    graph = drawn(p)
    found = check(Stub(graph, p, completeness), 3_000).summary.set_index(["statistic", "relation"])
    p = p * torch.eye(6).clamp_min(completeness)
    no_answer, share = (1 - p).prod(2).flatten(), found.loc[("queries with no answer", "all")]
    assert share["mean"] == pytest.approx(float(no_answer.mean()), abs=0.01)
    for relation, name in enumerate(graph.relations):
        law = np.ones(1)
        for x in p[relation].flatten().tolist():
            law = np.convolve(law, [1 - x, x])
        observed = int((graph.train[:, 1] == relation).sum())
        line = found.loc[("facts", name)]
        assert line["graph"] == observed
        assert line["mean"] == pytest.approx(law @ np.arange(len(law)), abs=0.25)
        assert line["p_value"] == pytest.approx(law[observed:].sum(), abs=0.04)
        low, high = (int((law.cumsum() < x).sum()) for x in (0.05, 0.95))
        assert abs(line["low"] - low) <= 1 and abs(line["high"] - high) <= 1


@pytest.mark.parametrize("sampled", [False, True])
def test_a_model_that_is_right_is_not_called_wrong(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr(statistics, "CELLS", 1_000)
    p = torch.rand(4, 20, 20).square() * torch.rand(4, 20, 1) * 0.5
    tables = [check(Stub(drawn(p, seed), p), 200, queries=50, entities=14, seed=seed).summary for seed in range(100)]
    flagged = pd.concat(tables).query("family != 'inverse pairs' or relation == 'all'")  # pairs are chosen
    assert flagged["misfit"].mean() < 0.03
    shares = flagged[flagged["statistic"].str.startswith("queries with no answer")]
    assert len(shares) == 100 and shares["misfit"].sum() <= 6
    assert 0.3 < shares["p_value"].mean() < 0.8
    total = flagged[flagged["statistic"].str.startswith("facts") & (flagged["relation"] == "all")]["p_value"]
    assert 0.3 < total.mean() < 0.7 and total.std() > 0.2  # uniform has 0.5 and 0.29


def test_all_facts_of_a_replicate_share_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are likely or unlikely as a whole: no replicate has a middling number of facts, however few at once."""
    monkeypatch.setattr(statistics, "CELLS", 100)
    monkeypatch.setattr(checking, "BLOCK", 60)
    p = torch.full((2, 12, 12), 0.9)
    found = check(Stub(drawn(p / 2), p, odd=0.1), 100, queries=24, entities=6)
    facts, symmetry = (
        found.replicated[:, found.summary.query(f"family == '{family}' and relation == 'all'").index[0]]
        for family in ("facts per relation", "symmetry")
    )
    likely = facts > 24 * 12 * 0.5
    assert 25 < likely.sum() < 75
    assert (facts[likely] > 24 * 12 * 0.75).all() and (facts[~likely] < 24 * 12 * 0.25).all()
    assert symmetry[likely].min() > 0.5 > symmetry[~likely].mean()


def test_a_replicate_follows_from_the_seed_alone() -> None:
    p = torch.full((2, 7, 7), 0.3)
    posterior = Stub(drawn(p), p)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (check(posterior, 5, seed=seed).replicated for seed in (4, 4, 5))
    assert (first == again).all() and (first != other).any()
    assert (torch.get_rng_state() == before).all()


def test_another_default_dtype(tiny: Graph) -> None:
    posterior = kgpyro.fit(tiny, model="lim", dim=2, epochs=2, progress=False)
    expected = kgpyro.posterior_predictive(posterior, draws=3).summary
    torch.set_default_dtype(torch.float64)
    try:
        pd.testing.assert_frame_equal(kgpyro.posterior_predictive(posterior, draws=3).summary, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_relations_are_sampled() -> None:
    size, relations, draws = 100, 6_000, 3
    train = torch.stack([torch.randint(n, (30_000,)) for n in (size, relations, size)], dim=1).unique(dim=0)
    names = (tuple(f"{letter}{i:04}" for i in range(number)) for letter, number in (("e", size), ("r", relations)))
    graph = Graph("wide", *names, train, train[:1], train[:1])
    posterior = Stub(graph, torch.full((1,), 5e-4).expand(relations, size, size))
    found = check(posterior, draws)
    assert posterior.asked <= draws * (2_000 * size + statistics.CELLS)
    assert found.cells == (
        "a sample: 2,000 of 600,000 queries (h, r, ?); "
        "the 200 most frequent of 6,000 relations among 100 of 100 entities"
    )
    frequency = torch.bincount(train[:, 1])
    shown = found.summary.query("family == 'symmetry' and relation != 'all'")["relation"]
    assert min(frequency[graph.relation_id(name)] for name in shown) >= frequency.sort(descending=True).values[200]


@pytest.mark.parametrize("limit", [1_000_000, 900])
def test_a_local_closed_world_says_nothing_of_queries_without_answers(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all is probable, a replicate holds the cells of answered queries, and no others."""
    monkeypatch.setattr(statistics, "CELLS", limit)
    graph = drawn(torch.full((3, 9, 9), 0.05))
    facts = graph.train.tolist()
    asked, back = {(r, h) for h, r, _ in facts}, {(r, t) for _, r, t in facts}
    every = list(itertools.product(range(9), range(3), range(9)))
    cells = {(h, r, t) for h, r, t in every if (r, h) in asked or (r, t) in back}
    found = check(Stub(graph, torch.ones(3, 9, 9), closed_world="local"), 2, queries=27, entities=9)
    table = found.summary.set_index("relation")
    of_facts = table[table["family"] == statistics.FACTS]
    for r, name in enumerate(graph.relations):
        assert of_facts.loc[name, "mean"] == sum(kind == r for _, kind, _ in cells)
    assert len(facts) < of_facts.loc["all", "mean"] == len(cells) < len(every)
    without = found.summary[found.summary["statistic"].str.startswith("queries with no answer")].iloc[0]
    assert min(without["p_value"], 1 - without["p_value"]) == 0 and not without["misfit"]
    full = check(Stub(graph, torch.ones(3, 9, 9)), 2, queries=27, entities=9)
    assert full.summary.loc[without.name, "misfit"]


def test_the_verdict_comes_first() -> None:
    labels = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.2
    graph = graph_of(labels)
    right, wrong = (check(Stub(graph, p), 200) for p in (labels.double(), torch.full((3, 9, 9), 0.9)))
    for found in (right, wrong):
        assert str(found).startswith(found.verdict)
        assert found.verdict.count("\n") == 2
        assert max(map(len, found.verdict.splitlines())) < 115
    assert "reproduces the graph" in right.verdict
    assert f"{len(wrong.misfits)} of {len(wrong.summary)} statistics misfit" in wrong.verdict
    assert f"{wrong.misfits['graph'].iloc[0]:.3g} in the graph" in wrong.verdict


def test_a_planted_symmetric_relation_is_found(tmp_path: Path) -> None:
    """Everyone's probability of a fact is right, but one relation's facts come in mirrored pairs."""
    p = torch.full((3, 25, 25), 0.1)
    labels = torch.rand(p.shape) < p
    labels[1] = labels[1].triu() | labels[1].triu().mT
    found = check(Stub(graph_of(labels), p), 200)
    row = found.summary.query("family == 'symmetry' and relation == 'r0001'").iloc[0]
    assert row["graph"] == 1 and row["misfit"] and row["p_value"] == 0
    assert row["mean"] == pytest.approx(0.1, abs=0.03)
    assert "r0001" in found.misfits["relation"].iloc[:2].tolist()
    others = found.summary.query("family == 'symmetry' and relation in ['r0000', 'r0002']")
    assert not others["misfit"].any()
    (warning,) = [line for line in found.warnings if line.startswith("symmetry")]
    assert warning == "symmetry: 2 of 4 misfit (r0001; all): replicates have less than the graph."
    assert found.save(tmp_path) == ["posterior_summary.csv", "posterior_predictive.png"]
    table = pd.read_csv(tmp_path / "posterior_summary.csv")
    assert list(table.columns) == list(found.summary.columns)
    assert (tmp_path / "posterior_predictive.png").stat().st_size > 10_000


def test_too_few_of_anything() -> None:
    p = torch.full((2, 7, 7), 0.3)
    posterior = Stub(drawn(p), p)
    for wrong in ({"draws": 1}, {"queries": 0}, {"entities": 2}):
        (name,) = wrong
        with pytest.raises(InputError, match=f"`{name}` must be at least"):
            check(posterior, **wrong)
    found = check(posterior, 20)
    assert found.warnings[0].startswith("20 replicates tell p-values apart by 0.05 only")


# ---- the command ----------------------------------------------------------------------------------------------------


def order() -> Graph:
    """A strict order of twelve: never both ``a before b`` and ``b before a``."""
    triples = [[f"e{i:02}", "before", f"e{j:02}"] for i in range(12) for j in range(i + 1, 12)]
    return Graph.from_triples("order", triples, triples[:1], triples[:1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {score: tmp_path_factory.mktemp("runs") / score for score in ("DistMult", "ComplEx")}
    options: dict[str, Any] = {"model": "lim", "dim": 10, "epochs": 150, "batch_size": 22, "prior": "normal(scale=2)"}
    for score, folder in folders.items():
        kgpyro.fit(order(), score=score, out=folder, progress=False, **options)
    return folders


@pytest.mark.parametrize(("score", "symmetric"), [("DistMult", True), ("ComplEx", False)])
def test_a_symmetric_score_on_an_antisymmetric_graph(
    runs: dict[str, Path], score: str, symmetric: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_command([str(runs[score])]) == 0
    warning = "WARNING: symmetry: 2 of 2 misfit (all; before): replicates have more than the graph."
    printed = capsys.readouterr().out
    assert (warning in printed) == symmetric
    assert "PSIS k = " in printed
    table = pd.read_csv(runs[score] / "checks" / "posterior_summary.csv").set_index(["statistic", "relation"])
    row = table.loc[("symmetry", "before")]
    assert row["graph"] == 0
    assert row["misfit"] == symmetric
    assert (row["mean"] > 0.3) == symmetric
    assert (runs[score] / "checks" / "posterior_predictive.png").stat().st_size > 10_000
    assert kgpyro.load(runs[score]).graph.name == "order"


def test_mistakes(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs["ComplEx"])
    for wrong, words in (
        ([run, "--prior", "normal"], "--prior is for a check without RUN; leave RUN out"),
        ([run, "--dataset", "nations"], "--dataset puts the run to another graph"),
        ([run, "--draws", "1"], "--draws must be at least 2"),
        ([f"{run}/nowhere"], "holds no run"),
        (["--entities", "5"], "--entities is for the check of a RUN"),
        (["--run-prior", "a:b"], "--run-prior is for the check of a RUN"),
    ):
        assert check_command(wrong) == 2
        assert words in capsys.readouterr().err
