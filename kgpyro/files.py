"""Files that are there whole or not at all, and folders that one fit at a time writes to."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from kgpyro.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

POSTERIOR = "posterior.safetensors"  # by which a folder is a run that has finished
TABLES: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".json": lambda table, path: table.to_json(path, orient="records", indent=1, force_ascii=False),
}


def refuse_no_run(folder: str | Path) -> None:
    """Raise InputError where a folder holds no run, or one that has not finished."""
    folder = Path(folder)
    if (folder / POSTERIOR).is_file():
        return
    if (folder / "config.yaml").is_file():
        raise InputError(f"the fit in {folder} has not finished; go on with it by `resume` {folder}.")
    raise InputError(f"{folder} holds no run: {POSTERIOR} is missing there.")


def table_writer(path: Path) -> Callable[[pd.DataFrame], None]:
    """What writes a table to a file whole, as its suffix says. Raises InputError for another suffix, or an old file."""
    _refuse_table(path, list(TABLES))
    return lambda table: write_whole(path, partial(TABLES[path.suffix], table))


def _refuse_table(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix not in suffixes:
        raise InputError(f"`out` {path} must end in {', '.join(suffixes)}.")
    if path.suffix == ".parquet" and not importlib.util.find_spec("pyarrow"):
        raise InputError("parquet files need pyarrow; pip install 'kgpyro[parquet]'.")
    if path.exists():
        raise InputError(f"`out` {path} is there already; name another file, or remove it first.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, and give it that name once it is safe on the disk.

    Whatever happens meanwhile, ``path`` is what it was before or the whole new file. Raises InputError where it cannot
    be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        write(partial)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """The same for a text in UTF-8."""
    write_whole(path, lambda partial: partial.write_bytes(text.encode()))


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Make a folder and have it for this fit alone; a process that is gone has none.

    Raises InputError where another fit has it, or it cannot be written to.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for left in (*folder.glob(".*.part"), *folder.glob(".tmp*")):  # by a process that was killed as it wrote
            left.unlink()
    except Timeout:
        raise InputError(f"another fit is writing to {folder}; name another folder, or wait for it.") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error}.") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def table_file(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A new .csv, .tsv or .parquet file that is written part by part: what is in it is whole rows, whatever happens.

    Raises InputError for another ending, where the file is there already, or where it cannot be written.
    """
    _refuse_table(path, (".csv", ".tsv", ".parquet"))
    with ExitStack() as held:
        writers: list[Any] = []

        def write(part: pd.DataFrame) -> None:
            if path.suffix == ".parquet":
                import pyarrow  # type: ignore[import-untyped]
                from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]

                rows = pyarrow.Table.from_pandas(part, preserve_index=False)
                if not writers:
                    writers.append(held.enter_context(ParquetWriter(path, rows.schema)))
                writers[0].write_table(rows)
                return
            text = part.to_csv(index=False, header=not writers, sep="," if path.suffix == ".csv" else "\t")
            if not writers:
                writers.append(held.enter_context(open(path, "wb")))
            writers[0].write(text.encode())
            writers[0].flush()

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield write
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}.") from error
