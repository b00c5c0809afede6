"""Stochastic variational inference: the bound as a Lightning module, its schedules, and what optimises it."""

from __future__ import annotations

import ctypes
import inspect
import logging
import math
import platform
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.inference.empirical_bayes import ClosedForm
from kgpyro.inference.progress import Progress, asking
from kgpyro.posterior.replay import Program
from kgpyro.program.batches import Batches
from kgpyro.program.owners import is_spread
from kgpyro.program.variational import Guide
from kgpyro.randomness import seeded


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


OPTIMIZERS = {
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SPARSE_OPTIMIZERS = ("adagrad", "sgd")  # those whose state follows sparse gradients row by row
FAILURES = 10  # steps in a row without a finite loss and gradient that end a fit


class Diverged(InputError):
    """A fit came to no finite loss and gradient any more; the parameters are those before."""


class Apart(DDPStrategy):
    """Processes that are started and meet as for PyTorch's DistributedDataParallel, with gradients of their own."""

    def configure_ddp(self) -> None:
        pass


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks a step frees for the next one, instead of returning them to the system.

    A step frees and takes again some twenty tables; having their pages mapped and zeroed anew each time took up to half
    of it. Nothing happens where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


class Training(pl.LightningModule):
    """The bound of a model and a guide as a module that Lightning optimises.

    Attributes:
        step: how many steps are done, before an interruption too.
        skipped: how many of them changed nothing, since loss or gradient were not finite; ``failures`` the latest.
        restore: called as training starts, to set optimiser and generators to those of a checkpoint.
    """

    def __init__(
        self,
        program: Program,
        guide: Guide,
        config: Mapping[str, Any],
        randomness: seeded | None = None,
        closed_form: ClosedForm | None = None,
    ):
        super().__init__()
        keep_freed_memory()
        self.program, self.config, self.closed_form = program, config, closed_form
        self.kg, self.batches, self.own = program.kg, program.batches, program.parameters.made
        self.randomness = randomness or seeded(config["seed"])
        self.schedule = KLSchedule(
            config["kl_schedule"],
            config["kl_weight"],
            config["warmup"],
            math.ceil(len(self.batches) / config["batch_size"]),
            config["epochs"],
        )
        self.elbo = WeightedELBO(config["kl_weight"], config["estimator"], program.parameters)
        self.bound, self.per_fact = self.elbo(program.model, guide), guide.per_fact
        self.step = self.skipped = self.failures = 0
        self.finite_loss = True
        self.trained_on = self.device
        self.restore: Callable[[pl.Trainer, Training], None] | None = None

    @property
    def whole(self) -> list[torch.nn.Parameter]:
        """The parameters that are in every process, where they share the entities."""
        spread = {id(p) for name, p in self.bound.guide.named_parameters() if is_spread(name)}
        return [p for p in self.parameters() if id(p) not in spread]

    def train_dataloader(self) -> RandomQueries:
        """This process' share of the queries."""
        share = (0, 1) if self.kg.share else (self.global_rank, self.trainer.world_size)
        self.queries = RandomQueries(len(self.batches), self.config["batch_size"], self.config["seed"], *share)
        return self.queries

    def on_train_start(self) -> None:
        self._trained, self.trained_on = list(self.parameters()), self.device
        self._scaled = bool(self.trainer.precision_plugin.state_dict())  # then an infinite gradient is nothing unusual
        if power := self.config["kl_frequency"]:
            self.elbo.symbol_weights = frequency_weights(self.batches, power, self.device)
        if self.restore is not None:
            self.restore(self.trainer, self)

    def on_train_epoch_start(self) -> None:
        if (processes := self.trainer.world_size) > 1 and not self.kg.share:  # noise of its own in every epoch
            epoch = self.step // self.schedule.steps_per_epoch
            self.randomness.reseed(self.config["seed"] + 1_000_003 * (1 + self.global_rank + processes * epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = OPTIMIZERS[self.config["optimizer"]]
        can_fuse = "fused" in inspect.signature(optimizer).parameters and not self.kg.sparse
        can_fuse &= self.config["optimizer"] != "adagrad" or self.device.type == "cpu"  # PyTorch has no other
        fused = {"fused": True} if can_fuse else {}
        return optimizer(self.parameters(), lr=self.config["lr"], **fused)

    def training_step(self, index: Tensor, _: int) -> Tensor:
        batch = self.batches.to(self.device)(index.to(self.device))
        self.elbo.kl_weight, self.index = self.schedule(self.step), index
        if self.closed_form and self.step and self.step % self.schedule.steps_per_epoch == 0:
            self.closed_form.step(self.elbo.symbol_weights)
        if self.per_fact and self.schedule.weight:  # β prices what is known of symbols, not of intercepts
            self.elbo.global_weight = self.elbo.kl_weight / self.schedule.weight
        if self.config["lr_schedule"] == "linear":  # of the step alone, so that a checkpoint need not know it
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.config["lr"] * (1 - self.step / self.schedule.steps)
        loss = self.bound(self.kg, batch) / self.batches.num_observed
        self.step += 1
        last = self.elbo.last
        self.finite_loss = math.isfinite(last.price - last.log_likelihood)
        return loss if self.finite_loss else loss * math.nan  # every process then leaves out this step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out a step whose loss or gradient is not finite. Raises Diverged after too many in a row."""
        if (share := self.kg.share) is not None:
            share.sum_gradients(self.whole)
        if self.finite_loss and (self._scaled or self._finite_gradients()):
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
        if self.kg.share is not None:
            return math.isfinite(float(self.kg.share.sum(torch.stack(sums).sum())))
        if self.device.type == "cpu":
            return all(math.isfinite(float(total)) for total in sums)
        return bool(torch.stack(sums).isfinite().all())

    def cause(self) -> str:
        """Where the last step went wrong, in words."""
        last = self.elbo.last
        found = [f"log-likelihood {last.log_likelihood:.3g}, KL {last.kl:.3g}"]
        for site in (site for site, kl in last.kl_per_latent.items() if not math.isfinite(float(kl))):
            kind = next((k for sites in self.bound.guide.symbols.values() for n, k in sites if n == site), None)
            prior = "of its own" if kind is None else self.kg.symbol_prior(kind).prior.text or "given in Python"
            found.append(f"site {site} under prior {prior}")
        for name, p in self.named_parameters():
            if not bool(p.detach().isfinite().all()):
                found.append(f"value of {name.removeprefix('bound.')}")
            elif self.finite_loss and p.grad is not None and not bool(p.grad.to_dense().isfinite().all()):
                found.append(f"gradient of {name.removeprefix('bound.')}")
        queries = ", ".join(map(str, self.index[:3].tolist()))
        return (
            f"the loss or its gradient was not finite in {self.failures} steps in a row, up to step {self.step} "
            f"({'; '.join(found)}; batch of queries {queries}, …); lower lr, or choose a tighter prior."
        )


def is_alone(config: Mapping[str, Any]) -> bool:
    """Whether a fit takes one process."""
    return config["devices"] * config["nodes"] == 1


def frequency_weights(batches: Batches, power: float, device: torch.device | str) -> dict[str, Tensor]:
    """``(n_s / mean n) ** power`` of every symbol, by kind, ``n_s`` the training facts that it is in (at least 1)."""
    counts = {kind: n.clamp_min(1).to(batches.dtype) for kind, n in batches.occurrences().items()}
    return {kind: (n / n.mean()).pow(power).to(device) for kind, n in counts.items()}


def precision_in_use(precision: str, device: str) -> str:
    """``precision`` as ``device`` has it: bf16 is 32 on a processor without such products, where PyTorch's take ten
    times as long as float32's.
    """
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = device == "cpu" or (device == "auto" and not accelerated)
    return "32" if precision == "bf16" and on_cpu and not has_bf16() else precision


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 matrices at least as fast as float32 ones, as oneDNN says."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_LIGHTNING, _LOCK = logging.getLogger("lightning.pytorch"), threading.Lock()
_LEVELS: list[int] = []  # of that logger before each fit that is under way; the first is the caller's


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's tips, by way of Python's one logger of that name: fits of several threads share it."""
    with _LOCK:
        _LEVELS.append(_LIGHTNING.level)
        _LIGHTNING.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _LOCK:
            level = _LEVELS.pop()
            if not _LEVELS:
                _LIGHTNING.setLevel(level)


def train(module: Training, bar: Progress, callbacks: Sequence[pl.Callback] = (), logger: Any = False) -> int:
    """Optimise in place for what is left of the epochs, and return the rank of this process.

    The first Ctrl-C interrupts ``bar``. ``logger`` is Lightning's, or a list of them, and is given each epoch's row.

    Several processes (``devices`` on each of ``nodes``) see a share of each batch, with gradients averaged by PyTorch's
    DistributedDataParallel. Raises InputError for an absent device.
    """
    config = module.config
    precision = precision_in_use(config["precision"], config["device"])
    kind, _, number = config["device"].partition(":")
    names = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    try:
        with (
            quiet(),
            asking(bar.interrupt),
            warnings.catch_warnings(),
            torch.sparse.check_sparse_tensor_invariants(False),
        ):
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*(Sparse invariant|lightning|dataloader).*")
            trainer = pl.Trainer(
                max_epochs=max(1, config["epochs"] - module.step // module.schedule.steps_per_epoch),
                accelerator="gpu" if kind == "cuda" else kind,
                devices=[int(number)] if number else config["devices"],
                num_nodes=config["nodes"],
                strategy=("auto" if is_alone(config) else Apart() if module.kg.share else "ddp"),
                precision=names[precision],  # type: ignore[arg-type]
                callbacks=[bar, *callbacks],
                logger=logger,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            met = torch.distributed.is_initialized()  # a group of the caller's own stays
            trainer.fit(module)
            module.to(module.trained_on)  # Lightning has put it on the CPU
            met |= module.kg.share is not None  # then what is asked of the posterior is asked of all processes
            if torch.distributed.is_initialized() and not met:  # left together: who finds the others gone aborts
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
            return trainer.global_rank
    except torch.linalg.LinAlgError as error:
        what = f"a covariance of the guide was not positive definite any more after step {module.step}"
        raise Diverged(f"{what}; lower `lr`, or choose a tighter `prior`.") from error
    except pl.utilities.exceptions.MisconfigurationException as error:
        what = f"`device` {config['device']} with `precision` {precision}"
        raise InputError(f"{what}: {error} cpu works anywhere.") from error
