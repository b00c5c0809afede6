"""Entities spread over processes: a fit, its files, ranks and answers are those of one process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
import torch
from conftest import Parts, free_port, in_group

import kgpyro
from kgpyro.data.graph import Graph
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.posterior.draws import Draws
from kgpyro.posterior.sharded import ShardedPosterior
from kgpyro.program.owners import Share
from kgpyro.program.setting import RowsOf

FIT: dict[str, Any] = {
    "model": "lim", "dim": 6, "epochs": 1, "batch_size": 16, "device": "cpu", "precision": "64", "progress": False,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {  # ten steps and more of each
    "local": {"score": "ComplEx", "prior": "normal(scale=learn)", "batch_size": 128},
    "shared": {
        "score": "DistMult", "estimator": "shared", "completeness": 0.8, "inverse": False, "unanswered": 5,
        "closed_world": "full",
    },
    "categorical": {"score": "CP", "likelihood": "categorical", "optimizer": "adam"},
    "sampled": {"score": "ComplEx", "negatives": 3, "prior": "normal(scale=learn_per_dim)"},
    "sampled, adam": {"score": "DistMult", "negatives": 2, "optimizer": "adam", "guide": "point"},
    "point": {"score": "DistMult", "guide": "point", "likelihood": "categorical", "early_stopping": 1},
}  # fmt: skip
PROCESSES = {case: [1, 2, 4] if case in ("local", "sampled") else [1, 2] for case in CASES}
QUERY = {"relation": "exports3", "head": "usa"}


def fit_all(graph: Graph, folder: Path, processes: int) -> None:
    rank = os.environ.get("RANK", "0")
    for name, options in CASES.items():
        if processes not in PROCESSES[name]:
            continue
        out = folder / f"{name} {processes}"
        posterior = kgpyro.fit(graph, **FIT | options, shard=True, devices=processes, out=out)
        posterior.log.drop(columns="seconds").to_csv(folder / f"{name} {processes} {rank}.csv")
        assert (int(rank) == 0) == bool(posterior.metrics)
        shards = sorted(out.glob("posterior-*"))
        assert len(shards) == (0 if processes == 1 else processes)
        ask(out, folder / f"asked {name} {processes} {rank}")


def ask(run: Path, folder: Path) -> None:
    """What a posterior that is spread says of itself."""
    posterior = kgpyro.load(run, shard=True)
    folder.mkdir()
    posterior.evaluate("valid").to_csv(folder / "evaluate.csv")
    posterior.evaluate("test", per_relation=True).to_csv(folder / "per relation.csv")
    if not posterior.kg.categorical:
        for name, table in answers_of(posterior).items():
            table.to_csv(folder / f"{name}.csv")


def answers_of(posterior: kgpyro.Posterior) -> dict[str, pd.DataFrame]:
    facts = posterior.graph.test[:7]
    queries = posterior.graph.to_dataframe()[["head", "relation", "tail"]][:3].assign(tail=None)
    return {
        "facts": posterior.facts(facts, draws=40),
        "predict": posterior.predict(**QUERY, top=3, draws=40, new=True),
        "relations": posterior.predict(head="usa", tail="uk", top=2, draws=40),
        "answers": posterior.answers(queries, top=5, draws=40),
    }


@pytest.fixture(scope="module")
def small(nations: Graph) -> Graph:
    return replace(nations, train=nations.train[::12], valid=nations.valid[:20], test=nations.test[:30])


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-7, check_dtype=False)


def test_a_spread_fit_is_that_of_one_process(small: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, logs, bound and ranks after ten steps and more; and what it says, in every process, when loaded."""
    fit_all(small, tmp_path, 1)
    for processes in (2, 4):
        in_group(fit_all, processes, small, tmp_path, processes)
    monkeypatch.setattr(Draws, "kept", 0)  # as on a large graph
    for case in CASES:
        hold_parameters_and_logs(tmp_path, case)
        hold_what_it_says(tmp_path, case)


def hold_parameters_and_logs(fits: Path, case: str) -> None:
    one, *others = (kgpyro.load(fits / f"{case} {n}") for n in PROCESSES[case])
    for number, other in zip(PROCESSES[case][1:], others, strict=True):
        for part, module in one.modules().items():
            expected = module.state_dict()
            for key, value in other.modules()[part].state_dict().items():
                torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
        for rank in range(number):
            log = pd.read_csv(fits / f"{case} {number} {rank}.csv", index_col=0)
            same(log, one.log.drop(columns="seconds"))
        for key in ("elbo_per_fact", "kl_per_latent", "test"):
            found, wanted = (pd.json_normalize({key: p.metrics[key]}) for p in (other, one))
            same(found, wanted)


def hold_what_it_says(fits: Path, case: str) -> None:
    whole = kgpyro.load(fits / f"{case} {PROCESSES[case][-1]}")
    said = {"evaluate": whole.evaluate("valid"), "per relation": whole.evaluate("test", per_relation=True)}
    said |= answers_of(whole) if not whole.kg.categorical else {}
    for processes in PROCESSES[case]:
        for rank in range(processes):
            for name, expected in said.items():
                path = fits / f"asked {case} {processes} {rank}" / f"{name}.csv"
                index = [0, 1] if name in ("evaluate", "per relation") else 0
                found = pd.read_csv(path, index_col=index, keep_default_na=False)
                same(found, expected)


@pytest.mark.parametrize(
    "option",
    [
        {"model": "lfm"}, {"guide": "mixture"}, {"guide": "flow"}, {"inference": "nuts"}, {"estimator": "plain"},
        {"relation_weight": 1.0}, {"kl_frequency": 0.5}, {"score": "TransE-L2"}, {"prior": "laplace"},
        {"prior": "normal(scale=half_cauchy(1))"}, {"entity_prior": "normal(scale=learn_per_symbol)"}, {"devices": 99},
    ],
    ids=str,
)  # fmt: skip
def test_what_sharding_does_not_go_with(small: Graph, option: dict[str, Any]) -> None:
    with pytest.raises(kgpyro.InputError, match="`shard`"):
        kgpyro.fit(small, **FIT | option, shard=True)


def test_what_needs_the_whole_table_is_refused(small: Graph) -> None:
    posterior = kgpyro.fit(small, **FIT, shard=True)
    assert type(posterior) is ShardedPosterior
    for name in ("embeddings", "to_arviz", "update", "predict_set", "discover", "probabilities", "calibration"):
        with pytest.raises(kgpyro.InputError, match=f"`{name}` needs the whole table"):
            getattr(posterior, name)()
    with pytest.raises(kgpyro.InputError, match="whole table"):
        posterior.predict(**QUERY, top=None)
    with pytest.raises(kgpyro.InputError, match="pickled"):
        pickle.dumps(posterior)


@pytest.mark.parametrize("guide", ["point", "lookup"])
@pytest.mark.parametrize("negatives", ["all", 4])
@pytest.mark.parametrize("estimator", ["local", "shared"])
@pytest.mark.usefixtures("double")
def test_one_share_of_all_is_no_share(small: Graph, guide: str, negatives: int | str, estimator: str) -> None:
    """The bound and its gradient, at latents that are all but certain, are those without a share."""
    found = []
    for share in (None, Share(small.num_entities, 0, 1)):
        torch.manual_seed(0)
        parts = Parts(small, guide=guide, score="ComplEx", **({} if negatives == "all" else {"negatives": negatives}))
        modules = torch.nn.ModuleList([parts.kg, parts.guide])
        for name, parameter in modules.named_parameters():
            parameter.data.fill_(-20.0) if "log_scale" in name else None
        parts.kg.share = parts.batches.share = share
        for table in parts.guide.modules():
            if hasattr(table, "rows_of"):
                rows = RowsOf(False, share)
                table.rows_of = {"entity": rows, "relation": RowsOf(False)} if guide == "point" else rows
        if guide == "lookup":
            parts.guide.relation.rows_of = RowsOf(False)
        index = torch.arange(0, len(parts.batches), 3)
        row, negative = torch.arange(len(index)).repeat_interleave(4), torch.arange(4 * len(index)) % 3
        parts.batches.draw_negatives = lambda *_, given=(row, negative): given
        elbo = WeightedELBO(estimator=estimator)
        loss = elbo.differentiable_loss(parts.model, parts.guide, parts.kg, parts.batches(index))
        gradients = torch.autograd.grad(loss, [p for n, p in modules.named_parameters()], allow_unused=True)
        found.append([loss, *(g.to_dense() for g in gradients if g is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_noise_hangs_on_the_row() -> None:
    """It is standard normal, and any share of the rows, in any order, has its own part of it."""
    like = torch.empty(1000, 64, dtype=torch.double)
    torch.manual_seed(0)
    whole = Share(1000, 0, 1).noise(...)(like)
    assert scipy.stats.kstest(whole.flatten(), "norm").pvalue > 0.01
    assert float(torch.corrcoef(whole.T).fill_diagonal_(0).abs().max()) < 0.15
    ids = torch.randperm(1000)[:50]
    for share, rows in ((Share(1000, 1, 3), ...), (Share(1000, 2, 3), ids)):
        torch.manual_seed(0)
        expected = whole[share.first : share.last] if rows is ... else whole[ids]
        draw = share.noise(rows)
        blocks = [draw(like[: len(expected) // 2]), draw(like[: len(expected) - len(expected) // 2])]
        torch.testing.assert_close(torch.cat(blocks), expected)
    torch.manual_seed(0)
    table = Share(1000, 0, 1).start(1000, 64, like)
    assert float(table.abs().max()) == pytest.approx((6 / 1064) ** 0.5, rel=0.01)


def test_a_command_in_two_processes(nations: Graph, tmp_path: Path) -> None:
    """Two processes of torchrun read the run of one, and print once; docs/speed.md has the other commands."""
    run = tmp_path / "run"
    kgpyro.fit(nations, **FIT, shard=True, out=run)
    options = f"--nproc-per-node 2 --master-port {free_port()} -m kgpyro.predict {run} --shard --head usa"
    asked = [sys.executable, "-m", "torch.distributed.run", *options.split(), "--relation", "treaties"]
    done = subprocess.run(asked, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(usa, treaties, ?)") == 1


def fit_and_weigh(graph: Graph, folder: Path) -> None:
    """The largest message, in numbers, of a fit that is saved and evaluated."""
    sizes = [0]
    for name in ("sum", "gathered", "exchange"):
        plain = getattr(Share, name)

        def weighed(self: Share, x: torch.Tensor, *rest: Any, plain: Any = plain) -> torch.Tensor:
            found = plain(self, x, *rest)
            sizes.append(max(x.numel(), found.numel()))
            return found

        setattr(Share, name, weighed)
    for number, negatives in enumerate(("all", 2)):
        options = FIT | {"dim": 16, "batch_size": 8, "negatives": negatives, "closed_world": "local"}
        kgpyro.fit(graph, **options, shard=True, devices=2, out=folder / f"run {number}")
    (folder / f"largest {os.environ['RANK']}").write_text(str(max(sizes)))


def test_no_table_is_gathered(tmp_path: Path) -> None:
    names = [[f"e{i}", "r", f"e{(7 * i + 1) % 4000}"] for i in range(4000)]
    graph = Graph.from_triples("wide", names, names[:1], names[:1])
    graph = replace(graph, train=graph.train[:40])
    in_group(fit_and_weigh, 2, graph, tmp_path)
    for rank in range(2):
        assert int((tmp_path / f"largest {rank}").read_text()) < 4000 * 16 / 8
