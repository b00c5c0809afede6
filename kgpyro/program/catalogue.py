"""The families of ``pyro.distributions`` that have a name as priors, their parameters, and how a call builds one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from kgpyro.errors import InputError, meant
from kgpyro.names import STANDARD
from kgpyro.program.families import HypersphericalUniform, ProjectedNormal
from kgpyro.program.n3 import N3, ComplexN3

_OURS: dict[str, Any] = {"hyperspherical_uniform": HypersphericalUniform, "projected_normal": ProjectedNormal}
_OURS |= {"n3": N3, "complex_n3": ComplexN3}
CLASSES: dict[str, Any] = {name: _OURS.get(name) or getattr(dist, name.title().replace("_", "")) for name in STANDARD}
NAMES = {cls: name for name, cls in CLASSES.items()}
ALTERNATIVES = ({"scale_tril", "covariance_matrix", "precision_matrix"}, {"probs", "logits"})


def standard_of(cls: Any) -> dict[str, Any]:
    """The parameters of the standard member of a named family, in the order of its call; none of another class."""
    return STANDARD.get(NAMES.get(cls, ""), {})


def family_named(given: str) -> tuple[str, Any]:
    """A family's name as it is written here, and its class. Raises InputError for an unknown name."""
    by_key = {name.replace("_", ""): name for name in STANDARD}
    key = given.replace("_", "").lower()
    if key in by_key:
        return by_key[key], CLASSES[by_key[key]]
    pyros = {name.lower(): cls for name, cls in vars(dist).items() if inspect.isclass(cls)}
    why = meant(given, [*STANDARD, "learn", "learn_per_dim", "learn_per_symbol"])
    if key in pyros:
        why = f"{pyros[key].__name__} is not reparameterisable (it has no rsample); `kgpyro priors` lists what can be."
        if getattr(pyros[key], "has_rsample", False):
            why = f"{pyros[key].__name__} has no standard member: give one in Python, if its draws are vectors."
    raise InputError(f"unknown prior {given!r}; {why}")


def elementwise(cls: Any, key: str) -> constraints.Constraint | None:
    """The constraint of each value of a parameter that may be unknown; None for one that may not."""
    found = _constraint_of(cls, key)
    while isinstance(found, constraints.independent):
        found = found.base_constraint
    if found in (constraints.lower_cholesky, constraints.positive_definite):
        return constraints.positive
    if isinstance(found, (constraints.greater_than, constraints.greater_than_eq)):
        return constraints.positive if float(found.lower_bound) == 0 else None
    return found if found is constraints.real or found is constraints.unit_interval else None


def _constraint_of(cls: Any, key: str) -> Any:
    found = getattr(cls, "arg_constraints", None)
    return found.get(key) if isinstance(found, dict) else None  # it is a property where it depends on the parameters


def accepted_by(cls: Any) -> list[str]:
    return [n for n in inspect.signature(cls.__init__).parameters if n not in ("self", "validate_args")]


def construct(
    cls: type[TorchDistributionMixin], arguments: Mapping[str, Any], text: str, size: int, validate: bool = True
) -> TorchDistributionMixin:
    if unknown := [k for k in arguments if k not in accepted_by(cls)]:
        raise InputError(
            f"prior {text}: no parameter {unknown[0]!r}; {cls.__name__} has {', '.join(accepted_by(cls))}."
        )
    filled = standard_of(cls) | dict(arguments)
    for group in ALTERNATIVES:  # of parameters that stand for one another only the given
        if len(group & filled.keys()) > 1:
            filled = {k: v for k, v in filled.items() if k not in group or k in arguments}
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
    constraint = _constraint_of(cls, key)
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


class Parameter(NamedTuple):
    """A parameter of a named prior, where one number stands for it."""

    default: float  # of the standard member of the family
    constraint: constraints.Constraint | None  # None: it can be neither learned nor have a prior


def parameters_of(name: str) -> dict[str, Parameter]:
    """The parameters of a named prior, in the order of its call. Raises InputError for an unknown name."""
    _, cls = family_named(name)
    defaults = {k: v for k, v in standard_of(cls).items() if isinstance(v, (int, float))}
    return {key: Parameter(float(value), elementwise(cls, key)) for key, value in defaults.items()}
