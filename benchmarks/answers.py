"""How many queries a second a fit answers, and how its answers differ from those of all draws over all candidates.

    KGPYRO_DATA=FOLDER python -m kgpyro.fit --dataset FB15k-237 --dim 200 --epochs 2 --batch-size 512 \\
        --estimator shared --precision bf16 --out runs/fb15k-237
    OMP_NUM_THREADS=1 python benchmarks/answers.py runs/fb15k-237

Test queries, for tails and for heads in turn, by processor time: what else the machine does counts less.
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import machine

import kgpyro
from kgpyro.posterior.fitted import Posterior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a saved run")
    parser.add_argument("--queries", type=int, nargs="+", default=[1_000, 4_000, 20_000])
    parser.add_argument("--compare", type=int, default=0, help="as many are also answered by all draws over all")
    arguments = parser.parse_args()
    posterior = kgpyro.load(arguments.run)
    graph = posterior.graph
    mixed = graph.test[torch.randperm(len(graph.test), generator=torch.Generator().manual_seed(0))]
    asked = [(h, r, None) if i % 2 else (None, r, t) for i, (h, r, t) in enumerate(graph.names(mixed))]
    print(machine())
    posterior.answers(asked[:80])
    for count in arguments.queries:
        cpu, wall = time.process_time(), time.perf_counter()
        posterior.answers(asked[:count])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"{count:6} queries: {count / cpu:6.0f} a second of processor time, {count / wall:6.0f} a second")
    if arguments.compare:
        keys = ["query", "head", "relation", "tail"]
        found = posterior.answers(asked[: arguments.compare])
        Posterior._estimable = property(lambda _: False)  # type: ignore[assignment, method-assign]
        every = posterior.answers(asked[: arguments.compare])
        left_out = every.merge(found[keys], on=keys, how="left", indicator=True)
        for least in (0.1, 0.01, 0.001, 0):
            among = left_out[left_out["probability"] >= least]
            share = (among["_merge"] == "left_only").mean()
            print(f"of {len(among)} answers of all draws with probability from {least} on {share:.2%} are not found")


if __name__ == "__main__":
    main()
