"""The training loop: schedules, early stopping, a user's own parts, seeds, and fits that leave each other alone."""

from __future__ import annotations

import inspect
import logging
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import own_code
import pyro
import pyro.distributions as dist
import pytest
import torch

import kgpyro
from kgpyro import Options
from kgpyro.data import graph
from kgpyro.data.graph import Graph
from kgpyro.errors import InputError
from kgpyro.inference.training import KLSchedule, quiet

QUICK: dict[str, Any] = {"dim": 4, "epochs": 3, "batch_size": 4, "progress": False, "device": "cpu"}


def quick_fit(graph: Graph, **options: Any) -> kgpyro.Posterior:
    return kgpyro.fit(graph, **(QUICK | options))


def test_constant_schedule() -> None:
    schedule = KLSchedule("constant", 0.3, 0.5, 10, 4)
    assert {schedule(step) for step in range(40)} == {0.3}
    assert schedule.reached(0)


def test_warmup_schedule() -> None:
    schedule = KLSchedule("warmup", 0.5, 0.25, 10, 8)
    assert [schedule(step) for step in (0, 10, 20, 79)] == pytest.approx([0.0, 0.25, 0.5, 0.5])
    assert not schedule.reached(19)
    assert schedule.reached(20)


@pytest.mark.parametrize("batches", [1, 3, 2000])
def test_compression_schedule(batches: int) -> None:
    """Blundell et al. 2015: weights 2^(M-i) / (2^M - 1), here times M so that an epoch's mean is the target."""
    schedule = KLSchedule("compression", 0.5, 0.25, batches, 2)
    weights = [schedule(step) for step in range(2 * batches)]
    assert weights[:batches] == weights[batches:]
    assert sum(weights[:batches]) / batches == pytest.approx(0.5)
    if batches == 3:
        assert weights[:3] == pytest.approx([0.5 * 3 * 4 / 7, 0.5 * 3 * 2 / 7, 0.5 * 3 * 1 / 7])


@pytest.mark.parametrize("model", ["lim", "lfm"])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("negatives", ["all", 2])
@pytest.mark.parametrize("kl_schedule", ["warmup", "constant", "compression"])
def test_a_fit(tiny: Graph, model: str, inverse: bool, negatives: Any, kl_schedule: Any) -> None:
    posterior = quick_fit(tiny, model=model, inverse=inverse, negatives=negatives, kl_schedule=kl_schedule)
    assert 0 < posterior.metrics["test"]["realistic"]["mrr"] <= 1
    assert posterior.metrics["elbo_per_fact"] < 0
    assert posterior.metrics["elbo_error"] > 0
    sites = {"lim": {"entities", "relations"}, "lfm": {"head", "relation", "tail"}}[model]
    assert posterior.metrics["kl_per_latent"].keys() == sites
    assert posterior.log["epoch"].tolist() == [1, 2, 3]
    assert posterior.config["estimator"] == "local"
    assert posterior.config["kl_weight"] == (
        1.0 if model == "lim" else 2 / (20 if negatives == "all" else len(tiny.training_queries))
    )


@pytest.mark.parametrize("estimator", ["shared", "plain"])
def test_other_estimators(tiny: Graph, estimator: Any) -> None:
    assert quick_fit(tiny, model="lim", estimator=estimator).metrics["elbo_per_fact"] < 0


def test_training_lowers_the_loss(tiny: Graph) -> None:
    log = quick_fit(tiny, model="lim", epochs=60, kl_schedule="constant").log
    assert log["loss"].iloc[-5:].mean() < log["loss"].iloc[:5].mean()


def test_the_objective_is_named(tiny: Graph) -> None:
    assert quick_fit(tiny, model="lim").metrics["objective"].startswith("ELBO, exact over all candidates")
    sampled = quick_fit(tiny, negatives=2, kl_weight=0.5).metrics["objective"]
    assert sampled.startswith("ELBO with KL weight 0.5, Bernoulli-sampled")
    plain = quick_fit(tiny, negatives=2, negative_weight=1.0).metrics["objective"]
    assert "NOT the ELBO" in plain


@pytest.mark.parametrize(("worse", "warned"), [(-2.0, True), (2.0, False)])
def test_a_fit_that_gets_worse_says_so(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, worse: float, warned: bool
) -> None:
    monkeypatch.setattr("kgpyro.inference.verdict.WORSE", worse)
    posterior = quick_fit(tiny, model="lim", epochs=20)
    halfway = posterior.log.dropna(subset="valid_mrr")
    assert halfway["epoch"].tolist() == [10]
    told = [w for w in posterior.metrics["warnings"] if w.startswith("Validation MRR fell from")]
    assert bool(told) == warned
    assert all(f"{halfway['valid_mrr'].iloc[0]:.3f} after 10 epochs" in one for one in told)


def test_relation_questions_are_no_part_of_the_bound(tiny: Graph) -> None:
    asked = quick_fit(tiny, model="lim", relation_weight=0.5, epochs=1, lr=1e-12)
    plain = quick_fit(tiny, model="lim", epochs=1, lr=1e-12)
    assert asked.metrics["elbo_per_fact"] == pytest.approx(plain.metrics["elbo_per_fact"], rel=1e-5)
    assert asked.log["log_likelihood"].iloc[0] < plain.log["log_likelihood"].iloc[0] - 0.1
    assert "0.5 times which relation holds" in asked.metrics["objective"]
    with pytest.raises(InputError, match="does not ask for relations"):
        quick_fit(tiny, model="lfm", relation_weight=0.5)
    with pytest.raises(InputError, match="leave `relation_weight` at 0"):
        quick_fit(tiny, model="lim", relation_weight=0.5, inference="nuts")


def test_a_full_closed_world(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = quick_fit(tiny, model="lim", closed_world="full")
    assert "over all candidates" in posterior.metrics["objective"]
    assert (
        kgpyro.psis_khat(posterior, draws=100).log_ratios.mean()
        < kgpyro.psis_khat(quick_fit(tiny, model="lim", closed_world="local"), draws=100).log_ratios.mean()
    )
    monkeypatch.setattr(graph, "MOST_QUERIES", 19)
    with pytest.raises(InputError, match=r"^`closed_world` full asks all 20 queries of graph 'tiny', and 19 are the"):
        quick_fit(tiny, closed_world="full")


def test_early_stopping_keeps_the_best_state(tiny: Graph) -> None:
    posterior = quick_fit(tiny, model="lim", epochs=60, early_stopping=6, validate_every=2, warmup=0.1)
    validated = posterior.log.dropna(subset="valid_mrr")
    best = validated["valid_mrr"].max()
    assert len(posterior.log) < 60
    assert posterior.log["epoch"].iloc[-1] - validated["epoch"][validated["valid_mrr"].idxmax()] >= 6
    assert posterior.metrics["valid"]["realistic"]["mrr"] == pytest.approx(best)


def test_no_early_stop_during_the_warmup(tiny: Graph) -> None:
    posterior = quick_fit(tiny, model="lim", epochs=20, early_stopping=1, validate_every=1, warmup=0.5)
    assert posterior.log["valid_mrr"].isna().iloc[:9].all()
    assert posterior.metrics["warnings"] == [] or "before the KL weight" not in posterior.metrics["warnings"][0]


def test_a_collapsed_posterior_is_said_to_be_collapsed(tiny: Graph) -> None:
    posterior = quick_fit(tiny, model="lfm", kl_weight=1.0, epochs=150, kl_schedule="constant")
    assert any("collapsed to the prior" in warning for warning in posterior.metrics["warnings"])


def test_same_seed_same_metrics_and_fits_do_not_interfere(tiny: Graph) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = quick_fit(tiny, seed=3)
    assert torch.equal(torch.rand(3), expected), "a fit moved the caller's random state"
    scores = first.mean_scores(torch.tensor([0]), torch.tensor([0]))
    other = quick_fit(tiny, seed=4, model="lim")
    again = quick_fit(tiny, seed=3)
    assert again.metrics == first.metrics
    assert other.metrics != first.metrics
    assert torch.equal(first.mean_scores(torch.tensor([0]), torch.tensor([0])), scores)
    assert not list(pyro.get_param_store())


def test_separate_priors(tiny: Graph) -> None:
    posterior = quick_fit(tiny, model="lim", entity_prior="gamma", relation_prior=dist.Laplace(0.0, 0.5))
    assert posterior.config["relation_prior"] == "laplace(loc=0.0, scale=0.5)"
    assert type(posterior.guide.posterior("entity", ...).base_dist).__name__ == "LogNormal"
    assert type(posterior.guide.posterior("relation", ...).base_dist).__name__ == "Normal"


@pytest.mark.parametrize("precision", ["64", "bf16"])
def test_precisions(tiny: Graph, tmp_path: Path, precision: Any) -> None:
    posterior = quick_fit(tiny, precision=precision, out=tmp_path / "run")
    expected = torch.float64 if precision == "64" else torch.float32
    assert posterior.dtype == expected
    assert kgpyro.load(tmp_path / "run").dtype == expected


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_fp32_where_the_processor_lacks_it(
    tiny: Graph, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr("kgpyro.inference.training.has_bf16", lambda: supported)
    mixed, single = (quick_fit(tiny, device="cpu", precision=precision) for precision in ("bf16", "32"))
    assert torch.equal(mixed.guide.entity.loc, single.guide.entity.loc) == (not supported)
    assert mixed.provenance["precision"] == ("bf16" if supported else "32")


def test_a_users_model_is_the_lim_written_out(tiny: Graph) -> None:
    options = {"kl_schedule": "constant", "precision": "64"}
    mine = quick_fit(tiny, model="own_code:shared_scale", **options)
    lim = quick_fit(tiny, model="lim", **options)
    assert mine.config["kl_weight"] == 1.0
    assert mine.metrics["elbo_per_fact"] == pytest.approx(lim.metrics["elbo_per_fact"], abs=1.0)


def test_a_users_parts(tiny: Graph, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick_fit(tiny, model=own_code.Tempered, guide=own_code.OneScale, prior="own_code:half_laplace", out=run)
    with pytest.raises(InputError, match="your own"):
        kgpyro.load(run)
    own = {"model": own_code.Tempered, "prior": "own_code:half_laplace", "guide": own_code.OneScale}
    again = kgpyro.load(run, **own)
    assert isinstance(again.guide, own_code.OneScale)
    assert again.config["model"] == "own_code:Tempered"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "own_code:without_data"}, "observes nothing"),
        ({"guide": "own_code:not_a_guide"}, "derive it from kgpyro.Guide"),
        ({"model": "own_code:nothing"}, "has no 'nothing'"),
        ({"model": "lda"}, "unknown model 'lda'; choose from lim, lfm"),
        ({"guide": "mlp2"}, "unknown guide 'mlp2'; did you mean 'mlp'?"),
        ({"negative_weight": 1.0}, "together with `negatives`"),
        ({"negatives": 0}, "`negatives` must be a positive"),
        ({"negatives": "some"}, "'all' or a whole number"),
        ({"lr": float("nan")}, "`lr` must be a positive"),
        ({"kl_weight": -1.0}, "`kl_weight` must be at least 0"),
        ({"warmup": 2.0}, "`warmup` is a share"),
        ({"likelihood": "poisson"}, "unknown `likelihood` 'poisson'; choose from bernoulli, categorical"),
        ({"likelihood": "categorical", "negatives": 3}, "leave out `negatives`"),
        ({"likelihood": "categorical", "completeness": 0.5}, "leave out `negatives` and `completeness`"),
        ({"likelihood": "categorical", "closed_world": "full"}, "and `closed_world`"),
        ({"closed_world": "open"}, "unknown `closed_world` 'open'; choose from local, full"),
        ({"likelihood": "categorical", "model": "own_code:shared_scale"}, "a likelihood of its own"),
        ({"completeness": 0.0}, "`completeness` is a probability above 0"),
        ({"lr_schedule": "cosine"}, "unknown `lr_schedule` 'cosine'; choose from constant, linear"),
        ({"optimizer": "sdg"}, "unknown `optimizer` 'sdg'; did you mean 'sgd'?"),
        ({"estimator": "exact"}, "unknown `estimator`"),
        ({"precision": "8"}, "unknown `precision`"),
        ({"device": "gpu"}, "`device` gpu"),
        ({"device": "tpu"}, "`device` must be auto, cpu, gpu, mps or a GPU by number such as cuda:0; got tpu"),
        ({"device": "cuda:1"}, "`device` cuda:1"),
        ({"dim": "50"}, "`dim` must be a whole number; got '50'"),
        ({"dim": 7.5}, "`dim` must be a whole number; got 7.5"),
        ({"seed": None}, "`seed` must be a whole number; got None"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"early_stopping": True}, "`early_stopping` must be a whole number; got True"),
        ({"validate_every": 0}, "`validate_every` must be a positive number"),
        ({"learning_rate": 0.1}, "no option 'learning_rate'"),
        ({"epoch": 3}, "no option 'epoch'; did you mean 'epochs'?"),
        ({"score": "CP", "dim": 5}, "even; got 5"),
    ],
)
def test_unusable_options(tiny: Graph, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        quick_fit(tiny, **options)
    assert words in str(caught.value)
    with pyro.get_param_store().scope():
        pass
    pyro.clear_param_store()


def test_a_local_object_cannot_be_saved(tiny: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="put it into a module"):
        quick_fit(tiny, prior=lambda size: dist.Normal(torch.zeros(size), 1.0).to_event(1), out=tmp_path / "run")
    posterior = quick_fit(tiny, prior=lambda size: dist.Normal(torch.zeros(size), 1.0).to_event(1))
    with pytest.raises(InputError, match="its prior is a Python object"):
        posterior.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_falls_to_zero(tiny: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, update = [], torch.optim.SGD.step

    def step(optimizer: torch.optim.SGD, closure: Any = None) -> Any:
        found = update(optimizer, closure)
        seen.append(optimizer.param_groups[0]["lr"])
        return found

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    for schedule in ("constant", "linear"):
        quick_fit(tiny, optimizer="sgd", lr=0.1, epochs=5, batch_size=100, lr_schedule=schedule)
    assert seen == pytest.approx([0.1] * 5 + [0.1, 0.08, 0.06, 0.04, 0.02])


def test_a_diverging_fit_is_stopped(tiny: Graph) -> None:
    with pytest.raises(InputError, match="not finite in 10 steps in a row"):
        quick_fit(tiny, lr=1e30, optimizer="sgd", epochs=50)


def test_options_take_what_means_the_same(tiny: Graph) -> None:
    """NumPy's numbers, 64.0, names in any case, a device of PyTorch; and an Options object, changed by names."""
    options = Options(
        dim=np.int64(4), batch_size=64.0, kl_schedule="Constant", precision=64, device=torch.device("cpu")
    )  # type: ignore[arg-type]
    assert (options.dim, options.batch_size, options.kl_schedule, options.precision) == (4, 64, "constant", "64")
    posterior = kgpyro.fit(tiny, options, epochs=np.int32(2), progress=False)
    assert (posterior.config["dim"], posterior.config["epochs"], len(posterior.log)) == (4, 2, 2)
    names = list(inspect.signature(kgpyro.fit).parameters)
    assert names[:3] == ["graph", "options", "model"] and "kl_weight" in names and "changes" not in names


def test_fits_of_several_threads_leave_lightnings_logger_as_it_was() -> None:
    logger, inside, done = logging.getLogger("lightning.pytorch"), threading.Event(), threading.Event()
    before = logger.level

    def other() -> None:
        with quiet():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(RuntimeError), quiet():
        thread.start()
        assert inside.wait(10)
        raise RuntimeError
    assert logger.level == logging.ERROR  # the other fit is under way
    done.set()
    thread.join()
    assert logger.level == before


def test_a_covariance_that_diverges_is_told_in_a_sentence(tiny: Graph) -> None:
    options: dict[str, Any] = {"model": "lim", "dim": 4, "guide": "lowrank(rank=2)", "epochs": 20, "progress": False}
    with pytest.raises(InputError, match="a covariance of the guide was not positive definite any more after step"):
        kgpyro.fit(tiny, lr=1e3, **options)


class Rows(pl.loggers.Logger):
    """Keeps what Lightning gives it."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class Count(pl.Callback):
    epochs = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs += 1


def test_loggers_and_callbacks_see_a_fit(tiny: Graph) -> None:
    logger, others, one, two = Rows(), [Rows(), Rows()], Count(), Count()
    posterior = quick_fit(tiny, epochs=3, logger=logger, callbacks=one)
    quick_fit(tiny, epochs=2, logger=others, callbacks=[one, two])
    assert [len(each.rows) for each in (logger, *others)] == [3, 2, 2] and (one.epochs, two.epochs) == (5, 2)
    assert [row["loss"] for row in logger.rows] == pytest.approx(posterior.history["loss"].tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"callbacks": print}, "`callbacks` must be of lightning.pytorch's class Callback, or a list; got <built-in"),
        ({"callbacks": [Count(), 1]}, "or a list; got 1"),
        ({"logger": "csv"}, "`logger` must be of lightning.pytorch's class Logger"),
        ({"options": {"dim": 4}}, "single options are given by name, as in fit(graph, dim=50)"),
        ({"start": "runs/first"}, "`start` is a posterior, such as kgpyro.load(folder); got 'runs/first'"),
    ],
)
def test_who_cannot_see_a_fit(tiny: Graph, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        quick_fit(tiny, **given)
    assert words in str(caught.value)
