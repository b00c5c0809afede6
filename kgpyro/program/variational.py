"""What every guide is: a distribution over latents for every symbol, sampled at the model's sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import EllipsisType

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from kgpyro.errors import InputError
from kgpyro.program.families import family_for
from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting
from kgpyro.program.sites import Site

_MEMBER: ContextVar[int] = ContextVar("member", default=0)


class Guide(nn.Module):
    """An amortised guide ``q(h | symbol)``. A subclass says what :meth:`posterior` is; the sites follow from it.

    A guide of your own, given as ``package.module:MyGuide``, is such a subclass, called with the two arguments below.
    Latents that are no vectors of the setting's symbols, such as intercepts, temperatures or a bias per entity, have
    mean-field posteriors of their own support here.

    Args:
        kg: the setting: ``kg.count(kind)`` symbols, latents of length ``kg.size(kind)``, and ``kg.family(kind)``, which
            fits the prior's support, for each kind ``"entity"`` and ``"relation"``.
        sites: the model's latent sites (:func:`kgpyro.program.sites.latent_sites`).

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

    def posterior(self, kind: str, symbols: Tensor | EllipsisType) -> TorchDistribution:
        """``q(h | symbols)`` for ids of a kind: batch shape ``(n,)``, event shape ``(d,)``."""
        raise NotImplementedError

    def field(self, site: str) -> MeanField:
        """The mean-field posterior of a site that is no vector of the setting's symbols."""
        found = self.fields[site.replace(".", "|")]
        assert isinstance(found, MeanField)
        return found

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

    Args:
        site: whose posterior it is.
        count: of the symbols, where the site's rows are such.
        point: a value in the place of a distribution.

    Raises:
        InputError: no family fits the support of the site's prior.
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
        self.event_dim = len(prior.event_shape)
        batch = prior.batch_shape if count is None else (count,)
        event = tuple(prior.event_shape)
        shape = (*batch, *event[:-1], self.family.loc_size(event[-1])) if event else tuple(batch)
        loc = torch.zeros(shape) if site.start is None else site.start.detach().clone().expand(shape).contiguous()
        self.loc = nn.Parameter(loc)
        if not point:
            self.log_scale = nn.Parameter(torch.full_like(loc, -1.0))

    def forward(self, ids: Tensor | EllipsisType = ...) -> TorchDistribution:
        """The posterior at the site, or of the rows of these symbols."""
        loc = self.loc[ids]
        if self.point:
            return dist.Delta(self.family.onto_support(loc), event_dim=self.event_dim, validate_args=False)
        if self.family.support is constraints.simplex:
            q = self.family(loc, self.log_scale[ids])
        else:
            q = self.family.univariate(loc, self.log_scale[ids])
        return q.to_event(self.event_dim - len(q.event_shape))
