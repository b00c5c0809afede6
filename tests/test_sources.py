"""What people bring: tables, files of every kind, objects of other libraries; labels, hold-out, and what is told."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pykeen.datasets import Nations, dataset_resolver
from pykeen.datasets.base import PathDataset, SingleTabbedDataset
from pykeen.triples import CoreTriplesFactory

import kgpyro
from kgpyro import Graph, InputError, load_graph

ROWS = [("a", "likes", "b"), ("b", "likes", "c"), ("c", "knows", "a")]
MEANT = load_graph(ROWS)
ODD = [
    "00001740",
    "1e3",
    '"x',
    "null",
    "NA",
    "nan",
    "~",
    "#x",
    "'",
    "a,b",
    "a;b",
    "1.0",
    "é",
    "e\u0301",
    " lead",
    "trail ",
]


def text(rows: Any = ROWS, separator: str = "\t", header: str = "") -> str:
    return header + "".join(separator.join(map(str, row)) + "\n" for row in rows)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def zipped(content: bytes) -> bytes:
    import io

    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr("x.tsv", content)
    return packed.getvalue()


def edges(keyed: bool) -> Any:
    graph = nx.MultiDiGraph() if keyed else nx.DiGraph()
    for head, relation, tail in ROWS:
        graph.add_edge(head, tail, **({"key": relation} if keyed else {"type": relation, "weight": 0.5}))
    return graph


FRAME = pd.DataFrame(ROWS, columns=["head", "relation", "tail"])


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        iter(ROWS),
        set(ROWS),
        np.array(ROWS),
        np.array(ROWS, dtype="S5"),
        FRAME,
        FRAME.assign(extra=1.5),
        FRAME.rename(columns={"head": "Subject", "relation": "PREDICATE", "tail": " object "}),
        FRAME.rename(columns={"head": "source", "relation": "type", "tail": "target"})[["target", "source", "type"]],
        FRAME.rename(columns={"head": "from", "relation": "label", "tail": "to"}),
        FRAME.rename(columns={"head": "h", "relation": "r", "tail": "t"}).astype("category"),
        FRAME.to_dict("list"),
        FRAME.to_dict("records"),
        edges(keyed=True),
        edges(keyed=False),
        MEANT,
    ],
    ids=lambda source: type(source).__name__,
)
def test_objects(source: Any) -> None:
    assert load_graph(source) == MEANT


def test_arrow_tables_and_splits_by_name() -> None:
    arrow = pytest.importorskip("pyarrow")
    assert load_graph(arrow.Table.from_pandas(FRAME)) == MEANT
    apart = load_graph({"train": FRAME, "validation": ROWS[:1], "test": np.array(ROWS[1:2])})
    assert apart == load_graph(pd.concat([FRAME, FRAME[:2]]).assign(split=[*["train"] * 3, "dev", "test"]))
    assert (len(apart.train), len(apart.valid), len(apart.test)) == (3, 1, 1)


def test_a_graph_of_anything(tmp_path: Path) -> None:
    make: Any = Graph
    assert make(FRAME) == make(ROWS) == make(str(file(tmp_path, "x.tsv", text()))) == MEANT
    assert make("nations") == load_graph("nations")
    assert make(Nations(), holdout=0.1) == load_graph("nations")
    assert make(FRAME, labels={"a": "Ann"}).entities == ("Ann", "b", "c")
    with pytest.raises(InputError, match="no graph can be made of this int; give a table"):
        make(3)


class Table:
    """As polars' tables; one of its lazy ones is collected first."""

    def __init__(self, missing: bool = False) -> None:
        self.missing = missing

    def to_pandas(self) -> pd.DataFrame:
        if self.missing:
            raise ModuleNotFoundError("pa.Table requires 'pyarrow' module to be installed")
        return FRAME


class Lazy:
    def collect(self) -> Table:
        return Table()


def test_tables_of_other_libraries() -> None:
    assert load_graph(Table()) == load_graph(Lazy()) == MEANT
    with pytest.raises(InputError, match=r"this Table needs pyarrow; pip install 'kgpyro\[parquet\]'"):
        load_graph(Table(missing=True))


def test_the_current_folder_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGPYRO_DATA", str(tmp_path))
    for name, rows in (("mine", ROWS), ("..", [("x", "r", "y")])):
        (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
        file(tmp_path / "mine" / name, "train.txt", text(rows))
    monkeypatch.chdir(tmp_path / "mine" / "..")
    assert load_graph(".").entities == ("x", "y")
    monkeypatch.chdir(tmp_path / "mine")
    (tmp_path / "mine" / "train.txt").write_text(text())
    assert load_graph(".") == load_graph("mine") == MEANT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", text()),
        ("x.txt", text(separator=",")),
        ("x.csv", text(separator=";")),
        ("x.CSV", text(separator="\t")),
        ("x.csv", text(separator=",", header="Subject,predicate,OBJECT\n")),
        ("x.csv", "\n" + text([(t, 1, r, h) for h, r, t in ROWS], ",", "target,id,edge,source\r\n")),
        ("x.tsv", "\ufeff" + text(header="head\trelation\ttail\n")),
        ("x.tsv.gz", gzip.compress(text().encode(), mtime=0)),
        ("x.csv.bz2", bz2.compress(text(separator=",").encode())),
        ("x.tsv.xz", lzma.compress(text().encode())),
        ("x.tsv.zip", zipped(text().encode())),
        ("x.json", FRAME.to_json(orient="records")),
        ("x.jsonl", FRAME.to_json(orient="records", lines=True)),
        ("x.json.gz", gzip.compress(FRAME.to_json(orient="records").encode(), mtime=0)),
    ],
)
def test_single_files(tmp_path: Path, name: str, content: str | bytes) -> None:
    graph = load_graph(file(tmp_path, name, content))
    assert graph == MEANT and graph.name == "x" and load_graph(graph.source) == graph
    posterior = kgpyro.fit(str(tmp_path / name), model="lim", dim=2, epochs=1, progress=False, device="cpu")
    assert posterior.graph == MEANT


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    FRAME.to_parquet(tmp_path / "x.parquet")
    assert load_graph(tmp_path / "x.parquet") == MEANT


@pytest.mark.parametrize("columns", [("s", "p", "o"), "s,p,o", "S, P, O", (2, 3, 1), "2,3,1"])
def test_columns_by_name_and_place(tmp_path: Path, columns: Any) -> None:
    frame = FRAME.set_axis(["s", "p", "o"], axis=1).assign(head="x", relation="y")[["head", "o", "s", "p", "relation"]]
    assert load_graph(frame, columns=columns) == MEANT
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert load_graph(tmp_path / "x.csv", columns=columns) == MEANT if isinstance(columns[0], str) else True


def test_places_of_columns_without_header(tmp_path: Path) -> None:
    numbers = [(0, 2, 1), (1, 0, 1)]
    path = file(tmp_path, "x.tsv", text(numbers))
    assert load_graph(path, columns=(0, 2, 1)).to_dataframe().to_numpy()[:, :3].tolist() == [list("012"), list("110")]
    assert load_graph(np.array(numbers), columns="0,2,1") == load_graph(path, columns=[0, 2, 1])


def test_confidences_are_taken_where_they_are_named(tmp_path: Path) -> None:
    rows = [(*row, sure) for row, sure in zip(ROWS, (0.25, 0.1 + 0.2, 1), strict=True)]
    path = file(tmp_path, "x.csv", text(rows, ",", "s,p,o,score\n"))
    graph = load_graph(path)
    assert not graph.confidences and "column 'score' of" in graph.problems[0]
    graph = load_graph(path, columns="s,p,o,score")
    assert graph.confidences["train"].tolist() == [0.25, 0.1 + 0.2, 1.0] and not graph.problems
    assert graph == load_graph(rows) == load_graph(pd.DataFrame(rows, columns=["h", "r", "t", "Confidence"]))
    assert graph != MEANT


@pytest.mark.parametrize("suffix", ["tsv", "csv", "txt", "json"])
def test_names_are_strings_as_they_are_written(tmp_path: Path, suffix: str) -> None:
    rows = [(name, "r", other) for name, other in itertools.pairwise(ODD)]
    frame = pd.DataFrame(rows, columns=["head", "relation", "tail"])
    if suffix == "csv":
        frame.to_csv(tmp_path / "x.csv", index=False)
    elif suffix == "json":
        frame.to_json(tmp_path / "x.json", orient="values")
    else:
        file(tmp_path, f"x.{suffix}", text(rows))
    graph = load_graph(tmp_path / f"x.{suffix}")
    assert graph.names(graph.train) == rows


def test_whole_floats_are_integers() -> None:
    frame = pd.DataFrame({"head": [1, 2, 3], "relation": ["r"] * 3, "tail": [2.0, 3.0, np.nan]}).dropna()
    graph = load_graph(frame)
    assert graph.entities == ("1", "2", "3")
    assert load_graph([(1, "r", 2.0), (np.float32(2), "r", "3")]) == graph
    assert Graph.from_triples("g", frame.to_numpy(), [], []) == graph
    assert load_graph([(0.5, "r", 1.0)]).entities == ("0.5", "1")
    posterior = kgpyro.fit(graph, model="lim", dim=2, epochs=1, progress=False)
    pd.testing.assert_frame_equal(posterior.predict(2, "r"), posterior.predict("2", "r"))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(posterior.facts((1, "r", 2.0)), posterior.facts(("1", "r", "2")))
    assert len(posterior.answers(pd.DataFrame({"head": [1, 2], "relation": "r"}), top=1)) == 2
    assert graph.entity_id(2) == graph.entity_id(np.int64(2)) == graph.entity_id("2")  # type: ignore[arg-type]


def test_another_form_of_unicode() -> None:
    graph = load_graph([(unicodedata.normalize("NFC", "Café"), "r", "b")])
    with pytest.raises(InputError, match=r"same name in another Unicode form \(NFC\)"):
        graph.entity_id(unicodedata.normalize("NFD", "Café"))


# ---- RDF ------------------------------------------------------------------------------------------------------------

TURTLE = '@prefix : <http://x/> . :a :knows :b ; :label "A", "B"@en . :b :knows [ :knows :a ] .'
TRIPLES = '<http://x/a> <http://x/knows> <http://x/b> .\n<http://x/a> <http://x/age> "3" .\n'


def test_rdf(tmp_path: Path) -> None:
    rdflib = pytest.importorskip("rdflib")
    graph = load_graph(file(tmp_path, "x.ttl", TURTLE))
    assert graph == load_graph(tmp_path / "x.ttl")  # blank nodes have the same names again
    assert graph.entities == ("_:x1", "http://x/a", "http://x/b") and graph.relations == ("http://x/knows",)
    assert graph.problems == ["2 of the 5 triples have a literal as their object and are left out."]
    (tmp_path / "x.nt.gz").write_bytes(gzip.compress(TRIPLES.encode(), mtime=0))
    graph = load_graph(tmp_path / "x.nt.gz")
    assert graph.names(graph.train) == [("http://x/a", "http://x/knows", "http://x/b")]
    assert load_graph(rdflib.Graph().parse(data=TRIPLES, format="nt")) == graph
    for name, content in (("bad.ttl", ":a :b"), ("bad.nt", "<a> <b>"), ("bin.ttl", b"\xff\0")):
        with pytest.raises(InputError, match=r"bad.*|bin.* is no \.(ttl|nt) file that rdflib can read"):
            load_graph(file(tmp_path, name, content))


# ---- PyKEEN ---------------------------------------------------------------------------------------------------------


def test_pykeens_objects() -> None:
    nations = load_graph("nations")
    assert load_graph(Nations()) == nations
    training = load_graph(Nations().training)
    assert sorted(training.names(training.train)) == sorted(nations.names(nations.train))
    numbers = load_graph(CoreTriplesFactory(torch.tensor([[0, 0, 1], [1, 1, 0]]), 2, 2))
    assert numbers.names(numbers.train) == [("0", "0", "1"), ("1", "1", "0")]


@pytest.mark.parametrize(("separator", "order"), [("\t", [0, 2, 1]), (",", None)])
def test_pykeens_own_columns_and_separators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, order: Any
) -> None:
    """As its dbpedia50 (head, tail, relation) and wd50kt (commas): read raw, with what training lacks."""
    parts = {"train": ROWS, "valid": [("a", "never", "b")], "test": [("a", "knows", "new"), ("b", "never", "c")]}
    for split, rows in parts.items():
        written = [[row[i] for i in order or (0, 1, 2)] for row in rows]
        file(tmp_path, f"{split}.txt", text(written, separator))

    class Own(PathDataset):
        def __init__(self) -> None:
            paths = (tmp_path / f"{split}.txt" for split in ("train", "test", "valid"))
            options = {"column_remapping": order} if order else {"delimiter": separator}
            super().__init__(*paths, load_triples_kwargs=options)

    monkeypatch.setitem(dataset_resolver.lookup_dict, "own", Own)
    for graph in (load_graph("own"), load_graph(Own())):
        assert graph.names(graph.train) == ROWS and not len(graph.valid)
        assert graph.names(graph.test) == [("a", "knows", "new")]
        assert "2 facts of valid and test whose relation training lacks are left out" in graph.problems[0]


def test_a_set_of_a_single_file_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Single(SingleTabbedDataset):
        def __init__(self, random_state: Any = 0, **options: Any) -> None:
            super().__init__("none", random_state=random_state, **options)

        def _get_df(self) -> pd.DataFrame:
            return load_graph("nations").to_dataframe()[["head", "relation", "tail"]]

    monkeypatch.setitem(dataset_resolver.lookup_dict, "single", Single)
    torch.manual_seed(7)
    np.random.seed(7)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    graph = load_graph("single")
    load_graph(FRAME, holdout=0.2)
    Graph.from_dataframe(FRAME, holdout=0.2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[index]
    assert len(graph.valid) and load_graph("single") == graph


# ---- folders, headers, hold-out, labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("called", ["valid", "validation", "dev"])
def test_folders_of_any_splits(tmp_path: Path, called: str) -> None:
    file(tmp_path, "train.txt", text(header="head\trelation\ttail\n"))
    file(tmp_path, f"{called}.csv", text(ROWS[:1], ",", "object,subject,predicate\n").replace("a,likes,b", "b,a,likes"))
    graph = load_graph(tmp_path)
    assert graph.names(graph.train) == ROWS and graph.names(graph.valid) == ROWS[:1] and not len(graph.test)
    assert f"the first line of train.txt, {called}.csv is a header and no fact." in graph.problems
    rows = [(f"e{i}", "r", f"e{(i + k) % 30}") for k in (7, 11, 13) for i in range(30)]
    file(tmp_path, "train.txt", text(rows))
    file(tmp_path, f"{called}.csv", text(rows[:1], ","))
    held = load_graph(tmp_path, holdout=0.1)
    assert held.names(held.valid) == rows[:1] and len(held.test) == round(len(rows) / 10) and bool(held.seen.all())
    assert held == load_graph(tmp_path, holdout=0.1, seed=0) != load_graph(tmp_path, holdout=0.1, seed=1)
    assert not held.source and load_graph(tmp_path).source


def test_what_can_be_held_out_is() -> None:
    tree = [(f"n{i}", "parent", f"n{(i - 1) // 3}") for i in range(1, 300)]
    graph = load_graph(tree, holdout=0.1)
    assert (len(graph.valid), len(graph.test)) == (30, 30) and not graph.problems
    graph = load_graph(tree, holdout=0.4)
    assert len(graph.valid) + len(graph.test) > 70 and bool(graph.seen.all())
    held = len(graph.valid) + len(graph.test)
    assert f"240 of the 299 facts were to be held out, but only {held} are" in graph.problems[0]
    none = load_graph(ROWS[:1], holdout=0.1)
    assert len(none.train) == 1 and "only 0 are" in none.problems[0]
    assert len(load_graph([*ROWS, ("a", "knows", "c")], holdout=0.01).valid) == 1
    assert "nothing out: valid and test are given" in load_graph("nations", holdout=0.1).problems[-1]


def test_labels(tmp_path: Path) -> None:
    rows = [("Q1", "P1", "Q2"), ("Q2", "P1", "Q3"), ("Q3", "P1", "Q4"), ("Q4", "P1", "x")]
    labels = {"Q1": "Ann", "Q2": "Bob", "Q3": "Bob", "P1": "likes", "Q4": "x", "Q99": "nobody"}
    graph = load_graph(rows, labels=labels)
    assert set(graph.entities) == {"Ann", "Bob (Q2)", "Bob (Q3)", "x (Q4)", "x"} and graph.relations == ("likes",)
    assert graph.names(graph.train)[1] == ("Bob (Q2)", "likes", "Bob (Q3)")
    assert "1 of the 6 entities and relations have no label" in graph.problems[0]
    assert "2 labels are shared" in graph.problems[1]
    path = file(tmp_path, "labels.tsv", "".join(f"{key}\t{label}\nQ1\tlater\n" for key, label in labels.items()))
    assert load_graph(rows, labels=path) == graph == load_graph(load_graph(rows), labels=pd.Series(labels))
    one = file(tmp_path, "one.tsv", "a\n")
    refused = {"no label for any": {"y": "z"}, "no such file": "no.tsv", "two columns": one, "a file of ids": 3}
    for why, wrong in refused.items():
        with pytest.raises(InputError, match=why):
            load_graph(rows, labels=wrong)


# ---- equal graphs and round trips -----------------------------------------------------------------------------------


def test_equal_graphs() -> None:
    whole = load_graph("nations")
    same = load_graph(whole.to_dataframe().sample(frac=1, random_state=0))
    assert same == whole and hash(same) == hash(whole) and len({same, whole}) == 1
    assert whole != load_graph("umls") and whole != load_graph(whole.to_dataframe()[1:]) and whole != "nations"
    moved = load_graph(whole.to_dataframe().replace({"split": {"valid": "test"}}))
    assert moved != whole


NAMES = st.sampled_from([*ODD, "head", "relation", "tail", "s", "p", "o", "\ufeffx", "\ufeff"]) | st.text(min_size=1)
NAMES = NAMES.filter(lambda name: name.strip() and not set(name) & set("\t\n\r\0"))


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=6),
    sure=st.none() | st.lists(st.floats(0, 1), min_size=6, max_size=6),
    cut=st.integers(0, 3),
)
def test_graphs_go_through_folders_and_tables_and_back(
    tmp_path_factory: pytest.TempPathFactory, names: Any, sure: Any, cut: int
) -> None:
    relations = [r for _, r, _ in names]
    rows = [(*row, repr(sure[i])) if sure else row for i, row in enumerate(names)]
    later = [(t, relations[0], h, *rest) for h, _, t, *rest in rows[:cut]]
    false = {"test": [(names[0][0], relations[-1], names[0][0])]}
    graph = Graph.from_triples("g", rows, later[:1], later[1:], negatives=false)
    folder = tmp_path_factory.mktemp("g") / "folder"
    graph.to_folder(folder)
    again = load_graph(folder)
    assert again == graph and again.checksum == graph.checksum
    assert again.negatives["test"].tolist() == graph.negatives["test"].tolist()
    assert load_graph(graph.to_dataframe()).checksum == graph.checksum
    graph.to_dataframe().to_csv(folder / "all.csv", index=False)
    assert load_graph(folder / "all.csv").checksum == graph.checksum


def test_verified_negatives_go_with_the_folder(tmp_path: Path) -> None:
    false = {"valid": [("a", "knows", "b")], "test": [("b", "knows", "b")]}
    graph = Graph.from_triples("g", ROWS, ROWS[:1], ROWS[1:2], negatives=false)
    graph.to_folder(tmp_path / "g")
    assert {split: len(rows) for split, rows in load_graph(tmp_path / "g").negatives.items()} == {"valid": 1, "test": 1}


# ---- what is told, and what is refused ------------------------------------------------------------------------------


def test_inverse_leakage() -> None:
    pairs = [(f"p{i}", f"c{i}") for i in range(40)]
    train = [(p, "parent", c) for p, c in pairs] + [(c, "child", p) for p, c in pairs[:20]]
    test = [(c, "child", p) for p, c in pairs[20:35]] + [("p0", "child", "p1")]
    graph = Graph.from_triples("family", train, [], test)
    assert graph.inverse_leakage == {("child", "parent"): 15}
    assert "15 of the 16 test triples are training triples read backwards" in graph.problems[0]
    assert "15 of 'child' as 'parent'" in graph.problems[0]
    train += [(p, "mother", c) for p, c in pairs[:35]]  # a fact with two such is still one
    twice = Graph.from_triples("family", train, [], test)
    assert twice.inverse_leakage == {("child", "parent"): 15, ("child", "mother"): 15}
    assert "15 of the 16 test triples" in twice.problems[0]
    assert not Graph.from_triples("none", train, [], test[-1:]).problems
    assert not load_graph("nations").problems  # dense: facts read backwards are there by chance


def test_columns_in_another_order_are_told() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"e{rng.integers(40)}", f"e{rng.integers(40)}", f"r{rng.integers(3)}") for _ in range(120)]
    assert "if the columns are head, tail, relation, say so: `columns` 0,2,1" in load_graph(rows).problems[0]
    assert not load_graph(rows, columns=(0, 2, 1)).problems
    numbers = [[int(name[1:]) for name in row] for row in rows]
    assert "head, tail, relation" in load_graph(numbers).problems[0]
    assert not load_graph(numbers, columns=(0, 2, 1)).problems and not load_graph("kinships").notes


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.csv", "", "x.csv is empty"),
        ("x.tsv", "\n\n", "x.tsv is empty"),
        ("x.csv", "head,relation,tail\n", "no training triples"),
        ("x.tsv", "a\tb\tc\na\tb\n", r"x.tsv, line 2: 2 tab-separated columns"),
        ("x.csv", "a,b,c\na,b\n", r"x.csv, line 2: an empty name"),
        ("x.csv", "a,b,c\n\n\na,b,c,d\n", r"x.csv cannot be read: Expected 3 fields in line 4, saw 4"),
        ("x.csv", 'a,b,c\n"a,b,c\n', "x.csv cannot be read: EOF inside string"),
        ("x.csv", b"a,b,c\na,b,caf\xe9\n", "x.csv, line 2: no UTF-8 text"),
        ("x.csv", "id,one,two,three,four\n1,a,b,c,d\n", "x.csv has 5 columns and no names for them; say which"),
        ("x.txt", "Once upon a time\n", "x.txt, line 1: 1 tab-separated column; expected head, relation and tail"),
        ("x.csv", "Once, upon a time\n", "x.csv has 2 columns and no names for them; a triple has three: head"),
        ("x.json", "[", "x.json cannot be read"),
        ("x.json", "3", "x.json cannot be read"),
        ("x.jsonl", '{"head": "a", "relation": null, "tail": "b"}', "x.jsonl, row 0: no relation"),
        ("x.parquet", "PAR1", "x.parquet cannot be read"),
        ("x.tsv.gz", gzip.compress(b"a\tb\tc\n", mtime=0)[:-9], "x.tsv.gz cannot be read"),
        ("x.zip", zipped(b""), "not from such a file"),
        ("x.xlsx", "a", r"triples are read from \.txt, .*, not from \.xlsx"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        load_graph(file(tmp_path, name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        (3, {}, "no graph can be made of this int"),
        (None, {}, "no graph can be made of this NoneType"),
        ([], {}, "no training triples"),
        ({"train": [], "test": ROWS}, {}, "no training triples|never in train"),
        ([("a", "b")], {}, "the table has 2 columns and no names for them; a triple has three"),
        (["a likes b"], {}, "the table has 1 column and no names"),
        ("", {}, "the path of the graph is empty"),
        (np.zeros((2, 2, 2)), {}, "no graph can be made of this ndarray"),
        (FRAME.rename(columns={"tail": "x"}), {}, "no column 'tail'; it has 'head, relation, x': name"),
        (FRAME.assign(tail=[None, "a", "b"]), {}, "the table, row 0: no tail"),
        (FRAME.assign(split="later"), {}, "column 'split' has 'later'"),
        (FRAME.assign(confidence=2), {}, "'2', is no confidence from 0 to 1"),
        (FRAME, {"columns": "head,relation"}, "`columns` names head, relation, tail"),
        (FRAME, {"columns": 5}, "`columns` names head, relation, tail"),
        (FRAME, {"columns": "head,relation,x"}, "no column 'x'; it has 'head, relation, tail'"),
        (FRAME, {"columns": (0, 1, 7)}, "no column '7'"),
        (FRAME, {"holdout": 0.5}, "`holdout` is a share"),
        (FRAME, {"holdout": "a tenth"}, "`holdout` is a share"),
        (FRAME, {"holdout": 0.1, "seed": -1}, "`seed` is a whole number"),
        (Nations(), {"columns": "head,relation,tail"}, "`columns` is for tables"),
        (MEANT, {"columns": (0, 1, 2)}, "`columns` is for tables"),
        (nx.Graph([(1, 2)]), {}, "edges without direction have no heads"),
        ({"train": [("a", "r", None)]}, {}, "train, row 0: no tail"),
        (nx.DiGraph([(1, 2)]), {}, "no column 'relation'; it has 'head, tail'"),
        ("none.csv", {}, "none.csv: no such file"),
        ("a\0b", {}, "unknown data set"),
        ("x" * 5000, {}, "unknown data set"),
    ],
)
def test_sources_that_are_refused(source: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        load_graph(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def test_folders_that_are_refused(tmp_path: Path) -> None:
    file(tmp_path, "test.txt", text())
    with pytest.raises(InputError, match=r"has no train split: .*; it holds test\.txt"):
        load_graph(tmp_path)
    file(tmp_path, "train.txt", text())
    file(tmp_path, "test.txt", text(header="head\trelation\ttail\n", rows=[]))
    with pytest.raises(InputError, match=r"test\.txt holds no triples"):
        load_graph(tmp_path)


@pytest.mark.parametrize("fit", [lambda source: kgpyro.fit(source, model="lim", dim=2, epochs=1, progress=False)])
@pytest.mark.parametrize("source", [ROWS, FRAME, np.array(ROWS), edges(keyed=True), {"train": ROWS, "test": ROWS[:1]}])
def test_fits_take_what_load_graph_takes(fit: Callable, source: Any) -> None:
    assert fit(source).graph == load_graph(source)
