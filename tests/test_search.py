"""A search: the same whether interrupted or not, by validation alone, and what its folder is good for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kgpyro
from kgpyro.commands import main
from kgpyro.errors import InputError
from kgpyro.inference import search as searching

QUICK: dict[str, Any] = {"model": "lim", "epochs": 1, "dim": 4, "batch_size": 512}
pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    folder = tmp_path_factory.mktemp("search")
    return kgpyro.search("nations", 3, out=folder, progress=False, **QUICK), folder


def measured(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def test_the_table_and_its_files(found: tuple[pd.DataFrame, Path]) -> None:
    table, folder = found
    assert sorted(table["trial"]) == [0, 1, 2]
    assert table["valid_mrr"].is_monotonic_decreasing
    assert (table["dim"] == 4).all() and (table["batch_size"] == 512).all()
    assert table["lr"].nunique() == table["prior"].nunique() == 3
    pd.testing.assert_frame_equal(pd.read_csv(folder / "trials.csv"), table)
    assert main(["fit", "--config", str(folder / "best.yaml"), "--no-progress", "--out", str(folder / "best")]) == 0
    posterior = kgpyro.load(folder / "best")
    for split in ("valid", "test"):
        assert posterior.metrics[split]["realistic"]["mrr"] == table[f"{split}_mrr"].iloc[0]
    assert posterior.metrics["elbo_per_fact"] == table["elbo_per_fact"].iloc[0]


def test_a_search_goes_on(
    found: tuple[pd.DataFrame, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After one trial, an interruption within the second, and a kill within it."""
    fit = searching.fit
    kgpyro.search("nations", 1, out=tmp_path, progress=False, **QUICK)

    def interrupted(*args: Any, **options: Any) -> Any:
        posterior = fit(*args, **options)
        posterior.metrics["warnings"].append("The fit was interrupted after 1 of 7 steps.")
        return posterior

    def killed(*args: Any, **options: Any) -> Any:
        raise MemoryError

    words = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    monkeypatch.setattr(searching, "fit", interrupted)
    assert main(["search", "nations", "--trials", "3", "--out", str(tmp_path), *words]) == 130
    monkeypatch.setattr(searching, "fit", killed)
    with pytest.raises(MemoryError):
        kgpyro.search("nations", 3, out=tmp_path, progress=False, **QUICK)
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 1
    monkeypatch.setattr(searching, "fit", fit)
    assert main(["search", "nations", "--trials", "3", "--out", str(tmp_path), "--no-progress", *words]) == 0
    printed = capsys.readouterr().out
    assert "3 trials, best first" in printed
    assert f"kgpyro fit --config {tmp_path / 'best.yaml'}" in printed
    assert max(map(len, printed.split("saved")[0].splitlines())) <= 100
    pd.testing.assert_frame_equal(measured(pd.read_csv(tmp_path / "trials.csv")), measured(found[0]))


def test_a_space_of_ones_own_and_fits_that_fail() -> None:
    space = {"dim": [4, 7]}
    table = kgpyro.search(
        "nations", 6, space=lambda trial: {"dim": trial.suggest_categorical("dim", space["dim"])}, progress=False,
        model="lim", epochs=1,
    )  # fmt: skip
    failed = table["dim"] == 7
    assert failed.any() and not failed.all()
    assert table.loc[failed, "valid_mrr"].isna().all() and table.loc[~failed, "valid_mrr"].notna().all()
    assert table.loc[failed, "failure"].str.contains("`dim` must be even").all()
    assert not failed.iloc[0]


def test_what_cannot_be_searched(found: tuple[pd.DataFrame, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = found[1]
    for graph, options, words in (
        ("nations", {"out": folder, "epochs": 2}, "holds another search"),
        ("kinships", {"out": folder, **QUICK}, "holds another search"),
        ("nations", {"trials": 0}, "`trials` must be a positive number"),
        ("nations", {"modle": "lim"}, "a fit has no option 'modle'"),
        ("nations", {"trials": 2, "epochs": 1, "space": lambda _: {"dim": 7}}, "all 2 fits failed; .*must be even"),
    ):
        with pytest.raises(InputError, match=words):
            kgpyro.search(graph, progress=False, **options)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'kgpyro\[search\]'"):
        kgpyro.search("nations")


def test_a_graph_without_validation_triples() -> None:
    facts = [("a", "r", "b"), ("b", "r", "c")]
    graph = kgpyro.Graph.from_triples("tiny", facts, [], facts[:1])
    with pytest.raises(InputError, match="chooses by validation triples, and graph 'tiny' has none"):
        kgpyro.search(graph)
