"""Scoring functions ``φ(h_s, h_p, h_o)``, as values: in triple form and against the whole candidate table.

Every scorer of kgpyro's own factors through a *query vector* that lives in the space of the entity latents,

    φ(h, r, t) = compare(tail_query(h, r), t) = compare(head_query(t, r), h),

where ``compare`` is an inner product or a negative distance. Scoring all candidates of ``b`` queries is then one matrix
product ``(b, d) × (d, E)`` (or one ``cdist``) and nothing of shape ``(b, E, d)`` is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kgpyro.errors import InputError

QueryForm = Callable[[Tensor, Tensor], Tensor]


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, dim=-1)
    return a, b


def _complex_product(a: Tensor, b: Tensor, conjugate: bool = False) -> Tensor:
    (a_re, a_im), (b_re, b_im) = _halves(a), _halves(b)
    b_im = -b_im if conjugate else b_im
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-1)


def _rotation(phase: Tensor) -> Tensor:
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _as_matrix(relation: Tensor) -> Tensor:
    d = round(relation.shape[-1] ** 0.5)
    return relation.unflatten(-1, (d, d))


def _pad_front(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x), x], dim=-1)


def _pad_back(x: Tensor) -> Tensor:
    return torch.cat([x, torch.zeros_like(x)], dim=-1)


@dataclass(frozen=True)
class Score:
    """A scoring function that factors through query vectors.

    Attributes:
        name: what ``--score`` calls it.
        tail_query: ``(h, r) -> u``, shapes ``(*, d_e), (*, d_r) -> (*, d_e)``.
        head_query: ``(t, r) -> u``, likewise.
        norm: None where ``compare`` is the inner product (the score is then linear in the candidate), else the ``p``
            of the negative distance.
        even: whether an embedding splits in two halves, so that ``dim`` must be even.
        relation_size: length of a relation latent, from ``dim``.
        multilinear: whether the score is linear in head, relation and tail, so that its posterior mean under
            independent latents is the score of their means.
    """

    name: str
    tail_query: QueryForm
    head_query: QueryForm
    norm: float | None = None
    even: bool = False
    relation_size: Callable[[int], int] = lambda dim: dim
    multilinear: bool = True

    @property
    def linear(self) -> bool:
        """Whether the score is linear in the candidate."""
        return self.norm is None

    def sizes(self, dim: int) -> tuple[int, int]:
        """Lengths of an entity's and of a relation's latent. Raises InputError for an odd dim where halves are needed."""
        if self.even and dim % 2:
            raise InputError(
                f"score {self.name} splits an embedding in two halves, so --dim must be even; got {dim}, try {dim + 1}."
            )
        return dim, self.relation_size(dim)

    def queries(self, anchor: Tensor, relation: Tensor, reverse: Tensor | None = None) -> Tensor:
        """Query vectors, shape ``(b, d_e)``; ``reverse`` (``(b,)``, bool) marks those that ask for heads."""
        if reverse is None:
            return self.tail_query(anchor, relation)
        tails, heads = self.tail_query(anchor, relation), self.head_query(anchor, relation)
        return torch.where(reverse.unsqueeze(-1), heads, tails)

    def compare(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Scores of paired queries and candidates, shapes ``(*, d_e), (*, d_e) -> (*)``."""
        if self.norm is None:
            return (query * candidate).sum(-1)
        return -torch.linalg.vector_norm(query - candidate, ord=self.norm, dim=-1)

    def triples(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """``φ(h, r, t)`` elementwise, shapes ``(*, d_e), (*, d_r), (*, d_e) -> (*)``."""
        return self.compare(self.tail_query(head, relation), tail)

    def facts(self, anchor: Tensor, relation: Tensor, candidate: Tensor, reverse: Tensor | None = None) -> Tensor:
        """Scores of the facts that candidates make with their queries, shapes ``(n, d_e), (n, d_r), (n, d_e) -> (n,)``."""
        return self.compare(self.queries(anchor, relation, reverse), candidate)

    def candidates(self, anchor: Tensor, relation: Tensor, table: Tensor, reverse: Tensor | None = None) -> Tensor:
        """Scores of all candidates, shapes ``(b, d_e), (b, d_r), (E, d_e) -> (b, E)``."""
        query = self.queries(anchor, relation, reverse)
        if self.norm is None:
            return query @ table.mT
        return -torch.cdist(query, table, p=self.norm)


@dataclass(frozen=True)
class PykeenScore(Score):
    """One of PyKEEN's interaction functions, scored against blocks of candidates.

    Only interactions without weights of their own and with one vector per entity and relation: weights belong into a
    model, where they have a prior.
    """

    interaction: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda h, r, t: h
    block: int = 1 << 22  # largest number of latent values compared at once

    @property
    def linear(self) -> bool:
        return False

    def triples(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        return self.interaction(head, relation, tail)

    def facts(self, anchor: Tensor, relation: Tensor, candidate: Tensor, reverse: Tensor | None = None) -> Tensor:
        if reverse is None:
            return self.triples(anchor, relation, candidate)
        reverse = reverse.unsqueeze(-1)
        return self.triples(
            torch.where(reverse, candidate, anchor), relation, torch.where(reverse, anchor, candidate)
        )

    def candidates(self, anchor: Tensor, relation: Tensor, table: Tensor, reverse: Tensor | None = None) -> Tensor:
        step = max(1, self.block // max(1, anchor.numel()))
        anchor, relation = anchor.unsqueeze(1), relation.unsqueeze(1)
        blocks = []
        for part in table.split(step):
            part = part.unsqueeze(0)
            tails = self.triples(anchor, relation, part)
            if reverse is not None:
                tails = torch.where(reverse.unsqueeze(-1), self.triples(part, relation, anchor), tails)
            blocks.append(tails)
        return torch.cat(blocks, dim=1)


def _distmult(anchor: Tensor, relation: Tensor) -> Tensor:
    return anchor * relation


SCORES = {
    score.name.lower(): score
    for score in [
        # Yang et al. 2015: Σ h r t
        Score("DistMult", _distmult, _distmult),
        # Trouillon et al. 2016: Re Σ h r conj(t); real parts first, imaginary parts second
        Score("ComplEx", _complex_product, lambda t, r: _complex_product(t, r, conjugate=True), even=True),
        # Bordes et al. 2013: -‖h + r - t‖
        Score("TransE-L1", lambda h, r: h + r, lambda t, r: t - r, norm=1.0, multilinear=False),
        Score("TransE-L2", lambda h, r: h + r, lambda t, r: t - r, norm=2.0, multilinear=False),
        # Nickel et al. 2011: hᵀ R t
        Score(
            "RESCAL",
            lambda h, r: (h.unsqueeze(-2) @ _as_matrix(r)).squeeze(-2),
            lambda t, r: (_as_matrix(r) @ t.unsqueeze(-1)).squeeze(-1),
            relation_size=lambda dim: dim * dim,
        ),
        # Hitchcock 1927; Lacroix et al. 2018: first half of a latent as subject, second half as object
        Score(
            "CP",
            lambda h, r: _pad_front(_halves(h)[0] * r),
            lambda t, r: _pad_back(_halves(t)[1] * r),
            even=True,
            relation_size=lambda dim: dim // 2,
        ),
        # Sun et al. 2019: -‖h ∘ e^{iθ} - t‖₂, a relation latent is the phases θ
        Score(
            "RotatE",
            lambda h, r: _complex_product(h, _rotation(r)),
            lambda t, r: _complex_product(t, _rotation(r), conjugate=True),
            norm=2.0,
            even=True,
            relation_size=lambda dim: dim // 2,
            multilinear=False,
        ),
    ]
}
SCORES["transe"] = SCORES["transe-l2"]


def resolve_score(name: str | Score) -> Score:
    """The scoring function of a name, in any case, or ``pykeen:NAME``. Raises InputError with the valid names."""
    if isinstance(name, Score):
        return name
    kind, _, interaction = name.partition(":")
    if kind.lower() == "pykeen" and interaction:
        return _pykeen_score(interaction)
    if name.lower() not in SCORES:
        choices = ", ".join([s.name for key, s in SCORES.items() if key != "transe"])
        raise InputError(f"unknown score {name!r}; choose from {choices}, TransE (L2), or pykeen:NAME.")
    return SCORES[name.lower()]


def _pykeen_score(name: str) -> PykeenScore:
    from pykeen.nn.modules import interaction_resolver  # imported here: it takes seconds

    key = interaction_resolver.normalize(name)
    if key not in interaction_resolver.lookup_dict:
        choices = ", ".join(sorted(interaction_resolver.lookup_dict))
        raise InputError(f"PyKEEN has no interaction {name!r}; choose from {choices}.")
    cls = interaction_resolver.lookup_dict[key]
    try:
        module = cls(p=2) if _takes_only_p(cls) else cls()
    except TypeError as error:
        raise InputError(f"score pykeen:{name} needs settings of its own ({error}).") from error
    if any(p.numel() for p in module.parameters()):
        raise InputError(f"score pykeen:{name} has weights of its own, which no prior covers; use one without weights.")
    if len(module.entity_shape) != 1 or len(module.relation_shape) != 1:
        raise InputError(f"score pykeen:{name} needs several vectors per entity or relation; only one is supported.")
    (entity_shape,), (relation_shape,) = module.entity_shape, module.relation_shape
    if entity_shape != "d" or set(relation_shape) != {"d"}:
        raise InputError(f"score pykeen:{name} has latents of shape {entity_shape!r}, {relation_shape!r}; need 'd'.")
    matrix = len(relation_shape) == 2

    def interaction(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        relation = _as_matrix(relation) if matrix else relation
        if module.is_complex:
            head, relation, tail = (torch.complex(*_halves(x)) for x in (head, relation, tail))
        return module(head, relation, tail)

    def unused(anchor: Tensor, relation: Tensor) -> Tensor:
        raise NotImplementedError("PyKEEN's interactions have no query vectors")

    return PykeenScore(
        f"pykeen:{cls.__name__.removesuffix('Interaction')}",
        unused,
        unused,
        even=bool(module.is_complex),
        relation_size=(lambda dim: dim * dim) if matrix else (lambda dim: dim),
        multilinear=False,
        interaction=interaction,
    )


def _takes_only_p(cls: type) -> bool:
    from pykeen.nn.modules import NormBasedInteraction

    return issubclass(cls, NormBasedInteraction)
