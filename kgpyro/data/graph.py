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
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from reprlib import Repr

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.display import as_html
from kgpyro.errors import InputError
from kgpyro.files import write_text

SPLITS = ("train", "valid", "test")
COLUMNS = ("head", "relation", "tail")
SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
BLOCK = 1 << 22  # bytes of a file that are read at once, and the longest line
MOST_QUERIES = 10_000_000  # in a full closed world
SHORT = Repr()
SHORT.maxstring = 100  # characters of a name in messages


@dataclass(frozen=True)
class Graph:
    """A knowledge graph with a training, a validation and a test split, each a set of facts.

    Attributes:
        name: what messages and results call it.
        entities: names; the position is the id. Entities that occur only in valid or test are entities too.
        relations: names; the position is the id.
        train: triple ids ``(head, relation, tail)``, shape ``(n, 3)``, dtype long; likewise ``valid`` and ``test``.
        source: what :func:`load_graph` finds it by again; empty for a graph made in Python.
        negatives: by split, triples that people found false, shape ``(m, 3)``, where the graph comes with such.
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    source: str = ""
    negatives: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        splits = ", ".join(f"{len(getattr(self, split))} {split}" for split in SPLITS)
        return f"Graph({self.name!r}: {self.num_entities} entities, {self.num_relations} relations; {splits} triples)"

    def _repr_html_(self) -> str:
        values: dict[str, object] = {"entities": self.num_entities, "relations": self.num_relations}
        values |= {f"{split} triples": len(getattr(self, split)) for split in SPLITS}
        few = self.train[:5]
        examples = pd.DataFrame(self.names(few), columns=list(COLUMNS), index=pd.RangeIndex(len(few), name="train"))
        return as_html(f"Graph {self.name}", values, examples, notes="\n".join(self.problems))

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
    def leakage(self) -> dict[str, int]:
        """How many facts of ``valid`` and ``test`` the splits before them hold too, which should be none."""
        keys = {split: self._keys(getattr(self, split)) for split in SPLITS}
        before = {"valid": keys["train"], "test": torch.cat([keys["train"], keys["valid"]])}
        return {split: int(torch.isin(keys[split], other).sum()) for split, other in before.items()}

    @property
    def problems(self) -> list[str]:
        """What makes its metrics doubtful, a sentence each."""
        return [
            f"{found} of the {len(getattr(self, split))} {split} triples stand in an earlier split too (leakage), "
            f"which makes the {split} metrics too good, or meaningless; remove them."
            for split, found in self.leakage.items()
            if found
        ]

    def _keys(self, triples: Tensor) -> Tensor:
        """A number for every triple, by which equal ones are found, shape ``(n,)``."""
        head, relation, tail = triples.unbind(1)
        return (head * self.num_relations + relation) * self.num_entities + tail

    @cached_property
    def seen(self) -> Tensor:
        """Which entities training has seen, shape ``(E,)``, bool."""
        return self.frequency > 0

    @cached_property
    def frequency(self) -> Tensor:
        """In how many places of training triples each entity is, head or tail, shape ``(E,)``."""
        return torch.bincount(self.train[:, [0, 2]].flatten(), minlength=self.num_entities)

    def training_part(self) -> Graph:
        """The graph of the entities that training has seen, and the triples among them."""
        ids = self.seen.long().cumsum(0) - 1

        def among(triples: Tensor) -> Tensor:
            kept = triples[self.seen[triples[:, [0, 2]]].all(1)]
            return torch.stack([ids[kept[:, 0]], kept[:, 1], ids[kept[:, 2]]], dim=1)

        entities = tuple(name for name, seen in zip(self.entities, self.seen.tolist(), strict=True) if seen)
        train, valid, test = among(self.train), among(self.valid), among(self.test)
        negatives = {split: among(triples) for split, triples in self.negatives.items()}
        return replace(self, entities=entities, train=train, valid=valid, test=test, negatives=negatives)

    @cached_property
    def training_queries(self) -> Queries:
        """Both queries of every training triple, with all their training answers."""
        return Queries.of(self.train, self.num_relations)

    def queries_of(self, closed_world: str) -> Queries:
        """What a fit sums over: the :attr:`training_queries` (``local``), or those of every symbol (``full``).

        Raises InputError where the latter are too many.
        """
        if closed_world == "local":
            return self.training_queries
        if (number := 2 * self.num_relations * self.num_entities) > MOST_QUERIES:
            raise InputError(
                f"--closed-world full asks all {number:,} queries of graph {self.name!r}, and {MOST_QUERIES:,} are the "
                "most; leave it out."
            )
        return self.training_queries.with_unanswered(self.num_entities)

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
        cls,
        name: str,
        train: Sequence[Sequence[str]],
        valid: Sequence[Sequence[str]],
        test: Sequence[Sequence[str]],
        *,
        negatives: Mapping[str, Sequence[Sequence[str]]] | None = None,
    ) -> Graph:
        """A graph from named triples; names are numbered in sorted order, whatever the order of the triples.

        A triple that a split holds twice is one fact: the first stays.

        Raises InputError where the training split is empty, a name is empty, valid or test holds a relation that
        training does not, or negatives name what the graph has not.
        """
        tables = ((_rows(rows) for rows in (train, valid, test)), (f"graph {name!r}, {split}" for split in SPLITS))
        graph = cls._encoded(name, [(rows, partial(_at, where, "row")) for rows, where in zip(*tables, strict=True)])
        if not len(graph.train):
            raise InputError(f"graph {name!r} has no training triples.")
        return replace(graph, negatives={split: graph.ids(rows) for split, rows in (negatives or {}).items()})

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame, *, name: str = "graph", holdout: float = 0.1, seed: int = 0) -> Graph:
        """A graph from a table of triples.

        Args:
            frame: columns ``head``, ``relation`` and ``tail``, and where the splits are given, ``split``: train, valid
                or test. Other columns do not count.
            name: what messages and results call the graph.
            holdout: without a ``split`` column, the share of all facts that goes into valid, and as many into test, at
                random, but so that every entity and relation stays in train; at 0 there are no such splits.
            seed: of that choice.

        Raises:
            InputError: a missing column, a missing or empty name (with its row), an unknown split, a relation that
                train lacks, or too few facts to hold any out.
        """
        needed = [column for column in COLUMNS if column not in frame.columns]
        if needed:
            raise InputError(
                f"the table has no column {needed[0]!r}; its columns must be head, relation and tail (and split, where "
                f"it has one), but are {', '.join(map(str, frame.columns)) or 'none'}: rename them."
            )
        if not 0 <= holdout < 0.5:
            raise InputError(
                f"holdout is a share from 0 to below 0.5, once for valid and once for test; got {holdout}."
            )
        missing = frame[list(COLUMNS)].isna().any(axis=1).to_numpy()
        if missing.any():
            raise InputError(f"row {frame.index[int(missing.argmax())]!r} of the table has no head, relation or tail.")
        rows = frame[list(COLUMNS)].astype(str)
        if "split" in frame.columns:
            if wrong := set(frame["split"]) - set(SPLITS):
                raise InputError(f"column 'split' has {min(map(repr, wrong))}; it says {', '.join(SPLITS)}.")
            return cls.from_triples(name, *(rows[frame["split"] == split].to_numpy().tolist() for split in SPLITS))
        whole = cls.from_triples(name, rows.to_numpy().tolist(), [], [])
        if holdout == 0:
            return whole
        from pykeen.triples.splitting import split as shares  # imported here: it takes seconds

        try:
            train, valid, test = shares(whole.train, ratios=[1 - 2 * holdout, holdout, holdout], random_state=seed)
        except ValueError as error:
            raise InputError(
                f"graph {name!r}: holding out twice {holdout:g} of {len(whole.train)} facts leaves an entity or "
                f"relation without any; give a smaller holdout, or a column 'split'."
            ) from error
        return replace(whole, train=train, valid=valid, test=test)

    def to_dataframe(self) -> pd.DataFrame:
        """All facts by name: columns ``head``, ``relation``, ``tail`` and ``split`` (train, valid or test)."""
        rows = torch.cat([getattr(self, split) for split in SPLITS])
        where = np.repeat(SPLITS, [len(getattr(self, split)) for split in SPLITS])
        return pd.DataFrame(self.names(rows), columns=list(COLUMNS)).assign(split=where)

    def to_folder(self, folder: str | Path) -> None:
        """Write the triples as files that :func:`load_graph` reads: ``train.txt``, ``valid.txt`` and ``test.txt``.

        Raises InputError for a name that such files cannot hold, an empty split, or where they cannot be written.
        """
        if bad := next((name for name in (*self.entities, *self.relations) if re.search(r"[\t\n\r\0]", name)), None):
            raise InputError(
                f"the name {SHORT.repr(bad)} has a tab or line break in it; files of triples cannot hold it."
            )
        if empty := next((split for split in SPLITS if not len(getattr(self, split))), None):
            raise InputError(f"graph {self.name!r} has no {empty} triples; a folder needs all three splits.")
        texts = {
            f"{split}.txt": "".join("\t".join(row) + "\n" for row in self.names(getattr(self, split)))
            for split in SPLITS
        }
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                write_text(Path(folder) / file, text)
        except (OSError, UnicodeEncodeError) as error:
            raise InputError(f"the graph cannot be written to {folder}: {error}.") from error

    def names(self, triples: Tensor) -> list[tuple[str, str, str]]:
        """The names of triple ids, shape ``(n, 3)``."""
        return [(self.entities[h], self.relations[r], self.entities[t]) for h, r, t in triples.tolist()]

    def ids(self, triples: Iterable[Sequence[str]]) -> Tensor:
        """Ids of named triples, shape ``(n, 3)``. Raises InputError for a name the graph has not."""
        rows = [[self.entity_id(h), self.relation_id(r), self.entity_id(t)] for h, r, t in triples]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 3)

    @classmethod
    def _encoded(cls, name: str, splits: Sequence[tuple[Iterable[list[str]], Callable[[int], str]]]) -> Graph:
        """The graph of three splits, each its rows and what messages call the i-th of them (from 1)."""
        entities: dict[str, int] = {}
        relations: dict[str, int] = {}
        train = _encode(*splits[0], entities, relations)
        valid, test = (_encode(*split, entities, relations, complete=True) for split in splits[1:])
        graph = cls(name, tuple(sorted(entities)), tuple(sorted(relations)), train, valid, test)
        rank = [torch.empty(len(names), dtype=torch.long) for names in (entities, relations)]
        for ids, table, names in zip(rank, (entities, relations), (graph.entities, graph.relations), strict=True):
            ids[torch.tensor([table[name] for name in names], dtype=torch.long)] = torch.arange(len(names))
        parts = [
            torch.stack([rank[0][t[:, 0]], rank[1][t[:, 1]], rank[0][t[:, 2]]], dim=1) for t in (train, valid, test)
        ]
        firsts = [np.sort(np.unique(graph._keys(part).numpy(), return_index=True)[1]) for part in parts]
        train, valid, test = (part[torch.from_numpy(first)] for part, first in zip(parts, firsts, strict=True))
        return replace(graph, train=train, valid=valid, test=test)


def _at(file: object, kind: str, number: int) -> str:
    return f"{file}, {kind} {number}"


def _rows(triples: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    return ([str(name) for name in row] for row in triples)


def _encode(
    rows: Iterable[list[str]],
    where: Callable[[int], str],
    entities: dict[str, int],
    relations: dict[str, int],
    complete: bool = False,
) -> Tensor:
    """Ids of named triples, shape ``(n, 3)``, in the order in which names first occur; new names go into the tables.

    Args:
        complete: a relation that the table lacks is refused.
    """
    ids = array("q")
    for number, row in enumerate(rows, 1):
        if row == [""]:
            continue  # a blank line
        if len(row) != 3:
            raise InputError(f"{where(number)}: {len(row)} tab-separated columns; expected head TAB relation TAB tail.")
        head, relation, tail = row
        if not (head.strip() and relation.strip() and tail.strip()):
            raise InputError(f"{where(number)}: an empty name; expected head TAB relation TAB tail.")
        if complete and relation not in relations:
            raise InputError(
                f"{where(number)}: relation {SHORT.repr(relation)} occurs here but never in train, so nothing can be "
                f"learnt about it; add training triples or remove it."
            )
        ids.append(entities.setdefault(head, len(entities)))
        ids.append(relations.setdefault(relation, len(relations)))
        ids.append(entities.setdefault(tail, len(entities)))
    return torch.from_numpy(np.array(ids, dtype=np.int64)).reshape(-1, 3)


def _lookup(ids: dict[str, int], name: str, kind: str, graph: str) -> int:
    if name not in ids:
        near = get_close_matches(str(name)[: SHORT.maxstring], ids, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(ids)} of them."
        raise InputError(f"graph {graph!r} has no {kind} {SHORT.repr(name)}; {hint}")
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

    def with_unanswered(self, num_entities: int) -> Queries:
        """These, and all other queries of the entities and relations, without answers."""
        counts = self.counts.new_zeros(2 * self.num_relations * num_entities)
        counts[self.relation * num_entities + self.anchor] = self.counts
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        every = torch.arange(len(counts))
        return Queries(every % num_entities, every // num_entities, indptr, self.answers, self.num_relations)

    def __len__(self) -> int:
        return len(self.anchor)

    @cached_property
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
    triple a line, ``head TAB relation TAB tail``, UTF-8, no header; and, where people have found triples false,
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
    ids = _encode(_lines(path), partial(_at, path, "line"), entities, dict(graph._relation_ids), complete=True)
    for unknown in list(entities)[graph.num_entities :]:
        graph.entity_id(unknown)  # refuses it
    return ids


def _of_files(name: str, files: Sequence[Path]) -> Graph:
    graph = Graph._encoded(name, [(_lines(file), partial(_at, file, "line")) for file in files])
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
