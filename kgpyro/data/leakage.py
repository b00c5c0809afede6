"""What makes a split doubtful: test facts that are training facts read backwards, columns in another order."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor


def read_backwards(train: Tensor, test: Tensor, num_entities: int) -> tuple[dict[tuple[int, int], int], int]:
    """Test facts ``(h, r, t)`` of which training holds ``(t, s, h)``, for relations ``s`` inverse to ``r``.

    These are inverse (Toutanova & Chen 2015; ``s = r`` is a symmetric one) if so are half or more of the facts of
    ``r``, in test and in all, five times as many as by chance, and neither has more than twice the other's facts.

    Args:
        train, test: triple ids, shape ``(n, 3)``.
        num_entities: of the graph.

    Returns:
        By ``(r, s)`` how many; and how many test facts that are in all.
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
    rows = found[found["tested"]].merge(pairs, on=["r", "s"])[["h", "r", "t"]].drop_duplicates()
    return {(int(r), int(s)): int(number) for r, s, _, number in pairs.itertuples(index=False)}, len(rows)


def is_misordered(triples: Tensor) -> bool:
    """Whether triples look like head, tail, relation: many relations, and few tails, which are hardly ever heads."""
    heads, relations, tails = (column.unique() for column in triples.unbind(1))
    shared = int(torch.isin(tails, heads).sum())
    return len(relations) >= max(5, len(tails) + 1, len(heads) / 2) and shared <= len(tails) / 10
