"""The latent sites of a model, read off one run of it, and what every guide is: a distribution sampled at them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import transform_to

from kgpyro.errors import InputError
from kgpyro.program.families import family_for
from kgpyro.program.plates import Batch, Symbols
from kgpyro.program.setting import Setting

PER_FACT = ("fact_heads", "fact_relations", "fact_tails")  # plates of a batch whose latents are of facts
_PYRO = threading.RLock()  # Pyro's stack of handlers is the whole process'


def pyro_alone() -> AbstractContextManager:
    """Run Pyro's handlers while no other thread of kgpyro does."""
    return _PYRO


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
                start = start() if callable(start) and not isinstance(start, Tensor) else start
                if start is None:
                    raise InputError(f"pyro.param {name!r} has no value to start from.")
                self.constraints[key] = kwargs["constraint"]
                self.made[key] = nn.Parameter(transform_to(kwargs["constraint"]).inv(start).detach().clone())
            msg["value"] = transform_to(self.constraints[key])(self.made[key])
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
    return site["infer"].get("symbols", ("", ""))[0]


def kind_of(site: Mapping[str, Any]) -> str:
    """What symbols a site's rows are, ``"entity"`` or ``"relation"``; empty where they are none."""
    return site["infer"].get("symbols", ("", ""))[1]


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
        if not getattr(node["fn"], "has_rsample", False):
            raise InputError(
                f"the model's latent site {name!r} is not reparameterisable, so its guide has no gradient."
            )
        frame, kind = node["infer"].get("symbols", (None, None))
        plates = tuple((f.name, f.size, f.dim) for f in node["cond_indep_stack"] if f.vectorized)
        found[name] = Site(name, frame, kind, plates, node["fn"], node["infer"].get("start"))
    return found


_MEMBER: ContextVar[int] = ContextVar("member", default=0)


class Guide(nn.Module):
    """An amortised guide ``q(h | symbol)``. A subclass says what :meth:`posterior` is; the sites follow from it.

    A guide of your own, given as ``package.module:MyGuide``, is such a subclass, called with the two arguments below.
    Latents that are no vectors of the setting's symbols, such as intercepts, temperatures or a bias per entity, have
    mean-field posteriors of their own support here.

    Args:
        kg: the setting: ``kg.count(kind)`` symbols, latents of length ``kg.size(kind)``, and ``kg.family(kind)``, which
            fits the prior's support, for each kind ``"entity"`` and ``"relation"``.
        sites: the model's latent sites (:func:`kgpyro.program.variational.latent_sites`).

    Attributes:
        families: the posterior family of each kind, ``"entity"`` and ``"relation"``.
        inductive: whether entities are known by ``kg.features`` alone, so that new ones have posteriors too; such a
            guide keeps them as its buffer ``features``.
        point: whether it gives every latent a value instead of a distribution, so that what is optimised is no bound.
        members: of how many equally weighted guides it is a mixture; :meth:`posterior` is that of number ``member``.
    """

    inductive = point = False
    members = 1

    def __init__(self, kg: Setting, sites: Mapping[str, Site]):
        super().__init__()
        self.families = kg.families
        self.symbols: dict[str, list[tuple[str, str]]] = {}  # sites, with the kind of their symbols, by plate
        self.others: dict[str, list[tuple[str, tuple[tuple[str, int, int], ...]]]] = {}
        self.fields = nn.ModuleDict()
        for name, site in sites.items():
            if site.frame is not None and site.kind is not None and site.is_latent_of(kg):
                self.symbols.setdefault(site.frame, []).append((name, site.kind))
            else:
                self.others.setdefault(site.frame or "", []).append((name, site.plates))
                count = None if site.kind is None else kg.count(site.kind)
                self.fields[name.replace(".", "|")] = MeanField(site, count, self.point)

    @property
    def per_fact(self) -> bool:
        """Whether it has latents of single facts, as for the LFM."""
        return any(frame in PER_FACT for frame in (*self.symbols, *self.others))

    @property
    def member(self) -> int:
        """The number of the mixture's member in use."""
        return _MEMBER.get() % self.members

    @contextmanager
    def using(self, number: int) -> Iterator[None]:
        """Have :meth:`posterior` be that of member ``number`` of a mixture, counted round and round, in this thread."""
        token = _MEMBER.set(number)
        try:
            yield
        finally:
            _MEMBER.reset(token)

    def posterior(self, kind: str, symbols: Symbols) -> TorchDistribution:
        """``q(h | symbols)`` for ids of a kind: batch shape ``(n,)``, event shape ``(d,)``."""
        raise NotImplementedError

    def field(self, site: str) -> MeanField:
        """The mean-field posterior of a site that is no vector of the setting's symbols."""
        return cast(MeanField, self.fields[site.replace(".", "|")])

    def forward(self, kg: Setting, batch: Batch) -> None:
        """Sample every latent site of the model, in the plates the model has it in."""
        self.sample_others()
        for frame in [*{**self.symbols, **self.others}]:
            if frame:
                with getattr(batch, frame)() as ids:
                    for name, kind in self.symbols.get(frame, ()):
                        pyro.sample(name, self.posterior(kind, ids))
                    for name, _ in self.others.get(frame, ()):
                        pyro.sample(name, self.field(name)(ids))

    def sample_others(self) -> None:
        """Sample the sites that are not of symbols, such as intercepts; for a ``forward`` of your own."""
        pyro.module("guide", self)
        for name, plates in self.others.get("", ()):
            with ExitStack() as stack:
                for plate, size, dim in plates:
                    stack.enter_context(pyro.plate(plate, size, dim=dim))
                pyro.sample(name, self.field(name)())


class MeanField(nn.Module):
    """The posterior of a site that is no vector of the setting's symbols: independent, in the family of its support.

    ``count`` is that of the symbols, where its rows are such; at a ``point`` it is a value in the place of a
    distribution. Raises InputError where no family fits the support of the site's prior.
    """

    def __init__(self, site: Site, count: int | None, point: bool):
        super().__init__()
        prior, self.point = site.prior, point
        try:
            self.family = family_for(prior)
            self.family.refuse_sphere("")
        except InputError as error:
            raise InputError(
                f"no posterior family fits the support {prior.support} of the model's latent site {site.name!r}."
            ) from error
        batch, event = prior.batch_shape if count is None else (count,), prior.event_shape
        self.event_dim = len(event)
        shape = (*batch, *event[:-1], self.family.loc_size(event[-1])) if event else tuple(batch)
        loc = torch.zeros(shape) if site.start is None else site.start.detach().clone().expand(shape).contiguous()
        self.loc = nn.Parameter(loc)
        if not point:
            self.log_scale = nn.Parameter(torch.full_like(loc, -1.0))

    def forward(self, ids: Symbols = ...) -> TorchDistribution:
        """The posterior at the site, or of the rows of these symbols."""
        loc = self.loc[ids]
        if self.point:
            return dist.Delta(self.family.onto_support(loc), event_dim=self.event_dim, validate_args=False)
        simplex = self.family.support is constraints.simplex
        q = (self.family if simplex else self.family.univariate)(loc, self.log_scale[ids])
        return q.to_event(self.event_dim - len(q.event_shape))
