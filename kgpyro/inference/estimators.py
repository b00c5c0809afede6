"""Effect handlers between a model, a guide and the bound: when tables are drawn, and what each fact counts for."""

from __future__ import annotations

import math

from pyro.poutine.messenger import Messenger
from torch import Tensor

from kgpyro.errors import InputError
from kgpyro.program.batches import Batch
from kgpyro.program.families import is_gaussian
from kgpyro.program.lazy import Undrawn
from kgpyro.program.likelihood import AllCandidates


class DrawLater(Messenger):
    """Around a guide: tables of independent Normals are drawn when they are first used, or not at all."""

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if not msg["done"] and not msg["is_observed"] and is_gaussian(fn):
            msg["value"] = Undrawn.of(fn)
            msg["done"] = True


class CountFacts(Messenger):
    """Around a model that is replayed: labels are integrated by an estimator, and count for what the batch says.

    The plates that :class:`Batch` yields say it already. A model's own plates, or none, have no say in it: what is left
    of a site's scale without them is multiplied by the batch's weights.

    Args:
        batch: of the run.
        estimator: ``local``, ``shared`` or ``plain`` (:class:`kgpyro.program.likelihood.AllCandidates`).
    """

    def __init__(self, batch: Batch, estimator: str = "plain"):
        super().__init__()
        self.batch, self.estimator = batch, estimator

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"]:
            if isinstance(msg["value"], Undrawn):
                msg["value"].prior = msg["fn"]
            return
        if not (msg["infer"] or {}).get("weighted"):
            msg["scale"] = self._scale(msg)
        if isinstance(msg["fn"], AllCandidates):
            msg["fn"] = msg["fn"].by(self.estimator)

    def _scale(self, msg: dict) -> Tensor:
        plates = math.prod((f.full_size or f.size) / f.size for f in msg["cond_indep_stack"] if f.vectorized)
        weight, shape = self.batch.fact_weight, msg["fn"].batch_shape
        if self.batch.query is None and tuple(shape) == (len(weight), self.batch.num_entities):
            weight = weight.unsqueeze(-1)
        elif tuple(shape) != tuple(weight.shape):
            raise InputError(
                f"the model's labels at site {msg['name']!r} have batch shape {tuple(shape)}, which does not tell its "
                f"facts apart: a likelihood of all candidates needs {tuple(weight.shape)} with candidates as its event "
                f"(.to_event(1)), and none of its own sums."
            )
        return weight * (msg["scale"] / plates)
