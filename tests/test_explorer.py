"""The prior explorer without a browser: controls set, figures drawn, fits run, code that says the same."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kgpyro
from kgpyro import Graph, InputError
from kgpyro.names import STANDARD
from kgpyro.program.catalogue import parameters_of
from kgpyro.reporting.explorer import PriorExplorer


def explorer_of(graph: Graph, folder: Path) -> PriorExplorer:
    found = kgpyro.explore(graph, folder)
    found.dim.value, found.epochs.value = 4, 3
    return found


@pytest.fixture
def explorer(tiny: Graph, tmp_path: Path) -> PriorExplorer:
    return explorer_of(tiny, tmp_path / "fits")


@pytest.fixture(scope="module")
def families(tiny: Graph, tmp_path_factory: pytest.TempPathFactory) -> PriorExplorer:
    """One explorer, whose family changes from test to test."""
    found = explorer_of(tiny, tmp_path_factory.mktemp("fits"))
    found.score.value = "DistMult"
    return found


def test_the_figure_follows_the_controls(explorer: PriorExplorer) -> None:
    before, spread = bytes(explorer.image.value), explorer.predictive.coordinates["entity"].std()
    assert before.startswith(b"\x89PNG")
    explorer.prior.numbers["scale"].value = 0.1
    assert explorer.prior.text == "normal(scale=0.1)" and bytes(explorer.image.value) != before
    assert explorer.predictive.coordinates["entity"].std() == pytest.approx(0.1 * spread, rel=1e-5)
    explorer.dim.value = 400
    explorer.prior.numbers["scale"].value = 10
    assert "piles probabilities up" in explorer.message.value


def test_it_shows_what_the_function_says(explorer: PriorExplorer, tiny: Graph) -> None:
    explorer.separate.value = True
    explorer.relation_prior.family.value = "half_normal"
    shown = {"relation_prior": "half_normal", "dim": 4, "draws": 5, "facts": 200, "queries": 50}
    expected = kgpyro.prior_predictive(tiny, "normal", "ComplEx", **shown)
    assert explorer.predictive.summary.equals(expected.summary)
    assert bool((explorer.predictive.coordinates["relation"] >= 0).all())


@pytest.mark.parametrize("name", list(STANDARD))
def test_every_family_has_controls(families: PriorExplorer, name: str) -> None:
    families.prior.family.value = name
    assert families.prior.numbers.keys() == parameters_of(name).keys()
    assert kgpyro.resolve_prior(families.prior.text).text == families.prior.text == name
    assert families.predictive is not None and families.predictive.title.startswith(f"{name}, DistMult")


def test_what_cannot_be_is_said(explorer: PriorExplorer) -> None:
    explorer.score.value, explorer.dim.value = "ComplEx", 4
    explorer.prior.family.value = "uniform"
    explorer.prior.numbers["low"].value = 3.0
    assert explorer.predictive is None and "uniform" in explorer.message.value


def test_a_fit_joins_the_table_and_the_code_repeats_it(explorer: PriorExplorer, tiny: Graph) -> None:
    explorer.prior.how["scale"].value = "learn"
    assert explorer.prior.text == "normal(scale=learn(1))"
    state = torch.get_rng_state()
    posterior = asyncio.run(explorer.fit())
    assert posterior is not None and torch.equal(state, torch.get_rng_state())
    assert list(explorer.table.index) == list(explorer.fits) and posterior in explorer.fits.values()
    assert explorer.table["elbo_per_fact"].iloc[0] == posterior.metrics["elbo_per_fact"]
    assert explorer.table.index[0].startswith("normal(scale=learn(1)), ComplEx, dim 4, lim, 3 epochs, seed 0")
    names: dict[str, Any] = {"graph": tiny}
    code = explorer.code.replace("graph = graph", "graph = globals()['graph']")
    exec(code, names)
    assert names["posterior"].metrics["elbo_per_fact"] == pytest.approx(posterior.metrics["elbo_per_fact"], rel=1e-5)
    explorer.prior.how["scale"].value = "fixed"
    asyncio.run(explorer.fit())
    asyncio.run(explorer.fit())
    assert len(explorer.table) == 2 and explorer.table["elbo_per_fact"].is_monotonic_decreasing
    assert not explorer.fit_button.disabled and explorer.stop_button.disabled


def test_a_graph_without_hold_out(tiny: Graph, tmp_path: Path) -> None:
    whole = kgpyro.Graph.from_dataframe(tiny.to_dataframe().drop(columns="split"), holdout=0)
    explorer = kgpyro.explore(whole, tmp_path)
    explorer.dim.value, explorer.epochs.value = 4, 2
    assert asyncio.run(explorer.fit()) is not None
    assert list(explorer.table.columns) == ["elbo_per_fact", "parameters", "seconds"]


def test_a_refused_fit_is_told(explorer: PriorExplorer) -> None:
    explorer.dim.value = 3
    assert asyncio.run(explorer.fit()) is None
    assert "even" in explorer.message.value and explorer.table.empty


def test_stop_keeps_what_there_is(explorer: PriorExplorer) -> None:
    explorer.epochs.value = 100_000

    async def fit_and_stop() -> kgpyro.Posterior | None:
        task = asyncio.create_task(explorer.fit())
        while explorer.progress.description != "fit":
            await asyncio.sleep(0.05)
        assert await explorer.fit() is None and "A fit is running" in explorer.message.value
        explorer.stop()
        return await task

    posterior = asyncio.run(asyncio.wait_for(fit_and_stop(), 120))
    assert posterior is not None and "interrupted" in posterior.metrics["warnings"][0]
    assert len(explorer.table) == 1


def test_without_ipywidgets_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ipywidgets'] = None; import kgpyro; kgpyro.explore"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "kgpyro[jupyter]" in done.stderr.splitlines()[-1]
    with pytest.raises(InputError, match="nosuchgraph"):
        kgpyro.explore("nosuchgraph")
