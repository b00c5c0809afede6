"""Random numbers from generators of our own, so that no caller's random state is read or moved, in any thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_FACTORIES = {torch.rand, torch.randn, torch.randint, torch.randperm}
_OF_TENSORS = {
    torch.normal, torch.bernoulli, torch.multinomial, torch.poisson, torch.binomial, torch._standard_gamma,
    torch._sample_dirichlet, Tensor.bernoulli, Tensor.multinomial, Tensor.normal_, Tensor.uniform_, Tensor.exponential_,
    Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_, Tensor.random_, Tensor.bernoulli_,
}  # fmt: skip
_OF_TENSORS |= {
    init.normal_, init.uniform_, init.trunc_normal_, init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_,
    init.kaiming_normal_, init.orthogonal_, init.sparse_,
}  # fmt: skip
_LIKE = {torch.rand_like: Tensor.uniform_, torch.randn_like: Tensor.normal_}


class seeded(TorchFunctionMode):
    """Within this context every random number of PyTorch comes from a generator of its own.

    The context is that of the present thread alone (a ``TorchFunctionMode``): other threads, and the process-wide
    generator, go on as if nothing had happened.

    Args:
        seed: of the generators, one per device.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start anew from a seed."""
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device | str) -> torch.Generator:
        """That of a device."""
        device = torch.device(device)
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed % (1 << 63))
        return self.generators[device]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for kind in types:
            if hasattr(kind, "prepared"):  # what such tensors draw as they are made is of these generators too
                with self:
                    args, kwargs = kind.prepared(func, args, kwargs)
        if func in _FACTORIES:
            if kwargs.get("generator") is None:
                kwargs = {**kwargs, "generator": self.generator(kwargs.get("device") or "cpu")}
        elif func in _OF_TENSORS:
            if kwargs.get("generator") is None:
                of = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
                kwargs = {**kwargs, "generator": self.generator("cpu" if of is None else of.device)}
        elif func in _LIKE:
            empty = torch.empty_like(*args, **kwargs)
            return _LIKE[func](empty, generator=self.generator(empty.device))
        return func(*args, **kwargs)
