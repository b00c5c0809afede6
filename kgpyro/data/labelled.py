"""Facts with labels: the triples of a split, and as many false ones: verified by people, corrupted, or hard."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.graph import COLUMNS, Graph
from kgpyro.errors import InputError, meant

KINDS = ("verified", "hard", "random", "open", "none")
TRIES = 50
OPEN = 20_000  # facts drawn of all that no split holds


def labelled_facts(
    graph: Graph, split: str = "test", negatives: str | None = None, seed: int = 0, most: int | None = None
) -> pd.DataFrame:
    """The triples of a split, labelled 1, or with their confidences where they have such, and false ones, labelled 0.

    Args:
        graph: the graph.
        split: ``"valid"`` or ``"test"``.
        negatives: ``verified``: those that people found false (``test_negatives.txt`` and ``valid_negatives.txt`` in
            the graph's folder); ``random``: for each triple one with another head or tail, any entity, that no split
            holds; ``hard``: likewise, with an entity that training has at that end of the relation (type-consistent);
            ``open``: ``OPEN`` of all facts that no split holds, uniformly, with the weights that make them and the
            split stand for all facts that training lacks; ``none``: no false ones. By default verified where the graph
            has them, else random.
        seed: of the corruptions.
        most: of the true ones, at random, and of the open ones, at most; None for all and ``OPEN``.

    Returns:
        ``head``, ``relation``, ``tail``, ``label`` and ``weight``, how many facts each stands for: 1, but with ``open``
        ones, or fewer than there are. ``attrs["negatives"]`` says which were used. A triple for which no corruption was
        found in ``TRIES`` draws has none.

    Raises:
        InputError: unknown names, or verified negatives of a graph that has none.
    """
    if split not in ("valid", "test"):
        raise InputError(f"labelled facts are those of the valid or test split, not of {split!r}.")
    kind = negatives or ("verified" if split in graph.negatives else "random")
    if kind not in KINDS:
        raise InputError(f"unknown `negatives` {kind!r}; {meant(kind, KINDS)}")
    if kind == "verified" and split not in graph.negatives:
        raise InputError(
            f"graph {graph.name!r} has no {split}_negatives.txt, so none are verified; use hard or random ones."
        )
    facts = getattr(graph, split)
    if not (number := len(facts)):
        raise InputError(
            f"graph {graph.name!r} holds no {split} facts out, which are the true ones among labelled facts."
        )
    chosen = torch.arange(number)
    if most is not None and most < number:
        chosen = torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    true, weight = facts[chosen], number / len(chosen)
    false, false_weight = true[:0], 1.0
    if kind == "verified":
        false = graph.negatives[split]
    elif kind == "open":
        false, there = open_facts(graph, OPEN if most is None else min(OPEN, most), seed)
        weight, false_weight = (len(graph.valid) + len(graph.test)) / len(true), there / max(1, len(false))
    elif kind != "none":
        false, false_weight = corruptions(graph, true, kind == "hard", seed), weight
    frame = pd.DataFrame(graph.names(torch.cat([true, false])), columns=list(COLUMNS))
    labels = graph.confidence(split)[chosen].tolist() if split in graph.confidences else [1] * len(true)
    frame["label"] = labels + [0] * len(false)
    frame["weight"] = [weight] * len(true) + [false_weight] * len(false)
    frame.attrs["negatives"] = kind
    return frame


def open_facts(graph: Graph, number: int, seed: int) -> tuple[Tensor, int]:
    """At most ``number`` of the facts that no split holds, uniformly, shape ``(m, 3)``; and how many there are."""
    known = torch.cat([graph._keys(triples) for triples in (graph.train, graph.valid, graph.test)])
    known.numpy().sort()
    known = torch.unique_consecutive(known)
    entities, relations = graph.num_entities, graph.num_relations
    total = entities**2 * relations
    left = total - len(known)
    generator = torch.Generator().manual_seed(seed)
    if left <= number:
        key = torch.arange(total)[~torch.isin(torch.arange(total), known)]
    else:  # the i-th open key (from 0) has as many known ones before it as have a gap key up to i
        place = torch.randint(left, (number,), generator=generator)
        key = place + torch.searchsorted(known - torch.arange(len(known)), place, right=True)
    return torch.stack([key // (entities * relations), key // entities % relations, key % entities], dim=1), left


def corruptions(graph: Graph, triples: Tensor, hard: bool, seed: int) -> Tensor:
    """A false triple for each given one: head or tail, at random, replaced by another entity; shape ``(≤ n, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    n, shape = len(triples), (len(triples), TRIES)
    heads = torch.rand(n, generator=generator) < 0.5
    anchor = torch.where(heads, triples[:, 2], triples[:, 0])
    row = triples[:, 1] + heads * graph.num_relations
    if hard:  # of the distinct entities that answer queries of a row in training
        queries = graph.training_queries
        rows = torch.repeat_interleave(queries.relation, queries.counts)
        rows, entities = torch.unique(torch.stack([rows, queries.answers]), dim=1)
        count = torch.bincount(rows, minlength=2 * graph.num_relations)
        start = count.cumsum(0) - count
        drawn = entities[start[row, None] + (torch.rand(shape, generator=generator) * count[row, None]).long()]
    else:
        drawn = torch.randint(graph.num_entities, shape, generator=generator)
    known = graph.known_queries
    base = graph.num_entities
    keys = known.answers + base * torch.repeat_interleave(torch.arange(len(known)), known.counts)
    wanted = drawn + base * known.positions(anchor, row)[:, None]
    false = ~torch.isin(wanted, keys)
    found, first = false.max(1)
    answer = drawn.gather(1, first[:, None]).squeeze(1)
    head, tail = torch.where(heads, answer, anchor), torch.where(heads, anchor, answer)
    return torch.stack([head, triples[:, 1], tail], dim=1)[found]
