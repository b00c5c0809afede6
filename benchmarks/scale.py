"""Time per observed fact and memory of a LIM step, from 10⁴ to 10⁶ entities, on synthetic power-law graphs.

    python benchmarks/scale.py --json benchmarks/results/scale.json
    python benchmarks/scale.py --only sharded --json benchmarks/results/scale.json     # up to 10⁷ entities

ComplEx, 64 real dimensions, Adagrad. ``sampled``: 1,024 queries a step with 32 unobserved candidates each; ``all``: 256
queries a step against every entity, in bfloat16. Every row runs in a fresh process: a few steps of warm-up, then the
median of ``--steps`` steps. ``state_mb`` is parameters and optimiser state, ``peak_mb`` the process' peak during the
steps less what it holds after the imports: tables, state, graph index and working memory together.

``sharded``: the sampled regime with the entities spread over processes, ``peak_mb`` that of the process with the most.
After the steps each process writes its rows, reads them again, and ranks the tails of 1,000 queries with the others.
``after_fit``: what comes after a fit, at 10⁶ entities and at 6,000 relations; ``peak_mb`` is what an operation takes on
top of posterior and graph, ``ratio`` that and the posterior over the posterior. ``load`` begins with neither, so that
its ``peak_mb`` has the graph in it. ``embeddings`` gives a table as large as the posterior; ``peak_mb`` is without it.
``--only SECTION`` measures one section and leaves the others in the file as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
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
import safetensors.torch
import torch
import torch.distributed as distributed
from machine import machine
from speed import memory, random_batches, reset_peak

import kgpyro
from kgpyro.checking.posterior_predictive import posterior_predictive
from kgpyro.data.graph import Graph
from kgpyro.data.queries import Queries
from kgpyro.evaluation.ranking import rank_triples
from kgpyro.files import POSTERIOR
from kgpyro.inference.options import Options
from kgpyro.inference.training import Training
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.runs import read_rows, write_rows
from kgpyro.posterior.sharded import ShardedPosterior
from kgpyro.program.batches import Batches
from kgpyro.program.owners import Share, is_spread
from kgpyro.randomness import seeded

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
    with seeded(0):
        return _measured(regime, entities, triples, steps, None, None)


def measure_shared(
    rank: int, processes: int, port: int, entities: int, triples: int, steps: int, folder: str
) -> dict[str, Any]:
    """What one of several processes measures, on one thread."""
    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    with seeded(0):
        row = _measured("sampled", entities, triples, steps, Share(entities, rank, processes), Path(folder))
    distributed.barrier()
    distributed.destroy_process_group()
    return row


def sharded(processes: int, entities: int, triples: int, steps: int) -> dict[str, Any]:
    """A row of the section: the slowest process' times, and the memory of the one with the most."""
    with socket.socket() as free, tempfile.TemporaryDirectory(dir=".") as folder:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        with get_context("spawn").Pool(processes) as pool:
            given = [(rank, processes, port, entities, triples, steps, folder) for rank in range(processes)]
            rows = pool.starmap(measure_shared, given, chunksize=1)
    worst = {key: max(row[key] for row in rows) for key in rows[0] if key != "name"}
    return {"name": f"sharded in {processes}, {entities:,} entities, {triples:,} triples"} | worst


def _measured(
    regime: str, entities: int, triples: int, steps: int, share: Share | None, folder: Path | None
) -> dict[str, Any]:
    torch.manual_seed(0)
    pyro.enable_validation(False)
    torch.sparse.check_sparse_tensor_invariants.disable()
    imported = memory("VmRSS")
    queries = Queries.of(power_law(entities, triples), RELATIONS)
    negatives = NEGATIVES if regime == "sampled" else None
    batches = Batches(queries, entities, True, negatives, share=share)
    config = vars(Options(model="lim", dim=DIM, inverse=True, epochs=1, kl_weight=1.0, kl_schedule="constant"))
    kg = build_setting(Sizes(entities), config, share=share)  # type: ignore[arg-type]
    kg.sparse = regime == "sampled"
    program = program_of("lim", kg, batches)
    guide = build_guide("lookup", kg, sites_of(program))
    module = Training(program, guide, config)
    optimizer = module.configure_optimizers()
    draw = random_batches(len(batches), min(QUERIES[regime], len(batches)))

    def step() -> int:
        index = draw()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=regime == "all"):
            loss = module.training_step(index, 0)
        loss.backward()
        if share is not None:
            share.sum_gradients(module.whole)
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
    row = {
        "name": f"{regime}, {entities:,} entities, {triples:,} triples",
        "seconds_per_fact": statistics.median(each),
        "peak_mb": memory("VmHWM") - imported,
        "state_mb": state,
    }
    if share is not None and folder is not None:
        del optimizer
        graph: Any = Sizes(entities)
        posterior = ShardedPosterior(graph, program, guide, {"closed_world": "local"})
        started = time.perf_counter()
        tables = {f"guide.{name}": p for name, p in guide.named_parameters() if is_spread(name)}
        write_rows(folder, tables, share.rank, share.processes)
        if share.rank == 0:
            safetensors.torch.save_file({}, folder / POSTERIOR, {"shards": str(share.processes)})
        share.barrier()
        row["save_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        for name, table in tables.items():
            read_rows(folder, name, share.first, table.data)
        share.barrier()
        row["load_seconds"] = time.perf_counter() - started
        index = torch.arange(0, len(queries), max(1, len(queries) // 500))[:500]
        answers = queries.answers[queries.indptr[index]]
        facts = torch.stack([queries.anchor[index], queries.relation[index] % RELATIONS, answers], 1)
        started = time.perf_counter()
        ranks = rank_triples(posterior.mean_scores, facts, queries, entities, share=share)
        row["ranking_seconds"] = time.perf_counter() - started
        assert len(ranks) == 2 * len(facts)
    return row


def shown(row: dict[str, Any]) -> None:
    figures = (
        f"{row['seconds_per_fact'] * 1e6:9.1f} µs a fact {row['peak_mb']:8.0f} MB, state {row['state_mb']:6.0f} MB"
    )
    more = [f"{key.removesuffix('_seconds')} {row[key]:.1f} s" for key in row if key.endswith("_seconds")]
    print(f"{row['name']:50} {figures} {', '.join(more)}", flush=True)


OPERATIONS: dict[str, Callable[[Posterior, Path], Any]] = {
    "evaluate": lambda p, _: p.evaluate(),
    "facts": lambda p, _: p.facts(p.graph.names(p.graph.test)),
    "predict relations": lambda p, _: p.predict(head="e5", tail="e7"),
    "answers": lambda p, _: p.answers([(f"e{i}", "r3", None) for i in range(20)], draws=20),
    "recalibrate": lambda p, _: p.recalibrate(draws=100),
    "posterior_predictive": lambda p, _: posterior_predictive(p, 2, queries=500),
    "embeddings": lambda p, _: p.embeddings(),
    "plot_embeddings": lambda p, _: p.plot_embeddings(),
    "save": lambda p, folder: p.save(folder),
    "load": lambda _, folder: kgpyro.load(folder),
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
    config = vars(Options(model="lim", dim=DIM, inverse=True, closed_world="local", negatives=8))
    kg = build_setting(graph, config)
    program = program_of("lim", kg, batches_of(graph, config, torch.float32))
    return Posterior(graph, program, build_guide("lookup", kg, sites_of(program)), config)


def save_untrained(graph: tuple[int, int, int], folder: Path) -> None:
    untrained(*graph).save(folder)


def measure_after_fit(operation: str, graph: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    """Peak of an operation, in a process of its own; ``folder`` has the run for ``load``, others may write into it."""
    pyro.enable_validation(False)
    posterior: Any = None if operation == "load" else untrained(*graph)
    reset_peak()
    before = memory("VmRSS")
    started = time.perf_counter()
    result = OPERATIONS[operation](posterior, folder)
    peak, seconds = memory("VmHWM") - before, time.perf_counter() - started
    tables = sum(p.numel() * p.element_size() for p in (posterior or result).guide.parameters()) / 2**20
    if operation == "load":
        peak -= tables
    if operation == "embeddings":
        peak -= result.memory_usage(index=True).sum() / 2**20
    name = f"{operation}, {graph[0]:,} entities, {graph[1]:,} relations"
    return {"name": name, "seconds": seconds, "peak_mb": peak, "posterior_mb": tables, "ratio": 1 + peak / tables}


def after_fit() -> list[dict[str, Any]]:
    rows = []
    for graph, operation in itertools.product(GRAPHS, OPERATIONS):
        with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            if operation == "load":
                fresh.apply(save_untrained, (graph, Path(folder) / "run"))
            rows.append(fresh.apply(measure_after_fit, (operation, graph, Path(folder) / "run")))
        row = rows[-1]
        print(
            f"{row['name']:60} {row['peak_mb']:6.0f} MB, ratio {row['ratio']:.2f}, {row['seconds']:.1f} s", flush=True
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write rows and ratios to this file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=["whole", "sharded", "after_fit"], help="this section alone")
    parser.add_argument("--entities", type=int, default=10_000_000, help="of the largest sharded row")
    parser.add_argument("--triples", type=int, default=20_000_000, help="of the largest sharded row")
    arguments = parser.parse_args()
    before = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    rows = {row["name"]: row for row in before.get("rows", [])} if arguments.only else {}
    ratios = dict(before.get("ratios", {})) if arguments.only else {}

    def add(row: dict[str, Any]) -> dict[str, Any]:
        rows[row["name"]] = row
        shown(row)
        return row

    def fresh(*size: Any, called: str = "") -> dict[str, Any]:
        with get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (*size, arguments.steps))
        return add(row | {"name": row["name"].replace("sampled", called or "sampled")})

    if arguments.only in (None, "whole"):
        small, _, large, *_ = [fresh(*size) for size in SIZES]
        ratios["time_1e6_vs_1e4"] = large["seconds_per_fact"] / small["seconds_per_fact"]
        ratios["memory_vs_state"] = large["peak_mb"] / large["state_mb"]
    if arguments.only in (None, "sharded"):
        entities, triples = arguments.entities // 10, arguments.triples // 10
        whole = fresh("sampled", entities, 2 * entities, called="not sharded")
        for processes in (2, 4):
            row = add(sharded(processes, entities, 2 * entities, arguments.steps))
            ratios[f"memory_per_process_{processes}"] = row["peak_mb"] / whole["peak_mb"]
        tenth = add(sharded(2, entities, triples, arguments.steps))
        row = add(sharded(2, arguments.entities, arguments.triples, arguments.steps))
        ratios["time_1e7_vs_1e6"] = row["seconds_per_fact"] / tenth["seconds_per_fact"]
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:.3f}")
    if arguments.json:
        written = before | {"machine": machine(), "rows": list(rows.values()), "ratios": ratios}
        if arguments.only in (None, "after_fit"):
            written["after_fit"] = after_fit()
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
