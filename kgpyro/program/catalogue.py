"""The families of ``pyro.distributions`` that have a name as priors, their parameters, and how a call builds one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.program.families import HypersphericalUniform, ProjectedNormal, family_for

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


@cache
def prior_names() -> dict[str, type[TorchDistributionMixin]]:
    """Every family of ``pyro.distributions`` that could serve as a prior, by its name in snake case."""
    names: dict[str, Any] = {}
    members: list[Any] = [*vars(dist).values(), HypersphericalUniform, ProjectedNormal]
    for cls in members:
        if inspect.isclass(cls) and issubclass(cls, TorchDistributionMixin) and why_no_prior(cls) is None:
            names[snake_case(cls.__name__)] = cls
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


def why_no_prior(cls: Any) -> str | None:
    """Why a class of ``pyro.distributions`` is no prior that a name can stand for; None where it is one."""
    if cls.__name__ in _NO_FAMILY_BY_NAME:
        return _NO_FAMILY_BY_NAME[cls.__name__]
    if getattr(cls, "has_rsample", False) is False:
        return "is not reparameterisable (it has no rsample)"
    try:
        if required := set(required_by(cls)) - {*DEFAULTS, "dim"}:
            return f"needs {', '.join(sorted(required))}: give it in Python"
        standard = cls(3) if cls is HypersphericalUniform else construct(cls, {}, cls.__name__, 3)
        if standard.event_shape not in ((), (3,)):
            return "has events that are no vectors"
        if not standard.has_rsample or standard.support.is_discrete:
            return "is discrete or not reparameterisable"
        family_for(standard)
    except (InputError, TypeError, ValueError, NotImplementedError) as error:
        return f"cannot be built from a name: {error}"
    return None


def required_by(cls: Any) -> list[str]:
    """Names of the constructor's parameters that have no default."""
    found = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        raise TypeError("no plain parameters")
    return [p.name for p in found if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def family_named(given: str) -> tuple[str, Any]:
    by_key = {name.replace("_", ""): (name, cls) for name, cls in prior_names().items()}
    key = given.replace("_", "").lower()
    if key in by_key:
        return by_key[key]
    classes: list[Any] = [c for c in vars(dist).values() if inspect.isclass(c)]
    refused = {snake_case(c.__name__).replace("_", ""): c for c in classes}
    why = (
        f" {refused[key].__name__} {why_no_prior(refused[key])}."
        if key in refused and why_no_prior(refused[key])
        else ""
    )
    raise InputError(f"unknown prior {given!r}.{why} Choose from {', '.join(prior_names())}.")


def elementwise(cls: Any, key: str) -> constraints.Constraint | None:
    """The constraint of each value of a parameter that may be unknown; None for one that may not."""
    found = constraints_of(cls).get(key)
    while isinstance(found, constraints.independent):
        found = found.base_constraint
    if found in (constraints.lower_cholesky, constraints.positive_definite):
        return constraints.positive
    if isinstance(found, (constraints.greater_than, constraints.greater_than_eq)):
        return constraints.positive if float(found.lower_bound) == 0 else None
    return found if found is constraints.real or found is constraints.unit_interval else None


def constraints_of(cls: Any) -> dict[str, Any]:
    found = getattr(cls, "arg_constraints", None)
    return found if isinstance(found, dict) else {}  # it is a property where it depends on the parameters


def accepted_by(cls: Any) -> list[str]:
    return [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "validate_args")]


def defaults_of(cls: Any) -> dict[str, Any]:
    return {name: DEFAULTS[name] for name in required_by(cls) if name in DEFAULTS} | FAMILY_DEFAULTS.get(
        cls.__name__, {}
    )


def without_alternatives(parameters: dict[str, Any], chosen: Iterable[str]) -> dict[str, Any]:
    """Of parameters that stand for one another, such as a matrix and its root, only the chosen."""
    for group in ALTERNATIVES:
        if len(group & set(parameters)) > 1:
            parameters = {k: v for k, v in parameters.items() if k not in group or k in set(chosen)}
    return parameters


def construct(
    cls: type[TorchDistributionMixin], arguments: Mapping[str, Any], text: str, size: int, validate: bool = True
) -> TorchDistributionMixin:
    if unknown := [k for k in arguments if k not in accepted_by(cls)]:
        raise InputError(
            f"prior {text}: no parameter {unknown[0]!r}; {cls.__name__} has {', '.join(accepted_by(cls))}."
        )
    filled = without_alternatives(defaults_of(cls) | dict(arguments), chosen=arguments)
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
    constraint = constraints_of(cls).get(key)
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
    _, cls = family_named(name)
    defaults = {k: v for k, v in standard_of(cls).items() if isinstance(v, (int, float))}
    return {key: Parameter(float(value), elementwise(cls, key)) for key, value in defaults.items()}


def standard_of(cls: Any) -> dict[str, Any]:
    """The parameters that a call of the family may leave out, with what they are then."""
    defaults = DEFAULTS | defaults_of(cls)
    defaults = {k: defaults[k] for k in accepted_by(cls) if k in defaults}
    return without_alternatives(defaults, chosen=defaults_of(cls))
