"""A run as a folder of plain data files: tensors as safetensors, the graph and metrics as JSON, options as YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.graph import SPLITS, Graph
from kgpyro.names import is_dotted

FORMAT = "1"
OWN = ("prior", "entity_prior", "relation_prior", "score", "guide")  # options that may name a user's own code


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        graph: all three splits (``graph.json``).
        config: the resolved options of the fit (``config.yaml``).
        metrics: ``metrics.json``.
        log: one row per epoch (``log.csv``); empty where there is none.
        state: parameters of guide and setting (``posterior.safetensors``).
        sites: the model's latent sites (metadata of the same file).
        recalibration: of predicted probabilities (``recalibration.json``); None where there is none.
    """

    graph: Graph
    config: dict[str, Any]
    metrics: dict[str, Any]
    log: pd.DataFrame
    state: dict[str, Tensor]
    sites: set[str]
    recalibration: dict[str, Any] | None = None

    def write(self, folder: str | Path) -> None:
        """Write all files. Raises InputError where the folder holds another run or cannot be written."""
        folder = new_run_folder(folder)
        check_writable_config(self.config)
        splits = {split: getattr(self.graph, split).tolist() for split in SPLITS}
        names = {"name": self.graph.name, "entities": self.graph.entities, "relations": self.graph.relations}
        splits["negatives"] = {split: triples.tolist() for split, triples in self.graph.negatives.items()}
        state = {key: value.detach().cpu().contiguous() for key, value in self.state.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            metadata = {"format": FORMAT, "sites": ",".join(sorted(self.sites))}
            safetensors.torch.save_file(state, folder / "posterior.safetensors", metadata)
            (folder / "graph.json").write_text(json.dumps(names | splits, ensure_ascii=False), encoding="utf-8")
            (folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
            (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")
            if not self.log.empty:
                self.log.to_csv(folder / "log.csv", index=False)
        except OSError as error:
            raise InputError(f"the run cannot be written to {folder}: {error}.") from error

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read all files. Raises InputError where there is no run, or a file of it is missing or damaged."""
        folder = Path(folder)
        if not (folder / "posterior.safetensors").is_file():
            raise InputError(f"{folder} holds no run: posterior.safetensors is missing there.")
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            data = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            train, valid, test = (_triples(data[split]) for split in SPLITS)
            false = {split: _triples(rows) for split, rows in data.get("negatives", {}).items()}
            names = tuple(data["entities"]), tuple(data["relations"])
            graph = Graph(data["name"], *names, train, valid, test, negatives=false)
            with safe_open(folder / "posterior.safetensors", framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
            path = folder / "recalibration.json"
            recalibration = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
            log = pd.read_csv(folder / "log.csv") if (folder / "log.csv").is_file() else pd.DataFrame()
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, SafetensorError) as error:
            raise InputError(f"the run in {folder} is incomplete or damaged: {error}.") from error
        if metadata.get("format") != FORMAT:
            raise InputError(f"the run in {folder} has format {metadata.get('format')}; this kgpyro reads {FORMAT}.")
        return cls(graph, config, metrics, log, state, set(metadata["sites"].split(",")), recalibration)

    def refuse_own_code(self, named_again: set[str]) -> None:
        """Raise InputError where the options name code of the user's that was not named again."""
        for key in set(OWN) - named_again:
            value = str(self.config.get(key) or "")
            if is_dotted(value) and not value.startswith("pykeen:"):
                raise InputError(
                    f"this run was fitted with your own {key} {value}; name it again to have it imported: "
                    f"--run-{key.replace('_', '-')} {value}, or {key}='{value}' in Python."
                )


def store_recalibration(folder: Path, recalibration: dict[str, Any] | None) -> None:
    """Write it to a run's folder; None removes what is there. Raises InputError where that cannot be."""
    path = folder / "recalibration.json"
    try:
        if recalibration is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(recalibration) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"the recalibration cannot be stored in {folder}: {error}.") from error


def _triples(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 3)


def new_run_folder(folder: str | Path) -> Path:
    """The folder, if a run can be written there. Raises InputError where it holds another run or is no folder."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder.")
    if (folder / "config.yaml").exists() or (folder / "posterior.safetensors").exists():
        raise InputError(f"--out {folder} holds another run; name a new folder, or remove it first.")
    return folder


def check_writable_config(config: Mapping[str, Any]) -> None:
    """Raise InputError where a configuration holds a Python object that no text stands for."""
    for key, value in config.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise InputError(
                f"this run cannot be saved: its {key} is a Python object; put it into a module and give it as "
                f"{key}='package.module:object'."
            )
