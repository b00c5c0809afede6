"""The evidence lower bound, likelihood and KL apart, with a weight on the KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from kgpyro.errors import InputError
from kgpyro.inference.estimators import CountFacts, DrawLater
from kgpyro.kernels.gaussian import gaussian_kl
from kgpyro.program.batches import Batch
from kgpyro.program.families import is_gaussian, log_scale_of
from kgpyro.program.lazy import Undrawn
from kgpyro.program.likelihood import AllCandidates
from kgpyro.program.sites import PER_FACT, OwnParameters, frame_of, kind_of, pyro_alone
from kgpyro.program.variational import Guide


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
                guide = DrawLater()(guide)
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
        result, sites = Terms(), list(model_trace.nodes.items())
        for _, site in sites:  # first, since it may draw what a KL then comes along with
            if site["type"] == "sample" and site["is_observed"]:
                result.log_likelihood = result.log_likelihood + _log_likelihood(site)
        for name, site in sites:
            if site["type"] == "sample" and not site["is_observed"]:
                q = guide_trace.nodes[name]["fn"]
                each = _kl(q, site["fn"], site["value"], self.estimator != "plain")
                result.kl = result.kl + _scaled_sum(each, site)
                result.price = result.price + self._price(each, site, args[1])
                if each.dim():  # of symbols; what is one for all is no one's
                    result.kl_per_latent[name] = each.detach().mean()
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
        found = torch.stack([torch.as_tensor(x).detach() for x in (terms.log_likelihood, terms.kl, terms.price)])
        likelihood, kl, price = found.tolist()
        self.last = Terms(likelihood, kl, price, terms.kl_per_latent)
        return torch.as_tensor(terms.price - terms.log_likelihood)

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


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
