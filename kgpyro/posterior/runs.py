"""A run as a folder of plain data files: tensors as safetensors, the graph and metrics as JSON, options as YAML."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kgpyro.data.graph import SPLITS, Graph
from kgpyro.errors import InputError
from kgpyro.files import write_text, write_whole
from kgpyro.names import is_dotted
from kgpyro.program.owners import is_spread
from kgpyro.version import VERSION

ROWS = 1 << 18  # read at once
FORMAT = "2"
POSTERIOR = "posterior.safetensors"
OWN = ("model", "prior", "entity_prior", "relation_prior", "score", "guide")  # options that may name a user's own code
REQUIRED: dict[str, tuple[type, ...]] = {
    "model": (str,), "prior": (str,), "entity_prior": (str, type(None)), "relation_prior": (str, type(None)),
    "score": (str,), "guide": (str,), "dim": (int,), "inverse": (bool,), "closed_world": (str,),
    "likelihood": (str,), "completeness": (int, float), "negatives": (str, int),
    "negative_weight": (int, float, type(None)), "unanswered": (str, int, type(None)),
}  # fmt: skip
DAMAGE = (
    OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, RecursionError, MemoryError, OverflowError,
    yaml.YAMLError, SafetensorError,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        graph: all three splits (``graph.json``).
        config: the resolved options of the fit (``config.yaml``).
        metrics: ``metrics.json``.
        log: one row per epoch (``log.csv``); empty where there is none.
        state: parameters of guide, setting and model, or draws of the latents (``posterior.safetensors``).
        provenance: :func:`provenance` of the fit (``run.json``); empty where there is none.
        recalibration: of predicted probabilities (``recalibration.json``); None where there is none.
    """

    graph: Graph
    config: dict[str, Any]
    metrics: dict[str, Any]
    log: pd.DataFrame
    state: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    recalibration: dict[str, Any] | None = None

    def write(self, folder: str | Path, unfinished: bool = False, shards: int = 1) -> None:
        """Write all files; ``posterior.safetensors`` is the last, so that where it is the run is complete.

        Args:
            folder: a new one, or that of the ``unfinished`` fit whose run this is, or of a run to replace.
            shards: how many files have the rows of the entities (:func:`write_rows`), if more than this one.

        Raises InputError where the folder holds another run or cannot be written.
        """
        folder = Path(folder) if unfinished else new_run_folder(folder)
        check_writable_config(self.config)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state.items()}
        metadata = {"format": FORMAT, "kgpyro": VERSION, "shards": str(shards)}
        start_run(folder, self.graph, self.config)
        write_text(folder / "run.json", json.dumps(self.provenance, indent=2) + "\n")
        write_text(folder / "metrics.json", json.dumps(self.metrics, indent=2) + "\n")
        (folder / "log.csv").unlink(missing_ok=True)
        if not self.log.empty:
            write_text(folder / "log.csv", self.log.to_csv(index=False))
        write_whole(folder / POSTERIOR, lambda path: safetensors.torch.save_file(state, path, metadata))

    @classmethod
    def read(cls, folder: str | Path, whole: bool = True) -> Run:
        """Read all files, where not the ``whole`` of entities' rows the shapes alone.

        Raises InputError where there is no run, or a file of it is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / POSTERIOR).is_file():
            raise InputError(
                f"the fit in {folder} has not finished; go on with it by `resume` {folder}."
                if (folder / "config.yaml").is_file()
                else f"{folder} holds no run: {POSTERIOR} is missing there."
            )
        with refusing(folder):
            with safe_open(folder / POSTERIOR, framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                check_format(folder, metadata)
                state = {k: tensors.get_tensor(k) for k in tensors.keys() if whole or not _is_rows(k)}  # noqa: SIM118
            state |= _spread(folder, whole)
            found = [_object(folder / f) for f in ("metrics.json", "run.json") if (folder / f).is_file()]
            metrics, provenance = found if len(found) == 2 else (_object(folder / "metrics.json"), {})
            log = pd.read_csv(folder / "log.csv") if (folder / "log.csv").is_file() else pd.DataFrame()
            path = folder / "recalibration.json"
            recalibration = _object(path) if path.is_file() else None
            graph, config = read_graph(folder), read_config(folder)
            return cls(graph, config, metrics, log, state, provenance, recalibration)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Raises InputError where they are no floating-point numbers."""
        found = self.state["setting.base_rate"].dtype if "setting.base_rate" in self.state else None
        if found not in (torch.float32, torch.float64):
            raise InputError("the weights do not fit: they are no floating-point numbers of 32 or 64 bits.")
        return found

    def refuse_own_code(self, named_again: set[str]) -> None:
        """Raise InputError where the options name code of the user's that was not named again."""
        for key in set(OWN) - named_again:
            if is_own_code(value := self.config.get(key)):
                raise InputError(
                    f"this run was fitted with your own {key} {value}; name it again to have it imported: "
                    f"`run_{key}` {value} on the command line, {key}='{value}' in Python."
                )


def store_recalibration(folder: Path, recalibration: dict[str, Any] | None) -> None:
    """Write it to a run's folder; None removes what is there. Raises InputError where that cannot be."""
    path = folder / "recalibration.json"
    if recalibration is not None:
        write_text(path, json.dumps(recalibration) + "\n")
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error}.") from error


def is_own_code(option: Any) -> bool:
    """Whether an option names code of the user's."""
    return isinstance(option, str) and is_dotted(option) and not option.startswith("pykeen:")


def start_run(folder: Path, graph: Graph, config: Mapping[str, Any]) -> None:
    """Write what is known before the fit: the graph, then the options."""
    splits: dict[str, Any] = {split: getattr(graph, split).tolist() for split in SPLITS}
    splits["negatives"] = {split: triples.tolist() for split, triples in graph.negatives.items()}
    splits["confidences"] = {split: values.tolist() for split, values in graph.confidences.items()}
    names = {"name": graph.name, "entities": graph.entities, "relations": graph.relations}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / POSTERIOR).unlink(missing_ok=True)  # of this same fit, from when it was interrupted
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error}.") from error
    write_text(folder / "graph.json", json.dumps(names | splits, ensure_ascii=False))
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _is_rows(key: str) -> bool:
    return key.startswith("guide.") and is_spread(key)


def _file(number: int, shards: int) -> str:
    return f"posterior-{number + 1}-of-{shards}.safetensors"


def _files(folder: Path) -> list[Path]:
    """Those that have rows of entities, in their order."""
    with safe_open(folder / POSTERIOR, framework="pt") as file:
        shards = int((file.metadata() or {}).get("shards", 1))
    return [folder / _file(i, shards) for i in range(shards)] if shards > 1 else [folder / POSTERIOR]


def _spread(folder: Path, whole: bool) -> dict[str, Tensor]:
    """The tables of entities that several files have, put together; or those of a run as shapes alone."""
    files = _files(folder)
    with safe_open(files[0], framework="pt") as file:
        keys = [key for key in file.keys() if _is_rows(key)]  # noqa: SIM118
    found: dict[str, Tensor] = {}
    for key in keys if len(files) > 1 or not whole else ():
        parts = [_slice(path, key) for path in files]
        shape = (sum(part.get_shape()[0] for part in parts), *parts[0].get_shape()[1:])
        dtype = parts[0][:0].dtype
        found[key] = torch.empty(shape, dtype=dtype, device="cpu" if whole else "meta")
        if whole:
            read_rows(folder, key, 0, found[key])
    return found


def _slice(path: Path, key: str) -> Any:
    with safe_open(path, framework="pt") as file:
        return file.get_slice(key)


def write_rows(folder: Path, tables: Mapping[str, Tensor], number: int, shards: int) -> None:
    """Write one process's rows of the entities' tables, the ``number``-th file from 0 of as many as ``shards``."""
    tables = {key: value.detach().cpu().contiguous() for key, value in tables.items()}
    metadata = {"format": FORMAT, "kgpyro": VERSION}
    write_whole(folder / _file(number, shards), lambda path: safetensors.torch.save_file(dict(tables), path, metadata))


@torch.no_grad()
def read_rows(folder: Path, key: str, first: int, into: Tensor) -> None:
    """Fill ``into``, ``(n, d)``, with the rows of a table from ``first`` on, whichever files of a run have them."""
    with refusing(folder):
        begin = 0
        for path in _files(folder):
            part = _slice(path, key)
            end = begin + part.get_shape()[0]
            for start in range(max(first, begin), min(first + len(into), end), ROWS):
                stop = min(start + ROWS, first + len(into), end)
                into[start - first : stop - first] = part[start - begin : stop - begin]
            begin = end
        if begin < first + len(into):
            raise ValueError(f"{key} has {begin} rows, fewer than the graph has entities")


@contextmanager
def refusing(folder: Path) -> Iterator[None]:
    """Tell whatever goes wrong in here as one sentence about the run in a folder."""
    try:
        yield
    except InputError:
        raise
    except DAMAGE as error:
        what = " ".join(str(error).split())[:300]
        raise InputError(f"the run in {folder} is incomplete or damaged: {what or type(error).__name__}.") from error


class Bounded(TorchFunctionMode):
    """Refuses to make many more tensors and numbers than a file of weights accounts for.

    Each tensor that is made counts for a thousand numbers at least, so that a claim of a billion small layers ends too.
    """

    MATRIX = 10_000  # rows of a prior's covariance that is believed
    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye)

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.left = 10_000_000 + 4 * sum(value.numel() + 1000 for value in weights)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.MAKERS:
            self.left -= max(1000, func(*args, **kwargs | {"device": "meta"}).numel())
        if self.left < 0 or (func is torch.diag_embed and args[0].shape[-1] > self.MATRIX):
            raise InputError("the weights do not fit config.yaml, which claims far more of them.")
        return func(*args, **kwargs)


def check_format(folder: Path, metadata: Mapping[str, str]) -> None:
    """Raise InputError where a file's metadata is of a format that this version does not read."""
    if metadata.get("format") != FORMAT:
        by = f"kgpyro {metadata['kgpyro']}" if "kgpyro" in metadata else "an unknown version of kgpyro"
        raise InputError(
            f"the run in {folder} has format {metadata.get('format')}, written by {by}; this kgpyro "
            f"{VERSION} reads {FORMAT}."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml``, checked to hold plain values, and those that every run has."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.yaml holds no options")
    for key, kinds in REQUIRED.items():
        if type(config[key]) not in kinds:
            raise ValueError(f"config.yaml has a {key} that is no {kinds[0].__name__}")
    if config["dim"] < 1 or not all(isinstance(value, (str, int, float, type(None))) for value in config.values()):
        raise ValueError("config.yaml holds an option that none can be")
    return config


def read_graph(folder: Path) -> Graph:
    """``graph.json``, checked to hold distinct names, and triples of their ids."""
    data = _object(folder / "graph.json")
    names = {kind: tuple(data[kind]) for kind in ("entities", "relations")}
    for kind, found in names.items():
        if not all(isinstance(name, str) for name in found) or len(set(found)) != len(found):
            raise ValueError(f"graph.json has {kind} that are no distinct names")
    listed = {split: data[split] for split in SPLITS}
    listed |= {f"{split}_negatives": rows for split, rows in data.get("negatives", {}).items() if split in SPLITS}
    triples = {key: torch.tensor(rows) if rows else torch.zeros(0, 3, dtype=torch.long) for key, rows in listed.items()}
    ends = torch.tensor([len(names["entities"]), len(names["relations"]), len(names["entities"])])
    for split, ids in triples.items():
        if ids.dtype != torch.long or ids.shape[1:] != (3,) or bool(((ids < 0) | (ids >= ends)).any()):
            raise ValueError(f"graph.json has a {split} split that is no list of triples of its names")
    if not isinstance(data["name"], str) or not len(triples["train"]):
        raise ValueError("graph.json has no name, or no training triples")
    train, valid, test = (triples.pop(split) for split in SPLITS)
    negatives = {key.removesuffix("_negatives"): ids for key, ids in triples.items()}
    sure = {split: torch.tensor(v, dtype=torch.float64) for split, v in data.get("confidences", {}).items()}
    for split, values in sure.items():
        if (
            split not in SPLITS
            or values.shape != (len(data[split]),)
            or not bool(((values >= 0) & (values <= 1)).all())
        ):
            raise ValueError(f"graph.json has confidences of {split!r} that are none of its triples")
    graph = Graph(data["name"], names["entities"], names["relations"], train, valid, test)
    return replace(graph, negatives=negatives, confidences=sure)


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


def provenance(graph: Graph, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a result came from: versions, commit (None outside a git checkout), seed, threads, precision, data."""
    return {
        "kgpyro": VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "seed": config["seed"],
        "threads": torch.get_num_threads(),
        "precision": config["precision"],
        "data_sha256": graph.checksum,
    }


@cache
def _commit() -> str | None:
    """The commit that this source is of, marked where files were changed since."""
    source = Path(__file__)
    git = ["git", "-C", str(source.parent)]
    commands = (
        ["ls-files", "--error-unmatch", source.name],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        found = [
            subprocess.run(git + c, capture_output=True, text=True, check=True, env=_without_git()) for c in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[1].stdout.strip()


def _without_git() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def new_run_folder(folder: str | Path) -> Path:
    """The folder, if a run can be written there. Raises InputError where it holds another run or is no folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`out` {folder} is a file; name a folder.")
    if (folder / POSTERIOR).exists():
        raise InputError(f"`out` {folder} holds another run; name a new folder, or remove it first.")
    if (folder / "config.yaml").exists():
        raise InputError(
            f"`out` {folder} holds another run, unfinished; go on with it by `resume` {folder}, or name a new folder."
        )
    return folder


def check_writable_config(config: Mapping[str, Any]) -> None:
    """Raise InputError where a configuration holds a Python object that no text stands for."""
    for key, value in config.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise InputError(
                f"this run cannot be saved: its {key} is a Python object; put it into a module and give it as "
                f"{key}='package.module:object'."
            )
