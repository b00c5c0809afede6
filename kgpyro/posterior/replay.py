"""Prediction as the model has it: the model replayed on draws of its latents, and the label's distribution read off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.program.batches import Batches
from kgpyro.program.lazy import Lazy
from kgpyro.program.likelihood import AllCandidates, Answers, true_logits_of
from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting
from kgpyro.program.variational import PER_FACT, Guide, OwnParameters, frame_of, kind_of, pyro_alone
from kgpyro.randomness import seeded


@dataclass(frozen=True)
class Program:
    """A model with all that a run of it takes.

    Attributes:
        kg: the setting.
        model: the model, called with setting and batch.
        parameters: what it keeps by ``pyro.param``.
        batches: of the graph it was fitted to.
        label: the site of its labels.
    """

    kg: Setting
    model: Callable
    parameters: OwnParameters
    batches: Batches
    label: str = "y"


class _Draw(Lazy):
    """A draw from ``fn`` that is made if a model computes with it."""

    fn: Any

    def make(self) -> Tensor:
        return self.fn()


def _later(msg: dict, like: Tensor) -> None:
    """Have a site drawn where the model computes with its value, or not at all."""
    msg["value"], msg["done"] = _Draw.shaped(like.new_zeros(()).expand(msg["fn"].shape())), True
    msg["value"].fn = msg["fn"]


class _Values(Messenger):
    """Gives sites their values; a table of all symbols by the rows that a batch has; labels of ours are drawn later."""

    def __init__(self, values: Mapping[str, Tensor], batch: Batch):
        super().__init__()
        self.values, self.batch = values, batch

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], AllCandidates) and not msg["is_observed"]:
            _later(msg, self.batch.query_weight)
        elif msg["name"] in self.values and not msg["is_observed"]:
            value = self.values[msg["name"]]
            if frame_of(msg) == "entity_plate":
                value = value[self.batch.entities]
            msg["value"], msg["done"] = value, True


@torch.no_grad()
def sites_run(program: Program, what: Callable) -> dict[str, Any]:
    """The latents and the labels of a run of the model or a guide on one query, as Pyro traces them."""
    first = torch.zeros(1, dtype=torch.long, device=program.kg.start.device)
    with pyro_alone(), program.parameters:
        nodes = poutine.trace(what).get_trace(program.kg, program.batches.asked(first, first)).nodes
    drawn = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in drawn.items() if name == program.label or not site["is_observed"]}


class _Unread(Messenger):
    """What has a row or a column for every entity is drawn where the model looks at it, or not at all.

    A model's form shows without; tables of a million entities would take more than their posterior.
    """

    def __init__(self, like: Tensor):
        super().__init__()
        self.like = like

    def _pyro_sample(self, msg: dict) -> None:
        if frame_of(msg) in ("entity_plate", "fact_tails") or isinstance(msg["fn"], AllCandidates):
            _later(msg, self.like)


def joint_draw(program: Program, guide: Guide, number: int) -> dict[str, Tensor]:
    """The latents that are not of single facts in a numbered draw, the same at every call: values by site."""
    with seeded(number), guide.using(number):
        sites = sites_run(program, guide)
    return {name: s["value"] for name, s in sites.items() if frame_of(s) not in PER_FACT}


@torch.no_grad()
def labels_given(
    program: Program, guide: Guide | None, values: Mapping[str, Tensor], anchor: Tensor, row: Tensor, number: int = 0
) -> Any:
    """The distribution at the site of labels, of all candidates of the queries ``(b,)``, given latents by site.

    Latents of single facts are drawn from the guide, in the random state of ``number``.
    """
    batch = program.batches.asked(anchor, row)
    with pyro_alone(), program.parameters, seeded(number):
        given: Any = _Values(values, batch)
        model = given(program.model)
        if guide is not None:
            with guide.using(number):
                drawn = poutine.trace(_Values(values, batch)(guide)).get_trace(program.kg, batch)
            model = poutine.replay(model, trace=drawn)
        return poutine.trace(model).get_trace(program.kg, batch).nodes[program.label]["fn"]


def replayed_logits(
    program: Program, guide: Guide | None, values: Mapping[str, Tensor], anchor: Tensor, row: Tensor, number: int = 0
) -> Tensor:
    """The log-odds that facts are true, shapes ``(b,), (b,) -> (b, E)``, from a replay on given latents.

    Raises InputError where the model's labels have no log-odds.
    """
    fn = labels_given(program, guide, values, anchor, row, number)
    try:
        return true_logits_of(fn)
    except TypeError as error:
        raise InputError(f"this model predicts no facts: its {error}.") from error


@dataclass(frozen=True)
class Standard:
    """A model whose labels are what the setting's likelihood makes of the latents as they are.

    Attributes:
        per_fact: whether each fact has latents of its own.
        intercept: whether relations have intercepts.
    """

    per_fact: bool
    intercept: bool


def standard_form(program: Program, guide: Guide | None) -> Standard | None:
    """What closed forms of predictions a model admits, as a run of it shows; None for no such form."""
    with seeded(0):
        sites = sites_run(program, _Unread(program.kg.start)(program.model))
    fn = sites[program.label]["fn"]
    if type(fn) not in (AllCandidates, Answers):
        return None
    given, kg = fn.given, program.kg
    if given.score is not kg.score or given.completeness != kg.completeness:
        return None

    def site_of(table: Tensor, kind: str) -> str | None:
        for name, site in sites.items():
            frame, its_kind = frame_of(site), kind_of(site)
            known = guide is None or (name, kind) in guide.symbols.get(frame, ())
            if site["value"] is table and its_kind == kind and known:
                return str(frame)
        return None

    frames = (
        site_of(given.anchor.table, "entity"),
        site_of(given.relation.table, "relation"),
        site_of(given.candidate.table, "entity"),
    )
    has_intercept = "intercept" in sites
    expected = sites["intercept"]["value"][:1] if has_intercept else torch.zeros_like(given.intercept)
    if not torch.equal(given.intercept, expected):
        return None
    if frames == ("entity_plate", "relation_plate", "entity_plate") and given.anchor.table is given.candidate.table:
        return Standard(False, has_intercept)
    return Standard(True, has_intercept) if frames == PER_FACT else None
