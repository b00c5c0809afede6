"""Posterior predictive checks: graphs replicated from a posterior, held against the graph it was fitted to.

A replicate draws all latents once and then a label for each cell ``(h, r, t)``. The Bayesian p-value of a statistic
``T`` is ``P(T(y_rep) ≥ T(y) | y)`` (Gelman, Meng & Stern 1996); it is conservative, since ``y`` was fitted to (Bayarri
& Berger 2000).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.checking.statistics import DEGREES, FACTS, INVERSE, SHARES, SPREAD, SYMMETRY, TRIANGLES, Cells
from kgpyro.display import as_text, new_figure, plain, told, write
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.uncertainty import spread

MISFIT = 0.01  # share of replicates at or beyond the data, on either side, below which a statistic is a misfit
ENOUGH = 100  # replicates from which on such a share can be told
LONGEST = 30  # misfits that are printed
SAY_MORE = "let latents say more (`epochs`, a larger `dim`, a wider or learned `prior`), or try another `score`"
BLOCK = 1 << 22  # labels drawn at once
DIRECTIONS = "choose a `score` that tells directions apart, such as ComplEx"


@dataclass(frozen=True)
class PosteriorPredictive:
    """A graph against its replicates.

    Attributes:
        summary: one row per statistic: its ``family``; ``statistic``, which ends in ``(sample)`` where it is one of
            sampled cells; ``relation`` (or ``all``, or two, ``p / q``); its value in the ``graph``; ``mean``, ``low``
            and ``high`` (central 90 %) over replicates; ``p_value``, the share of replicates that are at or above the
            graph; ``misfit``, whether fewer than 1 % are at or above it, or at or below it.
        replicated: each statistic of each replicate, shape ``(draws, rows of summary)``.
        title: what was fitted, for figures.
        cells: which cells were looked at, in words.
    """

    summary: pd.DataFrame
    replicated: np.ndarray
    title: str
    cells: str

    @property
    def misfits(self) -> pd.DataFrame:
        """The rows of the summary that misfit, those furthest from the replicates, in their deviations, first."""
        distance = (self.summary["graph"] - self.summary["mean"]).abs() / self.replicated.std(0).clip(1e-12)
        order = distance[self.summary["misfit"]].sort_values(ascending=False, kind="stable").index
        return self.summary.loc[order]

    @property
    def verdict(self) -> str:
        """Three lines: how many statistics misfit, of which families; the worst of them; and what to do."""
        misfits, share = self.misfits, self.summary.groupby("family", sort=False)["misfit"].mean()
        if misfits.empty:
            return (
                f"The model reproduces the graph: none of {len(self.summary)} statistics misfits.\n"
                f"Looked at: {', '.join(share.index)}.\n"
                "To do: nothing here; held-out facts say what its probabilities are worth (kgpyro calibrate)."
            )
        worst = misfits.iloc[0]
        what = worst["statistic"] + ("" if worst["relation"] == "all" else f" of {worst['relation']}")
        mirrored = worst["family"] in (SYMMETRY, INVERSE) and worst["mean"] > worst["graph"]
        bad = share[share > 0].sort_values(ascending=False, kind="stable").index
        graph, low, high = (f"{worst[name]:.3g}" for name in ("graph", "low", "high"))
        return (
            f"{len(misfits)} of {len(self.summary)} statistics misfit: {', '.join(bad[:3])}{', …' * (len(bad) > 3)}.\n"
            f"Worst: {what}, {graph} in the graph, {low} to {high} in replicates.\n"
            f"To do: {DIRECTIONS if mirrored else SAY_MORE}."
        )

    def __str__(self) -> str:
        """The verdict, and a table of the misfits and of what is of all relations; then what is to be warned of."""
        misfits = self.misfits
        rest = self.summary.drop(misfits.index)
        shown = pd.concat([misfits.head(LONGEST), rest[rest["relation"] == "all"]])
        shown["statistic"] += (": " + shown["relation"]).where(shown["relation"] != "all", "")
        shown = shown.drop(columns=["family", "relation"])
        numbers = shown.select_dtypes(float).map("{:.4g}".format)
        shown = shown.assign(**numbers, misfit=shown["misfit"].map({True: "MISFIT", False: ""}))
        title = f"{self.title}: the training graph against {len(self.replicated)} replicates of it"
        counted = f"{len(misfits)} of {len(self.summary)} statistics misfit; {len(shown)} are shown."
        return told(self.verdict, title, as_text(shown, index=False, width=100), counted, warnings=self.warnings)

    @property
    def warnings(self) -> list[str]:
        """In plain words, which statistics the model does not reproduce."""
        found = []
        if len(self.replicated) < ENOUGH:
            found.append(
                f"{len(self.replicated)} replicates tell p-values apart by {1 / len(self.replicated):.2g} only; "
                f"`draws` {ENOUGH} or more."
            )
        family, statistic, relation = (self.summary[name] for name in ("family", "statistic", "relation"))
        alone = statistic.groupby(family).transform("nunique") == 1
        what = relation.where((relation != "all") | alone, statistic)
        for name, rows in self.misfits.groupby("family", sort=False):
            checked, above = int((family == name).sum()), int((rows["mean"] > rows["graph"]).sum())
            way = "more" if above == len(rows) else "less" if above == 0 else f"more in {above} and less in the others"
            where = "; ".join(what[rows.index[:3]]) + "; …" * (len(rows) > 3)
            found.append(f"{name}: {len(rows)} of {checked} misfit ({where}): replicates have {way} than the graph.")
        return found

    def figure(self) -> Any:
        """A panel per family of statistics: the graph's value, in red where it misfits, on the replicates' 90 %.

        Raises InputError where matplotlib is not installed.
        """
        figure = new_figure(9, 10.5)
        (facts, symmetry), (answers, degrees), (pairs, ratios) = figure.subplots(3, 2, height_ratios=(3, 4, 4))
        facts.set_yscale("symlog")  # before anything is drawn, as limits are set by the scale
        found = self._rows(DEGREES)
        if found["high"].max() > 10 * max(found["low"].min(), 1):
            degrees.set_xscale("symlog")
        for panel, family in ((facts, FACTS), (symmetry, SYMMETRY)):
            rows = self._rows(family)
            _panel(panel, rows[rows["relation"] != "all"].sort_values("graph", kind="stable"))
            panel.set(xlabel="relations, by their value in the graph", xticks=[])
        facts.set(ylabel="facts", title=FACTS)
        symmetry.set(ylim=(-0.03, 1.03), ylabel="share of facts", title="symmetry: (t, p, h) holds too")
        for panel, family, xlabel in ((answers, SHARES, "share of queries"), (degrees, DEGREES, "facts")):
            rows = self._rows(family).iloc[::-1]
            _panel(panel, rows, _short(rows["statistic"]))
            panel.set(xlabel=xlabel, title=family)
        rows = self._rows(INVERSE).iloc[::-1]
        _panel(pairs, rows, [plain(name if len(name) < 30 else f"{name[:28]}…") for name in rows["relation"]])
        pairs.set(xlim=(-0.03, 1.03), xlabel="share of facts", title="inverse pairs: (t, q, h) holds too")
        rows = self._rows(SPREAD, TRIANGLES).query("graph > 0").iloc[::-1]
        columns = ["graph", "mean", "low", "high"]
        _panel(ratios, rows.assign(**rows[columns].div(rows["graph"], axis=0)), _short(rows["statistic"]))
        ratios.set(xlabel="relative to the graph", title="spread of answers, triangles")
        for panel in figure.axes:
            panel.spines[["top", "right"]].set_visible(False)
        figure.legend(*facts.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        title = f"{plain(self.title)}: {len(self.replicated)} replicates\n{self.cells}"
        figure.suptitle(title, fontsize=10, color="grey")
        return figure

    def save(self, folder: str | Path) -> list[str]:
        """Write ``posterior_summary.csv`` and ``posterior_predictive.png`` to a folder; returns their names.

        Raises InputError where it cannot be written, or matplotlib is not installed (the table is written first).
        """
        return write(folder, {"posterior_summary.csv": self.summary}, {"posterior_predictive.png": self.figure})

    def _rows(self, *families: str) -> pd.DataFrame:
        return self.summary[self.summary["family"].isin(families)]


def _short(statistics: pd.Series) -> list[str]:
    """The names of statistics without what the figure's titles say."""
    said = r" \(sample\)|queries with |-degree, quantile|answers per query, "
    return statistics.str.replace(said, "", regex=True).tolist()


def _panel(axes: Any, rows: pd.DataFrame, labels: Sequence[str] | None = None) -> None:
    """Intervals and values of statistics: one below the other where they have labels, else side by side."""
    place, misfit = np.arange(len(rows)), rows["misfit"].to_numpy(dtype=bool)
    flat = labels is not None
    lines, mark = (axes.hlines, "|") if flat else (axes.vlines, "_")
    lines(place, rows["low"], rows["high"], color="tab:blue", alpha=0.5, linewidth=3, label="replicates, 90 %")
    for values, where, style, colour, label in (
        ("mean", np.ones_like(misfit), mark, "tab:blue", "replicates, mean"),
        ("graph", ~misfit, ".", "black", "graph"),
        ("graph", misfit, ".", "tab:red", "graph, misfit"),
    ):
        x, y = place[where], rows[values].to_numpy()[where]
        axes.plot(*((y, x) if flat else (x, y)), style, color=colour, label=label)
    if flat:
        axes.set_yticks(place, labels, fontsize=8)


@torch.no_grad()
def posterior_predictive(
    posterior: Posterior,
    draws: int = 100,
    *,
    queries: int = 2_000,
    entities: int = 300,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorPredictive:
    """Replicate the training graph from the posterior predictive, and compare.

    Over queries ``(h, r, ?)``, with or without a training answer, and all their tails: facts per relation; the share of
    queries with 0, 1, 2, 3-5, 6-10 and more answers, the standard deviation of their numbers of answers and the
    largest; quantiles over entities of the out-degree and the in-degree. Over the facts ``(h, p, t)``, ``h ≠ t``:

    * symmetry: the share whose ``(t, p, h)`` holds;
    * inverse pairs: of the facts of ``p`` or ``q`` the share whose mirror image in the other holds; for the ten pairs
      with the largest shares in the graph (few facts counting less), and for all pairs of two relations;
    * triangles ``h → t → u``, ``h → u`` of edges of any relations, and the share of two-step paths ``h → t → u`` that
      such an edge closes.

    A share of nothing is 0. Under a local closed world the data are the cells of queries that training answers. Of
    graphs of more than 2,000,000 cells, statistics are of random samples of queries and of entities, and named so.

    Args:
        posterior: of a fit.
        draws: replicated graphs.
        queries: largest number of queries of a large graph that are sampled.
        entities: largest number of entities of a large graph that are sampled for symmetry, inverse pairs and
            triangles; at most 1,414. The more they are, the fewer relations are looked at (22 for 300).
        seed: of all draws.
        progress: show a progress bar.

    Raises:
        InputError: a number that is too small, or a categorical likelihood.
    """
    posterior.refuse_categorical("replicated graphs")
    for name, value, least in (("draws", draws, 2), ("queries", queries, 1), ("entities", entities, 3)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}; got {value}.")
    generator = torch.Generator().manual_seed(seed)
    cells = Cells.of(posterior.graph, queries, entities, seed)
    numbers = torch.randint(1 << 62, (draws,), generator=generator).tolist()
    size = posterior.graph.num_entities
    counts = torch.zeros(draws, len(cells.head), dtype=torch.int32)
    degrees = torch.zeros(draws, len(cells.head) + 1, dtype=torch.int32)  # how many tails have so many facts
    corners = []
    once = BLOCK if posterior.form is not None else 8 * BLOCK  # a replay is of all tails, whichever are looked at
    parts = torch.arange(size).split(max(1, once // len(cells.head)))
    steps = draws * (len(parts) + (not cells.complete))
    with tqdm(total=steps, desc="replicate", unit="step", disable=not progress, leave=False) as bar:
        for part in parts:
            drawn = replicate(posterior, cells.head, cells.relation, part, numbers, generator)
            for draw, labels in enumerate(drawn):
                counts[draw] += labels.sum(1, dtype=torch.int32)
                degrees[draw] += labels.sum(0).bincount(minlength=degrees.shape[1])
                if cells.complete:  # all in one part
                    corners.append(cells.of_corner(labels.reshape(-1, size, size)))
                bar.update()
        if not cells.complete:
            head = cells.entities.repeat(len(cells.relations))
            relation = cells.relations.repeat_interleave(len(cells.entities))
            for labels in replicate(posterior, head, relation, cells.entities, numbers, generator):
                corners.append(cells.of_corner(labels.unflatten(0, (len(cells.relations), -1))))
                bar.update()
    of_queries = torch.stack([cells.of_queries(*both) for both in zip(counts, degrees, strict=True)])
    replicated = torch.cat([of_queries, torch.stack(corners)], dim=1)
    answers, incoming, labels = cells.observed
    observed = torch.cat([cells.of_queries(answers, incoming.bincount()), cells.of_corner(labels)])
    tie = 1e-9 * observed.abs().clamp_min(1)
    above, below = (replicated >= observed - tie).double().mean(0), (replicated <= observed + tie).double().mean(0)
    summary = pd.DataFrame(cells.names, columns=["family", "statistic", "relation"])
    summary = summary.assign(graph=observed.numpy(), **spread(replicated), p_value=above.numpy())
    chosen = summary["statistic"].str.startswith("queries with no answer") & _is_local(posterior)  # for having one
    summary["misfit"] = (torch.minimum(above, below) < MISFIT).numpy() & ~chosen
    return PosteriorPredictive(summary, replicated.numpy(), repr(posterior), cells.description)


def replicate(
    posterior: Posterior,
    head: Tensor,
    relation: Tensor,
    tails: Tensor,
    numbers: Sequence[int],
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Labels of the cells ``(head, relation)`` × ``tails`` in each numbered draw of the latents, ``(b, c)``, bool."""
    share = posterior.share_observed(head.unsqueeze(1), tails)
    if _is_local(posterior):
        queries, R = posterior.graph.training_queries, posterior.graph.num_relations
        asked = (queries.positions(head, relation) >= 0).unsqueeze(1).repeat(1, len(tails))
        for kind in relation.unique():
            back = queries.positions(tails, (kind + R).expand(len(tails))) >= 0
            asked[relation == kind] |= back
        share = share * asked.to(share.device)
    noise = torch.Generator(share.device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
    for p in posterior.joint_probabilities(head, relation, numbers, tails):
        yield (torch.rand(p.shape, generator=noise, device=p.device, dtype=p.dtype) < p * share).cpu()


def _is_local(posterior: Posterior) -> bool:
    return posterior.config.get("closed_world") == "local"
