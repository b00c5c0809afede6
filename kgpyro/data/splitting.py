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


def read_backwards(train: Tensor, test: Tensor, num_entities: int) -> tuple[dict[tuple[int, int], int], int]:
    """Test facts ``(h, r, t)`` of which training holds ``(t, s, h)``, for relations ``s`` inverse to ``r``.

    These are inverse (Toutanova & Chen 2015; ``s = r`` is a symmetric one) if so are half or more of the facts of
    ``r``, in test and in all, five times as many as by chance, and neither has more than twice the other's facts.

    Gives how many, by ``(r, s)``; and how many there are in all, each once.
    """
    every = torch.cat([train, test])
    forward, back = (every[:, i] * num_entities + every[:, j] for i, j in ((0, 2), (2, 0)))
    known, tested = forward[: len(train)], torch.arange(len(every)) >= len(train)
    asked, answers = torch.isin(back, known), torch.isin(known, back)
    left = {"pair": back[asked].numpy(), "r": every[asked, 1].numpy(), "tested": tested[asked].numpy()}
    left["fact"] = asked.nonzero().squeeze(1).numpy()
    right = {"pair": known[answers].numpy(), "s": train[answers, 1].numpy()}
    found = pd.DataFrame(left).merge(pd.DataFrame(right), on="pair")
    pairs = found.groupby(["r", "s"], as_index=False)["tested"].agg(["size", "sum"])
    count, tests = (triples[:, 1].bincount(minlength=int(every[:, 1].max()) + 1).numpy() for triples in (every, test))
    of_r, of_s = count[pairs["r"]], count[pairs["s"]]
    enough = (pairs["size"] / of_r >= 0.5) & (pairs["sum"] / tests[pairs["r"]] >= 0.5)
    likely = (pairs["size"] / of_r >= 5 * of_s / num_entities**2) & (of_s <= 2 * of_r) & (of_r <= 2 * of_s)
    pairs = pairs[enough & likely]
    facts = found[found["tested"]].merge(pairs, on=["r", "s"])["fact"]
    return {(int(r), int(s)): int(number) for r, s, _, number in pairs.itertuples(index=False)}, facts.nunique()


def is_misordered(triples: Tensor, alike: int) -> bool:
    """Whether triples look like head, tail, relation.

    There are half as many relations as heads, and as tails, or more; and half of them (``alike`` are) have the names of
    entities, or hardly any tail is a head.
    """
    heads, relations, tails = (column.unique() for column in triples.unbind(1))
    apart = int(torch.isin(tails, heads).sum()) <= len(tails) / 10
    many = len(relations) >= max(5, len(heads) / 2, len(tails) / 2)
    return many and (apart or alike >= len(relations) / 2)
