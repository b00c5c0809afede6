"""Asking a posterior: facts, one query, many queries, relations, and all facts that are probable enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Parts
from test_posterior import CONFIG, posterior_of
from torch.utils._python_dispatch import TorchDispatchMode

import kgpyro
from kgpyro.checking import posterior_predictive
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Recalibration
from kgpyro.posterior import answers, discovery, draws, scores
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.uncertainty import summary

QUERIES = [("a", "likes", None), (None, "knows", "a"), ("a", None, "b"), (None, "likes", "c"), ("e", None, "e")]
NUMBERS = ["probability", "std", "low", "high", "aleatoric", "epistemic", "score", "error"]


def uneven(graph: Graph, **changed: Any) -> Posterior:
    """A posterior of any guide and likelihood, its parameters at random."""
    config = CONFIG | changed
    options = {key: config[key] for key in ("model", "prior", "score", "inverse", "guide")}
    parts = Parts(graph, categorical=config.get("categorical", False), **options)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in parts.guide.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return parts.posterior(**config)


def every_fact(graph: Graph) -> torch.Tensor:
    E, R = graph.num_entities, graph.num_relations
    return torch.cartesian_prod(torch.arange(E), torch.arange(R), torch.arange(E))


@pytest.fixture
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables too large to keep, candidates that are looked over by few draws."""
    monkeypatch.setattr(draws, "KEPT", 50)
    monkeypatch.setattr(answers, "LOOKED", 8)
    monkeypatch.setattr(answers, "SPARE", 2)
    monkeypatch.setattr(answers, "FEW", 0)
    monkeypatch.setattr(answers, "LOGITS", 1 << 9)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"score": "ComplEx"},
        {"model": "lfm", "inverse": False},
        {"guide": "lowrank(rank=2)"},
        {"guide": "mixture(members=2)", "score": "TransE-L2"},
        {"prior": "uniform(low=-1, high=1)"},
        {"categorical": True},
    ],
    ids=str,
)
def test_answers_are_facts(
    tiny: Graph,
    large: bool,
    options: dict[str, Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each query's answers have the numbers of the same facts asked alone, and are in the order of these."""
    if large:
        request.getfixturevalue("few_kept")
    monkeypatch.setattr(answers, "FEW", 0)
    monkeypatch.setattr(answers, "SPARE", 1)
    posterior = uneven(tiny, **options)
    assert posterior.guide.members == (2 if "mixture" in str(options) else 1)  # type: ignore[union-attr]
    table = posterior.answers(QUERIES, top=3, draws=60)
    assert table["query"].tolist() == [i for i in range(5) for _ in range(2 if QUERIES[i][1] is None else 3)]
    for number, query in enumerate(QUERIES):
        mine = table[table["query"] == number].reset_index(drop=True)
        one = posterior.predict(*query, top=3, draws=60)
        pd.testing.assert_frame_equal(mine[one.columns], one, rtol=1e-6, atol=1e-6, check_like=True)
        if query[1] is None or not options.get("categorical"):
            facts = posterior.facts(mine, draws=60)
            pd.testing.assert_frame_equal(mine[facts.columns], facts, rtol=1e-6, atol=1e-6)
        assert mine["probability"].is_monotonic_decreasing
        assert [mine[c][0] for c, given in zip(("head", "relation", "tail"), query, strict=True) if given] == [
            given for given in query if given
        ]


@pytest.mark.parametrize("options", [{}, {"guide": "lowrank(rank=2)"}, {"guide": "mixture(members=2)"}], ids=str)
@pytest.mark.usefixtures("few_kept")
def test_draws_of_large_graphs(tiny: Graph, options: dict[str, Any]) -> None:
    """Distributed as the guide has it, the same in every call, and whatever else is drawn with them."""
    posterior = uneven(tiny, **options)
    number = torch.arange(2000)
    everyone, rows = torch.arange(5), torch.arange(4)
    with torch.no_grad():
        entities, relations = (
            posterior.drawn("entity", everyone, number, 2000, 3),
            posterior.drawn("relation", rows, number, 2000, 3),
        )
        intercepts = posterior._intercepts(number, 2000, 3)
        assert len(intercepts.unique()) > 3990  # of a pool of so many normals that few are drawn twice
        again = posterior.drawn("entity", torch.tensor([4, 1]), number[7:9], 2000, 3)
        assert torch.equal(again, entities[7:9][:, [4, 1]])
        assert torch.equal(posterior.drawn("relation", rows[:1], number[7:9], 2000, 3), relations[7:9, :1])
        one = posterior.drawn("entity", everyone, number[7:8], 2000, 3)  # of a mixture's members only one has a share
        assert torch.equal(one, entities[7:8])
    table = posterior.embeddings()
    mean, scale = (torch.tensor(table[name].to_numpy()).double() for name in ("mean", "scale"))
    off = (entities.double().mean(0) - mean) / scale * 2000**0.5
    assert off.abs().max() < 5
    torch.testing.assert_close(entities.double().std(0), scale, rtol=0.12, atol=0)
    flat = torch.cat([entities.flatten(1), relations.flatten(1)], 1)
    correlation = torch.corrcoef(flat.T) - torch.eye(flat.shape[1])
    if "mixture" not in str(options) and "lowrank" not in str(options):
        assert correlation.abs().max() < 0.12


@pytest.mark.usefixtures("few_kept")
def test_probabilities_of_large_graphs(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the same posterior whose draws are kept, within the Monte-Carlo error of both."""
    posterior, ids = posterior_of(tiny, score="ComplEx"), every_fact(tiny)
    monkeypatch.setattr(answers, "LOGITS", 1 << 24)
    found = posterior.facts(ids, draws=1000)
    monkeypatch.setattr(draws, "KEPT", 1 << 25)
    kept = posterior.facts(ids, draws=1000)
    error = np.hypot(found["error"], kept["error"])
    assert ((found["probability"] - kept["probability"]).abs() / error).max() < 5
    assert (found["probability"] != kept["probability"]).any()


def test_new_answers(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    for query in QUERIES:
        every = posterior.predict(*query, top=None)
        new = posterior.predict(*query, top=2, new=True)
        expected = every[every["known"] == ""].head(2).reset_index(drop=True)
        pd.testing.assert_frame_equal(new, expected)
    assert set(posterior.answers(QUERIES, new=True)["known"]) == {""}


def test_known_is_the_first_split(tiny: Graph) -> None:
    found = posterior_of(tiny).facts(
        [("a", "likes", "b"), ("d", "likes", "a"), ("e", "knows", "a"), ("e", "likes", "e")]
    )
    assert found["known"].tolist() == ["train", "valid", "test", ""]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "parquet", "frame", "bare.tsv", "bare.csv"])
def test_queries_from_files(tiny: Graph, tmp_path: Path, suffix: str) -> None:
    posterior = posterior_of(tiny)
    expected = posterior.answers(QUERIES, top=2)
    frame = pd.DataFrame(QUERIES, columns=["head", "relation", "tail"])
    path = tmp_path / f"queries.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix != "frame":
        bare = suffix.startswith("bare")
        frame.to_csv(
            path, index=False, header=not bare, na_rep="?" if bare else "", sep="," if "csv" in suffix else "\t"
        )
    pd.testing.assert_frame_equal(posterior.answers(frame if suffix == "frame" else path, top=2), expected)
    tails = pd.DataFrame({"relation": ["likes"], "head": ["a"], "note": [1]})
    pd.testing.assert_frame_equal(posterior.answers(tails, top=2), expected[expected["query"] == 0])


def test_facts_from_files(tiny: Graph, tmp_path: Path) -> None:
    posterior, rows = posterior_of(tiny), [("a", "likes", "b"), ("c", "knows", "d")]
    (tmp_path / "facts.tsv").write_text("a\tlikes\tb\nc\tknows\td\n")
    pd.testing.assert_frame_equal(posterior.facts(tmp_path / "facts.tsv"), posterior.facts(rows))
    pd.testing.assert_frame_equal(posterior.facts(rows[0]), posterior.facts(rows[:1]))
    pd.testing.assert_frame_equal(posterior.facts(np.array(rows)), posterior.facts(rows))


def test_nothing_asked(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    for empty, full in (
        (posterior.facts([]), posterior.facts(("a", "likes", "b"))),
        (posterior.answers([]), posterior.answers(QUERIES[:1])),
    ):
        assert len(empty) == 0
        assert list(empty.columns) == list(full.columns)
        assert empty.dtypes.equals(full.dtypes)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p, f: p.predict(head="a", relation="likes", top=0), "`top` must be a positive whole number, or None"),
        (lambda p, f: p.predict(head="a", relation="likes", top=-1), "`top` must be"),
        (lambda p, f: p.answers(QUERIES, draws=0), "`draws` must be a positive whole number; got 0"),
        (lambda p, f: p.facts(("a", "likes", "b"), interval=90), "`interval` must be between 0 and 1"),
        (lambda p, f: p.facts(("a", "likes", "b"), interval=-0.1), "`interval` must be between 0 and 1"),
        (lambda p, f: p.facts(("a", "likes", "b"), seed=None), "`seed` must be a whole number from 0 on; got None"),
        (lambda p, f: p.calibration(seed=-1), "`seed` must be"),
        (lambda p, f: p.evaluate(by="probability", draws=0), "`draws` must be"),
        (lambda p, f: p.predict_set(head="a", relation="likes", draws=0), "`draws` must be"),
        (lambda p, f: p.discover(above=1.5), "`above` must be between 0 and 1"),
        (lambda p, f: p.predict(pd.DataFrame({"head": ["a"]})), "for many there is `answers`, for facts `facts`"),
        (lambda p, f: p.facts(torch.tensor([[0, 0, 9]])), "fact 0 has tail 9; graph 'tiny' has ids from 0 to 4"),
        (lambda p, f: p.facts(torch.tensor([[0, -1, 2]])), "fact 0 has relation -1"),
        (lambda p, f: p.facts(torch.tensor([0, 1, 2])), "shape \\(n, 3\\)"),
        (lambda p, f: p.facts([("a", "likes", "b"), ("a", "likes")]), "fact 1 is \\('a', 'likes'\\)"),
        (lambda p, f: p.facts([("a", "likes", "b"), ("a", "likes", None)]), "fact 1 lacks a tail"),
        (lambda p, f: p.answers([QUERIES[0], ("a", "lykes", None)]), "query 1: graph 'tiny' has no relation 'lykes'"),
        (lambda p, f: p.answers([("a", None, None)]), "query 0 gives 1 of head, relation and tail; give two"),
        (lambda p, f: p.answers(f), "query 1 \\(line 3 of .*queries.tsv\\): graph 'tiny' has no entity 'z'"),
        (lambda p, f: p.answers(f.with_suffix(".xlsx")), "must be a .txt, .tsv, .csv, .parquet, .json, .jsonl file"),
        (lambda p, f: p.answers(f.with_name("none.csv")), "none.csv: no such file"),
        (lambda p, f: p.discover(out=f), "is there already"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(tiny: Graph, tmp_path: Path, ask: Any, words: str) -> None:
    file = tmp_path / "queries.tsv"
    file.write_text("head\trelation\ttail\na\tlikes\t?\nz\tlikes\t\n")
    with pytest.raises(InputError, match=words):
        ask(posterior_of(tiny), file)


def test_no_facts_held_out() -> None:
    graph = Graph.from_triples("whole", [("a", "r", "b"), ("b", "r", "a")], [], [])
    with pytest.raises(InputError, match="graph 'whole' holds no test facts out"):
        posterior_of(graph).calibration()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", ["none", "platt", "isotonic", "stacked", "per_relation"])
def test_discoveries_are_facts(tiny: Graph, large: bool, method: str, request: pytest.FixtureRequest) -> None:
    """All that no split holds and that facts say is probable enough, and nothing else."""
    if large:
        request.getfixturevalue("few_kept")
    posterior = posterior_of(tiny, score="ComplEx")
    if method != "none":
        posterior.recalibrate(method, "random")
    every = posterior.facts(every_fact(tiny), draws=40)
    above = float(every["probability"].quantile(0.7))
    expected = every[(every["known"] == "") & (every["probability"] >= above)].drop(columns="known")
    found = posterior.discover(above, draws=40)
    order = ["probability", "score"]
    expected = expected.sort_values(order, ascending=False, kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    likes = posterior.discover(above, relation="likes", draws=40)
    pd.testing.assert_frame_equal(likes, found[found["relation"] == "likes"].reset_index(drop=True))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_discoveries_in_a_file(tiny: Graph, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block; what an interrupted search has found is there, in whole rows."""
    monkeypatch.setattr(discovery, "AT_ONCE", 2)
    posterior = posterior_of(tiny)
    expected = posterior.discover(0.05, draws=40)

    def read(path: Path) -> pd.DataFrame:
        return pd.read_parquet(path) if suffix == "parquet" else pd.read_csv(path, sep="\t" if suffix == "tsv" else ",")

    assert posterior.discover(0.05, tmp_path / f"all.{suffix}", draws=40) == len(expected)
    whole = read(tmp_path / f"all.{suffix}")
    order = ["head", "relation", "tail"]
    pd.testing.assert_frame_equal(
        whole.sort_values(order, ignore_index=True), expected.sort_values(order, ignore_index=True), check_dtype=False
    )
    facts, calls = posterior.facts, []

    def interrupted(*args: Any, **kwargs: Any) -> pd.DataFrame:
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return facts(*args, **kwargs)

    monkeypatch.setattr(posterior, "facts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        posterior.discover(0.05, tmp_path / f"some.{suffix}", draws=40)
    some = read(tmp_path / f"some.{suffix}")
    assert 0 < len(some) < len(whole)
    pd.testing.assert_frame_equal(some, whole[: len(some)], check_dtype=False)


def test_nothing_discovered(tiny: Graph, tmp_path: Path) -> None:
    posterior = posterior_of(tiny)
    assert posterior.discover(0.999999, tmp_path / "none.csv") == 0
    assert list(pd.read_csv(tmp_path / "none.csv").columns) == list(posterior.discover(0.999999).columns)


def test_maps_with_flat_parts_keep_the_order(tiny: Graph) -> None:
    """Answers of one recalibrated probability stay in the order of the model's own."""
    posterior = posterior_of(tiny, score="ComplEx")
    before = posterior.predict(head="a", relation="likes", top=None)
    posterior.recalibration = Recalibration("isotonic", {"probability": 1.0}, 0.0, ((-20.0, -1.0), (20.0, -1.0)))
    after = posterior.predict(head="a", relation="likes", top=None)
    assert after["probability"].nunique() == 1
    assert after["tail"].tolist() == before["tail"].tolist()


def test_numpys_numbers(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    found = posterior.predict("a", "likes", top=np.int64(2), draws=np.int32(20), seed=np.int64(1))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(found, posterior.predict("a", "likes", top=2, draws=20, seed=1))


def test_a_fit_under_inference_mode(tiny: Graph) -> None:
    options: dict[str, Any] = {"model": "lim", "dim": 4, "epochs": 2, "progress": False}
    with torch.inference_mode():
        found = kgpyro.fit(tiny, **options).facts(("a", "likes", "b"))
    pd.testing.assert_frame_equal(found, kgpyro.fit(tiny, **options).facts(("a", "likes", "b")))


def test_the_package_lists_what_it_has() -> None:
    assert {"fit", "explore", "load", "Graph"} <= set(dir(kgpyro))
    assert "Any" not in dir(kgpyro)


def test_a_run_is_overwritten_where_asked(tiny: Graph, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "lim", "dim": 4, "progress": False}
    first, second = (kgpyro.fit(tiny, epochs=epochs, **options) for epochs in (1, 2))
    first.save(tmp_path / "run")
    with pytest.raises(InputError, match="holds another run"):
        second.save(tmp_path / "run")
    second.save(tmp_path / "run", overwrite=True)
    assert len(Posterior.load(tmp_path / "run").history) == 2


def test_usual_names_of_columns(tiny: Graph, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("Subject;predicate;object\na;likes;b\n")
    posterior = posterior_of(tiny)
    pd.testing.assert_frame_equal(posterior.facts(tmp_path / "f.csv"), posterior.facts(("a", "likes", "b")))
    frame = pd.DataFrame({"OBJECT": ["b"], "note": [1], "subject": ["a"], "Predicate": ["likes"]})
    pd.testing.assert_frame_equal(posterior.facts(frame), posterior.facts(("a", "likes", "b")))
    one = posterior.answers(frame.drop(columns="OBJECT"))
    pd.testing.assert_frame_equal(posterior.answers(("a", "likes", None)), one)
    with pytest.raises(InputError, match="columns head, relation and tail; it has note"):
        posterior.facts(frame[["note"]])


def asked_of(graph: Graph) -> list[tuple[str | None, str, str | None]]:
    """Queries for tails and for heads, in turn."""
    names = graph.names(graph.test[:40])
    return [(h, r, None) if i % 2 else (None, r, t) for i, (h, r, t) in enumerate(names)]


@pytest.mark.parametrize("most", [4, 7, 99])
@pytest.mark.parametrize(
    "options",
    [
        {"score": "ComplEx"},
        {"guide": "mixture(members=2)"},
        {"guide": "lowrank(rank=2)", "score": "CP"},
        {"model": "lfm", "inverse": False},
    ],
    ids=str,
)
def test_few_candidates_of_many(
    nations: Graph, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], most: int
) -> None:
    """Estimates leave out none that over many draws is more probable than the last answer, within the error of both."""
    posterior, asked = uneven(nations, **options), asked_of(nations)
    exact, many = (posterior.answers(asked, top=None, draws=draws, seed=draws) for draws in (60, 1000))
    for name, value in {"FEW": 0, "SPARE": 0, "MOST": most, "FEWEST": 1}.items():
        monkeypatch.setattr(answers, name, value)
    ways, candidates = [], posterior._candidates

    def spy(*args: Any) -> Any:
        ways.append(args[5])
        return candidates(*args)

    monkeypatch.setattr(posterior, "_candidates", spy)
    found = posterior.answers(asked, top=3, draws=60, seed=60)
    assert set(ways) == {"estimates", "floor", "draws"} - ({"draws"} if most == 99 else set())
    assert (found.groupby("query").size() == 3).all()
    keys = ["query", "head", "relation", "tail"]
    same = found.merge(exact, on=keys, suffixes=("", "_all"))
    assert len(same) == len(found)
    for name in NUMBERS:
        np.testing.assert_allclose(same[name], same[f"{name}_all"], rtol=1e-5, atol=1e-6)
    every = exact.merge(many, on=keys, suffixes=("", "_many")).merge(found[keys], on=keys, how="left", indicator=True)
    last = found.groupby("query")[["probability", "error"]].nth(2).reset_index(drop=True)
    others = every[every["_merge"] == "left_only"]
    last = last.loc[others["query"]].reset_index(drop=True)
    better = others["probability_many"].to_numpy() - last["probability"]
    assert (better <= 2 * last["error"] + 0.02).all()
    told, looked = (many.merge(t[keys], on=keys)["probability"] for t in (found, exact.groupby("query").head(3)))
    assert len(told) == len(looked) and told.mean() > looked.mean() - 0.01
    reverse = posterior.answers(asked[::-1], top=3, draws=60, seed=60)
    again = reverse.assign(query=39 - reverse["query"]).sort_values("query", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(again, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("options", [{"score": "TransE-L2"}, {"score": "RESCAL"}, {"categorical": True}], ids=str)
@pytest.mark.parametrize("kind", ["guide", "stacked", "samples"])
def test_all_draws_over_all_candidates(
    nations: Graph, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: str, large: bool
) -> None:
    """Where nothing is estimated the answers are those of all candidates measured, one by one."""
    posterior = uneven(nations, **options)
    if kind == "samples":
        values = [posterior.joint(number) for number in range(20)]
        samples = {name: torch.stack([value[name] for value in values]) for name in values[0]}
        posterior = Posterior(nations, posterior.program, None, posterior.config, samples=samples)
    elif kind == "stacked":
        posterior.recalibrate("stacked", "random", draws=20)
    if large and kind != "samples":
        monkeypatch.setattr(draws, "KEPT", 50)
    asked = asked_of(nations)[:12]
    exact = posterior.answers(asked, top=None, draws=20, new=True).groupby("query").head(3)
    monkeypatch.setattr(answers, "FEW", 0)
    monkeypatch.setattr(answers, "SPARE", 2)
    monkeypatch.setattr(scores, "AT_ONCE", 1 << 6)
    monkeypatch.setattr(type(posterior), "_estimable", False)
    found = posterior.answers(asked, top=3, draws=20, new=True)
    pd.testing.assert_frame_equal(found, exact.reset_index(drop=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 2, 60])
def test_quantiles_are_of_the_probabilities(draws: int) -> None:
    """Against NumPy's, of the draws' own probabilities."""
    logits = 3 * torch.randn(draws, 50, generator=torch.Generator().manual_seed(0))
    found, p = summary(logits, 0.8), logits.double().sigmoid().numpy()
    low, high = np.quantile(p, [0.1, 0.9], axis=0)
    np.testing.assert_allclose(found["low"].numpy(), np.minimum(low, p.mean(0)), atol=1e-9)
    np.testing.assert_allclose(found["high"].numpy(), np.maximum(high, p.mean(0)), atol=1e-9)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made meanwhile has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for each in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(each, torch.Tensor) and not func._schema.is_mutable and each.layout == torch.strided:
                self.numbers = max(self.numbers, each.untyped_storage().nbytes() // each.element_size())
        return made


@pytest.mark.parametrize("ask", ["facts", "predict", "probability", "check"])
def test_nothing_as_large_as_the_tables(monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    """Of many entities no table of draws is made, and none of all draws or all relations with all entities."""
    E, R = 20_000, 40
    rows = [(f"e{i}", f"r{i % R}", f"e{(7 * i + 1) % E}") for i in range(E)]
    posterior = posterior_of(Graph.from_triples("many", rows, [("e0", "r1", "e5")], [("e1", "r2", "e5")]))
    for module in (draws, scores):
        monkeypatch.setattr(module, "AT_ONCE", 1 << 12)
    monkeypatch.setattr(draws, "KEPT", 50)
    monkeypatch.setattr(draws, "POOL", 1 << 12)
    monkeypatch.setattr(answers, "LOGITS", 1 << 12)
    monkeypatch.setattr(posterior_predictive, "BLOCK", 1 << 12)
    with Largest() as seen:
        if ask == "facts":
            posterior.facts(posterior.graph.train[:5000], draws=40)
        elif ask == "predict":
            posterior.predict("e0", "r1", draws=40)
        elif ask == "probability":
            posterior.probabilities(torch.tensor([0]), torch.tensor([1]), draws=3)
        else:
            posterior_predictive.posterior_predictive(posterior, 3, queries=20, entities=5)
    own = {t.untyped_storage().nbytes() // t.element_size() for t in posterior.guide.parameters()}  # type: ignore[union-attr]
    assert seen.numbers < max(own)
