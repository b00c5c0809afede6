"""kgpyro: Bayesian knowledge-graph embeddings in Pyro, with link predictions that say how sure they are.

What is public is imported when it is first asked for: PyTorch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kgpyro.errors import InputError
from kgpyro.names import PUBLIC
from kgpyro.version import VERSION

if TYPE_CHECKING:
    from kgpyro.checking.abstention import abstention
    from kgpyro.checking.comparison import compare, multiplicity
    from kgpyro.checking.posterior_predictive import posterior_predictive
    from kgpyro.checking.prior_predictive import prior_predictive
    from kgpyro.checking.psis import psis_khat
    from kgpyro.checking.simulation import simulation_check
    from kgpyro.data.graph import Graph
    from kgpyro.data.labelled import labelled_facts
    from kgpyro.data.reading import load_graph
    from kgpyro.inference.fitting import fit
    from kgpyro.inference.options import Options
    from kgpyro.inference.search import search
    from kgpyro.posterior.fitted import Posterior
    from kgpyro.posterior.sharded import load
    from kgpyro.program.priors import resolve_prior
    from kgpyro.program.variational import Guide
    from kgpyro.reporting.explorer import explore
    from kgpyro.reporting.figures import fact_figure, variance_figure, variances

__version__ = VERSION
__all__ = [
    "Graph", "Guide", "InputError", "Options", "Posterior", "abstention", "compare", "explore", "fact_figure", "fit",
    "labelled_facts", "load", "load_graph", "multiplicity", "posterior_predictive", "prior_predictive", "psis_khat",
    "resolve_prior", "search", "simulation_check", "variance_figure", "variances",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'kgpyro' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)
