"""Fits that are stopped, at any moment and in any way, go on to exactly the result they would have had."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import forkserver

import kgpyro
from kgpyro.commands import fit as fit_command
from kgpyro.commands import main
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.files import claim
from kgpyro.inference.checkpoint import FILE, Checkpoints
from kgpyro.inference.training import Training

QUICK: dict[str, Any] = {"dim": 4, "epochs": 4, "batch_size": 3, "model": "lim", "device": "cpu", "checkpoint_every": 0}
QUICK["closed_world"] = "local"
KINDS: list[dict[str, Any]] = [
    {},
    {"model": "lfm", "optimizer": "adamw"},
    {"negatives": 2},  # sparse gradients
    {"negatives": 3, "optimizer": "rmsprop", "inverse": False},
    {"early_stopping": 2, "validate_every": 1, "warmup": 0.1, "epochs": 8},
    {"score": "TransE-L1", "precision": "64"},  # its first way to draw does not work
    {"model": "lfm", "precision": "bf16", "kl_schedule": "compression"},
    {"prior": "normal(scale=half_cauchy(1))", "optimizer": "sgd"},
    {"guide": "mlp(width=4, hidden=8)", "estimator": "shared"},
    {"prior": "gamma(rate=learn)", "optimizer": "adam", "lr_schedule": "linear"},
    {"prior": "n3(strength=learn_per_symbol)", "learn_by": "em"},
]


@pytest.fixture(autouse=True)
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C does what it does in a terminal, although whoever runs the tests in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Crash(BaseException):
    """Stands for the end of the process."""


def fit(graph: Graph | None = None, **options: Any) -> kgpyro.Posterior:
    return kgpyro.fit(graph, progress=False, **options)


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Any = None) -> None:
    """Have the process end, or ``how`` happen, in the given step (from 0)."""
    real = Training.training_step

    def step_or_crash(self: Training, *batch: Any) -> Any:
        if self.step == step:
            if how is None:
                raise Crash
            how()
        return real(self, *batch)

    monkeypatch.setattr(Training, "training_step", step_or_crash)


def same(run: kgpyro.Posterior, expected: kgpyro.Posterior) -> None:
    assert run.metrics == expected.metrics
    for key, value in expected.guide.state_dict().items():
        assert torch.equal(run.guide.state_dict()[key], value), key
    columns = ["epoch", "loss", "log_likelihood", "kl", "kl_weight"]
    assert run.log[columns].equals(expected.log[columns])


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


FINISHED = {"config.yaml", "metrics.json", "log.csv", "posterior.safetensors", "graph.safetensors", "run.json"}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_killed_at_random_moments(
    tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any]
) -> None:
    """Two moments each; of the checkpoints before them a random part was written."""
    expected = fit(tiny, **(QUICK | kind))
    steps = len(expected.log) * -(-len(tiny.training_queries) // QUICK["batch_size"])
    chance = random.Random(str(kind))
    real = Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", lambda *args: None if chance.random() < 0.5 else real(*args))
    run, given = tmp_path / "run", tiny
    for moment in sorted(chance.sample(range(1, steps), 2)):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(moment, patch)
            if (run / "config.yaml").exists():
                fit(resume=run)
            else:
                fit(given, out=run, **(QUICK | kind))
    if (run / "config.yaml").exists():
        assert not (run / "posterior.safetensors").exists()
        with pytest.raises(InputError, match="has not finished; go on with it by `resume`"):
            kgpyro.load(run)
        resumed = fit(resume=run)
    else:
        resumed = fit(given, out=run, **(QUICK | kind))  # ended before its first checkpoint, it left no trace
    same(resumed, expected)
    assert files(run) == FINISHED
    assert kgpyro.load(run).metrics == json.loads(json.dumps(expected.metrics))


def test_killed_while_a_checkpoint_is_written(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(tiny, **QUICK)
    real, calls = safetensors.torch.save_file, []

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        real(tensors, path, metadata)
        calls.append(path)
        if len(calls) == 6:
            path.write_bytes(path.read_bytes()[:100])
            path.with_name(".tmpAb12Cd").touch()  # safetensors' own, as a kill leaves it
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("safetensors.torch.save_file", half)
        fit(tiny, out=tmp_path / "run", **QUICK)
    same(fit(resume=tmp_path / "run"), expected)
    assert files(tmp_path / "run") == FINISHED


def test_killed_after_the_last_step(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit is done, its evaluation was not; nothing is trained again."""
    for kind in ({}, {"early_stopping": 1, "validate_every": 1, "warmup": 0.1, "epochs": 30}):
        run = tmp_path / str(len(kind))
        expected = fit(tiny, **(QUICK | kind))
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr("kgpyro.inference.engines.estimate_elbo", lambda *_, **__: (_ for _ in ()).throw(Crash))
            fit(tiny, out=run, **(QUICK | kind | {"checkpoint_every": 1e6}))
        with monkeypatch.context() as patch:
            patch.setattr(Training, "training_step", lambda *_: (_ for _ in ()).throw(Crash))
            resumed = fit(resume=run)
            same(resumed, expected)
            assert resumed.seconds + 0.05 > resumed.log["seconds"].iloc[-1]  # the part before the crash counts


OPTIONS = ["--dim", "8", "--epochs", "25", "--no-progress", "--device", "cpu", "--checkpoint-every", "0"]


def test_kill_9(tmp_path: Path) -> None:
    """Three real kills, each at a random moment of the fit, or of its start."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert fit_command([*OPTIONS, "--out", str(whole)]) == 0
    chance, processes = random.Random(1), forkserver()
    for attempt in range(3):
        started = (run / "config.yaml").exists()
        options = ["--resume", str(run), "--no-progress"] if started else [*OPTIONS, "--out", str(run)]
        process = processes.Process(target=main, args=(["fit", *options],))
        process.start()
        before = (run / FILE).stat().st_mtime_ns if (run / FILE).exists() else 0
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if (run / FILE).exists() and (run / FILE).stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"attempt {attempt} was over before it was killed"
    assert fit_command(["--resume", str(run), "--no-progress"]) == 0
    assert (run / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert files(run) == FINISHED


@pytest.mark.parametrize("step", [0, 4, 5, 11])
def test_control_c(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, capfd: Any) -> None:
    """The step is taken, the run is evaluated and saved, and can be gone on with."""
    expected = fit(tiny, **QUICK)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        crash_at(step, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        stopped = fit(tiny, out=tmp_path / "run", **(QUICK | {"checkpoint_every": 1e6}))
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Stopping after this step" in capfd.readouterr().err
    steps = 4 * -(-len(tiny.training_queries) // QUICK["batch_size"])
    assert stopped.metrics["warnings"][0].startswith(f"The fit was interrupted after {step + 1} of {steps} steps")
    assert kgpyro.load(tmp_path / "run").metrics == json.loads(json.dumps(stopped.metrics))
    assert files(tmp_path / "run") == FINISHED | {FILE}
    same(fit(resume=tmp_path / "run"), expected)
    assert files(tmp_path / "run") == FINISHED
    with pytest.raises(InputError, match="has finished; there is nothing to resume"):
        fit(resume=tmp_path / "run")


def test_control_c_in_the_last_step_interrupts_nothing(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(tiny, **QUICK)
    crash_at(sum(1 for _ in range(len(expected.log))) * -(-len(tiny.training_queries) // 3) - 1, monkeypatch, press)
    same(fit(tiny, **QUICK), expected)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_control_c_twice(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        crash_at(7, patch, lambda: [press(), press()])
        fit(tiny, out=tmp_path / "run", **QUICK)
    assert signal.getsignal(signal.SIGINT) is handler
    same(fit(resume=tmp_path / "run"), fit(tiny, **QUICK))


def test_control_c_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        crash_at(3, patch, press)
        assert fit_command([*OPTIONS, "--out", str(tmp_path / "run")]) == 0
    assert "WARNING: The fit was interrupted after 4 of" in capfd.readouterr().out
    with monkeypatch.context() as patch:
        crash_at(4, patch, lambda: [press(), press()])
        assert fit_command(["--resume", str(tmp_path / "run"), "--no-progress"]) == 130
    assert "interrupted" in capfd.readouterr().err


def test_a_full_disk(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it fills up, the run can be gone on with once there is room."""
    expected = fit(tiny, **QUICK)
    real = os.fsync
    for room in (1, 4, 9, 40, 75, 80):  # files that can still be written, with their folder's entry
        run, calls = tmp_path / str(room), []

        def full(descriptor: int, calls: list[int] = calls, room: int = room) -> None:
            calls.append(descriptor)
            if len(calls) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                fit(tiny, out=run, **QUICK)
            except InputError as error:
                assert "cannot be written: [Errno 28] No space left on device" in str(error)
                assert "\n" not in str(error)
            else:
                assert len(calls) <= room
                continue
        assert not (run / "posterior.safetensors").exists()
        assert not [file for file in files(run) if file.endswith(".part")]
        same(fit(resume=run) if (run / FILE).exists() else fit(tiny, out=run, **QUICK), expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs rights that are not here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(tiny: Graph, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = fit(tiny, **QUICK)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 40_000)
    with pytest.raises(InputError, match=r"cannot be written: .*No space left"):
        fit(tiny, out=small_disk / "run", **QUICK)
    assert not [file for file in files(small_disk / "run") if file.endswith(".part")]
    ballast.unlink()
    run = small_disk / "run"
    same(fit(resume=run) if (run / FILE).exists() else fit(tiny, out=run, **QUICK), expected)


def interrupted(graph: Graph, run: Path, **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        crash_at(5, patch)
        fit(graph, out=run, **(QUICK | options))
    return run


def test_what_cannot_be_resumed(tiny: Graph, tmp_path: Path) -> None:
    run = interrupted(tiny, tmp_path / "run")
    other = Graph.from_triples("other", [["a", "r", "b"]], [["a", "r", "b"]], [["b", "r", "a"]])
    for given, options, words in (
        (None, {"dim": 8}, "`dim` is 4 in the run in .*; `resume` cannot change it"),
        (None, {"prior": "laplace"}, "`prior` is normal"),
        (None, {"out": tmp_path / "elsewhere"}, "leave out `out`"),
        (other, {}, "is of another graph"),
    ):
        with pytest.raises(InputError, match=words):
            fit(given, resume=run, **options)
    with pytest.raises(InputError, match="unfinished; go on with it by `resume`"):
        fit(tiny, out=run, **QUICK)
    with pytest.raises(InputError, match="holds no run to resume"):
        fit(resume=tmp_path)
    with pytest.raises(InputError, match="or a run to `resume`"):
        fit()
    same(fit(tiny, resume=run, dim=4, prior="normal"), fit(tiny, **QUICK))


def test_own_code_is_named_again(tiny: Graph, tmp_path: Path) -> None:
    own = {"model": "own_code:Tempered", "guide": "own_code:OneScale", "prior": "own_code:half_laplace"}
    run = interrupted(tiny, tmp_path / "run", **own)
    with pytest.raises(InputError, match=r"your own model own_code:Tempered; name it again .* `model` own_code:Temp"):
        fit(resume=run)
    with pytest.raises(InputError, match="`guide` own_code:OneScale"):
        fit(resume=run, model=own["model"], prior=own["prior"])
    with pytest.raises(InputError, match="`guide` is own_code:OneScale in the run"):
        fit(resume=run, **(own | {"guide": "own_code:Chained"}))
    same(fit(resume=run, **own), fit(tiny, **(QUICK | own)))


def test_crafted_checkpoints(tiny: Graph, tmp_path: Path) -> None:
    """As with every file of a run: refused in a sentence, and never executed."""
    run = interrupted(tiny, tmp_path / "run")
    good = (run / FILE).read_bytes()
    tensors = safetensors.torch.load(good)
    metadata = {"format": "2", "facts": json.dumps({"step": 1})}
    for content, words in (
        (b"\x80\x04pickle", "damaged"),
        (good[:-10], "damaged"),
        (safetensors.torch.save(tensors), "has format None"),
        (safetensors.torch.save(tensors, metadata), "damaged: 'skipped'"),
        (safetensors.torch.save(tensors, {"format": "9", "kgpyro": "8.0"}), "format 9, written by kgpyro 8.0"),
        (safetensors.torch.save(tensors, {"format": "2", "facts": "["}), "damaged"),
        (safetensors.torch.save({"module.kg.base_rate": torch.zeros(10**6)}, metadata), "not those of the model"),
    ):
        (run / FILE).write_bytes(content)
        with pytest.raises(InputError, match=words):
            fit(resume=run)
    (run / FILE).write_bytes(good)
    same(fit(resume=run), fit(tiny, **QUICK))


def test_features_of_an_unfinished_run(tiny: Graph, tmp_path: Path) -> None:
    table = tmp_path / "features.csv"
    table.write_text("name,x,y\n" + "\n".join(f"{e},{i},{i * i}" for i, e in enumerate(tiny.entities)))
    options = {"guide": "features(hidden=4)", "features": str(table)}
    run = interrupted(tiny, tmp_path / "run", **options)
    same(fit(resume=run), fit(tiny, **(QUICK | options)))
    run = interrupted(tiny, tmp_path / "other", **options)
    table.write_text(table.read_text().replace("a,0,0", "a,7,0"))
    with pytest.raises(InputError, match="features"):
        fit(resume=run)
    table.unlink()
    with pytest.raises(InputError, match="no such file"):
        fit(resume=run)


def test_two_fits_in_one_folder(tiny: Graph, tmp_path: Path) -> None:
    with claim(tmp_path / "run"), pytest.raises(InputError, match="another fit is writing to"):
        fit(tiny, out=tmp_path / "run", **QUICK)
    run = interrupted(tiny, tmp_path / "run")
    with claim(run), pytest.raises(InputError, match="another fit is writing to"):
        fit(resume=run)
    assert (run / FILE).exists()


def test_two_fits_in_two_threads(tiny: Graph) -> None:
    """Each comes to the result it has alone."""
    expected = [fit(tiny, **(QUICK | {"seed": seed})) for seed in range(2)]
    found: dict[int, kgpyro.Posterior] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: fit(tiny, **(QUICK | {"seed": seed}))}))
        for seed in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        same(found[seed], expected[seed])
