"""Priors from a name, a call such as ``laplace(scale=0.5)``, a Pyro distribution or a dotted path.

A call's parameters are numbers; or unknown, to be learned with the fit or given a prior of their own:

    normal(scale=learn)                  one scale for all symbols, learned (empirical Bayes)
    normal(scale=learn_per_dim)          one per dimension
    normal(scale=learn_per_symbol)       one per entity or relation (Bamler et al. 2019)
    normal(scale=learn(0.3))             started at 0.3
    normal(scale=half_cauchy(1))         a latent with a prior, and a posterior, of its own
    normal(scale=per_symbol(half_cauchy(half_cauchy(0.1))))   and so on: local and global scales, as in a horseshoe
"""

from __future__ import annotations

import ast
import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import kl_divergence

from kgpyro.display import as_html
from kgpyro.errors import InputError
from kgpyro.names import import_dotted, is_dotted
from kgpyro.program.catalogue import (
    CLASSES,
    NAMES,
    accepted_by,
    construct,
    elementwise,
    family_named,
    standard_of,
)
from kgpyro.program.families import Family, HypersphericalUniform, ProjectedNormal, family_for

GRANULARITIES = {"learn": "all", "learn_per_dim": "dim", "learn_per_symbol": "symbol"}
WRAPPERS = {"per_dim": "dim", "per_symbol": "symbol"}


@dataclass(frozen=True)
class Unknown:
    """A parameter of a prior that is not a number.

    Attributes:
        per: what it has a value for: ``"all"`` symbols and dimensions alike, each ``"dim"``, or each ``"symbol"``.
        constraint: of each of its values.
        start: the value to start learning from, where it is learned.
        prior: its prior, where it has one.
    """

    per: str
    constraint: constraints.Constraint
    start: float | None = None
    prior: Prior | None = None

    def shape(self, count: int, size: int) -> tuple[int, ...]:
        """Of its values, for ``count`` symbols with latents of length ``size``; broadcasts with their table."""
        return {"all": (), "dim": (size,), "symbol": (count, 1)}[self.per]


@dataclass(frozen=True, eq=False, repr=False)
class Prior:
    """A prior over latents, given as a distribution for each length of latent.

    A univariate distribution is expanded to independent coordinates; a multivariate one must have an event of the
    latent's length.

    Attributes:
        build: the distribution, from the length of the latent and the values of unknown parameters by name.
        text: how to write it on the command line; None for a Python object that cannot be written so.
        unknown: the parameters that are learned or have priors of their own, by name.
    """

    build: Callable[..., TorchDistributionMixin]
    text: str | None
    unknown: Mapping[str, Unknown] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Prior({self.text or 'a Python object'})"

    def _repr_html_(self) -> str:
        standard = self.distribution(4)
        values: dict[str, object] = dict(zip(("support", "posterior"), _names_of(self.family(4)), strict=True))
        with contextlib.suppress(NotImplementedError):
            mean, deviation = float(standard.mean.mean()), float(standard.variance.mean().sqrt())
            if math.isfinite(mean + deviation):
                values["of a coordinate"] = f"mean {mean:.3g}, standard deviation {deviation:.3g}"
        what = {"all": "one for all", "dim": "one per dimension", "symbol": "one per symbol"}
        for name, unknown in self.unknown.items():
            how = f"prior {unknown.prior.text}" if unknown.prior else f"learned, from {unknown.start:g}"
            values[name] = f"{how}, {what[unknown.per]}"
        return as_html(f"Prior {self.text or 'a Python object'}", values)

    def distribution(
        self, size: int, like: Tensor | None = None, values: Mapping[str, Tensor] | None = None
    ) -> TorchDistributionMixin:
        """The prior of a latent of length ``size``: event shape ``(size,)``, on the device and dtype of ``like``.

        ``values`` are those of the unknown parameters, of their :meth:`Unknown.shape`; left out, they are their starts.
        With a value for each of ``n`` symbols the batch shape is ``(n,)``, else ``()``. One that is made ``like`` a
        tensor is for training: it does not validate, for the numbers of a call are checked where it is resolved.

        Raises InputError where the distribution is no prior: batched, discrete, not reparameterisable, without a
        density, or of another length.
        """
        base = self.build(size, **(values or {}))
        _check_usable(base, self.text)
        base = base if like is None else _like(base, like)
        if base.event_shape == ():
            if base.batch_shape not in ((), (size,), (1,)) and not values:
                raise InputError(f"prior {self!r} has batch shape {tuple(base.batch_shape)}; need () or ({size},).")
            base = _expanded(base, (*base.batch_shape[:-1], size)).to_event(1)
        elif base.event_shape != (size,):
            raise InputError(
                f"prior {self!r} has events of shape {tuple(base.event_shape)}; the latents need ({size},)."
            )
        if like is not None:
            base._validate_args = False
        return base

    def value(self, shape: tuple[int, ...], like: Tensor, values: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """This prior as that of a parameter of another, event shape ``shape``."""
        base = _like(self.build(1, **values), like)
        if base.event_shape:
            raise InputError(f"prior {self!r} of a parameter must be univariate.")
        base = _expanded(base, shape).to_event(len(shape))
        base._validate_args = False
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
        given_prior = ProjectedNormal(prior.concentration) if type(prior) is dist.ProjectedNormal else prior
        return Prior(lambda size: given_prior, _text_of(prior))
    if isinstance(prior, str):
        if is_dotted(prior):
            given = import_dotted(prior, "prior")
            if isinstance(given, str):
                raise InputError(f"prior {prior} is a string, not a distribution.")
            return replace(resolve_prior(given), text=prior)
        return _parse(prior)
    if isinstance(prior, type) and issubclass(prior, TorchDistributionMixin):
        return Prior(lambda size: construct(prior, {}, prior.__name__, size), None)
    if callable(prior):
        return Prior(prior, None)
    raise InputError(f"a prior is a name, a call such as laplace(scale=0.5), or a Pyro distribution; got {prior!r}.")


# ---- the grammar of a call ------------------------------------------------------------------------------------------


def _parse(text: str) -> Prior:
    try:
        return _prior_of(ast.parse(text.strip(), mode="eval").body)
    except InputError:
        raise
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise InputError(
            f"prior {text!r} does not parse ({reason}); write a name or a call such as laplace(scale=0.5)."
        ) from error


def _prior_of(node: ast.AST) -> Prior:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])  # type: ignore[arg-type]
    if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("it is no call of a family by name")
    name, cls = family_named(call.func.id)
    if cls is HypersphericalUniform:
        if call.args or call.keywords:
            raise InputError(f"prior {ast.unparse(call)}: the uniform prior on the sphere has no parameters.")
        return Prior(HypersphericalUniform, name)
    accepted = accepted_by(cls)
    if len(call.args) > len(accepted):
        raise InputError(f"prior {ast.unparse(call)}: {cls.__name__} has only {', '.join(accepted)}.")
    given = dict(zip(accepted, call.args, strict=False)) | {k.arg or "": k.value for k in call.keywords}
    found = {key: _parameter_of(value) for key, value in given.items()}
    written = ", ".join(f"{key}={_written(value)}" for key, value in found.items())
    text = f"{name}({written})" if written else name
    numbers = {key: value for key, value in found.items() if not isinstance(value, tuple)}
    standard = construct(cls, numbers, text, 4)
    unknown = {k: _unknown(cls, standard, k, v, text) for k, v in found.items() if isinstance(v, tuple)}
    starts = {k: u.start for k, u in unknown.items() if u.start is not None}

    def build(size: int, **values: Tensor) -> TorchDistributionMixin:
        return construct(cls, numbers | starts | values, text, size, validate=not values)

    build(4)
    return Prior(build, text, unknown)


def _parameter_of(node: ast.AST) -> Any:
    """A parameter's value: numbers; or ``(per, start)`` of a learned one, ``(per, prior)`` of one with a prior."""
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name):
        try:
            return ast.literal_eval(ast.unparse(node))
        except ValueError:
            raise ValueError(f"{ast.unparse(node)} is no number") from None
    arguments = node.args if isinstance(node, ast.Call) else []
    if function.id in GRANULARITIES:
        return GRANULARITIES[function.id], ast.literal_eval(arguments[0]) if arguments else None
    if function.id in WRAPPERS:
        if len(arguments) != 1:
            raise ValueError(f"{function.id} takes one prior")
        return WRAPPERS[function.id], _prior_of(arguments[0])
    return "all", _prior_of(node)


def _written(value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    per, what = value
    if isinstance(what, Prior):
        return str(what.text) if per == "all" else f"per_{per}({what.text})"
    name = next(key for key, granularity in GRANULARITIES.items() if granularity == per)
    return name if what is None else f"{name}({what!r})"


def _unknown(cls: Any, standard: Any, key: str, value: tuple[str, Any], text: str) -> Unknown:
    """The Unknown that a call's parameter is. Raises InputError where it cannot be one."""
    per, what = value
    constraint = elementwise(cls, key)
    if constraint is None:
        raise InputError(f"prior {text}: {key} of {cls.__name__} cannot be learned or have a prior; give numbers.")
    default = standard_of(cls).get(key, getattr(standard, key, 1.0))
    start = float(torch.as_tensor(default).flatten()[0]) if isinstance(what, Prior) or what is None else float(what)
    probe = start if bool(constraint.check(torch.tensor(start))) else 1.0
    supports = [repr(construct(cls, {key: x}, text, 4).support) for x in (probe, probe / 2 + 0.1)]
    if supports[0] != supports[1]:
        raise InputError(f"prior {text}: the support of {cls.__name__} depends on {key}, so it must be a number.")
    if not isinstance(what, Prior):
        if not bool(constraint.check(torch.tensor(start))):
            raise InputError(f"prior {text}: {key} cannot start at {start:g}.")
        return Unknown(per, constraint, start)
    support = what.family(1).support
    if constraint is constraints.positive and float(getattr(support, "lower_bound", -1.0)) < 0:
        raise InputError(f"prior {text}: {key} is positive, but {what.text} is not; half_cauchy or gamma would be.")
    if wrong := [u.per for u in what.unknown.values() if u.per not in ("all", per)]:
        raise InputError(
            f"prior {text}: {what.text} is per {wrong[0]}, but {key} is not; write per_{wrong[0]}({what.text})."
        )
    return Unknown(per, constraint, start, what)


# ---- building -------------------------------------------------------------------------------------------------------


def _check_usable(base: TorchDistributionMixin, text: str | None) -> None:
    name = text or type(base).__name__
    if not isinstance(base, TorchDistributionMixin):
        raise InputError(f"prior {name} gives {type(base).__name__}, not a Pyro distribution.")
    if base.support is not None and base.support.is_discrete:
        raise InputError(f"prior {name} is discrete; latents need a continuous prior, such as normal.")
    if not base.has_rsample:
        raise InputError(f"prior {name} is not reparameterisable (it has no rsample), so its guide has no gradient.")


def _expanded(base: TorchDistributionMixin, shape: tuple[int, ...]) -> TorchDistributionMixin:
    try:
        return base.expand(shape)
    except NotImplementedError:  # a user's subclass with an __init__ of its own
        return dist.ExpandedDistribution(base, shape)


def _text_of(prior: TorchDistributionMixin) -> str | None:
    """How a distribution object is written as a call; None where it is no named family with scalar parameters."""
    cls = type(prior)
    if (name := NAMES.get(cls)) is None or not (keys := standard_of(cls)):
        return name
    parameters = {key: getattr(prior, key, None) for key in keys}
    if any(v is None or torch.as_tensor(v).numel() != 1 for v in parameters.values()):
        return None
    return f"{name}({', '.join(f'{key}={float(torch.as_tensor(v))!r}' for key, v in parameters.items())})"


def _like(value: Any, like: Tensor) -> Any:
    """A copy of a distribution that does not validate, every tensor in it with the device and dtype of ``like``."""
    if isinstance(value, Tensor):
        return value.to(like) if value.is_floating_point() else value.to(like.device)
    if isinstance(value, (torch.distributions.Distribution, torch.distributions.Transform)):
        new = copy.copy(value)
        vars(new).update({k: _like(v, like) for k, v in vars(value).items() if k != "_inv"})
        if isinstance(new, torch.distributions.Distribution):
            new._validate_args = False
        return new
    if isinstance(value, (list, tuple)):
        return type(value)(_like(v, like) for v in value) if not isinstance(value, torch.Size) else value
    return value


# ---- the table of all names -----------------------------------------------------------------------------------------


def prior_table() -> str:
    """Every prior that has a name, as a Markdown table; every one of them goes through the matrix of the tests."""
    rows = ["| prior | parameters | support | posterior | KL divergence | tested |", "|---|---|---|---|---|---|"]
    for name, cls in CLASSES.items():
        prior, size = resolve_prior(name), 4
        p, family = prior.distribution(size), prior.family(size)
        q = family(torch.zeros(1, family.loc_size(size)) + 0.5, torch.zeros(1, family.scale_size(size)) - 1)
        try:
            kl_divergence(q, p)
            kl = "analytic"
        except NotImplementedError:
            kl = "Monte Carlo"
        written = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in standard_of(cls).items())
        kind = " (multivariate)" if cls is not HypersphericalUniform and construct(cls, {}, name, 4).event_shape else ""
        rows.append(f"| {name}{kind} | {written or '-'} | {' | '.join(_names_of(family))} | {kl} | yes |")
    return "\n".join(rows)


def _names_of(family: Family) -> tuple[str, str]:
    """A family's support and its posterior, in words."""
    support: Any = family.support
    named = {constraints.real: ("real", "Normal"), constraints.positive: ("positive", "LogNormal")}
    named |= {constraints.sphere: ("sphere", "power spherical")}
    named |= {constraints.simplex: ("simplex", "Normal, by stick-breaking")}
    if support in named:
        return named[support]
    if isinstance(support, constraints.interval):
        where = f"[{support.lower_bound:g}, {support.upper_bound:g}]"
    elif hasattr(support, "lower_bound"):
        where = f"above {support.lower_bound:g}"
    else:
        where = f"below {support.upper_bound:g}"
    return where, "Normal, pushed onto it"
