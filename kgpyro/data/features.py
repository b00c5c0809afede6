"""Features of entities, from a file or a frame, as the ``features`` guide takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.data.tables import name_of, parted, read_frame, text_frame
from kgpyro.errors import InputError

FeaturesLike: TypeAlias = str | Path | pd.DataFrame


def load_features(given: FeaturesLike, graph: Graph) -> Tensor:
    """The features of a graph's entities, shape ``(E, f)``, float.

    Args:
        given: a frame whose index is the entities' names; or a file: ``.csv``, ``.tsv`` or ``.parquet`` with the names
            in its first column and numbers in the others, or ``.npy`` with a ``.txt`` beside it that names the entities
            of its rows, one a line.
        graph: whose entities, in whose order.

    Raises:
        InputError: no such file, an entity without features or with two rows, or a value that is no finite number.
    """
    what = "the features" if isinstance(given, pd.DataFrame) else str(given)
    frame = given if isinstance(given, pd.DataFrame) else _read(Path(given))
    frame = frame.set_axis(frame.index.map(name_of), axis=0)
    if twice := frame.index[frame.index.duplicated()].tolist():
        raise InputError(f"{what}: entity {twice[0]!r} has two rows; give each one.")
    if missing := sorted(set(graph.entities) - set(frame.index)):
        raise InputError(f"{what}: no row for entity {missing[0]!r} ({len(missing)} of {graph.num_entities} lack one).")
    words = [str(column) for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    if words or frame.shape[1] == 0:
        raise InputError(f"{what}: column {words[0]!r} is no number." if words else f"{what}: no columns of features.")
    values = torch.tensor(frame.loc[list(graph.entities)].to_numpy(dtype=np.float64), dtype=torch.get_default_dtype())
    if not bool(values.isfinite().all()):
        row, column = (~values.isfinite()).nonzero()[0].tolist()
        raise InputError(f"{what}: {frame.columns[column]} of {graph.entities[row]!r} is no finite number.")
    return values


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"`features` {path}: no such file.")
    if path.suffix == ".npy":
        return _of_array(path, path.with_suffix(".txt"))
    if parted(path)[1] == ".parquet":
        frame = read_frame(path)
        return frame.set_index(frame.columns[0]) if isinstance(frame.index, pd.RangeIndex) else frame
    if (frame := text_frame(path, "\t" if parted(path)[1] == ".tsv" else ",")).empty:
        raise InputError(f"`features` {path} cannot be read: it is empty.")
    cells = frame.iloc[1:, 1:].set_axis(frame.iloc[0, 1:], axis=1).set_axis(frame.iloc[1:, 0], axis=0)
    values = cells.apply(pd.to_numeric, errors="coerce")
    return values.where(values.notna(), cells)


def _of_array(path: Path, names: Path) -> pd.DataFrame:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"`features` {path} cannot be read: {error}.") from error
    if not names.is_file():
        raise InputError(
            f"`features` {path} does not say whose its rows are: name their entities in {names}, one a line."
        )
    index = text_frame(names, "\t").iloc[:, 0].tolist()
    if array.ndim != 2 or len(array) != len(index):
        need = f"need ({len(index)}, number of features), as {names} says"
        raise InputError(f"`features` {path}: shape {array.shape}; {need}.")
    return pd.DataFrame(array, index=index)
