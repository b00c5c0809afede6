"""What makes a split doubtful: test facts that are training facts read backwards, columns in another order."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

THIRD = 1 / 3


def read_backwards(train: Tensor, test: Tensor, num_entities: int) -> tuple[dict[tuple[int, int], int], int]:
    """Test facts ``(h, r, t)`` of which training holds ``(t, s, h)``, for relations ``s`` inverse to ``r``.

    These are inverse (Toutanova & Chen 2015; ``s = r`` is a symmetric one) if a third or more of the test facts of
    ``r`` are so, three times as many as chance makes, and ``s`` has at most three times as many training facts as
    ``r``.

    Args:
        train, test: triple ids, shape ``(n, 3)``.
        num_entities: of the graph.

    Returns:
        By ``(r, s)`` how many; and how many test facts that are in all.
    """
    asked, known = (pd.DataFrame(triples.numpy(), columns=["h", "r", "t"]) for triples in (test, train))
    facts = known["r"].value_counts()
    found = asked.merge(known.rename(columns={"h": "t", "t": "h", "r": "s"}), on=["h", "t"])
    pairs = found.groupby(["r", "s"], as_index=False).size()
    share = pairs["size"] / pairs["r"].map(asked["r"].value_counts())
    same, reverse = pairs["r"].map(facts), pairs["s"].map(facts)
    inverse = pairs[(share >= THIRD) & (share >= 3 * reverse / num_entities**2) & (reverse * THIRD <= same)]
    rows = found.merge(inverse, on=["r", "s"])[["h", "r", "t"]].drop_duplicates()
    return {(int(r), int(s)): int(number) for r, s, number in inverse.itertuples(index=False)}, len(rows)


def is_misordered(triples: Tensor) -> bool:
    """Whether triples look like head, tail, relation: many relations, and few tails, which are hardly ever heads."""
    heads, relations, tails = (column.unique() for column in triples.unbind(1))
    shared = sum(tail in heads for tail in tails) if len(tails) < len(relations) else len(tails)
    return len(relations) >= max(5, len(heads) / 2) and shared <= len(tails) / 10
