"""A posterior in ArviZ's terms: InferenceData on ArviZ 0.23, a DataTree on 1.x."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.posterior.scores import PosteriorScores
from kgpyro.program.likelihood import observed_logits
from kgpyro.program.setting import Setting
from kgpyro.program.variational import OwnParameters, pyro_alone
from kgpyro.randomness import seeded

SYMBOLS = 50  # of a kind that are exported where none are named
VALUES = 1 << 24  # of the latents of these, at most
FACTS = 1 << 22  # up to which a sample is drawn from the list of all
VARIABLES = {"entity": "entities", "relation": "relations"}


def load_arviz() -> tuple[Any, bool]:
    """ArviZ, and whether it is 1.0 or later. Raises InputError where it is not installed."""
    try:
        import arviz
    except ImportError as error:
        raise InputError("this needs ArviZ; pip install arviz, or kgpyro[arviz].") from error
    return arviz, int(arviz.__version__.partition(".")[0]) >= 1


@torch.no_grad()
def to_arviz(
    scores: PosteriorScores,
    draws: int = 500,
    entities: Sequence[str] | None = None,
    relations: Sequence[str] | None = None,
    facts: int = 200,
    observed: float | None = None,
    seed: int = 0,
) -> Any:
    """The posterior for ArviZ: an InferenceData on ArviZ 0.23, a DataTree on 1.x.

    * ``posterior``, ``prior``: ``entities`` (dims entity, entity_dim) and ``relations`` (relation, relation_dim);
      inverse relations are called ``NAME_inverse``. Parameters of priors that are latents themselves are there by
      their sites, such as ``entity_scale``; learned ones are at their values, in the prior too. Where latents are
      per fact (lfm), a symbol's draws are those of ``q(h | symbol)``.
    * ``log_likelihood``, ``posterior_predictive``, ``observed_data``: ``y`` (dim fact) of random facts of the
      training queries, true or not. Where latents are per entity and relation (lim), draw *i* of these is of draw
      *i* of the latents.

    Args:
        draws: posterior and prior draws, in one chain.
        entities, relations: names; by default all, or 50 at random (fewer where their latents are long).
        facts: how many facts, at most.
        observed: share of observed facts among them; by default facts are chosen whatever their labels, as
            predictive checks need it, and where observed facts are rare there may be none.
        seed: of choice and draws.

    Raises:
        InputError: ArviZ is not installed, an unknown name, a number that is not positive, or a categorical likelihood.
    """
    arviz, new = load_arviz()
    scores.refuse_categorical("ArviZ's groups of facts")
    for name, value in {"draws": draws, "facts": facts}.items():
        if value < 1:
            raise InputError(f"{name} must be a positive number; got {value}.")
    if observed is not None and not 0 <= observed <= 1:
        raise InputError(f"observed is the share of observed facts, from 0 to 1; got {observed}.")
    g, kg = scores.graph, scores.kg
    with seeded(seed):
        rows = _chosen(relations, g.relation_id, g.num_relations, VALUES // (draws * kg.relation_size))
        chosen = {
            "entity": _chosen(entities, g.entity_id, g.num_entities, VALUES // (draws * kg.entity_size)),
            "relation": torch.cat([rows, rows + g.num_relations]) if scores.inverse else rows,
        }
        asked, y = _some_facts(scores, facts, observed)
        chosen = {kind: ids.to(scores.device) for kind, ids in chosen.items()}
        prior = _prior_draws(kg, chosen, draws)
        posterior, logits = _posterior_draws(scores, chosen, asked.to(scores.device), draws, seed)
        logits = observed_logits(logits, kg.completeness, torch.eq(asked[:, 0], asked[:, 2]).expand_as(logits))
        predicted = torch.bernoulli(logits.sigmoid()).long()
    found = {
        "posterior": _of_chosen(posterior, chosen, kg),
        "prior": _of_chosen(prior, chosen, kg),
        "posterior_predictive": {"y": predicted},
        "log_likelihood": {"y": F.logsigmoid((2 * y - 1) * logits)},
    }
    groups = {group: {k: v.cpu().numpy()[None] for k, v in values.items()} for group, values in found.items()}
    groups["observed_data"] = {"y": y.long().cpu().numpy()}

    row_names = [*g.relations, *(f"{name}_inverse" for name in g.relations)]
    names = {"entity": g.entities, "relation": row_names}
    coords: dict[str, Any] = {kind: [names[kind][i] for i in ids.tolist()] for kind, ids in chosen.items()}
    coords |= {f"{kind}_dim": np.arange(kg.size(kind)) for kind in chosen}
    coords["fact"] = [f"{g.entities[a]} {row_names[r]} {g.entities[c]}" for a, r, c in asked.tolist()]
    dims = {variable: [kind, f"{kind}_dim"] for kind, variable in VARIABLES.items()} | {"y": ["fact"]}
    for site, (_, shape) in kg.hyper_latents.items():
        kind = site.partition("_")[0]
        dims[site] = [[], [f"{kind}_dim"], [kind]][len(shape)]
    if "intercept" in posterior:
        coords["intercept_relation"], dims["intercept"] = list(g.relations), ["intercept_relation"]
    if new:
        return arviz.from_dict(groups, coords=coords, dims=dims)
    return arviz.from_dict(**groups, coords=coords, dims=dims)


def _chosen(names: Sequence[str] | None, id_of: Callable[[str], int], count: int, most: int) -> Tensor:
    """Ids of the named symbols, or of all, or of a random few."""
    if names is not None:
        return torch.tensor([id_of(name) for name in dict.fromkeys(names)], dtype=torch.long)
    return torch.randperm(count)[: max(1, min(SYMBOLS, most))].sort().values


def _some_facts(scores: PosteriorScores, number: int, observed: float | None) -> tuple[Tensor, Tensor]:
    """Distinct facts ``(head, relation, tail)``, shape ``(n, 3)``, and whether training holds them, ``(n,)``."""
    g = scores.graph
    size = g.num_entities
    true = (g.train[:, 1] * size + g.train[:, 0]) * size + g.train[:, 2]
    total = g.num_relations * size * size
    if total <= FACTS:
        pool = torch.randperm(total)
    else:
        pool = torch.randint(total, (8 * number,)).unique()
        pool = pool[torch.randperm(len(pool))]
    if observed is not None:
        known = true[torch.randperm(len(true))][: round(observed * number)]
        pool = torch.cat([known, pool[~torch.isin(pool, true)][: number - round(observed * number)]])
    chosen = pool[:number]
    facts = torch.stack([chosen // size % size, chosen // size**2, chosen % size], dim=1)
    return facts, torch.isin(chosen, true).to(scores.kg.start)


def _posterior_draws(
    scores: PosteriorScores, chosen: dict[str, Tensor], facts: Tensor, draws: int, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws of the chosen symbols' latents, ``(draws, n, d)``, of all other latents, and of the facts' logits."""
    logits = scores.fact_logits(facts, draws, seed)
    if scores.form is not None and (guide := scores.guide) is not None:
        parts = zip(*scores.tables_of(draws, seed, chosen["entity"], chosen["relation"]), strict=True)
        entities, relations, intercepts = (torch.cat(each) for each in itertools.islice(parts, 3))
        found = {"entities": entities, "relations": relations}
        if scores.form.intercept:
            found["intercept"] = intercepts
        rest = (site for site, _ in guide.others.get("", ()) if site != "intercept")
        return found | {site: guide.field(site)().sample(torch.Size([draws])) for site in rest}, logits
    each_site: dict[str, list[Tensor]] = defaultdict(list)
    for number in scores.numbers(draws, seed):
        for site, value in scores.joint(number).items():
            kind = next((k for k in VARIABLES if VARIABLES[k] == site), None)
            each_site[site].append(value if kind is None else value[chosen[kind]])
    return {site: torch.stack(values) for site, values in each_site.items()}, logits


def _prior_draws(kg: Setting, chosen: dict[str, Tensor], draws: int) -> dict[str, Tensor]:
    """The same of the prior; where its parameters are latents themselves, with a draw of these for each."""
    times = draws if kg.hyper_latents else 1
    found: dict[str, list[Tensor]] = defaultdict(list)
    for _ in range(times):
        with pyro_alone(), OwnParameters():
            trace = poutine.trace(kg.priors).get_trace()
        for (kind, ids), prior in zip(chosen.items(), trace.nodes["_RETURN"]["value"], strict=True):
            p = prior(ids)
            each = 1 if p.batch_shape else len(ids)
            sample = p.sample(torch.Size([each * draws // times]))
            found[VARIABLES[kind]].append(sample.reshape(draws // times, len(ids), -1))
        for site in kg.hyper_latents:
            found[site].append(trace.nodes[site]["value"].unsqueeze(0))
    return {name: torch.cat(values) for name, values in found.items()}


def _of_chosen(found: dict[str, Tensor], chosen: dict[str, Tensor], kg: Setting) -> dict[str, Tensor]:
    """Latents; of parameters of priors that have a value per symbol, ``(draws, count, 1)``, the chosen ones."""
    for site in kg.hyper_latents.keys() & found.keys():
        if found[site].dim() == 3:
            found[site] = found[site][:, chosen[site.partition("_")[0]], 0]
    return found
