"""The evidence lower bound, told apart into likelihood and KL, with a weight on the KL."""

from __future__ import annotations

import contextlib
import math
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
from kgpyro.kernels.gaussian import gaussian_kl
from kgpyro.program.families import is_gaussian, log_scale_of
from kgpyro.program.likelihood import Integrate, Postpone
from kgpyro.program.variational import Guide


@dataclass
class Terms:
    """One estimate of the bound: its likelihood part, its KL (unweighted), and the mean KL of one latent per site."""

    log_likelihood: float | Tensor = 0.0
    kl: float | Tensor = 0.0
    kl_per_latent: dict[str, float] = field(default_factory=dict)


# When Gaussian tables are drawn: the later the better, and not at all where local noise takes their place.
DRAWS = ("not at all", "in the model", "in the guide")
FIRST_DRAWS = {"local": "not at all", "shared": "in the model", "plain": "in the guide"}


class WeightedELBO(ELBO):
    """``Σ_τ E_q[log p(y_τ | h)] - β Σ KL(q ‖ p)``, estimated with one reparameterised draw.

    At ``kl_weight`` β = 1 and with the ``plain`` estimator this is Pyro's ``TraceMeanField_ELBO``: KL divergences are
    analytic where PyTorch knows them and Monte Carlo where not, plates and scales count as the *model* has them. A
    weight of exactly 0 is allowed (the first step of a warm-up).

    Args:
        kl_weight: β; may be set between steps.
        estimator: how a step integrates over the latents: ``local``, ``shared`` or ``plain``
            (:class:`kgpyro.program.likelihood.Integrate`).
    """

    def __init__(self, kl_weight: float = 1.0, estimator: str = "local"):
        super().__init__()
        self.kl_weight, self.estimator = kl_weight, estimator
        self.last = Terms()
        self._draws = DRAWS[DRAWS.index(FIRST_DRAWS[estimator]) :]

    @property
    def draws(self) -> int:
        """How many of the ways to draw are left to try; part of the state of a fit."""
        return len(self._draws)

    @draws.setter
    def draws(self, left: int) -> None:
        self._draws = DRAWS[len(DRAWS) - left :]

    def _get_trace(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace, dict[str, Tensor]]:
        if self._draws[0] != "in the guide":
            guide = Postpone()(guide)
        guide_trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        replayed = poutine.replay(model, trace=guide_trace)
        integrate = Integrate(guide_trace, self.estimator, draw=self._draws[0] == "in the model")
        if self.estimator != "plain":
            replayed = integrate(replayed)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        latent = {name for name, site in model_trace.iter_stochastic_nodes()}
        if mismatch := latent.symmetric_difference(name for name, _ in guide_trace.iter_stochastic_nodes()):
            raise InputError(
                f"model and guide disagree on the sites {', '.join(sorted(mismatch))}; each must sample them all."
            )
        return model_trace, guide_trace, integrate.kl

    def terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
        """One estimate, as tensors that carry gradients; of a mixture the mean over one of each of its members."""
        if not isinstance(guide, Guide):
            return self._estimate(model, guide, *args, **kwargs)
        found = []
        for number in range(guide.members):
            with guide.using(number):
                found.append(self._estimate(model, guide, *args, **kwargs))
        return _mean(found)

    def _estimate(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
        ways = self._draws
        for i in range(len(ways) - 1):
            self._draws = ways[i:]
            with contextlib.suppress(Exception):  # whatever a NaN leads to in a user's code, the last attempt tells
                result = self._terms(model, guide, *args, **kwargs)
                if not math.isnan(_number(result.log_likelihood - result.kl)):
                    return result  # a draw was needed earlier, or not
        self._draws = ways[-1:]
        result = self._terms(model, guide, *args, **kwargs)
        if math.isnan(_number(result.log_likelihood - result.kl)):
            self._draws = ways  # no way helps, so that it was none's fault
        return result

    def _terms(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Terms:
        model_trace, guide_trace, known = self._get_trace(model, guide, args, kwargs)
        result = Terms()
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                value = site["fn"].log_prob(site["value"])
                result.log_likelihood = result.log_likelihood + _scaled_sum(value, site)
            else:
                q = guide_trace.nodes[name]["fn"]
                value = known[name] if name in known else _kl(q, site["fn"], site["value"], self.estimator != "plain")
                result.kl = result.kl + _scaled_sum(value, site)
                if value.dim():  # of symbols; the parameters of priors are no one's
                    result.kl_per_latent[name] = float(value.detach().mean())
        return result

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the β-weighted bound; ``last`` then holds its terms, detached."""
        terms = self.terms(model, guide, *args, **kwargs)
        self.last = Terms(_number(terms.log_likelihood), _number(terms.kl), terms.kl_per_latent)
        return torch.as_tensor(self.kl_weight * terms.kl - terms.log_likelihood)

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
    likelihood, kl = (sum(getattr(each, name) for each in found) / len(found) for name in ("log_likelihood", "kl"))
    return Terms(likelihood, kl, kl_per_latent)


def _number(value: float | Tensor) -> float:
    return float(torch.as_tensor(value).detach())


def _kl(q: Any, p: Any, drawn: Tensor, fused: bool) -> Tensor:
    if fused and is_gaussian(q) and is_gaussian(p) and p.event_shape == q.event_shape:
        a, b = q.base_dist, p.base_dist
        return gaussian_kl(a.loc, log_scale_of(a), b.loc, b.scale)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(drawn) - p.log_prob(drawn)


def _scaled_sum(value: Tensor, site: dict) -> Tensor:
    value = value if site["mask"] is None else torch.where(site["mask"], value, 0.0)
    return (value * site["scale"]).sum()
