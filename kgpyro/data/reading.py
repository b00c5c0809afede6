"""Graphs from files: folders of triples, and PyKEEN's data sets by name."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kgpyro.data.encoding import encode, place_of
from kgpyro.data.graph import SPLITS, Graph
from kgpyro.errors import InputError

SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
BLOCK = 1 << 22  # bytes of a file that are read at once, and the longest line


def load_graph(name_or_folder: str | Path) -> Graph:
    """Load a graph from a folder of triples files, or one of PyKEEN's data sets by name.

    A folder holds ``train``, ``valid`` and ``test``, each as ``.txt`` or ``.tsv``, plain or gzipped (``.gz``): one
    triple a line, ``head TAB relation TAB tail``, UTF-8, no header; of an uncertain graph with a fourth column on every
    line, the confidence, from 0 to 1; and, where people have found triples false,
    ``valid_negatives`` and ``test_negatives`` likewise. Lines end as in Unix or Windows; blank ones do not count. Names
    are taken as they are, with their blanks. A triple that a file holds twice is one fact; those that a later split
    shares with an earlier one stay, and :attr:`Graph.problems` tells of them.

    A bare name is looked up first in the folder that the environment variable ``KGPYRO_DATA`` names, then as a path,
    then among PyKEEN's data sets.

    Raises:
        InputError: no such folder or data set, a missing or empty split, or a malformed line (named by file and line).
    """
    roots = [Path(os.environ["KGPYRO_DATA"])] if os.environ.get("KGPYRO_DATA") else []
    for folder in [*(root / name_or_folder for root in roots), Path(name_or_folder)]:
        if folder.is_dir():
            source = str(name_or_folder) if folder.parent in roots else str(folder.resolve())
            graph = _of_files(folder.resolve().name, [_split_file(folder, split) for split in SPLITS])
            false = {split: _first_file(folder, f"{split}_negatives") for split in SPLITS[1:]}
            negatives = {split: _false_triples(graph, path) for split, path in false.items() if path}
            return replace(graph, source=source, negatives=negatives)
    return replace(_load_pykeen(str(name_or_folder), roots), source=str(name_or_folder))


def _split_file(folder: Path, split: str) -> Path:
    if path := _first_file(folder, split):
        return path
    raise InputError(f"{folder} has no {split} split: expected {split}{' or '.join(SUFFIXES)}.")


def _first_file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / (stem + suffix)).is_file()), None)


def _false_triples(graph: Graph, path: Path) -> Tensor:
    entities = dict(graph._entity_ids)
    ids, _ = encode(_lines(path), partial(place_of, path, "line"), entities, dict(graph._relation_ids), complete=True)
    for unknown in list(entities)[graph.num_entities :]:
        graph.entity_id(unknown)  # refuses it
    return ids


def _of_files(name: str, files: Sequence[Path]) -> Graph:
    graph = Graph._encoded(name, [(_lines(file), partial(place_of, file, "line")) for file in files])
    for file, split in zip(files, SPLITS, strict=True):
        if not len(getattr(graph, split)):
            raise InputError(f"{file} is empty; it should hold one triple a line: head TAB relation TAB tail.")
    return graph


def _lines(path: Path) -> Iterator[list[str]]:
    """The columns of every line, of a file that is gzipped or not, whatever it is called; ``[""]`` for a blank line.

    Raises InputError, with the line, for what is no UTF-8 text.
    """
    before = 0
    try:
        with open(path, "rb") as file:
            start = file.read(3)
        with gzip.open(path) if start[:2] == b"\x1f\x8b" else open(path, "rb") as file:
            rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
            while read := file.read(BLOCK):
                lines, newline, rest = (rest + read).rpartition(b"\n")
                if newline:
                    yield from _columns(lines + newline, path, before)
                before += lines.count(b"\n") + len(newline)
                if len(rest) > BLOCK:
                    raise InputError(f"{path}, line {before + 1}: longer than {BLOCK:,} bytes.")
        if rest:
            yield from _columns(rest.removesuffix(b"\r"), path, before)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read after line {before}: {error}.") from error


def _columns(block: bytes, path: Path, before: int) -> Iterator[list[str]]:
    """The columns of whole lines, of which ``before`` stand ahead in the file."""
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        line = before + block.count(b"\n", 0, error.start) + 1
        utf16 = " (it looks like UTF-16)" if block.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise InputError(f"{path}, line {line}: no UTF-8 text{utf16}; save the file as UTF-8.") from error
    text = text.replace("\r\n", "\n")
    for character, what in (("\0", "a NUL character"), ("\r", "a carriage return amid the line")):
        if (place := text.find(character)) >= 0:
            line = before + text.count("\n", 0, place) + 1
            raise InputError(f"{path}, line {line}: {what}; save the file as plain text.")
    for row in text.removesuffix("\n").split("\n"):
        yield row.split("\t")


def _load_pykeen(name: str, roots: Iterable[Path]) -> Graph:
    from pykeen.datasets import dataset_resolver  # imported here: it takes seconds, and folders do not need it

    resolver_key = dataset_resolver.normalize(name)
    if resolver_key not in dataset_resolver.lookup_dict:
        here = [p.name for root in roots if root.is_dir() for p in sorted(root.iterdir()) if p.is_dir()]
        choices = here + sorted(dataset_resolver.lookup_dict)
        near = get_close_matches(resolver_key, choices, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(choices)}."
        raise InputError(f"unknown data set {name!r}: neither a folder nor one of PyKEEN's; {hint}")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):  # PyKEEN reseeds PyTorch where it splits a data set of a single file
        dataset = dataset_resolver.make(resolver_key)
        try:
            factory = dataset.training  # downloads where the files do not ship with PyKEEN
        except Exception as error:  # whatever the network or PyKEEN's cache throws
            raise InputError(f"PyKEEN could not provide data set {name!r}: {error}") from error
    files = [Path(getattr(dataset, f"{s}_path", None) or "") for s in ("training", "validation", "testing")]
    if all(file.is_file() and file.name.endswith(SUFFIXES) for file in files):
        # PyKEEN drops triples whose entities training lacks; read from its files they are all there
        return _of_files(resolver_key, files)
    entities, relations = factory.entity_id_to_label, factory.relation_id_to_label
    splits = [
        [(entities[h], relations[r], entities[t]) for h, r, t in part.mapped_triples.tolist()]
        for part in (factory, dataset.validation, dataset.testing)
    ]
    return Graph.from_triples(resolver_key, *splits)
