"""A tiny graph to enumerate, and Pyro's own checks switched on."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.posterior.building import build_guide, program_of, sites_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.batches import Batches
from kgpyro.program.interactions import resolve_score
from kgpyro.program.priors import PriorLike, resolve_prior
from kgpyro.program.setting import INTERCEPT_SCALE, Setting
from kgpyro.program.variational import Guide


def pairwise(**values: Sequence[Any]) -> pytest.MarkDecorator:
    """Cases in which every two values of different parameters meet at least once, by a greedy choice."""
    cases = list(itertools.product(*values.values()))
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in cases]
    left, chosen = set().union(*pairs), []
    while left:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & left))
        chosen.append(cases[best])
        left -= pairs[best]
    return pytest.mark.parametrize(tuple(values), chosen)


def forkserver() -> Any:
    """A context of processes that begin with kgpyro imported, once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kgpyro.inference.fitting"])
    return context


def in_processes(work: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``work(rank, *args)`` in so many processes, each with one thread."""
    forkserver()
    start_processes(_alone, (work, *args), processes, start_method="forkserver")


def in_group(work: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``work(*args)`` in so many processes that can meet, as torchrun starts them."""
    in_processes(_member, processes, work, processes, free_port(), args)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _member(rank: int, work: Callable[..., None], processes: int, port: int, args: Any) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in where.items()})
    work(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _alone(rank: int, work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    work(rank, *args)


@pytest.fixture(autouse=True)
def validated() -> Iterator[None]:
    torch.manual_seed(0)
    with pyro.validation_enabled(True):
        yield
    found = list(pyro.get_param_store())
    pyro.clear_param_store()
    assert not found, "something went into Pyro's global parameter store"


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def tiny() -> Graph:
    """Five entities (one never seen in training), two relations, a self-loop, a query with three answers."""
    train = ["a likes b", "a likes c", "a likes d", "b likes b", "c knows a", "d knows a", "b knows d"]
    return Graph.from_triples(
        "tiny", *([line.split() for line in part] for part in (train, ["d likes a"], ["e knows a", "b likes c"]))
    )


@pytest.fixture(scope="session")
def nations() -> Graph:
    return load_graph("nations")


class Parts:
    """Model, guide, setting and batches of a graph, outside any training loop."""

    def __init__(
        self,
        graph: Graph,
        model: str = "lim",
        prior: PriorLike = "normal",
        score: str = "DistMult",
        dim: int = 4,
        inverse: bool = True,
        guide: str = "lookup",
        features: torch.Tensor | None = None,
        completeness: float = 1.0,
        categorical: bool = False,
        closed_world: str = "local",
        **negatives: float | None,
    ):
        self.graph, self.closed_world, self.model_name = graph, closed_world, model
        rows = graph.num_relations * (2 if inverse else 1)
        both = resolve_prior(prior)
        self.kg = Setting(graph.num_entities, rows, resolve_score(score), dim, both, both, graph.num_relations)
        self.kg.to(torch.get_default_dtype())
        self.kg.features, self.kg.completeness, self.kg.categorical = features, completeness, categorical
        queries = graph.queries_of(closed_world)
        self.batches = Batches(queries, graph.num_entities, inverse, categorical=categorical, **negatives)  # type: ignore[arg-type]
        self.program = program_of(model, self.kg, self.batches)
        self.model: Callable = self.program.model
        self.sites = sites_of(self.program)
        self.guide: Guide = build_guide(guide, self.kg, self.sites).to(torch.get_default_dtype())
        self.intercepts = torch.linspace(-1, 1, graph.num_relations)
        if "intercept" in self.sites and not self.guide.point:  # a posterior that is the prior has no KL
            with torch.no_grad():
                self.guide.field("intercept").log_scale.fill_(math.log(INTERCEPT_SCALE))

    def posterior(self, **config: object) -> Posterior:
        return Posterior(self.graph, self.program, self.guide, {"closed_world": self.closed_world, **config})

    @torch.no_grad()
    def terms(self, index: torch.Tensor | None = None, estimator: str = "plain", **batch: torch.Tensor):
        index = torch.arange(len(self.batches)) if index is None else index
        facts = self.batches.with_negatives(index, **batch) if batch else self.batches(index)
        elbo = WeightedELBO(estimator=estimator, parameters=self.program.parameters)
        return elbo.terms(self.model, self.guide, self.kg, facts)
