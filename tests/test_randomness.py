"""Random numbers from generators of our own: repeatable, and no one else's."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import distributions as dist
from torch import nn

from kgpyro.program.families import Normal
from kgpyro.program.lazy import Undrawn
from kgpyro.randomness import seeded

X = torch.full((3, 4), 0.4)
DRAWS: list[Callable[[], torch.Tensor]] = [
    lambda: torch.rand(3),
    lambda: torch.randn(2, 3),
    lambda: torch.randint(1 << 60, (4,)),
    lambda: torch.randperm(20),
    lambda: torch.randn_like(X),
    lambda: torch.rand_like(X),
    lambda: torch.bernoulli(X),
    lambda: torch.normal(X, 1.0),
    lambda: torch.multinomial(X, 2),
    lambda: torch.empty(3).exponential_(),
    lambda: nn.Linear(3, 4).weight.detach(),
    lambda: nn.Embedding(3, 4).weight.detach(),
    lambda: nn.init.xavier_uniform_(torch.empty(3, 4)),
    lambda: dist.Gamma(X, X).rsample(),
    lambda: dist.Dirichlet(X).rsample(),
    lambda: dist.StudentT(X).rsample(),
    lambda: dist.Poisson(X).sample(),
    lambda: dist.Multinomial(5, X).sample(),
    lambda: Undrawn.of(Normal(X, X).to_event(1)) * 1,
]


@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_repeatable_and_no_one_elses(number: int) -> None:
    draw = DRAWS[number]
    before = torch.get_rng_state()
    with seeded(1):
        first, second = draw(), draw()
    with seeded(1):
        again = draw()
    with seeded(2):
        other = draw()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, other)


def test_contexts_nest_and_are_of_their_thread() -> None:
    found = []
    with seeded(1):
        first = torch.rand(2)
        with seeded(5):
            torch.rand(7)
        thread = threading.Thread(target=lambda: found.append(torch.rand(2)))
        thread.start()
        thread.join()
        second = torch.rand(2)
    with seeded(1):
        assert torch.equal(torch.cat([first, second]), torch.cat([torch.rand(2), torch.rand(2)]))
