"""Replicated graphs: their statistics against loops, their p-values against enumeration, and misfits planted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_posterior import posterior_of
from torch import Tensor

import kgpyro
from kgpyro.checking.posterior_predictive import Sample, posterior_predictive
from kgpyro.commands import check_command
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior

ALL = 10**6


def random_graph(entities: int, relations: int, facts: int, seed: int = 0) -> Graph:
    """Random triples, a third of them mirrored in their own or another relation."""
    rng = np.random.default_rng(seed)
    h, t = (rng.integers(entities, size=facts) for _ in range(2))
    p = rng.integers(relations, size=facts)
    third = facts // 3
    h, t = np.concatenate([h, t[:third]]), np.concatenate([t, h[:third]])
    p = np.concatenate([p, (p[:third] + rng.integers(2, size=third)) % relations])
    triples = [[f"e{a:02}", f"r{b}", f"e{c:02}"] for a, b, c in sorted(set(zip(h, p, t, strict=True)))]
    return Graph.from_triples("random", triples, triples[:1], triples[:1])


def by_loops(graph: Graph, labels: set[tuple[int, int, int]]) -> dict[tuple[str, str], float]:
    """The statistics of labels ``(anchor, row, entity)``, one by one."""
    r, names = graph.num_relations, graph.relations
    asked = set(zip(graph.training_queries.anchor.tolist(), graph.training_queries.relation.tolist(), strict=True))
    found: dict[tuple[str, str], float] = {}
    for side, rows, way in (("tail", range(r), "out"), ("head", range(r, 2 * r), "in")):
        counts = {q: sum(f[:2] == q for f in labels) for q in asked if q[1] in rows}
        found[f"facts, {side} queries", "all"] = sum(counts.values())
        for row in rows:
            found[f"facts, {side} queries", names[row % r]] = sum(c for q, c in counts.items() if q[1] == row)
        values = np.array(list(counts.values()))
        for name, low, high in (("no answer", 0, 0), ("1 answer", 1, 1), ("3-5 answers", 3, 5)):
            found[f"{side} queries with {name}", "all"] = ((values >= low) & (values <= high)).mean()
        found[f"answers per {side} query, standard deviation", "all"] = values.std()
        found[f"answers per {side} query, largest", "all"] = values.max()
        degrees = [sum(c for q, c in counts.items() if q[0] == e) for e in {q[0] for q in counts}]
        found[f"{way}-degree, quantile 50%", "all"] = np.quantile(degrees, 0.5, method="nearest")
    tails = {f for f in labels if f[1] < r and f[0] != f[2]}
    holds, cells = np.zeros((r, r)), np.zeros((r, r))
    for (h, p, t), q in itertools.product(tails, range(r)):
        if (t, q) in asked:
            cells[p, q] += 1
            holds[p, q] += (t, q, h) in tails
    found["symmetry", "all"] = np.trace(holds) / np.trace(cells)
    found["inverse pair", "all"] = (holds.sum() - np.trace(holds)) / (cells.sum() - np.trace(cells))
    for p, q in itertools.product(range(r), range(r)):
        share = (holds[p, q] + holds[q, p]) / max(cells[p, q] + cells[q, p], 1)
        found[("symmetry", names[p]) if p == q else ("inverse pair", f"{names[p]} / {names[q]}")] = share
    edges = {(h, t) for h, _, t in tails}
    paths = [(h, u) for (h, t), (s, u) in itertools.product(edges, edges) if t == s and h != u]
    found["triangles", "all"] = sum(path in edges for path in paths)
    found["closed two-step paths", "all"] = found["triangles", "all"] / max(len(paths), 1)
    return found


def test_statistics_are_those_of_loops() -> None:
    graph = random_graph(9, 3, 60)
    sample = Sample(graph, ALL, ALL)
    queries, size = graph.training_queries, graph.num_entities
    replica = (torch.rand(len(queries) * size) < 0.3).nonzero().squeeze(1)
    facts = queries.answer_pairs(sample.index)
    for labels, (query, entity) in (
        (sample.observed, facts),
        (sample.realised(replica, None), (replica // size, replica % size)),
    ):
        asked = sample.index[query]
        cells = zip(queries.anchor[asked], queries.relation[asked], entity, strict=True)
        expected = by_loops(graph, {(int(a), int(row), int(e)) for a, row, e in cells})
        found = dict(zip(sample.names, sample.statistics(labels).tolist(), strict=True))
        assert {name for name, _ in found} >= {name for name, _ in expected}
        checked = found.keys() & expected.keys()
        assert len(checked) >= 24
        for key in checked:
            assert found[key] == pytest.approx(expected[key]), key


class Replaying(Posterior):
    """A posterior that is certain of the training graph's facts."""

    def joint_probabilities(
        self, anchor: Tensor, row: Tensor, numbers: Sequence[int], candidates: Tensor | object = ...
    ) -> Iterator[Tensor]:
        queries = self.graph.training_queries
        p = torch.zeros(len(anchor), self.graph.num_entities)
        p[queries.answer_pairs(queries.positions(anchor, row))] = 1
        yield from (p[:, candidates] for _ in numbers)  # type: ignore[index]

    def joint_pairs(self, anchor: Tensor, row: Tensor, candidate: Tensor, number: int) -> Tensor:
        (p,) = self.joint_probabilities(anchor, row, [number])
        return p[torch.arange(len(anchor)), candidate]


@pytest.mark.parametrize("limits", [{}, {"queries": 60}, {"entities": 15}, {"queries": 60, "entities": 15}])
def test_a_replica_of_the_graph_itself_has_its_statistics(limits: dict[str, int]) -> None:
    graph = random_graph(30, 3, 200)
    fitted = posterior_of(graph)
    found = posterior_predictive(Replaying(graph, fitted.kg, fitted.guide, fitted.config), 3, **limits).summary
    np.testing.assert_allclose(found["mean"], found["graph"], rtol=1e-9)
    assert (found["p_value"] == 1).all()
    assert not found["misfit"].any()
    assert (found["sampling_error"].fillna(1) > 0).any() == bool(limits)


def test_a_sample_estimates_the_whole_and_says_how_well() -> None:
    graph = random_graph(40, 2, 260)
    whole = Sample(graph, ALL, ALL)
    truth = dict(zip(whole.names, whole.statistics(whole.observed).tolist(), strict=True))
    linear = [("facts, tail queries", "all"), ("facts, head queries", "r1"), ("tail queries with 3-5 answers", "all"),
              ("triangles", "all")]  # fmt: skip
    ratios = [("symmetry", "all"), ("inverse pair", "all"), ("answers per head query, standard deviation", "all")]
    estimates, errors = [], []
    for repeat in range(60):
        sample = Sample(graph, 110, 25)
        place = [sample.names.index(key) for key in linear + ratios]
        estimates.append(sample.statistics(sample.observed)[place])
        if repeat < 8:
            errors.append(sample.errors(sample.observed)[place])
    drawn = torch.stack(estimates)
    for i, key in enumerate(linear + ratios):
        error = float(drawn[:, i].std())
        bias = 0 if key in linear else 0.25 * error
        assert float(drawn[:, i].mean()) == pytest.approx(truth[key], abs=4 * error / 60**0.5 + bias), key
        assert float(torch.stack(errors)[:, i].mean()) == pytest.approx(error, rel=0.4), key


def test_p_values_by_enumeration(tiny: Graph) -> None:
    """Latents without spread make labels independent, and a number of facts Poisson-binomial."""
    posterior = posterior_of(tiny)
    posterior.kg.completeness = 0.8  # what is replicated is what the graph holds
    with torch.no_grad():
        for table in (posterior.guide.entity, posterior.guide.relation):  # type: ignore[union-attr]
            table.log_scale.fill_(-20)  # type: ignore[union-attr, operator]
    found = posterior_predictive(posterior, 800).summary.set_index(["statistic", "relation"])
    queries = tiny.training_queries
    for row in range(4):
        mine = queries.relation == row
        p = posterior.probabilities(queries.anchor[mine], queries.relation[mine], draws=1).double()
        p = (p * torch.full_like(p, 0.8).scatter(1, queries.anchor[mine, None], 1.0)).flatten()
        law = np.ones(1)
        for x in p.tolist():
            law = np.convolve(law, [1 - x, x])
        observed = int(queries.counts[mine].sum())
        line = found.loc[f"facts, {'tail' if row < 2 else 'head'} queries", tiny.relations[row % 2]]
        assert line["graph"] == observed
        assert line["mean"] == pytest.approx(law @ np.arange(len(law)), abs=0.3)
        assert line["p_value"] == pytest.approx(law[observed:].sum(), abs=0.06)


@pytest.mark.parametrize("model", ["lim", "lfm"])
def test_facts_share_latents_where_the_model_says_so(tiny: Graph, model: str) -> None:
    posterior = posterior_of(tiny, model=model)
    with torch.no_grad():
        posterior.guide.entity.loc.fill_(1)  # type: ignore[union-attr, operator]
        posterior.guide.relation.log_scale.zero_()  # type: ignore[union-attr, operator]
    found = posterior_predictive(posterior, 600)
    rows = found.summary.query("statistic == 'facts, tail queries' and relation == 'all'").index
    variance = float(found.replicated[:, rows[0]].var())
    queries = tiny.training_queries
    anchor, row = (x[queries.relation < 2] for x in (queries.anchor, queries.relation))
    tables = [posterior.guide.posterior(kind, ...) for kind in ("entity", "relation")]
    drawn = []
    for _ in range(600):
        entities, relations = (q.sample() for q in tables)
        scores = torch.einsum("bd,ed->be", entities[anchor] * relations[row], entities)
        drawn.append((scores + posterior.kg.intercept.detach()[row, None]).sigmoid().flatten())
    p = torch.stack(drawn)
    together = float((p * (1 - p)).sum(1).mean() + p.sum(1).var())
    apart = float((p.mean(0) * (1 - p.mean(0))).sum())
    assert together > 1.5 * apart
    assert variance == pytest.approx(together if model == "lim" else apart, rel=0.2)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("score", ["ComplEx", "TransE-L2"])
def test_a_numbered_draw_is_one_draw(tiny: Graph, score: str, inverse: bool) -> None:
    posterior = posterior_of(tiny, score=score, inverse=inverse)
    anchor, row = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 3])
    first, other = posterior.joint_probabilities(anchor, row, [7, 8])
    assert not torch.allclose(first, other)
    (again,) = posterior.joint_probabilities(anchor, row, [7], torch.tensor([4, 0]))
    assert torch.allclose(again, first[:, [4, 0]])
    pairs = posterior.joint_pairs(anchor, row, torch.tensor([0, 3, 2]), 7)
    assert torch.allclose(pairs, first[[0, 1, 2], [0, 3, 2]], atol=1e-6)


# ---- a planted misfit -----------------------------------------------------------------------------------------------


def order() -> Graph:
    """A strict order of twelve: never both ``a before b`` and ``b before a``."""
    triples = [[f"e{i:02}", "before", f"e{j:02}"] for i in range(12) for j in range(i + 1, 12)]
    return Graph.from_triples("order", triples, triples[:1], triples[:1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {score: tmp_path_factory.mktemp("runs") / score for score in ("DistMult", "ComplEx")}
    options = {"model": "lim", "dim": 10, "epochs": 150, "batch_size": 22, "prior": "normal(scale=2)"}
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
    row = table.loc["symmetry", "before"]
    assert row["graph"] == 0
    assert row["misfit"] == symmetric
    assert (row["mean"] > 0.3) == symmetric
    assert (runs[score] / "checks" / "posterior_predictive.png").stat().st_size > 10_000
    assert kgpyro.load(runs[score]).graph.name == "order"


def test_mistakes(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs["ComplEx"])
    for wrong, words in (
        ([run, "--prior", "normal"], "--prior checks what is not fitted; leave RUN out"),
        ([run, "--dataset", "nations"], "--dataset puts the run to another graph"),
        ([run, "--draws", "1"], "--draws must be at least 2"),
        ([f"{run}/nowhere"], "holds no run"),
        (["--entities", "5"], "--entities is for the check of a RUN"),
        (["--run-prior", "a:b"], "--run-prior is for the check of a RUN"),
    ):
        assert check_command(wrong) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(InputError, match="--entities must be at least 3"):
        posterior_predictive(kgpyro.load(run), entities=2)


def test_few_replicates_are_said_to_be_few(runs: dict[str, Path]) -> None:
    found = posterior_predictive(kgpyro.load(runs["DistMult"]), 20)
    assert found.warnings[0].startswith("20 replicates tell p-values apart by 0.05 only")
    assert (found.misfits["misfit"]).all()
