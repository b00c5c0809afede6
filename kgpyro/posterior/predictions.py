"""What a posterior says of single facts and queries: probabilities, their spread, sets of answers, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.graph import SPLITS, Graph
from kgpyro.data.labelled import labelled_facts
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Calibration, Recalibration, moved_logits
from kgpyro.evaluation.conformal import Thresholds, misfit, open_candidates
from kgpyro.evaluation.decisions import certain_enough, refuse_no_risk
from kgpyro.evaluation.ranking import mean_ndcg
from kgpyro.posterior.replay import Program
from kgpyro.posterior.scores import PosteriorScores
from kgpyro.posterior.uncertainty import covered, summary
from kgpyro.program.variational import Guide


class Predictions(PosteriorScores):
    """Predictions of a graph's facts under a guide.

    Attributes:
        recalibration: what predicted probabilities go through (:meth:`recalibrate`); None for nothing.
        config: the resolved options of the fit, as in ``config.yaml``.
    """

    def __init__(
        self, graph: Graph, program: Program, guide: Guide | None, samples: Mapping[str, Tensor] | None = None
    ):
        super().__init__(graph, program, guide, samples)
        self.recalibration: Recalibration | None = None
        self.config: dict[str, Any] = {}
        self._thresholds: dict[int, Thresholds] = {}

    def forget(self) -> None:
        super().forget()
        self._thresholds.clear()

    @torch.no_grad()
    def facts(
        self,
        triples: Sequence[Sequence[str]] | pd.DataFrame | Tensor,
        draws: int = 500,
        interval: float = 0.9,
        seed: int = 0,
        recalibrated: bool = True,
    ) -> pd.DataFrame:
        """The posterior predictive of any facts.

        Args:
            triples: names ``(head, relation, tail)``, a frame with these columns, or ids of shape ``(n, 3)``.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            recalibrated: whether probabilities go through the map of :meth:`recalibrate`, where there is one.

        Returns:
            A row per fact, as given: ``head``, ``relation``, ``tail``, ``probability``, ``std``, ``low``, ``high``,
            ``aleatoric`` and ``epistemic`` (:func:`.summary`), ``score``, the mean of its log-odds
            over the draws, ``frequency``, in how many places of training triples its rarer entity is, and ``error``,
            the Monte-Carlo standard error of ``probability``. A fact has one probability, the one that :meth:`predict`
            has too, whichever end is asked for, and whatever other facts are asked with it. ``attrs["intervals"]`` says
            what intervals of this guide were seen to cover.

        Raises:
            InputError: an unknown name.
        """
        given = self._ids(triples).to(self.device)
        ids, place = torch.unique(given, dim=0, return_inverse=True)  # so that no result hangs on the others' order
        found = []
        for part in ids.split(max(1, (1 << 24) // max(1, draws))):
            logits = self.fact_logits(part, draws, seed)
            found.append(self._summary(logits, interval, (part[:, 0], part[:, 2]), recalibrated))
        names = {
            key: torch.cat([part[key].to(place.device) for part in found])[place].cpu().numpy() for key in found[0]
        }
        g = self.graph
        h, r, t = (
            [table[i] for i in column]
            for table, column in zip((g.entities, g.relations, g.entities), given.T.tolist(), strict=True)
        )
        return self._noted(pd.DataFrame({"head": h, "relation": r, "tail": t} | names), interval)

    def _noted(self, table: pd.DataFrame, interval: float) -> pd.DataFrame:
        guide = None if self.guide is None else str(self.config.get("guide", "lookup"))
        table.attrs["intervals"] = covered(guide, interval)
        return table

    def _summary(
        self, logits: Tensor, interval: float, entities: Sequence[Tensor], recalibrated: bool = True
    ) -> dict[str, Tensor]:
        """:func:`.summary` of facts that have these entities, recalibrated where this posterior is."""
        frequency = torch.stack([self.graph.frequency[e.cpu()] for e in torch.broadcast_tensors(*entities)]).amin(0)
        found = summary(logits, interval) | {"score": logits.double().mean(0), "frequency": frequency}
        if recalibrated and self.recalibration is not None:
            found = self._moved(logits, found, interval) | {"frequency": frequency}
        found["error"] = found["std"] / math.sqrt(len(logits))
        return found

    def _moved(self, logits: Tensor, found: Mapping[str, Tensor], interval: float) -> dict[str, Tensor]:
        """The summary of draws that are shifted to the recalibrated probability, so that all columns are of one map."""
        assert self.recalibration is not None
        target = torch.from_numpy(self.recalibration({key: value.cpu().numpy() for key, value in found.items()}))
        logits = moved_logits(logits, target)
        return summary(logits, interval) | {"score": logits.mean(0)}

    def calibration(self, split: str = "test", negatives: str = "open", draws: int = 500, seed: int = 0) -> Calibration:
        """How well predicted probabilities agree with labels: reliability, ECE, Brier score, log score, AUROC.

        Args:
            split: ``"valid"`` or ``"test"``: whose triples are the true facts.
            negatives: open (of all facts that no split holds), random, hard or verified: the false ones
                (:func:`kgpyro.labelled_facts`).
            draws: posterior draws behind each probability.
            seed: of draws and corruptions.

        Raises:
            InputError: an unknown split or kind of negatives, or the split that a recalibration was fitted to.
        """
        if split == "valid" and self.recalibration is not None:
            raise InputError("the recalibration was fitted to the valid split, which cannot judge it; choose test.")
        facts = labelled_facts(self.graph, split, negatives, seed)
        found = self.facts(facts, draws, seed=seed)["probability"].to_numpy()
        return Calibration(found, facts["label"].to_numpy(), facts.attrs["negatives"], facts["weight"].to_numpy())

    def recalibrate(
        self,
        method: Literal["temperature", "platt", "isotonic", "stacked", "none"] = "isotonic",
        negatives: Literal["open", "random", "hard", "verified"] = "open",
        draws: int = 500,
        seed: int = 0,
    ) -> None:
        """Fit a map of predictions to the labels of the validation split (:class:`.Recalibration`).

        From then on every column of :meth:`facts` and :meth:`predict` is of the recalibrated distribution. With open
        negatives the probabilities are those of facts that the graph does not hold, the held-out facts taken for all
        the true ones among them. With random, hard or verified ones they are those of facts that are as often true as
        these labels: about one in two.

        Args:
            method: temperature, platt, isotonic or stacked (by all evidence, the model's doubt included); none takes
                the map off again.
            negatives: open (of all facts that no split holds), random, hard or verified: what counts as false
                (:func:`kgpyro.labelled_facts`).
            draws: posterior draws behind each probability.
            seed: of draws and corruptions.

        Raises:
            InputError: an unknown method or kind of negatives, or no validation facts.
        """
        if method == "none":
            self.recalibration = None
        else:
            facts = labelled_facts(self.graph, "valid", negatives, seed)
            found = self.facts(facts, draws, seed=seed, recalibrated=False)
            labels, counts = facts["label"].to_numpy(), facts["weight"].to_numpy()
            self.recalibration = Recalibration.fit(found, labels, method, counts, facts.attrs["negatives"])

    def decide(
        self,
        triples: Sequence[Sequence[str]] | pd.DataFrame | Tensor,
        risk: float = 0.1,
        confidence: float = 0.95,
        negatives: str | None = None,
        draws: int = 500,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Which facts to hold for true, which for false, and which to leave undecided, with a promised error rate.

        Half of the labelled validation facts put probabilities to scale (Platt), the other half say how certain one has
        to be (:mod:`kgpyro.evaluation.decisions`). The promise is for facts that are exchangeable with these.

        Args:
            triples: as :meth:`facts` takes them.
            risk: largest share of wrong decisions among those that are made.
            confidence: with which that is promised.
            negatives: random, hard or verified: what validation facts count as false (:func:`kgpyro.labelled_facts`).
            draws: posterior draws behind each probability.
            seed: of draws, corruptions and halves.

        Returns:
            ``head``, ``relation``, ``tail``, ``probability`` (put to scale) and ``decision``: true, false, or abstain.

        Raises:
            InputError: a risk or confidence outside (0, 1), open negatives, or too few validation facts.
        """
        refuse_no_risk(risk, confidence)
        if negatives == "open":
            raise InputError("decisions are calibrated on labels as they are; choose random, hard or verified ones.")
        self._say_what_is_watched()
        labelled = labelled_facts(self.graph, "valid", negatives, seed)
        labels = labelled["label"].to_numpy()
        half = np.random.default_rng(seed).permutation(len(labels)) % 2 == 0
        if len(labels) < 4 or min(len(np.unique(labels[part])) for part in (half, ~half)) < 2:
            raise InputError("decisions need true and false validation facts, to scale and to judge by; too few here.")
        found = self.facts(labelled, draws, seed=seed, recalibrated=False)
        scale = Recalibration.fit(found[half], labels[half], "platt")
        judged = scale(found[~half])
        wrong = (judged > 0.5) != labels[~half]
        least = certain_enough(np.abs(judged - 0.5), wrong, risk, confidence)
        table = self.facts(triples, draws, seed=seed, recalibrated=False)
        p = scale(table)
        decided = np.where(np.abs(p - 0.5) < least, "abstain", np.where(p > 0.5, "true", "false"))
        return table[["head", "relation", "tail"]].assign(probability=p, decision=decided)

    def confidences(
        self,
        facts: str | pd.DataFrame = "test",
        draws: int = 100,
        interval: float = 0.9,
        seed: int = 0,
        rank: bool = True,
    ) -> pd.DataFrame:
        """Predicted confidences of an uncertain graph's facts, beside those that are given.

        Args:
            facts: a split, or a table with columns ``head``, ``relation``, ``tail`` and ``confidence``.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            rank: whether to rank tails, for nDCG.

        Returns:
            What :meth:`facts` says, with ``confidence``. ``attrs["metrics"]``: ``mse`` and ``mae`` of the predicted
            probability, ``coverage``, the share of given confidences inside the interval of theirs, and ``ndcg``, of
            the tails of each query ranked by probability among all that training leaves open (Chen et al. 2019).

        Raises:
            InputError: a split without confidences, a table without the columns, or unknown names.
        """
        if isinstance(facts, str):
            if facts not in self.graph.confidences:
                raise InputError(f"graph {self.graph.name!r} has no confidences of a split {facts!r}.")
            ids, given = getattr(self.graph, facts), self.graph.confidences[facts]
        elif "confidence" not in facts.columns:
            raise InputError("the table has no column 'confidence', from 0 to 1, to hold predictions to.")
        else:
            ids, given = self._ids(facts), torch.from_numpy(facts["confidence"].to_numpy(dtype=float))
        found = self.facts(ids, draws, interval, seed).assign(confidence=given.numpy())
        off = found["probability"] - found["confidence"]
        inside = found["confidence"].between(found["low"], found["high"])
        metrics = {"mse": float((off**2).mean()), "mae": float(off.abs().mean()), "coverage": float(inside.mean())}
        if rank:
            metrics["ndcg"] = mean_ndcg(partial(self.probabilities, draws=draws), ids, given, self.graph)
        found.attrs["metrics"] = metrics
        return found

    def _ids(self, triples: Sequence[Sequence[str]] | pd.DataFrame | Tensor) -> Tensor:
        if isinstance(triples, Tensor):
            return triples
        rows = (
            triples[["head", "relation", "tail"]].itertuples(index=False)
            if isinstance(triples, pd.DataFrame)
            else triples
        )
        return self.graph.ids(rows)

    @torch.no_grad()
    def predict(
        self,
        head: str | None = None,
        relation: str | None = None,
        tail: str | None = None,
        top: int | None = 10,
        draws: int = 500,
        interval: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """The most probable tails of ``(head, relation, ?)``, or heads of ``(?, relation, tail)``.

        Args:
            head, relation, tail: names; the relation and exactly one of the entities.
            top: how many answers; None for all entities.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.

        Returns:
            One row per answer, most probable first: ``tail`` (or ``head``), ``probability`` (posterior predictive, of
            the fact; under a categorical likelihood, that it is the answer), ``std`` and ``low``, ``high`` (standard
            deviation and interval of that probability over the posterior), ``aleatoric`` and ``epistemic`` (the two
            parts of the doubt, in nats; :func:`.summary`), ``score``, ``frequency`` and
            ``error`` as in :meth:`facts`, ``known`` (the split that holds the fact, or an empty string).

        Raises:
            InputError: unknown names, or not exactly one given entity.
        """
        side, given, relation_id, row = self._query(head, relation, tail)
        logits = self.answer_logits(given, row, draws, seed)
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        parts = everyone.split(max(1, (1 << 22) // draws))
        anchor = torch.tensor([given])
        found = [self._summary(logits[:, part], interval, (anchor, part), False) for part in parts]
        columns = {key: torch.cat([part[key] for part in found]).cpu() for key in found[0]}
        chosen = columns["probability"].argsort(descending=True, stable=True)
        recalibration = self.recalibration if self.one_probability else None  # under a categorical one it is of facts
        if recalibration is not None:  # what ties then keeps the order it had
            moved = recalibration({key: value.numpy() for key, value in columns.items()})
            chosen = chosen[torch.from_numpy(moved)[chosen].argsort(descending=True, stable=True)]
        chosen = chosen[:top]
        if recalibration is not None:
            columns = self._summary(logits[:, chosen], interval, (anchor, chosen))
            shown = {key: value.cpu().numpy() for key, value in columns.items()}
        else:
            shown = {key: value[chosen].numpy() for key, value in columns.items()}
        known = self._known(given, relation_id, side)
        ids = chosen.tolist()
        names = [self.graph.entities[i] for i in ids]
        table = pd.DataFrame({side: names, **shown, "known": [known.get(i, "") for i in ids]})
        return self._noted(table, interval)

    @torch.no_grad()
    def predict_set(
        self,
        head: str | None = None,
        relation: str | None = None,
        tail: str | None = None,
        coverage: float = 0.9,
        per_relation: bool = False,
        draws: int = 100,
    ) -> pd.DataFrame:
        """The answers of a query, as a set that holds the true one with probability ``coverage`` (or more).

        Calibrated on the validation facts (:mod:`kgpyro.evaluation.conformal`), the first time this takes a while.

        Args:
            head, relation, tail: names; the relation and exactly one of the entities.
            coverage: how probable it is, over facts like those of the validation split, that the set has the answer.
            per_relation: calibrate each relation apart where it has enough validation facts.
            draws: posterior draws behind the predictive probabilities.

        Returns:
            One row per member, most probable first: ``tail`` (or ``head``), ``probability`` (as the
            model has it: sets do not go by a recalibration), ``known``. Facts that training holds are left out.

        Raises:
            InputError: unknown names, not exactly one given entity, a coverage outside (0, 1), or no validation facts.
        """
        side, given, relation_id, row = self._query(head, relation, tail)
        threshold = self.thresholds(draws).at(row, coverage, per_relation)
        anchor, rows = torch.tensor([given]), torch.tensor([row])
        p = self.probabilities(anchor, rows, draws=draws).cpu()
        is_open = open_candidates(anchor, rows, self.graph.training_queries, self.graph.num_entities)
        members = ((misfit(p, is_open) <= threshold) & is_open)[0].nonzero().squeeze(-1)
        members = members[p[0, members].argsort(descending=True, stable=True)]
        known = self._known(given, relation_id, side)
        ids = members.tolist()
        names = [self.graph.entities[i] for i in ids]
        return pd.DataFrame(
            {side: names, "probability": p[0, members].numpy(), "known": [known.get(i, "") for i in ids]}
        )

    def thresholds(self, draws: int = 100) -> Thresholds:
        """What answer sets are calibrated with, from the validation facts; cached."""
        if draws not in self._thresholds:
            self._say_what_is_watched()
            g = self.graph
            probabilities = partial(self.probabilities, draws=draws)
            self._thresholds[draws] = Thresholds.of(probabilities, g.valid, g.training_queries, g.num_entities)
        return self._thresholds[draws]

    def _say_what_is_watched(self) -> None:
        if self.config.get("early_stopping"):
            warnings.warn(
                "early stopping has chosen this fit by its validation facts, so that they are not exchangeable with "
                "others: sets of answers and decisions may keep their promises less well.",
                stacklevel=3,
            )

    def _query(self, head: str | None, relation: str | None, tail: str | None) -> tuple[str, int, int, int]:
        """Which side a query asks for, its given entity, its relation and its row. Raises InputError for no query."""
        if relation is None or (head is None) == (tail is None):
            raise InputError("a prediction needs a relation and either a head or a tail.")
        side = "tail" if tail is None else "head"
        given = self.graph.entity_id(head if tail is None else tail)  # type: ignore[arg-type]
        relation_id = self.graph.relation_id(relation)
        return side, given, relation_id, relation_id if side == "tail" else relation_id + self.graph.num_relations

    def _known(self, given: int, relation: int, side: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for split in reversed(SPLITS):
            triples = getattr(self.graph, split)
            here = (triples[:, 1] == relation) & (triples[:, 0 if side == "tail" else 2] == given)
            found |= dict.fromkeys(triples[here][:, 2 if side == "tail" else 0].tolist(), split)
        return found
