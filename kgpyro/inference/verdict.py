"""What a fit says of itself when it ends: whether it fell short, collapsed, or grew worse from its half on."""

from __future__ import annotations

import math

from kgpyro.inference.nuts import MIXED
from kgpyro.inference.progress import Progress
from kgpyro.inference.training import Training
from kgpyro.posterior.fitted import Posterior

WORSE = 0.01  # by which validation MRR may fall from a fit's half on without a word
COLLAPSED = 1.0  # nats of KL per latent vector below which a posterior says next to nothing about its symbol
ENOUGH = 100  # training facts below which little can be learned


def warnings_of(posterior: Posterior, module: Training, bar: Progress) -> list[str]:
    """What a fit's report warns of.

    Args:
        posterior: with the metrics of the fit.
        module: the fit, at its end.
        bar: how it went.
    """
    found, metrics, config = [], posterior.metrics, posterior.config
    halfway = bar.rows[bar.look - 1].get("valid_mrr", math.nan) if 0 < bar.look < len(bar.rows) else math.nan
    last = metrics["valid"]["realistic"]["mrr"] if "valid" in metrics else math.nan
    if last < halfway - WORSE:  # never less than NaN, of older checkpoints
        found.append(
            f"Validation MRR fell from {halfway:.3f} after {bar.look} epochs to {last:.3f} after {len(bar.rows)}: fit "
            f"for fewer `epochs`, or add `early_stopping`."
        )
    if not bar.finished and config["finish"] and config["guide"] == "point":
        found.append(f"The point estimate was trained for {module.step} of {bar.steps} steps, and then interrupted.")
    elif not bar.finished:
        found.append(f"The fit was interrupted after {module.step} of {bar.steps} steps; `resume` goes on with it.")
    collapsed = [site for site, kl in metrics["kl_per_latent"].items() if kl < COLLAPSED]
    if collapsed and not module.bound.guide.point:
        way_out = "lower `kl_weight`" if module.per_fact else "train longer, or lower `kl_weight`"
        found.append(
            f"The posterior has collapsed to the prior at {', '.join(sorted(collapsed))} (mean KL per latent below "
            f"{COLLAPSED:g} nat): these latents carry next to no information about their symbols; {way_out}."
        )
    if module.skipped:
        found.append(f"{module.skipped} of {module.step} steps were left out: their loss or gradient was not finite.")
    if not module.schedule.reached(module.step):
        found.append(
            f"The fit ended after {module.step} steps, before the KL weight reached its target at "
            f"{module.schedule.warmup_steps}."
        )
    if (facts := len(posterior.graph.train)) < ENOUGH:
        found.append(
            f"The graph has {facts} training facts, too few to say much: expect wide intervals, and ranks near chance."
        )
    if (r_hat := metrics.get(config["inference"], {}).get("r_hat", 0.0)) > MIXED:
        found.append(
            f"The chains have not mixed: R-hat {r_hat:.2f} of the log density ({MIXED:g} is the most); raise "
            f"`warmup_draws`."
        )
    return found
