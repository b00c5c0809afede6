"""Entities spread over processes: a fit, its files, ranks and answers are those of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as distributed
from torch.multiprocessing.spawn import spawn

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.posterior.draws import Draws

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


FIT: dict[str, Any] = {
    "model": "lim", "dim": 6, "epochs": 1, "batch_size": 16, "device": "cpu", "precision": "64", "progress": False,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {  # ten steps and more of each
    "local": {"score": "ComplEx", "prior": "normal(scale=learn)", "batch_size": 128},
    "shared": {
        "score": "DistMult", "estimator": "shared", "completeness": 0.8, "inverse": False, "unanswered": 5,
        "closed_world": "full",
    },
    "categorical": {"score": "CP", "likelihood": "categorical", "optimizer": "adam"},
    "sampled": {"score": "ComplEx", "negatives": 3, "prior": "normal(scale=learn_per_dim)"},
    "sampled, adam": {"score": "DistMult", "negatives": 2, "optimizer": "adam", "guide": "point"},
    "point": {"score": "DistMult", "guide": "point", "likelihood": "categorical", "early_stopping": 1},
}  # fmt: skip
QUERY = {"relation": "exports3", "head": "usa"}


def fit_all(graph: Graph, folder: Path, processes: int) -> None:
    rank = os.environ["RANK"]
    for name, options in CASES.items():
        out = folder / f"{name} {processes}"
        posterior = kgpyro.fit(graph, **FIT | options, shard=True, devices=processes, out=out)
        posterior.log.drop(columns="seconds").to_csv(folder / f"{name} {processes} {rank}.csv")
        assert (int(rank) == 0) == bool(posterior.metrics)
        shards = sorted(out.glob("posterior-*"))
        assert len(shards) == (0 if processes == 1 else processes)
        ask(out, folder / f"asked {name} {processes} {rank}")


def ask(run: Path, folder: Path) -> None:
    """What a posterior that is spread says of itself."""
    posterior = kgpyro.load(run, shard=True)
    folder.mkdir()
    posterior.evaluate("valid").to_csv(folder / "evaluate.csv")
    posterior.evaluate("test", per_relation=True).to_csv(folder / "per relation.csv")
    if posterior.one_probability:
        for name, table in answers_of(posterior).items():
            table.to_csv(folder / f"{name}.csv")


def answers_of(posterior: kgpyro.Posterior) -> dict[str, pd.DataFrame]:
    facts = posterior.graph.test[:7]
    queries = posterior.graph.to_dataframe()[["head", "relation", "tail"]][:3].assign(tail=None)
    return {
        "facts": posterior.facts(facts, draws=40),
        "predict": posterior.predict(**QUERY, top=3, draws=40, new=True),
        "relations": posterior.predict(head="usa", tail="uk", top=2, draws=40),
        "answers": posterior.answers(queries, top=5, draws=40),
    }


@pytest.fixture(scope="module")
def small(nations: Graph) -> Graph:
    return replace(nations, train=nations.train[::12], valid=nations.valid[:20], test=nations.test[:30])


@pytest.fixture(scope="module")
def fits(small: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    for processes in PROCESSES:
        in_processes(fit_all, processes, small, folder, processes)
    return folder


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_is_that_of_one_process(fits: Path, case: str) -> None:
    one, *others = (kgpyro.load(fits / f"{case} {n}") for n in PROCESSES)
    for number, other in zip(PROCESSES[1:], others, strict=True):
        for part, module in one.modules().items():
            expected = module.state_dict()
            for key, value in other.modules()[part].state_dict().items():
                torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
        for rank in range(number):
            log = pd.read_csv(fits / f"{case} {number} {rank}.csv", index_col=0)
            same(log, one.log.drop(columns="seconds"))
        for key in ("elbo_per_fact", "kl_per_latent", "test"):
            found, expected = (pd.json_normalize({key: p.metrics[key]}) for p in (other, one))
            same(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_what_a_spread_posterior_says_is_what_the_whole_one_says(
    fits: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Draws, "kept", 0)  # as on a large graph
    whole = kgpyro.load(fits / f"{case} 4")
    said = {"evaluate": whole.evaluate("valid"), "per relation": whole.evaluate("test", per_relation=True)}
    said |= answers_of(whole) if whole.one_probability else {}
    for processes in PROCESSES:
        for rank in range(processes):
            for name, expected in said.items():
                path = fits / f"asked {case} {processes} {rank}" / f"{name}.csv"
                index = [0, 1] if name in ("evaluate", "per relation") else 0
                found = pd.read_csv(path, index_col=index, keep_default_na=False)
                same(found, expected)
