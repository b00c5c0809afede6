"""What a prior claims about a graph before any fact is seen: its prior predictive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.display import as_html, new_figure, plain, told, write
from kgpyro.posterior.asked import refuse_numbers
from kgpyro.posterior.building import build_setting
from kgpyro.posterior.uncertainty import spread
from kgpyro.program.batches import Batches
from kgpyro.program.interactions import Score
from kgpyro.program.priors import PriorLike
from kgpyro.program.setting import Setting
from kgpyro.program.variational import OwnParameters, pyro_alone
from kgpyro.randomness import seeded

SURE = 0.99  # probability from which on a fact counts as claimed for sure
SYMBOLS = 50  # of a draw, whose coordinates are shown
COLOURS = ("tab:blue", "tab:orange")  # of entities and relations
PILED_UP = 0.1  # share of random facts claimed for sure from which on there is a warning


@dataclass(frozen=True)
class PriorPredictive:
    """What a prior claims.

    Attributes:
        summary: one row per quantity: what the graph has, what the prior implies (``mean`` over draws, ``low`` and
            ``high`` of the central 90 %).
        density: one row per relation: the share of all pairs of entities it joins, in the graph and implied likewise.
        probabilities: of random facts under the prior, shape ``(draws, facts)``.
        degrees: number of answers of a random query, in the graph and in each draw: ``{"graph": (q,), "prior": (n,)}``.
        coordinates: of latents drawn from the prior, by kind: ``{"entity": (m,), "relation": (m,)}``.
        title: the prior and the score, for figures.
    """

    summary: pd.DataFrame
    density: pd.DataFrame
    probabilities: np.ndarray
    degrees: dict[str, np.ndarray]
    coordinates: dict[str, np.ndarray]
    title: str

    @property
    def _sure(self) -> tuple[float, float]:
        """Shares of random facts that are claimed for sure, as true and as false."""
        return float((self.probabilities > SURE).mean()), float((self.probabilities < 1 - SURE).mean())

    @property
    def verdict(self) -> str:
        """Three lines: how dense a graph the prior expects, how sure it is of random facts, and what to do."""
        claimed, graph = self.summary.loc["probability of a random fact"], self.summary["graph"].iloc[0]
        (sure, false), fine = self._sure, "nothing: it leaves the facts open; `fit` it"
        return (
            f"The prior expects {claimed['mean']:.2g} of all facts to be true ({claimed['low']:.2g} to "
            f"{claimed['high']:.2g}); in the graph {graph:.2g} are.\n"
            f"It is sure (99 %) that {sure:.0%} of random facts are true, and that {false:.0%} are false.\n"
            f"To do: {'a smaller prior scale, or scale=learn, claims less' if self.warnings else fine}."
        )

    def __str__(self) -> str:
        """The verdict, the summary, and what is to be warned of."""
        title = f"{self.title}: what the prior implies, mean and central 90 % over draws"
        table = self.summary.to_string(float_format="{:.3g}".format, na_rep="-")
        return told(self.verdict, title, table, warnings=self.warnings)

    @property
    def warnings(self) -> list[str]:
        """In plain words, what is suspicious about the prior."""
        sure, false = self._sure
        if sure < PILED_UP:
            return []
        return [
            f"The prior piles probabilities up at 0 and 1: it holds {sure:.0%} of all random facts for true with more "
            f"than {SURE:.0%} probability, and {false:.0%} for false. Scores spread with the scales of the latents "
            f"and with `dim`; a smaller prior scale, or scale=learn, claims less."
        ]

    def _repr_html_(self) -> str:
        return as_html(f"What {self.title} claims", {}, self.summary, notes="\n".join(self.warnings))

    def figure(self, onto: Any = None) -> Any:
        """Four panels: density of a latent's coordinates, probability of a random fact, density of each relation,
        answers of a query.

        Args:
            onto: such a figure of another prior, to be drawn on anew, which takes half the time.

        Raises:
            InputError: matplotlib is not installed.
        """
        figure = _panels(self.coordinates) if onto is None else onto
        top, left, middle, right = figure.axes
        for panel in figure.axes:
            for artist in [*panel.lines, *panel.patches, *panel.collections]:
                artist.remove()
            panel.relim()
        shown = np.concatenate(list(self.coordinates.values()))
        low, high = np.quantile(shown, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 61)
        for colour, values in zip(COLOURS, self.coordinates.values(), strict=True):
            top.stairs(np.histogram(values, edges)[0] / len(values) / np.diff(edges), edges, color=colour)
        counts, edges = np.histogram(self.probabilities, bins=50, range=(0, 1))
        left.stairs(counts / self.probabilities.size, edges, fill=True, color="tab:blue")
        rows = self.density.sort_values("graph").reset_index(drop=True)
        middle.vlines(rows.index, rows["low"], rows["high"], color="tab:blue", alpha=0.5)
        middle.plot(rows.index, rows["mean"], "_", color="tab:blue")
        middle.plot(rows.index, rows["graph"], ".", color="black")
        most = max(values.max(initial=1) for values in self.degrees.values())
        bins = np.unique(np.concatenate([[0], np.geomspace(1, most + 1, 24).round()])) - 0.5
        for name, colour in (("prior", "tab:blue"), ("graph", "black")):
            values = self.degrees[name]
            share = np.histogram(values, bins)[0] / max(len(values), 1)
            right.stairs(share, bins, fill=name == "prior", color=colour)
        figure.suptitle(plain(self.title))
        return figure

    def save(self, folder: str | Path) -> list[str]:
        """Write ``prior_summary.csv``, ``prior_density.csv`` and ``prior_predictive.png``; returns their names.

        Raises InputError where it cannot be written, or matplotlib is not installed (the tables are written first).
        """
        tables = {"prior_summary.csv": self.summary, "prior_density.csv": self.density}
        return write(folder, tables, {"prior_predictive.png": self.figure})


def _panels(kinds: Iterable[str]) -> Any:
    """The figure's four panels, with no prior drawn on them."""
    figure = new_figure(10, 6.4)
    (top, left), (middle, right) = figure.subplots(2, 2)
    top.set(xlabel="a coordinate of a latent", ylabel="density")
    left.set(yscale="log", xlim=(0, 1), xlabel="probability", ylabel="share of facts")
    middle.set(yscale="log", xlabel="relations, sparse to dense", ylabel="share of all pairs")
    right.set_xscale("symlog", linthresh=1)
    right.set(xlabel="answers", ylabel="share of queries")
    _key(top, dict(zip(kinds, COLOURS, strict=True)))
    _key(middle, {"prior, mean and 90 %": "tab:blue", "graph": "black"}, bottom=True)
    _key(right, {"prior": "tab:blue", "graph": "black"})
    titles = ("the prior (central 99 %)", "a random fact", "relations", "answers of a random query")
    for panel, title in zip(figure.axes, titles, strict=True):
        panel.set_title(title, y=1)  # fixed, as legends and mathematical type are slow to place
        panel.minorticks_off()
    for axis in (left.yaxis, middle.yaxis, right.xaxis):
        axis.set_major_formatter("{x:g}")
    for axis in (top.xaxis, top.yaxis, left.xaxis, middle.xaxis, right.yaxis):
        axis.get_major_locator().set_params(nbins=5)
    return figure


def _key(panel: Any, colours: Mapping[str, str], bottom: bool = False) -> None:
    """What the colours of a panel stand for, in a corner at its right."""
    for row, (label, colour) in enumerate(colours.items()):
        y = 0.04 + 0.09 * row if bottom else 0.96 - 0.09 * row
        where = {"ha": "right", "va": "bottom" if bottom else "top", "transform": panel.transAxes}
        panel.text(0.97, y, label, color=colour, **where)


@torch.no_grad()
def prior_predictive(
    graph: Graph | str | Path,
    prior: PriorLike = "normal",
    score: str | Score = "ComplEx",
    draws: int = 20,
    *,
    entity_prior: PriorLike | None = None,
    relation_prior: PriorLike | None = None,
    dim: int = 100,
    facts: int = 2000,
    queries: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> PriorPredictive:
    """What a prior and a score claim about a graph of this size, before any fit.

    All latents are drawn from their priors; learned parameters of a prior stand where learning starts.

    Args:
        graph: a Graph, the name of a data set, or a folder of triples files.
        prior: prior of all latents, as in a fit.
        score: scoring function, as in a fit.
        draws: draws of all latents from the prior.
        entity_prior: prior of entity latents where it differs from `prior`.
        relation_prior: prior of relation latents where it differs from `prior`.
        dim: real numbers per entity latent.
        facts: random facts per relation (at most) and draw.
        queries: random queries per draw whose answers are counted.
        seed: of all draws.
        progress: show a progress bar.

    Raises:
        InputError: unknown names, or a number that is not positive.
    """
    graph = load_graph(graph)
    refuse_numbers(draws=draws, dim=dim, facts=facts, queries=queries, seed=seed)
    config = {"prior": prior, "entity_prior": entity_prior, "relation_prior": relation_prior}
    rest = {"score": score, "dim": dim, "inverse": False, "completeness": 1.0, "likelihood": "bernoulli"}
    kg = build_setting(graph, config | rest)
    kg.start_at_base_rates(Batches(graph.training_queries, graph.num_entities, inverse=False, unanswered=1))
    with seeded(seed):
        bar = tqdm(range(draws), desc="prior", unit="draw", disable=not progress, leave=False)
        drawn = zip(*(_one_draw(kg, graph, facts, queries) for _ in bar), strict=True)
        probabilities, answers, entities, relations = map(torch.stack, drawn)
        key = torch.randint(graph.num_entities * graph.num_relations, (queries * draws,))
    place = graph.training_queries.positions(key // graph.num_relations, key % graph.num_relations)
    observed = torch.where(place < 0, 0, graph.training_queries.counts[place])
    pairs = graph.num_entities**2
    in_graph = torch.bincount(graph.train[:, 1], minlength=graph.num_relations).double() / pairs
    density = {"relation": graph.relations, "graph": in_graph.numpy()} | spread(probabilities.double().mean(2))
    flat, nan = probabilities.flatten(1).double(), float("nan")
    quantities = {
        "probability of a random fact": (float(in_graph.mean()), flat.mean(1)),
        "share of random facts above 0.99": (nan, (flat > SURE).double().mean(1)),
        "share of random facts below 0.01": (nan, (flat < 1 - SURE).double().mean(1)),
        "answers of a random query": (float(observed.double().mean()), answers.double().mean(1)),
    }
    names, values = [*quantities], [*quantities.values()]
    claimed = spread(torch.stack([of_draws for _, of_draws in values], 1))
    summary = pd.DataFrame({"graph": [value for value, _ in values]} | claimed, index=names)
    shown = entity_prior or prior if relation_prior is None else f"{entity_prior or prior} and {relation_prior}"
    return PriorPredictive(
        summary,
        pd.DataFrame(density),
        flat.numpy(),
        {"graph": observed.numpy(), "prior": answers.flatten().numpy()},
        {"entity": entities.flatten().numpy(), "relation": relations.flatten().numpy()},
        f"{shown}, {kg.score.name}, dim {dim}",
    )


def _one_draw(kg: Setting, graph: Graph, facts: int, queries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities of random facts of each relation, ``(R, f)``, drawn numbers of answers of random queries, and
    coordinates of some entities and relations.
    """
    with pyro_alone(), OwnParameters():
        (entity_prior, relation_prior), intercepts = kg.priors(), kg.intercepts()
    latents = []
    for prior, count in ((entity_prior(...), kg.num_entities), (relation_prior(...), kg.num_relations)):
        latents.append(prior.sample() if prior.batch_shape else prior.sample((count,)))
    entities, relations = latents
    per_relation = max(1, facts // max(1, graph.num_relations // 50))
    relation = torch.arange(graph.num_relations).repeat_interleave(per_relation)
    head, tail = torch.randint(graph.num_entities, (2, len(relation)))
    scores = kg.score.facts(entities[head], relations[relation], entities[tail])
    probabilities = (scores + intercepts[relation]).sigmoid().reshape(graph.num_relations, per_relation)
    row, anchor = torch.randint(graph.num_relations, (queries,)), torch.randint(graph.num_entities, (queries,))
    logits = kg.score.candidates(entities[anchor], relations[row], entities) + intercepts[row].unsqueeze(-1)
    return probabilities, torch.bernoulli(logits.sigmoid()).sum(-1), entities[:SYMBOLS], relations[:SYMBOLS]
