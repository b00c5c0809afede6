"""Numbers at their limits: steps without a finite loss or gradient, extreme priors, sizes and learning rates."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import own_code
import pytest
import torch
from torch import Tensor, nn

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.checkpoint import FILE
from kgpyro.inference.training import FAILURES, Training

QUICK: dict[str, Any] = {"dim": 4, "epochs": 8, "batch_size": 4, "device": "cpu", "model": "lim", "progress": False}
ONE = Graph.from_triples("one", [["a", "r", "b"]], [["a", "r", "b"]], [["b", "r", "a"]])


def finite(metrics: Any) -> bool:
    values = metrics.values() if isinstance(metrics, dict) else []
    return all(map(finite, values)) if values else not isinstance(metrics, float) or math.isfinite(metrics)


@pytest.mark.parametrize("model", ["lim", "lfm"])
@pytest.mark.parametrize(
    "options",
    [
        *({"prior": f"{family}(scale={scale})"} for family in ("normal", "laplace") for scale in ("1e-8", "1e8")),
        {"prior": "student_t(df=1)"},
        {"prior": "student_t(df=1, scale=1e8)"},
        {"prior": "gamma(rate=1e8)"},
        {"prior": "gamma(rate=1e-8)"},
        {"prior": "log_normal(scale=30)"},
        {"prior": "uniform(low=-1e-8, high=1e-8)"},
        {"prior": "normal(scale=half_cauchy(1e8))"},
        {"dim": 1, "score": "DistMult"},
        {"dim": 4096},
        {"kl_weight": 1e30},
        {"lr": 1e-30},
        *({"lr": 1e3, "optimizer": optimizer} for optimizer in ("adagrad", "adam", "sgd")),
        {"lr": 1e3, "negatives": 3},
        {"lr": 1e3, "precision": "bf16"},
    ],
    ids=str,
)
def test_extremes(tiny: Graph, model: str, options: dict[str, Any]) -> None:
    """Metrics that are numbers, or a sentence with the cause; and so on a graph of one fact."""
    for graph in (tiny, ONE):
        try:
            assert finite(kgpyro.fit(graph, **(QUICK | {"model": model} | options)).metrics)
        except InputError as error:
            assert options["lr"] == 1e3
            for words in ("was not finite in", "under prior normal", "batch of queries", "lower lr"):
                assert words in str(error)


class Spoilt(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, math.inf)


def spoil(patch: pytest.MonkeyPatch, steps: set[int], how: str) -> list[dict[str, Tensor]]:
    """Spoil the loss or the gradient of some steps; the parameters after every step."""
    real, after = Training.training_step, []

    def step(self: Training, *batch: Any) -> Tensor:
        now = self.step
        if now in steps and how == "loss":
            with torch.no_grad():
                before = self.kg.base_rate.clone()
                self.kg.base_rate.fill_(math.nan)
                loss = real(self, *batch)
                self.kg.base_rate.copy_(before)
            return loss.requires_grad_() if not loss.requires_grad else loss
        loss = real(self, *batch)
        return Spoilt.apply(loss) if now in steps else loss

    def end(self: Training, *_: Any) -> None:
        after.append({key: value.detach().clone() for key, value in self.named_parameters()})

    patch.setattr(Training, "training_step", step)
    patch.setattr(Training, "on_train_batch_end", end)
    return after


@pytest.mark.parametrize("negatives", ["all", 3])
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "rmsprop"])
def test_a_step_is_left_out(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, how: str, optimizer: str, negatives: Any
) -> None:
    with monkeypatch.context() as patch:
        after = spoil(patch, {2, 5}, how)
        posterior = kgpyro.fit(tiny, **(QUICK | {"optimizer": optimizer, "negatives": negatives}))
    moved = [any(not torch.equal(new[key], old[key]) for key in new) for old, new in pairwise(after)]
    assert [step + 1 for step, change in enumerate(moved) if not change] == [2, 5]
    assert (
        f"2 of {len(after)} steps were left out: their loss or gradient was not finite."
        in posterior.metrics["warnings"]
    )
    assert posterior.log.notna().to_numpy().all()
    assert finite(posterior.metrics)


def test_a_fit_that_fails_for_good_keeps_the_last_good_state(
    tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        after = spoil(patch, set(range(7, 1000)), "gradient")
        with pytest.raises(InputError) as caught:
            kgpyro.fit(tiny, out=run, checkpoint_every=0, **(QUICK | {"epochs": 50}))
    message = str(caught.value)
    assert f"not finite in {FAILURES} steps in a row, up to step {7 + FAILURES}" in message
    assert "gradient of guide.entity.loc" in message
    assert f"The last good state, after 7 steps, is saved in {run}" in message
    assert len(after) == 7 + FAILURES - 1
    saved = kgpyro.load(run)
    for name, value in saved.guide.named_parameters():
        assert torch.equal(value, after[6][f"bound.guide.{name}"])
    assert "in a row" in saved.metrics["warnings"][0]
    assert not (run / FILE).exists()
    saved.predict(head="a", relation="likes")


def test_nothing_good_to_keep(tiny: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        kgpyro.fit(tiny, out=tmp_path / "run", **(QUICK | {"lr": 1e30, "optimizer": "sgd"}))
    assert "saved" not in str(caught.value)
    assert not list((tmp_path / "run").iterdir())


class Exploding(own_code.Tempered):
    """A model whose temperature has an infinite gradient from the start."""

    def __init__(self, kg: Any):
        super().__init__(kg)
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.log_temperature.register_hook(lambda gradient: gradient * math.inf)


def test_the_culprit_is_named(tiny: Graph) -> None:
    with pytest.raises(InputError, match=r"gradient of model\.log_temperature; batch of queries"):
        kgpyro.fit(tiny, **(QUICK | {"model": Exploding, "estimator": "shared"}))
