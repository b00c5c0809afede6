"""Several processes: their averaged gradient is the single process', and a fit of two is as good as one of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from conftest import Parts, in_processes

from kgpyro.commands import fit as fit_command
from kgpyro.data.graph import Graph
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.inference.training import RandomQueries

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_shares_of_a_batch() -> None:
    """Two processes' shares are disjoint and make up the single process' batches, epoch by epoch."""
    single = RandomQueries(23, 4, seed=1)
    shares = [RandomQueries(23, 4, seed=1, rank=rank, processes=2) for rank in range(2)]
    for _ in range(2):
        for whole, first, second in zip(single, *shares, strict=True):
            assert sorted(whole.tolist()) == sorted([*first.tolist(), *second.tolist()])
    assert [len(i) for i in RandomQueries(5, 2, rank=1, processes=2)] == [1, 1, 1]


def gradient(graph: Graph, index: torch.Tensor) -> torch.Tensor:
    """The gradient of a step on the given queries, always with the same draw of the latents."""
    torch.manual_seed(0)
    parts = Parts(graph, "lim", score="ComplEx")
    modules = torch.nn.ModuleList([parts.kg, parts.guide])
    torch.manual_seed(1)
    loss = WeightedELBO(estimator="shared").differentiable_loss(
        parts.model, parts.guide, parts.kg, parts.batches(index)
    )
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(modules.parameters()))])


def one_process(rank: int, graph: Graph, folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    index = next(iter(RandomQueries(len(graph.training_queries), 6, seed=2, rank=rank, processes=2)))
    averaged = gradient(graph, index)
    distributed.all_reduce(averaged)
    torch.save(averaged / 2, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.usefixtures("double")
def test_averaged_gradient(tiny: Graph, tmp_path: Path) -> None:
    in_processes(one_process, 2, tiny, str(tmp_path))
    index = next(iter(RandomQueries(len(tiny.training_queries), 6, seed=2)))
    expected = gradient(tiny, index)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


@pytest.mark.parametrize("negatives", ["all", "5"])
def test_two_processes_are_as_good_as_one(tmp_path: Path, negatives: str, capsys: pytest.CaptureFixture[str]) -> None:
    mrr = {}
    for devices in ("1", "2"):
        out = tmp_path / devices
        options = ["--model", "lim", "--prior", "normal(scale=0.5)", "--epochs", "60", "--dim", "50", "--no-progress"]
        where = ["--device", "cpu", "--devices", devices, "--negatives", negatives, "--out", str(out)]
        command = [sys.executable, "-m", "kgpyro.fit", *options, *where]
        if devices == "1":
            assert fit_command(command[3:]) == 0
            said = capsys.readouterr().out
        else:
            said = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout
        assert said.count("objective") == 1
        mrr[devices] = json.loads((out / "metrics.json").read_text())["test"]["realistic"]["mrr"]
    assert mrr["2"] == pytest.approx(mrr["1"], abs=0.05)
    assert mrr["1"] > 0.7
