"""Triples files as people have them: each loads as the graph that was meant, or is refused with its file and line."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kgpyro
from kgpyro.data.graph import SPLITS, Graph
from kgpyro.data.reading import load_graph
from kgpyro.errors import InputError

SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
Triple = tuple[str, str, str]
ODD = [
    "007",
    " lead",
    "trail ",
    "a b",
    "a,b",
    "#",
    '"q"',
    "'",
    "NA",
    "nan",
    "é",
    "e\u0301",
    "中",
    "a\u2028b",
    "\x0bx",
    "x\x85",
]
ODD += ["x\ufeff", "../x", "\\t", "𝔘", "0" * 300]
NAMES = st.sampled_from(["a", "b", "c", "d"] * 4 + ODD)
# each makes of a good line, and the line's number, one that must be refused
SPOILT = {
    "a column less": "{0}\t{1}",
    "a column more": "{0}\t{1}\t{2}\t5",
    "a tab at the end": "{0}\t{1}\t{2}\t",
    "commas": "{0},{1},x",
    "blanks": "{0} {1} x",
    "empty head": "\t{1}\t{2}",
    "empty tail": "{0}\t{1}\t",
    "blank relation": "{0}\t \t{2}",
    "a NUL": "{0}\t{1}\tx\0",
    "a carriage return": "{0}\t{1}\tx\ry",
    "blanks alone": "  ",
}
NOT_UTF8 = {
    "Latin-1": b"caf\xe9\tr\tx",
    "cut off": b"a\tr\t\xe4\xb8",
    "overlong": b"a\tr\t\xc0\x80",
    "surrogate": b"\xed\xa0\x80\ta\tb",
}
UNKNOWN = ["a relation that training lacks"]


@dataclass(frozen=True)
class Written:
    """A split as it is written, what it means, and the line at which it must be refused (0: nowhere)."""

    content: bytes
    triples: list[Triple]
    refused: int = 0


@st.composite
def splits(draw: st.DrawFn, relations: list[str], spoil: bool, later: bool = True) -> Written:
    triple = st.tuples(NAMES, st.sampled_from(relations), NAMES)
    triples = draw(st.lists(triple, min_size=1, max_size=4))
    if draw(st.booleans()):
        triples = triples + triples[:2]  # twice
    ends = draw(st.sampled_from([[b"\n"], [b"\r\n"], [b"\n", b"\r\n"]]))
    lines = ["\t".join(t).encode() for t in triples]
    refused = 0
    if spoil:
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from([*SPOILT, *NOT_UTF8, *UNKNOWN[:later]]))
        new = NOT_UTF8.get(how) or SPOILT.get(how, "{0}\tunheard of\t{2}").format(*triples[at]).encode()
        lines[at], refused = new, at + 1
    for place in draw(st.lists(st.integers(0, len(lines)), max_size=1)):
        lines.insert(place, b"")
        refused += refused > place
    content = b"".join(line + ends[i % len(ends)] for i, line in enumerate(lines))
    if draw(st.booleans()):
        content = content.rstrip(b"\r\n") if not lines[-1].endswith((b"\r", b"\n")) else content
    encoded = draw(st.sampled_from(["plain", "BOM", "gzip", "gzip with BOM"]))
    content = b"\xef\xbb\xbf" * ("BOM" in encoded) + content
    return Written(gzip.compress(content, 1) if "gzip" in encoded else content, triples, refused)


@st.composite
def folders(draw: st.DrawFn) -> list[Written]:
    relations = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    spoilt = draw(st.sampled_from([None, None, "train", "valid", "test"]))
    train = draw(splits(relations, spoilt == "train", later=False))
    known = sorted({r for _, r, _ in train.triples})
    return [train, *(draw(splits(known, spoilt == split)) for split in SPLITS[1:])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("graphs")


def named(graph: Graph, split: str) -> list[Triple]:
    e, r = graph.entities, graph.relations
    return [(e[h], r[p], e[t]) for h, p, t in getattr(graph, split).tolist()]


@settings(max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(written=folders(), suffix=st.sampled_from(SUFFIXES))
def test_folders(place: Path, written: list[Written], suffix: str) -> None:
    """The suffix says nothing: gzip is told by its first bytes."""
    folder = place / suffix
    folder.mkdir(exist_ok=True)
    for split, part in zip(SPLITS, written, strict=True):
        (folder / (split + suffix)).write_bytes(part.content)
    if bad := [(split, part.refused) for split, part in zip(SPLITS, written, strict=True) if part.refused]:
        with pytest.raises(InputError) as caught:
            load_graph(folder)
        assert f"{bad[0][0]}{suffix}, line {bad[0][1]}:" in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    graph = load_graph(folder)
    for split, part in zip(SPLITS, written, strict=True):
        assert named(graph, split) == list(dict.fromkeys(part.triples))
    assert set(graph.entities) == {e for part in written for h, _, t in part.triples for e in (h, t)}
    assert set(graph.relations) == {r for _, r, _ in written[0].triples}
    facts = [set(part.triples) for part in written]
    assert graph.leakage == {"valid": len(facts[1] & facts[0]), "test": len(facts[2] & (facts[0] | facts[1]))}


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text("ab\t\r\n\0\ufeffé", max_size=40).map(str.encode), packed=st.booleans())
def test_any_bytes(place: Path, content: bytes, packed: bool) -> None:
    """Whatever a file holds, it is a graph or one sentence."""
    folder = write(place / "any", train=gzip.compress(content)[: -1 - len(content) % 9] if packed else content)
    try:
        graph = load_graph(folder)
    except InputError as error:
        assert "train.txt" in str(error) or "never in train" in str(error)
        assert "\n" not in str(error)
    else:
        assert len(graph.train) <= content.count(b"\n") + 1


LINE = b"a\tr\tb\n"


def write(folder: Path, train: bytes = LINE, valid: bytes = LINE, test: bytes = LINE) -> Path:
    folder.mkdir(exist_ok=True)
    for split, content in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{split}.txt").write_bytes(content)
    return folder


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=r"test\.txt, line 1: (no UTF-8 text|a NUL character)"):
        load_graph(write(tmp_path / "g", test=LINE.decode().encode(encoding)))


def test_names_of_a_megabyte(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    folder = write(tmp_path / "g", train=f"{long}\tr\tb\n{long}y\tr\tb\n".encode())
    graph = load_graph(folder)
    assert sorted(map(len, graph.entities)) == [1, 1, 1_000_000, 1_000_001]
    for name in (long[1:], "z" * 1_000_000):
        with pytest.raises(InputError) as caught:
            graph.entity_id(name)
        assert len(str(caught.value)) < 1000
    with pytest.raises(InputError, match=r"test\.txt, line 1: relation '.*' occurs here") as caught:
        load_graph(write(tmp_path / "g", test=f"a\t{long}\tb\n".encode()))
    assert len(str(caught.value)) < 1000


def test_a_line_without_end(tmp_path: Path) -> None:
    """300 MB in one line, packed to 300 kB: refused before they are all in memory."""
    folder = write(tmp_path / "bomb")
    with gzip.open(folder / "test.txt", "wb", 1) as file:
        for _ in range(300):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"test\.txt, line 1: longer than"):
        load_graph(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120_000_000


def test_many_lines_of_few_names(tmp_path: Path) -> None:
    """A name is held once, whatever the number of its lines."""
    lines = 200_000
    folder = write(tmp_path / "g", train=("".join(f"entity{i % 50:060}\tr\t{i % 70}\n" for i in range(lines))).encode())
    tracemalloc.start()
    graph = load_graph(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(graph.train) == 350
    assert peak < 30_000_000 + 50 * lines


def test_a_block_ends_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines and their numbers are the same wherever one read ends and the next begins."""
    content = "\ufeffé\tr\tb\r\n\r\nb\tr\t中\n\nc\tr\td\nbad\n".encode()
    for block in range(16, 40):
        monkeypatch.setattr("kgpyro.data.tables.BLOCK", block)
        with pytest.raises(InputError, match=r"train\.txt, line 6: 1 tab-separated"):
            load_graph(write(tmp_path / "g", train=content))
        graph = load_graph(write(tmp_path / "g", train=content.removesuffix(b"bad\n")))
        assert named(graph, "train") == [("é", "r", "b"), ("b", "r", "中"), ("c", "r", "d")]


@pytest.mark.parametrize(
    ("train", "others"),
    [
        (b"a\tr\ta\n", b"a\tr\ta\n"),  # one entity, one relation, one fact, a self-loop, in every split
        (b"a\tr\tb\n", b"b\tr\ta\n"),
        (b"a\tr\tb\na\tr\ta\nb\tr\ta\nb\tr\tb\n", b"a\tr\tb\n"),  # no fact is unobserved
        (b"a\tr\tb\na\tr\tb\n", b"c\tr\td\n"),  # entities that training lacks alone
    ],
)
@pytest.mark.parametrize("negatives", ["all", 3])
def test_fits_of_the_smallest_graphs(tmp_path: Path, train: bytes, others: bytes, negatives: Any) -> None:
    graph = load_graph(write(tmp_path / "g", train, others, others))
    posterior = kgpyro.fit(graph, model="lim", dim=2, epochs=2, negatives=negatives, progress=False, device="cpu")
    assert 0 < posterior.metrics["test"]["realistic"]["mrr"] <= 1
    leaks = [warning for warning in posterior.metrics["warnings"] if "leakage" in warning]
    assert leaks == graph.problems
    assert len(leaks) == (2 if others in (LINE, train) else 1)


def test_triples_given_in_python() -> None:
    numbered = Graph.from_triples("n", [[1, 2, 3], [1, 2, 3]], [[3, 2, 1]], [[1, 2, 1]])  # type: ignore[list-item]
    assert (numbered.entities, numbered.train.tolist()) == (("1", "3"), [[0, 0, 1]])
    for rows, words in (
        ([["a", "r"]], "'g', train, row 1: 2 columns; expected"),
        ([["a", "r", "b"], ["a", "", "b"]], "row 2: an empty name"),
        ([], "row 1: relation 'r' occurs here but never in train"),
    ):
        with pytest.raises(InputError, match=words):
            Graph.from_triples("g", rows, [["a", "r", "b"]], [["a", "r", "b"]])
    with pytest.raises(InputError, match="no training triples"):
        Graph.from_triples("g", [], [], [])
