"""Knowledge graphs: entities, relations, the triples of the three splits, and their queries.

A *query* asks for one end of a triple: ``(head, relation, ?)`` or ``(?, relation, tail)``. The second kind is written
as the tail query ``(tail, relation + R, ?)`` of the inverse relation (reciprocal relations, Lacroix et al. 2018), so
that every query is an anchor, a relation row in ``0 … 2R-1`` and a set of answers, whether or not a model gives
inverse relations latents of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.encoding import SHORT, encode, place_of, rows_of
from kgpyro.data.queries import Queries
from kgpyro.display import as_html
from kgpyro.errors import InputError
from kgpyro.files import write_text

SPLITS = ("train", "valid", "test")
COLUMNS = ("head", "relation", "tail")
MOST_QUERIES = 10_000_000  # in a full closed world


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
        confidences: by split, how sure the source is of each triple, from 0 to 1, shape ``(n,)``, where it says so:
            an uncertain graph, whose confidences are the data (Chen et al. 2019).
    """

    name: str
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    source: str = ""
    negatives: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    confidences: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

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
            if split in self.confidences:
                found.update(self.confidences[split].cpu().contiguous().numpy().tobytes() + b";")
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

        def known(triples: Tensor) -> Tensor:
            return self.seen[triples[:, [0, 2]]].all(1)

        def among(triples: Tensor) -> Tensor:
            kept = triples[known(triples)]
            return torch.stack([ids[kept[:, 0]], kept[:, 1], ids[kept[:, 2]]], dim=1)

        entities = tuple(name for name, seen in zip(self.entities, self.seen.tolist(), strict=True) if seen)
        train, valid, test = among(self.train), among(self.valid), among(self.test)
        negatives = {split: among(triples) for split, triples in self.negatives.items()}
        sure = {split: values[known(getattr(self, split))] for split, values in self.confidences.items()}
        graph = replace(self, entities=entities, train=train, valid=valid, test=test)
        return replace(graph, negatives=negatives, confidences=sure)

    @cached_property
    def training_queries(self) -> Queries:
        """Both queries of every training triple, with all their training answers."""
        return Queries.of(self.train, self.num_relations, self.confidences.get("train"))

    def queries_of(self, closed_world: str) -> Queries:
        """What a fit sums over: the :attr:`training_queries` (``local``), or those of every symbol (``full``).

        Raises InputError where the latter are too many.
        """
        if closed_world == "local":
            return self.training_queries
        if (number := 2 * self.num_relations * self.num_entities) > MOST_QUERIES:
            raise InputError(
                f"`closed_world` full asks all {number:,} queries of graph {self.name!r}, and {MOST_QUERIES:,} are the "
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

        A fourth element of every triple of a split is its confidence. A triple that a split holds twice is one fact:
        the first stays.

        Raises InputError where the training split is empty, a name is empty, valid or test holds a relation that
        training does not, or negatives name what the graph has not.
        """
        tables = ((rows_of(rows) for rows in (train, valid, test)), (f"graph {name!r}, {split}" for split in SPLITS))
        graph = cls._encoded(
            name, [(rows, partial(place_of, where, "row")) for rows, where in zip(*tables, strict=True)]
        )
        if not len(graph.train):
            raise InputError(f"graph {name!r} has no training triples.")
        return replace(graph, negatives={split: graph.ids(rows) for split, rows in (negatives or {}).items()})

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame, *, name: str = "graph", holdout: float = 0.1, seed: int = 0) -> Graph:
        """A graph from a table of triples.

        Args:
            frame: columns ``head``, ``relation`` and ``tail``; where the facts are uncertain ``confidence``, from 0 to
                1; and where the splits are given, ``split``: train, valid or test. Other columns do not count.
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
        columns = [*COLUMNS, *(["confidence"] if "confidence" in frame.columns else [])]
        missing = frame[columns].isna().any(axis=1).to_numpy()
        if missing.any():
            what = " or confidence" if len(columns) > 3 else ""
            where = frame.index[int(missing.argmax())]
            raise InputError(f"row {where!r} of the table has no head, relation or tail{what}.")
        rows = frame[columns].astype(str)
        if "split" in frame.columns:
            if wrong := set(frame["split"]) - set(SPLITS):
                raise InputError(f"column 'split' has {min(map(repr, wrong))}; it says {', '.join(SPLITS)}.")
            return cls.from_triples(name, *(rows[frame["split"] == split].to_numpy().tolist() for split in SPLITS))
        whole = cls.from_triples(name, rows.to_numpy().tolist(), [], [])
        if holdout == 0:
            return whole
        held = _held_out(whole.train, round(holdout * len(whole.train)), seed)
        if not len(held):
            raise InputError(
                f"graph {name!r}: holding any of its {len(whole.train)} facts out leaves an entity or relation without "
                f"one; give a column 'split', or holdout=0."
            )
        valid, test = whole.train[held[0::2]], whole.train[held[1::2]]
        left = torch.ones(len(whole.train), dtype=torch.bool).index_fill(0, held, False)
        sure = {
            split: whole.confidences["train"][part]
            for split, part in (("train", left), ("valid", held[0::2]), ("test", held[1::2]))
            if whole.confidences
        }
        return replace(whole, train=whole.train[left], valid=valid, test=test, confidences=sure)

    def to_dataframe(self) -> pd.DataFrame:
        """All facts by name: columns ``head``, ``relation``, ``tail`` and ``split`` (train, valid or test)."""
        rows = torch.cat([getattr(self, split) for split in SPLITS])
        where = np.repeat(SPLITS, [len(getattr(self, split)) for split in SPLITS])
        frame = pd.DataFrame(self.names(rows), columns=list(COLUMNS)).assign(split=where)
        if self.confidences:
            frame["confidence"] = torch.cat([self.confidence(split) for split in SPLITS]).numpy()
        return frame

    def confidence(self, split: str) -> Tensor:
        """The confidence of every triple of a split, shape ``(n,)``, float64: 1 where nothing is said of it."""
        if split in self.confidences:
            return self.confidences[split]
        return torch.ones(len(getattr(self, split)), dtype=torch.float64)

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
        for split, values in self.confidences.items():
            rows = zip(self.names(getattr(self, split)), values.tolist(), strict=True)
            texts[f"{split}.txt"] = "".join("\t".join((*row, repr(value))) + "\n" for row, value in rows)
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
        found = [encode(*split, entities, relations, complete=i > 0) for i, split in enumerate(splits)]
        (train, _), (valid, _), (test, _) = found
        graph = cls(name, tuple(sorted(entities)), tuple(sorted(relations)), train, valid, test)
        rank = [torch.empty(len(names), dtype=torch.long) for names in (entities, relations)]
        for ids, table, names in zip(rank, (entities, relations), (graph.entities, graph.relations), strict=True):
            ids[torch.tensor([table[name] for name in names], dtype=torch.long)] = torch.arange(len(names))
        parts = [
            torch.stack([rank[0][t[:, 0]], rank[1][t[:, 1]], rank[0][t[:, 2]]], dim=1) for t in (train, valid, test)
        ]
        firsts = [np.sort(np.unique(graph._keys(part).numpy(), return_index=True)[1]) for part in parts]
        train, valid, test = (part[torch.from_numpy(first)] for part, first in zip(parts, firsts, strict=True))
        sure = {
            split: confidence[torch.from_numpy(first)]
            for split, (_, confidence), first in zip(SPLITS, found, firsts, strict=True)
            if confidence is not None
        }
        return replace(graph, train=train, valid=valid, test=test, confidences=sure)


def _held_out(triples: Tensor, each: int, seed: int) -> Tensor:
    """Twice ``each`` random triples, or as many as leave every entity and relation a triple, shape ``(m,)``."""
    ends, relations = torch.bincount(triples[:, [0, 2]].flatten()).tolist(), torch.bincount(triples[:, 1]).tolist()
    found: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(triples)).tolist():
        head, relation, tail = triples[i].tolist()
        ends[head], ends[tail], relations[relation] = ends[head] - 1, ends[tail] - 1, relations[relation] - 1
        if len(found) < 2 * each and ends[head] and ends[tail] and relations[relation]:
            found.append(i)
        else:
            ends[head], ends[tail], relations[relation] = ends[head] + 1, ends[tail] + 1, relations[relation] + 1
    return torch.tensor(found, dtype=torch.long)


def _lookup(ids: dict[str, int], name: str, kind: str, graph: str) -> int:
    if name not in ids:
        near = get_close_matches(str(name)[: SHORT.maxstring], ids, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(ids)} of them."
        raise InputError(f"graph {graph!r} has no {kind} {SHORT.repr(name)}; {hint}")
    return ids[name]
