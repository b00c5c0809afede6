"""kgpyro: Bayesian knowledge-graph embeddings in Pyro, with link predictions that say how sure they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgpyro.checking.abstention import abstention
from kgpyro.checking.comparison import compare
from kgpyro.checking.posterior_predictive import posterior_predictive
from kgpyro.checking.prior_predictive import prior_predictive
from kgpyro.checking.psis import psis_khat
from kgpyro.checking.simulation import simulation_check
from kgpyro.data.graph import Graph
from kgpyro.data.labelled import labelled_facts
from kgpyro.data.reading import load_graph
from kgpyro.errors import InputError
from kgpyro.inference.options import Options
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.priors import resolve_prior
from kgpyro.program.variational import Guide
from kgpyro.reporting.figures import fact_figure, variance_figure, variances
from kgpyro.version import VERSION

if TYPE_CHECKING:
    from kgpyro.inference.fitting import fit
    from kgpyro.reporting.explorer import explore

__version__ = VERSION
__all__ = [
    "Graph", "Guide", "InputError", "Options", "Posterior", "abstention", "compare", "explore", "fact_figure", "fit",
    "labelled_facts", "load", "load_graph", "posterior_predictive", "prior_predictive", "psis_khat", "resolve_prior",
    "simulation_check", "variance_figure", "variances",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def load(folder: str | Path, **own: Any) -> Posterior:
    """Read a saved run; see :meth:`kgpyro.Posterior.load`."""
    return Posterior.load(folder, **own)


def __getattr__(name: str) -> Any:
    if name == "fit":  # Lightning takes seconds to import, and reading a run does not need it
        from kgpyro.inference.fitting import fit

        return fit
    if name == "explore":  # needs ipywidgets, which is optional
        from kgpyro.reporting.explorer import explore

        return explore
    raise AttributeError(f"module 'kgpyro' has no attribute {name!r}")
