"""What a fit shows and remembers as it goes: a bar, a log row per epoch, early stopping, an orderly interruption."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from torch import Tensor, nn
from tqdm.auto import tqdm


class Progress(pl.Callback):
    """One bar over all steps, with loss, KL and KL weight; one log row per epoch; early stopping on the validation MRR.

    Args:
        validate: the validation MRR of the present state.
        steps: of the whole fit.
        patience: epochs without a better one after which to stop (0: never). The best state is put back at the end.
        every: epochs between validations.
        show: show the bar.
        look: the epoch after which to validate once, to see whether more epochs help (0: none).

    Attributes:
        before: seconds that earlier parts of a resumed fit took.
        interrupted: whether to stop after the present step, or, of several processes, after the present epoch.
        finished: whether all epochs are done, or early stopping has ended the fit.
    """

    def __init__(self, validate: Callable[[], float], steps: int, patience: int, every: int, show: bool, look: int = 0):
        self.look = look
        self.validate, self.steps, self.patience, self.every, self.show = validate, steps, patience, every, show
        self.rows: list[dict[str, float]] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.sums = [0.0] * 5
        self.before = 0.0
        self.interrupted = self.finished = False

    def followed_by(self, other: Progress) -> Progress:
        """Another fit's, whose rows and seconds go on where these end."""
        other.rows, other.before = [*self.rows], time.monotonic() - self.started
        return other

    def interrupt(self) -> None:
        """Ask the fit to stop after the present step."""
        self.interrupted = True
        print("\nStopping after this step; once more to stop at once.", file=sys.stderr, flush=True)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started = time.monotonic() - self.before
        self.bar = tqdm(
            total=self.steps,
            initial=module.step,
            desc="fit",
            unit="step",
            disable=not (self.show and trainer.is_global_zero),
            mininterval=0.25,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last, observed = module.elbo.last, module.batches.num_observed
        if module.finite_loss:
            loss, weight = last.price - last.log_likelihood, module.elbo.kl_weight
            values = (loss / observed, last.log_likelihood / observed, last.kl / observed, weight, 1)
            self.sums = [total + value for total, value in zip(self.sums, values, strict=True)]
        self.bar.update()
        if trainer.world_size == 1 and self.interrupted:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        loss, likelihood, kl, weight = (
            total / self.sums[-1] if self.sums[-1] else math.nan for total in self.sums[:-1]
        )
        self.sums = [0.0] * 5
        epoch = len(self.rows) + 1
        row = {"epoch": epoch, "loss": loss, "log_likelihood": likelihood, "kl": kl, "kl_weight": weight}
        self.finished = module.step == self.steps
        complete = module.step % module.schedule.steps_per_epoch == 0
        due = epoch % self.every == 0 or self.finished
        if self.patience and complete and due and module.schedule.reached(module.step):
            row["valid_mrr"] = self.validate()
            if self.best is None or row["valid_mrr"] > self.best[0]:
                self.best = (row["valid_mrr"], epoch, {k: v.clone() for k, v in tensors_of(module).items()})
            self.finished |= epoch - self.best[1] >= self.patience
        elif epoch == self.look:
            row["valid_mrr"] = self.validate()
        row["seconds"] = round(time.monotonic() - self.started, 3)
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=module.step)
        shown: dict[str, Any] = {k: f"{row[k]:.3g}" for k in ("loss", "kl", "kl_weight", "valid_mrr") if k in row}
        self.bar.set_postfix({"epoch": epoch, **shown}, refresh=False)
        interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        trainer.should_stop |= self.finished or interrupted  # a callback of the user's may stop it too

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.bar.close()
        if self.best is not None:
            put_tensors(module, self.best[2])

    @property
    def table(self) -> pd.DataFrame:
        """One row per epoch: loss, log-likelihood and KL in nats per observed fact, KL weight, seconds so far."""
        return pd.DataFrame(self.rows)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, each once, detached."""
    return {key: value.detach() for key, value in [*module.named_parameters(), *module.named_buffers()]}


def put_tensors(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set a module's parameters and buffers."""
    for key, value in tensors_of(module).items():
        value.copy_(values[key])


@contextmanager
def asking(interrupt: Callable[[], None]) -> Iterator[None]:
    """Have the first Ctrl-C call ``interrupt``; a second one is an ordinary KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # signals are the main thread's; a process that ignores this one goes on doing so
        return

    def ask(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        interrupt()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    except SystemExit as error:  # what Lightning makes of it
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
