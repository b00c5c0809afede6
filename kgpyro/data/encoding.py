"""From named triples to ids, and to confidences where they come with such."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable
from functools import partial
from reprlib import Repr
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kgpyro.errors import InputError

SHORT = Repr()
SHORT.maxstring = 100  # characters of a name in messages


class Rows(NamedTuple):
    """Named triples as a source has them.

    Attributes:
        rows: head, relation, tail, and of an uncertain graph a confidence; ``[""]`` for a blank line.
        where: what messages call the i-th of them, from 1.
        tabs: whether tabs separate their columns.
    """

    rows: Iterable[list[str]] = ()
    where: Callable[[int], str] = "row {}".format
    tabs: bool = False

    def expected(self, number: int) -> str:
        """What messages say of a row with so many columns."""
        if self.tabs:
            return f"{number} tab-separated columns; expected head TAB relation TAB tail"
        return f"{number} columns; expected head, relation, tail"


def place_of(file: object, kind: str, number: int) -> str:
    """What messages call a line of a file, or a row of a list."""
    return f"{file}, {kind} {number}"


def name_of(value: object) -> str:
    """A value as a name: text as it is, a whole number without a point, so that 2.0 is what 2 is."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def encode(
    given: Rows,
    entities: dict[str, int],
    relations: dict[str, int],
    complete: bool = False,
    lost: list[str] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Ids of named triples, shape ``(n, 3)``, in the order in which names first occur; new names go into the tables.

    And the confidences of all, shape ``(n,)``, float64, where rows have a fourth column; else None.

    Args:
        complete: a relation that the table lacks is refused.
        lost: where given, such a row is left out instead, and its relation joins this list.
    """
    ids, sure = array("q"), array("d")
    for number, row in enumerate(given.rows, 1):
        if row == [""]:
            continue  # a blank line
        if len(row) == 4 and 3 * len(sure) == len(ids):
            sure.append(_confidence(row.pop(), partial(given.where, number), given))
        elif len(row) != 3 or len(sure):
            raise InputError(f"{given.where(number)}: {given.expected(len(row))}.")
        head, relation, tail = row
        if not (head.strip() and relation.strip() and tail.strip()):
            raise InputError(f"{given.where(number)}: an empty name; {given.expected(3).partition('; ')[2]}.")
        if complete and relation not in relations:
            if lost is None:
                raise InputError(
                    f"{given.where(number)}: relation {SHORT.repr(relation)} occurs here but never in train, so "
                    "nothing can be learnt about it; add training triples or remove it."
                )
            lost.append(relation)
            del sure[len(ids) // 3 :]
            continue
        ids.append(entities.setdefault(head, len(entities)))
        ids.append(relations.setdefault(relation, len(relations)))
        ids.append(entities.setdefault(tail, len(entities)))
    triples = torch.from_numpy(np.array(ids, dtype=np.int64)).reshape(-1, 3)
    return triples, torch.from_numpy(np.array(sure)) if len(sure) else None


def _confidence(text: str, where: Callable[[], str], given: Rows) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        number, _, expected = given.expected(4).partition("; ")
        raise InputError(
            f"{where()}: {number}, the last of which, {SHORT.repr(text)}, is no confidence from 0 to 1; {expected}, "
            "or name the columns by `columns`."
        )
    return value
