"""From posterior draws of logits to what a prediction says: probability, its spread, and what kind of doubt is left.

Of a categorical likelihood also the evidence for a fact: a query with n answers holds a fact with about n times the
probability that one answer is its candidate. When a fit ends, a line per relation links evidence to log-odds of facts
(:meth:`Posterior.recalibrate`, ``per_relation``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kgpyro.data.graph import Graph

IN_CACHE = 1 << 16  # draws of log-odds at once
# What nominal 90 % intervals held of true probabilities, by guide or inference: 25 entities, benchmarks/coverage.py
COVERED = {"lookup": 0.76, "lowrank": 0.76, "mixture": 0.81, "uha": 0.84}


def covered(by: str, interval: float) -> str:
    """What is known of the intervals of a guide, or of draws by nuts, hmc or uha, in words."""
    said = f"central {interval:.0%} of the probability over the posterior"
    if by in ("nuts", "hmc"):
        return f"{said}; draws of NUTS and HMC cover what they promise in simulations"
    name = by.partition("(")[0]
    if name == "point":
        return "a point estimate has no intervals"
    if interval == 0.9 and name in COVERED:
        return f"{said}; in simulations those of {name} cover {COVERED[name]:.0%} (docs/uncertainty.md)"
    return f"{said}; guides are too sure, and cover less (docs/uncertainty.md)"


def entropy(logits: Tensor) -> Tensor:
    """Of ``Bernoulli(sigmoid(logits))``, in nats, elementwise; exact far out, where probabilities round to 0 or 1."""
    return F.softplus(logits) - logits * logits.sigmoid()


def label_entropy(p: Tensor) -> Tensor:
    """Of ``Bernoulli(p)``, in nats, elementwise."""
    return -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)


def _in_parts(of: Callable[[Tensor], dict[str, Tensor]], logits: Tensor) -> dict[str, Tensor]:
    """What is said of columns, of so many at once as stay in the cache of a processor."""
    found = [of(part) for part in logits.split(max(1, IN_CACHE // len(logits)), 1)]
    return {name: torch.cat([each[name] for each in found]) for name in found[0]}


def means(logits: Tensor) -> dict[str, Tensor]:
    """Mean logit and probability over draws, ``(draws, n) -> (n,)`` each."""
    return _in_parts(
        lambda part: {"score": part.double().mean(0), "probability": part.double().sigmoid().mean(0)}, logits
    )


def moments(logits: Tensor) -> dict[str, Tensor]:
    """:func:`summary` without its interval."""
    return _in_parts(_moments, logits)


def _moments(logits: Tensor) -> dict[str, Tensor]:
    logits = logits.double()
    p, aleatoric = logits.sigmoid(), entropy(logits).mean(0)
    mean = p.mean(0)
    spread = p.std(0) if len(p) > 1 else torch.zeros_like(mean)
    return {
        "probability": mean,
        "std": torch.where(logits.amax(0) == logits.amin(0), 0.0, spread),  # whatever rounding says
        "aleatoric": aleatoric,
        "epistemic": (label_entropy(mean) - aleatoric).clamp_min(0),
        "score": logits.mean(0),
    }


def summary(logits: Tensor, interval: float = 0.9) -> dict[str, Tensor]:
    """What draws of a fact's logit say about it, shapes ``(draws, n) -> (n,)`` each.

    ``probability`` is the posterior predictive, ``std``, ``low`` and ``high`` the spread of the fact's own probability
    over the posterior. The predictive entropy splits in two (Depeweg et al. 2018): ``aleatoric``, the mean entropy of a
    draw, that no knowledge of the latents would remove, and ``epistemic``, the mutual information of label and latents.
    ``score`` is the mean logit.
    """
    order = ["probability", "std", "low", "high", "aleatoric", "epistemic", "score"]
    places = torch.tensor([(1 - interval) / 2, (1 + interval) / 2], dtype=torch.double) * (len(logits) - 1)
    below, share = places.long(), places.frac()

    def of(part: Tensor) -> dict[str, Tensor]:
        found, ordered = _moments(part), torch.from_numpy(np.sort(part.T.cpu().numpy()))  # many times as fast as torch
        least, most = (ordered[:, each].double().sigmoid() for each in (below, (below + 1).clamp_max(len(part) - 1)))
        low, high = least.lerp(most, share).to(part.device).unbind(1)
        mean = found["probability"]  # may lie beyond the quantiles of draws that are far from even
        return found | {"low": torch.minimum(low, mean), "high": torch.maximum(high, mean)}

    found = _in_parts(of, logits)
    return {name: found[name] for name in order}


def spread(drawn: Tensor) -> dict[str, np.ndarray]:
    """Mean and central 90 % over draws, ``(draws, n) -> (n,)`` each: ``mean``, ``low``, ``high``."""
    low, high = torch.quantile(drawn, torch.tensor([0.05, 0.95], dtype=drawn.dtype), dim=0)
    return {"mean": drawn.mean(0).numpy(), "low": low.numpy(), "high": high.numpy()}


def log_odds(log_p: Tensor) -> Tensor:
    """From the logarithm of a probability, elementwise."""
    log_p = log_p.clamp_max(-1e-7)
    return log_p - (-torch.expm1(log_p)).log()


def usual_answers(graph: Graph) -> Tensor:
    """How many answers an answered query of each row has in training, on average, shape ``(2 R,)``."""
    queries = graph.training_queries
    asked = torch.bincount(queries.relation, minlength=2 * graph.num_relations)
    answers = torch.bincount(queries.relation, queries.counts, minlength=len(asked))
    return (answers + 1) / (asked + 1)


def of_open_answers(
    logits: Tensor, graph: Graph, usual: Tensor, anchor: Tensor, row: Tensor, query: Tensor, candidate: Tensor
) -> Tensor:
    """Evidence that candidates answer queries, shape ``(n,)``: log-odds of being the answer, plus ``log n``.

    A candidate stands beside those alone that training does not hold: what training holds uses up most of the
    probability of a query that has many answers. ``n`` is half of what training has of the query, and half of
    what it usually has.

    Args:
        logits: log-odds of being *the* answer, of all candidates of the queries ``anchor, row``, ``(b, E)``.
        query, candidate: the query of each fact, from 0 to ``b - 1``, and its other end, ``(n,)``.
    """
    known = graph.training_queries
    place = known.positions(anchor.cpu(), row.cpu())
    log_p = F.logsigmoid(logits)
    own = log_p[query, candidate]
    held = torch.zeros_like(logits, dtype=torch.bool)
    rows, ids = (pair.to(logits.device) for pair in known.answer_pairs(place))
    held[rows, ids] = True
    total = log_p.masked_fill(held, -torch.inf).logsumexp(1)[query]
    total = torch.where(held[query, candidate], torch.logaddexp(total, own), total)
    count = torch.where(place >= 0, known.counts[place.clamp_min(0)], 0).to(usual)
    return log_odds(own - total) + ((count + usual[row]) / 2).log()[query]
