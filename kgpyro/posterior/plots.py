"""Embeddings as a table, and pictures: embeddings in a plane, answers with intervals, the course of the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.display import COLOURS, axes_of, plain
from kgpyro.errors import InputError
from kgpyro.posterior.draws import AT_ONCE
from kgpyro.program.families import posterior_mean, posterior_variance

if TYPE_CHECKING:
    from kgpyro.posterior.predictions import Predictions

MARKS = {"": ("o", "new"), "train": ("s", "in train"), "valid": ("^", "in valid"), "test": ("D", "in test")}
LARGE = 10_000  # symbols, beyond which points have steps of sizes
LABELS = 25  # symbols that have their names in a plane by default


def embeddings(posterior: Predictions, kind: str = "entity") -> pd.DataFrame:
    """Posterior means and standard deviations of the latents of each symbol.

    Of a guide's distributions in closed form or by quadrature where there is one, else over 256 draws; of a mixture,
    over its members; of NUTS and HMC, over all draws.

    Args:
        kind: ``"entity"`` or ``"relation"``.

    Returns:
        A row per symbol, indexed by name (the inverse of a relation, with latents of its own, is
        ``NAME (inverse)``), columns ``("mean", i)`` and ``("scale", i)`` for each coordinate ``i``.

    Raises:
        InputError: another kind, or draws of a model that has no such latents.
    """
    index = _names(posterior, kind)
    values, start = torch.empty(0), 0
    for mean, scale in _moments(posterior, kind):
        if not start:
            values = torch.empty(len(index), 2 * mean.shape[1], dtype=posterior.dtype)
        values[start : start + len(mean)] = torch.cat([mean, scale], 1)
        start += len(mean)
    columns = pd.MultiIndex.from_product([("mean", "scale"), range(values.shape[1] // 2)])
    return pd.DataFrame(values.numpy(), pd.Index(index, name=kind), columns, copy=False)


def _names(posterior: Predictions, kind: str) -> list[str]:
    """Of the rows of :func:`embeddings`. Raises InputError for another kind."""
    names = {"entity": posterior.graph.entities, "relation": posterior.graph.relations}
    if kind not in names:
        raise InputError(f"embeddings are of kind 'entity' or 'relation'; got {kind!r}.")
    found = list(names[kind])
    return found + [f"{name} (inverse)" for name in found] * (posterior.kg.count(kind) == 2 * len(found))


@torch.no_grad()
def _moments(posterior: Predictions, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Posterior means and standard deviations, ``(n, d)`` each, float64, of some symbols after the others."""
    if posterior.samples is not None:
        if (site := posterior._site(kind)) not in posterior.samples:
            raise InputError(f"this model has no latents {site!r}, a row per {kind}.")
        drawn = posterior.samples[site]
        for part in drawn.split(max(1, AT_ONCE // (16 * len(drawn) * drawn.shape[-1])), dim=1):
            yield part.double().mean(0).cpu(), part.double().std(0, correction=0).cpu()
        return
    guide = posterior.its_guide("embeddings")
    count, size = posterior.kg.count(kind), posterior.kg.size(kind)
    for ids in torch.arange(count, device=posterior.device).split(max(1, AT_ONCE // (16 * guide.members * size))):
        each = []
        for member in range(guide.members):
            with guide.using(member):
                q = guide.posterior(kind, ids)
                each.append((posterior_mean(q).double(), posterior_variance(q).double()))
        means, variances = (torch.stack(parts) for parts in zip(*each, strict=True))
        mean = means.mean(0)
        variance = (variances + means.square()).mean(0) - mean.square()
        yield mean.cpu(), variance.clamp_min(0).sqrt().cpu()


def plot_embeddings(
    posterior: Predictions,
    kind: str = "entity",
    labels: int | Sequence[str] = LABELS,
    ax: Any = None,
    method: str = "pca",
    seed: int = 0,
) -> Any:
    """Posterior means in a plane, a point per symbol; larger where the posterior is surer of it.

    Args:
        kind: ``"entity"`` or ``"relation"``.
        labels: names to write beside their points, or how many, the most frequent symbols first. A name that would
            overlap another is left out.
        ax: matplotlib's Axes to draw into. Default: a new figure's.
        method: ``"pca"``, the first two principal components, or ``"umap"`` (McInnes et al. 2018), which needs
            umap-learn.
        seed: of UMAP.

    Returns:
        The matplotlib Figure.

    Raises:
        InputError: another kind or method, unknown labels, latents of one number, or a library that is missing.
    """
    names, graph = _names(posterior, kind), posterior.graph
    if len(names) < 3 or posterior.kg.size(kind) < 2:
        raise InputError("a plane needs three symbols, with latents of two or more numbers.")
    places, titles, scale = _plane(partial(_moments, posterior, kind), method, seed)
    frequency = graph.frequency if kind == "entity" else torch.bincount(graph.train[:, 1], minlength=len(names))
    labels = [labels] if isinstance(labels, str) else labels
    if isinstance(labels, int):
        order = np.argsort(-frequency.numpy()[: len(names)], kind="stable")[:labels]
    else:
        find = {name: i for i, name in enumerate(names)}
        if unknown := [name for name in labels if name not in find]:
            raise InputError(f"`labels` names {unknown[0]!r}, which is no {kind} of graph {graph.name!r}.")
        order = np.array([find[name] for name in labels], dtype=int)
    sure = pd.Series(scale).rank(pct=True, ascending=False)
    figure, axes = axes_of(ax, 6, 5)
    sizes = 8 + 40 * sure
    each = [slice(None)] if len(names) <= LARGE else sizes.groupby(sizes // 2).indices.values()
    for some in each:  # of many points those of about one size together: matplotlib keeps a matrix for every size
        size = sizes if len(names) <= LARGE else sizes.iloc[some].mean()
        axes.scatter(*places[some].T, s=size, color=COLOURS[0], alpha=0.5, linewidths=0)
    axes.set(xlabel=titles[0], ylabel=titles[1])
    figure.draw_without_rendering()  # so that texts have their sizes
    taken: list[Any] = []
    for i in order.tolist():
        text = axes.annotate(
            plain(names[i]), places[i], (3, 3), textcoords="offset points", fontsize=7, annotation_clip=True
        )
        box, frame = text.get_window_extent(), axes.get_window_extent()
        if box.x1 > frame.x1:  # to the left of its point
            text.set(ha="right", position=(-3, 3))
            box = text.get_window_extent()
        box = box.padded(1)
        if any(box.overlaps(other) for other in taken) or box.x0 < frame.x0 or box.y1 > frame.y1:
            text.remove()
        else:
            taken.append(box)
    return figure


def _plane(
    moments: Callable[[], Iterator[tuple[Tensor, Tensor]]], method: str, seed: int
) -> tuple[np.ndarray, tuple[str, str], np.ndarray]:
    """Places ``(n, 2)``, titles of the axes, and the mean scale of each symbol ``(n,)``."""
    if method == "pca":  # in two walks, without a table of all means
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for mean, _ in moments():
            count, total, products = count + len(mean), total + mean.sum(0), products + mean.T @ mean
        centre = total / count
        values, vectors = torch.linalg.eigh(products / count - centre.outer(centre))
        axes = vectors[:, [-1, -2]]
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # largest coordinates are positive
        places, scales, start = mean.new_empty(count, 2), mean.new_empty(count), 0
        for mean, scale in moments():
            places[start : start + len(mean)], scales[start : start + len(mean)] = (mean - centre) @ axes, scale.mean(1)
            start += len(mean)
        share = values.flip(0)[:2] / values.sum().clamp_min(1e-300)
        first = f"first principal component ({share[0]:.0%} of the variance)"
        titles = first, f"second principal component ({share[1]:.0%})"
        return places.numpy(), titles, scales.numpy()
    if method != "umap":
        raise InputError(f"`method` must be pca or umap; got {method!r}.")
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("`method` umap needs umap-learn; pip install umap-learn.") from error
    means, widths = (torch.cat(parts) for parts in zip(*moments(), strict=True))
    if len(means) < 4:
        raise InputError("`method` umap needs four symbols at least; leave it at pca.")
    near = min(15, len(means) - 1)  # 15 is its own default
    found = UMAP(n_neighbors=near, n_jobs=1, random_state=seed).fit_transform(means.numpy())
    return found, ("UMAP, first coordinate", "UMAP, second coordinate"), widths.mean(1).numpy()


def plot_answers(
    posterior: Predictions,
    head: str | None = None,
    relation: str | None = None,
    tail: str | None = None,
    top: int | None = 10,
    ax: Any = None,
    **options: Any,
) -> Any:
    """The answers of :meth:`kgpyro.Posterior.predict` as a forest plot: points and intervals, known ones marked.

    Args:
        head, relation, tail: names; give two of the three.
        top: how many answers.
        ax: matplotlib's Axes to draw into. Default: a new figure's.
        options: ``draws``, ``interval``, ``seed`` and ``new``, as of ``predict``.

    Returns:
        The matplotlib Figure.

    Raises:
        InputError: what ``predict`` refuses, or matplotlib is not installed.
    """
    table = posterior.predict(head, relation, tail, top, **options)
    figure, axes = axes_of(ax, 6, 1.2 + 0.26 * len(table))
    place = np.arange(len(table))
    for (split, (mark, label)), colour in zip(MARKS.items(), (COLOURS[0], "0.45", COLOURS[4], COLOURS[1]), strict=True):
        here = (table["known"] == split).to_numpy()
        rows, y = table[here], place[here]
        if len(rows):
            axes.hlines(y, rows["low"], rows["high"], color=colour, linewidth=2)
            style = {"color": colour, "label": label, "linestyle": "", "markersize": 6}
            axes.plot(rows["probability"], y, mark, markeredgecolor="white", **style)
    axes.set_yticks(place, [plain(_short(name)) for name in table.iloc[:, 0]], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), xlabel=f"probability, central {options.get('interval', 0.9):.0%}")
    axes.set_ylim(len(table) - 0.4, -0.6)
    asked = ("?" if name is None else plain(_short(name)) for name in (head, relation, tail))
    axes.set_title(", ".join(asked), fontsize=9, loc="left", pad=20)
    axes.legend(
        frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, columnspacing=1, handletextpad=0
    )
    return figure


def plot_history(posterior: Any, ax: Any = None) -> Any:
    """The course of the fit: loss, log-likelihood and KL per epoch, and the validation MRR where it was watched.

    Args:
        ax: matplotlib's Axes to draw into. Default: a new figure's.

    Returns:
        The matplotlib Figure.

    Raises:
        InputError: the fit kept no epochs (NUTS), or matplotlib is not installed.
    """
    log: pd.DataFrame = posterior.history
    if log.empty:
        raise InputError("this posterior has no history of epochs to draw.")
    figure, axes = axes_of(ax, 6, 3.6)
    lines = {"loss": log["loss"], "-log-likelihood": -log["log_likelihood"], "KL": log["kl"]}
    for (name, values), colour, style in zip(lines.items(), COLOURS, ("-", "--", ":"), strict=False):
        axes.plot(log["epoch"], values, style, color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="nats per training fact")
    if "valid_mrr" in log and log["valid_mrr"].notna().any():
        right, seen = axes.twinx(), log[log["valid_mrr"].notna()]
        right.plot(seen["epoch"], seen["valid_mrr"], "o-", color=COLOURS[3], markersize=3)
        right.set_ylabel("validation MRR", color=COLOURS[3])
    axes.legend(frameon=False, fontsize=8)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"
