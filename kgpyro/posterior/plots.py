"""Embeddings as a table, and pictures: embeddings in a plane, answers with intervals, the course of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from kgpyro.display import COLOURS, axes_of, plain
from kgpyro.errors import InputError
from kgpyro.posterior.draws import AT_ONCE
from kgpyro.program.families import posterior_mean, posterior_variance

if TYPE_CHECKING:
    from kgpyro.posterior.predictions import Predictions

MARKS = {"": ("o", "new"), "train": ("s", "in train"), "valid": ("^", "in valid"), "test": ("D", "in test")}
LARGE = 10_000  # symbols from which on principal components are those of a covariance, which takes less memory
LABELS = 25  # symbols that have their names in a plane by default


@torch.no_grad()
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
    names = {"entity": posterior.graph.entities, "relation": posterior.graph.relations}
    if kind not in names:
        raise InputError(f"embeddings are of kind 'entity' or 'relation'; got {kind!r}.")
    if posterior.samples is not None:
        if (site := posterior._site(kind)) not in posterior.samples:
            raise InputError(f"this model has no latents {site!r}, a row per {kind}.")
        drawn = posterior.samples[site].double()
        values = torch.cat([drawn.mean(0), drawn.std(0, correction=0)], 1)
    else:
        guide = posterior.its_guide("embeddings")
        count, size = posterior.kg.count(kind), posterior.kg.size(kind)
        values = torch.empty(count, 2 * size, dtype=posterior.dtype)
        for ids in torch.arange(count, device=posterior.device).split(max(1, AT_ONCE // (4 * guide.members * size))):
            each = []
            for member in range(guide.members):
                with guide.using(member):
                    q = guide.posterior(kind, ids)
                    each.append((posterior_mean(q).double(), posterior_variance(q).double()))
            means, variances = (torch.stack(parts) for parts in zip(*each, strict=True))
            mean = means.mean(0)
            variance = (variances + means.square()).mean(0) - mean.square()
            values[ids] = torch.cat([mean, variance.clamp_min(0).sqrt()], 1).to(values)
    index = list(names[kind])
    index += [f"{name} (inverse)" for name in index] if len(values) == 2 * len(index) else []
    columns = pd.MultiIndex.from_product([("mean", "scale"), range(values.shape[1] // 2)])
    return pd.DataFrame(values.cpu().numpy(), pd.Index(index, name=kind), columns)


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
    table = embeddings(posterior, kind)
    graph = posterior.graph
    if len(table) < 3 or table["mean"].shape[1] < 2:
        raise InputError("a plane needs three symbols, with latents of two or more numbers.")
    places, titles = _plane(table["mean"].to_numpy(), method, seed)
    frequency = graph.frequency if kind == "entity" else torch.bincount(graph.train[:, 1], minlength=len(table))
    labels = [labels] if isinstance(labels, str) else labels
    if isinstance(labels, int):
        order = np.argsort(-frequency.numpy()[: len(table)], kind="stable")[:labels]
    else:
        find = {name: i for i, name in enumerate(table.index)}
        if unknown := [name for name in labels if name not in find]:
            raise InputError(f"`labels` names {unknown[0]!r}, which is no {kind} of graph {graph.name!r}.")
        order = np.array([find[name] for name in labels], dtype=int)
    sure = pd.Series(table["scale"].to_numpy().mean(1)).rank(pct=True, ascending=False)
    figure, axes = axes_of(ax, 6, 5)
    axes.scatter(*places.T, s=8 + 40 * sure, color=COLOURS[0], alpha=0.5, linewidths=0)
    axes.set(xlabel=titles[0], ylabel=titles[1])
    figure.draw_without_rendering()  # so that texts have their sizes
    taken: list[Any] = []
    for i in order.tolist():
        text = axes.annotate(
            plain(table.index[i]), places[i], (3, 3), textcoords="offset points", fontsize=7, annotation_clip=True
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


def _plane(means: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    if method == "pca":
        from sklearn.decomposition import PCA  # imported here: it takes a second

        found = PCA(2, svd_solver="covariance_eigh" if len(means) > LARGE else "full").fit(means)
        share = found.explained_variance_ratio_
        return found.transform(means), (
            f"first principal component ({share[0]:.0%} of the variance)",
            f"second principal component ({share[1]:.0%})",
        )
    if method != "umap":
        raise InputError(f"`method` must be pca or umap; got {method!r}.")
    try:
        from umap import UMAP  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("`method` umap needs umap-learn; pip install umap-learn.") from error
    if len(means) < 4:
        raise InputError("`method` umap needs four symbols at least; leave it at pca.")
    near = min(15, len(means) - 1)  # 15 is its own default
    return UMAP(n_neighbors=near, n_jobs=1, random_state=seed).fit_transform(means), (
        "UMAP, first coordinate",
        "UMAP, second coordinate",
    )


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
