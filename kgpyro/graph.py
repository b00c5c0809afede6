"""Knowledge graphs: entities, relations, the triples of the three splits, and their queries.

A *query* asks for one end of a triple: ``(head, relation, ?)`` or ``(?, relation, tail)``. The second kind is written
as the tail query ``(tail, relation + R, ?)`` of the inverse relation (reciprocal relations, Lacroix et al. 2018), so
that every query is an anchor, a relation row in ``0 … 2R-1`` and a set of answers, whether or not a model gives
inverse relations latents of their own.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from kgpyro.errors import InputError

SPLITS = ("train", "valid", "test")
SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")


@dataclass(frozen=True)
class Graph:
    """A knowledge graph with a training, a validation and a test split.

    Attributes:
        name: what messages and results call it.
        entities: names; the position is the id. Entities that occur only in valid or test are entities too.
        relations: names; the position is the id.
        train: triple ids ``(head, relation, tail)``, shape ``(n, 3)``, dtype long; likewise ``valid`` and ``test``.
        source: what :func:`load_graph` finds it by again; empty for a graph made in Python.
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    source: str = ""

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        return len(self.relations)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the names and the triples, in hexadecimal digits."""
        found = hashlib.sha256()
        for names in (self.entities, self.relations):
            found.update("".join(f"{len(name)}:{name}" for name in names).encode("utf-8", "surrogatepass") + b";")
        for split in SPLITS:
            found.update(getattr(self, split).cpu().contiguous().numpy().tobytes() + b";")
        return found.hexdigest()

    @cached_property
    def seen(self) -> Tensor:
        """Which entities training has seen, shape ``(E,)``, bool."""
        seen = torch.zeros(self.num_entities, dtype=torch.bool)
        seen[self.train[:, [0, 2]].flatten()] = True
        return seen

    def training_part(self) -> Graph:
        """The graph of the entities that training has seen, and the triples among them."""
        ids = self.seen.long().cumsum(0) - 1

        def among(triples: Tensor) -> Tensor:
            kept = triples[self.seen[triples[:, [0, 2]]].all(1)]
            return torch.stack([ids[kept[:, 0]], kept[:, 1], ids[kept[:, 2]]], dim=1)

        entities = tuple(name for name, seen in zip(self.entities, self.seen.tolist(), strict=True) if seen)
        train, valid, test = among(self.train), among(self.valid), among(self.test)
        return replace(self, entities=entities, train=train, valid=valid, test=test)

    @cached_property
    def training_queries(self) -> Queries:
        """Both queries of every training triple, with all their training answers."""
        return Queries.of(self.train, self.num_relations)

    @cached_property
    def known_queries(self) -> Queries:
        """The same over all three splits: what filtered ranking removes and predictions mark as known."""
        return Queries.of(torch.cat([self.train, self.valid, self.test]), self.num_relations)

    @cached_property
    def _entity_ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.entities)}

    @cached_property
    def _relation_ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.relations)}

    def entity_id(self, name: str) -> int:
        """The id of an entity. Raises InputError, with the nearest names, where there is none."""
        return _lookup(self._entity_ids, name, "entity", self.name)

    def relation_id(self, name: str) -> int:
        """The id of a relation. Raises InputError, with the nearest names, where there is none."""
        return _lookup(self._relation_ids, name, "relation", self.name)

    @classmethod
    def from_triples(
        cls, name: str, train: Sequence[Sequence[str]], valid: Sequence[Sequence[str]], test: Sequence[Sequence[str]]
    ) -> Graph:
        """A graph from named triples; names are numbered in sorted order, whatever the order of the triples.

        Raises InputError where the training split is empty, or valid or test holds a relation training does not.
        """
        frames = [pd.DataFrame(rows, columns=["head", "relation", "tail"], dtype=str) for rows in (train, valid, test)]
        if frames[0].empty:
            raise InputError(f"graph {name!r} has no training triples.")
        relations = sorted(set(frames[0]["relation"]))
        for split, frame in zip(SPLITS[1:], frames[1:], strict=True):
            if unknown := sorted(set(frame["relation"]) - set(relations)):
                raise InputError(
                    f"graph {name!r}: relation {unknown[0]!r} occurs in {split} but never in train, so nothing can be "
                    f"learnt about it; add training triples or remove it."
                )
        entities = sorted(set().union(*(set(f["head"]) | set(f["tail"]) for f in frames)))
        train_ids, valid_ids, test_ids = (_to_ids(frame, pd.Index(entities), pd.Index(relations)) for frame in frames)
        return cls(name, tuple(entities), tuple(relations), train_ids, valid_ids, test_ids)


def _to_ids(frame: pd.DataFrame, entities: pd.Index, relations: pd.Index) -> Tensor:
    columns = [entities.get_indexer(pd.Index(frame["head"])), relations.get_indexer(pd.Index(frame["relation"]))]
    columns.append(entities.get_indexer(pd.Index(frame["tail"])))
    return torch.stack([torch.as_tensor(c, dtype=torch.long) for c in columns], dim=1)


def _lookup(ids: dict[str, int], name: str, kind: str, graph: str) -> int:
    if name not in ids:
        near = get_close_matches(str(name), ids, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(ids)} of them."
        raise InputError(f"graph {graph!r} has no {kind} {name!r}; {hint}")
    return ids[name]


@dataclass(frozen=True)
class Queries:
    """Distinct queries and the sets of their answers, in compressed sparse rows.

    Attributes:
        anchor: the given entity, shape ``(n,)``.
        relation: the relation row, shape ``(n,)``: ``p`` asks for tails, ``p + R`` for heads.
        indptr: shape ``(n + 1,)``; query ``i`` has the answers ``indptr[i]:indptr[i + 1]``.
        answers: entity ids, ascending within a query, shape ``(indptr[-1],)``.
    """

    anchor: Tensor
    relation: Tensor
    indptr: Tensor
    answers: Tensor
    num_relations: int

    @classmethod
    def of(cls, triples: Tensor, num_relations: int) -> Queries:
        """The tail query and the head query of every triple, duplicates merged."""
        head, relation, tail = triples.unbind(1)
        base = int(max(head.max(), tail.max())) + 1
        rows = torch.cat([relation, relation + num_relations])
        keys = torch.unique((rows * base + torch.cat([head, tail])) * base + torch.cat([tail, head]))
        queries, counts = torch.unique_consecutive(keys // base, return_counts=True)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(queries % base, queries // base, indptr, keys % base, num_relations)

    def __len__(self) -> int:
        return len(self.anchor)

    @property
    def counts(self) -> Tensor:
        """Number of answers per query, shape ``(n,)``."""
        return self.indptr.diff()

    @cached_property
    def _keys(self) -> Tensor:
        return self.anchor + self._base * self.relation

    @property
    def _base(self) -> int:
        return int(max(self.anchor.max(), self.answers.max())) + 1

    def positions(self, anchor: Tensor, relation: Tensor) -> Tensor:
        """Where the given queries stand, shape of ``anchor``; -1 for a query without a known answer."""
        keys = anchor + self._base * relation
        found = torch.searchsorted(self._keys, keys).clamp(max=len(self) - 1)
        known = (self.anchor[found] == anchor) & (self.relation[found] == relation)
        return torch.where(known, found, -1)

    def answer_pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All answers of the queries ``index`` (shape ``(b,)``, -1 for none): rows of ``index``, entity ids."""
        counts = torch.where(index >= 0, self.counts[index], 0)
        rows = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        within = torch.arange(len(rows), device=index.device) - (counts.cumsum(0) - counts)[rows]
        return rows, self.answers[self.indptr[index[rows]] + within]

    def to(self, device: torch.device | str) -> Queries:
        anchor, relation, indptr, answers = (
            x.to(device) for x in (self.anchor, self.relation, self.indptr, self.answers)
        )
        return Queries(anchor, relation, indptr, answers, self.num_relations)


def load_graph(name_or_folder: str | Path) -> Graph:
    """Load a graph from a folder of triples files, or one of PyKEEN's data sets by name.

    A folder holds ``train``, ``valid`` and ``test``, each as ``.txt`` or ``.tsv``, plain or gzipped (``.gz``): one
    triple a line, ``head TAB relation TAB tail``, UTF-8, no header. A bare name is looked up first in the folder that
    the environment variable ``KGPYRO_DATA`` names, then as a path, then among PyKEEN's data sets.

    Raises:
        InputError: no such folder or data set, a missing or empty split, or a malformed line (named by file and line).
    """
    roots = [Path(os.environ["KGPYRO_DATA"])] if os.environ.get("KGPYRO_DATA") else []
    for folder in [*(root / name_or_folder for root in roots), Path(name_or_folder)]:
        if folder.is_dir():
            splits = [_read_triples(_split_file(folder, split)) for split in SPLITS]
            source = str(name_or_folder) if folder.parent in roots else str(folder.resolve())
            return replace(Graph.from_triples(folder.resolve().name, *splits), source=source)
    return replace(_load_pykeen(str(name_or_folder), roots), source=str(name_or_folder))


def _split_file(folder: Path, split: str) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / (split + suffix)).is_file():
            return path
    raise InputError(f"{folder} has no {split} split: expected {split}{' or '.join(SUFFIXES)}.")


def _read_triples(path: Path) -> list[list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as lines:
            rows = [line.rstrip("\r\n").split("\t") for line in lines]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as {'gzipped ' * (path.suffix == '.gz')}UTF-8 text: {error}."
        ) from error
    triples = [row for row in rows if row != [""]]
    if not triples:
        raise InputError(f"{path} is empty; it should hold one triple a line: head TAB relation TAB tail.")
    if any(len(row) != 3 or not all(row) for row in triples):
        number, row = next((i, r) for i, r in enumerate(rows, 1) if r != [""] and (len(r) != 3 or not all(r)))
        what = f"{len(row)} tab-separated columns" if len(row) != 3 else "an empty name"
        raise InputError(f"{path}, line {number}: {what}; expected head TAB relation TAB tail.")
    return triples


def _load_pykeen(name: str, roots: Iterable[Path]) -> Graph:
    from pykeen.datasets import dataset_resolver  # imported here: it takes seconds, and folders do not need it

    resolver_key = dataset_resolver.normalize(name)
    if resolver_key not in dataset_resolver.lookup_dict:
        here = [p.name for root in roots if root.is_dir() for p in sorted(root.iterdir()) if p.is_dir()]
        choices = here + sorted(dataset_resolver.lookup_dict)
        near = get_close_matches(resolver_key, choices, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(choices)}."
        raise InputError(f"unknown data set {name!r}: neither a folder nor one of PyKEEN's; {hint}")
    dataset = dataset_resolver.make(resolver_key)
    try:
        factory = dataset.training  # downloads where the files do not ship with PyKEEN
    except Exception as error:  # whatever the network or PyKEEN's cache throws
        raise InputError(f"PyKEEN could not provide data set {name!r}: {error}") from error
    files = [Path(getattr(dataset, f"{s}_path", None) or "") for s in ("training", "validation", "testing")]
    if all(file.is_file() and file.name.endswith(SUFFIXES) for file in files):
        # PyKEEN drops triples whose entities training lacks; read from its files they are all there
        return Graph.from_triples(resolver_key, *(_read_triples(file) for file in files))
    entities, relations = factory.entity_id_to_label, factory.relation_id_to_label
    splits = [
        [(entities[h], relations[r], entities[t]) for h, r, t in part.mapped_triples.tolist()]
        for part in (factory, dataset.validation, dataset.testing)
    ]
    return Graph.from_triples(resolver_key, *splits)
