"""A run as a folder of plain data files: weights and graph as safetensors, metrics as JSON, options as YAML."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kgpyro.data.graph import Graph
from kgpyro.data.stored import read_graph, write_graph
from kgpyro.errors import InputError
from kgpyro.files import POSTERIOR, refuse_no_run, write_text, write_whole
from kgpyro.names import OWN, is_dotted
from kgpyro.program.owners import is_spread
from kgpyro.version import VERSION

AT_ONCE = 1 << 20  # numbers of a table that are read at once
FORMAT = "2"
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
        graph: all three splits (``graph.safetensors``).
        config: the resolved options of the fit (``config.yaml``).
        metrics: ``metrics.json``.
        log: one row per epoch (``log.csv``); empty where there is none.
        state: parameters of guide, setting and model, or draws of the latents (``posterior.safetensors``); of tables
            the shapes alone where it was read, for :func:`read_rows` to fill.
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

        The folder is a new one, or that of the ``unfinished`` fit whose run this is, or of a run to replace; ``shards``
        files have the rows of the entities (:func:`write_rows`), if more than this one. Raises InputError where the
        folder holds another run or cannot be written.
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
    def read(cls, folder: str | Path) -> Run:
        """Read all files. Raises InputError where there is no run, or a file of it is missing or damaged."""
        folder = Path(folder)
        refuse_no_run(folder)
        with refusing(folder):
            with safe_open(folder / POSTERIOR, framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                check_format(folder, metadata)
                state = {k: tensors.get_tensor(k) for k in tensors.keys() if not _is_rows(k, tensors)}  # noqa: SIM118
            state |= _spread(folder)
            metrics = _object(folder / "metrics.json")
            there = [name for name in ("run", "recalibration") if (folder / f"{name}.json").is_file()]
            rest = {name: _object(folder / f"{name}.json") for name in there}
            log = pd.read_csv(folder / "log.csv") if (folder / "log.csv").is_file() else pd.DataFrame()
            said = rest.get("run", {}), rest.get("recalibration")
            return cls(read_graph(folder), read_config(folder), metrics, log, state, *said)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Raises InputError where they are no floating-point numbers."""
        found = self.state["setting.base_rate"].dtype if "setting.base_rate" in self.state else None
        if found not in (torch.float32, torch.float64):
            raise InputError("the weights do not fit: they are no floating-point numbers of 32 or 64 bits.")
        return found

    def fill(self, modules: Mapping[str, nn.Module], folder: Path, first: int | None = None) -> None:
        """Give modules their weights, by the part of the state that is theirs, those of tables block by block.

        ``first`` is of the entities whose rows the tables have, where that is a part of all. Raises InputError where
        the weights do not fit.
        """
        made = {f"{part}.{k}": v for part, module in modules.items() for k, v in module.state_dict().items()}
        tables = {k: made[k] for k, v in self.state.items() if v.is_meta and k in made}
        if first is None:
            tables = {k: table for k, table in tables.items() if table.shape == self.state[k].shape}
        try:
            for part, module in modules.items():
                state = {k: tables.get(k, v) for k, v in self.state.items() if k.startswith(f"{part}.")}
                module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items()})
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            raise InputError(f"the weights in {folder} do not fit its config.yaml: {what}.") from error
        for key, table in tables.items():
            read_rows(folder, key, first or 0, table)

    def refuse_own_code(self, named_again: set[str]) -> None:
        """Raise InputError where the options name code of the user's that was not named again."""
        for key in set(OWN) - named_again:
            if is_own_code(value := self.config.get(key)):
                raise InputError(
                    f"this run was fitted with your own {key} {value}; name it again to have it imported: "
                    f"`run_{key}` {value} on the command line, {key}='{value}' in Python."
                )


def is_own_code(option: Any) -> bool:
    """Whether an option names code of the user's."""
    return isinstance(option, str) and is_dotted(option) and not option.startswith("pykeen:")


def start_run(folder: Path, graph: Graph, config: Mapping[str, Any]) -> None:
    """Write what is known before the fit: the graph, then the options."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / POSTERIOR).unlink(missing_ok=True)  # of this same fit, from when it was interrupted
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error}.") from error
    write_graph(graph, folder)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def _is_rows(key: str, file: Any) -> bool:
    return key.startswith("guide.") and is_spread(key) and len(file.get_slice(key).get_shape()) > 0


def _file(folder: Path, number: int, shards: int) -> Path:
    return folder / f"posterior-{number + 1}-of-{shards}.safetensors"


def _files(folder: Path) -> list[Path]:
    """Those that have rows of entities, in their order."""
    with safe_open(folder / POSTERIOR, framework="pt") as file:
        shards = int((file.metadata() or {}).get("shards", 1))
    return [_file(folder, i, shards) for i in range(shards)] if shards > 1 else [folder / POSTERIOR]


def _spread(folder: Path) -> dict[str, Tensor]:
    """The tables of entities of all files, put together, as shapes alone."""
    files, found = _files(folder), {}
    with safe_open(files[0], framework="pt") as file:
        keys = [key for key in file.keys() if _is_rows(key, file)]  # noqa: SIM118
    for key in keys:
        parts = [_slice(path, key) for path in files]
        shape = (sum(part.get_shape()[0] for part in parts), *parts[0].get_shape()[1:])
        found[key] = torch.empty(shape, dtype=parts[0][:0].dtype, device="meta")
    return found


def _slice(path: Path, key: str) -> Any:
    with safe_open(path, framework="pt") as file:
        return file.get_slice(key)


def write_rows(folder: Path, tables: Mapping[str, Tensor], number: int, shards: int) -> None:
    """Write one process's rows of the entities' tables, the ``number``-th file from 0 of as many as ``shards``."""
    tables = {key: value.detach().cpu().contiguous() for key, value in tables.items()}
    metadata = {"format": FORMAT, "kgpyro": VERSION}
    write_whole(_file(folder, number, shards), lambda path: safetensors.torch.save_file(dict(tables), path, metadata))


@torch.no_grad()
def read_rows(folder: Path, key: str, first: int, into: Tensor) -> None:
    """Fill ``into``, ``(n, d)``, with the rows of a table from ``first`` on, whichever files of a run have them."""
    with refusing(folder):
        begin, rows = 0, max(1, AT_ONCE // max(1, into[:1].numel()))
        for path in _files(folder):
            end = begin + _slice(path, key).get_shape()[0]
            for start in range(max(first, begin), min(first + len(into), end), rows):
                stop = min(start + rows, first + len(into), end)
                # opened anew each time: what was read of a file counts as memory until it is closed
                into[start - first : stop - first] = _slice(path, key)[start - begin : stop - begin]
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
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    run = partial(subprocess.run, capture_output=True, text=True, check=True, env=env)
    try:
        run([*git, "ls-files", "--error-unmatch", source.name])
        return str(run([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None


def new_run_folder(folder: str | Path) -> Path:
    """The folder, if a run can be written there. Raises InputError where it holds another run or is no folder."""
    folder, reason = Path(folder), ""
    if folder.exists() and not folder.is_dir():
        reason = "is a file; name a folder."
    elif (folder / POSTERIOR).exists():
        reason = "holds another run; name a new folder, or remove it first."
    elif (folder / "config.yaml").exists():
        reason = f"holds another run, unfinished; go on with it by `resume` {folder}, or name a new folder."
    if reason:
        raise InputError(f"`out` {folder} {reason}")
    return folder


def check_writable_config(config: Mapping[str, Any]) -> None:
    """Raise InputError where a configuration holds a Python object that no text stands for."""
    for key, value in config.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise InputError(
                f"this run cannot be saved: its {key} is a Python object; put it into a module and give it as "
                f"{key}='package.module:object'."
            )
