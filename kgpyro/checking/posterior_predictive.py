"""Posterior predictive checks: graphs replicated from a posterior, held against the graph it was fitted to.

A model is fitted under a local closed world: to the facts of the training queries, each with all candidates. A
replicate draws all latents once and then a label for each of these facts, and a statistic ``T`` is computed over the
same cells of the training graph ``y`` and of the replicates ``y_rep``. Its Bayesian p-value is
``P(T(y_rep) ≥ T(y) | y)`` (Gelman, Meng & Stern 1996); it is conservative, since ``y`` was fitted to (Bayarri & Berger
2000).

Where there are too many training queries, a sample of them stands for all: random within each relation, side and order
of magnitude of the number of training answers, more of those with many, each weighted by the inverse of its chance.
Cells outside the sample that a statistic needs, such as the mirror images of drawn facts, are drawn from the same
latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.data.queries import Queries
from kgpyro.display import new_figure, write
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.scores import seeded
from kgpyro.posterior.uncertainty import spread

MISFIT = 0.01  # share of replicates at or beyond the data, on either side, below which a statistic is a misfit
ENOUGH = 100  # replicates from which on such a share can be told
AT_LEAST = 3  # sampled queries of each stratum
PAIRS = 10  # pairs of relations that are checked for being inverses
FEW = 10.0  # facts without a mirror image added to a pair's before it is chosen by its share: a few are no evidence
RESAMPLES = 50  # bootstrap resamples behind a sampling error
BLOCK = 1 << 22  # labels drawn at once
SIDES = ("tail", "head")
BOUNDS = torch.tensor([0, 1, 2, 5, 10])
ANSWERS = ("no answer", "1 answer", "2 answers", "3-5 answers", "6-10 answers", "over 10 answers")
QUANTILES = torch.tensor([0.25, 0.5, 0.75, 0.9, 0.99, 1.0], dtype=torch.double)


@dataclass(frozen=True)
class PosteriorPredictive:
    """A graph against its replicates.

    Attributes:
        summary: one row per statistic: ``statistic``, ``relation`` (or ``all``, or two, ``p / q``), its value in the
            ``graph``; ``mean``, ``low`` and ``high`` (central 90 %) over replicates; ``p_value``, the share of
            replicates that are at or above the graph; ``misfit``, whether fewer than 1 % are at or above it, or at or
            below it; ``sampling_error``, the standard error of estimating the statistic from sampled queries, that of
            the graph or of a replicate, whichever is larger: 0 where all are there, NaN where the statistic is one of
            the sample alone.
        replicated: each statistic of each replicate, shape ``(draws, rows of summary)``.
        title: what was fitted, for figures.
    """

    summary: pd.DataFrame
    replicated: np.ndarray
    title: str

    @property
    def misfits(self) -> pd.DataFrame:
        """The rows of the summary that misfit, those furthest from the replicates, in their deviations, first."""
        distance = (self.summary["graph"] - self.summary["mean"]).abs() / self.replicated.std(0).clip(1e-12)
        order = distance[self.summary["misfit"]].sort_values(ascending=False, kind="stable").index
        return self.summary.loc[order]

    @property
    def warnings(self) -> list[str]:
        """In plain words, which statistics the model does not reproduce."""
        found = []
        if len(self.replicated) < ENOUGH:
            found.append(
                f"{len(self.replicated)} replicates tell p-values apart by {1 / len(self.replicated):.2g} only; "
                f"--draws {ENOUGH} or more."
            )
        parts = self.summary["statistic"].str.split(", | with ", n=1, expand=True, regex=True)
        what = self.summary["relation"].where(self.summary["relation"] != "all", parts[1].fillna("all"))
        for name, rows in self.misfits.groupby(parts[0], sort=False):
            checked, above = int((parts[0] == name).sum()), int((rows["mean"] > rows["graph"]).sum())
            way = "more" if above == len(rows) else "less" if above == 0 else f"more in {above} and less in the others"
            where = "; ".join(what[rows.index[:3]]) + "; …" * (len(rows) > 3)
            found.append(f"{name}: {len(rows)} of {checked} misfit ({where}): replicates have {way} than the graph.")
        return found

    def figure(self) -> Any:
        """A panel per family of statistics: the graph's value, in red where it misfits, on the replicates' 90 %.

        Raises InputError where matplotlib is not installed.
        """
        figure = new_figure(14, 8)
        (facts, answers, degrees), (symmetry, pairs, ratios) = figure.subplots(2, 3)
        of = self.summary["statistic"]
        each = self.summary["relation"] != "all"
        for panel, name in ((facts, "facts, tail queries"), (symmetry, "symmetry")):
            _panel(panel, self.summary[(of == name) & each].sort_values("graph"))
            panel.set(xlabel="relations, by their value in the graph")
        facts.set(yscale="symlog", ylabel="facts", title="facts per relation")
        symmetry.set(ylim=(-0.03, 1.03), ylabel="share of facts", title="symmetry: (t, p, h) holds too")
        rows = self.summary[of.str.contains("queries with")]
        _panel(answers, rows, [name.replace(" queries with", ":") for name in of[rows.index]])
        answers.set(ylabel="share of queries", title="answers per query")
        rows = self.summary[of.str.contains("-degree")]
        _panel(degrees, rows, [name.replace("-degree, quantile", "") for name in of[rows.index]])
        wide = rows["graph"].max() > 20 * rows["graph"].min()
        degrees.set(yscale="log" if wide else "linear", ylabel="facts", title="degrees of entities, quantiles")
        rows = self.summary[of == "inverse pair"].iloc[::-1]
        _panel(pairs, rows, [name if len(name) < 40 else f"{name[:38]}…" for name in rows["relation"]], flat=True)
        pairs.set(xlim=(-0.03, 1.03), xlabel="share of facts", title="inverse pairs: (t, q, h) holds too")
        rows = self.summary[of.str.contains("triangles|two-step|deviation|largest") & (self.summary["graph"] > 0)]
        columns = ["graph", "mean", "low", "high"]
        relative = rows.assign(**rows[columns].div(rows["graph"], axis=0))
        _panel(
            ratios, relative.iloc[::-1], [name.removeprefix("answers per ") for name in of[rows.index][::-1]], flat=True
        )
        ratios.set(xlabel="relative to the graph", title="spread of answers, triangles")
        for panel in (facts, symmetry):
            panel.set_xticks([])
        facts.legend(frameon=False)
        figure.suptitle(f"{self.title}: {len(self.replicated)} replicates")
        return figure

    def save(self, folder: str | Path) -> list[str]:
        """Write ``posterior_summary.csv`` and ``posterior_predictive.png`` to a folder; returns their names.

        Raises InputError where it cannot be written, or matplotlib is not installed (the table is written first).
        """
        return write(folder, {"posterior_summary.csv": self.summary}, {"posterior_predictive.png": self.figure})


def _panel(axes: Any, rows: pd.DataFrame, labels: Sequence[str] | None = None, flat: bool = False) -> None:
    place, misfit = np.arange(len(rows)), rows["misfit"].to_numpy(dtype=bool)
    lines, mark = (axes.hlines, "|") if flat else (axes.vlines, "_")
    lines(place, rows["low"], rows["high"], color="tab:blue", alpha=0.5, linewidth=3, label="replicates, 90 %")
    for values, where, style, colour, label in (
        ("mean", np.ones_like(misfit), mark, "tab:blue", "replicates, mean"),
        ("graph", ~misfit, ".", "black", "graph"),
        ("graph", misfit, ".", "tab:red", "graph, misfit"),
    ):
        x, y = place[where], rows[values].to_numpy()[where]
        axes.plot(*((y, x) if flat else (x, y)), style, color=colour, label=label)
    if labels is not None and flat:
        axes.set_yticks(place, labels, fontsize=7)
    elif labels is not None:
        axes.set_xticks(place, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)


@torch.no_grad()
def posterior_predictive(
    posterior: Posterior,
    draws: int = 100,
    *,
    queries: int = 5_000,
    entities: int = 2_500,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorPredictive:
    """Replicate the training graph from the posterior predictive, and compare.

    Over the facts of training queries, tail queries ``(h, p, ?)`` and head queries ``(?, p, t)`` each with all
    candidates:

    * facts per relation, as tail and as head queries have them;
    * the share of queries with 0, 1, 2, 3-5, 6-10 and more answers, their standard deviation and the largest number. In
      the graph every one has an answer, for that is how queries come to be asked; a likelihood without that knowledge
      leaves some without;
    * quantiles over entities of the out-degree (answers to the tail queries of an entity) and the in-degree (those to
      its head queries).

    Over the facts ``(h, p, t)``, ``h ≠ t``, of tail queries:

    * symmetry: of the facts for which ``(t, p, ?)`` is a training query too, the share whose ``(t, p, h)`` holds;
    * inverse pairs: of the facts of ``p`` or ``q`` whose mirror image in the other is a cell likewise, the share whose
      mirror image holds; for the ten pairs with the largest shares in the graph (few facts
      counting less), and for all pairs of two relations;
    * triangles ``h → t → u``, ``h → u`` of edges of any relations, and the share of two-step paths ``h → t → u`` that
      such an edge closes.

    A share of nothing is 0.

    Args:
        posterior: of a fit.
        draws: replicated graphs.
        queries: training queries up to which all are replicated; of more about so many are sampled, some of each
            relation, side and order of magnitude of the number of answers.
        entities: largest number of entities among which triangles are counted; of more a random sample is taken.
        seed: of all draws.
        progress: show a progress bar.

    Raises:
        InputError: a number that is too small, or a categorical likelihood.
    """
    posterior.refuse_categorical("replicated graphs")
    for name, value, least in (("draws", draws, 2), ("queries", queries, 1), ("entities", entities, 3)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}; got {value}.")
    with seeded(seed):
        sample = Sample(posterior.graph, queries, entities)
        numbers = torch.randint(1 << 62, (draws,)).tolist()
        observed = sample.statistics(sample.observed)
        replicas = []
        steps = sample.blocks if sample.complete else sample.blocks + sample.corner_blocks
        with tqdm(total=draws * (steps + 1), desc="replicate", unit="step", disable=not progress, leave=False) as bar:
            keys = replicate(posterior, sample.index, numbers, ..., bar)
            edges: Sequence[Tensor | None] = [None] * draws
            if not sample.complete:
                edges = replicate(posterior, sample.corner_index, numbers, sample.corner, bar)
            for number, mine, corner in zip(numbers, keys, edges, strict=True):
                labels = sample.realised(mine, corner, posterior, number)
                replicas.append(sample.statistics(labels))
                bar.update()
        error = torch.maximum(sample.errors(sample.observed), sample.errors(labels))
    drawn = torch.stack(replicas)
    tie = 1e-9 * observed.abs().clamp_min(1)
    above, below = (drawn >= observed - tie).double().mean(0), (drawn <= observed + tie).double().mean(0)
    summary = pd.DataFrame(
        {
            "statistic": [name for name, _ in sample.names],
            "relation": [relation for _, relation in sample.names],
            "graph": observed.numpy(),
            **spread(drawn),
            "p_value": above.numpy(),
            "misfit": (torch.minimum(above, below) < MISFIT).numpy(),
            "sampling_error": error.numpy(),
        }
    )
    return PosteriorPredictive(summary, drawn.numpy(), repr(posterior))


def replicate(
    posterior: Posterior, index: Tensor, numbers: Sequence[int], candidates: Tensor | EllipsisType, bar: tqdm
) -> list[Tensor]:
    """The facts of training queries ``index`` in each numbered draw: keys ``query · candidates + column``."""
    queries = posterior.graph.training_queries
    columns = posterior.graph.num_entities if isinstance(candidates, EllipsisType) else len(candidates)
    found: list[list[Tensor]] = [[index.new_zeros(0)] for _ in numbers]
    start = 0
    for part in index.split(_at_once(columns)):
        anchor, row = queries.anchor[part], queries.relation[part]
        share = posterior.share_observed(anchor.unsqueeze(1), torch.arange(posterior.graph.num_entities)[candidates])
        for draw, p in enumerate(posterior.joint_probabilities(anchor, row, numbers, candidates)):
            observed = torch.rand_like(p) < p * share
            found[draw].append(observed.flatten().nonzero().squeeze(1).cpu() + start * columns)
            bar.update()
        start += len(part)
    return [torch.cat(keys) for keys in found]


def _at_once(columns: int) -> int:
    return max(1, BLOCK // columns)


@dataclass(frozen=True)
class Realised:
    """Labels of a sample's cells, in the graph or in a replicate.

    Attributes:
        counts: answers of each query, shape ``(n,)``.
        query: for each cell that mirrors a fact ``(h, p, t)`` of a tail query in a relation ``q``, the fact's query,
            shape ``(m,)``.
        pair: its ``p · R + q``, shape ``(m,)``.
        mirrored: its label, shape ``(m,)``, bool.
        edges: of the union of all relations among the corner's entities, shape ``(2, k)``.
    """

    counts: Tensor
    query: Tensor
    pair: Tensor
    mirrored: Tensor
    edges: Tensor


class Sample:
    """The cells that a graph and its replicates are compared over, and the statistics of their labels.

    Attributes:
        index: the sampled training queries, by stratum, shape ``(n,)``.
        stratum: the queries of a relation row with alike numbers of training answers, shape ``(n,)``.
        share: the sampled share of its stratum's queries, shape ``(n,)``.
        weight: how many queries each stands for, shape ``(n,)``, double.
        corner: the entities among which triangles are counted, ascending, shape ``(m,)``.
        corner_index: training tail queries that they are the anchors of.
    """

    def __init__(self, graph: Graph, queries: int, entities: int):
        self.graph = graph
        self.all: Queries = graph.training_queries
        self.relations, self.size = graph.num_relations, graph.num_entities
        row, counts = self.all.relation, self.all.counts.double()
        _, stratum, total = torch.unique(row * 64 + counts.log2().long(), return_inverse=True, return_counts=True)
        size = torch.zeros(len(total), dtype=torch.double).index_add_(0, stratum, counts.sqrt())
        wanted = (size * (queries / size.sum())).ceil().long().clamp_min(AT_LEAST).minimum(total)
        wanted = total if len(row) <= queries else wanted
        order = torch.randperm(len(row))
        order = order[stratum[order].argsort(stable=True)]
        rank = torch.arange(len(row)) - (total.cumsum(0) - total)[stratum[order]]
        self.index = order[rank < wanted[stratum[order]]]
        self.stratum = stratum[self.index]
        self.row, self.anchor = row[self.index], self.all.anchor[self.index]
        self.share = (wanted.double() / total)[self.stratum]
        self.weight = 1 / self.share
        self.place = torch.full((len(row),), -1).index_put((self.index,), torch.arange(len(self.index)))
        self.corner = torch.randperm(self.size)[:entities].sort().values
        tails = (row < self.relations).nonzero().squeeze(1)
        self.corner_index = tails[torch.isin(self.all.anchor[tails], self.corner)]
        self._tails_by_anchor = tails[self.all.anchor[tails].argsort(stable=True)]
        self._tails_of = torch.bincount(self.all.anchor[tails], minlength=self.size)

    @property
    def complete(self) -> bool:
        """Whether all training queries and all entities are there."""
        return len(self.index) == len(self.all) and len(self.corner) == self.size

    @property
    def blocks(self) -> int:
        return -(-len(self.index) // _at_once(self.size))

    @property
    def corner_blocks(self) -> int:
        return -(-len(self.corner_index) // _at_once(len(self.corner)))

    @cached_property
    def observed(self) -> Realised:
        """The training graph's labels."""
        rows, answers = self.all.answer_pairs(self.index)
        row, column = self.all.answer_pairs(self.corner_index)
        kept = torch.isin(column, self.corner)
        column = torch.searchsorted(self.corner, column[kept])
        return self.realised(rows * self.size + answers, row[kept] * len(self.corner) + column)

    def realised(
        self, keys: Tensor, corner: Tensor | None, posterior: Posterior | None = None, number: int = 0
    ) -> Realised:
        """Labels from the facts among the sampled queries' cells, and among the corner's.

        Args:
            keys: ``query · E + entity``, the query by its place in ``index``.
            corner: ``query · m + column``, the query by its place in ``corner_index``; None where the sample is
                complete, so that ``keys`` have them too.
            posterior: what cells outside the sample are drawn from; the graph's own labels where it is None.
            number: of the draw.
        """
        counts = torch.bincount(keys // self.size, minlength=len(self.index))
        query, tail = keys // self.size, keys % self.size
        facts = (self.row[query] < self.relations) & (self.anchor[query] != tail)
        query, tail = query[facts], tail[facts]
        if corner is None:
            edges = torch.stack([self.anchor[query], tail])
        else:
            places, columns = corner // len(self.corner), corner % len(self.corner)
            edges = torch.stack([torch.searchsorted(self.corner, self.all.anchor[self.corner_index[places]]), columns])
        number_of = self._tails_of[tail]
        first = (self._tails_of.cumsum(0) - self._tails_of)[tail]
        fact = torch.repeat_interleave(torch.arange(len(tail)), number_of)
        within = torch.arange(len(fact)) - (number_of.cumsum(0) - number_of)[fact]
        mirror = self._tails_by_anchor[first[fact] + within]
        pair = self.row[query[fact]] * self.relations + self.all.relation[mirror]
        cells, inverse = torch.unique(mirror * self.size + self.anchor[query[fact]], return_inverse=True)
        mirrored = self._labels(cells // self.size, cells % self.size, keys, posterior, number)[inverse]
        return Realised(counts, query[fact], pair, mirrored, torch.unique(edges[:, edges[0] != edges[1]], dim=1))

    def _labels(self, query: Tensor, entity: Tensor, keys: Tensor, posterior: Posterior | None, number: int) -> Tensor:
        """Labels of cells, the query by its place among all: from ``keys`` where it is sampled."""
        place = self.place[query]
        labels = torch.isin(place * self.size + entity, keys) & (place >= 0)
        rest = (place < 0).nonzero().squeeze(1)
        anchor, row = self.all.anchor[query[rest]], self.all.relation[query[rest]]
        if posterior is None:
            labels[rest] = torch.isin(query[rest] * self.size + entity[rest], self._answer_keys)
        elif len(rest):
            p = posterior.joint_pairs(anchor, row, entity[rest], number)
            labels[rest] = (torch.rand_like(p) < p * posterior.share_observed(anchor, entity[rest])).cpu()
        return labels

    @cached_property
    def _answer_keys(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.all)), self.all.counts) * self.size + self.all.answers

    # ---- statistics -------------------------------------------------------------------------------------------------

    @cached_property
    def _mirrors(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """By the graph's labels: relations with a symmetry rate, pairs ``p``, ``q``, and whether any pair has one."""
        holds, cells = self._mirror_counts(self.observed, self.weight)
        symmetric = (cells.diagonal() > 0).nonzero().squeeze(1)
        holds, cells = (holds + holds.mT).triu(1), (cells + cells.mT).triu(1)
        top = (holds / (cells + FEW)).flatten().topk(min(PAIRS, int((holds > 0).sum()))).indices
        return symmetric, top // self.relations, top % self.relations, bool((cells > 0).any())

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """What :meth:`statistics` returns, in order: statistic and relation."""
        relations, (symmetric, p, q, any_pair) = self.graph.relations, self._mirrors
        found = []
        for side in SIDES:
            found += [(f"facts, {side} queries", name) for name in ("all", *relations)]
            found += [(f"{side} queries with {k}", "all") for k in ANSWERS]
            found += [(f"answers per {side} query, {what}", "all") for what in ("standard deviation", "largest")]
            degree = "out" if side == "tail" else "in"
            found += [(f"{degree}-degree, quantile {x:.0%}", "all") for x in QUANTILES.tolist()]
        if len(symmetric):
            found += [("symmetry", name) for name in ("all", *(relations[i] for i in symmetric.tolist()))]
        if any_pair:
            pairs = [f"{relations[i]} / {relations[j]}" for i, j in zip(p.tolist(), q.tolist(), strict=True)]
            found += [("inverse pair", name) for name in ("all", *pairs)]
        return [*found, ("triangles", "all"), ("closed two-step paths", "all")]

    def statistics(self, labels: Realised, weight: Tensor | None = None, corner: Tensor | None = None) -> Tensor:
        """All statistics, under given weights of queries, ``(n,)``, and of the corner's entities, ``(m,)``."""
        weight = self.weight if weight is None else weight
        counts, found = labels.counts.double(), []
        per_row = torch.zeros(2 * self.relations, dtype=torch.double).index_add_(0, self.row, weight * counts)
        for number, side in enumerate((self.row < self.relations, self.row >= self.relations)):
            facts = per_row[number * self.relations : (number + 1) * self.relations]
            w, c = weight[side], counts[side]
            bins = torch.bincount(torch.bucketize(labels.counts[side], BOUNDS), w, minlength=len(ANSWERS))
            mean = (w * c).sum() / w.sum()
            deviation = ((w * (c - mean).square()).sum() / w.sum()).sqrt()
            anchors, entity = torch.unique(self.anchor[side], return_inverse=True)
            degree = torch.zeros(len(anchors), dtype=torch.double).index_add_(0, entity, c)
            found += [facts.sum(0, keepdim=True), facts, bins / w.sum(), torch.stack([deviation, c.max()])]
            found.append(torch.quantile(degree, QUANTILES, interpolation="nearest"))
        symmetric, p, q, any_pair = self._mirrors
        holds, cells = self._mirror_counts(labels, weight)
        if len(symmetric):
            a, b = holds.diagonal(), cells.diagonal()
            found += [_share(a.sum(0, keepdim=True), b.sum()), _share(a, b)[symmetric]]
        if any_pair:
            holds, cells = (holds + holds.mT).triu(1), (cells + cells.mT).triu(1)
            found += [_share(holds.sum().unsqueeze(0), cells.sum()), _share(holds[p, q], cells[p, q])]
        m = len(self.corner)
        corner = torch.ones(m, dtype=torch.double) if corner is None else corner
        closed, paths = closed_paths(labels.edges, corner)
        expansion = 1.0 if m == self.size else math.comb(self.size, 3) / math.comb(m, 3)
        found.append(torch.stack([closed * expansion, _share(closed, paths)]))
        return torch.cat(found)

    def _mirror_counts(self, labels: Realised, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Facts of ``p`` with a mirror image in ``q``, and with a cell for one, each ``(R, R)``, weighted."""
        w, cells = weight[labels.query], self.relations**2
        total = torch.bincount(labels.pair, w, minlength=cells).reshape(self.relations, -1)
        return torch.bincount(labels.pair, w * labels.mirrored, minlength=cells).reshape(self.relations, -1), total

    def errors(self, labels: Realised) -> Tensor:
        """Standard errors of statistics as estimates from the sample, by the rescaling bootstrap.

        Queries are resampled within strata (Rao & Wu 1988), and the corner's entities as the vertices of their
        graph (Snijders & Borgatti 1999). NaN for what a sample does not estimate: extremes, and degrees of entities.
        """
        if self.complete:
            return torch.zeros(len(self.names), dtype=torch.double)
        m = len(self.corner)
        one, share = torch.zeros(m, dtype=torch.long), torch.full((m,), m / self.size, dtype=torch.double)
        found = [
            self.statistics(labels, self.weight * rescaled(self.stratum, self.share), rescaled(one, share))
            for _ in range(RESAMPLES)
        ]
        error = torch.stack(found).std(0)
        if len(self.index) < len(self.all):
            error[[i for i, (name, _) in enumerate(self.names) if "largest" in name or "-degree" in name]] = torch.nan
        return error


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.where(whole > 0, 1), 0)


def rescaled(stratum: Tensor, share: Tensor) -> Tensor:
    """Factors of a bootstrap resample's weights, shape ``(n,)``, for simple random samples without replacement.

    A stratum of ``n_h`` units, of which ``share`` is sampled, is resampled ``n_h - 1`` times (Rao & Wu 1988, with the
    finite-population correction). Strata are numbered without gaps, in ascending order.
    """
    size = torch.bincount(stratum)
    drawn_from = torch.repeat_interleave(torch.arange(len(size)), size - 1)
    first = size.cumsum(0) - size
    picked = first[drawn_from] + (torch.rand(len(drawn_from), dtype=torch.double) * size[drawn_from]).long()
    times, n = torch.bincount(picked, minlength=len(stratum)), size[stratum]
    return 1 + (1 - share).sqrt() * torch.where(n > 1, times * n / (n - 1).clamp_min(1) - 1, 0)


def closed_paths(edges: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two-step paths ``h → t → u``, ``h ≠ u``, that an edge ``h → u`` closes, and all; from edges without self-loops.

    Each counts the product of its three entities' weights.

    Args:
        edges: distinct, shape ``(2, k)``.
        weight: of the entities, shape ``(m,)``.
    """
    h, t = edges
    weight = weight.float()
    adjacent = torch.zeros(len(weight), len(weight))
    adjacent[h, t] = 1
    steps = torch.sparse_coo_tensor(edges, weight[h] * weight[t], adjacent.shape, check_invariants=False)
    paths = torch.sparse.mm(steps, adjacent * weight).fill_diagonal_(0)
    return paths[h, t].double().sum(), paths.sum(1).double().sum()
