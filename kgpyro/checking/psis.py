"""How far a variational posterior is from the true one: Pareto k-hat of the importance ratios between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from tqdm.auto import tqdm

from kgpyro.errors import InputError
from kgpyro.inference.elbo import CountFacts
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.inference_data import load_arviz
from kgpyro.program.batches import Batches
from kgpyro.program.plates import Batch
from kgpyro.program.variational import PER_FACT, Guide, pyro_alone
from kgpyro.randomness import seeded

GOOD, USABLE = 0.5, 0.7  # Yao et al. 2018, section 3.1
LARGEST = 50_000  # numbers that all latents together may be
FACTS = 1 << 22  # whose likelihood is computed at once
FEWEST = 100  # draws, of which the largest fifth make the tail


@dataclass(frozen=True, eq=False)
class KHat:
    """The Pareto shape of importance ratios.

    Attributes:
        k: the smaller the better; minus infinity where all ratios are equal.
        latents: how many numbers all latents together are.
        spread: the standard deviation of k over repeats; NaN for a single one.
        log_ratios: ``log p(y, h) - log q(h)`` of each draw, shape ``(repeats · draws,)``; their mean estimates the
            ELBO, and the logarithm of the mean of their exponentials, where k is below 0.7, the evidence ``log p(y)``.
    """

    k: float
    latents: int
    log_ratios: np.ndarray = field(repr=False)
    spread: float = math.nan

    @property
    def reading(self) -> str:
        """What k says, in the words of Yao et al. 2018."""
        if self.k < GOOD:
            return f"k-hat below {GOOD}: close to the true posterior; importance sampling corrects what is left"
        if self.k < USABLE:
            return f"k-hat from {GOOD} to {USABLE}: not close, yet useful; importance sampling still corrects it"
        return (
            f"k-hat of {USABLE} or more: jointly far from the true posterior, beyond importance sampling's correction, "
            f"though single scores may be right"
        )


@torch.no_grad()
def psis_khat(
    posterior: Posterior, draws: int = 1000, repeats: int = 1, *, seed: int = 0, progress: bool = False
) -> KHat:
    """PSIS diagnostic of a variational posterior (Yao, Vehtari, Simpson & Gelman 2018, "Yes, but did it work?").

    Draws all latents from the guide, takes the ratios ``p(y, h) / q(h)`` with every candidate of every training query,
    and fits a generalised Pareto distribution to the largest of them (Vehtari et al. 2024). The true posterior is that
    of the untempered model at the learned parameters of priors. Errors in all latents jointly add up.

    Args:
        posterior: of a model with latents per entity and relation, such as lim.
        draws: posterior draws; the estimate is noisy below some thousands.
        repeats: of the estimate, from as many draws each: k is then their mean, with its ``spread``.
        seed: of the draws.
        progress: show a progress bar.

    Raises:
        InputError: ArviZ is not installed; a point estimate; latents per fact; too many latents; entities that training
            has not seen; or too few draws.
    """
    load_arviz()
    guide, graph = posterior.its_guide("ratios of densities"), posterior.graph
    if draws < FEWEST:
        raise InputError(f"k-hat is of the tail of the draws; give at least {FEWEST}, not {draws}.")
    if repeats < 1:
        raise InputError(f"k-hat takes at least one estimate; got {repeats} for `repeats`.")
    if guide.point:
        raise InputError("a point estimate is no posterior to compare with the true one; fit another `guide`.")
    if any(frame in PER_FACT for frame in guide.symbols):
        raise InputError(
            "k-hat compares joint posteriors, and here every fact has latents of its own; fit `model` lim."
        )
    latents = sum(value.numel() for value in posterior.joint(0).values())
    if latents > LARGEST:
        raise InputError(
            f"k-hat is for small graphs: all latents together are {latents:,} numbers here; {LARGEST:,} are the most."
        )
    if guide.inductive and not bool(graph.seen.all()):
        raise InputError("k-hat is of the graph that was fitted, without the entities that training has not seen.")
    queries = graph.queries_of(posterior.config.get("closed_world", "local"))
    batches = Batches(queries, graph.num_entities, posterior.inverse, dtype=posterior.dtype).to(posterior.device)
    index = torch.arange(len(queries), device=posterior.device)
    parts = [batches(part) for part in index.split(max(1, FACTS // graph.num_entities))]
    ratios = np.empty(draws * repeats)
    with seeded(seed):
        for draw in tqdm(range(draws * repeats), desc="k-hat", unit="draw", disable=not progress, leave=False):
            with guide.using(draw):
                ratios[draw] = _log_ratio(posterior, guide, parts)
    each = [_pareto_shape(part) for part in ratios.reshape(repeats, draws)]
    return KHat(float(np.mean(each)), latents, ratios, float(np.std(each, ddof=1)) if repeats > 1 else math.nan)


def _log_ratio(posterior: Posterior, guide: Guide, parts: list[Batch]) -> float:
    """``log p(y, h) - log q(h)`` of one draw; the facts in parts, whose likelihoods add up."""
    kg, program = posterior.kg, posterior.program

    def run(what: Callable, batch: Batch) -> Trace:
        with pyro_alone(), program.parameters:
            return prune_subsample_sites(poutine.trace(what).get_trace(kg, batch))

    drawn = run(guide, parts[0])
    under = []  # each member of a mixture, which could all have drawn this
    for number in range(guide.members):
        with guide.using(number):
            under.append(run(poutine.replay(guide, trace=drawn), parts[0]).log_prob_sum())
    total = math.log(guide.members) - float(torch.stack(under).logsumexp(0))
    whole = sum(len(part.anchor) for part in parts)
    for i, part in enumerate(parts):
        trace = run(CountFacts(part)(poutine.replay(program.model, trace=drawn)), part)
        if not i:
            total += float(trace.log_prob_sum(lambda _, site: not site["is_observed"]))
        total += len(part.anchor) / whole * float(trace.log_prob_sum(lambda _, site: site["is_observed"]))
    return total


def _pareto_shape(log_ratios: np.ndarray) -> float:
    arviz, new = load_arviz()
    if np.ptp(log_ratios) == 0:
        return float("-inf")
    if not new:
        return float(arviz.psislw(log_ratios)[1])
    from arviz_stats.base import array_stats

    return float(array_stats.psislw(-log_ratios)[1])  # of log-likelihoods, minus which are the weights
