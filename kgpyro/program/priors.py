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
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
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
from kgpyro.program.families import Family, HypersphericalUniform, ProjectedNormal, family_for

# What a parameter is where the call leaves it out: the standard member of the family.
DEFAULTS = {
    "loc": 0.0, "scale": 1.0, "rate": 1.0, "concentration": 1.0, "concentration0": 1.0, "concentration1": 1.0,
    "df": 4.0, "df1": 4.0, "df2": 4.0, "asymmetry": 1.0, "alpha": 1.0, "low": -1.0, "high": 1.0,
    "scale_tril": 1.0, "cov_factor": 0.5, "cov_diag": 1.0, "temperature": 1.0, "probs": 0.5,
    "coord_scale": 0.5, "locs": [-1.0, 1.0], "component_logits": [0.0, 0.0],
}  # fmt: skip
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "Gamma": {"concentration": 2.0},
    "InverseGamma": {"concentration": 3.0},
    "ProjectedNormal": {"concentration": 0.0},
    "MultivariateNormal": {"scale_tril": 1.0},
    "ContinuousBernoulli": {"probs": 0.5},
    "RelaxedBernoulli": {"probs": 0.5},
    "RelaxedOneHotCategorical": {"probs": 1.0},
}
ALTERNATIVES = ({"scale_tril", "covariance_matrix", "precision_matrix"}, {"probs", "logits"})
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


class Prior:
    """A prior over latents, given as a distribution for each length of latent.

    A univariate distribution is expanded to independent coordinates; a multivariate one must have an event of the
    latent's length.

    Attributes:
        text: how to write it on the command line; None for a Python object that cannot be written so.
        unknown: the parameters that are learned or have priors of their own, by name.
    """

    def __init__(
        self,
        build: Callable[..., TorchDistributionMixin],
        text: str | None,
        unknown: Mapping[str, Unknown] | None = None,
    ):
        self._build = build
        self.text = text
        self.unknown = dict(unknown or {})

    def __repr__(self) -> str:
        return f"Prior({self.text or 'a Python object'})"

    def _repr_html_(self) -> str:
        standard, family = self.distribution(4), self.family(4)
        values: dict[str, object] = {"support": _support_name(family), "posterior": _posterior_name(family)}
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
        With a value for each of ``n`` symbols the batch shape is ``(n,)``, else ``()``.

        Raises InputError where the distribution is no prior: batched, discrete, not reparameterisable, without a
        density, or of another length.
        """
        base = self._build(size, **values) if values else self._build(size)
        _check_usable(base, self.text)
        base = base if like is None else _like(base, like)
        if base.event_shape == ():
            if base.batch_shape not in ((), (size,), (1,)) and not values:
                raise InputError(f"prior {self!r} has batch shape {tuple(base.batch_shape)}; need () or ({size},).")
            return _expanded(base, (*base.batch_shape[:-1], size)).to_event(1)
        if base.event_shape != (size,):
            raise InputError(
                f"prior {self!r} has events of shape {tuple(base.event_shape)}; the latents need ({size},)."
            )
        return base

    def value(self, shape: tuple[int, ...], like: Tensor, values: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """This prior as that of a parameter of another, event shape ``shape``."""
        base = _like(self._build(1, **values), like)
        if base.event_shape:
            raise InputError(f"prior {self!r} of a parameter must be univariate.")
        return _expanded(base, shape).to_event(len(shape))

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
            found = resolve_prior(given)
            return Prior(found._build, prior, found.unknown)
        return _parse(prior)
    if isinstance(prior, type) and issubclass(prior, TorchDistributionMixin):
        cls = prior
        return Prior(lambda size: _construct(cls, {}, cls.__name__, size), None)
    if callable(prior):
        return Prior(prior, None)
    raise InputError(f"a prior is a name, a call such as laplace(scale=0.5), or a Pyro distribution; got {prior!r}.")


@cache
def prior_names() -> dict[str, type[TorchDistributionMixin]]:
    """Every family of ``pyro.distributions`` that could serve as a prior, by its name in snake case."""
    names: dict[str, Any] = {}
    members: list[Any] = [*vars(dist).values(), HypersphericalUniform, ProjectedNormal]
    for cls in members:
        if inspect.isclass(cls) and issubclass(cls, TorchDistributionMixin) and _why_not(cls) is None:
            names[_snake(cls.__name__)] = cls
    return dict(sorted(names.items()))


_NO_FAMILY_BY_NAME = {
    "Delta": "has no spread",
    "Independent": "wraps another distribution; give that one",
    "MaskedDistribution": "wraps another distribution; give that one",
    "ExpandedDistribution": "wraps another distribution; give that one",
    "TransformedDistribution": "is built of other distributions: give it in Python",
    "FoldedDistribution": "is built of other distributions: give it in Python",
    "MaskedMixture": "is built of other distributions: give it in Python",
    "Rejector": "is built of functions: give it in Python",
    "NanMaskedNormal": "is a likelihood for missing data",
    "NanMaskedMultivariateNormal": "is a likelihood for missing data",
    "OneHotCategoricalStraightThrough": "is discrete: its gradients are a stand-in",
    "RelaxedBernoulliStraightThrough": "is discrete: its gradients are a stand-in",
    "RelaxedOneHotCategoricalStraightThrough": "is discrete: its gradients are a stand-in",
    "GaussianHMM": "is a distribution of time series",
    "IndependentHMM": "is a distribution of time series",
    "LinearHMM": "is a distribution of time series",
    "Wishart": "is a distribution of matrices",
    "LKJ": "is a distribution of matrices",
    "LKJCholesky": "is a distribution of matrices",
    "LogisticNormal": "has one coordinate more than its parameters: give it in Python",
    "AVFMultivariateNormal": "is MultivariateNormal with a gradient estimator of its own; give multivariate_normal",
    "OMTMultivariateNormal": "is MultivariateNormal with a gradient estimator of its own; give multivariate_normal",
    "GaussianScaleMixture": "knows the density of one vector at a time only",
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
        if required := set(_parameters(cls)) - {*DEFAULTS, "dim"}:
            return f"needs {', '.join(sorted(required))}: give it in Python"
        standard = cls(3) if cls is HypersphericalUniform else _construct(cls, {}, cls.__name__, 3)
        if standard.event_shape not in ((), (3,)):
            return "has events that are no vectors"
        if not standard.has_rsample or standard.support.is_discrete:
            return "is discrete or not reparameterisable"
        family_for(standard)
    except (InputError, TypeError, ValueError, NotImplementedError) as error:
        return f"cannot be built from a name: {error}"
    return None


def _parameters(cls: Any) -> list[str]:
    """Names of the constructor's parameters that have no default."""
    found = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        raise TypeError("no plain parameters")
    return [p.name for p in found if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


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
    name, cls = _family_named(call.func.id)
    if cls is HypersphericalUniform:
        if call.args or call.keywords:
            raise InputError(f"prior {ast.unparse(call)}: the uniform prior on the sphere has no parameters.")
        return Prior(HypersphericalUniform, name)
    accepted = _accepted(cls)
    if len(call.args) > len(accepted):
        raise InputError(f"prior {ast.unparse(call)}: {cls.__name__} has only {', '.join(accepted)}.")
    given = dict(zip(accepted, call.args, strict=False)) | {k.arg or "": k.value for k in call.keywords}
    found = {key: _parameter_of(value) for key, value in given.items()}
    written = ", ".join(f"{key}={_written(value)}" for key, value in found.items())
    text = f"{name}({written})" if written else name
    numbers = {key: value for key, value in found.items() if not isinstance(value, tuple)}
    standard = _construct(cls, numbers, text, 3)
    unknown = {k: _unknown(cls, standard, k, v, text) for k, v in found.items() if isinstance(v, tuple)}
    starts = {k: u.start for k, u in unknown.items() if u.start is not None}

    def build(size: int, **values: Tensor) -> TorchDistributionMixin:
        return _construct(cls, numbers | starts | values, text, size, validate=not values)

    build(3)
    return Prior(build, text, unknown)


def _family_named(given: str) -> tuple[str, Any]:
    by_key = {name.replace("_", ""): (name, cls) for name, cls in prior_names().items()}
    key = given.replace("_", "").lower()
    if key in by_key:
        return by_key[key]
    classes: list[Any] = [c for c in vars(dist).values() if inspect.isclass(c)]
    refused = {_snake(c.__name__).replace("_", ""): c for c in classes}
    why = f" {refused[key].__name__} {_why_not(refused[key])}." if key in refused and _why_not(refused[key]) else ""
    raise InputError(f"unknown prior {given!r}.{why} Choose from {', '.join(prior_names())}.")


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
    constraint = _elementwise(cls, key)
    if constraint is None:
        raise InputError(f"prior {text}: {key} of {cls.__name__} cannot be learned or have a prior; give numbers.")
    default = _defaults(cls).get(key, DEFAULTS.get(key, getattr(standard, key, 1.0)))
    start = float(torch.as_tensor(default).flatten()[0]) if isinstance(what, Prior) or what is None else float(what)
    probe = start if bool(constraint.check(torch.tensor(start))) else 1.0
    supports = [repr(_construct(cls, {key: x}, text, 3).support) for x in (probe, probe / 2 + 0.1)]
    if supports[0] != supports[1]:
        raise InputError(f"prior {text}: the support of {cls.__name__} depends on {key}, so it must be a number.")
    if not isinstance(what, Prior):
        if not bool(constraint.check(torch.tensor(start))):
            raise InputError(f"prior {text}: {key} cannot start at {start:g}.")
        return Unknown(per, constraint, start)
    support = what.family(1).support
    if constraint is constraints.positive and support is not constraints.positive and not _positive(support):
        raise InputError(f"prior {text}: {key} is positive, but {what.text} is not; half_cauchy or gamma would be.")
    if wrong := [u.per for u in what.unknown.values() if u.per not in ("all", per)]:
        raise InputError(
            f"prior {text}: {what.text} is per {wrong[0]}, but {key} is not; write per_{wrong[0]}({what.text})."
        )
    return Unknown(per, constraint, start, what)


def _positive(support: Any) -> bool:
    return float(getattr(support, "lower_bound", -1.0)) >= 0


def _elementwise(cls: Any, key: str) -> constraints.Constraint | None:
    """The constraint of each value of a parameter that may be unknown; None for one that may not."""
    found = _constraints(cls).get(key)
    while isinstance(found, constraints.independent):
        found = found.base_constraint
    if found in (constraints.lower_cholesky, constraints.positive_definite):
        return constraints.positive
    if isinstance(found, (constraints.greater_than, constraints.greater_than_eq)):
        return constraints.positive if float(found.lower_bound) == 0 else None
    return found if found is constraints.real or found is constraints.unit_interval else None


# ---- building -------------------------------------------------------------------------------------------------------


def _constraints(cls: Any) -> dict[str, Any]:
    found = getattr(cls, "arg_constraints", None)
    return found if isinstance(found, dict) else {}  # it is a property where it depends on the parameters


def _accepted(cls: Any) -> list[str]:
    return [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "validate_args")]


def _defaults(cls: Any) -> dict[str, Any]:
    return {name: DEFAULTS[name] for name in _parameters(cls) if name in DEFAULTS} | FAMILY_DEFAULTS.get(
        cls.__name__, {}
    )


def _without_alternatives(parameters: dict[str, Any], chosen: Iterable[str]) -> dict[str, Any]:
    """Of parameters that stand for one another, such as a matrix and its root, only the chosen."""
    for group in ALTERNATIVES:
        if len(group & set(parameters)) > 1:
            parameters = {k: v for k, v in parameters.items() if k not in group or k in set(chosen)}
    return parameters


def _construct(
    cls: type[TorchDistributionMixin], arguments: Mapping[str, Any], text: str, size: int, validate: bool = True
) -> TorchDistributionMixin:
    if unknown := [k for k in arguments if k not in _accepted(cls)]:
        raise InputError(f"prior {text}: no parameter {unknown[0]!r}; {cls.__name__} has {', '.join(_accepted(cls))}.")
    filled = _without_alternatives(_defaults(cls) | dict(arguments), chosen=arguments)
    options = {"validate_args": validate} if "validate_args" in inspect.signature(cls.__init__).parameters else {}
    try:
        tensors = {
            k: torch.as_tensor(v, dtype=None if isinstance(v, Tensor) else torch.get_default_dtype())
            for k, v in filled.items()
        }
        components = len(tensors["component_logits"]) if "component_logits" in tensors else 0
        return cls(**{k: _shaped(cls, k, v, size, components) for k, v in tensors.items()}, **options)
    except (ValueError, TypeError, RuntimeError, AssertionError, IndexError) as error:
        raise InputError(f"prior {text}: {' '.join(str(error).split())}") from error


def _shaped(cls: Any, key: str, value: Tensor, size: int, components: int) -> Tensor:
    """A parameter in the shape its family wants: numbers stand for equal coordinates, or a multiple of the identity."""
    constraint = _constraints(cls).get(key)
    if key == "component_logits":
        return value
    if key == "locs":  # of components
        return value.unsqueeze(-1).expand(len(value), size) if value.dim() == 1 else value
    if key == "coord_scale" and value.dim() < 2:
        return value.expand((components, size) if cls.__name__ == "MixtureOfDiagNormals" else (size,))
    if key == "cov_factor" and value.dim() == 0:
        return value.expand(size, 1)
    if constraint in (constraints.lower_cholesky, constraints.positive_definite):
        return (
            torch.diag_embed(value.expand(*value.shape[:-1], size))
            if value.dim() < 2 or value.shape[-1] == 1
            else value
        )
    vector = isinstance(constraint, constraints.independent) or constraint is constraints.simplex
    return value.expand(*value.shape[:-1], size) if vector and (value.dim() == 0 or value.shape[-1] == 1) else value


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
    name = _snake(cls.__name__)
    if prior_names().get(name) is not cls:
        return None
    if cls is HypersphericalUniform:
        return name
    keys = [k for k in _accepted(cls) if k in _constraints(cls) or k in _parameters(cls)]
    parameters = _without_alternatives({key: getattr(prior, key, None) for key in keys}, chosen=_defaults(cls))
    if any(v is None or torch.as_tensor(v).numel() != 1 for v in parameters.values()):
        return None
    return f"{name}({', '.join(f'{key}={float(v)!r}' for key, v in parameters.items())})"


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


@dataclass(frozen=True)
class Parameter:
    """A parameter of a named prior, where one number stands for it.

    Attributes:
        default: of the standard member of the family.
        constraint: of its value; None where it hangs on other parameters: it can be neither learned nor have a prior.
    """

    default: float
    constraint: constraints.Constraint | None


def parameters_of(name: str) -> dict[str, Parameter]:
    """The parameters of a named prior, in the order of its call. Raises InputError for an unknown name."""
    _, cls = _family_named(name)
    defaults = {k: v for k, v in _standard(cls).items() if isinstance(v, (int, float))}
    return {key: Parameter(float(value), _elementwise(cls, key)) for key, value in defaults.items()}


def _standard(cls: Any) -> dict[str, Any]:
    """The parameters that a call of the family may leave out, with what they are then."""
    defaults = DEFAULTS | _defaults(cls)
    defaults = {k: defaults[k] for k in _accepted(cls) if k in defaults}
    return _without_alternatives(defaults, chosen=_defaults(cls))


# ---- the table of all names -----------------------------------------------------------------------------------------


def prior_table() -> str:
    """Every prior that has a name, as a Markdown table; every one of them goes through the matrix of the tests."""
    rows = ["| prior | parameters | support | posterior | KL divergence | tested |", "|---|---|---|---|---|---|"]
    for name, cls in prior_names().items():
        prior, size = resolve_prior(name), 4
        p, family = prior.distribution(size), prior.family(size)
        q = family(torch.zeros(1, family.loc_size(size)) + 0.5, torch.zeros(1, family.scale_size(size)) - 1)
        try:
            kl_divergence(q, p)
            kl = "analytic"
        except NotImplementedError:
            kl = "Monte Carlo"
        written = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in _standard(cls).items())
        kind = (
            " (multivariate)" if cls is not HypersphericalUniform and _construct(cls, {}, name, 3).event_shape else ""
        )
        rows.append(
            f"| {name}{kind} | {written or '-'} | {_support_name(family)} | {_posterior_name(family)} | {kl} | yes |"
        )
    return "\n".join(rows)


def _support_name(family: Family) -> str:
    support: Any = family.support
    named = {constraints.real: "real", constraints.positive: "positive", constraints.simplex: "simplex"}
    named |= {constraints.sphere: "sphere"}
    if support in named:
        return named[support]
    if isinstance(support, constraints.interval):
        return f"[{support.lower_bound:g}, {support.upper_bound:g}]"
    return f"above {support.lower_bound:g}" if hasattr(support, "lower_bound") else f"below {support.upper_bound:g}"


def _posterior_name(family: Family) -> str:
    named = {
        "real": "Normal",
        "positive": "LogNormal",
        "sphere": "power spherical",
        "simplex": "Normal, by stick-breaking",
    }
    return named.get(_support_name(family), "Normal, pushed onto it")
