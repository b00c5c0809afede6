"""What a posterior is asked: facts and queries as people give them, as ids; and the numbers that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.graph import COLUMNS, Graph
from kgpyro.data.tables import FRAMES, SHORT, TEXT, name_of, parted, places_of, read_frame, text_frame
from kgpyro.errors import InputError

Facts: TypeAlias = Sequence[Sequence[Any]] | Sequence[str] | pd.DataFrame | Tensor | np.ndarray | str | Path
Queries: TypeAlias = Sequence[Sequence[Any]] | pd.DataFrame | str | Path


def refuse_numbers(**given: Any) -> None:
    """Raise InputError for a number that cannot be: of ``top``, ``most``, ``draws``, ``seed`` and the like."""
    for name, value in given.items():
        if name in ("interval", "above"):
            if not isinstance(value, Real) or not 0 < float(value) < 1:
                raise InputError(f"`{name}` must be between 0 and 1, such as 0.9; got {value!r}.")
        elif not isinstance(value, Integral) or isinstance(value, bool) or value < (name != "seed"):
            if (open_ended := name in ("top", "most")) and value is None:
                continue
            what = "a whole number from 0 on" if name == "seed" else "a positive whole number"
            raise InputError(f"`{name}` must be {what}{', or None for all' * open_ended}; got {value!r}.")


def fact_ids(graph: Graph, triples: Facts) -> Tensor:
    """Ids ``(n, 3)`` of facts: one triple of names, a list of them, a frame, a file, or ids as they are.

    Raises InputError for an unknown name or id, with the number of its fact, and for what are no facts.
    """
    if is_ids(triples):
        return _checked(graph, torch.as_tensor(triples))
    return _looked_up(graph, named_facts(triples))


def named_facts(triples: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """Each fact's place in words and its names, known to a graph or not."""
    found = []
    for where, row in _rows(triples, "fact"):
        if None in row:
            raise InputError(f"{where} lacks a {COLUMNS[row.index(None)]}; for queries there is `answers`.")
        found.append((where, tuple(map(str, row))))
    return found


def query_ids(graph: Graph, queries: Queries) -> Tensor:
    """Ids ``(n, 3)`` of queries, -1 for what is asked.

    Raises InputError, with the number of the query, for an unknown name, or where not two of the three are given.
    """
    rows = list(_rows(queries, "query"))
    for where, row in rows:
        if row.count(None) != 1:
            number = 3 - row.count(None)
            raise InputError(f"{where} gives {number} of head, relation and tail; give two, and None for the third.")
    return _looked_up(graph, rows)


def _is_row(part: Any) -> bool:
    return isinstance(part, (list, tuple, np.ndarray, Tensor))


def is_ids(triples: Facts) -> bool:
    """Whether facts are given by their ids."""
    return isinstance(triples, Tensor) or (isinstance(triples, np.ndarray) and triples.dtype.kind in "iuf")


def _checked(graph: Graph, ids: Tensor) -> Tensor:
    if ids.dim() != 2 or ids.shape[1] != 3 or (ids.is_floating_point() and ids.numel()):
        raise InputError(f"facts by id are whole numbers of shape (n, 3); got {ids.dtype}, {tuple(ids.shape)}.")
    ids, ends = ids.long(), torch.tensor([graph.num_entities, graph.num_relations, graph.num_entities])
    wrong = ((ids.cpu() < 0) | (ids.cpu() >= ends)).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"fact {row} has {COLUMNS[column]} {int(ids[row, column])}; graph {graph.name!r} has ids from 0 to "
            f"{int(ends[column]) - 1} there."
        )
    return ids


def _looked_up(graph: Graph, rows: Iterable[tuple[str, Sequence[str | None]]]) -> Tensor:
    find, found = (graph.entity_id, graph.relation_id, graph.entity_id), []
    for where, row in rows:
        try:
            found.append([-1 if name is None else each(name) for each, name in zip(find, row, strict=True)])
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return torch.tensor(found, dtype=torch.long).reshape(-1, 3)


def _rows(given: Any, what: str) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """Each row's place in words, and its names; None for what is left out."""
    lines: Sequence[Any] = ()
    place = ""
    if isinstance(given, (list, tuple)) and len(given) == 3 and not any(map(_is_row, given)):
        given = [given]  # one alone
    if isinstance(given, (str, Path)):
        given = _read(Path(given))
        place, lines = given.attrs.get("place", ""), given.index
    if isinstance(given, pd.DataFrame):
        if not (places := _roles(given.columns)):
            raise InputError(
                f"a table needs columns head, relation and tail; it has {', '.join(map(str, given.columns)) or 'none'}."
            )
        roles = [given.iloc[:, places[c]] if c in places else [None] * len(given) for c in COLUMNS]
        given = zip(*roles, strict=True)
    for number, row in enumerate(given):
        where = f"{what} {number}{place.format(lines[number])}" if place else f"{what} {number}"
        if isinstance(row, str) or not hasattr(row, "__len__") or len(row) != 3:
            raise InputError(f"{where} is {SHORT.repr(row)}; it must be (head, relation, tail).")
        yield where, tuple(map(_text, row))


def _text(name: Any) -> str | None:
    """A name as the graph has it; None for one that is left out."""
    if name is None or name is pd.NA or (isinstance(name, float) and name != name) or name == "":
        return None
    return name_of(name)


def _roles(header: Iterable[Any]) -> dict[str, int]:
    """Where head, relation and tail stand in a header, by their usual names."""
    found = places_of([str(name) for name in header], None, "")
    return {role: found[role] for role in COLUMNS if role in found}


def _read(path: Path) -> pd.DataFrame:
    """The columns head, relation and tail of a file, its rows by their lines where it is text."""
    kind = parted(path)[1]
    if kind not in (*TEXT, *FRAMES):
        raise InputError(f"{path} must be a {', '.join((*TEXT, *FRAMES))} file, of head, relation and tail.")
    table = text_frame(path, "\t" if kind == ".tsv" else None, 2) if kind in TEXT else read_frame(path)
    if kind in TEXT and len(table):
        if len(_roles(table.iloc[0])) > 1:
            table = table.iloc[1:].set_axis(table.iloc[0].tolist(), axis=1)
        elif table.shape[1] == 3:
            table = table.set_axis(list(COLUMNS), axis=1)
    places = _roles(table.columns)
    table = table.iloc[:, list(places.values())].set_axis(list(places), axis=1).replace("?", None)
    if len(table) and not table.columns.size:
        raise InputError(f"{path} has no columns head, relation and tail.")
    table.attrs["place"] = f" (line {{}} of {path})" if kind in TEXT else ""
    return table if table.columns.size else pd.DataFrame(columns=list(COLUMNS))
