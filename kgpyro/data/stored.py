"""A graph as one file of tensors: ids of its triples as 32-bit numbers, names as text with their lengths."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from kgpyro.data.graph import SPLITS, Graph
from kgpyro.files import write_whole

GRAPH = "graph.safetensors"
LISTED = "graph.json"  # which it was before
KINDS = ("entities", "relations")
Parts = tuple[dict[str, Any], dict[str, Tensor]]  # name, notes and names; triples and confidences


def write_graph(graph: Graph, folder: Path) -> None:
    """Write :data:`GRAPH`. Raises InputError where it cannot be written."""
    tensors = {split: getattr(graph, split).int() for split in SPLITS}
    tensors |= {f"negatives.{split}": triples.int() for split, triples in graph.negatives.items()}
    tensors |= {f"confidences.{split}": values.double() for split, values in graph.confidences.items()}
    for kind in KINDS:
        names = getattr(graph, kind)
        text = bytearray("".join(names).encode("utf-8", "surrogatepass"))
        tensors[kind] = torch.from_numpy(np.frombuffer(text, np.uint8))
        tensors[f"{kind}.lengths"] = torch.from_numpy(np.fromiter(map(len, names), np.int32, len(names)))
    tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
    about = {"graph": json.dumps({"name": graph.name, "notes": graph.notes})}
    write_whole(folder / GRAPH, lambda path: safetensors.torch.save_file(tensors, path, about))


def read_graph(folder: Path) -> Graph:
    """The graph of a folder, checked to hold distinct names, and triples of their ids.

    Raises ValueError, or what reading raises, where its file is missing or damaged.
    """
    about, tensors = _stored(folder / GRAPH) if (folder / GRAPH).is_file() else _listed(folder / LISTED)
    for kind in KINDS:
        if not all(isinstance(name, str) for name in about[kind]) or len(set(about[kind])) != len(about[kind]):
            raise ValueError(f"the graph has {kind} that are no distinct names")
    ends = [len(about[kind]) for kind in ("entities", "relations", "entities")]
    parts: dict[str, dict[str, Any]] = {"": {}, "negatives": {}, "confidences": {}}
    for kind, found in parts.items():
        keys = {f"{kind}.{split}".strip("."): split for split in SPLITS}
        found |= {split: tensors[key] for key, split in keys.items() if key in tensors}
    for split, ids in (*parts[""].items(), *parts["negatives"].items()):
        whole = ids.dtype in (torch.int32, torch.long) and ids.shape[1:] == (3,)
        if not whole or any(bool(((x < 0) | (x >= end)).any()) for x, end in zip(ids.unbind(1), ends, strict=True)):
            raise ValueError(f"the graph has a {split} split that is no list of triples of its names")
    for split, values in parts["confidences"].items():
        fits = values.shape == (len(parts[""][split]),) and values.dtype == torch.float64
        if not fits or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"the graph has confidences of {split!r} that are none of its triples")
    if not isinstance(about["name"], str) or not len(parts[""]["train"]):
        raise ValueError("the graph has no name, or no training triples")
    long = {kind: {split: ids.long() for split, ids in parts[kind].items()} for kind in ("", "negatives")}
    sure = {split: values.clone() for split, values in parts["confidences"].items()}
    names = tuple(about["entities"]), tuple(about["relations"])
    graph = Graph(about["name"], *names, long[""]["train"], long[""]["valid"], long[""]["test"])
    return replace(graph, negatives=long["negatives"], confidences=sure, notes=tuple(map(str, about.get("notes", ()))))


def _stored(path: Path) -> Parts:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = json.loads((file.metadata() or {})["graph"])
    for kind in KINDS:
        text, lengths = tensors[kind].numpy().tobytes().decode("utf-8", "surrogatepass"), tensors[f"{kind}.lengths"]
        if bool((lengths < 0).any()) or int(lengths.sum()) != len(text):
            raise ValueError(f"the graph has {kind} of other lengths than its names")
        ends = itertools.accumulate(lengths.tolist(), initial=0)
        about[kind] = tuple(text[start:end] for start, end in itertools.pairwise(ends))
    return about, tensors


def _listed(path: Path) -> Parts:
    """From JSON, where every triple is a list."""
    about = json.loads(path.read_text(encoding="utf-8"))
    listed = {split: about[split] for split in SPLITS}
    listed |= {f"negatives.{split}": rows for split, rows in about.get("negatives", {}).items()}
    tensors = {key: torch.tensor(rows) if rows else torch.zeros(0, 3, dtype=torch.long) for key, rows in listed.items()}
    sure = {key: torch.tensor(v, dtype=torch.float64) for key, v in about.get("confidences", {}).items()}
    return about, tensors | {f"confidences.{split}": values for split, values in sure.items()}
