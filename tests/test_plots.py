"""Embeddings as tables, and what the pictures of a posterior show."""

from __future__ import annotations

import io
import sys
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from test_posterior import posterior_of

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError

pyplot = pytest.importorskip("matplotlib.pyplot")


def test_embeddings_are_the_guides(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    table = posterior.embeddings()
    assert list(table.index) == list(tiny.entities)
    np.testing.assert_allclose(table["mean"], posterior.guide.entity.loc.detach(), rtol=1e-6)  # type: ignore[union-attr]
    np.testing.assert_allclose(table["scale"], np.exp(-0.5), rtol=1e-6)
    relations = posterior.embeddings("relation")
    assert list(relations.index) == ["knows", "likes", "knows (inverse)", "likes (inverse)"]


@pytest.mark.parametrize("guide", ["flow", "mixture(members=3)"])
def test_moments_over_draws(tiny: Graph, guide: str) -> None:
    posterior = kgpyro.fit(tiny, model="lim", guide=guide, dim=4, epochs=2, progress=False)
    drawn = np.stack([posterior.joint(number)["entities"].numpy() for number in range(1200)])
    table = posterior.embeddings()
    error = drawn.std(0) * (1200**-0.5 + 256**-0.5)
    assert (np.abs(table["mean"].to_numpy() - drawn.mean(0)) / error).max() < 4.5
    np.testing.assert_allclose(table["scale"], drawn.std(0), rtol=0.25)


def test_embeddings_of_draws(tiny: Graph) -> None:
    options = {"inference": "nuts", "warmup_draws": 10, "posterior_draws": 12, "dim": 2, "model": "lim"}
    posterior = kgpyro.fit(tiny, progress=False, **options)  # type: ignore[arg-type]
    drawn = posterior.samples["entities"].numpy()  # type: ignore[index]
    np.testing.assert_allclose(posterior.embeddings()["mean"], drawn.mean(0), rtol=1e-6)
    np.testing.assert_allclose(posterior.embeddings()["scale"], drawn.std(0), rtol=1e-6)


def test_the_plane_of_embeddings(nations: Graph) -> None:
    """Points at the principal components, names that do not overlap, into the Axes that are given."""
    posterior = posterior_of(nations)
    figure, axes = pyplot.subplots()
    assert posterior.plot_embeddings(ax=axes, labels=100) is figure
    points = axes.collections[0].get_offsets()
    plane = PCA(2, svd_solver="full").fit_transform(posterior.embeddings()["mean"])
    np.testing.assert_allclose(points, plane, atol=1e-5)
    names = {text.get_text(): text for text in axes.texts}
    assert 3 < len(names) <= nations.num_entities
    for name, text in names.items():
        np.testing.assert_allclose(text.xy, plane[nations.entity_id(name)], atol=1e-5)
    boxes = [text.get_window_extent() for text in names.values()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    pyplot.close(figure)
    only = posterior.plot_embeddings(labels=["brazil"]).axes[0]
    assert [text.get_text() for text in only.texts] == ["brazil"]
    only = posterior.plot_embeddings(labels="usa").axes[0]
    assert [text.get_text() for text in only.texts] == ["usa"]


def test_a_plane_by_umap(nations: Graph, tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """What umap-learn is given, and what it gives; its own interface, without its minute of compilation."""
    made: list[dict] = []

    class UMAP:
        def __init__(self, **options: int) -> None:
            made.append(options)

        def fit_transform(self, means: np.ndarray) -> np.ndarray:
            return means[:, 2:4]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    posterior = posterior_of(nations)
    (axes,) = posterior.plot_embeddings(method="umap", seed=3).axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), posterior.embeddings()["mean"][[2, 3]], rtol=1e-6)
    assert axes.get_xlabel() == "UMAP, first coordinate"
    assert made == [{"n_neighbors": nations.num_entities - 1, "n_jobs": 1, "random_state": 3}]
    three = kgpyro.load_graph([("a", "r", "b"), ("b", "r", "c")])
    with pytest.raises(InputError, match="umap needs four symbols at least"):
        kgpyro.fit(three, model="lim", dim=4, epochs=1, progress=False).plot_embeddings(method="umap")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        posterior.plot_embeddings(method="umap")


def test_the_forest_of_answers(tiny: Graph) -> None:
    posterior = posterior_of(tiny)
    table = posterior.predict(head="a", relation="likes", top=5)
    (axes,) = posterior.plot_answers(head="a", relation="likes", top=5).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == table["tail"].tolist()
    shown = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert set(shown) == {"new", "in train"}
    for label, known in (("new", ""), ("in train", "train")):
        mine = table[table["known"] == known]
        np.testing.assert_allclose(shown[label], np.stack([mine["probability"], mine.index], 1))
    ends = np.concatenate([np.array(c.get_segments())[:, :, 0] for c in axes.collections])
    np.testing.assert_allclose(np.sort(ends, 0), np.sort(table[["low", "high"]], 0))


def test_the_course_of_a_fit(tiny: Graph) -> None:
    posterior = kgpyro.fit(tiny, model="lim", dim=4, epochs=4, early_stopping=4, validate_every=2, progress=False)
    assert posterior.history is posterior.log
    left, right = posterior.plot_history().axes
    assert {line.get_label(): list(line.get_ydata()) for line in left.lines}["loss"] == posterior.log["loss"].tolist()
    assert list(right.lines[0].get_xdata()) == [2, 4]
    with pytest.raises(InputError, match="no history of epochs"):
        posterior_of(tiny).plot_history()


def test_names_are_text() -> None:
    """Dollars and backslashes are what they are, in every figure."""
    train = [("a$x$", "r$$", "b"), ("b", "r$$", "c_{"), ("c_{", "s^$", "a$x$"), ("a$x$", "s^$", "c_{")]
    graph = Graph.from_triples("$$g", train, [], [])
    posterior = kgpyro.fit(graph, model="lim", dim=4, epochs=1, progress=False)
    figures = [
        posterior.plot_answers(head="a$x$", relation="r$$"),
        posterior.plot_answers(head="a$x$", tail="b"),
        posterior.plot_embeddings("relation"),
        kgpyro.posterior_predictive(posterior, draws=2).figure(),
        kgpyro.variance_figure(posterior),
        kgpyro.fact_figure(posterior, "a$x$", "r$$", "b"),
    ]
    for figure in figures:
        figure.savefig(io.BytesIO())
    text = figures[1].axes[0].get_yticklabels()[0]
    assert text._preprocess_math(text.get_text()) in {("r$$", False), ("s^$", False)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "facts"}, "'entity' or 'relation'"),
        ({"labels": ["nobody"]}, "names 'nobody', which is no entity"),
        ({"method": "tsne"}, "must be pca or umap"),
    ],
)
def test_no_plane(tiny: Graph, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        posterior_of(tiny).plot_embeddings(**options)


def test_figures_show_themselves(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook as its output; elsewhere through pyplot, which draws them."""
    shown: list[object] = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure = posterior_of(tiny).plot_answers(head="a", relation="likes")
    figure.show()
    assert shown == [figure]
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().canvas.figure))
    figure.show()
    assert shown == [figure, figure]
    pyplot.close("all")


def test_a_figure_goes_into_axes(tiny: Graph) -> None:
    figure, axes = pyplot.subplots(1, 2)
    posterior = posterior_of(tiny)
    assert kgpyro.fact_figure(posterior, "a", "likes", "b", corrupted="e", ax=axes[0]) is figure
    assert posterior.plot_answers(head="a", relation="likes", ax=axes[1]) is figure
    assert isinstance(pd.DataFrame(posterior.history), pd.DataFrame)
    pyplot.close(figure)
