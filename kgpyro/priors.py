"""Priors from a name, a call such as ``laplace(scale=0.5)``, a Pyro distribution or a dotted path."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.families import Family, HypersphericalUniform, family_for
from kgpyro.names import import_dotted, is_dotted

# What a parameter is where the call leaves it out: the standard member of the family.
DEFAULTS = {
    "loc": 0.0, "scale": 1.0, "rate": 1.0, "concentration": 1.0, "concentration0": 1.0, "concentration1": 1.0,
    "df": 4.0, "df1": 4.0, "df2": 4.0, "asymmetry": 1.0, "alpha": 1.0, "low": -1.0, "high": 1.0,
}  # fmt: skip
FAMILY_DEFAULTS = {"Gamma": {"concentration": 2.0}, "InverseGamma": {"concentration": 3.0}}


class Prior:
    """A prior over latents, given as a distribution for each length of latent.

    A univariate distribution is expanded to independent coordinates; a multivariate one must have an event of the
    latent's length.

    Attributes:
        text: how to write it on the command line; None for a Python object that cannot be written so.
    """

    def __init__(self, build: Callable[[int], TorchDistributionMixin], text: str | None):
        self._build = build
        self.text = text

    def __repr__(self) -> str:
        return f"Prior({self.text or 'a Python object'})"

    def distribution(self, size: int, like: Tensor | None = None) -> TorchDistributionMixin:
        """The prior of a latent of length ``size``: event shape ``(size,)``, on the device and dtype of ``like``.

        Raises InputError where the distribution is no prior: batched, discrete, not reparameterisable, without a
        density, or of another length.
        """
        base = self._build(size)
        _check_usable(base, self.text)
        base = base if like is None else _like(base, like)
        if base.event_shape == ():
            if base.batch_shape not in ((), (size,)):
                raise InputError(f"prior {self!r} has batch shape {tuple(base.batch_shape)}; need () or ({size},).")
            return _expanded(base, size).to_event(1)
        if base.event_shape != (size,):
            raise InputError(
                f"prior {self!r} has events of shape {tuple(base.event_shape)}; the latents need ({size},)."
            )
        return base

    def family(self, size: int) -> Family:
        """The posterior family that fits the support. Raises InputError where none does."""
        return family_for(self.distribution(size))


PriorLike: TypeAlias = str | TorchDistributionMixin | type | Callable[[int], TorchDistributionMixin] | Prior


def resolve_prior(prior: PriorLike) -> Prior:
    """A Prior from what a user gives: a name, a call, a dotted path, a Pyro distribution, or a function of the length.

    Raises InputError with the valid names, or the reason a distribution is no usable prior.
    """
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, TorchDistributionMixin):
        return Prior(lambda size: prior, _text_of(prior))
    if isinstance(prior, str):
        if is_dotted(prior):
            given = import_dotted(prior, "prior")
            if isinstance(given, str):
                raise InputError(f"prior {prior} is a string, not a distribution.")
            return Prior(resolve_prior(given)._build, prior)
        return _parse(prior)
    if isinstance(prior, type) and issubclass(prior, TorchDistributionMixin):
        cls = prior
        return Prior(lambda size: _construct(cls, {}, cls.__name__), None)
    if callable(prior):
        return Prior(prior, None)
    raise InputError(f"a prior is a name, a call such as laplace(scale=0.5), or a Pyro distribution; got {prior!r}.")


@cache
def prior_names() -> dict[str, type[TorchDistributionMixin]]:
    """Every family of ``pyro.distributions`` that could serve as a prior, by its name in snake case."""
    names: dict[str, Any] = {"hyperspherical_uniform": HypersphericalUniform}
    members: list[Any] = list(vars(dist).values())
    for cls in members:
        if inspect.isclass(cls) and issubclass(cls, TorchDistributionMixin) and _why_not(cls) is None:
            names[_snake(cls.__name__)] = cls
    return dict(sorted(names.items()))


_NO_FAMILY_BY_NAME = {
    "Delta": "has no spread",
    "Independent": "wraps another distribution; give that one",
    "MaskedDistribution": "wraps another distribution; give that one",
    "ExpandedDistribution": "wraps another distribution; give that one",
    "NanMaskedNormal": "is a likelihood for missing data",
    "Stable": "has no density",
    "StableWithLogProb": "has a density too slow for training",
    "AffineBeta": "is written beta(…) scaled by a dist.TransformedDistribution in Python",
}


def _why_not(cls: Any) -> str | None:
    """Why a class of ``pyro.distributions`` is no prior that a name can stand for; None where it is one."""
    if cls.__name__ in _NO_FAMILY_BY_NAME:
        return _NO_FAMILY_BY_NAME[cls.__name__]
    if getattr(cls, "has_rsample", False) is False:
        return "is not reparameterisable (it has no rsample)"
    try:
        if required := set(_parameters(cls)) - set(DEFAULTS):
            return f"needs {', '.join(sorted(required))}: give it in Python"
        standard = _construct(cls, {}, cls.__name__)
        if standard.event_shape:
            return "is multivariate: give it in Python with its parameters"
        if not standard.has_rsample or standard.support.is_discrete:
            return "is discrete or not reparameterisable"
        family_for(standard)
    except (InputError, TypeError, ValueError, NotImplementedError) as error:
        return f"cannot be built from a name: {error}"
    return None


def _parameters(cls: Any) -> list[str]:
    """Names of the constructor's parameters that have no default."""
    signature = inspect.signature(cls)
    positional = [p for name, p in signature.parameters.items() if name != "self"]
    if any(p.kind is p.VAR_POSITIONAL for p in positional):
        raise TypeError("no plain parameters")
    return [p.name for p in positional if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _parse(text: str) -> Prior:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("parameters are given by name")
        arguments = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "parameters are given by name, as plain numbers"
        raise InputError(
            f"prior {text!r} does not parse ({reason}); write a name or a call such as laplace(scale=0.5)."
        ) from error
    by_key = {name.replace("_", ""): (name, cls) for name, cls in prior_names().items()}
    key = call.func.id.replace("_", "").lower()
    if key not in by_key:
        classes: list[Any] = [c for c in vars(dist).values() if inspect.isclass(c)]
        refused = {_snake(c.__name__).replace("_", ""): c for c in classes}
        why = f" {refused[key].__name__} {_why_not(refused[key])}." if key in refused and _why_not(refused[key]) else ""
        raise InputError(f"unknown prior {call.func.id!r}.{why} Choose from {', '.join(prior_names())}.")
    name, cls = by_key[key]
    full = f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" if arguments else name
    if cls is HypersphericalUniform:
        if arguments:
            raise InputError(f"prior {full}: the uniform prior on the sphere has no parameters.")
        return Prior(HypersphericalUniform, name)
    _construct(cls, arguments, full)
    return Prior(lambda size: _construct(cls, arguments, full), full)


def _construct(cls: type[TorchDistributionMixin], arguments: dict[str, Any], text: str) -> TorchDistributionMixin:
    accepted = [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "validate_args", "kwargs")]
    if unknown := [k for k in arguments if k not in accepted]:
        raise InputError(f"prior {text}: no parameter {unknown[0]!r}; {cls.__name__} has {', '.join(accepted)}.")
    defaults = DEFAULTS | FAMILY_DEFAULTS.get(cls.__name__, {})
    filled = {name: defaults[name] for name in _parameters(cls) if name in defaults} | arguments
    try:
        tensors = {k: torch.as_tensor(v, dtype=torch.get_default_dtype()) for k, v in filled.items()}
        return cls(**tensors, validate_args=True)
    except (ValueError, TypeError, RuntimeError, AssertionError, IndexError) as error:
        raise InputError(f"prior {text}: {' '.join(str(error).split())}") from error


def _check_usable(base: TorchDistributionMixin, text: str | None) -> None:
    name = text or type(base).__name__
    if not isinstance(base, TorchDistributionMixin):
        raise InputError(f"prior {name} gives {type(base).__name__}, not a Pyro distribution.")
    if base.support is not None and base.support.is_discrete:
        raise InputError(f"prior {name} is discrete; latents need a continuous prior, such as normal.")
    if not base.has_rsample:
        raise InputError(f"prior {name} is not reparameterisable (it has no rsample), so its guide has no gradient.")


def _expanded(base: TorchDistributionMixin, size: int) -> TorchDistributionMixin:
    try:
        return base.expand([size])
    except NotImplementedError:  # a user's subclass with an __init__ of its own
        return dist.ExpandedDistribution(base, [size])


def _text_of(prior: TorchDistributionMixin) -> str | None:
    """How a distribution object is written as a call; None where it is no named family with scalar parameters."""
    cls = type(prior)
    name = _snake(cls.__name__)
    if prior_names().get(name) is not cls:
        return None
    if cls is HypersphericalUniform:
        return name
    parameters = {k: getattr(prior, k) for k in _parameters(cls)}
    if any(not isinstance(v, (int, float)) and torch.as_tensor(v).numel() != 1 for v in parameters.values()):
        return None
    return f"{name}({', '.join(f'{k}={float(v)!r}' for k, v in parameters.items())})"


def _like(value: Any, like: Tensor) -> Any:
    """A copy of a distribution with every tensor in it on the device and (where floating) the dtype of ``like``."""
    if isinstance(value, Tensor):
        return value.to(like) if value.is_floating_point() else value.to(like.device)
    if isinstance(value, (torch.distributions.Distribution, torch.distributions.Transform)):
        new = copy.copy(value)
        vars(new).update({k: _like(v, like) for k, v in vars(value).items() if k != "_inv"})
        if isinstance(new, HypersphericalUniform):
            new.device, new.dtype = like.device, like.dtype
        return new
    if isinstance(value, (list, tuple)):
        return type(value)(_like(v, like) for v in value) if not isinstance(value, torch.Size) else value
    return value
