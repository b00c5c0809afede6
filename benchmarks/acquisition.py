"""Does asking for the facts with the highest mutual information pay? Active learning from a pool, round by round.

    python benchmarks/acquisition.py --json benchmarks/results/acquisition.json

A model starts with a tenth of a graph's training triples (and one at least of every relation). Its pool holds 2000 of
the other training triples and twice as many false facts: a head or tail of them replaced by a random entity, unknown to
all three splits. In a round a strategy picks facts of the pool, whose labels are then revealed: true ones join the
training triples, false ones only leave the pool, since training counts every unobserved fact as false anyway. So it
counts the hidden true facts too, until they are found. The model is then fitted anew.

Strategies: at random; by probability, the predictive entropy, or the mutual information (``Posterior.acquire``). The
measure is the filtered test MRR, where all facts of the whole graph are filtered, revealed or not.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from machine import machine
from torch import Tensor
from tqdm.auto import tqdm

import kgpyro
from kgpyro.evaluation.ranking import all_metrics, rank_triples
from kgpyro.posterior.asked import fact_ids
from kgpyro.posterior.discovery import unknown

CONFIGS = Path(__file__).resolve().parent / "configs"
STRATEGIES = ("random", "probability", "entropy", "epistemic")
START, HIDDEN, FALSE, ROUNDS = 0.1, 2000, 4000, 6


def start_and_pool(graph: kgpyro.Graph, seed: int) -> tuple[Tensor, Tensor]:
    """The triples to start with, and the pool: ``HIDDEN`` true facts first, then ``FALSE`` false ones."""
    torch.manual_seed(seed)
    shuffled = graph.train[torch.randperm(len(graph.train))]
    first_of_its_relation = torch.stack([(shuffled[:, 1] == p).nonzero()[0, 0] for p in range(graph.num_relations)])
    starts = torch.arange(len(shuffled)) < START * len(shuffled)
    starts[first_of_its_relation] = True
    hidden = shuffled[~starts][:HIDDEN]
    corrupted = hidden[torch.randint(len(hidden), (3 * FALSE,))]
    side = 2 * torch.randint(2, (len(corrupted),))
    corrupted[torch.arange(len(corrupted)), side] = torch.randint(graph.num_entities, (len(corrupted),))
    everything = replace(graph, train=torch.cat([graph.train, graph.valid, graph.test]))
    false = unknown(corrupted, everything)
    return shuffled[starts], torch.cat([hidden, false[torch.randperm(len(false))[:FALSE]]])


def fitted(graph: kgpyro.Graph, options: dict[str, Any]) -> tuple[kgpyro.Posterior, float]:
    """A fit to what is revealed, and its test MRR; ``graph`` filters by its whole self."""
    whole = kgpyro.load_graph(graph.source)
    posterior = kgpyro.fit(graph, **options, progress=False, device="cpu")
    ranks = rank_triples(posterior.mean_scores, whole.test, whole.known_queries, whole.num_entities)
    return posterior, all_metrics(ranks)["realistic"]["mrr"]


def pick(posterior: kgpyro.Posterior, pool: Tensor, strategy: str, labels: int, draws: int, seed: int) -> Tensor:
    """Which facts of the pool are to be revealed, as a mask."""
    chosen = torch.zeros(len(pool), dtype=torch.bool)
    if strategy == "random":
        chosen[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:labels]] = True
        return chosen
    table = posterior.acquire(labels, by=strategy, draws=draws, candidates=pool, seed=seed)
    wanted = {tuple(fact) for fact in fact_ids(posterior.graph, table).tolist()}
    return torch.tensor([tuple(fact) in wanted for fact in pool.tolist()])


def learn(name: str, seed: int, arguments: argparse.Namespace, bar: tqdm) -> list[dict[str, Any]]:
    """All strategies from the same start."""
    whole = kgpyro.load_graph(name)
    options = yaml.safe_load((CONFIGS / f"lim-{name}.yaml").read_text())
    options |= {"dim": arguments.dim, "epochs": arguments.epochs, "batch_size": arguments.batch_size, "seed": seed}
    options |= {"kl_schedule": "warmup"}  # so few facts never pull a latent away from its prior otherwise
    del options["dataset"]
    start, candidates = start_and_pool(whole, seed)
    first = fitted(replace(whole, train=start), options)
    rows = []
    for strategy in STRATEGIES:
        train, pool, is_true = start, candidates, torch.arange(len(candidates)) < HIDDEN
        posterior, mrr = first
        for step in range(ROUNDS + 1):
            if step:
                mask = pick(posterior, pool, strategy, arguments.labels, arguments.draws, 1000 * seed + step)
                train = torch.cat([train, pool[mask & is_true]])
                pool, is_true = pool[~mask], is_true[~mask]
                posterior, mrr = fitted(replace(whole, train=train), options)
                bar.update()
            revealed, found = len(candidates) - len(pool), len(train) - len(start)
            rows.append(
                {"graph": name, "strategy": strategy, "seed": seed, "round": step, "revealed": revealed}
                | {"true_found": found, "mrr": round(mrr, 5)}
            )
    return rows


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds at the end; ``…_minus_…`` are paired differences of the final MRR, with standard errors."""
    frame = pd.DataFrame(rows)
    last = frame[frame["round"] == ROUNDS].set_index(["graph", "strategy", "seed"]).sort_index()
    by_round = frame[frame["round"] > 0].groupby(["graph", "strategy"])["mrr"].mean()
    out = []
    for graph in last.index.unique("graph"):
        for strategy in STRATEGIES:
            mrr = last.loc[(graph, strategy), "mrr"]
            row = {"graph": graph, "strategy": strategy}
            row |= {"true_found": float(last.loc[(graph, strategy), "true_found"].mean())}
            row |= {"final_mrr": float(mrr.mean()), "mean_mrr_over_rounds": float(by_round[graph, strategy])}
            for other in ("random", "probability"):
                difference = mrr - last.loc[(graph, other), "mrr"]
                row |= {f"minus_{other}": float(difference.mean()), f"minus_{other}_se": float(difference.sem())}
            out.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--graphs", nargs="+", default=["kinship", "umls"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=200, help="facts revealed in a round")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    settings = {k: v for k, v in vars(arguments).items() if k != "json"}
    settings |= {"machine": machine()}
    rows: list[dict[str, Any]] = []
    fits = len(arguments.graphs) * len(arguments.seeds) * len(STRATEGIES) * ROUNDS
    with tqdm(total=fits, desc="acquisition", unit="fit") as bar:
        for name in arguments.graphs:
            for seed in arguments.seeds:
                rows += learn(name, seed, arguments, bar)
                results = {"settings": settings, "rows": rows, "summary": summarised(rows)}
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(pd.DataFrame(results["summary"]).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
