"""Tensors that are made when they are first used: tables not yet drawn, and labels told by where the ones are."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.utils._pytree import tree_map

from kgpyro.kernels.gaussian import Noise, gaussian_draw_and_kl
from kgpyro.program.families import is_gaussian, log_scale_of

_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "is_sparse", "requires_grad", "is_cuda")
_METADATA = {getattr(vars(torch._C.TensorBase)[name], "__get__") for name in _PROPERTIES} | {  # noqa: B009
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point, torch.is_floating_point,
    Tensor.ndimension, torch.numel,
}  # fmt: skip
T = TypeVar("T", bound="Lazy")


class Lazy(Tensor):
    """A tensor whose shape, dtype and device are known, and whose values are made when PyTorch computes with it.

    Who knows it can ask it for what it stands for, without having it made.
    """

    _made: Tensor | None = None

    @classmethod
    def shaped(cls: type[T], like: Tensor) -> T:
        """One with the shape, dtype and device of another tensor, whose memory it does not touch."""
        return like.detach().as_subclass(cls)

    def make(self) -> Tensor:
        """The values; called once."""
        raise NotImplementedError

    @property
    def made(self) -> Tensor:
        """The values, made now if they were not."""
        if self._made is None:
            self._made = self.make()
        return self._made

    @classmethod
    def prepared(cls, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments of a function of PyTorch, made where it needs their values."""
        return (args, kwargs) if func in _METADATA else tree_map(_made, (args, kwargs))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = cls.prepared(func, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _made(x: Any) -> Any:
    return x.made if isinstance(x, Lazy) else x


class Undrawn(Lazy):
    """A table of latents that a guide has at a site with independent Normals, not drawn yet.

    Attributes:
        fn: the guide's distribution, batch shape ``(n,)``, event shape ``(d,)``.
        prior: the model's distribution at the site, once known: then one pass draws and compares.
        kl: the KL divergence of each row, shape ``(n,)``, where that pass was made; else None.
        noise: what draws standard normals for blocks of rows, where that is not PyTorch.
    """

    fn: TorchDistribution
    prior: TorchDistribution | None = None
    kl: Tensor | None = None
    noise: Noise | None = None

    @classmethod
    def of(cls, fn: TorchDistribution) -> Undrawn:
        new = cls.shaped(fn.base_dist.loc)
        new.fn = fn
        return new

    def make(self) -> Tensor:
        if self.prior is None or not is_gaussian(self.prior) or self.prior.event_shape != self.fn.event_shape:
            return self.fn.rsample()
        q, p = self.fn.base_dist, self.prior.base_dist
        drawn, self.kl = gaussian_draw_and_kl(q.loc, log_scale_of(q), p.loc, p.scale, self.noise)
        return drawn


class Labels(Lazy):
    """Labels ``(b, E)`` that are not 0 at ``(row, column)`` alone, both of shape ``(p,)``: there 1, or ``labels``."""

    row: Tensor
    column: Tensor
    labels: Tensor | None

    @classmethod
    def at(
        cls, row: Tensor, column: Tensor, shape: tuple[int, int], dtype: torch.dtype, labels: Tensor | None = None
    ) -> Labels:
        new = cls.shaped(torch.zeros((), dtype=dtype, device=row.device).expand(shape))
        new.row, new.column, new.labels = row, column, labels
        return new

    def make(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            zeros = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        zeros[self.row, self.column] = 1 if self.labels is None else self.labels
        return zeros


def observed_of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows and columns of labels ``(b, E)`` that are not 0, and their values, None for 1; however they are told."""
    if isinstance(labels, Labels):
        return labels.row, labels.column, labels.labels
    row, column = labels.nonzero().unbind(1)
    return row, column, labels[row, column]
