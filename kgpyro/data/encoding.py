"""From named triples to ids, and to confidences where they come with such."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
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
        between: what separates columns, for messages, such as "tab-separated ".
    """

    rows: Iterable[list[str]] = ()
    where: Callable[[int], str] = "row {}".format
    between: str = ""

    def refused(self, number: int, row: Sequence[str], why: str = "") -> InputError:
        """What is wrong with the i-th row."""
        why = why or f"{len(row)} {self.between}column{'s' * (len(row) != 1)}"
        return InputError(f"{self.where(number)}: {why}; expected head, relation and tail.")


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
            if (value := _confidence(row[3])) is None:
                why = f"4 {given.between}columns, the last of which, {SHORT.repr(row[3])}, is no confidence from 0 to 1"
                raise given.refused(number, row, why)
            sure.append(value)
        elif len(row) != 3 or len(sure):
            raise given.refused(number, row)
        head, relation, tail = row[:3]
        if not (head.strip() and relation.strip() and tail.strip()):
            raise given.refused(number, row, "an empty name")
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


def _confidence(text: str) -> float | None:
    try:
        return value if 0 <= (value := float(text)) <= 1 else None
    except ValueError:
        return None
