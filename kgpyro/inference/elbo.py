"""The evidence lower bound: its estimators as effect handlers around model and guide, and its value after a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence
from tqdm.auto import tqdm

from kgpyro.errors import InputError
from kgpyro.kernels.gaussian import gaussian_kl
from kgpyro.program.batches import Batches
from kgpyro.program.families import is_gaussian, log_scale_of
from kgpyro.program.lazy import Undrawn
from kgpyro.program.likelihood import AllCandidates
from kgpyro.program.owners import Share
from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting
from kgpyro.program.variational import PER_FACT, Guide, OwnParameters, frame_of, kind_of, pyro_alone


class DrawLater(Messenger):
    """Around a guide: tables of independent Normals are drawn when they are first used, or not at all.

    Args:
        batch: of the run.
        share: where processes share the entities: an entity's noise is then the same in each.
    """

    def __init__(self, batch: Batch, share: Share | None = None):
        super().__init__()
        self.batch, self.share = batch, share

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if not msg["done"] and not msg["is_observed"] and is_gaussian(fn):
            msg["value"] = Undrawn.of(fn)
            if self.share is not None and kind_of(msg) == "entity":
                msg["value"].noise = self.share.noise(self.batch.symbols(frame_of(msg)))
            msg["done"] = True


class CountFacts(Messenger):
    """Around a model that is replayed: labels are integrated by an estimator, and count for what the batch says.

    The plates that :class:`Batch` yields say it already. A model's own plates, or none, have no say in it: what is left
    of a site's scale without them is multiplied by the batch's weights.

    Args:
        batch: of the run.
        estimator: ``local``, ``shared`` or ``plain`` (:class:`kgpyro.program.likelihood.AllCandidates`).
    """

    def __init__(self, batch: Batch, estimator: str = "plain"):
        super().__init__()
        self.batch, self.estimator = batch, estimator

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"]:
            if isinstance(msg["value"], Undrawn):
                msg["value"].prior = msg["fn"]
            return
        if not (msg["infer"] or {}).get("weighted"):
            msg["scale"] = self._scale(msg)
        if isinstance(msg["fn"], AllCandidates):
            msg["fn"] = msg["fn"].by(self.estimator)

    def _scale(self, msg: dict) -> Tensor:
        plates = math.prod((f.full_size or f.size) / f.size for f in msg["cond_indep_stack"] if f.vectorized)
        weight, shape = self.batch.fact_weight, msg["fn"].batch_shape
        if self.batch.query is None and tuple(shape) == (len(weight), self.batch.num_entities):
            weight = weight.unsqueeze(-1)
        elif tuple(shape) != tuple(weight.shape):
            raise InputError(
                f"the model's labels at site {msg['name']!r} have batch shape {tuple(shape)}, which does not tell its "
                f"facts apart: a likelihood of all candidates needs {tuple(weight.shape)} with candidates as its event "
                f"(.to_event(1)), and none of its own sums."
            )
        return weight * (msg["scale"] / plates)


@dataclass
class Terms:
    """One estimate of the bound: its log-likelihood, its KL as it is, and what that counts for in the objective.

    ``kl_per_latent`` is the mean KL of one latent, by site.
    """

    log_likelihood: float | Tensor = 0.0
    kl: float | Tensor = 0.0
    price: float | Tensor = 0.0
    kl_per_latent: dict[str, Any] = field(default_factory=dict)


class WeightedELBO(ELBO):
    """``Σ_τ E_q[log p(y_τ | h)] - β Σ_s w_s KL(q_s ‖ p)``, estimated with one reparameterised draw.

    At ``kl_weight`` β = 1 and with the ``plain`` estimator this is Pyro's ``TraceMeanField_ELBO``: KL divergences are
    analytic where PyTorch knows them and Monte Carlo where not. A weight of exactly 0 is allowed (the first step of a
    warm-up).

    Args:
        kl_weight: β; may be set between steps.
        estimator: how a step integrates over the latents: ``local``, ``shared`` or ``plain``
            (:class:`kgpyro.program.likelihood.AllCandidates`).
        parameters: where ``pyro.param`` reads and makes parameters.

    Attributes:
        global_weight: what the KL of latents that are not of single facts is multiplied by, where a model has both;
            None for β.
        symbol_weights: ``w`` of entities and of relations' rows, by kind; 1 where there are none.
        last: terms of the last loss, as numbers.
    """

    def __init__(self, kl_weight: float = 1.0, estimator: str = "local", parameters: OwnParameters | None = None):
        super().__init__()
        self.kl_weight, self.estimator = kl_weight, estimator
        self.global_weight: float | None = None
        self.symbol_weights: dict[str, Tensor] = {}
        self.parameters = parameters or OwnParameters()
        self.last = Terms()

    def _get_trace(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        with pyro_alone(), self.parameters:
            if self.estimator != "plain":
                guide = DrawLater(args[1], args[0].share)(guide)
            guide_trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
            counted = CountFacts(args[1], self.estimator)(poutine.replay(model, trace=guide_trace))
            model_trace = prune_subsample_sites(poutine.trace(counted).get_trace(*args, **kwargs))
        latent = set(model_trace.stochastic_nodes)
        if mismatch := latent.symmetric_difference(guide_trace.stochastic_nodes):
            raise InputError(
                f"model and guide disagree on the sites {', '.join(sorted(mismatch))}; each must sample them all."
            )
        return model_trace, guide_trace

    def terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
        """One estimate, as tensors that carry gradients; of a mixture the mean over one of each of its members."""
        if not isinstance(guide, Guide):
            return self._terms(model, guide, *args, **kwargs)
        found = []
        for number in range(guide.members):
            with guide.using(number):
                found.append(self._terms(model, guide, *args, **kwargs))
        return _mean(found)

    def _terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        result, sites, share = Terms(), list(model_trace.nodes.items()), args[0].share
        for _, site in sites:  # first, since it may draw what a KL then comes along with
            if site["type"] == "sample" and site["is_observed"]:
                result.log_likelihood = result.log_likelihood + _log_likelihood(site)
        for name, site in sites:
            if site["type"] == "sample" and not site["is_observed"]:
                q = guide_trace.nodes[name]["fn"]
                each = _kl(q, site["fn"], site["value"], self.estimator != "plain")
                spread = share if kind_of(site) == "entity" else None
                if each.dim():  # of symbols; what is one for all is no one's
                    result.kl_per_latent[name] = _mean_of_all(each.detach(), spread)
                if share is not None and spread is None:  # in every process, and counts once in all
                    each = each / share.processes
                result.kl = result.kl + _scaled_sum(each, site)
                result.price = result.price + self._price(each, site, args[1])
        return result

    def _price(self, kl: Tensor, site: dict, batch: Batch) -> Tensor:
        """What the KL of a site's latents counts for in the objective."""
        frame, kind = frame_of(site), kind_of(site)
        weight = self.kl_weight if frame in PER_FACT or self.global_weight is None else self.global_weight
        if kind in self.symbol_weights:
            kl = kl * self.symbol_weights[kind][batch.symbols(frame)]
        return _scaled_sum(kl, site) * weight

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound with its weights; ``last`` then holds its terms, detached."""
        terms = self.terms(model, guide, *args, **kwargs)
        self.last = _numbers(terms, args[0].share)
        return torch.as_tensor(terms.price - terms.log_likelihood)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


def _mean_of_all(kl: Tensor, share: Share | None) -> Tensor:
    """The mean KL of a site's latents, of their parts in all processes where these share them."""
    if share is None:
        return kl.mean()
    total, count = share.sum(torch.stack([kl.sum(), kl.new_tensor(float(len(kl)))]))
    return total / count


def _numbers(terms: Terms, share: Share | None) -> Terms:
    """Terms as numbers, those of all processes together where they share the entities."""
    found = torch.stack([torch.as_tensor(x).detach() for x in (terms.log_likelihood, terms.kl, terms.price)])
    likelihood, kl, price = (found if share is None else share.sum(found)).tolist()
    return Terms(likelihood, kl, price, terms.kl_per_latent)


def _mean(found: list[Terms]) -> Terms:
    if len(found) == 1:
        return found[0]
    sites = found[0].kl_per_latent
    kl_per_latent = {site: sum(each.kl_per_latent[site] for each in found) / len(found) for site in sites}
    names = ("log_likelihood", "kl", "price")
    likelihood, kl, price = (sum(getattr(each, name) for each in found) / len(found) for name in names)
    return Terms(likelihood, kl, price, kl_per_latent)


def _log_likelihood(site: dict) -> Tensor:
    fn, value = site["fn"], site["value"]
    if isinstance(fn, AllCandidates) and site["mask"] is None:
        return fn.weighted_log_prob(value, torch.as_tensor(site["scale"]))
    return _scaled_sum(fn.log_prob(value), site)


def _kl(q: Any, p: Any, drawn: Tensor, fused: bool) -> Tensor:
    if isinstance(drawn, Undrawn) and drawn.kl is not None:
        return drawn.kl
    if fused and is_gaussian(q) and is_gaussian(p) and p.event_shape == q.event_shape:
        a, b = q.base_dist, p.base_dist
        return gaussian_kl(a.loc, log_scale_of(a), b.loc, b.scale)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        drawn = drawn[...] if isinstance(drawn, Undrawn) else drawn
        return q.log_prob(drawn) - p.log_prob(drawn)


def _scaled_sum(value: Tensor, site: dict) -> Tensor:
    value = value if site["mask"] is None else torch.where(site["mask"], value, 0.0)
    return (value * site["scale"]).sum()


@torch.no_grad()
def estimate_elbo(
    elbo: WeightedELBO,
    kg: Setting,
    model: Callable,
    guide: Guide,
    batches: Batches,
    draws: int = 10,
    queries: int = 8192,
    batch_size: int = 512,
    progress: bool = False,
) -> tuple[float, float, Terms]:
    """The untempered ELBO over all facts, in nats per observed fact.

    Args:
        elbo: which estimator to use.
        batches: over all candidates for the exact sum.
        draws: independent estimates, each from one posterior draw and at most ``queries`` random queries.

    Returns:
        Mean, its Monte-Carlo standard error, and the terms of the bound (per observed fact).
    """
    estimates = []
    total = Terms(0.0, 0.0)
    for _ in tqdm(range(draws), desc="ELBO", unit="draw", disable=not progress, leave=False):
        index = torch.randperm(len(batches))[:queries].to(kg.start.device)
        likelihood = kl = 0.0
        for part in index.split(batch_size):
            terms = _numbers(elbo.terms(model, guide, kg, batches(part)), kg.share)
            likelihood += float(terms.log_likelihood) * len(part) / len(index)
            kl += float(terms.kl) * len(part) / len(index)
        estimates.append((likelihood - kl) / batches.num_observed)
        total = Terms(
            total.log_likelihood + likelihood / draws / batches.num_observed,
            total.kl + kl / draws / batches.num_observed,
            kl_per_latent={site: float(kl) for site, kl in terms.kl_per_latent.items()},
        )
    values = torch.tensor(estimates, dtype=torch.double)
    return float(values.mean()), float(values.std() / math.sqrt(draws)), total
