"""Features of entities, from a file or a frame, as the ``features`` guide takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.errors import InputError

FeaturesLike: TypeAlias = str | Path | pd.DataFrame


def load_features(given: FeaturesLike, graph: Graph) -> Tensor:
    """The features of a graph's entities, shape ``(E, f)``, float.

    Args:
        given: a frame whose index is the entities' names; or a file: ``.csv``, ``.tsv`` or ``.parquet`` with the names
            in its first column and numbers in the others, or ``.npy``, whose i-th row is that of the i-th entity.
        graph: whose entities, in whose order.

    Raises:
        InputError: no such file, an entity without features or with two rows, or a value that is no finite number.
    """
    what = "the features" if isinstance(given, pd.DataFrame) else str(given)
    frame = given if isinstance(given, pd.DataFrame) else _read(Path(given), graph)
    frame = frame.set_axis(frame.index.astype(str), axis=0)
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


def _read(path: Path, graph: Graph) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"`features` {path}: no such file.")
    try:
        if path.suffix == ".npy":
            return _of_array(np.load(path, allow_pickle=False), path, graph)
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", keep_default_na=False)
    except ImportError as error:
        raise InputError(
            f"`features` {path}: reading parquet needs pyarrow; pip install pyarrow, or give a CSV."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"`features` {path} cannot be read: {' '.join(str(error).split())}.") from error
    return frame.set_index(frame.columns[0]) if isinstance(frame.index, pd.RangeIndex) else frame


def _of_array(array: np.ndarray, path: Path, graph: Graph) -> pd.DataFrame:
    if array.ndim != 2 or len(array) != graph.num_entities:
        raise InputError(f"`features` {path}: shape {array.shape}; need ({graph.num_entities}, number of features).")
    return pd.DataFrame(array, index=list(graph.entities))
