"""The same code on a GPU: its numbers against the CPU's in float64, a step beside PyKEEN's, a fit of FB15k-237.

    python benchmarks/gpu.py --pack fb15k-237.npz                       # once, where KGPYRO_DATA has the graph
    python benchmarks/gpu.py --data fb15k-237.npz --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --data fb15k-237.npz --device cpu --quick  # tried without a GPU

It writes its results after every part, and a part that fails leaves its error and lets the others run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import BATCH, training_module
from torch import Tensor

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.evaluation.ranking import rank_triples
from kgpyro.inference.training import Training
from kgpyro.kernels.candidates import all_candidates_log_prob
from kgpyro.kernels.gaussian import gaussian_draw_and_kl
from kgpyro.kernels.softmax import log_normaliser
from kgpyro.posterior.fitted import Posterior
from kgpyro.randomness import seeded

REPEATS = 5


def pack(file: Path) -> None:
    """Write FB15k-237 as one small file of ids."""
    graph = kgpyro.load_graph("FB15k-237")
    splits = {split: getattr(graph, split).numpy().astype(np.int32) for split in ("train", "valid", "test")}
    np.savez_compressed(file, sizes=[graph.num_entities, graph.num_relations], **splits)


def unpack(file: Path, quick: bool) -> Graph:
    """The graph of such a file; a small part of it for a quick try."""
    with np.load(file) as data:
        entities, relations = data["sizes"].tolist()
        splits = [torch.from_numpy(data[split].astype(np.int64)) for split in ("train", "valid", "test")]
    if quick:
        entities, relations = 300, 20
        splits = [t[:2000] % torch.tensor([entities, relations, entities]) for t in splits]
    names = tuple(f"e{i}" for i in range(entities)), tuple(f"r{i}" for i in range(relations))
    return Graph("FB15k-237", *names, *splits)


class Bench:
    """Rows and ratios, on a device."""

    def __init__(self, graph: Graph, device: str, quick: bool, out: Path | None):
        self.graph, self.device, self.quick, self.out = graph, torch.device(device), quick, out
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.found: dict[str, Any] = {"machine": {"device": name, "torch": torch.__version__}, "rows": [], "ratios": {}}

    def row(self, name: str, **values: Any) -> dict[str, Any]:
        self.found["rows"].append({"name": name, **values})
        print(name, values, flush=True)
        return values

    def part(self, function: Callable[[], None]) -> None:
        """Run a part; write what there is, whatever comes of it."""
        started = time.monotonic()
        try:
            function()
        except Exception as error:  # the other parts are to run
            traceback.print_exc()
            self.found[function.__name__] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{function.__name__}: {time.monotonic() - started:.1f} s", flush=True)
        if self.out is not None:
            self.out.write_text(json.dumps(self.found, indent=1) + "\n")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Callable[[], Any], steps: int = 10) -> dict[str, float]:
        """Median milliseconds of a step over repeats, and the peak memory on top of what was held before, in MB."""
        for _ in range(3):
            step()
        self.wait()
        before = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            for _ in range(steps):
                step()
            self.wait()
            times.append((time.perf_counter() - started) / steps * 1000)
        peak = torch.cuda.max_memory_allocated() - before if self.device.type == "cuda" else 0
        return {"ms": round(statistics.median(times), 3), "slowest_ms": round(max(times), 3), "peak_mb": peak >> 20}

    # ---- parts ------------------------------------------------------------------------------------------------------

    def numbers(self) -> None:
        """Kernels and ranks on the device against float64 on the CPU."""
        torch.manual_seed(0)
        b, E, d = 32, 5000, 64
        query, table = torch.randn(b, d, dtype=torch.double) * 0.3, torch.randn(E, d, dtype=torch.double) * 0.3
        intercept, observed = torch.full((b,), -2.0, dtype=torch.double), (torch.arange(b), torch.arange(b) * 7)
        upstream = torch.rand(b, dtype=torch.double)
        prior = torch.zeros(1, 1, dtype=torch.double), torch.ones(1, 1, dtype=torch.double)

        def on(device: Any, dtype: torch.dtype, kernel: str) -> list[Tensor]:
            q, t, i = (x.detach().clone().to(device, dtype).requires_grad_() for x in (query, table, intercept))
            o = observed[0].to(device), observed[1].to(device)
            if kernel == "bernoulli":
                value = all_candidates_log_prob(q, t, None, i, o, completeness=0.8)
            elif kernel == "categorical":
                value = log_normaliser(q, t, None)
            else:
                p0, p1 = (x.to(device, dtype) for x in prior)
                drawn, kl = gaussian_draw_and_kl(t, torch.zeros_like(t) - 1, p0.expand_as(t), p1.expand_as(t))
                value = kl[:b] + 0 * drawn.sum()
            (value * upstream.to(device, dtype)).sum().backward()
            return [value.detach(), *(x.grad for x in (q, t, i) if x.grad is not None)]

        for kernel in ("bernoulli", "categorical", "gaussian kl"):
            exact, here = on("cpu", torch.double, kernel), on(self.device, torch.float32, kernel)
            error = max(
                float((a.cpu().double() - e).abs().max() / e.abs().max()) for a, e in zip(here, exact, strict=True)
            )
            self.row(f"numbers: {kernel}", relative_error=error, good=error < 1e-4)
        log_scale = torch.full((E, d), -1.5)
        means = {}
        for device in ("cpu", self.device):
            q, t, s = (x.to(device, torch.float32) for x in (query, table, log_scale))
            i, o = intercept.to(device, torch.float32), (observed[0].to(device), observed[1].to(device))
            with seeded(1):
                draws = torch.stack([all_candidates_log_prob(q, t, s, i, o) for _ in range(100)]).cpu().double()
            means[str(device)] = draws.mean(0), draws.std(0) / 10
        (a, x), (c, y) = means["cpu"], means[str(self.device)]
        z = float(((a - c) / (x.square() + y.square()).sqrt().clamp_min(1e-12)).abs().max())
        self.row("numbers: local noise", largest_z=z, good=z < 5)

        graph = self.graph
        q, t = torch.randn(2 * graph.num_relations, 8), torch.randn(graph.num_entities, 8)
        ranks = []
        for device in ("cpu", self.device):
            r, e = q.to(device, torch.double), t.to(device, torch.double)
            score = lambda a, p, r=r, e=e: (e[a.to(e.device)] * r[p.to(e.device)]) @ e.T  # noqa: E731
            ranks.append(rank_triples(score, graph.test[:500], graph.known_queries, graph.num_entities))
        self.row("numbers: ranks", good=bool(ranks[0].equals(ranks[1])))

    def fits(self) -> None:
        """Small fits by every estimator; one saved, loaded and asked again."""
        device = "gpu" if self.device.type == "cuda" else "cpu"
        for model, estimator in (("lim", "local"), ("lim", "shared"), ("lim", "plain"), ("lfm", "local")):
            options = {"model": model, "estimator": estimator, "epochs": 40, "progress": False}
            p = kgpyro.fit("nations", device=device, **options)  # type: ignore[arg-type]
            mrr = p.metrics["test"]["realistic"]["mrr"]
            self.row(f"fit of Nations: {model}, {estimator}", mrr=mrr, elbo=p.metrics["elbo_per_fact"], good=mrr > 0.7)
        with tempfile.TemporaryDirectory() as folder:
            p.save(f"{folder}/run")
            names = p.graph.names(p.graph.test[:50])
            here, again = p.facts(names)["probability"], kgpyro.load(f"{folder}/run").facts(names)["probability"]
        self.row("saved on the device, loaded on the CPU", largest_difference=float((here - again).abs().max()))

    def training(self, dim: int, estimator: str) -> Training:
        """The training module of a LIM, on the device."""
        module = training_module(self.graph, estimator, dim).to(self.device)
        module.batches.to(self.device)
        return module

    def steps(self) -> None:
        """Steps of the LIM beside PyKEEN's point estimate and the bare products."""
        E = self.graph.num_entities
        for dim in (16, 32) if self.quick else (200, 2000):
            ms: dict[str, float] = {}
            for dtype in (torch.float32, torch.bfloat16):
                q, t = (torch.randn(n, dim, dtype=dtype, device=self.device) for n in (BATCH, E))

                def products(q: Tensor = q, t: Tensor = t) -> None:
                    scores = q @ t.T
                    _ = scores @ t, scores.T @ q

                name = f"products {'fp32' if dtype == torch.float32 else 'bf16'}, dim {dim}"
                ms[name] = self.row(name, **self.timed(products))["ms"]
            for estimator in ("shared", "local"):
                for half in (False, True):
                    module = self.training(dim, estimator)
                    optimizer, total = module.configure_optimizers(), len(module.batches)

                    def step(module: Any = module, optimizer: Any = optimizer, total: int = total, half: bool = half):  # type: ignore[no-untyped-def]
                        optimizer.zero_grad()
                        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                            index = torch.randint(total, (BATCH,), device=self.device)
                            loss = module.bound(module.kg, module.batches(index)) / module.batches.num_observed
                        loss.backward()
                        optimizer.step()

                    name = f"lim {estimator} {'bf16' if half else 'fp32'}, dim {dim}"
                    ms[name] = self.row(name, **self.timed(step))["ms"]
                    del module, optimizer
            for half in (False, True):
                name = f"pykeen {'bf16' if half else 'fp32'}, dim {dim}"
                ms[name] = self.row(name, **self.timed(self.pykeen_step(dim, half)))["ms"]
            for estimator in ("shared", "local"):
                for bits in ("fp32", "bf16"):
                    mine = ms[f"lim {estimator} {bits}, dim {dim}"]
                    for other in ("pykeen", "products"):
                        ratio = mine / ms[f"{other} {bits}, dim {dim}"]
                        self.found["ratios"][f"lim_{estimator}_{bits}_dim{dim}_vs_{other}"] = round(ratio, 3)

    def pykeen_step(self, dim: int, half: bool) -> Callable[[], None]:
        """A step of PyKEEN's LCWA training loop with a binary cross-entropy loss, point estimate."""
        from pykeen.training import LCWATrainingLoop

        model, factory = self.pykeen(dim)
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        loop = LCWATrainingLoop(model=model, triples_factory=factory, optimizer=optimizer)
        loader = loop._create_training_data_loader(factory, sampler=None, batch_size=BATCH, shuffle=True)
        batches = [batch for batch, _ in zip(loader, range(12), strict=False)]
        model.train()
        count = 0

        def step() -> None:
            nonlocal count
            optimizer.zero_grad()
            batch = batches[count % len(batches)]
            count += 1
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss = loop._process_batch(batch, start=0, stop=len(next(iter(batch.values()))))
            loss.backward()
            optimizer.step()
            model.post_parameter_update()

        return step

    def pykeen(self, dim: int) -> tuple[Any, Any]:
        from pykeen.losses import BCEWithLogitsLoss
        from pykeen.models import ComplEx
        from pykeen.triples import CoreTriplesFactory

        g = self.graph
        factory = CoreTriplesFactory(g.train, g.num_entities, g.num_relations, create_inverse_triples=True)
        options: dict[str, Any] = {"embedding_dim": dim // 2, "regularizer": None, "random_seed": 0}
        return ComplEx(triples_factory=factory, loss=BCEWithLogitsLoss(), **options).to(self.device), factory

    def evaluation(self) -> None:
        """Filtered ranks of the test set, both sides, beside PyKEEN's evaluator."""
        dim = 16 if self.quick else 200
        module = self.training(dim, "local")
        posterior = Posterior(self.graph, module.program, module.bound.guide, module.config)
        posterior.evaluation("test")
        ours = self.row("evaluation", **self.timed(lambda: posterior.evaluation("test"), steps=1))
        from pykeen.evaluation import RankBasedEvaluator

        model, _ = self.pykeen(dim)
        model.eval()
        g, evaluator = self.graph, RankBasedEvaluator(filtered=True)

        def theirs() -> None:
            evaluator.evaluate(
                model, g.test, additional_filter_triples=[g.train, g.valid], batch_size=256, use_tqdm=False
            )

        theirs()
        started = time.perf_counter()
        theirs()
        self.wait()
        other = self.row("pykeen evaluation", ms=round((time.perf_counter() - started) * 1000, 1))
        self.found["ratios"]["evaluation_vs_pykeen"] = round(ours["ms"] / other["ms"], 3)

    def long_fit(self) -> None:
        """One fit of the whole graph."""
        dim, epochs = (16, 2) if self.quick else (1000, 20)
        options = {
            "model": "lim", "likelihood": "categorical", "dim": dim, "epochs": epochs, "batch_size": BATCH,
            "optimizer": "adam", "lr": 0.004, "lr_schedule": "linear", "estimator": "shared", "kl_weight": 0.3,
            "prior": "normal(scale=0.3)", "precision": "bf16" if self.device.type == "cuda" else "32",
            "device": "gpu" if self.device.type == "cuda" else "cpu", "progress": False,
        }  # fmt: skip
        started = time.monotonic()
        p = kgpyro.fit(self.graph, **options)  # type: ignore[arg-type]
        values = {split: p.metrics[split]["realistic"] for split in ("valid", "test")}
        self.row("fit of FB15k-237", seconds=round(time.monotonic() - started, 1), options=options, **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, help="write the graph to this file, and do nothing else")
    parser.add_argument("--data", type=Path, help="the file that --pack wrote")
    parser.add_argument("--json", type=Path, help="where results go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    given = parser.parse_args()
    if given.pack:
        pack(given.pack)
        return
    torch.set_float32_matmul_precision("highest")
    bench = Bench(unpack(given.data, given.quick), given.device, given.quick, given.json)
    for part in (bench.numbers, bench.fits, bench.steps, bench.evaluation, bench.long_fit):
        bench.part(part)
    print(json.dumps(bench.found["ratios"], indent=1))


if __name__ == "__main__":
    main()
