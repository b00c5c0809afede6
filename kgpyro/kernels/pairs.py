"""Inner products of listed pairs of rows, without a copy of the rows of each pair."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a candidate, together by their queries.

    Attributes:
        queries: the distinct numbers of queries, ascending, shape ``(q,)``.
        order: of the pairs as they were given, shape ``(n,)``.
        ends: where each query's pairs begin and end in that order, shape ``(q + 1,)``.
        candidates: the row of each pair's candidate, in that order, shape ``(n,)``.
    """

    queries: Tensor
    order: Tensor
    ends: Tensor
    candidates: Tensor

    @classmethod
    def of(cls, query: Tensor, candidate: Tensor) -> Pairs:
        """Of the query and the candidate of each pair, shape ``(n,)`` both."""
        queries, at, counts = torch.unique(query, return_inverse=True, return_counts=True)
        order = at.argsort(stable=True)
        return cls(queries, order, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), candidate[order])

    def products(self, queries: Tensor, table: Tensor) -> Tensor:
        """``⟨query, candidate⟩`` of each pair in :attr:`order`, shapes ``(q, d), (m, d) -> (n,)``."""
        zeros, shape = queries.new_zeros(len(self.candidates)), (len(queries), len(table))
        with warnings.catch_warnings():  # PyTorch's of a beta state, once a process
            warnings.simplefilter("ignore", UserWarning)
            pattern = torch.sparse_csr_tensor(self.ends, self.candidates, zeros, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, queries, table.mT, beta=0.0).values()
