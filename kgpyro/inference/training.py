"""Stochastic variational inference: KL schedules, the training loop on Lightning, the final estimate of the bound."""

from __future__ import annotations

import ctypes
import inspect
import logging
import math
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from tqdm.auto import tqdm

from kgpyro.errors import InputError
from kgpyro.inference.elbo import Terms, WeightedELBO
from kgpyro.program.batches import Batches
from kgpyro.program.likelihood import Answers
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide

OPTIMIZERS = {
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SPARSE_OPTIMIZERS = ("adagrad", "sgd")  # those whose state follows sparse gradients row by row
FAILURES = 10  # steps in a row without a finite loss and gradient that end a fit
SCHEDULES = ("constant", "warmup", "compression")
LR_SCHEDULES = ("constant", "linear")


class Diverged(InputError):
    """A fit came to no finite loss and gradient any more; the parameters are those before."""


class KLSchedule:
    """The KL weight at each step.

    * ``constant``: ``weight`` throughout.
    * ``warmup``: linearly from 0 to ``weight`` over the first ``warmup`` share of all steps, then ``weight``.
    * ``compression``: Blundell et al. 2015: in an epoch of M batches the i-th (from 1) gets ``weight · M 2^{M-i} /
      (2^M - 1)``, whose mean over the epoch is ``weight``.
    """

    def __init__(self, kind: str, weight: float, warmup: float, steps_per_epoch: int, epochs: int):
        self.kind, self.weight = kind, weight
        self.steps_per_epoch, self.steps = steps_per_epoch, steps_per_epoch * epochs
        self.warmup_steps = math.ceil(warmup * steps_per_epoch * epochs) if kind == "warmup" else 0

    def __call__(self, step: int) -> float:
        if self.kind == "compression":
            m, i = self.steps_per_epoch, step % self.steps_per_epoch + 1
            return self.weight * m * 2.0**-i / (1 - 2.0**-m)
        return self.weight * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.weight

    def reached(self, step: int) -> bool:
        """Whether the weight is at its target from this step on (in the mean over an epoch)."""
        return step >= self.warmup_steps


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks a step frees for the next one, instead of returning them to the system.

    A step frees and takes again some twenty tables; having their pages mapped and zeroed anew each time took up to half
    of it. Nothing happens where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class RandomQueries:
    """The indices of all training queries, in a new order every epoch, ``size`` at a time.

    Of several processes each takes its share of every batch: the order is the same in all, drawn from a generator of
    its own.
    """

    def __init__(self, total: int, size: int, seed: int = 0, rank: int = 0, processes: int = 1):
        self.total, self.size, self.rank, self.processes = total, size, rank, processes
        self.generator = torch.Generator().manual_seed(seed)
        self.before = self.generator.get_state()
        self._skip = 0

    def go_on(self, before: Tensor, skip: int) -> None:
        """Start in the midst of an epoch: the generator's state before it, and how many of its batches are done."""
        self.generator.set_state(before)
        self._skip = skip

    def __len__(self) -> int:
        return math.ceil(self.total / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        self.before, skip, self._skip = self.generator.get_state(), self._skip, 0
        for batch in torch.randperm(self.total, generator=self.generator).split(self.size)[skip:]:
            share = batch[self.rank :: self.processes]
            yield share if len(share) else batch[:1]


class Training(pl.LightningModule):
    """The bound of a model and a guide as a module that Lightning optimises.

    Attributes:
        step: how many steps are done, before an interruption too.
        skipped: how many of them changed nothing, since loss or gradient were not finite; ``failures`` the latest.
        restore: called as training starts, to set optimiser and generators to those of a checkpoint.
    """

    def __init__(
        self,
        kg: Setting,
        model: Callable,
        guide: Guide,
        elbo: WeightedELBO,
        batches: Batches,
        schedule: KLSchedule,
        optimizer: str,
        lr: float,
        batch_size: int = 256,
        seed: int = 0,
        lr_schedule: str = "constant",
    ):
        super().__init__()
        keep_freed_memory()
        self.lr_schedule = lr_schedule
        self.kg, self.batches, self.schedule = kg, batches, schedule
        self.elbo = elbo
        self.bound = elbo(model, guide)
        self.optimizer_name, self.lr = optimizer, lr
        self.batch_size, self.seed = batch_size, seed
        self.step = self.skipped = self.failures = 0
        self.finite_loss = True
        self.restore: Callable[[pl.Trainer, Training], None] | None = None

    def train_dataloader(self) -> RandomQueries:
        """This process' share of the queries."""
        share = self.global_rank, self.trainer.world_size
        self.queries = RandomQueries(len(self.batches), self.batch_size, self.seed, *share)
        return self.queries

    def on_train_start(self) -> None:
        self._trained = list(self.parameters())
        self._scaled = bool(self.trainer.precision_plugin.state_dict())  # then an infinite gradient is nothing unusual
        if self.restore is not None:
            self.restore(self.trainer, self)

    def on_train_epoch_start(self) -> None:
        if (processes := self.trainer.world_size) > 1:  # every process has noise of its own, in every epoch
            epoch = self.step // self.schedule.steps_per_epoch
            torch.manual_seed(self.seed + 1_000_003 * (1 + self.global_rank + processes * epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS[self.optimizer_name]
        can_fuse = "fused" in inspect.signature(optimizer).parameters and not self.kg.sparse
        fused = {"fused": True} if can_fuse else {}
        return optimizer(self.parameters(), lr=self.lr, **fused)

    def training_step(self, index: Tensor, _: int) -> Tensor:
        batch = self.batches.to(self.device)(index.to(self.device))
        self.elbo.kl_weight, self.index = self.schedule(self.step), index
        if self.lr_schedule == "linear":  # of the step alone, so that a checkpoint need not know it
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.lr * (1 - self.step / self.schedule.steps)
        loss = self.bound(self.kg, batch) / self.batches.num_observed
        self.step += 1
        last = self.elbo.last
        self.finite_loss = math.isfinite(self.elbo.kl_weight * last.kl - last.log_likelihood)
        return loss if self.finite_loss else loss * math.nan  # every process then leaves out this step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out a step whose loss or gradient is not finite. Raises Diverged after too many in a row."""
        scaled = bool(
            self.trainer.precision_plugin.state_dict()
        )  # then non-finite gradients are in the order of things
        if self.finite_loss and (scaled or self._finite_gradients()):
            self.failures = 0
            return
        self.skipped, self.failures = self.skipped + 1, self.failures + 1
        if self.failures == FAILURES:
            raise Diverged(self.cause())
        optimizer.zero_grad(set_to_none=True)

    def _finite_gradients(self) -> bool:
        """Whether they are, in one pass: a sum is not finite where one of its terms is not (or all are hopeless)."""
        found = [p.grad for p in self._trained if p.grad is not None]
        sums = [(g._values() if g.is_sparse else g).sum() for g in found]
        if self.device.type == "cpu":
            return all(math.isfinite(float(total)) for total in sums)
        return bool(torch.stack(sums).isfinite().all())

    def cause(self) -> str:
        """Where the last step went wrong, in words."""
        last = self.elbo.last
        kinds = {
            "head": "entity",
            "tail": "entity",
            "entities": "entity",
            "relation": "relation",
            "relations": "relation",
        }
        found = [f"log-likelihood {last.log_likelihood:.3g}, KL {last.kl:.3g}"]
        for site in (site for site, kl in last.kl_per_latent.items() if not math.isfinite(kl)):
            prior = self.kg.symbol_prior(kinds[site]).prior.text or "given in Python"
            found.append(f"site {site} under prior {prior}")
        for name, p in self.named_parameters():
            if not bool(p.detach().isfinite().all()):
                found.append(f"value of {name.removeprefix('bound.')}")
            elif self.finite_loss and p.grad is not None and not bool(p.grad.to_dense().isfinite().all()):
                found.append(f"gradient of {name.removeprefix('bound.')}")
        queries = ", ".join(map(str, self.index[:3].tolist()))
        return (
            f"the loss or its gradient was not finite in {self.failures} steps in a row, up to step {self.step} "
            f"({'; '.join(found)}; batch of queries {queries}, …); lower --lr, or choose a tighter prior."
        )


class Progress(pl.Callback):
    """One bar over all steps, with loss, KL and KL weight; one log row per epoch; early stopping on the validation MRR.

    Args:
        validate: the validation MRR of the present state.
        steps: of the whole fit.
        patience: epochs without a better one after which to stop (0: never). The best state is put back at the end.
        every: epochs between validations.
        show: show the bar.

    Attributes:
        before: seconds that earlier parts of a resumed fit took.
        interrupted: whether to stop after the present step, or, of several processes, after the present epoch.
        finished: whether all epochs are done, or early stopping has ended the fit.
    """

    def __init__(self, validate: Callable[[], float], steps: int, patience: int, every: int, show: bool):
        self.validate, self.steps, self.patience, self.every, self.show = validate, steps, patience, every, show
        self.rows: list[dict[str, float]] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.sums = [0.0] * 5
        self.before = 0.0
        self.interrupted = self.finished = False

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
        likelihood, kl, weight = last.log_likelihood / observed, last.kl / observed, module.elbo.kl_weight
        if module.finite_loss:
            values = (weight * kl - likelihood, likelihood, kl, weight, 1)
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
        row["seconds"] = round(time.monotonic() - self.started, 3)
        self.rows.append(row)
        shown: dict[str, Any] = {k: f"{row[k]:.3g}" for k in ("loss", "kl", "kl_weight", "valid_mrr") if k in row}
        self.bar.set_postfix({"epoch": epoch, **shown}, refresh=False)
        interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        trainer.should_stop = self.finished or interrupted

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


def latent_sites(model: Callable, kg: Setting, batches: Batches) -> set[str]:
    """The names of a model's latent sites, from one run of it. Raises InputError for what kgpyro cannot fit."""
    batch = batches(torch.arange(min(2, len(batches))))
    with torch.no_grad(), torch.random.fork_rng():
        trace = prune_subsample_sites(poutine.trace(model).get_trace(kg, batch))
    if trace.param_nodes:
        raise InputError(
            f"the model has pyro.param {trace.param_nodes[0]!r}, which would live in Pyro's global store; make "
            f"the model an nn.Module with a Parameter, or the quantity a latent with a prior."
        )
    if not trace.observation_nodes:
        raise InputError("the model observes nothing: give its likelihood obs=batch.y.")
    if kg.categorical and not any(isinstance(trace.nodes[y]["fn"], Answers) for y in trace.observation_nodes):
        raise InputError("the model has a likelihood of its own, not kg.likelihood; leave out --likelihood.")
    known = {site for _, sites in batch.frames() for site in sites} | kg.hyper_latents.keys()
    latent = set(trace.stochastic_nodes)
    if unknown := latent - known:
        raise InputError(
            f"the model's latent site {min(unknown)!r} stands for no symbols kgpyro knows; its sites can be "
            f"{', '.join(sorted(known))}."
        )
    return latent


@contextmanager
def _asking(interrupt: Callable[[], None]) -> Iterator[None]:
    """Have the first Ctrl-C call ``interrupt``; a second one is an ordinary KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # signals are the main thread's, and who ignores this one shall
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


def precision_in_use(precision: str, device: str) -> str:
    """``--precision`` as ``--device`` has it: bf16 is 32 on a processor without such products, where PyTorch's take ten
    times as long as float32's.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = device == "cpu" or (device == "auto" and not accelerated)
    return "32" if precision == "bf16" and on_cpu and not has_bf16() else precision


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices at least as fast as float32 ones, as oneDNN says."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def train(
    module: Training,
    epochs: int,
    device: str,
    precision: str,
    callbacks: Sequence[pl.Callback],
    devices: int = 1,
    nodes: int = 1,
    interrupt: Callable[[], None] = lambda: None,
) -> int:
    """Optimise in place, up to ``epochs`` passes over the training queries, and return the rank of this process.

    The first Ctrl-C calls ``interrupt``.


    Several processes (``devices`` on each of ``nodes``) see a share of each batch, with gradients averaged by PyTorch's
    DistributedDataParallel. Raises InputError for an absent device.
    """
    accelerator = {"gpu": "gpu", "cuda": "gpu"}.get(device, device)
    names = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with _asking(interrupt), warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants(False):
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*(Sparse invariant|lightning|dataloader).*")
            trainer = pl.Trainer(
                max_epochs=max(1, epochs - module.step // module.schedule.steps_per_epoch),
                accelerator=accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy="ddp" if devices * nodes > 1 else "auto",
                precision=names[precision],  # type: ignore[arg-type]
                callbacks=list(callbacks),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(module)
            return trainer.global_rank
    except pl.utilities.exceptions.MisconfigurationException as error:
        raise InputError(f"--device {device} --precision {precision}: {error}") from error
    finally:
        quiet.setLevel(level)


@torch.no_grad()
def estimate_elbo(
    elbo: WeightedELBO,
    kg: Setting,
    model: Callable,
    guide: Guide,
    batches: Batches,
    draws: int = 10,
    queries: int = 8192,
    batch_size: int = 512,
    progress: bool = False,
) -> tuple[float, float, Terms]:
    """The untempered ELBO over all facts of the training queries, in nats per observed fact.

    Args:
        elbo: which estimator to use.
        batches: over all candidates for the exact sum.
        draws: independent estimates, each from one posterior draw and at most ``queries`` random queries.

    Returns:
        Mean, its Monte-Carlo standard error, and the terms of the bound (per observed fact).
    """
    estimates = []
    total = Terms(0.0, 0.0)
    for _ in tqdm(range(draws), desc="ELBO", unit="draw", disable=not progress, leave=False):
        index = torch.randperm(len(batches))[:queries].to(kg.intercept.device)
        likelihood = kl = 0.0
        for part in index.split(batch_size):
            terms = elbo.terms(model, guide, kg, batches(part))
            likelihood += float(terms.log_likelihood) * len(part) / len(index)
            kl += float(terms.kl) * len(part) / len(index)
        estimates.append((likelihood - kl) / batches.num_observed)
        total = Terms(
            total.log_likelihood + likelihood / draws / batches.num_observed,
            total.kl + kl / draws / batches.num_observed,
            terms.kl_per_latent,
        )
    values = torch.tensor(estimates, dtype=torch.double)
    return float(values.mean()), float(values.std() / math.sqrt(draws)), total
