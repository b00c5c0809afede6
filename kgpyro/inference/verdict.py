"""What a fit says of itself when it ends: whether it fell short, collapsed, or grew worse from its half on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kgpyro.inference.elbo import Terms
from kgpyro.inference.progress import Progress
from kgpyro.inference.training import Training

WORSE = 0.01  # by which validation MRR may fall from a fit's half on without a word
COLLAPSED = 1.0  # nats of KL per latent vector below which a posterior says next to nothing about its symbol


def warnings_of(
    config: Mapping[str, Any],
    module: Training,
    bar: Progress,
    terms: Terms,
    per_fact: bool,
    valid: Mapping[str, Any] | None,
) -> list[str]:
    """What a fit's report warns of.

    Args:
        config: resolved options.
        module: the fit, at its end.
        bar: how it went.
        terms: of its bound.
        per_fact: whether latents are of single facts.
        valid: validation metrics, if there are any.
    """
    found = []
    halfway = bar.rows[bar.look - 1].get("valid_mrr", math.nan) if 0 < bar.look < len(bar.rows) else math.nan
    if valid and (last := valid["realistic"]["mrr"]) < halfway - WORSE:  # never less than NaN, of older checkpoints
        found.append(
            f"Validation MRR fell from {halfway:.3f} after {bar.look} epochs to {last:.3f} after {len(bar.rows)}: fit "
            f"for fewer `epochs`, or add `early_stopping`."
        )
    if not bar.finished and config["finish"] and config["guide"] == "point":
        found.append(f"The point estimate was trained for {module.step} of {bar.steps} steps, and then interrupted.")
    elif not bar.finished:
        found.append(f"The fit was interrupted after {module.step} of {bar.steps} steps; `resume` goes on with it.")
    collapsed = [site for site, kl in terms.kl_per_latent.items() if kl < COLLAPSED]
    if collapsed and not module.bound.guide.point:
        way_out = "lower `kl_weight`" if per_fact else "train longer, or lower `kl_weight`"
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
    return found
