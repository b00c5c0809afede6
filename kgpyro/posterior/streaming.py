"""A posterior as where the next one starts: parameters by the names of their symbols, and the prior of new facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence
from tqdm.auto import tqdm

from kgpyro.data.graph import SPLITS, Graph
from kgpyro.data.tables import Rows, encode
from kgpyro.errors import InputError
from kgpyro.posterior.asked import fact_ids, is_ids, named_facts
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.discovery import unknown
from kgpyro.posterior.draws import Draws
from kgpyro.posterior.replay import Program
from kgpyro.posterior.runs import is_own_code
from kgpyro.program.families import is_gaussian
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide, pyro_alone
from kgpyro.randomness import seeded

if TYPE_CHECKING:
    from kgpyro.posterior.predictions import Predictions

SAME = ("model", "score", "dim", "guide", "inverse", "likelihood")  # of a posterior and a fit that starts there
LIKE = (*SAME, "prior", "entity_prior", "relation_prior", "completeness", "closed_world")
CELLS = 200_000  # of new symbols that a step looks at
DRAWS = 4  # of the latents per step


@torch.no_grad()
def start_at(modules: Mapping[str, nn.Module], graph: Graph, old: Mapping[str, nn.Module], before: Graph) -> None:
    """Set parameters to those of a posterior over another graph; rows of symbols by their names, new ones stay.

    Raises InputError where they do not fit.
    """
    places, R = _places(before, graph), before.num_relations
    counts = {"entity": before.num_entities, "relation": R, "row": 2 * R}
    for part, module in modules.items():
        given = dict(old[part].named_parameters()) if part in old else {}
        for name, parameter in module.named_parameters():
            if name not in given:
                continue
            value, kinds = given[name], [k for k in ("entity", "row", "relation") if len(given[name].shape)]
            kinds = [k for k in kinds if (len(value), len(parameter)) == (counts[k], len(places[k]))]
            if value.shape[1:] != parameter.shape[1:] or (not kinds and value.shape != parameter.shape):
                raise InputError(
                    f"`start` has {part} parameters {name} of shape {tuple(value.shape)}, which do not fit."
                )
            if not kinds:
                parameter.copy_(value)
                continue
            kind = "entity" if "entity" in kinds and not (len(kinds) > 1 and "relation" in name) else kinds[-1]
            known = places[kind] >= 0
            parameter[known.to(parameter.device)] = value[places[kind][known].to(value.device)].to(parameter)


def _places(before: Graph, graph: Graph) -> dict[str, Tensor]:
    """Where entities, relations, and rows of relations and their inverses stood before, -1 for new ones."""
    found = {}
    for kind, ids, names in (
        ("entity", before._entity_ids, graph.entities),
        ("relation", before._relation_ids, graph.relations),
    ):
        found[kind] = torch.tensor([ids.get(name, -1) for name in names], dtype=torch.long)
    place = found["relation"]
    return found | {"row": torch.cat([place, torch.where(place < 0, place, place + before.num_relations)])}


class _Before(nn.Module):
    """The prior of one kind of symbol: of the old ones their Gaussian posterior, of new ones the prior they had."""

    latents: Mapping[str, Any] = {}

    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__()
        self.loc, self.scale = loc, scale

    def draw(self, like: Tensor) -> dict[str, Tensor]:
        return {}

    def distribution(self, like: Tensor, symbols: Tensor | EllipsisType, *_: Any) -> TorchDistribution:
        return dist.Normal(self.loc[symbols], self.scale[symbols], validate_args=False).to_event(1)


def refuse_no_update(posterior: Draws, config: Mapping[str, Any]) -> None:
    """Raise InputError where a posterior cannot be the prior of new facts."""
    guide, reason = posterior.guide, ""
    if guide is None:
        reason = "it is a set of draws (NUTS, HMC, UHA)"
    elif posterior.form is None or posterior.form.per_fact or isinstance(posterior.program.model, nn.Module):
        reason = f"model {config['model']} is not one of latents per symbol under the standard likelihood"
    elif posterior.kg.categorical or config["closed_world"] != "full":
        reason = "its data are not all facts (closed_world='full')"
    elif guide.members > 1 or guide.inductive or is_own_code(config["guide"]):
        reason = f"guide {config['guide']} is no table of one Gaussian per symbol"
    elif not all(is_gaussian(guide.posterior(kind, ...)) for kind in ("entity", "relation")):
        reason = f"guide {config['guide']} and its prior make no Gaussian per symbol"
    elif posterior.kg.hyper_latents:
        reason = "parameters of its priors are latents"
    elif posterior.graph.confidences or config.get("kl_frequency") or config.get("relation_weight"):
        reason = "facts have confidences, or it is no posterior of them (`kl_frequency`, `relation_weight`)"
    if reason:
        raise InputError(f"this posterior cannot be updated: {reason}; fit all facts anew, with `start`.")


def with_facts(graph: Graph, facts: Any) -> tuple[Graph, Tensor]:
    """The graph with more training facts, new names at the end of its tables; and the facts that training lacked."""
    entities, relations = dict(graph._entity_ids), dict(graph._relation_ids)
    rows = graph.names(fact_ids(graph, facts)) if is_ids(facts) else [row for _, row in named_facts(facts)]
    ids, _ = encode(Rows(map(list, rows), lambda number: f"fact {number - 1}"), entities, relations)
    larger = replace(graph, entities=tuple(entities), relations=tuple(relations), source="")
    if not len(new := unknown(ids, larger)):
        raise InputError("training holds all of these facts; there is nothing to update.")
    held = {s: ~torch.isin(larger._keys(getattr(graph, s)), larger._keys(new)) for s in SPLITS[1:]}
    splits = {split: getattr(graph, split)[kept] for split, kept in held.items()}
    return replace(larger, train=torch.cat([graph.train, new]), **splits), new


def updated(
    posterior: Predictions, larger: Graph, new: Tensor, epochs: int, lr: float, seed: int, progress: bool
) -> tuple[Program, Guide, pd.DataFrame]:
    """Model and guide of the larger graph, fitted to its new facts, and the loss per epoch.

    The labels that a closed world has changed are taken back: of a cell that was 0 and is 1 the data say
    ``log p(1) - log p(0)``. Cells of new symbols are data as in any fit; of many, ``CELLS`` at random in each step.
    """
    config, old, graph = posterior.config, posterior.guide, posterior.graph
    assert old is not None
    batches = batches_of(larger, config, posterior.dtype).to(posterior.device)

    def setting() -> Setting:
        kg = build_setting(larger, config).to(posterior.dtype).to(posterior.device)
        kg.start_at_base_rates(batches)
        return kg

    with seeded(seed):
        plain = setting()
        program = program_of(posterior.program.model, plain, batches)
        guide = build_guide(config["guide"], plain, sites_of(program)).to(posterior.dtype).to(posterior.device)
        start_at({"guide": guide, "setting": plain}, larger, {"guide": old, "setting": posterior.kg}, graph)
        stream = replace(program, kg=_after(posterior, setting(), plain, larger))
        optimizer, losses = torch.optim.Adam(guide.parameters(), lr), []
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, epochs)
        for _ in tqdm(range(epochs), desc="update", unit="epoch", disable=not progress, leave=False):
            cells, label, weight = _cells(graph, larger, new)
            optimizer.zero_grad()
            terms = (_loss(stream, guide, cells, label, weight, config.get("kl_weight") or 1.0) for _ in range(DRAWS))
            loss = sum(terms) / DRAWS
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()) / len(new))  # type: ignore[union-attr]
    log = pd.DataFrame({"epoch": range(1, epochs + 1), "loss": losses})
    return program, guide.eval(), log


@torch.no_grad()
def _after(posterior: Predictions, kg: Setting, plain: Setting, larger: Graph) -> Setting:
    """The setting with the posterior for a prior; new symbols keep that of the ``plain`` one."""
    graph, old, places = posterior.graph, posterior.guide, _places(posterior.graph, larger)
    assert old is not None
    for kind in ("entity", "relation"):
        q, count = old.posterior(kind, ...).base_dist, kg.count(kind)
        prior: Any = plain.symbol_prior(kind).distribution(kg.start, ...)
        normal = isinstance(prior, dist.Independent) and isinstance(prior.base_dist, dist.Normal)
        if count > len(q.loc) and not normal:
            raise InputError("new symbols need a normal prior for an update; fit all facts anew, with `start`.")
        of = prior.base_dist if normal else q
        loc, scale = (x.expand(count, kg.size(kind)).clone() for x in (of.loc, of.scale))
        place = places["row" if kind == "relation" and posterior.inverse else kind]
        known = place >= 0
        loc[known], scale[known] = q.loc[place[known]], q.scale[place[known]]
        kg.symbol_priors[kind] = _Before(loc, scale)
    if posterior.form is not None and posterior.form.intercept:
        q = old.field("intercept")().base_dist
        loc, scale = kg.start.new_full(kg.start.shape, float(posterior.kg.base_rate)), torch.ones_like(kg.start)
        scale = scale * kg.intercept_scale
        loc[: graph.num_relations], scale[: graph.num_relations] = q.loc, q.scale
        kg.base_rate, kg.intercept_scale = loc, scale
    return kg


def _cells(graph: Graph, larger: Graph, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells ``(n, 3)``, labels and weights of a step."""
    ends = torch.tensor([graph.num_entities, graph.num_relations, graph.num_entities])
    old = (new < ends).all(1)
    E, R = larger.num_entities, larger.num_relations
    total = E * E * R - graph.num_entities**2 * graph.num_relations - int((~old).sum())
    key = torch.arange(E * E * R) if E * E * R <= CELLS else torch.randint(E * E * R, (CELLS,))
    cells = torch.stack([key // (E * R), key // E % R, key % E], 1)
    zeros = cells[(cells >= ends).any(1) & ~torch.isin(key, larger._keys(new))]
    swapped = new[old]
    weight = torch.cat(
        [torch.ones(len(new)), -torch.ones(len(swapped)), torch.full((len(zeros),), total / max(1, len(zeros)))]
    )
    label = torch.cat([torch.ones(len(new)), torch.zeros(len(swapped) + len(zeros))])
    return torch.cat([new, swapped, zeros]), label, weight


def _loss(program: Program, guide: Guide, cells: Tensor, label: Tensor, weight: Tensor, kl_weight: float) -> Tensor:
    """Minus the bound of cells, each read both ways for one half, by one draw of the latents."""
    kg, like = program.kg, program.kg.start
    head, relation, tail = cells.to(like.device).unbind(1)
    both = torch.cat([head, tail]), torch.cat([relation, relation + kg.relations]), torch.cat([tail, head])
    label, weight = (torch.cat([x, x]).to(like) for x in (label, weight / 2))
    batch = program.batches.listed(torch.stack(both, 1), label)
    with pyro_alone(), program.parameters:
        drawn = poutine.trace(guide).get_trace(kg, batch)
        run = poutine.trace(poutine.replay(program.model, trace=drawn)).get_trace(kg, batch)
    prices = [kl_divergence(drawn.nodes[s]["fn"], run.nodes[s]["fn"]).sum() for s in run.stochastic_nodes]
    return kl_weight * torch.stack(prices).sum() - (weight * run.nodes[program.label]["fn"].log_prob(label)).sum()
