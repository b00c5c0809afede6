"""Entities spread over processes: a fit, its files, ranks and answers are those of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as distributed
from torch.multiprocessing.spawn import spawn

import kgpyro
from kgpyro.data.graph import Graph

PROCESSES = [1, 2, 4]


def in_processes(work: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``work(folder, *args)`` in so many processes that can meet."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn(_process, (work, processes, port, args), nprocs=processes)


def _process(rank: int, work: Callable[..., None], processes: int, port: int, args: Any) -> None:
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in where.items()})
    work(*args)
    if distributed.is_initialized():
        distributed.destroy_process_group()


CASES: dict[str, dict[str, Any]] = {
    "local": {"score": "ComplEx", "prior": "normal(scale=learn)"},
    "shared": {"score": "DistMult", "estimator": "shared", "completeness": 0.8, "inverse": False},
    "categorical": {"score": "CP", "likelihood": "categorical", "optimizer": "adam"},
    "sampled": {"score": "ComplEx", "negatives": 3, "prior": "normal(scale=learn_per_dim)"},
    "sampled, adam": {"score": "DistMult", "negatives": 2, "optimizer": "adam", "guide": "point"},
    "point": {"score": "DistMult", "guide": "point", "likelihood": "categorical"},
}
FIT: dict[str, Any] = {
    "model": "lim", "dim": 6, "epochs": 2, "batch_size": 32, "device": "cpu", "precision": "64", "progress": False,
}  # fmt: skip


def fit_all(graph: Graph, folder: Path, processes: int) -> None:
    for name, options in CASES.items():
        out = folder / f"{name} {processes}"
        posterior = kgpyro.fit(graph, **FIT, **options, shard=True, devices=processes, out=out)
        posterior.log.drop(columns="seconds").to_csv(folder / f"{name} {processes} {os.environ['RANK']}.csv")


@pytest.fixture(scope="module")
def small(nations: Graph) -> Graph:
    """Few enough facts for five steps an epoch."""
    return kgpyro.load_graph(nations.to_dataframe().iloc[::12].drop(columns="split"))


@pytest.fixture(scope="module")
def fits(small: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    for processes in PROCESSES:
        in_processes(fit_all, processes, small, folder, processes)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_fit_is_that_of_one_process(fits: Path, case: str) -> None:
    one, *others = (kgpyro.load(fits / f"{case} {n}") for n in PROCESSES)
    assert int(one.log["epoch"].iloc[-1]) == 2
    for number, other in zip(PROCESSES[1:], others, strict=True):
        for part, module in one.modules().items():
            expected = module.state_dict()
            for key, value in other.modules()[part].state_dict().items():
                torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
        for rank in range(number):
            log = pd.read_csv(fits / f"{case} {number} {rank}.csv", index_col=0)
            pd.testing.assert_frame_equal(log, one.log.drop(columns="seconds"), rtol=1e-5)
        for key in ("elbo_per_fact", "kl_per_latent", "test"):
            expected, found = ({key: posterior.metrics[key]} for posterior in (one, other))
            pd.testing.assert_frame_equal(pd.json_normalize(found), pd.json_normalize(expected), rtol=1e-5)
