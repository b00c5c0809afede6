"""Filtered and raw ranking of heads and tails over all entities, and the field's metrics of the ranks.

Ranks and metrics are those of PyKEEN's ``RankBasedEvaluator`` (Ali et al. 2021): a true answer's *optimistic* rank puts
it before all candidates of equal score, the *pessimistic* rank behind them, the *realistic* rank is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.data.queries import Queries
from kgpyro.errors import InputError

TIES = ("realistic", "optimistic", "pessimistic")
SIDES = ("head", "tail")
HITS = (1, 3, 10)
COUNTS = ("optimistic", "pessimistic", "candidates", "raw_optimistic", "raw_pessimistic", "raw_candidates")
DISTRIBUTION = ("confidence", "correct", "nll", "raw_confidence", "raw_correct", "raw_nll")
SMALLEST = 1e-12  # probability of a true answer, in logarithms
SCORES_AT_ONCE = 1 << 22  # 16 MB of scores: they stay in cache while they are counted

ScoreAll = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def rank_triples(
    score_all: ScoreAll, triples: Tensor, known: Queries, num_entities: int, progress: bool = False, share: Any = None
) -> pd.DataFrame:
    """Rank the true head and the true tail of every triple among all entities.

    Args:
        score_all: scores of all entities, ``(anchor (b,), relation row (b,)) -> (b, E)``; row ``p + R`` asks for heads.
            They are overwritten.
        triples: ids, shape ``(n, 3)``.
        known: the queries whose answers the filtered setting removes (the true answer itself stays).
        num_entities: ``E``.
        progress: show a progress bar.
        share: where processes share the entities, what this one owns: scores are of these, counts of all.

    Returns:
        One row per triple and side: ``side``, ``relation`` (id), ``optimistic``, ``pessimistic``, ``candidates``
        (filtered setting), and the same with the prefix ``raw_``.

    Raises:
        InputError: a score is NaN.
    """
    counted = np.zeros((2 * len(triples), len(COUNTS)), dtype=np.int64)
    for part, mine, anchor, row, answer in _scored(score_all, triples, known, num_entities, progress, share):
        counted[part.numpy()] = _count_better(mine, anchor, row, answer, known, share)
    frame = pd.DataFrame({"side": np.repeat(SIDES, len(triples)), "relation": triples[:, 1].cpu().repeat(2).numpy()})
    return frame.join(pd.DataFrame(counted, columns=list(COUNTS)))


@torch.no_grad()
def answer_distributions(
    probabilities: ScoreAll, triples: Tensor, known: Queries, num_entities: int, progress: bool = False
) -> pd.DataFrame:
    """What the distribution over all candidates says of the true head and the true tail of every triple.

    ``probabilities`` are those of all entities, up to a factor; arguments and rows are those of :func:`rank_triples`.
    Columns: ``confidence``, the largest probability of a candidate; ``correct``, whether that one is the true answer;
    and ``nll``, minus the logarithm of the true answer's. Other known answers are left out, but with prefix ``raw_``.
    """
    found = np.zeros((2 * len(triples), len(DISTRIBUTION)))
    for part, mine, anchor, row, answer in _scored(probabilities, triples, known, num_entities, progress):
        which, other = known.answer_pairs(known.positions(anchor, row))
        others = other != answer[which]
        filtered = mine.index_put((which[others].to(mine.device), other[others].to(mine.device)), mine.new_zeros(()))
        true, columns = answer.to(mine.device), []
        for p in (filtered, mine):
            p = p.double() / p.double().sum(1, keepdim=True).clamp_min(1e-300)
            confidence, first = p.max(1)
            nll = -p.gather(1, true.unsqueeze(1)).squeeze(1).clamp_min(SMALLEST).log()
            columns += [confidence, first == true, nll]
        found[part.numpy()] = torch.stack([column.double() for column in columns], 1).cpu().numpy()
    return pd.DataFrame(found, columns=list(DISTRIBUTION))


def _scored(
    score_all: ScoreAll, triples: Tensor, known: Queries, num_entities: int, progress: bool, share: Any = None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Blocks of all head and then all tail queries: which they are, scores ``(n, E)``, anchors, rows, true answers."""
    block = at_once(num_entities if share is None else len(share))
    head, relation, tail = triples.cpu().unbind(1)
    anchor = torch.cat([tail, head])
    row = torch.cat([relation + known.num_relations, relation])
    answer = torch.cat([head, tail])
    # triples with the same query stand together, and the query is scored once
    queries, owner = torch.unique(row * num_entities + anchor, return_inverse=True)
    order = owner.argsort(stable=True)
    ends = torch.bincount(owner, minlength=len(queries)).cumsum(0).tolist()
    starts = range(0, len(queries), block)
    for start in tqdm(starts, desc="ranking", unit="block", disable=not progress or len(starts) < 4, leave=False):
        stop = min(start + block, len(queries))
        scores = score_all(queries[start:stop] % num_entities, queries[start:stop] // num_entities)
        for part in order[ends[start - 1] if start else 0 : ends[stop - 1]].split(block):
            mine = scores
            if len(part) < block or not bool((owner[part].diff() == 1).all()):  # else each query is one triple's
                mine = scores.index_select(0, (owner[part] - start).to(scores.device))
            yield part, mine, anchor[part], row[part], answer[part]


@torch.no_grad()
def rank_relations(
    score_all: ScoreAll, triples: Tensor, known: Tensor, num_entities: int, num_relations: int
) -> pd.DataFrame:
    """Rank the true relation of every triple among all relations, as :func:`rank_triples` ranks its ends.

    ``score_all`` gives scores of all relations, ``(head (b,), tail (b,)) -> (b, R)``; ``known`` are the triples, shape
    ``(m, 3)``, that the filtered setting removes.
    """
    asked = Queries.of(known[:, [0, 2, 1]], num_entities)  # the pair (head, tail), answered by relations
    head, relation, tail = triples.cpu().unbind(1)
    counted = [np.zeros((0, 6))]
    for part in torch.arange(len(triples)).split(max(1, SCORES_AT_ONCE // num_relations)):
        scores = score_all(head[part], tail[part])
        counted.append(_count_better(scores, head[part], tail[part], relation[part], asked))
    frame = pd.DataFrame({"side": "relation", "relation": relation.numpy()})
    return frame.assign(**dict(zip(COUNTS, np.concatenate(counted).T.astype(np.int64), strict=True)))


def at_once(entities: int) -> int:
    """How many queries to score at once against so many entities."""
    return max(8, SCORES_AT_ONCE // entities)


def _count_better(
    scores: Tensor, anchor: Tensor, row: Tensor, answer: Tensor, known: Queries, share: Any = None
) -> np.ndarray:
    answer = answer.to(scores.device)
    which, other = (ids.to(scores.device) for ids in known.answer_pairs(known.positions(anchor, row)))
    first, end = (0, scores.shape[1]) if share is None else (share.first, share.last)
    here = (answer >= first) & (answer < end)
    true = scores.gather(1, torch.where(here, answer - first, 0).unsqueeze(1)).masked_fill_(~here.unsqueeze(1), 0.0)
    true = true if share is None else share.sum(true)
    mine = (other >= first) & (other < end)
    which, other = which[mine], other[mine]
    removed = scores.take(which * scores.shape[1] + other - first)
    scores.sub_(true)
    nothing = scores.sum(1).isnan().any().double()
    if bool(nothing if share is None else share.sum(nothing)):
        raise InputError("the posterior scores some facts as NaN; the fit diverged: lower `lr` or tighten the prior.")
    signs = scores.sign_()  # 1 better, 0 as good, -1 worse: sums of floats are faster than of booleans
    balance, unequal = signs.sum(1), signs.abs_().sum(1)
    better = ((unequal + balance) / 2).long()
    as_good = scores.shape[1] - ((unequal - balance) / 2).long()
    others = other != answer[which]
    which, removed = which[others], removed[others]
    bar = true[which, 0]
    zero = torch.zeros_like(better)
    known_better = zero.index_add(0, which, (removed > bar).long())
    known_as_good = zero.index_add(0, which, (removed >= bar).long())
    total = torch.full_like(better, scores.shape[1])
    left = total - zero.index_add(0, which, torch.ones_like(which))
    counts = torch.stack([better - known_better, as_good - known_as_good, left, better, as_good, total], dim=1)
    counts = counts if share is None else share.sum(counts)
    return (counts + counts.new_tensor([1, 0, 0, 1, 0, 0])).cpu().numpy()


def rank_metrics(ranks: pd.DataFrame, ties: str = "realistic", raw: bool = False) -> dict[str, float]:
    """MR, AMRI, MRR and Hits@k of the rows of :func:`rank_triples`.

    The adjusted mean rank index (Berrendorf et al. 2020) is 1 for perfect ranks and 0 in expectation for random ones.
    Where :func:`answer_distributions` has added its columns also NLL, ECE and ACE (:func:`calibration_error`).
    Raises InputError where there are no rows.
    """
    if ranks.empty:
        raise InputError("there are no triples to rank.")
    prefix = "raw_" if raw else ""
    best, worst = ranks[f"{prefix}optimistic"].to_numpy(float), ranks[f"{prefix}pessimistic"].to_numpy(float)
    rank = {"optimistic": best, "pessimistic": worst, "realistic": (best + worst) / 2}[ties]
    expected = ((ranks[f"{prefix}candidates"].to_numpy(float) + 1) / 2).mean()
    amri = 1 - (rank.mean() - 1) / (expected - 1) if expected > 1 else float("nan")
    hits = {f"hits@{k}": float((rank <= k).mean()) for k in HITS}
    found = {"mrr": float((1 / rank).mean()), "mr": float(rank.mean()), "amri": float(amri)} | hits
    if "nll" in ranks:
        said = ranks[f"{prefix}confidence"].to_numpy(), ranks[f"{prefix}correct"].to_numpy()
        found |= {"nll": float(ranks[f"{prefix}nll"].mean())}
        found |= {"ece": calibration_error(*said), "ace": calibration_error(*said, equal_mass=True)}
    return found


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 10, equal_mass: bool = False) -> float:
    """``Σ_bins n_bin / n |mean correct - mean confidence|`` over first answers, both of shape ``(n,)``.

    Bins are of equal width (ECE; Guo et al. 2017), or hold as many answers each (ACE; Nixon et al. 2019).
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    if equal_mass:
        index = np.argsort(np.argsort(confidence, kind="stable")) * bins // len(confidence)
    return float(np.abs(np.bincount(index, correct - confidence)).sum() / len(confidence))


def all_metrics(ranks: pd.DataFrame) -> dict[str, Any]:
    """Filtered metrics by kind of tie, the same for each side under its name, and the raw setting under ``raw``."""

    def by_ties(part: pd.DataFrame, raw: bool = False) -> dict[str, dict[str, float]]:
        return {ties: rank_metrics(part, ties, raw) for ties in TIES}

    sides: dict[str, Any] = {side: by_ties(ranks[ranks["side"] == side]) for side in SIDES}
    return {**by_ties(ranks), **sides, "raw": by_ties(ranks, raw=True)}


def metrics_table(ranks: pd.DataFrame) -> pd.DataFrame:
    """Realistic metrics, one row per setting (filtered, raw) and side (both, head, tail; relation, where ranked)."""
    rows, relations = {}, ["relation"] * ("relation" in set(ranks["side"]))
    for setting, raw in (("filtered", False), ("raw", True)):
        for side in ("both", *SIDES, *relations):
            part = ranks[ranks["side"].isin(SIDES) if side == "both" else ranks["side"] == side]
            rows[setting, side] = rank_metrics(part, raw=raw)
    return pd.DataFrame(rows).T.rename_axis(["setting", "side"])


def per_relation_table(ranks: pd.DataFrame, graph: Graph) -> pd.DataFrame:
    """Filtered, realistic metrics per relation, head and tail prediction apart (Tables 3 and 4 of the paper)."""
    rows = {
        (graph.relations[int(part["relation"].iloc[0])], part["side"].iloc[0]): {"triples": len(part)}
        | rank_metrics(part)
        for _, part in ranks.groupby(["relation", "side"])
    }
    table = pd.DataFrame(rows).T.rename_axis(["relation", "side"])
    return table.astype({"triples": int}).sort_values("triples", ascending=False, kind="stable")


def ndcg(gains: Tensor, order: Tensor) -> float:
    """Normalised discounted cumulative gain of one list (Järvelin & Kekäläinen 2002), linear in the gains ``(k,)``.

    ``order``, ``(k,)``: the ranks of the relevant items among all, from 1.
    """
    best = gains.sort(descending=True).values / torch.arange(2, len(gains) + 2, dtype=torch.double).log2()
    return float((gains / (order.double() + 1).log2()).sum() / best.sum()) if float(best.sum()) else 1.0


def mean_ndcg(
    probabilities: Callable[[Tensor, Tensor], Tensor], triples: Tensor, confidence: Tensor, graph: Graph
) -> float:
    """:func:`ndcg` of the tails of each query ``(head, relation, ?)`` of triples ``(n, 3)``, the mean over queries.

    ``probabilities`` are those of all entities, ``(anchor (b,), row (b,)) -> (b, E)``; tails that training holds do not
    take part. Gains are the triples' confidences ``(n,)``.
    """
    asked, place = torch.unique(triples[:, :2], dim=0, return_inverse=True)
    lists = place.argsort(stable=True).split(torch.bincount(place).tolist())
    values = []
    for part in torch.arange(len(asked)).split(at_once(graph.num_entities)):
        anchor, row = asked[part].unbind(1)
        p = probabilities(anchor, row).cpu()
        p[graph.training_queries.answer_pairs(graph.training_queries.positions(anchor, row))] = -1.0
        for i, scores in zip(part.tolist(), p, strict=True):
            mine = scores[triples[lists[i], 2]]
            values.append(ndcg(confidence[lists[i]], 1 + (scores.unsqueeze(0) > mine.unsqueeze(1)).sum(1)))
    return sum(values) / len(values)
