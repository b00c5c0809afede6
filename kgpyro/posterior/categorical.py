"""From the answers of a categorical likelihood to evidence for facts.

A query with n answers holds a fact with about n times the probability that one answer is its candidate. When a fit
ends, a line per relation links evidence to log-odds of facts (:meth:`Posterior.recalibrate`, ``per_relation``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kgpyro.data.graph import Graph


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
    log_p = logsigmoid(logits)
    own = log_p[query, candidate]
    held = torch.zeros_like(logits, dtype=torch.bool)
    rows, ids = (pair.to(logits.device) for pair in known.answer_pairs(place))
    held[rows, ids] = True
    total = log_p.masked_fill(held, -torch.inf).logsumexp(1)[query]
    total = torch.where(held[query, candidate], torch.logaddexp(total, own), total)
    count = torch.where(place >= 0, known.counts[place.clamp_min(0)], 0).to(usual)
    return log_odds(own - total) + ((count + usual[row]) / 2).log()[query]
