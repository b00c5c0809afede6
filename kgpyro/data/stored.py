"""A graph as one file of tensors: ids of its triples as 32-bit numbers, names as text with their lengths."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from kgpyro.data.graph import SPLITS, Graph
from kgpyro.files import write_whole

GRAPH = "graph.safetensors"


def write_graph(graph: Graph, folder: Path) -> None:
    """Write :data:`GRAPH`. Raises InputError where it cannot be written."""
    tensors = {split: getattr(graph, split).int() for split in SPLITS}
    tensors |= {f"negatives.{split}": triples.int() for split, triples in graph.negatives.items()}
    tensors |= {f"confidences.{split}": values.double() for split, values in graph.confidences.items()}
    for kind in ("entities", "relations"):
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
    with safe_open(folder / GRAPH, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = json.loads((file.metadata() or {})["graph"])
    entities, relations = (_names(tensors, kind) for kind in ("entities", "relations"))

    def part(prefix: str) -> dict[str, Tensor]:
        return {split: tensors[prefix + split] for split in SPLITS if prefix + split in tensors}

    facts, negatives, sure = part(""), part("negatives."), part("confidences.")
    ends = len(entities), len(relations), len(entities)
    for split, ids in (*facts.items(), *negatives.items()):
        whole = ids.dtype in (torch.int32, torch.long) and ids.shape[1:] == (3,)
        if not whole or any(bool(((x < 0) | (x >= end)).any()) for x, end in zip(ids.unbind(1), ends, strict=True)):
            raise ValueError(f"the graph has a {split} split that is no list of triples of its names")
    for split, values in sure.items():
        fits = values.shape == (len(facts[split]),) and values.dtype == torch.float64
        if not fits or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"the graph has confidences of {split!r} that are none of its triples")
    if not isinstance(about["name"], str) or not len(facts["train"]):
        raise ValueError("the graph has no name, or no training triples")
    facts, negatives = ({split: ids.long() for split, ids in given.items()} for given in (facts, negatives))
    graph = Graph(about["name"], entities, relations, facts["train"], facts["valid"], facts["test"])
    sure = {split: values.clone() for split, values in sure.items()}
    return replace(graph, negatives=negatives, confidences=sure, notes=tuple(map(str, about.get("notes", ()))))


def _names(tensors: dict[str, Tensor], kind: str) -> tuple[str, ...]:
    text, lengths = tensors[kind].numpy().tobytes().decode("utf-8", "surrogatepass"), tensors[f"{kind}.lengths"]
    if bool((lengths < 0).any()) or int(lengths.sum()) != len(text):
        raise ValueError(f"the graph has {kind} of other lengths than its names")
    ends = itertools.accumulate(lengths.tolist(), initial=0)
    names = tuple(text[start:end] for start, end in itertools.pairwise(ends))
    if len(set(names)) != len(names):
        raise ValueError(f"the graph has {kind} that are no distinct names")
    return names
