"""The model that is fitted predicts: models that are not LIM-shaped against independent computations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import own_models
import pytest
import torch
from conftest import Parts
from torch import Tensor

import kgpyro
from kgpyro import Graph, InputError, Posterior
from kgpyro.inference.elbo import WeightedELBO

OPTIONS = {"dim": 4, "epochs": 6, "progress": False, "score": "ComplEx", "batch_size": 16}


def fitted(graph: Graph, model: str | Callable, **options: object) -> Posterior:
    return kgpyro.fit(graph, model=model, **{**OPTIONS, **options})  # type: ignore[arg-type]


def complex_score(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    h, r, t = (torch.complex(*x.chunk(2, -1)) for x in (h, r, t))
    return (h * r * t.conj()).real.sum(-1)


def by_hand(name: str, values: dict[str, Tensor], factor: Tensor, facts: Tensor, num_relations: int) -> Tensor:
    """The log-odds of facts ``(n, 3)`` by the model's formula, mean of both readings, in one draw of its latents."""
    h, r, t = facts.unbind(1)
    e, w = values["things"], values["links"]
    change = {"negated": -1.0, "tempered": 1 / values.get("temperature", torch.ones(())), "with_parameter": factor}
    w = w * change.get(name, 1.0)
    scores = (complex_score(e[h], w[r], e[t]) + complex_score(e[t], w[r + num_relations], e[h])) / 2
    bias = values["bias"][h] + values["bias"][t] if name == "biased" else 0.0
    return scores + values["intercept"][r] + bias


@pytest.mark.parametrize("name", ["negated", "tempered", "biased", "by_index_select", "with_parameter"])
def test_predictions_are_of_the_model(tiny: Graph, name: str, tmp_path: Path) -> None:
    posterior = fitted(tiny, f"own_models:{name}", out=tmp_path / "run")
    assert posterior.form is None, "these models have no closed form"
    facts = torch.tensor([[0, 0, 1], [3, 1, 0], [1, 0, 1], [4, 1, 2]])
    factor = torch.ones(())
    if name == "with_parameter":
        (free,) = posterior.program.parameters.made.values()
        factor = free.detach().exp()
        assert float(factor) != pytest.approx(0.5), "pyro.param was not trained"
    numbers = posterior.numbers(8, 0)
    draws = [by_hand(name, posterior.joint(n), factor, facts, tiny.num_relations) for n in numbers]
    expected = torch.stack(draws).sigmoid().mean(0)
    found = posterior.facts(facts, draws=8)["probability"].to_numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    (h, r, t) = tiny.names(facts[1:2])[0]
    tails = posterior.predict(head=h, relation=r, top=None, draws=8).set_index("tail")["probability"]
    heads = posterior.predict(tail=t, relation=r, top=None, draws=8).set_index("head")["probability"]
    np.testing.assert_allclose([tails[t], heads[h]], found[1], rtol=1e-5)
    again = kgpyro.load(tmp_path / "run", model=f"own_models:{name}")
    np.testing.assert_array_equal(again.facts(facts, draws=8)["probability"], found)
    again_ranks, ranks = again.ranks("test"), posterior.ranks("test")
    assert again_ranks.equals(ranks)
    with pytest.raises(InputError, match="name it again"):
        kgpyro.load(tmp_path / "run")


def test_a_model_with_negated_relations_ranks_as_well(nations: Graph) -> None:
    options = {"dim": 100, "epochs": 40, "progress": False}
    mine, lim = (kgpyro.fit(nations, model=m, **options) for m in ("own_models:negated", "lim"))  # type: ignore[arg-type]
    here, there = (p.evaluate(by="probability", draws=40)["mrr"].iloc[0] for p in (mine, lim))
    assert here == pytest.approx(there, abs=0.03)


@pytest.mark.parametrize("name", ["in_its_own_plate", "in_no_plate"])
def test_the_bound_is_right_whatever_the_plates(tiny: Graph, name: str) -> None:
    parts, lim = Parts(tiny, f"own_models:{name}"), Parts(tiny)
    renamed = {k: v for k, v in lim.guide.state_dict().items() if k in parts.guide.state_dict()}
    parts.guide.load_state_dict(parts.guide.state_dict() | renamed)
    batch = lim.batches(torch.tensor([0, 3, 4]))
    found = []
    for each in (parts, lim):
        torch.manual_seed(3)
        elbo = WeightedELBO(estimator="plain", parameters=each.program.parameters)
        found.append(elbo.loss(each.model, each.guide, each.kg, batch))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_likelihood_of_one_event_is_refused(tiny: Graph) -> None:
    with pytest.raises(InputError, match="does not tell its facts apart"):
        fitted(tiny, own_models.as_one_event)


def test_an_exception_surfaces_at_once(tiny: Graph) -> None:
    calls = []

    def model(kg, batch):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("this model is broken")
        own_models.negated(kg, batch)

    with pytest.raises(RuntimeError, match="this model is broken"):
        fitted(tiny, model)
    assert len(calls) == 4
    with pytest.raises(RuntimeError, match="this model is broken"):
        fitted(tiny, own_models.raising)


def test_one_nan_changes_nothing_later(tiny: Graph) -> None:
    """A step whose likelihood is NaN is left out; the next ones are those of the same estimator."""
    parts = Parts(tiny, score="ComplEx")
    elbo = WeightedELBO(estimator="local", parameters=parts.program.parameters)
    batch = parts.batches(torch.arange(len(parts.batches)))
    torch.manual_seed(0)
    before = elbo.loss(parts.model, parts.guide, parts.kg, batch)
    with torch.no_grad():
        kept = parts.guide.entity.loc.clone()  # type: ignore[union-attr]
        parts.guide.entity.loc.fill_(torch.nan)  # type: ignore[union-attr]
    assert np.isnan(elbo.loss(parts.model, parts.guide, parts.kg, batch))
    with torch.no_grad():
        parts.guide.entity.loc.copy_(kept)  # type: ignore[union-attr]
    torch.manual_seed(0)
    assert elbo.loss(parts.model, parts.guide, parts.kg, batch) == before


def test_a_point_estimate_knows_no_doubt(tiny: Graph) -> None:
    posterior = fitted(tiny, "lim", guide="point")
    facts = posterior.facts(tiny.names(tiny.train))
    assert (facts["std"] == 0).all() and (facts["epistemic"] < 1e-6).all()
    np.testing.assert_allclose(facts["low"], facts["high"])


def test_intervals_widen_where_the_intercept_is_unknown(tiny: Graph) -> None:
    posterior = fitted(tiny, "lim")
    names = tiny.names(tiny.train)
    with torch.no_grad():
        field = posterior.guide.field("intercept")  # type: ignore[union-attr]
        field.log_scale.fill_(-9.0)
        posterior.forget()
        known = posterior.facts(names)
        field.log_scale.fill_(0.0)
        posterior.forget()
        unknown = posterior.facts(names)
    assert ((unknown["high"] - unknown["low"]) > (known["high"] - known["low"])).all()


def test_order_and_top_change_nothing(nations: Graph) -> None:
    posterior = kgpyro.fit(nations, model="lim", dim=16, epochs=5, progress=False)
    names = nations.names(nations.test[:30])
    facts = posterior.facts(names)
    turned = posterior.facts(names[::-1]).iloc[::-1].reset_index(drop=True)
    assert facts.equals(turned)
    head, relation, tail = names[0]
    every, ten = (posterior.predict(head=head, relation=relation, top=top) for top in (None, 10))
    assert every.head(10).equals(ten)
    single = every.set_index("tail").loc[tail, "probability"]
    assert single == pytest.approx(facts["probability"][0], rel=1e-6)
    assert (facts["error"] > 0).all()
