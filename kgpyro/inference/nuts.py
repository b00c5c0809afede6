"""The posterior by Hamiltonian Monte Carlo: Pyro's No-U-Turn sampler on the same model, for small graphs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from kgpyro.data.graph import Graph
from kgpyro.display import Metrics
from kgpyro.errors import InputError
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.inference_data import load_arviz
from kgpyro.posterior.replay import Program
from kgpyro.posterior.runs import provenance
from kgpyro.program.variational import PER_FACT, Site, pyro_alone

LARGEST = 20_000  # numbers that all latents together may be
MIXED = 1.05  # R-hat up to which chains agree
CELLS = 5_000_000  # facts whose likelihood each step of a trajectory may take


def refuse_chains(program: Program, sites: Mapping[str, Site], name: str, learns: bool = False) -> None:
    """Raise InputError where a program is not one for Monte Carlo by ``name``, with what it would take.

    Parameters, which chains do not move, are fine where something before them ``learns`` them.
    """
    batches = program.batches
    count = sum(site.prior.shape().numel() for site in sites.values())
    if program.kg.features is not None:
        raise InputError(f"{name} draws a latent for every entity and knows no features; leave out `features`.")
    if any(site.frame in PER_FACT for site in sites.values()):
        raise InputError(f"{name} needs latents that all facts share; here every fact has its own; use `model` lim.")
    if not learns and (any(True for _ in program.kg.parameters()) or len(program.parameters.made)):
        raise InputError(f"{name} learns no parameters; give numbers, or priors such as normal(scale=half_cauchy(1)).")
    if batches.negatives is not None or batches.unanswered:
        raise InputError(f"{name} needs the whole likelihood in every step; leave out `negatives` and `unanswered`.")
    cells = len(batches) * batches.num_entities
    if count > LARGEST or cells > CELLS:
        raise InputError(
            f"{name} is for small graphs: here {count:,} latent numbers and {cells:,} facts take part in each of some "
            f"hundred thousand gradients, and {LARGEST:,} and {CELLS:,} are the most; lower `dim`, or fit by svi."
        )


def draw_posterior(program: Program, warmup: int, draws: int, progress: bool) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Draws of every latent site, shape ``(draws, *)``, and how well they mix.

    The table has a row per site: ``values`` it has, the largest ``r_hat`` (split, of a single chain) and the smallest
    bulk effective sample size ``ess`` among them (Vehtari et al. 2021), by ArviZ.
    """
    batches = program.batches
    batch = batches(torch.arange(len(batches), device=program.kg.start.device))
    kernel = NUTS(program.model, ignore_jit_warnings=True)
    chain = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=not progress)
    with pyro_alone(), program.parameters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        chain.run(program.kg, batch)
    samples = {site: value.detach() for site, value in chain.get_samples().items()}
    return samples, mixing(samples)


def mixing(samples: dict[str, Tensor], chains: bool = False) -> pd.DataFrame:
    """R-hat and effective sample size by site, of draws of one chain ``(draws, *)``, or ``(chains, draws)``."""
    rows = {}
    for site, value in samples.items():
        if chains:
            flat = value.unsqueeze(-1).cpu().double().numpy()
        else:
            halves = value[: len(value) // 2 * 2].flatten(1).cpu().double()
            flat = halves.unflatten(0, (2, -1)).numpy()  # R-hat is between the halves of the chain
        rows[site] = {"values": flat.shape[-1], "r_hat": _worst(flat, "rhat"), "ess": _worst(flat, "ess")}
    return pd.DataFrame(rows).T.astype({"values": int}).rename_axis("site")


def _worst(chains: Any, what: str) -> float:
    """The largest R-hat, or the smallest effective sample size, of values ``(chains, draws, n)``."""
    arviz, new = load_arviz()
    if chains.shape[1] < 4:
        return float("nan")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains")
        if new:
            from arviz_stats.base import array_stats

            found = getattr(array_stats, what)(chains, chain_axis=0, draw_axis=1)
        else:
            found = getattr(arviz, what)(arviz.convert_to_dataset({"x": chains}))["x"].to_numpy()
    return float(found.max() if what == "rhat" else found.min())


def report(table: pd.DataFrame, started: float, warmup: int, draws: int) -> tuple[dict[str, Any], list[str]]:
    """What the metrics say of a chain, and warnings where it has not mixed."""
    worst, least = float(table["r_hat"].max()), float(table["ess"].min())
    found: dict[str, Any] = {"warmup": warmup, "draws": draws, "seconds": round(time.monotonic() - started, 1)}
    found |= {"r_hat": worst, "ess": least, "by_site": table.to_dict(orient="index")}
    warned = []
    if worst > MIXED or least < 100:
        warned.append(
            f"The chain has not mixed: R-hat {worst:.2f} ({MIXED:g} is the most), effective sample size {least:.0f} "
            f"(100 is the least). Latents may trade places without any change of the model, which harms no prediction; "
            f"else raise warmup and draws."
        )
    return found, warned


def posterior_by_nuts(
    graph: Graph,
    program: Program,
    sites: Mapping[str, Site],
    config: dict[str, Any],
    progress: bool,
    begin: Callable[[], None] | None,
) -> Posterior:
    """The posterior as draws of NUTS, with its metrics."""
    refuse_chains(program, sites, "NUTS")
    started = time.monotonic()
    if begin is not None:
        begin()
    config["kl_weight"] = 1.0
    warmup, draws = config["warmup_draws"], config["posterior_draws"]
    samples, table = draw_posterior(program, warmup, draws, progress)
    posterior = Posterior(graph, program, None, config, samples=samples)
    posterior.provenance = provenance(graph, config)
    posterior.seconds = round(time.monotonic() - started, 1)
    mixed, warned = report(table, started, warmup, draws)
    held_out = [split for split in ("test", "valid") if len(getattr(graph, split))]
    posterior.metrics = Metrics({split: posterior.evaluation(split, progress) for split in held_out}) | {
        "objective": f"{draws} draws of NUTS after {warmup} of warm-up; worst R-hat {mixed['r_hat']:.3f}, smallest "
        f"effective sample size {mixed['ess']:.0f}",
        "nuts": mixed,
        "warnings": graph.problems + warned,
    }
    return posterior
