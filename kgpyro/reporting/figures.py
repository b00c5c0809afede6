"""The figures of Cowen-Rivers & Minervini 2018: variance against frequency, and a fact as densities of its latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from kgpyro.display import COLOURS, axes_of, new_figure, plain
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.families import posterior_mean, posterior_variance

MASSES = (0.9, 0.5)  # of a density inside its outer and inner contour


@torch.no_grad()
def variances(posterior: Posterior) -> pd.DataFrame:
    """How sure the posterior is of each symbol, and how often training has seen it.

    Returns:
        A row per entity and relation: ``kind``, ``name``, ``frequency`` (places in training triples: an entity that is
        head and tail of one has two) and ``variance`` (posterior variance, mean over the coordinates of the latent, and
        over both latents of a relation that has an inverse; of the first member of a mixture).
    """
    graph, found = posterior.graph, []
    of_relations = torch.bincount(graph.train[:, 1], minlength=graph.num_relations)
    for kind, names, count in (
        ("entity", graph.entities, graph.frequency),
        ("relation", graph.relations, of_relations),
    ):
        variance = posterior_variance(posterior.its_guide("these figures").posterior(kind, ...)).double().mean(-1)
        mean = variance.reshape(-1, len(names)).mean(0).cpu().numpy()
        found.append(pd.DataFrame({"kind": kind, "name": names, "frequency": count.numpy(), "variance": mean}))
    return pd.concat(found, ignore_index=True)


def variance_figure(posterior: Posterior) -> Any:
    """Posterior variance against frequency, of entities and of relations (their figure 3).

    The line is the least-squares fit of the precision, 1 / variance, to the frequency, as if each fact added the same
    precision, with the 95 % confidence band of its mean. It is left out if there are fewer than three symbols, or only
    one frequency. The paper's line, of the variance on the log frequency, would fall below zero. Symbols that training
    lacks are drawn apart, at the left, and do not count for the line.

    Returns:
        A matplotlib Figure of two panels.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure(9, 3.8)
    table = variances(posterior)
    for axis, kind, plural in zip(
        figure.subplots(1, 2), ("entity", "relation"), ("entities", "relations"), strict=True
    ):
        rows = table[table["kind"] == kind]
        seen, unseen = rows[rows["frequency"] > 0], rows[rows["frequency"] == 0]
        axis.plot(seen["frequency"], seen["variance"], ".", color=COLOURS[0], alpha=0.6, label=f"{len(seen)} {plural}")
        axis.set(
            xlabel="frequency in training (log scale)", ylabel="mean posterior variance", title=plural, xscale="log"
        )
        if len(unseen):
            left = np.full(len(unseen), 0.6 * seen["frequency"].min())
            style = {"color": COLOURS[4], "fillstyle": "none", "label": f"{len(unseen)} that training lacks"}
            axis.plot(left, unseen["variance"], "o", **style)
        if len(seen) > 2 and seen["frequency"].nunique() > 1:
            fit, grid, mean, half = regression(seen)
            label = f"1 / ({fit.intercept:.2g} + {fit.slope:.2g} n), r² {fit.rvalue**2:.2f}"
            axis.plot(grid, _inverse(mean), color="black", label=label)
            axis.fill_between(
                grid, _inverse(mean - half), _inverse(mean + half), color="black", alpha=0.15, linewidth=0
            )
        axis.set_ylim(0, 1.3 * rows["variance"].max())
        axis.legend(frameon=False, fontsize=9)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plain(repr(posterior)), fontsize=9, color="grey")
    return figure


def regression(rows: pd.DataFrame, level: float = 0.95) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, 1 / variance, regressed on frequency, over rows of :func:`variances` with positive frequency.

    Gives scipy's result, a grid of frequencies, and on it the line and the half-width of the confidence band of the
    mean, ``t √(s² (1/n + (x - x̄)² / Σ(x_i - x̄)²))``.
    """
    from scipy.stats import linregress, t  # imported here: it takes a second, and most do not need it

    frequency = rows["frequency"].to_numpy(dtype=float)
    fit = linregress(frequency, 1 / rows["variance"].to_numpy())
    x, count = np.geomspace(frequency.min(), frequency.max(), 100), len(rows)
    away = frequency.var() + np.square(x - frequency.mean())  # the slope's squared error has s² in it
    half = t.ppf((1 + level) / 2, count - 2) * fit.stderr * np.sqrt(away)
    return fit, x, fit.intercept + fit.slope * x, half


def _inverse(precision: np.ndarray) -> np.ndarray:
    """Variances of precisions, where these are positive; not a number elsewhere."""
    return 1 / np.where(precision > 0, precision, np.nan)


@torch.no_grad()
def fact_figure(
    posterior: Posterior,
    head: str,
    relation: str,
    tail: str,
    corrupted: str | None = None,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """The latents of a fact and of a corrupted tail as densities in a plane (their figure 4).

    A density's place is the projection of the latent's mean on the first two principal components of all entities'
    means. Its widths are two non-negative factors of the variances of all entities and relations, in units of variance:
    they compare how sure the posterior is of the latents, and are not the latent's marginal in that plane. Contours
    hold 50 % and 90 %, each density drawn as Gaussian whatever its family; a relation is shown without its inverse, and
    of a mixture its first member.

    Args:
        head, relation, tail: names of the fact.
        corrupted: entity to put in the tail's place. Default: a random one, not the head, whose fact is in no split.
        seed: of that choice, and of the draws behind the probabilities in the title.
        ax: matplotlib's Axes to draw into. Default: a new figure's.

    Returns:
        A matplotlib Figure of one panel.

    Raises:
        InputError: an unknown name, every tail is known, entity and relation latents differ in length, latents of a
            single coordinate, or matplotlib is not installed.
    """
    from scipy.stats import norm
    from sklearn.decomposition import NMF, PCA  # imported here: they take a second

    graph, kg = posterior.graph, posterior.kg
    ids = [graph.entity_id(head), graph.relation_id(relation), graph.entity_id(tail)]
    if not 2 <= kg.entity_size == kg.relation_size:
        raise InputError(
            f"a fact is drawn in one plane of entity and relation latents of the same two or more numbers; with score "
            f"{kg.score.name} they have {kg.entity_size} and {kg.relation_size}."
        )
    corrupted_id = _unknown_tail(posterior, ids[0], ids[1], seed) if corrupted is None else graph.entity_id(corrupted)
    figure, axis = axes_of(ax, 6, 5)
    posteriors = [posterior.its_guide("these figures").posterior(kind, ...) for kind in ("entity", "relation")]
    means = [posterior_mean(q).double().cpu().numpy() for q in posteriors]
    spreads = np.concatenate([posterior_variance(q).double().cpu().numpy() for q in posteriors])
    places = np.concatenate([*map(PCA(2, random_state=seed).fit(means[0]).transform, means)])
    factors = NMF(2, init="nndsvda", max_iter=2000, random_state=seed)
    widths = factors.fit_transform(spreads) * factors.components_.mean(1)
    widths = np.sqrt(widths.clip(1e-3 * widths.max()))
    shown = {
        f"head {head}": (ids[0], COLOURS[0]),
        f"relation {relation}": (len(means[0]) + ids[1], COLOURS[4]),
        f"tail {tail}": (ids[2], COLOURS[2]),
        f"corrupted tail {graph.entities[corrupted_id]}": (corrupted_id, COLOURS[1]),
    }
    rows = [row for row, _ in shown.values()]
    low, high = ((places[rows] + side * 3 * widths[rows]).T for side in (-1, 1))
    grid = [np.linspace(a.min(), b.max(), 300) for a, b in zip(low, high, strict=True)]
    for label, (row, colour) in shown.items():
        across, up = (norm.pdf(x, m, s) for x, m, s in zip(grid, places[row], widths[row], strict=True))
        density = up[:, None] * across
        peak = 1 / (2 * np.pi * widths[row].prod())
        levels = [peak * (1 - mass) for mass in MASSES]
        axis.contourf(*grid, density, levels=[*levels, peak * 1.01], colors=[(colour, 0.15), (colour, 0.35)])
        axis.contour(*grid, density, levels=levels, colors=[colour], linewidths=1)
        axis.plot(*places[row], "+", color=colour, label=plain(label))
    names = [(head, relation, tail), (head, relation, graph.entities[corrupted_id])]
    true, false = posterior.facts(names, seed=seed)["probability"]
    axis.set(xlabel="first principal component", ylabel="second principal component")
    axis.set_title(f"P(fact) = {true:.3g}, P(corrupted) = {false:.3g}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _unknown_tail(posterior: Posterior, head: int, relation: int, seed: int) -> int:
    """A random tail, not the head, that makes a fact of no split. Raises InputError where there is none."""
    tails = torch.arange(posterior.graph.num_entities)
    facts = torch.stack([torch.full_like(tails, head), torch.full_like(tails, relation), tails], 1)
    left = np.flatnonzero((posterior._known(facts) == "") & (tails.numpy() != head))
    if not len(left):
        raise InputError("every other entity is a known tail of this head and relation; name a corrupted one.")
    return int(np.random.default_rng(seed).choice(left))
