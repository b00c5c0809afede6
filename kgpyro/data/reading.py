"""The door to graphs: folders, files and data sets by name, and the objects of other libraries."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data import tables
from kgpyro.data.graph import Graph
from kgpyro.data.tables import CALLED, COLUMNS, FRAMES, NAMES, SHORT, SPLITS, TEXT, Rows, encode, name_of
from kgpyro.errors import InputError

Columns: TypeAlias = str | Sequence[str | int] | None
RDF = (".nt", ".ttl", ".n3", ".rdf", ".owl")
KINDS = (*TEXT, *FRAMES, *RDF)
NO_COLUMNS = "`columns` is for tables and text files; this source knows its own, so leave it out."
PYKEEN = {"train": "training", "valid": "validation", "test": "testing"}  # what it calls splits


def load_graph(
    source: Any,
    *,
    columns: Columns = None,
    holdout: float | None = None,
    labels: str | Path | Mapping[Any, Any] | None = None,
    seed: int = 0,
) -> Graph:
    """Make a graph of whatever holds triples.

    * A folder with ``train``, ``valid`` (``validation``, ``dev``) and ``test``, of which only train must be, each a
      file as below; and likewise ``valid_negatives`` and ``test_negatives``, where people have found triples false.
    * A file: ``.tsv``, ``.txt``, ``.csv``, ``.parquet``, ``.json`` or ``.jsonl``, or RDF (``.nt``, ``.ttl``, ``.rdf``).
      Text is UTF-8, plain or packed (gz, bz2, xz, zip), one triple a line, with a header or without. Columns are cut at
      tabs, those of ``.csv`` and of a single ``.txt`` at commas or semicolons too. Blank lines do not count.
    * A table (pandas, polars, pyarrow), array or list of triples, or a mapping of splits to these; a networkx graph
      with directed edges, an rdflib graph, a data set or triples factory of PyKEEN; a Graph.
    * The name of one of PyKEEN's data sets, or of a folder or file in the folder that ``KGPYRO_DATA`` names.

    Columns are found by their usual names in any case (head, relation, tail; subject, predicate, object; source, type,
    target; h, r, t; confidence, from 0 to 1, of an uncertain graph; split), or else by their order. Names are strings,
    as written. A triple that a split holds twice is one fact, with the mean of their confidences where these are given.
    :attr:`Graph.problems` tells what was left out.

    Args:
        source: what holds the triples.
        columns: names of the columns of head, relation, tail, and where there is one of the confidence, separated by
            commas, or their positions from 0.
        holdout: share of the training facts to hold out at random in each of valid and test that the source lacks, so
            far as every entity and relation keeps a fact in training.
        labels: file of ids and labels (Q42 TAB Douglas Adams), or a dict, by which entities and relations are
            called from then on.
        seed: of the random choice of facts held out.

    Raises:
        InputError: whatever of these cannot be read, in one sentence; a malformed line is named by file and line.
    """
    notes: list[str] = []
    chosen, dataset = tables.columns_of(columns), hasattr(source, "training") and hasattr(source, "testing")
    if chosen and (isinstance(source, Graph) or dataset or hasattr(source, "subject_objects")):
        raise InputError(NO_COLUMNS)
    if isinstance(source, Graph):
        graph = source
    elif isinstance(source, (str, Path)):
        graph = _found(source, chosen, notes)
    elif dataset:
        graph = _of_pykeen(source, type(source).__name__.lower())
    else:
        graph = Graph._encoded("graph", _parts(source, chosen, notes), notes)
    plain = columns is None and labels is None and not holdout
    if labels is not None:
        graph = _labelled(graph, labels)
    if holdout is not None:
        graph = graph.hold_out(holdout, seed)
    return graph if plain else replace(graph, source="")


def _found(given: str | Path, columns: list[str] | None, notes: list[str]) -> Graph:
    """The graph of a folder, a file, or a name."""
    if not str(given):
        raise InputError("the path of the graph is empty; name a folder, a file, or a data set.")
    named = os.environ.get("KGPYRO_DATA") and not os.fspath(given).startswith(".")
    roots = [Path(os.environ["KGPYRO_DATA"])] if named else []
    for path in [*(root / given for root in roots), Path(given)]:
        source = str(given) if path.parent in roots else os.path.abspath(path)
        if os.path.isdir(path):
            return replace(_of_folder(path.resolve(), columns, notes), source=source)
        if os.path.isfile(path) and path.suffix:
            parts, _ = _file_rows(path, columns, notes)
            return replace(Graph._encoded(path.name.partition(".")[0], parts, notes), source=source)
    if tables.parted(Path(given))[1] in KINDS:
        raise InputError(f"{given}: no such file.")
    name, dataset = _pykeen(str(given), roots)
    if columns:
        raise InputError(NO_COLUMNS)
    return replace(_of_pykeen(dataset, name), source=str(given))


def _of_folder(folder: Path, columns: list[str] | None, notes: list[str]) -> Graph:
    found = {split: _first_file(folder, names) for split, names in NAMES.items()}
    files = {split: path for split, path in found.items() if path is not None}
    if "train" not in files:
        has = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise InputError(f"{folder} has no train split: expected train{', '.join(KINDS)}; it holds {has}.")
    read = {s: _file_rows(path, columns, notes, folder=True) for s, path in files.items()}
    if headed := [files[split].name for split, (_, header) in read.items() if header]:
        notes.append(f"the first line of {', '.join(headed)} is a header and no fact.")
    graph = Graph._encoded(folder.name, {split: rows["train"] for split, (rows, _) in read.items()}, notes)
    if empty := next((file for split, file in files.items() if not len(getattr(graph, split))), None):
        raise InputError(f"{empty} holds no triples; it should hold one a line: head TAB relation TAB tail.")
    false = {split: _first_file(folder, [f"{split}_negatives"]) for split in SPLITS[1:]}
    false = {split: path for split, path in false.items() if path and path.stat().st_size}
    return replace(graph, negatives={split: _false_triples(graph, path) for split, path in false.items() if path})


def _first_file(folder: Path, stems: Sequence[str]) -> Path | None:
    found = {}
    for path in filter(Path.is_file, folder.iterdir()):
        stem, kind = tables.parted(path)
        if stem in stems and kind in KINDS:
            found[KINDS.index(kind), stems.index(stem), path.name] = path
    return found[min(found)] if found else None


def _false_triples(graph: Graph, path: Path) -> Tensor:
    entities, (parts, _) = dict(graph._entity_ids), _file_rows(path, None, [], folder=True)
    ids, _ = encode(parts["train"], entities, dict(graph._relation_ids), complete=True)
    if len(entities) > graph.num_entities:
        graph.entity_id(list(entities)[graph.num_entities])  # refuses it
    return ids


def _file_rows(
    path: Path, columns: list[str] | None, notes: list[str], folder: bool = False
) -> tuple[dict[str, Rows], bool]:
    """The rows of a file by split, in a ``folder`` all as train's; and whether it has a header."""
    kind = tables.parted(path)[1]
    if kind in TEXT:
        tabs = kind == ".tsv" or (kind == ".txt" and folder)
        return tables.text_rows(path, columns, notes, "\t" if tabs else None, split=not folder)
    if kind in FRAMES:
        return tables.frame_rows(tables.read_frame(path), columns, notes, path, split=not folder), False
    if kind in RDF and columns:
        raise InputError(NO_COLUMNS)
    if kind not in KINDS:
        raise InputError(f"{path}: triples are read from {', '.join(KINDS)}, not from {kind or 'such a file'}.")
    return {"train": _resources(_rdf(path), notes, tables.parted(path)[0])}, False


def _rdf(path: Path) -> list[Any]:
    """The triples of an RDF file, in its order."""
    try:
        import rdflib
        from rdflib.store import Store
    except ImportError as error:
        raise InputError(f"{path}: reading RDF needs rdflib; pip install 'kgpyro[rdf]'.") from error
    found: list[Any] = []

    class InOrder(Store):  # rdflib's own goes by hashes
        def add(self, triple: Any, context: Any, quoted: bool = False) -> None:
            found.append(triple)

    kind = tables.parted(path)[1]
    try:
        with tables.open_packed(path) as file:
            rdflib.Graph(store=InOrder()).parse(file, format=rdflib.util.guess_format(f"graph{kind}"))
    except Exception as error:  # whatever rdflib's parsers raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no {kind} file that rdflib can read: {why}") from error
    return found


def _parts(source: Any, columns: list[str] | None, notes: list[str], what: str = "the table") -> dict[str, Rows]:
    """The rows of an object by split; all train's where it has none."""
    if isinstance(source, Mapping) and source and CALLED.keys() >= {str(key).lower() for key in source}:
        return {CALLED[str(key).lower()]: _parts(one, columns, notes, key)["train"] for key, one in source.items()}
    if hasattr(source, "subject_objects"):
        return {"train": _resources(sorted(source, key=str), notes, "b")}
    if hasattr(source, "is_multigraph"):
        source = _edges(source)
    elif hasattr(source, "mapped_triples"):
        source = _labelled_triples(source)
    elif hasattr(source, "to_pandas") or hasattr(source, "collect"):  # of polars, computed or not, or of pyarrow
        try:
            source = (source if hasattr(source, "to_pandas") else source.collect()).to_pandas()
        except ImportError as error:
            raise InputError(f"this {type(source).__name__} needs pyarrow; pip install 'kgpyro[parquet]'.") from error
    if not isinstance(source, pd.DataFrame):
        try:
            if hasattr(source, "__array__"):
                source = np.asarray(source)
            elif not isinstance(source, Mapping):
                source = sorted(source, key=repr) if isinstance(source, (set, frozenset)) else list(source)
            source = pd.DataFrame(source)
        except (TypeError, ValueError) as error:
            can = "give a table, a list of triples, a folder or file, or the name of a data set"
            raise InputError(f"no graph can be made of this {type(source).__name__}; {can}.") from error
    return tables.frame_rows(source, columns, notes, what)


def _edges(graph: Any) -> pd.DataFrame:
    """The edges of a networkx graph with their attributes; where none is the relation, their keys are, if words."""
    if not graph.is_directed():
        raise InputError("edges without direction have no heads and tails; give graph.to_directed(), or a DiGraph.")
    edges = list(graph.edges(keys=True, data=True) if graph.is_multigraph() else graph.edges(data=True))
    frame = pd.DataFrame([{**edge[-1], "head": edge[0], "tail": edge[1]} for edge in edges])
    named = "relation" in tables.places_of(list(map(str, frame.columns)), None, "")
    if not named and graph.is_multigraph() and all(isinstance(edge[2], str) for edge in edges):
        frame["relation"] = [edge[2] for edge in edges]
    return frame


def _resources(triples: Sequence[Any], notes: list[str], blank: str) -> Rows:
    """RDF's triples without those whose object is a literal; blank nodes are numbered."""
    from rdflib import BNode, Literal

    numbers: dict[Any, int] = {}

    def called(node: Any) -> str:
        return f"_:{blank}{numbers.setdefault(node, len(numbers) + 1)}" if isinstance(node, BNode) else str(node)

    rows = [[called(node) for node in triple[:3]] for triple in triples if not isinstance(triple[2], Literal)]
    if left := len(triples) - len(rows):
        notes.append(f"{left} of the {len(triples)} triples have a literal as their object and are left out.")
    return Rows(rows)


def _labelled_triples(factory: Any) -> pd.DataFrame:
    """The triples of a factory of PyKEEN by their labels, or by their ids where it has none."""
    frame = pd.DataFrame(factory.mapped_triples.numpy(), columns=list(COLUMNS))
    for column, kind in zip(COLUMNS, ("entity", "relation", "entity"), strict=True):
        if (labels := getattr(factory, f"{kind}_id_to_label", None)) is not None:
            frame[column] = frame[column].map(labels)
    return frame


def _pykeen(name: str, roots: Iterable[Path]) -> tuple[str, Any]:
    """One of PyKEEN's data sets, and what PyKEEN calls it."""
    from pykeen.datasets import dataset_resolver  # imported here: it takes seconds, and files do not need it

    key = dataset_resolver.normalize(name)
    if key not in dataset_resolver.lookup_dict:
        here = [p.name for root in roots if root.is_dir() for p in sorted(root.iterdir()) if p.is_dir()]
        choices = sorted({*here, *dataset_resolver.lookup_dict})
        near = get_close_matches(key, choices, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(choices)}."
        raise InputError(f"unknown data set {SHORT.repr(name)}: neither a folder nor one of PyKEEN's; {hint}")
    options = inspect.signature(dataset_resolver.lookup(key)).parameters
    # PyKEEN reseeds PyTorch where it splits a data set of a single file, unless it is given a generator
    own = {"random_state": torch.Generator().manual_seed(0)} if "random_state" in options else {}
    try:
        dataset = dataset_resolver.make(key, **own)
        dataset.training  # noqa: B018  # downloads where the files do not ship with PyKEEN
    except Exception as error:  # whatever the network or PyKEEN's cache throws
        raise InputError(f"PyKEEN could not provide data set {name!r}: {error}") from error
    return key, dataset


def _of_pykeen(dataset: Any, name: str) -> Graph:
    """The graph of a data set, from its files where it has such: PyKEEN drops facts whose entities training lacks."""
    given = getattr(dataset, "load_triples_kwargs", None) or {}
    order = [str(place) for place in given.get("column_remapping") or ()] or None
    files = {s: Path(file) for s, called in PYKEEN.items() if (file := getattr(dataset, f"{called}_path", None))}
    if "train" in files and all(file.is_file() and tables.parted(file)[1] in TEXT for file in files.values()):
        separator = given.get("delimiter") or "\t"
        parts = {split: tables.text_rows(file, order, [], separator)[0] for split, file in files.items()}
    else:
        factories = {split: getattr(dataset, called) for split, called in PYKEEN.items()}
        parts = {split: _parts(one, None, []) for split, one in factories.items() if one is not None}
    return Graph._encoded(name, {split: rows["train"] for split, rows in parts.items()}, lenient=True)


def _labelled(graph: Graph, labels: Any) -> Graph:
    """The graph with names by their labels; those that several share have the id behind them."""
    if isinstance(labels, (str, Path)):
        path = Path(labels)
        if not path.is_file():
            raise InputError(f"`labels` {path}: no such file.")
        labels = tables.text_frame(path, None if tables.parted(path)[1] == ".csv" else "\t", least=2)
    if isinstance(labels, pd.DataFrame):
        if labels.shape[1] < 2:
            raise InputError("`labels` needs two columns: the id, and its label.")
        labels = zip(labels.iloc[::-1, 0], labels.iloc[::-1, 1], strict=True)  # the first of several holds
    try:
        pairs = [(name_of(name), label) for name, label in dict(labels).items() if not pd.isna(label)]
    except (TypeError, ValueError) as error:
        raise InputError("`labels` is a file of ids and labels, or a dict from the ones to the others.") from error
    given = {name: name_of(label) for name, label in pairs if name_of(label).strip()}
    if not (named := given.keys() & {*graph.entities, *graph.relations}):
        raise InputError(f"`labels` has no label for any entity or relation of graph {graph.name!r}.")
    found, shared = [], 0
    for ids in (graph.entities, graph.relations):
        names = [given.get(own, own) for own in ids]
        while twice := {name for name, number in Counter(names).items() if number > 1}:
            names = [f"{n} ({own})" if n in twice and own in given else n for n, own in zip(names, ids, strict=True)]
            shared += len(twice)
        found.append(names)
    total, notes = graph.num_entities + graph.num_relations, list(graph.notes)
    if len(named) < total:
        notes.append(f"{total - len(named)} of the {total} entities and relations have no label and keep their names.")
    if shared:
        notes.append(f"{shared} labels are shared by several; these have their ids behind them.")
    return replace(graph.renamed(*found), notes=tuple(notes))
