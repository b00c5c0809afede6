"""Decisions that are wrong no more often than promised: where to abstain, by Learn-then-Test.

Of facts whose certainty is at least ``λ``, decided at one half, a share ``R(λ)`` is decided wrongly. Among ``k`` such
facts of a calibration set the errors are binomial, so ``R(λ) > risk`` is rejected where as few errors as were seen have
a probability of at most ``1 - confidence``. From the surest facts on ``λ`` falls as long as every step is rejected
(fixed-sequence testing; Angelopoulos et al. 2021, *Learn then Test*): with that confidence, over calibration sets, the
decided facts are wrong at most as often as ``risk`` says, if facts to come are exchangeable with these.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from kgpyro.errors import InputError

STEPS = 400  # certainties that are tried, from 1/2 down to 0


def refuse_no_risk(risk: float, confidence: float) -> None:
    """Raise InputError for what is no probability strictly between 0 and 1."""
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"`{name}` is a probability between 0 and 1; got {value}.")


def certain_enough(certainty: np.ndarray, wrong: np.ndarray, risk: float, confidence: float) -> float:
    """The least certainty at which decisions keep the risk; infinite where too few facts show that any do.

    ``certainty``, ``(n,)``: distances of probabilities from one half; ``wrong``: whether the decisions there are.
    """
    fewest = math.ceil(math.log(1 - confidence) / math.log(1 - risk))  # below which no errors at all prove nothing
    found = math.inf
    first = max(fewest, min(4 * fewest, len(wrong) // 4))  # a single error among very few would end it there
    for level in np.linspace(0.5, 0.0, STEPS + 1):
        decided = certainty >= level
        if (k := int(decided.sum())) < first:
            continue
        if binom.cdf(int(wrong[decided].sum()), k, risk) > 1 - confidence:
            break
        found = float(level)
    return found
