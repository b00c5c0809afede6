"""Variational inference past mean fields: a guide's draws, annealed towards the posterior by leapfrog steps.

Uncorrected Hamiltonian annealing (Geffner & Domke 2021; Zhang et al. 2021) drifts along densities between the guide's
and the model's. No step is accepted or refused, so that the logarithm of each draw's importance weight has a mean below
the log evidence: a bound, which says how long the steps are to be, and how much of the way is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.errors import InputError
from kgpyro.inference.hmc import Chains
from kgpyro.posterior.replay import Program
from kgpyro.program.variational import Guide, Site

FEWEST = 50  # draws of each member of a guide, whose mean and scale are taken
LONGEST, SHORTEST = 0.5, 0.01  # step sizes, in scales of the start
KEPT = 0.95  # share of the momentum that a step leaves to the next


def anneal(
    density: Chains, start: Tensor, members: int, steps: int, size: float, bar: Any = None
) -> tuple[Tensor, Tensor]:
    """Draws after so many leapfrog steps from Gaussians with the moments of ``start``, ``(draws, n)`` each.

    Draw ``i`` is of member ``i % members``. The logarithms of the importance weights are returned with them,
    ``(draws,)``, -inf where a draw has diverged; the weights' mean is the evidence ``p(y)``, whatever steps and size.
    """
    turn = torch.arange(len(start), device=start.device) % members
    loc = torch.stack([start[m::members].mean(0) for m in range(members)])[turn]
    scale = torch.stack([start[m::members].std(0).clamp_min(1e-4) for m in range(members)])[turn]
    u, momentum = torch.randn_like(loc), torch.randn_like(loc)
    log_weight = (u.square() / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(1)
    for i in range(1, steps + 1):
        momentum = KEPT * momentum + math.sqrt(1 - KEPT**2) * torch.randn_like(u)
        before = momentum.square().sum(1)
        u = u + size / 2 * momentum
        slope = scale * density.gradient(loc + scale * u)[1]
        momentum = momentum + size * torch.lerp(-u, slope, i / steps)
        u = u + size / 2 * momentum
        log_weight = log_weight + (before - momentum.square().sum(1)) / 2
        if bar is not None:
            bar.update()
    z = loc + scale * u
    return z, (log_weight + density.gradient(z)[0]).nan_to_num(-math.inf, -math.inf, -math.inf)


@torch.no_grad()
def annealed_draws(
    program: Program, guide: Guide, sites: Mapping[str, Site], steps: int, draws: int, progress: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Draws of every site, ``(draws or more, *)``, and how it went: step size, bound per training fact and its error.

    It begins anew from the moments of the draws it made, with steps 1 / √2 as long, for as long as the bound rises.
    """
    members = guide.members
    density = Chains(program, guide, sites, max(draws, FEWEST * members))
    size, best = LONGEST, 0.0
    z, log_weight = anneal(density, density.starts, members, 0, size)
    if not math.isfinite(float(log_weight.mean())):
        raise InputError("the model's density is not finite at draws of its guide; fit with `inference` svi.")
    with tqdm(desc="UHA", unit="step", disable=not progress, leave=False) as bar:
        while size > SHORTEST:
            there, weight = anneal(density, z, members, steps, size, bar)
            if bool(weight.mean() > log_weight.mean()):
                z, log_weight, best = there, weight, size
            elif best:
                break
            size /= math.sqrt(2)
    facts = program.batches.num_observed
    return density.values(z)[0], {
        "steps": steps, "step_size": best, "bound_per_fact": float(log_weight.mean()) / facts,
        "bound_error": float(log_weight.std()) / math.sqrt(len(z)) / facts,
    }  # fmt: skip
