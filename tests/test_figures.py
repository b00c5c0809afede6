"""The paper's figures: the numbers behind them, and what is drawn."""

from __future__ import annotations

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from test_posterior import posterior_of

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior
from kgpyro.reporting.figures import _inverse, regression

image = pytest.importorskip("matplotlib.image")


def uneven(graph: Graph, **changed: object) -> Posterior:
    """A posterior whose scales differ from symbol to symbol and coordinate to coordinate."""
    posterior = posterior_of(graph, **changed)
    torch.manual_seed(5)
    with torch.no_grad():
        for table in (posterior.guide.entity, posterior.guide.relation):  # type: ignore[attr-defined]
            table.loc.normal_()
            table.log_scale.uniform_(-1.5, -0.5)
    return posterior


@pytest.mark.parametrize("inverse", [True, False])
def test_variances(tiny: Graph, inverse: bool) -> None:
    posterior = uneven(tiny, inverse=inverse)
    table = kgpyro.variances(posterior).set_index("name")
    assert table["frequency"].to_dict() == {"a": 5, "b": 4, "c": 2, "d": 3, "e": 0, "knows": 3, "likes": 4}
    assert set(table.index[table["kind"] == "relation"]) == {"knows", "likes"}
    squares = {k: (2 * getattr(posterior.guide, k).log_scale.detach()).exp().mean(1) for k in ("entity", "relation")}
    np.testing.assert_allclose(table.loc[list(tiny.entities), "variance"], squares["entity"], rtol=1e-5)
    relations = (squares["relation"][:2] + squares["relation"][2:]) / 2 if inverse else squares["relation"]
    np.testing.assert_allclose(table.loc[list(tiny.relations), "variance"], relations, rtol=1e-5)


def test_variances_on_other_supports(tiny: Graph) -> None:
    posterior = uneven(tiny, prior="gamma")
    log_scale, loc = (getattr(posterior.guide.entity, k).detach().double() for k in ("log_scale", "loc"))  # type: ignore[union-attr]
    square = (2 * log_scale).exp()
    expected = ((square.exp() - 1) * (2 * loc + square).exp()).mean(1)  # of a log-normal
    np.testing.assert_allclose(kgpyro.variances(posterior)["variance"][:5], expected, rtol=1e-4)


def test_the_regression_is_numpys() -> None:
    generator = np.random.default_rng(0)
    frequency = generator.integers(1, 500, 40)
    precision = 5 + 0.1 * frequency + generator.normal(size=40)
    fit, x, mean, half = regression(pd.DataFrame({"frequency": frequency, "variance": 1 / precision}))
    line, covariance = np.polyfit(frequency, precision, 1, cov=True)
    assert fit.slope == pytest.approx(line[0])
    np.testing.assert_allclose(mean, np.polyval(line, x))
    design = np.stack([x, np.ones_like(x)], 1)
    error = np.sqrt(np.einsum("ni,ij,nj->n", design, covariance, design))
    np.testing.assert_allclose(half, 2.0243941645751367 * error, rtol=1e-6)  # Student's t, 38 degrees of freedom
    assert x[[0, -1]] == pytest.approx([frequency.min(), frequency.max()])


def test_the_variance_figure(tiny: Graph) -> None:
    """Entities have a curve, and one that training lacks to its left; two relations are too few for a curve."""
    posterior = uneven(tiny)
    entities, relations = kgpyro.variance_figure(posterior).axes
    table = kgpyro.variances(posterior)
    points, unseen, line = entities.lines
    np.testing.assert_allclose(points.get_xdata(), [5, 4, 2, 3])
    np.testing.assert_allclose(points.get_ydata(), table["variance"][:4])
    assert unseen.get_ydata() == pytest.approx(table["variance"][4:5])
    assert unseen.get_xdata()[0] < 2
    np.testing.assert_allclose(
        np.polyfit(line.get_xdata(), 1 / line.get_ydata(), 1), np.polyfit([5, 4, 2, 3], 1 / table["variance"][:4], 1)
    )
    assert len(entities.collections) == 1
    assert "1 that training lacks" in [text.get_text() for text in entities.get_legend().get_texts()]
    assert len(relations.lines) == 1
    for axis, title in ((entities, "entities"), (relations, "relations")):
        assert axis.get_title() == title
        assert axis.get_xlabel() == "frequency in training (log scale)"
        assert axis.get_ylabel() == "mean posterior variance"
        assert axis.get_ylim()[0] == 0


def test_a_curve_never_goes_below_zero() -> None:
    """Where the line of the precision does, there is no variance to draw."""
    assert np.isnan(_inverse(np.array([-1.0, 0.0]))).all()
    assert _inverse(np.array([4.0])).tolist() == [0.25]


def test_the_fact_figure(tiny: Graph) -> None:
    """Four densities, where the principal components say, in contours that hold half and nine tenths."""
    posterior = uneven(tiny)
    (axis,) = kgpyro.fact_figure(posterior, "a", "likes", "b", corrupted="e").axes
    marks = {line.get_label(): np.array(line.get_xydata()[0]) for line in axis.lines}
    assert set(marks) == {"head a", "relation likes", "tail b", "corrupted tail e"}
    entities = posterior.guide.entity.loc.detach().double().numpy()  # type: ignore[union-attr, operator]
    plane = PCA(2, random_state=0).fit(entities)
    for label, latent in (
        ("head a", entities[0]),
        ("corrupted tail e", entities[4]),
        ("relation likes", posterior.guide.relation.loc[1].detach().double().numpy()),  # type: ignore[union-attr, index]
    ):
        np.testing.assert_allclose(marks[label], plane.transform(latent[None])[0], atol=1e-6)
    contours = axis.collections[1::2]
    assert len(contours) == 4
    for contour, place in zip(contours, marks.values(), strict=True):
        outer, inner = (path.vertices - place for path in contour.get_paths())
        sizes = [np.abs(ring).max(0) for ring in (outer, inner)]
        np.testing.assert_allclose(sizes[0] / sizes[1], (np.log(0.1) / np.log(0.5)) ** 0.5, rtol=0.05)
    p = posterior.facts([("a", "likes", "b"), ("a", "likes", "e")])["probability"]
    assert axis.get_title() == f"P(fact) = {p[0]:.3g}, P(corrupted) = {p[1]:.3g}"
    assert axis.get_xlabel() == "first principal component"


def test_widths_are_in_units_of_variance(tiny: Graph) -> None:
    """The two factors of a latent's variances sum to their mean, where two factors say all there is to say."""
    posterior = uneven(tiny)
    shapes = torch.tensor([[0.3, 0.3, 0.01, 0.01], [0.01, 0.01, 0.1, 0.4]])
    torch.manual_seed(2)
    with torch.no_grad():
        for table in (posterior.guide.entity, posterior.guide.relation):  # type: ignore[attr-defined]
            shares = torch.rand(len(table.log_scale), 2) + 0.2
            table.log_scale.copy_((shares @ shapes).log() / 2)
    expected = kgpyro.variances(posterior)["variance"][0]
    (axis,) = kgpyro.fact_figure(posterior, "a", "likes", "b", corrupted="e").axes
    ring = axis.collections[1].get_paths()[1].vertices - axis.lines[0].get_xydata()[0]
    widths = np.abs(ring).max(0) / np.sqrt(2 * np.log(2))  # a 2-d Gaussian holds half within √(2 log 2)
    assert np.square(widths).sum() == pytest.approx(expected, rel=0.03)


def test_the_corrupted_tail(tiny: Graph) -> None:
    """By default neither the head nor any known tail."""
    posterior = uneven(tiny)
    found = set()
    for seed in range(20):
        (axis,) = kgpyro.fact_figure(posterior, "b", "likes", "b", seed=seed).axes
        found.add(axis.lines[3].get_label())
    assert found == {f"corrupted tail {name}" for name in "ade"}


@pytest.mark.parametrize(
    ("score", "fact", "words"),
    [
        ("DistMult", ("z", "likes", "b"), "no entity 'z'"),
        ("DistMult", ("a", "hates", "b"), "no relation 'hates'"),
        ("DistMult", ("a", "likes", "b", "z"), "no entity 'z'"),
        ("RESCAL", ("a", "likes", "b"), "with score RESCAL they have 4 and 16"),
    ],
)
def test_what_cannot_be_drawn(tiny: Graph, score: str, fact: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kgpyro.fact_figure(posterior_of(tiny, score=score), *fact)


def test_every_tail_is_known() -> None:
    graph = Graph.from_triples(
        "full", [("a", "r", "a"), ("a", "r", "b"), ("b", "s", "a")], [("b", "s", "b")], [("a", "s", "a")]
    )
    with pytest.raises(InputError, match="name a corrupted one"):
        kgpyro.fact_figure(posterior_of(graph), "a", "r", "b")


def test_without_matplotlib(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="need matplotlib"):
        kgpyro.variance_figure(posterior_of(tiny))


def test_a_notebook_shows_a_figure(tiny: Graph) -> None:
    figure = kgpyro.variance_figure(uneven(tiny))
    pixels = image.imread(io.BytesIO(figure._repr_png_()))
    assert pixels.shape[:2] == (380, 900)
    assert pixels.std() > 0, "an empty sheet"
