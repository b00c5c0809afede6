"""Scoring functions ``φ(h_s, h_p, h_o)``, as values: in triple form and against the whole candidate table.

Every scorer of kgpyro's own factors through a *query vector* that lives in the space of the entity latents,

    φ(h, r, t) = compare(tail_query(h, r), t) = compare(head_query(t, r), h),

and most through one in the space of the relations' too, ``compare(relation_query(h, t), r)``,

where ``compare`` is an inner product or a negative distance. Scoring all candidates of ``b`` queries is then one matrix
product ``(b, d) × (d, E)`` (or one ``cdist``) and nothing of shape ``(b, E, d)`` is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import add, mul, sub
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgpyro.errors import InputError, meant
from kgpyro.names import SCORES as SCORE_NAMES
from kgpyro.names import import_dotted, is_dotted, refuse_unknown

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


@dataclass(frozen=True)
class Score:
    """A scoring function that factors through query vectors.

    Attributes:
        name: what ``score`` calls it.
        tail_query: ``(h, r) -> u``, shapes ``(*, d_e), (*, d_r) -> (*, d_e)``.
        head_query: ``(t, r) -> u``, likewise.
        norm: None where ``compare`` is the inner product (the score is then linear in the candidate), else the ``p``
            of the negative distance.
        even: whether an embedding splits in two halves, so that ``dim`` must be even.
        relation_size: length of a relation latent, from ``dim``.
        multilinear: whether the score is linear in head, relation and tail, so that its posterior mean under
            independent latents is the score of their means.
        relation_query: ``(h, t) -> u``, shapes ``(*, d_e), (*, d_e) -> (*, d_r)``; None where there is none.
    """

    name: str
    tail_query: QueryForm
    head_query: QueryForm
    norm: float | None = None
    even: bool = False
    relation_size: Callable[[int], int] = lambda dim: dim
    multilinear: bool = True
    relation_query: QueryForm | None = None

    @property
    def linear(self) -> bool:
        """Whether the score is linear in the candidate."""
        return self.norm is None

    def sizes(self, dim: int) -> tuple[int, int]:
        """Lengths of an entity's and a relation's latent. Raises InputError for an odd dim where halves are needed."""
        if self.even and dim % 2:
            raise InputError(
                f"score {self.name} splits an embedding in two halves, so `dim` must be even; got {dim}, try {dim + 1}."
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

    def self_loop_weights(self, relation: Tensor, size: int) -> Tensor:
        """``φ(e_i, r, e_i)`` for the unit vectors of ``R^size``, shapes ``(n, d_r) -> (n, size)``.

        A multilinear score of a latent with itself has the mean ``φ(μ, r, μ) + Σ_i σ_i² φ(e_i, r, e_i)``.
        """
        unit = torch.eye(size, dtype=relation.dtype, device=relation.device)
        return torch.stack([self.triples(unit, r.expand(size, -1), unit) for r in relation])

    def triples(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """``φ(h, r, t)`` elementwise, shapes ``(*, d_e), (*, d_r), (*, d_e) -> (*)``."""
        return self.compare(self.tail_query(head, relation), tail)

    def facts(self, anchor: Tensor, relation: Tensor, candidate: Tensor, reverse: Tensor | None = None) -> Tensor:
        """Scores of the facts of paired queries and candidates, ``(n, d_e), (n, d_r), (n, d_e) -> (n,)``."""
        return self.compare(self.queries(anchor, relation, reverse), candidate)

    def candidates(self, anchor: Tensor, relation: Tensor, table: Tensor, reverse: Tensor | None = None) -> Tensor:
        """Scores of all candidates, shapes ``(b, d_e), (b, d_r), (E, d_e) -> (b, E)``."""
        return self._against(self.queries(anchor, relation, reverse), table)

    def relations(self, head: Tensor, tail: Tensor, table: Tensor) -> Tensor:
        """Scores of all relations between paired ends, ``(*, n, d_e), (*, n, d_e), (*, R, d_r) -> (*, n, R)``."""
        if self.relation_query is None:
            each = [self.triples(head, row.unsqueeze(-2), tail) for row in table.unbind(-2)]
            return torch.stack(each, -1)
        return self._against(self.relation_query(head, tail), table)

    def _against(self, query: Tensor, table: Tensor) -> Tensor:
        return query @ table.mT if self.norm is None else -torch.cdist(query, table, p=self.norm)


@dataclass(frozen=True)
class TripleScore(Score):
    """A scoring function known only in triple form, compared with the candidates in blocks of ``block`` numbers.

    Its ``function`` is ``(h, r, t) -> φ``, broadcasting over leading dimensions, the last one the latents'.
    """

    tail_query: Any = None
    head_query: Any = None
    multilinear: bool = False
    function: Any = None
    block: int = 1 << 22

    @property
    def linear(self) -> bool:
        return False

    def triples(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        return self.function(head, relation, tail)

    def facts(self, anchor: Tensor, relation: Tensor, candidate: Tensor, reverse: Tensor | None = None) -> Tensor:
        if reverse is None:
            return self.triples(anchor, relation, candidate)
        swap = reverse.unsqueeze(-1)
        return self.triples(torch.where(swap, candidate, anchor), relation, torch.where(swap, anchor, candidate))

    def candidates(self, anchor: Tensor, relation: Tensor, table: Tensor, reverse: Tensor | None = None) -> Tensor:
        anchor, relation = anchor.unsqueeze(1), relation.unsqueeze(1)
        swap = None if reverse is None else reverse.unsqueeze(1)
        blocks = table.unsqueeze(0).split(max(1, self.block // max(1, anchor.numel())), dim=1)
        return torch.cat([self.facts(anchor, relation, part, swap) for part in blocks], dim=1)


SCORES = {
    score.name.lower(): score
    for score in [
        # Yang et al. 2015: Σ h r t
        Score("DistMult", mul, mul, relation_query=mul),
        # Trouillon et al. 2016: Re Σ h r conj(t); real parts first, imaginary parts second
        Score(
            "ComplEx",
            _complex_product,
            lambda t, r: _complex_product(t, r, conjugate=True),
            even=True,
            relation_query=lambda h, t: _complex_product(t, h, conjugate=True),  # conj(h) t
        ),
        # Bordes et al. 2013: -‖h + r - t‖
        Score("TransE-L1", add, sub, norm=1.0, multilinear=False, relation_query=lambda h, t: t - h),
        Score("TransE-L2", add, sub, norm=2.0, multilinear=False, relation_query=lambda h, t: t - h),
        # Nickel et al. 2011: hᵀ R t
        Score(
            "RESCAL",
            lambda h, r: (h.unsqueeze(-2) @ _as_matrix(r)).squeeze(-2),
            lambda t, r: (_as_matrix(r) @ t.unsqueeze(-1)).squeeze(-1),
            relation_size=lambda dim: dim * dim,
            relation_query=lambda h, t: (h.unsqueeze(-1) * t.unsqueeze(-2)).flatten(-2),
        ),
        # Hitchcock 1927; Lacroix et al. 2018: first half of a latent as subject, second half as object
        Score(
            "CP",
            lambda h, r: F.pad(_halves(h)[0] * r, (r.shape[-1], 0)),
            lambda t, r: F.pad(_halves(t)[1] * r, (0, r.shape[-1])),
            even=True,
            relation_size=lambda dim: dim // 2,
            relation_query=lambda h, t: _halves(h)[0] * _halves(t)[1],
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


def resolve_score(given: str | Score | Callable[..., Tensor]) -> Score:
    """The scoring function that a user gives.

    Args:
        given: a name in any case, ``pykeen:NAME``, the dotted path of your own, a Score, or a function
            ``(h, r, t) -> φ`` that broadcasts over leading dimensions.

    Raises:
        InputError: with the valid names.
    """
    if isinstance(given, Score):
        return given
    if not isinstance(given, str):
        return TripleScore(getattr(given, "__name__", "function"), function=given)
    kind, _, interaction = given.partition(":")
    if kind.lower() == "pykeen" and interaction:
        return _pykeen_score(interaction)
    if is_dotted(given):
        return replace(resolve_score(import_dotted(given, "score")), name=given)
    refuse_unknown(given, SCORE_NAMES, "score")
    return SCORES[given.lower()]


def _pykeen_score(name: str) -> TripleScore:
    from pykeen.nn.modules import NormBasedInteraction, interaction_resolver  # imported here: it takes seconds

    key = interaction_resolver.normalize(name)
    if key not in interaction_resolver.lookup_dict:
        raise InputError(f"PyKEEN has no interaction {name!r}; {meant(name, sorted(interaction_resolver.lookup_dict))}")
    cls = interaction_resolver.lookup_dict[key]
    try:
        module = cls(p=2) if issubclass(cls, NormBasedInteraction) else cls()
    except TypeError as error:
        raise InputError(f"score pykeen:{name} needs settings of its own ({error}).") from error
    if any(p.numel() for p in module.parameters()):
        raise InputError(f"score pykeen:{name} has weights of its own, which no prior covers; use one without weights.")
    shapes = tuple(module.entity_shape), tuple(module.relation_shape)
    if shapes not in ((("d",), ("d",)), (("d",), ("dd",))):
        raise InputError(
            f"score pykeen:{name} needs several vectors per entity or relation, or of several lengths ({shapes}); "
            f"only one of `dim` is supported."
        )
    matrix = shapes[1] == ("dd",)

    def interaction(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        relation = _as_matrix(relation) if matrix else relation
        if module.is_complex:
            head, relation, tail = (torch.complex(*_halves(x)) for x in (head, relation, tail))
        return module(head, relation, tail)

    return TripleScore(
        f"pykeen:{cls.__name__.removesuffix('Interaction')}",
        function=interaction,
        even=bool(module.is_complex),
        relation_size=(lambda dim: dim * dim) if matrix else (lambda dim: dim),
    )
