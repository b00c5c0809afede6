"""Text files and frames of named triples as rows, by columns and splits; and rows as ids."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.errors import InputError

SPLITS = ("train", "valid", "test")
NAMES = {"train": ("train", "training"), "valid": ("valid", "validation", "dev", "val"), "test": ("test", "testing")}
CALLED = {name: split for split, names in NAMES.items() for name in names}  # what people call splits
COLUMNS = ("head", "relation", "tail")
TEXT, FRAMES = (".txt", ".tsv", ".csv"), (".parquet", ".json", ".jsonl")  # kinds of files
USUAL = {
    "head": ("head", "subject", "subj", "source", "src", "from", "h", "s"),
    "relation": ("relation", "predicate", "rel", "edge", "type", "label", "property", "r", "p"),
    "tail": ("tail", "object", "obj", "target", "tgt", "dst", "to", "t", "o"),
    "confidence": ("confidence",),
    "split": ("split",),
}
LACKS = "{} has no column {!r}; it has {}: name those of head, relation and tail by `columns`."
UNSAID = ("weight", "score", "probability")  # confidences perhaps, but only where they are named
SEPARATORS = "\t,;"
LINES = 20  # by which a separator is found
BLOCK = 1 << 22  # bytes of a file that are read at once, and the longest line
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


def name_of(value: object) -> str:
    """A value as a name: text as it is, a whole number without a point, so that 2.0 is what 2 is."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def encode(
    given: Rows, entities: dict[str, int], relations: dict[str, int], complete: bool = False, lost: list | None = None
) -> tuple[Tensor, Tensor | None]:
    """Ids of named triples, shape ``(n, 3)``, in the order in which names first occur; new names go into the tables.

    And the confidences of all, shape ``(n,)``, float64, where rows have a fourth column; else None. Where the relations
    are ``complete`` a row with another is refused, or left out, and its relation put into the list ``lost``.
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


def columns_of(given: str | Sequence[str | int] | None) -> list[str] | None:
    """``columns`` as users give them: three or four names, or positions from 0. Raises InputError."""
    if given is None:
        return None
    listed = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else []
    names = [str(name).strip() for name in listed]
    if len(names) not in (3, 4) or len(set(names)) < len(names):
        raise InputError(f"`columns` names head, relation, tail, and maybe a confidence, in this order; got {given!r}.")
    return names


def places_of(header: list[str], columns: list[str] | None, what: object) -> dict[str, int]:
    """Where head, relation, tail, confidence and split stand in a header: as named, or else by their usual names."""
    lower = [name.strip().lower() for name in header]
    found = {role: next((lower.index(n) for n in names if n in lower), -1) for role, names in USUAL.items()}
    for role, name in zip(USUAL, columns or (), strict=False):
        places = [i for i, column in enumerate(lower) if header[i] == name or column == name.lower()]
        places += [int(name)] if name.isdecimal() and int(name) < len(header) else []
        if not places:
            raise InputError(LACKS.format(what, name, SHORT.repr(", ".join(header))))
        found[role] = places[0]
    taken = {place: role for role, place in reversed(found.items()) if place >= 0}  # the first role has it
    return {role: place for role, place in found.items() if taken.get(place) == role}


def frame_rows(
    frame: pd.DataFrame,
    columns: list[str] | None,
    notes: list[str],
    what: object,
    kind: str = "row",
    split: bool = True,
) -> dict[str, Rows]:
    """The rows of a table by split; without a column ``split``, or if that does not count, all train's.

    What users should know joins ``notes``. Messages call the table ``what``, and its rows ``kind`` and index.
    """
    if not len(header := [str(column) for column in frame.columns]):
        return {"train": Rows()}
    if columns is None and header in (list("012"), list("0123")):
        columns = header
    places = places_of(header, columns, what)
    if not split:
        places.pop("split", None)
    if missing := [role for role in COLUMNS if role not in places]:
        if all(map(str.isdecimal, header)):
            which = "a triple has three: head, relation, tail" if len(header) < 3 else "say which by `columns`: 0,1,2"
            raise InputError(
                f"{what} has {len(header)} column{'s' * (len(header) > 1)} and no names for them; {which}."
            )
        raise InputError(LACKS.format(what, missing[0], SHORT.repr(", ".join(header))))
    unsaid = [name for name in header if name.strip().lower() in UNSAID and "confidence" not in places]
    if unsaid and columns is None:
        notes.append(f"column {unsaid[0]!r} of {what} is left out; name it fourth in `columns` if it is a confidence.")
    part = frame.iloc[:, list(places.values())].set_axis(list(places), axis=1)
    if (empty := part.isna()).to_numpy().any():
        row, column = np.argwhere(empty.to_numpy())[0]
        raise InputError(f"{what}, {kind} {part.index[row]}: no {part.columns[column]}.")
    said = part.pop("split").astype(str) if "split" in part else pd.Series("train", part.index)
    called = said.str.strip().str.lower().map(CALLED)
    if called.isna().any():
        wrong = said[called.isna()].iloc[0]
        raise InputError(f"{what}: column 'split' has {SHORT.repr(wrong)}; it says {', '.join(SPLITS)}.")
    found = {}
    for name in SPLITS:
        mine = part[(called == name).to_numpy()]
        rows = map(list, zip(*(map(name_of, mine[role].tolist()) for role in mine), strict=True))
        found[name] = Rows(rows, lambda i, index=mine.index: f"{what}, {kind} {index[i - 1]}")  # type: ignore[misc]
    return found


def text_rows(
    path: Path, columns: list[str] | None, notes: list[str], separator: str | None = None, split: bool = True
) -> tuple[dict[str, Rows], bool]:
    """The rows of a text file by split, as :func:`frame_rows` has them; and whether it has a header.

    Three or four columns by tabs are read while they are taken; all else is a frame.
    """
    starts = (block.lstrip("\n").split("\n", LINES)[:LINES] for block in _blocks(path))
    lines = list(islice((line for start in starts for line in start if line), LINES))
    separator = _separator(lines, 3) if separator is None else separator
    first = next(iter(_cut(lines, separator)), [])
    header = set(COLUMNS) <= places_of(first, None, path).keys()
    if not first:
        raise InputError(f"{path} is empty; it should hold one triple a line: head TAB relation TAB tail.")
    if separator == "\t" and columns is None and not header and len(first) < 5:
        rows = (line.split("\t") for block in _blocks(path) for line in block.removesuffix("\n").split("\n"))
        return {"train": Rows(rows, partial("{}, line {}".format, path), "tab-separated ")}, False
    header |= any(not name.isdecimal() for name in columns or ())
    frame = text_frame(path, separator)
    if header:
        frame = frame.iloc[1:].set_axis(first, axis=1)
    return frame_rows(frame, columns, notes, path, "line", split), header


def text_frame(path: Path, separator: str | None, least: int = 3) -> pd.DataFrame:
    """The columns of a text file as strings, nameless, by the numbers of their lines; blank lines are left out.

    A ``separator`` is found where none is given: one that cuts lines into ``least`` columns or more.
    """
    text = "".join(_blocks(path))
    blank = len(text) - len(text := text.lstrip("\n"))
    separator = _separator(text.split("\n", LINES)[:LINES], least) if separator is None else separator
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    how: Any = {"sep": separator, "quoting": quoting, "header": None, "dtype": str, "keep_default_na": False}
    try:
        frame = pd.read_csv(StringIO(text), skip_blank_lines=False, **how)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {str(error).rpartition('error: ')[2].strip()}.") from error
    frame.index += blank + 1
    return frame[(frame != "").any(axis=1)]


def _separator(lines: list[str], least: int) -> str:
    """The one that cuts lines into ``least`` columns or more, as many in each; or else the one they have most of."""
    for separator in SEPARATORS:
        widths = {len(row) for row in _cut(lines, separator)}
        if len(widths) == 1 and min(widths) >= least:
            return separator
    return max(SEPARATORS, key="\n".join(lines).count)


def _cut(lines: list[str], separator: str) -> list[list[str]]:
    """The columns of lines: between tabs as they are written, else as CSV has them."""
    try:
        rows = (line.split("\t") for line in lines) if separator == "\t" else csv.reader(lines, delimiter=separator)
        return [row for row in rows if row not in ([], [""])]
    except csv.Error:  # longer than it takes
        return [[]]


def parted(path: Path) -> tuple[str, str]:
    """The stem and the suffix of a file's name, in small letters, whatever it is packed with."""
    name = path.name.lower()
    for packed in (".gz", ".bz2", ".xz", ".zip"):
        name = name.removesuffix(packed)
    return Path(name).stem, Path(name).suffix


def open_packed(path: Path) -> IO[bytes]:
    """A file to read, unpacked where it is packed, whatever it is called."""
    with open(path, "rb") as file:
        start = file.read(10)
    if start.startswith(b"PK\3\4"):
        archive = zipfile.ZipFile(path)
        if len(names := archive.namelist()) != 1:
            raise InputError(f"{path} holds {len(names)} files; unpack it, and name one of them.")
        return archive.open(names[0])
    openers = {b"\x1f\x8b": gzip.open, b"BZh91AY&SY": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener: Any = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
    return opener(path, "rb")


UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)


def _blocks(path: Path) -> Iterator[str]:
    """The text of a file, some whole lines at a time, ended as in Unix."""
    before = 0
    if not path.exists():
        raise InputError(f"{path}: no such file.")
    try:
        with open_packed(path) as file:
            rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
            while read := file.read(BLOCK):
                lines, newline, rest = (rest + read).rpartition(b"\n")
                if newline:
                    yield _decoded(lines + newline, path, before)
                before += lines.count(b"\n") + len(newline)
                if len(rest) > BLOCK:
                    raise InputError(f"{path}, line {before + 1}: longer than {BLOCK:,} bytes.")
        if rest:
            yield _decoded(rest.removesuffix(b"\r"), path, before)
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read after line {before}: {error}.") from error


def _decoded(block: bytes, path: Path, before: int) -> str:
    """The text of whole lines, of which ``before`` stand ahead in the file."""
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
    return text


def read_frame(path: Path) -> pd.DataFrame:
    """The table of a parquet or JSON file."""
    try:
        if parted(path)[1] == ".parquet":
            return pd.read_parquet(path)
        with open_packed(path) as file:
            lines = parted(path)[1] == ".jsonl"
            return pd.DataFrame([json.loads(line) for line in file if line.strip()] if lines else json.load(file))
    except ImportError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow; pip install 'kgpyro[parquet]'.") from error
    except (*UNREADABLE, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error


def text_of(rows: Sequence[Sequence[str]]) -> str:
    """Lines that are read back as these rows, whatever the first one looks like."""
    if set(COLUMNS) <= places_of(list(rows[0]), None, "").keys():
        rows = [(*COLUMNS, "confidence")[: len(rows[0])], *rows]
    text = "".join("\t".join(row) + "\n" for row in rows)
    return "\ufeff" * text.startswith("\ufeff") + text
