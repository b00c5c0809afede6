"""Checkpoints: all that a fit needs to go on as if it had never stopped, in one file of tensors and plain numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from kgpyro.files import write_whole
from kgpyro.inference.progress import Progress, put_tensors, tensors_of
from kgpyro.inference.training import Training
from kgpyro.posterior.runs import FORMAT, check_format, refusing
from kgpyro.version import VERSION

FILE = "checkpoint.safetensors"
SHARE = 50  # writing checkpoints takes at most one part in so many of the time


@dataclass(frozen=True)
class Checkpoint:
    """The state of a fit between two steps.

    Attributes:
        tensors: parameters and buffers (``module.…``), those of the best state so far (``best.…``), the optimiser's
            state (``optimizer.i.…`` of the i-th parameter), and the states of the random generators.
        facts: numbers and lists of them: the step, the log so far, the sums of the present epoch, and so on.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @classmethod
    def of(cls, trainer: pl.Trainer, module: Training, progress: Progress) -> Checkpoint:
        """That of a training loop between two steps."""
        within_epoch = module.step % module.schedule.steps_per_epoch
        tensors = _prefixed("module", tensors_of(module).items())
        tensors["random"] = module.randomness.generator("cpu").get_state()
        tensors["order"] = module.queries.before if within_epoch else module.queries.generator.get_state()
        if module.device.type == "cuda":
            tensors["random_cuda"] = module.randomness.generator(module.device).get_state()
        for i, state in trainer.optimizers[0].state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{i}", ((k, v) for k, v in state.items() if isinstance(v, Tensor)))
        facts = {
            "step": module.step,
            "skipped": module.skipped,
            "failures": module.failures,
            "finished": progress.finished,
            "rows": progress.rows,
            "sums": progress.sums,
            "seconds": time.monotonic() - progress.started,
            "precision": trainer.precision_plugin.state_dict(),
            "best": None,
        }
        if progress.best is not None:
            mrr, epoch, best = progress.best
            tensors |= _prefixed("best", best.items())
            facts["best"] = [mrr, epoch]
        return cls(tensors, facts)

    def put_into(self, module: Training, progress: Progress) -> None:
        """Set a training loop that has not begun to this state; the optimiser and the generators follow as it begins.

        Raises ValueError where it is of another model.
        """
        own = tensors_of(module)
        saved = self._under("module")
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in saved.items()}:
            raise ValueError("its tensors are not those of the model that the options name")
        features = [value for key, value in saved.items() if key.endswith(".features")]
        if module.kg.features is not None and not any(torch.equal(value, module.kg.features) for value in features):
            raise ValueError("the features are others than those it began with")
        put_tensors(module, saved)
        module.step = self.facts["step"]
        module.skipped, module.failures = self.facts["skipped"], self.facts["failures"]
        progress.rows, progress.sums = list(self.facts["rows"]), list(self.facts["sums"])
        progress.before, progress.finished = self.facts["seconds"], self.facts["finished"]
        if self.facts["best"] is not None:
            progress.best = (*self.facts["best"], self._under("best"))
        module.restore = self._begin

    def _begin(self, trainer: pl.Trainer, module: Training) -> None:
        optimizer = trainer.optimizers[0]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self._under("optimizer").items():
            i, name = key.split(".", 1)
            state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        trainer.precision_plugin.load_state_dict(self.facts["precision"])
        module.queries.go_on(self.tensors["order"], module.step % module.schedule.steps_per_epoch)
        module.randomness.generator("cpu").set_state(self.tensors["random"].cpu())
        if "random_cuda" in self.tensors and module.device.type == "cuda":
            module.randomness.generator(module.device).set_state(self.tensors["random_cuda"].cpu())
        trainer.should_stop = self.facts["finished"]

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}

    def write(self, folder: Path) -> None:
        """Put it into a run folder, in place of an earlier one. Raises InputError where that cannot be."""
        metadata = {"format": FORMAT, "kgpyro": VERSION, "facts": json.dumps(self.facts)}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.tensors.items()}
        write_whole(folder / FILE, lambda path: safetensors.torch.save_file(tensors, path, metadata))

    @classmethod
    def read(cls, folder: Path) -> Checkpoint | None:
        """That of a run folder; None where there is none yet. Raises InputError for a damaged one."""
        if not (folder / FILE).is_file():
            return None
        with refusing(folder), safe_open(folder / FILE, framework="pt") as file:
            metadata = file.metadata() or {}
            check_format(folder, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return cls(tensors, json.loads(metadata["facts"]))


def _prefixed(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in tensors}


class Checkpoints(pl.Callback):
    """Writes a checkpoint into a folder every so often, when the fit is interrupted, and when it ends.

    Args:
        progress: of the same fit; it comes before this one among the trainer's callbacks.
        folder: the run folder.
        every: seconds between checkpoints at least (0: one after every step).
        begin: called in the first process before the first step.
    """

    def __init__(self, progress: Progress, folder: Path, every: float, begin: Callable[[], None]):
        self.progress, self.folder, self.every, self.begin = progress, folder, every, begin
        self.cost = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.begin()
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.step % module.schedule.steps_per_epoch and trainer.world_size == 1:
            self._write(trainer, module, trainer.should_stop)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if module.step % module.schedule.steps_per_epoch == 0:
            self._write(trainer, module, trainer.should_stop or self.progress.finished)

    def _write(self, trainer: pl.Trainer, module: Training, now: bool) -> None:
        started = time.monotonic()
        wait = max(self.every, SHARE * self.cost) if self.every else 0.0
        due = started - self.last >= wait and not module.failures  # a state that leads nowhere replaces no good one
        if trainer.is_global_zero and (now or due) and module.kg.share is None:
            Checkpoint.of(trainer, module, self.progress).write(self.folder)
            self.last = time.monotonic()
            self.cost = self.last - started
