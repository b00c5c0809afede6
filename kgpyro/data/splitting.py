"""Facts held out, and what makes splits doubtful: facts read backwards, columns in another order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def held_out(triples: Tensor, number: int, seed: int) -> Tensor:
    """So many random triples, or as many as leave every entity and relation a triple, shape ``(m,)``."""
    ends, relations = torch.bincount(triples[:, [0, 2]].flatten()).tolist(), torch.bincount(triples[:, 1]).tolist()
    found: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(triples)).tolist() if number else ():
        head, relation, tail = triples[i].tolist()
        ends[head], ends[tail], relations[relation] = ends[head] - 1, ends[tail] - 1, relations[relation] - 1
        if ends[head] and ends[tail] and relations[relation]:
            found.append(i)
        else:
            ends[head], ends[tail], relations[relation] = ends[head] + 1, ends[tail] + 1, relations[relation] + 1
        if len(found) == number:
            break
    return torch.tensor(found, dtype=torch.long)


def read_backwards(train: Tensor, test: Tensor, num_entities: int) -> dict[tuple[int, int], int]:
    """Test facts ``(h, r, t)`` of which training holds ``(t, s, h)``, for relations ``s`` inverse to ``r``.

    These are inverse (Toutanova & Chen 2015; ``s = r`` is a symmetric one) if so are half or more of the facts of
    ``r``, in test and in all, five times as many as by chance, and neither has more than twice the other's facts.

    Args:
        train, test: triple ids, shape ``(n, 3)``.
        num_entities: of the graph.

    Returns:
        How many, by ``(r, s)``.
    """
    known, asked = (pd.DataFrame(triples.numpy(), columns=["h", "r", "t"]) for triples in (train, test))
    every = pd.concat([known.assign(tested=False), asked.assign(tested=True)])
    found = every.merge(known.rename(columns={"h": "t", "t": "h", "r": "s"}), on=["h", "t"])
    pairs = found.groupby(["r", "s"], as_index=False)["tested"].agg(["size", "sum"])
    facts, tests = every["r"].value_counts(), asked["r"].value_counts()
    of_all, of_test = pairs["size"] / pairs["r"].map(facts), pairs["sum"] / pairs["r"].map(tests)
    back = pairs["s"].map(facts)
    near = (back / pairs["r"].map(facts)).between(0.5, 2)
    pairs = pairs[(of_all >= 0.5) & (of_test >= 0.5) & (of_all >= 5 * back / num_entities**2) & near]
    return {(int(r), int(s)): int(number) for r, s, _, number in pairs.itertuples(index=False)}


def is_misordered(triples: Tensor) -> bool:
    """Whether triples look like head, tail, relation: many relations, and few tails, which are hardly ever heads."""
    heads, relations, tails = (column.unique() for column in triples.unbind(1))
    shared = int(torch.isin(tails, heads).sum())
    return len(relations) >= max(5, len(tails) + 1, len(heads) / 2) and shared <= len(tails) / 10
