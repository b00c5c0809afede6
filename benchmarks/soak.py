"""A long fit: does its memory stay flat, and its pace?

    python benchmarks/soak.py --json benchmarks/results/soak.json

Fits the LIM to Nations for 10⁵ steps, and looks at resident memory and time per step along the way. The ratios compare
the last tenth of the fit with its second tenth.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path

import numpy as np

import kgpyro

BATCH = 256


def resident_mb() -> float:
    """Of this process, now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write rows and ratios to this file")
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    graph = kgpyro.load_graph("nations")
    per_epoch = math.ceil(len(graph.training_queries) / BATCH)
    epochs = math.ceil(arguments.steps / per_epoch)
    samples, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            samples.append((time.monotonic(), resident_mb()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        posterior = kgpyro.fit(graph, model="lim", epochs=epochs, batch_size=BATCH, progress=False, device="cpu")
    finally:
        over.set()
        watcher.join()
    pace = np.diff(posterior.log["seconds"].to_numpy(), prepend=0.0) / per_epoch
    memory = np.array(samples)[:, 1]
    rows = []
    for tenth, (seconds, mb) in enumerate(zip(np.array_split(pace, 10), np.array_split(memory, 10), strict=True)):
        rows.append({"tenth": tenth + 1, "ms_per_step": 1000 * float(np.median(seconds)), "mb": float(np.median(mb))})
    ratios = {f"{key}_last_vs_second": rows[-1][key] / rows[1][key] for key in ("ms_per_step", "mb")}
    for row in rows:
        print(f"{row['tenth']:2}  {row['ms_per_step']:.2f} ms  {row['mb']:.0f} MB")
    print(ratios)
    if arguments.json:
        result = {"steps": epochs * per_epoch, "ratios": ratios, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
