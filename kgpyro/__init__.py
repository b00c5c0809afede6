"""kgpyro: Bayesian knowledge-graph embeddings in Pyro, with link predictions that say how sure they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgpyro.abstention import abstention
from kgpyro.checks import prior_predictive
from kgpyro.comparison import compare
from kgpyro.errors import InputError
from kgpyro.figures import fact_figure, variance_figure, variances
from kgpyro.graph import Graph, load_graph
from kgpyro.guide import Guide
from kgpyro.negatives import labelled_facts
from kgpyro.posterior import Posterior
from kgpyro.priors import resolve_prior
from kgpyro.psis import psis_khat
from kgpyro.replicates import posterior_predictive

if TYPE_CHECKING:
    from kgpyro.explorer import explore
    from kgpyro.fitting import fit

__version__ = "0.1.0"
__all__ = [
    "Graph", "Guide", "InputError", "Posterior", "abstention", "compare", "explore", "fact_figure", "fit",
    "labelled_facts", "load", "load_graph", "posterior_predictive", "prior_predictive", "psis_khat", "resolve_prior",
    "variance_figure", "variances",
]  # fmt: skip


def load(folder: str | Path, **own: Any) -> Posterior:
    """Read a saved run; see :meth:`kgpyro.Posterior.load`."""
    return Posterior.load(folder, **own)


def __getattr__(name: str) -> Any:
    if name == "fit":  # Lightning takes seconds to import, and reading a run does not need it
        from kgpyro.fitting import fit

        return fit
    if name == "explore":  # needs ipywidgets, which is optional
        from kgpyro.explorer import explore

        return explore
    raise AttributeError(f"module 'kgpyro' has no attribute {name!r}")
