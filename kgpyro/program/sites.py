"""The latent sites of a model, read off one run of it, and the parameters it keeps by ``pyro.param``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import transform_to

from kgpyro.errors import InputError
from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting

PER_FACT = ("fact_heads", "fact_relations", "fact_tails")  # plates of a batch whose latents are of facts
_PYRO = threading.RLock()  # Pyro's stack of handlers is the whole process'


@contextmanager
def pyro_alone() -> Iterator[None]:
    """Run Pyro's handlers while no other thread of kgpyro does."""
    with _PYRO:
        yield


class OwnParameters(Messenger):
    """Effect handler: ``pyro.param`` reads and makes parameters here, and Pyro's global store stays as it is.

    Parameters of modules (``pyro.module``, ``PyroModule``) are those of the modules themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.ParameterDict()
        self.constraints: dict[str, Any] = {}

    def _pyro_param(self, msg: dict) -> None:
        name, args, kwargs = msg["name"], msg["args"], msg["kwargs"]
        start = args[1] if len(args) > 1 else None
        if isinstance(start, nn.Parameter):
            msg["value"] = start
        else:
            key = name.replace(".", "|")
            if key not in self.made:
                constraint = kwargs["constraint"]
                start = start() if callable(start) and not isinstance(start, Tensor) else start
                if start is None:
                    raise InputError(f"pyro.param {name!r} has no value to start from.")
                self.constraints[key] = constraint
                free = transform_to(constraint).inv(start)
                self.made[key] = nn.Parameter(free.detach().clone())
            constraint = self.constraints[key]
            msg["value"] = transform_to(constraint)(self.made[key])
        msg["done"] = msg["stop"] = True


@dataclass(frozen=True)
class Site:
    """A latent site.

    Attributes:
        name: of the site.
        frame: the plate of :class:`Batch` whose symbols its rows are; None where they are no symbols.
        kind: of these symbols, ``"entity"`` or ``"relation"``; None where they are none.
        plates: name, size and dim of every plate it is in, where it is of no symbols.
        prior: the distribution of one run.
        start: where the search for its posterior starts, if the model says so (``infer={"start": …}``).
    """

    name: str
    frame: str | None
    kind: str | None
    plates: tuple[tuple[str, int, int], ...]
    prior: TorchDistribution
    start: Tensor | None = None

    def is_latent_of(self, kg: Setting) -> bool:
        """Whether its rows are what the priors of the setting are priors of: one latent vector per symbol."""
        if self.kind is None or self.prior.event_shape != (kg.size(self.kind),):
            return False
        support: Any = self.prior.support
        return type(support) is type(kg.symbol_prior(self.kind).distribution(kg.start, ...).support)


def frame_of(site: Mapping[str, Any]) -> str:
    """The plate of :class:`Batch` whose symbols a site's rows are; empty where they are no symbols."""
    return (site["infer"] or {}).get("symbols", ("", ""))[0]


def kind_of(site: Mapping[str, Any]) -> str:
    """What symbols a site's rows are, ``"entity"`` or ``"relation"``; empty where they are none."""
    return (site["infer"] or {}).get("symbols", ("", ""))[1]


def run_of(model: Callable, kg: Setting, batch: Batch) -> Trace:
    """A run of a model, without the sites of subsampling."""
    with pyro_alone(), torch.no_grad():
        return prune_subsample_sites(poutine.trace(model).get_trace(kg, batch))


def latent_sites(model: Callable, kg: Setting, batch: Batch) -> dict[str, Site]:
    """A model's latent sites by name, from one run of it. Raises InputError for what kgpyro cannot fit."""
    trace = run_of(model, kg, batch)
    if not trace.observation_nodes:
        raise InputError("the model observes nothing: give its likelihood obs=batch.y.")
    found = {}
    for name in trace.stochastic_nodes:
        node = trace.nodes[name]
        frame, kind = node["infer"].get("symbols", (None, None))
        plates = tuple((f.name, f.size, f.dim) for f in node["cond_indep_stack"] if f.vectorized)
        if not getattr(node["fn"], "has_rsample", False):
            raise InputError(
                f"the model's latent site {name!r} is not reparameterisable, so its guide has no gradient."
            )
        found[name] = Site(name, frame, kind, plates, node["fn"], node["infer"].get("start"))
    return found
