"""From named triples to ids, and to confidences where they come with such."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from reprlib import Repr

import numpy as np
import torch
from torch import Tensor

from kgpyro.errors import InputError

SHORT = Repr()
SHORT.maxstring = 100  # characters of a name in messages


def place_of(file: object, kind: str, number: int) -> str:
    """What messages call a line of a file, or a row of a list."""
    return f"{file}, {kind} {number}"


def rows_of(triples: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Triples as lists of strings."""
    return ([str(name) for name in row] for row in triples)


def encode(
    rows: Iterable[list[str]],
    where: Callable[[int], str],
    entities: dict[str, int],
    relations: dict[str, int],
    complete: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Ids of named triples, shape ``(n, 3)``, in the order in which names first occur; new names go into the tables.

    And the confidences of all, shape ``(n,)``, float64, where rows have a fourth column; else None.

    Args:
        complete: a relation that the table lacks is refused.
    """
    ids, sure = array("q"), array("d")
    for number, row in enumerate(rows, 1):
        if row == [""]:
            continue  # a blank line
        if len(row) == 4 and 3 * len(sure) == len(ids):
            sure.append(_confidence(row.pop(), partial(where, number)))
        elif len(row) != 3 or len(sure):
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
    triples = torch.from_numpy(np.array(ids, dtype=np.int64)).reshape(-1, 3)
    return triples, torch.from_numpy(np.array(sure)) if len(sure) else None


def _confidence(text: str, where: Callable[[], str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(
            f"{where()}: 4 tab-separated columns, the last of which, {SHORT.repr(text)}, is no confidence from 0 to 1; "
            f"expected head TAB relation TAB tail."
        )
    return value
