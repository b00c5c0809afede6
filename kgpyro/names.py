"""What names stand for: those of kgpyro, of models and of guides, and a user's own, ``package.module:object``.

The core of kgpyro never imports ``kgpyro.models`` or ``kgpyro.guides``; it resolves them through these tables.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from kgpyro.errors import InputError, meant

PUBLIC = {
    "Graph": "kgpyro.data.graph",
    "Guide": "kgpyro.program.variational",
    "Options": "kgpyro.inference.options",
    "Posterior": "kgpyro.posterior.fitted",
    "abstention": "kgpyro.checking.abstention",
    "compare": "kgpyro.checking.comparison",
    "explore": "kgpyro.reporting.explorer",
    "fact_figure": "kgpyro.reporting.figures",
    "fit": "kgpyro.inference.fitting",
    "labelled_facts": "kgpyro.data.labelled",
    "load": "kgpyro.posterior.sharded",
    "load_graph": "kgpyro.data.reading",
    "multiplicity": "kgpyro.checking.comparison",
    "posterior_predictive": "kgpyro.checking.posterior_predictive",
    "prior_predictive": "kgpyro.checking.prior_predictive",
    "psis_khat": "kgpyro.checking.psis",
    "resolve_prior": "kgpyro.program.priors",
    "search": "kgpyro.inference.search",
    "simulation_check": "kgpyro.checking.simulation",
    "variance_figure": "kgpyro.reporting.figures",
    "variances": "kgpyro.reporting.figures",
}
MODELS = {"lim": "kgpyro.models.lim:lim", "lfm": "kgpyro.models.lfm:lfm"}
GUIDES = {
    "lookup": "kgpyro.guides.lookup:Lookup",
    "mlp": "kgpyro.guides.mlp:MLP",
    "features": "kgpyro.guides.features:Features",
    "lowrank": "kgpyro.guides.lowrank:LowRank",
    "flow": "kgpyro.guides.flow:Flow",
    "mixture": "kgpyro.guides.mixture:Mixture",
    "point": "kgpyro.guides.point:Point",
}

OWN = ("model", "prior", "entity_prior", "relation_prior", "score", "guide")  # options that may name a user's own code
SCORES = ("DistMult", "ComplEx", "TransE", "TransE-L1", "TransE-L2", "RESCAL", "CP", "RotatE", "pykeen:NAME")
# Every prior that has a name, with the parameters of the family's standard member: what a call may leave out.
STANDARD: dict[str, dict[str, Any]] = {
    "asymmetric_laplace": {"loc": 0.0, "scale": 1.0, "asymmetry": 1.0},
    "beta": {"concentration1": 1.0, "concentration0": 1.0},
    "cauchy": {"loc": 0.0, "scale": 1.0},
    "chi2": {"df": 4.0},
    "complex_n3": {"strength": 1.0},
    "continuous_bernoulli": {"probs": 0.5},
    "dirichlet": {"concentration": 1.0},
    "exponential": {"rate": 1.0},
    "fisher_snedecor": {"df1": 4.0, "df2": 4.0},
    "gamma": {"concentration": 2.0, "rate": 1.0},
    "generalized_pareto": {"loc": 0.0, "scale": 1.0, "concentration": 1.0},
    "gumbel": {"loc": 0.0, "scale": 1.0},
    "half_cauchy": {"scale": 1.0},
    "half_normal": {"scale": 1.0},
    "hyperspherical_uniform": {},
    "inverse_gamma": {"concentration": 3.0, "rate": 1.0},
    "kumaraswamy": {"concentration1": 1.0, "concentration0": 1.0},
    "laplace": {"loc": 0.0, "scale": 1.0},
    "log_normal": {"loc": 0.0, "scale": 1.0},
    "logistic": {"loc": 0.0, "scale": 1.0},
    "low_rank_multivariate_normal": {"loc": 0.0, "cov_factor": 0.5, "cov_diag": 1.0},
    "mixture_of_diag_normals": {"locs": [-1.0, 1.0], "coord_scale": 0.5, "component_logits": [0.0, 0.0]},
    "mixture_of_diag_normals_shared_covariance": {
        "locs": [-1.0, 1.0], "coord_scale": 0.5, "component_logits": [0.0, 0.0],
    },
    "multivariate_normal": {"loc": 0.0, "scale_tril": 1.0},
    "multivariate_student_t": {"df": 4.0, "loc": 0.0, "scale_tril": 1.0},
    "n3": {"strength": 1.0},
    "normal": {"loc": 0.0, "scale": 1.0},
    "pareto": {"scale": 1.0, "alpha": 1.0},
    "projected_normal": {"concentration": 0.0},
    "relaxed_bernoulli": {"temperature": 1.0, "probs": 0.5},
    "relaxed_one_hot_categorical": {"temperature": 1.0, "probs": 1.0},
    "skew_logistic": {"loc": 0.0, "scale": 1.0, "asymmetry": 1.0},
    "soft_asymmetric_laplace": {"loc": 0.0, "scale": 1.0, "asymmetry": 1.0, "softness": 1.0},
    "soft_laplace": {"loc": 0.0, "scale": 1.0},
    "student_t": {"df": 4.0, "loc": 0.0, "scale": 1.0},
    "uniform": {"low": -1.0, "high": 1.0},
    "weibull": {"scale": 1.0, "concentration": 1.0},
}  # fmt: skip


def is_dotted(name: str) -> bool:
    """Whether a name is a dotted path ``package.module:object`` to a user's own code."""
    module, _, attribute = name.partition("(")[0].partition(":")
    return bool(attribute) and all(part.isidentifier() for part in module.split("."))


def import_dotted(path: str, kind: str) -> Any:
    """The object at ``package.module:object``; modules in the current folder are found too. Raises InputError."""
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{kind} {path}: module {module_name!r} cannot be imported ({error}).") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{kind} {path}: module {module_name!r} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def resolve(given: Any, table: dict[str, str], kind: str) -> Any:
    """The object that a name of ``table``, a dotted path, or the object itself stands for.

    A name or path may be a call, such as ``lowrank(rank=8)``: the object then has these options set.

    Raises InputError with the valid names, or those of the options.
    """
    if not isinstance(given, str):
        return given
    refuse_unknown(given, table, kind)
    name, opened, _ = given.partition("(")
    found = import_dotted(table.get(name.lower(), name), kind)
    return partial(found, **_options(given, found, kind)) if opened else found


def refuse_unknown(given: Any, names: Iterable[str], kind: str) -> None:
    """Raise InputError for a name, or the call of one, that is none of these and no dotted path."""
    name = str(given).partition("(")[0]
    if isinstance(given, str) and name.lower() not in map(str.lower, names) and not is_dotted(given):
        end = meant(name, names, f"choose from {', '.join(names)}, or your own as package.module:object.")
        raise InputError(f"unknown {kind} {given!r}; {end}")


def refuse_misspelt_prior(given: Any) -> None:
    """Raise InputError for a prior whose name is nearly one of ours; what others are worth only Pyro knows."""
    name, known = str(given).partition("(")[0].strip(), {prior.replace("_", "") for prior in STANDARD}
    unknown = isinstance(given, str) and not is_dotted(given) and name.replace("_", "").lower() not in known
    if unknown and (end := meant(name, STANDARD)).startswith("did you mean"):
        raise InputError(f"unknown prior {given!r}; {end}")


def _options(call: str, found: Any, kind: str) -> dict[str, Any]:
    try:
        node: Any = ast.parse(call.partition(":")[2] or call, mode="eval").body
        if node.args:
            raise ValueError("options are given by name")
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise InputError(f"{kind} {call!r} does not parse ({error}); write NAME(option=number).") from error
    known = {p.name: p.default for p in inspect.signature(found).parameters.values() if p.default is not p.empty}
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{kind} {call}: no option {option!r}; {has}.")
        if not isinstance(value, (int, float)) or value <= 0:
            raise InputError(f"{kind} {call}: {option} must be a positive number.")
        if isinstance(known[option], int) and not isinstance(value, int):
            raise InputError(f"{kind} {call}: {option} must be a whole number.")
    return options


def name_of(given: Any, table: dict[str, str], kind: str) -> str:
    """How a model or guide is written in a configuration. Raises InputError for what no path leads to."""
    if isinstance(given, str):
        name, opened, rest = given.partition("(")
        return name.lower() + opened + rest if name.lower() in table else given
    path = f"{given.__module__}:{given.__qualname__}" if hasattr(given, "__qualname__") else ""
    if "<locals>" in path or path.startswith("__main__") or not path:
        raise InputError(f"this {kind} lives only in the running program; put it into a module to save the run.")
    return next((name for name, known in table.items() if known == path), path)
