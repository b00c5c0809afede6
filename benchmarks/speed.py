"""What a step and an evaluation cost, beside plain PyTorch, plain Pyro and PyKEEN, on FB15k-237.

    KGPYRO_DATA=FOLDER python benchmarks/speed.py --json benchmarks/results/speed.json

ComplEx with 100 complex dimensions, 512 queries a step, Adagrad. Every row has a process of its own, and they take
turns of a few steps each, so that whatever else the machine does meets all of them; reported are medians over all
turns. ``peak_mb`` is what a step takes on top of what the process holds between steps, parameters and optimiser state:
the working memory, gradients included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.inference.options import Options
from kgpyro.inference.training import RandomQueries, Training
from kgpyro.kernels.candidates import all_candidates_log_prob
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.program.batches import Batches
from kgpyro.program.lazy import observed_of

DIM, BATCH = 200, 512
WARM_UP, STEPS_A_TURN = 2, 5
CONFIG: dict[str, Any] = vars(
    Options(
        model="lim",
        dim=DIM,
        batch_size=BATCH,
        epochs=1,
        negatives="all",
        closed_world="local",
        inverse=True,
        kl_weight=1.0,
        kl_schedule="constant",
    )
)
SCORES = ["TransE-L1", "TransE-L2", "RotatE", "RESCAL"]  # besides ComplEx, at the same dim
Step = Callable[[], Any]


def memory(field: str) -> float:
    """A field of this process' memory in MB: VmRSS now, VmHWM at its peak."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps left in the allocator's pools is no one's working memory
    Path("/proc/self/clear_refs").write_text("5")


def random_batches(total: int, size: int = BATCH) -> Callable[[], Tensor]:
    batches = iter(())

    def draw() -> Tensor:
        nonlocal batches
        for index in batches:
            if len(index) == size:
                return index
        batches = iter(RandomQueries(total, size))
        return draw()

    return draw


def labels(batches: Batches, index: Tensor) -> Tensor:
    return batches(index).y.to_dense()


class PlainLIM:
    """The LIM's step in plain PyTorch: the maths, without Pyro, Lightning or any kernel of ours."""

    def __init__(self, graph: Graph, draw: str, dim: int = DIM, lr: float = 0.1):
        self.batches = Batches(graph.training_queries, graph.num_entities, inverse=True)
        rows = 2 * graph.num_relations
        self.loc = [torch.randn(n, dim).mul_(0.1).requires_grad_() for n in (graph.num_entities, rows)]
        self.log_scale = [torch.full((n, dim), -2.5, requires_grad=True) for n in (graph.num_entities, rows)]
        self.intercept = torch.full((rows,), -7.0, requires_grad=True)
        self.draw = draw
        learnt = self.loc + (self.log_scale if draw != "point" else [])
        self.optimizer = torch.optim.Adagrad([*learnt, self.intercept], lr=lr)

    def step(self, index: Tensor) -> None:
        batch, score = self.batches(index), resolve_complex()
        scale = [s.exp() for s in self.log_scale]
        if self.draw in ("point", "local"):
            entities, relations = self.loc
        else:
            entities, relations = (m + s * torch.randn_like(m) for m, s in zip(self.loc, scale, strict=True))
        anchor, relation = entities[batch.anchor], relations[batch.relation]
        if self.draw == "local":  # each query draws its own
            rows = (self.loc[0], scale[0], batch.anchor), (self.loc[1], scale[1], batch.relation)
            anchor, relation = (m[r] + s[r] * torch.randn(len(r), m.shape[1]) for m, s, r in rows)
        query = score.queries(anchor, relation)
        if self.draw == "local":
            mean, variance = query @ self.loc[0].T, query.square() @ scale[0].square().T
            scores = mean + variance.sqrt() * torch.randn_like(mean)
        else:
            scores = query @ entities.T
        logits = scores + self.intercept[batch.relation, None]
        weight = len(self.batches) / len(index)
        loss = weight * F.binary_cross_entropy_with_logits(logits, batch.y.to_dense(), reduction="sum")
        if self.draw != "point":
            for mean, s, log_s in zip(self.loc, scale, self.log_scale, strict=True):
                loss = loss + 0.5 * (s.square() + mean.square() - 1 - 2 * log_s).sum()
        self.optimizer.zero_grad()
        (loss / self.batches.num_observed).backward()
        self.optimizer.step()


def resolve_complex() -> Any:
    from kgpyro.program.interactions import SCORES as EVERY

    return EVERY["complex"]


def plain(draw: str) -> Callable[[Graph], Step]:
    def make(graph: Graph) -> Step:
        lim = PlainLIM(graph, draw)
        index = random_batches(len(lim.batches))
        return lambda: lim.step(index())

    return make


def products(dtype: torch.dtype) -> Callable[[Graph], Step]:
    """The bare matrix products of a step: scores, and the gradients of both sides."""

    def make(graph: Graph) -> Step:
        query, table = torch.randn(BATCH, DIM, dtype=dtype), torch.randn(graph.num_entities, DIM, dtype=dtype)

        def step() -> None:
            scores = query @ table.T
            _ = scores @ table, scores.T @ query

        return step

    return make


def chunked(graph: Graph) -> Step:
    """The kernel alone: log-likelihood and gradients of a point estimate in one walk over blocks, float32."""
    batches = Batches(graph.training_queries, graph.num_entities, inverse=True)
    query = torch.randn(BATCH, DIM).mul_(0.1).requires_grad_()
    table = torch.randn(graph.num_entities, DIM).mul_(0.1).requires_grad_()
    intercept = torch.full((BATCH,), -7.0, requires_grad=True)
    index = random_batches(len(batches))

    def step() -> None:
        observed = observed_of(batches(index()).y)
        query.grad = table.grad = intercept.grad = None
        ones = torch.ones_like(intercept)
        all_candidates_log_prob(query, table, None, intercept, observed, weight=ones).backward()

    return step


def ours(estimator: str, half: bool, score: str = "ComplEx") -> Callable[[Graph], Step]:
    def make(graph: Graph) -> Step:
        module = training_module(graph, estimator, score=score)
        optimizer = module.configure_optimizers()
        index = random_batches(len(module.batches))

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = module.training_step(index(), 0)
            loss.backward()
            optimizer.step()

        return step

    return make


def training_module(graph: Graph, estimator: str, dim: int = DIM, score: str = "ComplEx") -> Training:
    """A LIM before its first step."""
    config = CONFIG | {"dim": dim, "score": score, "estimator": estimator}
    batches, kg = batches_of(graph, config, torch.float32), build_setting(graph, config)
    kg.start_at_base_rates(batches)
    program = program_of("lim", kg, batches)
    guide = build_guide("lookup", kg, sites_of(program))
    return Training(program, guide, config)


def naive_pyro(validation: bool) -> Callable[[Graph], Step]:
    """AutoNormal and SVI over the same model, its likelihood a dense Bernoulli."""

    def make(graph: Graph) -> Step:
        import pyro.distributions as dist
        from pyro.infer import SVI, Trace_ELBO
        from pyro.infer.autoguide import AutoNormal

        batches = Batches(graph.training_queries, graph.num_entities, inverse=True)
        rows, score = 2 * graph.num_relations, resolve_complex()

        def model(batch: Any) -> None:
            with pyro.plate("entity", graph.num_entities):
                entities = pyro.sample("entities", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
            with pyro.plate("relation", rows):
                relations = pyro.sample("relations", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
            logits = score.candidates(entities[batch.anchor], relations[batch.relation], entities) - 7.0
            with pyro.plate("query", len(batches), subsample=torch.arange(len(batch.anchor))):
                pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=batch.y.to_dense())

        pyro.enable_validation(validation)
        svi = SVI(model, AutoNormal(model, init_scale=0.1), pyro.optim.Adagrad({"lr": 0.1}), Trace_ELBO())
        index = random_batches(len(batches))
        return lambda: svi.step(batches(index()))

    return make


def pykeen_model(graph: Graph) -> tuple[Any, Any]:
    from pykeen.losses import BCEWithLogitsLoss
    from pykeen.models import ComplEx
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory(graph.train, graph.num_entities, graph.num_relations, create_inverse_triples=True)
    options: dict[str, Any] = {"embedding_dim": DIM // 2, "regularizer": None, "random_seed": 0}
    return ComplEx(triples_factory=factory, loss=BCEWithLogitsLoss(), **options), factory


def pykeen_lcwa(graph: Graph) -> Step:
    """A step of PyKEEN's LCWA training loop with a binary cross-entropy loss, point estimate."""
    from pykeen.training import LCWATrainingLoop

    model, factory = pykeen_model(graph)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    loop = LCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer)
    loader = loop._create_training_data_loader(factory, sampler=None, batch_size=BATCH, shuffle=True)
    batches = iter(loader)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        loop._process_batch(next(batches), start=0, stop=BATCH).backward()
        optimizer.step()
        model.post_parameter_update()

    return step


def evaluation(graph: Graph) -> Step:
    """Filtered ranks of the test set, both sides, by our blocks."""
    from kgpyro.posterior.fitted import Posterior

    module = training_module(graph, "local")
    posterior = Posterior(graph, module.program, module.bound.guide, CONFIG)
    return lambda: posterior.evaluation("test")


def pykeen_evaluation(graph: Graph) -> Step:
    """The same by PyKEEN's RankBasedEvaluator."""
    from pykeen.evaluation import RankBasedEvaluator

    model, _ = pykeen_model(graph)
    known = [graph.train, graph.valid]

    def step() -> None:
        RankBasedEvaluator(filtered=True).evaluate(
            model, graph.test, batch_size=256, additional_filter_triples=known, use_tqdm=False
        )

    return step


def nations_ours(_: Graph) -> Step:
    """An epoch of Nations through Lightning and Pyro; seconds are per step."""
    import lightning.pytorch as pl

    graph = kgpyro.load_graph("nations")
    module = training_module(graph, "local", dim=100)
    epochs, loader = 50, RandomQueries(len(module.batches), 256)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def step() -> None:
        trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **options)
        trainer.fit(module, loader)

    step.steps = epochs * len(loader)  # type: ignore[attr-defined]
    return step


def nations_plain(_: Graph) -> Step:
    """The same steps in plain PyTorch."""
    graph = kgpyro.load_graph("nations")
    lim = PlainLIM(graph, "local", dim=100)
    epochs, loader = 50, RandomQueries(len(lim.batches), 256)

    def step() -> None:
        for _ in range(epochs):
            for index in loader:
                lim.step(index)

    step.steps = epochs * len(loader)  # type: ignore[attr-defined]
    return step


ROWS: dict[str, Callable[[Graph], Step]] = {
    "products_fp32": products(torch.float32),
    "products_bf16": products(torch.bfloat16),
    "plain_torch_point": plain("point"),
    "plain_torch_lim_shared": plain("shared"),
    "plain_torch_lim_local": plain("local"),
    "naive_pyro_validated": naive_pyro(True),
    "naive_pyro": naive_pyro(False),
    "pykeen_lcwa": pykeen_lcwa,
    "kgpyro_kernel_fp32": chunked,
    "kgpyro_lim_plain_fp32": ours("plain", False),
    "kgpyro_lim_shared_fp32": ours("shared", False),
    "kgpyro_lim_shared_bf16": ours("shared", True),
    "kgpyro_lim_local_fp32": ours("local", False),
    "kgpyro_lim_local_bf16": ours("local", True),
    **{f"kgpyro_{score.lower()}_fp32": ours("shared", False, score) for score in SCORES},
    "pykeen_evaluation": pykeen_evaluation,
    "kgpyro_evaluation": evaluation,
    "nations_plain_torch": nations_plain,
    "nations_kgpyro": nations_ours,
}
RATIOS = {
    "lim_shared_fp32_vs_pykeen": ("kgpyro_lim_shared_fp32", "pykeen_lcwa", "seconds"),
    "lim_shared_bf16_vs_pykeen": ("kgpyro_lim_shared_bf16", "pykeen_lcwa", "seconds"),
    "lim_local_bf16_vs_pykeen": ("kgpyro_lim_local_bf16", "pykeen_lcwa", "seconds"),
    "lim_shared_bf16_vs_bf16_products": ("kgpyro_lim_shared_bf16", "products_bf16", "seconds"),
    "transe_l1_vs_complex": ("kgpyro_transe-l1_fp32", "kgpyro_lim_shared_fp32", "seconds"),
    "transe_vs_complex": ("kgpyro_transe-l2_fp32", "kgpyro_lim_shared_fp32", "seconds"),
    "rotate_vs_complex": ("kgpyro_rotate_fp32", "kgpyro_lim_shared_fp32", "seconds"),
    "rescal_vs_complex": ("kgpyro_rescal_fp32", "kgpyro_lim_shared_fp32", "seconds"),
    "lim_shared_fp32_vs_products": ("kgpyro_lim_shared_fp32", "products_fp32", "seconds"),
    "peak_memory_vs_pykeen": ("kgpyro_lim_shared_fp32", "pykeen_lcwa", "peak_mb"),
    "evaluation_vs_pykeen": ("kgpyro_evaluation", "pykeen_evaluation", "seconds"),
    "nations_vs_plain_torch": ("nations_kgpyro", "nations_plain_torch", "seconds"),
}


_step: Step  # of the process that a row runs in


def prepare(name: str, dataset: str) -> None:
    """Set a row up in this process, and warm it."""
    global _step
    torch.manual_seed(0)
    pyro.enable_validation(False)  # as a fit does; the row that measures it switches it on again
    _step = ROWS[name](kgpyro.load_graph(dataset))
    for _ in range(0 if name.endswith("evaluation") else 2):
        _step()
    _step.whole = name.endswith("evaluation")  # type: ignore[attr-defined]


def seconds() -> list[float]:
    """Times of the steps of one turn, after those that warm the caches; an evaluation is one step without warming."""
    taken = []
    for _ in range(1 if getattr(_step, "whole", False) else WARM_UP + STEPS_A_TURN):
        started = time.perf_counter()
        _step()
        taken.append((time.perf_counter() - started) / getattr(_step, "steps", 1))
    return taken[WARM_UP:] or taken


def working_memory() -> float:
    """MB that one step takes on top of what the process holds between steps."""
    reset_peak()
    before = memory("VmRSS")
    _step()
    return memory("VmHWM") - before


def interleaved(names: list[str], dataset: str, turns: int) -> list[dict[str, Any]]:
    """Every row in a process of its own; in each turn every process takes some steps, in order."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(get_context("spawn").Pool(1)) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        peaks: dict[str, list[float]] = {name: [] for name in names}
        for name, worker in workers.items():
            worker.apply(prepare, (name, dataset))
        for turn in range(turns):
            for name, worker in workers.items():
                if turn == 0 or not name.endswith("evaluation"):
                    times[name] += worker.apply(seconds)
        for name, worker in workers.items():
            peaks[name] = [worker.apply(working_memory) for _ in range(1 if name.endswith("evaluation") else 9)]
    rows = []
    for name in names:
        rows.append(
            {"name": name, "seconds": statistics.median(times[name]), "peak_mb": statistics.median(peaks[name])}
        )
        print(f"{name:28} {rows[-1]['seconds']:10.4f} s {rows[-1]['peak_mb']:8.0f} MB", flush=True)
    return rows


SHOWN = {
    "products_fp32": "the bare matrix products, float32",
    "plain_torch_point": "plain PyTorch, point estimate",
    "plain_torch_lim_local": "plain PyTorch, LIM with local noise",
    "naive_pyro": "plain Pyro (AutoNormal), LIM",
    "pykeen_lcwa": "PyKEEN LCWA, point estimate",
    "kgpyro_kernel_fp32": "kgpyro's kernel alone, point estimate, gradients included",
    "kgpyro_lim_shared_fp32": "kgpyro LIM, `--estimator shared`",
    "kgpyro_lim_shared_bf16": "kgpyro LIM, `--estimator shared --precision bf16`",
    "kgpyro_transe-l2_fp32": "kgpyro LIM, `--estimator shared`, TransE (L2)",
    "kgpyro_transe-l1_fp32": "kgpyro LIM, `--estimator shared`, TransE-L1",
    "kgpyro_rotate_fp32": "kgpyro LIM, `--estimator shared`, RotatE",
    "kgpyro_rescal_fp32": "kgpyro LIM, `--estimator shared`, RESCAL (200 × 200)",
    "kgpyro_lim_local_fp32": "kgpyro LIM, `--estimator local`",
    "kgpyro_lim_local_bf16": "kgpyro LIM, `--estimator local --precision bf16`",
    "pykeen_evaluation": "filtered test evaluation, PyKEEN",
    "kgpyro_evaluation": "filtered test evaluation, kgpyro",
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The README's table."""
    lines = ["| FB15k-237, ComplEx 100, 512 queries a step | time | working memory |", "|---|---:|---:|"]
    for name, text in SHOWN.items():
        if name in rows:
            seconds, peak = rows[name]["seconds"], rows[name]["peak_mb"]
            lines.append(
                f"| {text} | {f'{seconds:.1f} s' if seconds > 1 else f'{1e3 * seconds:.0f} ms'} | {peak:.0f} MB |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write rows and ratios to this file")
    parser.add_argument(
        "--turns", type=int, default=4, help=f"of {STEPS_A_TURN} steps each, besides {WARM_UP} of warm-up"
    )
    parser.add_argument("--dataset", default="FB15k-237")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="only these rows")
    arguments = parser.parse_args()
    rows = {row["name"]: row for row in interleaved(arguments.rows, arguments.dataset, arguments.turns)}
    print(table(rows))
    ratios = {n: rows[a][k] / rows[b][k] for n, (a, b, k) in RATIOS.items() if a in rows and b in rows}
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:.3f}")
    if arguments.json:
        result = {"machine": machine(), "rows": list(rows.values()), "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
