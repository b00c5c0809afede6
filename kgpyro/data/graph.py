"""Knowledge graphs: entities, relations, the triples of the three splits, and their queries.

A *query* asks for one end of a triple: ``(head, relation, ?)`` or ``(?, relation, tail)``. The second kind is written
as the tail query ``(tail, relation + R, ?)`` of the inverse relation (Lacroix et al. 2018), whether or not a model
gives that latents of its own: every query is an anchor, a relation row in ``0 … 2R-1`` and a set of answers.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import compress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.queries import Queries
from kgpyro.data.splitting import held_out, is_misordered, read_backwards
from kgpyro.data.tables import CALLED, COLUMNS, SHORT, SPLITS, Rows, encode, name_of, parted, text_of
from kgpyro.display import as_html
from kgpyro.errors import InputError
from kgpyro.files import write_text
from kgpyro.names import import_dotted

MOST_QUERIES = 10_000_000  # in a full closed world


class _OfAnything(type):
    def __call__(cls, *given: Any, **named: Any) -> Any:
        if len(given) == 1 and "train" not in named:
            return import_dotted("kgpyro.data.reading:load_graph", "reader")(*given, **named)
        return super().__call__(*given, **named)


@dataclass(frozen=True, eq=False)
class Graph(metaclass=_OfAnything):
    """A knowledge graph with a training, a validation and a test split, each a set of facts.

    ``Graph(source)`` is ``load_graph(source)``: of a folder, a file, a table, a list of triples, a data set by name.

    Graphs are equal that have the same names and facts, in whatever order, with the same confidences and negatives.

    Attributes:
        name: what messages and results call it.
        entities: names; the position is the id. Entities that occur only in valid or test are entities too.
        relations: names; the position is the id.
        train: triple ids ``(head, relation, tail)``, shape ``(n, 3)``, dtype long; likewise ``valid`` and ``test``.
        source: what :func:`load_graph` finds it by again; empty for a graph made in Python.
        negatives: by split, triples that people found false, shape ``(m, 3)``, where the graph comes with such.
        confidences: by split, how sure the source is of each triple, from 0 to 1, shape ``(n,)``, where it says so:
            an uncertain graph, whose confidences are the data (Chen et al. 2019).
        notes: what reading it left out or took for something else, a sentence each.
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
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __eq__(self, other: object) -> bool:
        return self._content == other._content if isinstance(other, Graph) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content)

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
    def _content(self) -> tuple[str, ...]:
        """What equal graphs have in common."""
        ordered = self._taking({split: self._keys(getattr(self, split)).argsort() for split in SPLITS})
        false = {split: self._keys(rows).sort().values.tolist() for split, rows in self.negatives.items() if len(rows)}
        return ordered.checksum, str(sorted(false.items()))

    def _taking(self, index: Mapping[str, Tensor], one: str = "") -> Graph:
        """This graph with these facts of each split, by place or mask, or all from ``one``, and their confidences."""
        facts: dict[str, Any] = {split: getattr(self, one or split)[i] for split, i in index.items()}
        given = {split: self.confidences.get(one or split) for split in index}
        sure = {split: values[index[split]] for split, values in given.items() if values is not None}
        return replace(self, **facts, confidences={**self.confidences, **sure})

    @cached_property
    def leakage(self) -> dict[str, int]:
        """How many facts of ``valid`` and ``test`` the splits before them hold too, which should be none."""
        keys = {split: self._keys(getattr(self, split)) for split in SPLITS}
        before = {"valid": keys["train"], "test": torch.cat([keys["train"], keys["valid"]])}
        return {split: int(torch.isin(keys[split], other).sum()) for split, other in before.items()}

    @cached_property
    def inverse_leakage(self) -> dict[tuple[str, str], int]:
        """How many test facts are training facts read backwards, by relation of the one and of the other.

        Only relations count that are inverse to each other, or symmetric; see ``data.splitting.read_backwards``.
        """
        return {(self.relations[r], self.relations[back]): number for (r, back), number in self._backwards[0].items()}

    @cached_property
    def _backwards(self) -> tuple[dict[tuple[int, int], int], int]:
        return read_backwards(self.train, self.test, self.num_entities)

    @property
    def problems(self) -> list[str]:
        """What makes its metrics doubtful, and what reading it left out, a sentence each."""
        found = [
            f"{number} of the {len(getattr(self, split))} {split} triples stand in an earlier split too (leakage), "
            f"which makes the {split} metrics too good, or meaningless; remove them."
            for split, number in self.leakage.items()
            if number
        ]
        pairs = sorted(self.inverse_leakage.items(), key=lambda pair: -pair[1])
        if (total := self._backwards[1]) > len(self.test) / 10:
            most = ", ".join(f"{number} of {SHORT.repr(r)} as {SHORT.repr(back)}" for (r, back), number in pairs[:3])
            found.append(
                f"{total} of the {len(self.test)} test triples are training triples read backwards (inverse leakage: "
                f"{most}{', …' * (len(pairs) > 3)}), which test metrics then measure before all."
            )
        if is_misordered(self.train, len(self._entity_ids.keys() & self._relation_ids.keys())):
            found.append(
                f"there are nearly as many relations ({self.num_relations}) as heads; if the columns are head, tail, "
                "relation, say so: `columns` 0,2,1."
            )
        return [*found, *self.notes]

    def _keys(self, triples: Tensor) -> Tensor:
        """A number for every triple, by which equal ones are found, shape ``(n,)``."""
        head, relation, tail = triples.unbind(1)
        return (head * self.num_relations).add_(relation).mul_(self.num_entities).add_(tail)

    @cached_property
    def seen(self) -> Tensor:
        """Which entities training has seen, shape ``(E,)``, bool."""
        return self.frequency > 0

    @cached_property
    def frequency(self) -> Tensor:
        """In how many places of training triples each entity is, head or tail, shape ``(E,)``."""
        heads, tails = (torch.bincount(self.train[:, i], minlength=self.num_entities) for i in (0, 2))
        return heads.add_(tails)

    def training_part(self) -> Graph:
        """The graph of the entities that training has seen, and the triples among them."""

        def among(triples: Tensor) -> Tensor:
            return self.seen[triples[:, [0, 2]]].all(1)

        part = self._taking({split: among(getattr(self, split)) for split in SPLITS})
        part = replace(part, negatives={split: rows[among(rows)] for split, rows in self.negatives.items()})
        entities, ids = compress(self.entities, self.seen.tolist()), self.seen.long().cumsum(0) - 1
        return part._renumbered(entities, self.relations, ids, torch.arange(self.num_relations))

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
        the first stays, with the mean of their confidences.

        Raises InputError where the training split is empty, a name is empty, valid or test holds a relation that
        training does not, or negatives name what the graph has not.
        """
        named = ((list(map(name_of, row)) for row in rows) for rows in (train, valid, test))
        where = (partial("graph {!r}, {}, row {}".format, name, split) for split in SPLITS)
        graph = cls._encoded(name, dict(zip(SPLITS, map(Rows, named, where), strict=True)))
        return replace(graph, negatives={split: graph.ids(rows) for split, rows in (negatives or {}).items()})

    @classmethod
    def from_dataframe(cls, frame: pd.DataFrame, *, name: str = "graph", holdout: float = 0.1, seed: int = 0) -> Graph:
        """A graph from a table of triples; see :func:`.load_graph` for its columns.

        Args:
            frame: the table; a column ``split`` says train, valid or test.
            name: what messages and results call the graph.
            holdout: without such a column, the share of all facts that goes into valid, and as many into test.
            seed: of that choice; see :meth:`hold_out`.
        """
        graph = replace(cls(frame), name=name)  # type: ignore[call-arg, arg-type]
        given = "split" in {str(column).strip().lower() for column in frame.columns}
        return graph if given else graph.hold_out(holdout, seed)

    def hold_out(self, share: float, seed: int = 0) -> Graph:
        """This graph with some of its training facts, chosen at random, in each of valid and test that is empty.

        Every entity and relation keeps a fact in train; where that leaves less to hold out, :attr:`problems` says so.

        Args:
            share: of the training facts, for each split, from 0 to below 0.5.
            seed: of the choice.
        """
        if not isinstance(share, Real) or not 0 <= float(share) < 0.5:
            raise InputError(f"`holdout` is a share from 0 to below 0.5, for each of valid and test; got {share}.")
        if not isinstance(seed, Integral) or seed < 0:
            raise InputError(f"`seed` is a whole number from 0; got {seed!r}.")
        if not share:
            return self
        empty = [split for split in SPLITS[1:] if not len(getattr(self, split))]
        number = max(1, round(share * len(self.train))) * len(empty)
        held = held_out(self.train, number, seed)
        left = torch.ones(len(self.train), dtype=torch.bool).index_fill(0, held, False)
        note = [] if empty else ["`holdout` holds nothing out: valid and test are given."]
        if len(held) < number:
            why = "every entity and relation keeps a fact in training"
            note = [f"{number} of the {len(left)} facts were to be held out, but only {len(held)} are: {why}."]
        index = {"train": left} | {split: held[i :: len(empty)] for i, split in enumerate(empty)}
        return replace(self._taking(index, "train"), notes=(*self.notes, *note))

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
        sure = self.confidences.get(split)
        return torch.ones(len(getattr(self, split)), dtype=torch.float64) if sure is None else sure

    def to_folder(self, folder: str | Path) -> None:
        """Write the triples as files that :func:`load_graph` reads, such as ``train.txt`` and ``valid_negatives.txt``.

        An empty split has no file. Raises InputError for a name that such files cannot hold, a folder that holds other
        splits already, or one that cannot be written to.
        """
        if bad := next((name for name in (*self.entities, *self.relations) if re.search(r"[\t\n\r\0]", name)), None):
            raise InputError(f"the name {SHORT.repr(bad)} has a tab or line break; files of triples cannot hold it.")
        rows: dict[str, list[Any]] = {f"{s}_negatives.txt": self.names(false) for s, false in self.negatives.items()}
        for split in SPLITS:
            rows[f"{split}.txt"] = self.names(getattr(self, split))
            if split in self.confidences:
                pairs = zip(rows[f"{split}.txt"], self.confidences[split].tolist(), strict=True)
                rows[f"{split}.txt"] = [(*row, repr(value)) for row, value in pairs]
        texts = {file: text_of(each) for file, each in rows.items() if each}
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for there in Path(folder).iterdir():
                if parted(there)[0].removesuffix("_negatives") in CALLED and there.name not in texts:
                    raise InputError(f"{folder} holds {there.name}, which is not this graph's; name another folder.")
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
    def _encoded(cls, name: str, splits: Mapping[str, Rows], notes: Sequence[str] = (), lenient: bool = False) -> Graph:
        """The graph of the rows of its splits; a ``lenient`` one goes without later relations that training lacks."""
        entities: dict[str, int] = {}
        relations: dict[str, int] = {}
        lost: list[str] | None = [] if lenient else None
        found = [encode(splits.get(split, Rows()), entities, relations, split != "train", lost) for split in SPLITS]
        if not len(found[0][0]):
            raise InputError(f"graph {name!r} has no training triples.")
        if lost:
            lack = "whose relation training lacks are left out"
            notes = [*notes, f"{len(lost)} facts of valid and test {lack}, such as of {SHORT.repr(lost[0])}."]
        ids: dict[str, Any] = dict(zip(SPLITS, (triples for triples, _ in found), strict=True))
        sure = {split: values for split, (_, values) in zip(SPLITS, found, strict=True) if values is not None}
        graph = cls(name, tuple(entities), tuple(relations), **ids, notes=tuple(notes))
        each = {s: np.unique(graph._keys(t).numpy(), return_index=True, return_inverse=True) for s, t in ids.items()}
        means = {s: (np.bincount(each[s][2], y) / np.bincount(each[s][2]))[each[s][2]] for s, y in sure.items()}
        graph = replace(graph, confidences={split: torch.from_numpy(mean) for split, mean in means.items()})
        graph = graph._taking({split: torch.from_numpy(np.sort(first)) for split, (_, first, _) in each.items()})
        return graph.renamed(graph.entities, graph.relations)

    def renamed(self, entities: Sequence[str], relations: Sequence[str]) -> Graph:
        """The same facts with these names for its entities and relations, numbered in sorted order."""
        orders = [sorted(range(len(names)), key=names.__getitem__) for names in (entities, relations)]
        rank = [torch.tensor(order, dtype=torch.long).argsort() for order in orders]
        names = [map(given.__getitem__, order) for given, order in zip((entities, relations), orders, strict=True)]
        return self._renumbered(names[0], names[1], rank[0], rank[1])

    def _renumbered(
        self, entities: Iterable[str], relations: Iterable[str], entity_ids: Tensor, relation_ids: Tensor
    ) -> Graph:
        """The same facts with these names, and the ids of before looked up in these tables."""

        def moved(triples: Tensor) -> Tensor:
            head, relation, tail = triples.unbind(1)
            return torch.stack([entity_ids[head], relation_ids[relation], entity_ids[tail]], dim=1)

        facts: dict[str, Any] = {split: moved(getattr(self, split)) for split in SPLITS}
        negatives = {split: moved(rows) for split, rows in self.negatives.items()}
        return replace(self, entities=tuple(entities), relations=tuple(relations), **facts, negatives=negatives)


def _lookup(ids: dict[str, int], name: str, kind: str, graph: str) -> int:
    given = name if isinstance(name, str) else name_of(name)
    if given not in ids:
        near = get_close_matches(given[: SHORT.maxstring], ids, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {len(ids)} of them."
        for form in ("NFKC", "NFD", "NFC"):
            if unicodedata.normalize(form, given) in ids:
                hint = f"it has the same name in another Unicode form ({form}): unicodedata.normalize({form!r}, name)."
        raise InputError(f"graph {graph!r} has no {kind} {SHORT.repr(name)}; {hint}")
    return ids[given]
