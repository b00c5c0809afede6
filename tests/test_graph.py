"""Loading graphs: from PyKEEN, from folders of every allowed kind, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from kgpyro.data.graph import Graph
from kgpyro.data.queries import Queries
from kgpyro.data.reading import load_graph
from kgpyro.errors import InputError

LINES = {"train": "a\tlikes\tb\nb\tlikes\tc\n", "valid": "c\tlikes\ta\n", "test": "007\tlikes\ta\n"}


def write(folder: Path, suffix: str = ".txt", **replaced: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (LINES | replaced).items():
        data = text.encode()
        (folder / f"{split}{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return folder


@pytest.mark.parametrize(
    ("name", "sizes"), [("nations", (14, 55, 1592, 199, 201)), ("UMLS", (135, 46, 5216, 652, 661))]
)
def test_pykeens_data_sets(name: str, sizes: tuple[int, ...]) -> None:
    graph = load_graph(name)
    found = graph.num_entities, graph.num_relations, len(graph.train), len(graph.valid), len(graph.test)
    assert found == sizes


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".txt.gz", ".tsv.gz"])
def test_folders(tmp_path: Path, suffix: str) -> None:
    graph = load_graph(write(tmp_path / "mine", suffix))
    assert graph.name == "mine"
    assert graph.entities == ("007", "a", "b", "c")  # leading zeros stay, test-only entities count
    assert graph.train.tolist() == [[1, 0, 2], [2, 0, 3]]


def test_windows_line_ends_bom_and_blank_lines(tmp_path: Path) -> None:
    plain = load_graph(write(tmp_path / "plain"))
    odd = load_graph(write(tmp_path / "odd", train="\ufeffa\tlikes\tb\r\n\r\nb\tlikes\tc"))
    assert torch.equal(plain.train, odd.train)
    assert load_graph(plain.source).entities == plain.entities


def test_kgpyro_data_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "nations")
    monkeypatch.setenv("KGPYRO_DATA", str(tmp_path))
    assert load_graph("nations").num_entities == 4
    assert load_graph("umls").num_entities == 135


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"train": "a\tlikes\tb\na\tlikes\n"}, r"train\.txt, line 2: 2 tab-separated columns"),
        ({"valid": "a\tlikes\tb\t5\n"}, r"valid\.txt, line 1: 4 tab-separated columns"),
        ({"train": "a likes b\n"}, r"train\.txt, line 1: 1 tab-separated column"),
        ({"train": "a\t\tb\n"}, r"line 1: an empty name"),
        ({"test": ""}, r"test\.txt is empty"),
        ({"test": "a\thates\tb\n"}, r"test\.txt, line 1: relation 'hates' occurs here but never in train"),
    ],
)
def test_malformed_files(tmp_path: Path, replaced: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_graph(write(tmp_path / "bad", **replaced))


def test_missing_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "half")
    (folder / "valid.txt").unlink()
    assert not len(load_graph(folder).valid) and len(load_graph(folder).test) == 1
    (folder / "train.txt").unlink()
    with pytest.raises(InputError, match="no train split"):
        load_graph(folder)


def test_unreadable_file(tmp_path: Path) -> None:
    (write(tmp_path / "binary") / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"test\.txt, line 1: no UTF-8 text .it looks like UTF-16"):
        load_graph(tmp_path / "binary")


def test_unknown_data_set() -> None:
    with pytest.raises(InputError, match="did you mean 'nations'"):
        load_graph("natoins")


def test_unknown_names(tiny: Graph) -> None:
    with pytest.raises(InputError, match="no relation 'like'; did you mean 'likes'"):
        tiny.relation_id("like")
    assert tiny.entities[tiny.entity_id("c")] == "c"


def test_queries(tiny: Graph) -> None:
    queries = tiny.training_queries
    expected: dict[tuple[int, int], set[int]] = {}
    for h, r, t in tiny.train.tolist():
        expected.setdefault((r, h), set()).add(t)
        expected.setdefault((r + tiny.num_relations, t), set()).add(h)
    found: dict[tuple[int, int], set[int]] = {}
    for i in range(len(queries)):
        row, answers = queries.answer_pairs(torch.tensor([i]))
        assert row.tolist() == [0] * len(answers)
        found[int(queries.relation[i]), int(queries.anchor[i])] = set(answers.tolist())
    assert found == expected
    assert queries.positions(queries.anchor, queries.relation).tolist() == list(range(len(queries)))


def test_queries_without_answers(tiny: Graph) -> None:
    e = tiny.entity_id("e")
    assert tiny.training_queries.positions(torch.tensor([e]), torch.tensor([0])).tolist() == [-1]
    row, answers = tiny.training_queries.answer_pairs(torch.tensor([-1, 0]))
    assert set(row.tolist()) == {1}
    assert len(answers) == int(tiny.training_queries.counts[0])


def test_duplicate_triples_count_once(tiny: Graph) -> None:
    twice = Queries.of(torch.cat([tiny.train, tiny.train]), tiny.num_relations)
    assert torch.equal(twice.answers, tiny.training_queries.answers)
