"""A guide's draws, moved by Hamiltonian Monte Carlo until they are draws of the posterior: many chains at once.

Variational inference finds where the posterior is and leaves out how latents hang together, so that its intervals are
too narrow. Chains that start from its draws, with its scales as their metric, have little left to find (Hoffman 2017),
and all of them take a step in one run of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to
from tqdm.auto import tqdm

from kgpyro.errors import InputError
from kgpyro.inference.nuts import mixing
from kgpyro.posterior.replay import Program, joint_draw
from kgpyro.program.plates import Batch
from kgpyro.program.variational import Guide, Site, pyro_alone

CHAINS = 64
SHORTEST, LONGEST = 4, 16  # leapfrog steps of a trajectory
BETWEEN = 5  # trajectories between the draws of a chain that are kept
ACCEPTED = 0.8  # share of proposals that the step size aims at
FAR = 100.0  # scales from the guide's centre, beyond which a trajectory has diverged
NUMBERS = 1 << 26  # scores of all chains at once, at most


class Chains:
    """The joint density of latents and labels, of many chains at once, in unconstrained coordinates.

    Attributes:
        starts: draws of the guide, the chains' first states, shape ``(chains, n)``.
        centre, scale: of each coordinate, the guide's, shape ``(n,)``.
        together: whether all chains go through one run of the model.
    """

    def __init__(self, program: Program, guide: Guide, sites: Mapping[str, Site], chains: int):
        self.program, self.sites, batches = program, sites, program.batches
        self.batch: Batch = batches(torch.arange(len(batches), device=program.kg.start.device))
        self.supports = {name: biject_to(site.prior.support) for name, site in sites.items()}
        drawn = [joint_draw(program, guide, number) for number in range(max(chains, 200))]
        free = {name: torch.stack([self.supports[name].inv(d[name]) for d in drawn]) for name in sites}
        self.shapes = {name: value.shape[1:] for name, value in free.items()}
        flat = torch.cat([free[name].flatten(1) for name in sites], 1)
        self.starts, self.centre, self.scale = flat[:chains].clone(), flat.mean(0), flat.std(0).clamp_min(1e-4)
        self.together = False
        self.together = self._vectorises()

    def values(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Latents by site, ``(chains, *)``, and the log-determinant of the way to them, ``(chains,)``."""
        found, log_det, start = {}, torch.zeros_like(z[:, 0]), 0
        for name, shape in self.shapes.items():
            free = z[:, start : start + math.prod(shape)].reshape(len(z), *shape)
            start += math.prod(shape)
            found[name] = self.supports[name](free)
            log_det = log_det + self.supports[name].log_abs_det_jacobian(free, found[name]).reshape(len(z), -1).sum(1)
        return found, log_det

    def log_density(self, z: Tensor) -> Tensor:
        """``log p(y, h)`` of each chain, up to a constant, shapes ``(chains, n) -> (chains,)``."""
        values, log_det = self.values(z)
        if not self.together:
            each = [{name: value[i] for name, value in values.items()} for i in range(len(z))]
            return log_det + torch.cat([self._run(one, 1) for one in each])
        for name, site in self.sites.items():
            if site.frame is None and not site.plates:  # where a plate of particles would put it
                values[name] = values[name].unsqueeze(1)
        return log_det + self._run(values, len(z))

    def _run(self, values: Mapping[str, Tensor], chains: int) -> Tensor:
        """``log p(y, h)`` of so many chains in one run of the model, ``(chains,)``."""
        with pyro_alone(), self.program.parameters:
            given = poutine.condition(self.program.model, values)
            trace = prune_subsample_sites(poutine.trace(given).get_trace(self.program.kg, self.batch))
        nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
        each = (node["fn"].log_prob(node["value"]) * node["scale"] for node in nodes)
        return torch.stack([value.reshape(chains, -1).sum(1) for value in each]).sum(0)

    def _vectorises(self) -> bool:
        """Whether the model runs for several chains at once, with what each has alone."""
        few = self.starts[:3]
        alone = self.log_density(few)
        self.together = True
        try:
            return bool(torch.allclose(self.log_density(few), alone, rtol=1e-4))
        except (RuntimeError, IndexError, ValueError):  # of shapes that a model of one's own did not expect
            return False

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log density of each chain, and its gradient, a part of the chains at a time."""
        cells = len(self.batch.anchor) * self.batch.num_entities
        found = []
        for part in z.split(max(1, NUMBERS // cells)):
            away = ~((part - self.centre).abs() <= FAR * self.scale).all(
                1, keepdim=True
            )  # where a density may overflow
            with torch.enable_grad():
                free = torch.where(away, self.centre, part).detach().requires_grad_()
                value = self.log_density(free)
                (slope,) = torch.autograd.grad(value.sum(), free)
            found.append((value.detach().masked_fill(away[:, 0], -math.inf), slope))
        values, slopes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes)


@torch.no_grad()
def moved_draws(
    program: Program, guide: Guide, sites: Mapping[str, Site], warmup: int, draws: int, progress: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Draws of every site, ``(draws or more, *)``, and how the chains went: acceptance, step size, R-hat.

    R-hat is of the log density, between chains: latents themselves may trade places without any change of the model.
    """
    chains = min(CHAINS, draws)
    density = Chains(program, guide, sites, chains)
    z, scale = density.starts, density.scale
    value, slope = density.gradient(z)
    if not bool(value.isfinite().all()):
        raise InputError("the model's density is not finite at draws of its guide; fit with `inference` svi.")
    rounds = math.ceil(draws / chains)
    step, kept, values, accepted = 0.2, [], [], []
    log_average, error = math.log(step), 0.0
    total = warmup + rounds * BETWEEN
    for i in tqdm(range(total), desc="HMC", unit="trajectory", disable=not progress, leave=False):
        momentum = torch.randn_like(z)
        at, there, push = z, value, slope
        kinetic = momentum.square().sum(1) / 2
        for _ in range(int(torch.randint(SHORTEST, LONGEST + 1, ()))):
            momentum = momentum + step / 2 * scale * push
            at = at + step * scale * momentum
            there, push = density.gradient(at)
            momentum = momentum + step / 2 * scale * push
        log_ratio = (there - value + kinetic - momentum.square().sum(1) / 2).nan_to_num(-math.inf)
        chance = log_ratio.clamp_max(0).exp()
        accept = torch.rand_like(chance) < chance
        z, slope = (torch.where(accept[:, None], new, old) for new, old in ((at, z), (push, slope)))
        value = torch.where(accept, there, value)
        if i < warmup:  # dual averaging (Hoffman & Gelman 2014)
            error += (ACCEPTED - float(chance.mean()) - error) / (i + 10)
            log_step = math.log(2.0) - math.sqrt(i + 1) / 0.05 * error
            log_average += (log_step - log_average) * (i + 1) ** -0.75
            step = min(math.exp(log_step), 2.0) if i < warmup - 1 else min(math.exp(log_average), 2.0)
        else:
            accepted.append(float(chance.mean()))
            values.append(value)
            if (i - warmup + 1) % BETWEEN == 0:
                kept.append(z)
    samples, _ = density.values(torch.cat(kept))
    table = mixing({"log density": torch.stack(values, 1)}, chains=True)
    return samples, {
        "acceptance": sum(accepted) / len(accepted), "step_size": step, "chains": chains,
        "r_hat": float(table["r_hat"].iloc[0]), "ess": float(table["ess"].iloc[0]),
    }  # fmt: skip
