"""What a posterior says of single facts and queries: probabilities, their spread, sets of answers, calibration."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.labelled import labelled_facts
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Calibration, Recalibration, rising_quantiles
from kgpyro.evaluation.conformal import Thresholds, certain_enough, misfit, open_candidates, refuse_no_risk
from kgpyro.evaluation.ranking import mean_ndcg
from kgpyro.files import table_file
from kgpyro.posterior.answers import Answers
from kgpyro.posterior.asked import Facts, fact_ids, query_ids, refuse_numbers
from kgpyro.posterior.discovery import MEASURES, discovered, shortlist, unknown


class Predictions(Answers):
    """Predictions of a graph's facts under a guide."""

    def discover(
        self,
        above: float = 0.5,
        out: str | Path | None = None,
        relation: str | None = None,
        draws: int = 100,
        seed: int = 0,
        progress: bool = False,
    ) -> pd.DataFrame | int:
        """All facts that no split holds whose probability is at least ``above``, over the whole graph.

        The time is that of ``draws`` matrix products of all cells at most; memory is that of the result, and with
        ``out`` of one block.

        Args:
            above: least probability, recalibrated where :meth:`facts` is.
            out: a new .csv, .tsv or .parquet file for the facts, by relation and head, written as they are found: what
                an interrupted search has found stays, in whole rows.
            relation: only facts of this relation.
            draws: posterior draws.
            seed: of the draws.
            progress: show a progress bar.

        Returns:
            The columns of :meth:`facts` but ``known``, the most probable facts first; or with ``out`` their number.

        Raises:
            InputError: an unknown relation, a number that cannot be, or a file that is there or cannot be written.
        """
        refuse_numbers(above=above, draws=draws, seed=seed)
        row = None if relation is None else self.graph.relation_id(relation)
        found = discovered(self, above, row, draws, seed, progress)
        none = self.facts([], draws=draws, seed=seed).drop(columns="known")
        if out is None:
            table = pd.concat([none, *found])
            order = ["probability", "score"]
            return table.sort_values(order, ascending=False, kind="stable", ignore_index=True)
        number = 0
        with table_file(Path(out)) as write:
            write(none)
            for part in found:
                if len(part):
                    write(part)
                    number += len(part)
        return number

    def calibration(self, split: str = "test", negatives: str = "open", draws: int = 500, seed: int = 0) -> Calibration:
        """How well predicted probabilities agree with labels: reliability, ECE, Brier score, log score, AUROC.

        Args:
            split: ``"valid"`` or ``"test"``: whose triples are the true facts.
            negatives: open (of all facts that no split holds), random, hard or verified: the false ones
                (:func:`kgpyro.labelled_facts`).
            draws: posterior draws behind each probability.
            seed: of draws and corruptions.

        Raises:
            InputError: an unknown split or kind of negatives, the split that a recalibration was fitted to, or one
                whose facts have confidences.
        """
        refuse_numbers(draws=draws, seed=seed)
        self._refuse_confidences(split)
        if split == "valid" and self.recalibration is not None:
            raise InputError("the recalibration was fitted to the valid split, which cannot judge it; choose test.")
        facts = labelled_facts(self.graph, split, negatives, seed)
        found = self.facts(facts, draws, seed=seed)["probability"].to_numpy()
        return Calibration(found, facts["label"].to_numpy(), facts.attrs["negatives"], facts["weight"].to_numpy())

    def _refuse_confidences(self, split: str) -> None:
        if split in self.graph.confidences:
            raise InputError(
                f"the {split} facts have confidences, so that they are neither true nor false; `confidences` says how "
                f"near predicted ones come."
            )

    def recalibrate(
        self,
        method: Literal["temperature", "platt", "isotonic", "stacked", "per_relation", "none"] = "isotonic",
        negatives: Literal["open", "random", "hard", "verified", "none"] | None = None,
        draws: int = 500,
        seed: int = 0,
        most: int | None = None,
    ) -> None:
        """Fit a map of predictions to the labels of the validation split (:class:`.Recalibration`).

        From then on every column of :meth:`facts` and :meth:`predict` is of the recalibrated distribution: with open
        negatives of facts that the graph does not hold, the held-out ones taken for all the true ones among them; with
        others of facts that are as often true as these labels, about one in two. On an uncertain graph labels are the
        confidences of the validation facts, and 0 for what counts as false; how confidences scatter about their
        expectation is learned too, for :meth:`confidences`.

        Args:
            method: temperature, platt, isotonic, stacked (by all evidence, the model's doubt included) or per_relation
                (a line for each relation, drawn to a common one); none takes the map off again.
            negatives: open (of all facts that no split holds), random, hard or verified: what counts as false
                (:func:`kgpyro.labelled_facts`); none, on an uncertain graph, for a map that is of listed facts alone,
                and gives others too much. Default: open, and random on an uncertain graph.
            draws: posterior draws behind each probability.
            seed: of draws and corruptions.
            most: of true and of open facts, at most; None for all validation facts and 20,000 open ones.

        Raises:
            InputError: an unknown method or kind of negatives, no validation facts, or labels that are all the same.
        """
        refuse_numbers(draws=draws, seed=seed, most=most)
        if method == "none":
            self.recalibration = None
            return
        uncertain = "valid" in self.graph.confidences
        facts = labelled_facts(self.graph, "valid", negatives or ("random" if uncertain else "open"), seed, most)
        found = self.facts(facts, draws, seed=seed, recalibrated=False)
        labels, counts = facts["label"].to_numpy(), facts["weight"].to_numpy()
        fitted = Recalibration.fit(found, labels, method, counts, facts.attrs["negatives"])
        if uncertain:
            fitted = replace(fitted, spread=rising_quantiles(fitted(found), labels, counts))
        self.recalibration = fitted

    def decide(
        self,
        triples: Facts,
        risk: float = 0.1,
        confidence: float = 0.95,
        negatives: str | None = None,
        draws: int = 500,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Which facts to hold for true, which for false, and which to leave undecided, with a promised error rate.

        Half of the labelled validation facts put probabilities to scale (Platt), the other half say how certain one has
        to be (:mod:`kgpyro.evaluation.conformal`). The promise is for facts that are exchangeable with these.

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
            InputError: a risk or confidence outside (0, 1), open negatives, or too few or uncertain validation facts.
        """
        refuse_numbers(draws=draws, seed=seed)
        refuse_no_risk(risk, confidence)
        if negatives == "open":
            raise InputError("decisions are calibrated on labels as they are; choose random, hard or verified ones.")
        self._refuse_confidences("valid")
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

        After :meth:`recalibrate`, ``median``, ``low`` and ``high`` are quantiles of the confidence itself; before it
        ``low`` and ``high`` are of the fact's probability, and there is no median.

        Args:
            facts: a split, or a table with columns ``head``, ``relation``, ``tail`` and ``confidence``.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            rank: whether to rank tails, for nDCG.

        Returns:
            What :meth:`facts` says, with ``confidence``, and ``median`` where there is one; the probability is the mean
            of the predicted confidence. ``attrs["intervals"]`` says what the intervals are of. ``attrs["metrics"]``:
            ``mse`` and ``mae_of_mean`` of the probability; ``mae`` of the median, or of the probability; ``coverage``,
            the share of given confidences inside their interval; and ``ndcg``, of the tails of each query ranked by
            probability among all that training leaves open (Chen et al. 2019).

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
            ids, given = fact_ids(self.graph, facts), torch.tensor(facts["confidence"].to_numpy(dtype=float))
        found, wanted = self.facts(ids, draws, interval, seed), given.numpy()
        nearest = mean = found["probability"].to_numpy()
        if self.recalibration is not None and self.recalibration.spread:
            levels = 0.5, (1 - interval) / 2, (1 + interval) / 2
            nearest, low, high = self.recalibration.quantiles(mean, levels)
            found = found.assign(median=nearest, low=low, high=high)
            found.attrs["intervals"] = f"central {interval:.0%} of the confidence, as of validation facts like it"
        off, apart = np.abs(mean - wanted), np.abs(nearest - wanted)
        metrics = {"mse": float((off**2).mean()), "mae": float(apart.mean()), "mae_of_mean": float(off.mean())}
        found = found.assign(confidence=wanted)
        metrics["coverage"] = float(found["confidence"].between(found["low"], found["high"]).mean())
        if rank:
            metrics["ndcg"] = mean_ndcg(partial(self.probabilities, draws=draws), ids, given, self.graph)
        found.attrs["metrics"] = metrics
        return found

    def acquire(
        self,
        n: int = 10,
        by: str = "epistemic",
        draws: int = 100,
        relation: str | None = None,
        candidates: Facts | None = None,
        queries: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """The unknown facts to have labelled next: those whose label would say most about the latents.

        Unknown is every fact that the training split lacks, validation and test facts too. ``draws`` posterior draws
        choose ``4 n`` facts, and ten times as many, drawn anew, decide among these: the best of very many noisy
        estimates look better than they are.

        Args:
            n: how many facts.
            by: ``"epistemic"``, the mutual information of a fact's label and the latents; ``"entropy"``, of its
                predictive distribution; or ``"probability"``, the posterior predictive.
            draws: posterior draws per fact in the first look.
            relation: only facts of this relation.
            candidates: the facts to choose from, as :meth:`facts` takes them. Default: all.
            queries: without ``candidates``, look at the facts of at most so many pairs of head and relation, at random.
                Default: as many as have ten million facts, which is all of a small graph. Memory does not grow.
            seed: of the draws, and of the choice of queries.
            progress: show a progress bar.

        Returns:
            A row per fact, best first: ``head``, ``relation``, ``tail``, ``probability``, ``entropy`` and ``epistemic``
            (both in nats).

        Raises:
            InputError: an unknown name or measure, a number that is not positive, no unknown facts, or a categorical
                likelihood.
        """
        self.refuse_categorical("acquisitions")
        if by not in MEASURES:
            raise InputError(f"facts are acquired by {', '.join(MEASURES)}; not by {by!r}.")
        refuse_numbers(n=n, draws=draws, seed=seed, **({} if queries is None else {"queries": queries}))
        row = None if relation is None else self.graph.relation_id(relation)
        if candidates is None:
            ids = shortlist(self, 4 * n, by, draws, row, queries, seed, progress)
        else:
            ids = unknown(fact_ids(self.graph, candidates), self.graph)
            ids = ids if row is None else ids[ids[:, 1] == row]
            ids = ids[self._measured(ids, draws, seed)[by].nlargest(4 * n).index.tolist()]
        if not len(ids):
            raise InputError("training holds all of these facts; there is nothing to acquire.")
        found = self._measured(ids, 10 * draws, seed + 1).nlargest(n, by).reset_index(drop=True)
        return found[["head", "relation", "tail", "probability", "entropy", "epistemic"]]

    def _measured(self, ids: Tensor, draws: int, seed: int) -> pd.DataFrame:
        table = self.facts(ids, draws=draws, seed=seed)
        return table.assign(entropy=table["aleatoric"] + table["epistemic"])

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
        if relation is None or (head is None) == (tail is None):
            raise InputError("a set of answers needs a relation and either a head or a tail.")
        refuse_numbers(draws=draws)
        asked = query_ids(self.graph, [(head, relation, tail)])
        anchor, rows = self._as_rows(asked)
        threshold = self.thresholds(draws).at(int(rows), coverage, per_relation)
        p = self.probabilities(anchor, rows, draws=draws).cpu()
        is_open = open_candidates(anchor, rows, self.graph.training_queries, self.graph.num_entities)
        members = ((misfit(p, is_open) <= threshold) & is_open)[0].nonzero().squeeze(-1)
        members = members[p[0, members].argsort(descending=True, stable=True)]
        known = self._known(torch.where(asked < 0, members.unsqueeze(1), asked))
        names, role = [self.graph.entities[i] for i in members.tolist()], "head" if head is None else "tail"
        return pd.DataFrame({role: names, "probability": p[0, members].numpy(), "known": known})

    def thresholds(self, draws: int = 100) -> Thresholds:
        """What answer sets are calibrated with, from the validation facts; cached."""

        self._say_what_is_watched()
        g, probabilities = self.graph, partial(self.probabilities, draws=draws)
        make = partial(Thresholds.of, probabilities, g.valid, g.training_queries, g.num_entities)
        found: Thresholds = self._cached("thresholds", draws, make)
        return found

    def _say_what_is_watched(self) -> None:
        if self.config.get("early_stopping"):
            warnings.warn(
                "early stopping has chosen this fit by its validation facts, so that they are not exchangeable with "
                "others: sets of answers and decisions may keep their promises less well.",
                stacklevel=3,
            )
