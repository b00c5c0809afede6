"""Time per observed fact and memory of a LIM step, from 10⁴ to 10⁶ entities, on synthetic power-law graphs.

    python benchmarks/scale.py --json benchmarks/results/scale.json

ComplEx, 64 real dimensions, Adagrad. ``sampled``: 1,024 queries a step with 32 unobserved candidates each; ``all``: 256
queries a step against every entity, in bfloat16. Every row runs in a fresh process: a few steps of warm-up, then the
median of ``--steps`` steps. ``state_mb`` is parameters and optimiser state, ``peak_mb`` the process' peak during the
steps less what it holds after the imports: tables, state, graph index and working memory together.

``--section after_fit`` measures what comes after a fit instead, at 10⁶ entities and at 6,000 relations: ``peak_mb`` is
what an operation takes on top of posterior and graph, ``ratio`` that and the posterior over the posterior.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from machine import machine
from speed import memory, random_batches, reset_peak

import kgpyro
from kgpyro.checking.posterior_predictive import posterior_predictive
from kgpyro.data.graph import Graph
from kgpyro.data.queries import Queries
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.inference.training import KLSchedule, Training
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.batches import Batches

DIM, RELATIONS, NEGATIVES = 64, 50, 32
QUERIES = {"sampled": 1024, "all": 256}
# regime, entities, triples
SIZES = [
    ("sampled", 10_000, 20_000),
    ("sampled", 100_000, 200_000),
    ("sampled", 1_000_000, 2_000_000),
    ("sampled", 1_000_000, 10_000_000),
    ("all", 10_000, 20_000),
    ("all", 100_000, 200_000),
]


class Sizes:
    """What a setting needs to know of a graph, without a million names."""

    def __init__(self, num_entities: int):
        self.num_entities, self.num_relations = num_entities, RELATIONS


def power_law(entities: int, triples: int, seed: int = 0, relations: int = RELATIONS) -> torch.Tensor:
    """Random triples whose heads and tails follow Zipf's law: the i-th entity in proportion to 1/i."""
    rng = np.random.default_rng(seed)
    heads, tails = (rng.permutation(entities)[(entities ** rng.random(triples)).astype(np.int64) - 1] for _ in range(2))
    return torch.from_numpy(np.stack([heads, rng.integers(relations, size=triples), tails], axis=1))


def measure(regime: str, entities: int, triples: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    pyro.enable_validation(False)
    torch.sparse.check_sparse_tensor_invariants.disable()
    imported = memory("VmRSS")
    queries = Queries.of(power_law(entities, triples), RELATIONS)
    negatives = NEGATIVES if regime == "sampled" else None
    batches = Batches(queries, entities, True, negatives)
    config = {
        "prior": "normal", "entity_prior": None, "relation_prior": None, "score": "ComplEx", "guide": "lookup",
        "dim": DIM, "inverse": True, "likelihood": "bernoulli", "completeness": 1.0,
    }  # fmt: skip
    kg = build_setting(Sizes(entities), config)  # type: ignore[arg-type]
    kg.sparse = regime == "sampled"
    program = program_of("lim", kg, batches)
    guide = build_guide("lookup", kg, sites_of(program))
    schedule = KLSchedule("constant", 1.0, 0.0, 1, 1)
    elbo = WeightedELBO(parameters=program.parameters)
    module = Training(kg, program.model, guide, elbo, batches, schedule, "adagrad", 0.1)
    optimizer = module.configure_optimizers()
    draw = random_batches(len(batches), min(QUERIES[regime], len(batches)))

    def step() -> int:
        index = draw()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=regime == "all"):
            loss = module.training_step(index, 0)
        loss.backward()
        optimizer.step()
        return int(queries.counts[index].sum())

    for _ in range(3):
        step()
    reset_peak()
    each = []
    for _ in range(steps):
        started = time.perf_counter()
        facts = step()
        each.append((time.perf_counter() - started) / facts)
    tensors = [*module.parameters(), *(t for s in optimizer.state.values() for t in s.values())]
    state = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    return {
        "name": f"{regime}, {entities:,} entities, {triples:,} triples",
        "seconds_per_fact": statistics.median(each),
        "peak_mb": memory("VmHWM") - imported,
        "state_mb": state,
    }


OPERATIONS: dict[str, Callable[[Posterior, Path], Any]] = {
    "evaluate": lambda p, _: p.evaluate(),
    "facts": lambda p, _: p.facts(p.graph.names(p.graph.test)),
    "predict relations": lambda p, _: p.predict(head="e5", tail="e7"),
    "answers": lambda p, _: p.answers([(f"e{i}", "r3", None) for i in range(20)], draws=20),
    "recalibrate": lambda p, _: p.recalibrate(draws=100),
    "posterior_predictive": lambda p, _: posterior_predictive(p, 2, queries=500),
    "plot_embeddings": lambda p, _: p.plot_embeddings(),
    "save": lambda p, folder: p.save(folder / "run"),
    "load": lambda p, folder: kgpyro.load(folder / "saved"),
}
GRAPHS = [(1_000_000, 50, 2_000_000), (14_541, 6_000, 272_115)]  # entities, relations, triples


def untrained(entities: int, relations: int, triples: int) -> Posterior:
    """The posterior of a fit's start, over a power-law graph with a thousand facts in each of valid and test."""
    rows = power_law(entities, triples, relations=relations).unique(dim=0)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))].split(
        [1000, 1000, len(rows) - 2000]
    )
    names = [tuple(f"{kind}{i}" for i in range(n)) for kind, n in (("e", entities), ("r", relations))]
    graph = Graph("power law", *names, rows[2].clone(), rows[0].clone(), rows[1].clone())
    config: dict[str, Any] = {
        "model": "lim", "prior": "normal", "entity_prior": None, "relation_prior": None, "score": "ComplEx", "dim": DIM,
        "guide": "lookup", "inverse": True, "likelihood": "bernoulli", "completeness": 1.0, "closed_world": "local",
        "unanswered": None, "negatives": 8, "negative_weight": None, "seed": 0, "precision": "32",
    }  # fmt: skip
    kg = build_setting(graph, config)
    program = program_of("lim", kg, batches_of(graph, config, torch.float32))
    return Posterior(graph, program, build_guide("lookup", kg, sites_of(program)), config)


def measure_after_fit(operation: str, graph: tuple[int, int, int]) -> dict[str, Any]:
    """Peak of an operation, in a process of its own."""
    pyro.enable_validation(False)
    with tempfile.TemporaryDirectory() as folder:
        posterior = untrained(*graph)
        if operation == "load":
            posterior.save(Path(folder) / "saved")
        tables = sum(p.numel() * p.element_size() for p in posterior.guide.parameters()) / 2**20  # type: ignore[union-attr]
        reset_peak()
        before = memory("VmRSS")
        started = time.perf_counter()
        OPERATIONS[operation](posterior, Path(folder))
        peak, seconds = memory("VmHWM") - before, time.perf_counter() - started
    name = f"{operation}, {graph[0]:,} entities, {graph[1]:,} relations"
    return {"name": name, "seconds": seconds, "peak_mb": peak, "posterior_mb": tables, "ratio": 1 + peak / tables}


def after_fit() -> list[dict[str, Any]]:
    rows = []
    for graph in GRAPHS:
        for operation in OPERATIONS:
            with get_context("spawn").Pool(1) as fresh:
                rows.append(fresh.apply(measure_after_fit, (operation, graph)))
            row = rows[-1]
            print(
                f"{row['name']:60} {row['peak_mb']:6.0f} MB, ratio {row['ratio']:.2f}, {row['seconds']:.1f} s",
                flush=True,
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write rows and ratios to this file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--section", choices=["after_fit"], help="measure this instead, and put it into the file")
    arguments = parser.parse_args()
    if arguments.section:
        found = {arguments.section: after_fit()}
        if arguments.json:
            arguments.json.write_text(json.dumps(json.loads(arguments.json.read_text()) | found, indent=2) + "\n")
        return 0
    rows = []
    for size in SIZES:
        with get_context("spawn").Pool(1) as fresh:
            rows.append(fresh.apply(measure, (*size, arguments.steps)))
        row = rows[-1]
        figures = (
            f"{row['seconds_per_fact'] * 1e6:9.1f} µs a fact {row['peak_mb']:8.0f} MB, state {row['state_mb']:6.0f} MB"
        )
        print(f"{row['name']:50} {figures}", flush=True)
    small, large = rows[0], rows[2]
    ratios = {
        "time_1e6_vs_1e4": large["seconds_per_fact"] / small["seconds_per_fact"],
        "memory_vs_state": large["peak_mb"] / large["state_mb"],
    }
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:.3f}")
    if arguments.json:
        kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        found = kept | {"machine": machine(), "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
