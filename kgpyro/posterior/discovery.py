"""All facts that no split holds and that are probable enough, over the whole graph, block after block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.posterior.answers import Answers
from kgpyro.posterior.draws import AT_ONCE

WORTH = 100  # cells that take as long in a matrix product as one by itself


@torch.no_grad()
def discovered(
    posterior: Answers, above: float, relation: int | None, draws: int, seed: int, progress: bool = False
) -> Iterator[pd.DataFrame]:
    """Frames of the facts of each block of queries ``(head, relation, ?)``, as :meth:`.Answers.facts` has them."""
    graph = posterior.graph
    size, known = graph.num_entities, graph.known_queries
    everyone = torch.arange(size)
    blocks = everyone.split(max(1, 4 * AT_ONCE // size))
    relations = range(graph.num_relations) if relation is None else [relation]
    with tqdm(total=size * len(relations), desc="discover", unit="query", disable=not progress, leave=False) as bar:
        for row in relations:
            least = _least(posterior, above, graph.relations[row])
            for heads in blocks:
                rows = torch.full_like(heads, row)
                cells = torch.ones(len(heads), size, dtype=torch.bool)
                cells[known.answer_pairs(known.positions(heads, rows))] = False
                if least is not None:
                    cells &= _possible(posterior, heads, rows, least, draws, seed).cpu()
                for part in cells.nonzero().split(AT_ONCE):
                    found = torch.stack([heads[part[:, 0]], torch.full_like(part[:, 0], row), part[:, 1]], 1)
                    table = posterior.facts(found, draws=draws, seed=seed)
                    yield table[table["probability"] >= above].drop(columns="known")
                bar.update(len(heads))


def _possible(posterior: Answers, heads: Tensor, rows: Tensor, least: float, draws: int, seed: int) -> Tensor:
    """Which cells ``(b, E)`` may have a mean probability of ``least`` over all draws, seen from the first ones."""
    total, number = torch.zeros((), device=posterior.device), len(posterior.numbers(draws, seed))
    alive = torch.ones((), dtype=torch.bool)
    for done, logits in enumerate(posterior.answer_logits(heads, rows, draws, seed), 1):
        total = total + logits.sigmoid_()
        if number - done < least * number:
            alive = total + (number - done) >= (least - 1e-5) * number
            if int(alive.sum()) * WORTH < alive.numel():
                break
    return alive


def _least(posterior: Answers, above: float, relation: str) -> float | None:
    """The least probability of a relation's fact before recalibration that is ``above`` after it; None for no bound."""
    if posterior.kg.categorical or posterior._by_evidence:
        return None
    if posterior.recalibration is None:
        return above
    low, high = -40.0, 40.0  # log-odds
    for _ in range(60):
        middle = (low + high) / 2
        p = np.array([1 / (1 + math.exp(-middle))])
        moved = posterior.recalibration({"probability": p, "relation": np.array([relation])})[0]
        low, high = (low, middle) if moved >= above else (middle, high)
    return 1 / (1 + math.exp(-low))
