"""What a fit is where nobody says: a recipe by the size of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kgpyro.inference.options import EXACT_UP_TO

if TYPE_CHECKING:
    from kgpyro.data.graph import Graph

# options that a recipe leaves room for: with any other, the options are what was said and the defaults
FREE = {
    "dim", "epochs", "batch_size", "seed", "device", "devices", "nodes", "precision", "early_stopping",
    "validate_every", "checkpoint_every",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Options that go together.

    Attributes:
        entities: of a graph, at most.
        options: of :class:`kgpyro.Options`, by name.
        why: these, in a clause.
        facts: per entity, at least.
    """

    name: str
    entities: float
    options: Mapping[str, Any]
    why: str
    facts: float = 0.0


LIM: dict[str, Any] = {"model": "lim", "prior": "normal", "dim": 200}
FAST: dict[str, Any] = {
    "model": "lim",
    "likelihood": "categorical",
    "prior": "normal(scale=0.3)",
    "estimator": "shared",
}
FAST |= {"precision": "bf16", "optimizer": "adam", "lr_schedule": "linear", "batch_size": 512, "epochs": 12}
RECIPES = (  # the first that fits
    Recipe(
        "small",
        1_000,
        LIM | {"epochs": 60, "batch_size": 128, "completeness": 0.9, "relation_weight": 1.0},
        "every cell is data, a tenth of the true facts may be missing, and each fact is asked for its relation too",
    ),
    Recipe(
        "middle-sized",
        10_000,
        LIM
        | {
            "entity_prior": "normal(scale=0.35)",
            "relation_prior": "normal(scale=3)",
            "epochs": 100,
            "precision": "bf16",
        }
        | {"completeness": 0.9, "closed_world": "local", "kl_weight": 0.5, "guide": "mixture(members=2)"},
        "the data are the queries that training answers, a KL weight of one half ranks better on sparse graphs, and "
        "two tables find different answers",
    ),
    Recipe(
        "large",
        EXACT_UP_TO,
        FAST | {"guide": "mixture(members=2)", "dim": 256, "lr": 0.008, "kl_weight": 0.3, "kl_frequency": 0.75},
        "answers are drawn from all entities, which ranks large graphs best, two tables find different answers, and "
        "frequent entities pay more KL",
        facts=5,
    ),
    Recipe(
        "large and sparse",
        EXACT_UP_TO,
        FAST | {"guide": "mixture(members=3)", "dim": 64, "lr": 0.024, "kl_weight": 0.2, "warmup": 0.5},
        "answers are drawn from all entities, in few dimensions, since there are few facts for each, and in three "
        "tables, which find different answers",
    ),
    Recipe(
        "huge",
        float("inf"),
        {"model": "lim", "dim": 64, "epochs": 10},
        "of the candidates of a query a hundred are drawn, and weighted without bias",
    ),
)


def recipe_for(graph: Graph) -> Recipe:
    """The recipe for a graph's size; of an uncertain graph without what goes with sure facts alone."""
    entities, facts = graph.num_entities, len(graph.train)
    found = next(one for one in RECIPES if entities <= one.entities and facts >= one.facts * entities)
    if graph.confidences:
        uncertain = {"model": "lim", "dim": 128, "epochs": 30}
        return Recipe("uncertain", found.entities, uncertain, "confidences are soft labels of each fact")
    return found
