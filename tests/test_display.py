"""Tables in and out, and what objects look like in a notebook and a terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import kgpyro
from kgpyro import Graph, InputError
from kgpyro.display import rounded


def quick(graph: Graph, **options: object) -> kgpyro.Posterior:
    return kgpyro.fit(graph, **({"model": "lim", "epochs": 2, "dim": 4, "progress": False} | options))


def test_a_graph_goes_through_a_table_and_back(tiny: Graph) -> None:
    frame = tiny.to_dataframe()
    assert list(frame.columns) == ["head", "relation", "tail", "split"]
    assert frame["split"].value_counts().to_dict() == {"train": 7, "valid": 1, "test": 2}
    assert Graph.from_dataframe(frame.sample(frac=1, random_state=0)).checksum != ""
    again = Graph.from_dataframe(frame, name="tiny")
    assert again.entities == tiny.entities and again.checksum == tiny.checksum


def test_a_graph_goes_through_a_folder_and_back(tiny: Graph, tmp_path: Path) -> None:
    tiny.to_folder(tmp_path / "g")
    assert kgpyro.load_graph(tmp_path / "g").checksum == tiny.checksum


def test_a_random_holdout_leaves_every_name_in_train() -> None:
    whole = kgpyro.load_graph("umls").to_dataframe().drop(columns="split")
    graph, again, other = (Graph.from_dataframe(whole, holdout=0.05, seed=seed) for seed in (0, 0, 1))
    assert [len(graph.valid), len(graph.test)] == pytest.approx([0.05 * len(whole)] * 2, abs=1)
    assert len(graph.train) + len(graph.valid) + len(graph.test) == len(whole)
    assert bool(graph.seen.all()) and set(graph.train[:, 1].tolist()) == set(range(graph.num_relations))
    assert graph.checksum == again.checksum != other.checksum
    assert graph.leakage == {"valid": 0, "test": 0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.rename(columns={"tail": "third"}), "no column 'tail'; it has 'head, relation, third, split'"),
        (lambda f: f.assign(split="later"), "column 'split' has 'later'"),
        (lambda f: f.assign(tail=[None, *f["tail"][1:]]), "the table, row 0: no tail"),
        (lambda f: f.assign(relation=["", *f["relation"][1:]]), "the table, row 0: an empty name"),
    ],
)
def test_bad_tables_are_refused(tiny: Graph, change: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Graph.from_dataframe(change(tiny.to_dataframe()))  # type: ignore[operator]


def test_folders_cannot_hold_everything(tiny: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tab or line break"):
        Graph.from_triples("x", [["a\tb", "r", "c"]], [], []).to_folder(tmp_path)
    tiny.to_folder(tmp_path / "g")
    with pytest.raises(InputError, match=r"holds (valid|test)\.txt, which is not this graph's"):
        Graph.from_triples("x", [["a", "r", "c"]], [], []).to_folder(tmp_path / "g")


def test_a_graph_without_held_out_triples_is_fitted(tiny: Graph, tmp_path: Path) -> None:
    frame = tiny.to_dataframe()
    graph = Graph.from_dataframe(frame[["head", "relation", "tail"]], holdout=0)
    posterior = quick(graph, out=tmp_path / "run")
    assert not posterior.metrics.keys() & {"valid", "test"} and posterior.metrics["elbo_per_fact"] < 0
    assert kgpyro.load(tmp_path / "run").metrics == posterior.metrics
    assert "ELBO" in repr(posterior.metrics)
    with pytest.raises(InputError, match="early_stopping"):
        quick(graph, early_stopping=2)


def test_metrics_print_as_a_table(tiny: Graph) -> None:
    posterior = quick(tiny)
    text, m = repr(posterior.metrics), posterior.metrics
    assert f"{m['elbo_per_fact']:.3f} ± " in text and f"{m['test']['head']['realistic']['mrr']:.3f}" in text
    assert m.table.loc[("valid", "both, raw"), "mrr"] == m["valid"]["raw"]["realistic"]["mrr"]
    assert all(f"WARNING: {warning}" in text for warning in m["warnings"])


def test_objects_render_as_html_and_escape_it(tiny: Graph) -> None:
    graph = Graph.from_triples("<i>", [["<b>", "r&s", "c"]] * 2, [], [])
    html = graph._repr_html_()
    assert "<b>&lt;b" not in html.replace("<b>Graph", "") and "&lt;i&gt;" in html and "r&amp;s" in html
    assert repr(graph) == "Graph('<i>': 2 entities, 1 relations; 1 train, 0 valid, 0 test triples)"
    posterior = quick(tiny, prior="normal(scale=learn)")
    html = posterior._repr_html_()
    assert f"{float(posterior.prior_parameters()['mean'][0]):.3f}" in html and "normal(scale=learn)" in html
    assert f"{posterior.metrics['test']['realistic']['mrr']:.3f}" in html
    html = kgpyro.resolve_prior("laplace(scale=per_dim(half_cauchy(1)))")._repr_html_()
    assert "prior half_cauchy" in html and "one per dimension" in html
    assert "standard deviation 2" in kgpyro.resolve_prior("normal(scale=2)")._repr_html_()
    assert torch.is_tensor(graph.train) and isinstance(graph.to_dataframe(), pd.DataFrame)


def test_small_numbers_keep_their_digits() -> None:
    table = pd.DataFrame(
        {"ece": [0.0016, 0.0002], "mrr": [0.5, 0.0002], "mr": [0.01, 2.0], "none": [0.0, float("nan")]}
    )
    assert rounded(table).to_numpy().tolist() == [
        ["0.00160", "0.500", "0.0", "0.000"],
        ["0.00020", "0.000", "2.0", "-"],
    ]
