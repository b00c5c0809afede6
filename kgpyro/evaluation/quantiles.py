"""Which confidences a source gives where which is predicted: quantiles that rise with the prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVELS = 41  # quantiles that are kept, evenly from the smallest to the largest
BLOCK = 50  # facts of like predictions, at least
BLOCKS = 200  # at most


def rising_quantiles(predicted: np.ndarray, given: np.ndarray, counts: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """The distribution of given confidences by predicted ones, all of shape ``(n,)``; each stands for ``counts`` facts.

    Blocks of facts with like predictions have the quantiles of given minus predicted, about their mean prediction. By
    isotonic regression each quantile then rises with the prediction (Casady & Cryer 1976), and they stay in order.

    Returns:
        A row per block: its mean prediction, and ``LEVELS`` quantiles minus it. Predictions rise from row to row.
    """
    from sklearn.isotonic import IsotonicRegression  # imported here: it takes a second

    order = np.argsort(predicted, kind="stable")
    blocks = np.array_split(order, np.clip(len(order) // BLOCK, 1, BLOCKS))
    at = np.array([np.average(predicted[block], weights=counts[block]) for block in blocks])
    found = at[:, None] + [_quantiles((given - predicted)[block], counts[block]) for block in blocks]
    weights = [counts[block].sum() for block in blocks]
    rising = [IsotonicRegression().fit_transform(at, column, sample_weight=weights) for column in found.T]
    keep = np.concatenate([[True], np.diff(at) > 0])
    return tuple(tuple(row) for row in np.stack([at, *(rising - at)], 1)[keep].tolist())


def quantiles_at(rows: Sequence[Sequence[float]], predicted: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
    """Quantiles at levels from 0 to 1, ``(n,)`` each, for predictions ``(n,)``: linear between rows, and levels."""
    at, *off = np.array(rows).T
    found = []
    for place in np.array(levels) * (LEVELS - 1):
        below = min(int(place), LEVELS - 2)
        low, high = (np.interp(predicted, at, off[i]) for i in (below, below + 1))
        found.append(np.clip(predicted + low + (place - below) * (high - low), 0, 1))
    return found


def _quantiles(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``LEVELS`` quantiles of values ``(n,)``, linear between the middles of what each stands for."""
    order = np.argsort(values)
    middle = np.cumsum(counts[order]) - counts[order] / 2
    return np.interp(np.linspace(0, counts.sum(), LEVELS), middle, values[order])
