"""The bound of a finished fit, over all facts and untempered."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from kgpyro.inference.elbo import Terms, WeightedELBO
from kgpyro.program.batches import Batches
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide


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
            terms = elbo.terms(model, guide, kg, batches(part))
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
