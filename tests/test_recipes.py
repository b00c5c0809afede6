"""What a fit is where nobody says: which recipe, when, and what is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kgpyro
from kgpyro import Graph, Options
from kgpyro.inference.recipes import FREE, RECIPES, recipe_for


def sized(graph: Graph, entities: int, facts: int) -> Graph:
    """A graph of that size, with the facts of another."""
    names = tuple(f"e{i:06}" for i in range(entities))
    return replace(graph, entities=names, train=graph.train[:1].expand(facts, 3))


@pytest.mark.parametrize(
    ("entities", "facts", "name"),
    [
        (5, 7, "small"), (1_000, 7, "small"), (1_001, 7, "middle-sized"), (10_001, 100_000, "large"),
        (10_001, 20_000, "large and sparse"), (100_001, 1_000_000, "huge"),
    ],
)  # fmt: skip
def test_by_size(tiny: Graph, entities: int, facts: int, name: str) -> None:
    assert recipe_for(sized(tiny, entities, facts)).name == name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_can_be_fitted(tiny: Graph, recipe: object) -> None:
    options = Options.of({**recipe.options, "dim": 4, "epochs": 1})  # type: ignore[attr-defined]
    posterior = kgpyro.fit(tiny, options, progress=False, device="cpu")
    assert "recipe" not in posterior.metrics and posterior.metrics["test"]["realistic"]["mrr"] > 0


def test_only_what_leaves_a_recipe_whole_follows_it(tiny: Graph, tmp_path: Path) -> None:
    small = RECIPES[0]
    followed = kgpyro.fit(tiny, dim=4, epochs=2, device="cpu", progress=False, out=tmp_path / "run")
    assert followed.metrics["recipe"].startswith("small graph: ") and "recipe" in repr(followed.metrics)
    assert {key: followed.config[key] for key in small.options.keys() - FREE} == {
        key: value for key, value in small.options.items() if key not in FREE
    }
    assert kgpyro.load(tmp_path / "run").metrics["recipe"] == followed.metrics["recipe"]
    own = kgpyro.fit(tiny, dim=4, epochs=2, lr=0.1, device="cpu", progress=False)
    assert own.config["model"] == Options().model and "recipe" not in own.metrics


def test_an_uncertain_graph_keeps_its_confidences(tiny: Graph) -> None:
    sure = replace(tiny, confidences={"train": torch.full((len(tiny.train),), 0.5, dtype=torch.float64)})
    assert recipe_for(sure).name == "uncertain"
    assert kgpyro.fit(sure, dim=4, epochs=1, device="cpu", progress=False).config["completeness"] == 1
