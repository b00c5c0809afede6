"""Probabilities of facts, and the facts that answer a query, many queries, or none but the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import COLUMNS, SPLITS
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Recalibration, moved_logits
from kgpyro.posterior.asked import Facts, Queries, fact_ids, query_ids, refuse_numbers
from kgpyro.posterior.draws import AT_ONCE
from kgpyro.posterior.scores import PosteriorScores
from kgpyro.posterior.uncertainty import covered, entropy, label_entropy, means, moments, summary
from kgpyro.program.families import posterior_mean, posterior_variance

SPARE = 20  # candidates that are measured beyond those that are wanted
MOST = 1 << 14  # candidates of a query, beyond which all draws look over all there are
ERRORS = 1.0  # Monte-Carlo errors by which what is left out is below the last answer
LOOKED = 8  # draws of a query's latents that say how much their products vary
FEW = 1 << 20  # draws of log-odds that are measured at once without a look before
LOGITS = 1 << 25  # draws of log-odds at once
FEWEST = 64  # draws that a candidate counts for at least


class Answers(PosteriorScores):
    """Facts and answers under a posterior.

    Attributes:
        recalibration: what predicted probabilities go through (:meth:`recalibrate`); None for nothing.
        config: the resolved options of the fit, as in ``config.yaml``.
    """

    recalibration: Recalibration | None
    config: dict[str, Any]

    @torch.no_grad()
    def facts(
        self, triples: Facts, draws: int = 500, interval: float = 0.9, seed: int = 0, recalibrated: bool = True
    ) -> pd.DataFrame:
        """The posterior predictive of any facts.

        Args:
            triples: one fact ``(head, relation, tail)`` by its names, a list of them, a frame with these columns, a
                text, parquet or JSON file with them (or with three columns and no header), or ids of shape ``(n, 3)``.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            recalibrated: whether probabilities go through the map of :meth:`recalibrate`, where there is one.

        Returns:
            A row per fact, as given: ``head``, ``relation``, ``tail``, ``probability``, ``std``, ``low``, ``high``,
            ``aleatoric`` and ``epistemic`` (:func:`.summary`), ``score``, the mean of its log-odds
            over the draws, ``frequency``, in how many places of training triples its rarer entity is, ``error``,
            the Monte-Carlo standard error of ``probability``, and ``known``, the split that holds the fact, or an empty
            string. ``attrs["intervals"]`` says what intervals of this guide were seen to cover.

        Raises:
            InputError: an unknown name or id, with the number of its fact, or a number that cannot be.
        """
        refuse_numbers(draws=draws, interval=interval, seed=seed)
        draws, seed, given = int(draws), int(seed), fact_ids(self.graph, triples)
        ids = (given if len(given) else torch.zeros(1, 3, dtype=torch.long)).to(self.device)
        ids, place = torch.unique(ids, dim=0, return_inverse=True)  # so that no result hangs on the others' order
        found = []
        for part in ids.split(max(1, LOGITS // draws)):
            found.append(self._summary(self.fact_logits(part, draws, seed), interval, part, recalibrated))
        columns = {key: torch.cat([part[key].to(self.device) for part in found])[place] for key in found[0]}
        return self._table(ids[place], columns, interval)[: len(given)]

    def _table(self, facts: Tensor, columns: Mapping[str, Tensor], interval: float) -> pd.DataFrame:
        """Facts by their names with what is known of them."""
        names = (self.graph.entities, self.graph.relations, self.graph.entities)
        ids = facts.T.tolist()
        named = {c: [table[i] for i in column] for c, table, column in zip(COLUMNS, names, ids, strict=True)}
        numbers = {key: value.cpu().numpy() for key, value in columns.items()}
        table = pd.DataFrame(named | numbers | {"known": self._known(facts.cpu())})
        by = self.config.get("inference", "nuts") if self.guide is None else self.config.get("guide", "lookup")
        table.attrs["intervals"] = covered(str(by), interval)
        return table

    def _known(self, facts: Tensor) -> np.ndarray:
        """The first split that holds each fact, or an empty string, shapes ``(n, 3) -> (n,)``."""
        found, keys = np.full(len(facts), "", dtype=object), self.graph._keys(facts)
        for split in reversed(SPLITS):
            for part in getattr(self.graph, split).split(1 << 19):
                found[torch.isin(keys, self.graph._keys(part)).numpy()] = split
        return found

    def _summary(self, logits: Tensor, interval: float, facts: Tensor, recalibrated: bool = True) -> dict[str, Tensor]:
        """:func:`.summary` of facts ``(n, 3)``, recalibrated where this posterior is."""
        frequency = {"frequency": self.graph.frequency[facts[:, [0, 2]].cpu()].amin(1)}
        if recalibrated and self.recalibration is not None:
            found = self._recalibrated(moments(logits) | frequency, facts[:, 1])
            moved = moved_logits(logits, found)  # so that all columns are of one map
            columns = summary(moved, interval) | {"score": moved.mean(0), "probability": found}
            columns |= {"low": columns["low"].minimum(found), "high": columns["high"].maximum(found)}
        else:
            columns = summary(logits, interval)
        return columns | frequency | {"error": columns["std"] / math.sqrt(len(logits))}

    def _recalibrated(self, found: Mapping[str, Tensor], relation: Tensor) -> Tensor:
        """Probabilities of facts of these relations, ``(n,)`` or ``(b, 1)``, from what is said of them."""
        assert self.recalibration is not None
        evidence = {key: value.cpu().numpy().ravel() for key, value in found.items()}
        ids = relation.expand(found["probability"].shape).cpu().numpy().ravel()
        target = self.recalibration(evidence | {"relation": np.array(self.graph.relations)[ids]})
        return torch.from_numpy(target).to(self.device).view(found["probability"].shape)

    @property
    def _by_evidence(self) -> bool:
        """Whether a recalibration goes by more than the probability, so that it may change the order of answers."""
        return self.recalibration is not None and len(self.recalibration.weights) > 1

    # ---- queries ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        head: str | None = None,
        relation: str | None = None,
        tail: str | None = None,
        top: int | None = 10,
        draws: int = 500,
        interval: float = 0.9,
        seed: int = 0,
        new: bool = False,
    ) -> pd.DataFrame:
        """The most probable tails of ``(head, relation, ?)``, heads of ``(?, relation, tail)``, or relations.

        Args:
            head, relation, tail: names; give two of the three.
            top: how many answers; None for all.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            new: leave out the facts that any split holds. Otherwise answers that are known are among the ``top``.

        Returns:
            One row per answer, most probable first: ``tail`` (or ``head``, ``relation``), ``probability`` (posterior
            predictive, of the fact; of an entity under a categorical likelihood, that it is the answer), ``std`` and
            ``low``, ``high`` (standard deviation and interval of that probability over the posterior), ``aleatoric``
            and ``epistemic`` (the two parts of the doubt, in nats; :func:`.summary`), ``score``, ``frequency`` and
            ``error`` as in :meth:`facts`, ``known`` (the split that holds the fact, or an empty string). Of equal
            probabilities the higher score is first. Of a large graph every candidate that is left out is estimated
            below the last answer, by a Monte-Carlo error, so that no lucky draw makes it one.

        Raises:
            InputError: an unknown name, not two of the three, or a number that cannot be.
        """
        given = (head, relation, tail)
        if any(isinstance(part, (pd.DataFrame, list, tuple, dict)) for part in given):
            raise InputError("`predict` takes the names of one query; for many there is `answers`, for facts `facts`.")
        if sum(part is not None for part in given) != 2:
            raise InputError("a prediction needs two of `head`, `relation` and `tail`: it says which third goes best.")
        refuse_numbers(top=top, draws=draws, interval=interval, seed=seed)
        find = (self.graph.entity_id, self.graph.relation_id, self.graph.entity_id)
        ids = [-1 if part is None else each(str(part)) for each, part in zip(find, given, strict=True)]
        found = self._answered(torch.tensor([ids]), top, draws, interval, seed, new)
        return found.drop(columns=["query", *(c for c, i in zip(COLUMNS, ids, strict=True) if i >= 0)])

    def answers(
        self,
        queries: Queries,
        top: int | None = 10,
        draws: int = 100,
        interval: float = 0.9,
        seed: int = 0,
        new: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """The most probable answers of many queries, each as :meth:`predict` has them.

        Args:
            queries: a frame with two of ``head``, ``relation`` and ``tail`` filled in every row, a list of
                ``(head, relation, tail)`` with None for what is asked, or a text, parquet or JSON file with these
                columns (or three without a header), where what is asked is empty or ``?``.
            top: how many answers of each; None for all.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.
            new: leave out the facts that any split holds.
            progress: show a progress bar.

        Returns:
            A row per answer: ``query``, the number of its query from 0 on, ``head``, ``relation`` and ``tail``, and
            the other columns of :meth:`predict`.

        Raises:
            InputError: an unknown name, not two of the three (with the number of the query), an unreadable file, or a
                number that cannot be.
        """
        refuse_numbers(top=top, draws=draws, interval=interval, seed=seed)
        return self._answered(query_ids(self.graph, queries), top, draws, interval, seed, new, progress)

    @torch.no_grad()
    def _answered(
        self, asked: Tensor, top: int | None, draws: int, interval: float, seed: int, new: bool, progress: bool = False
    ) -> pd.DataFrame:
        """Answers of queries ``(n, 3)``, -1 for what is asked."""
        given, found = asked, []
        top, draws, seed = top if top is None else int(top), int(draws), int(seed)
        asked = asked if len(asked) else torch.tensor([[0, 0, -1]])
        floor = torch.zeros(len(asked), dtype=torch.double)  # what the estimates of others must be below
        with tqdm(total=len(given), desc="answer", unit="query", disable=not progress, leave=False) as bar:
            for number, wanted in enumerate((asked[:, 1] >= 0, asked[:, 1] < 0)):
                size = self.graph.num_relations if number else self.graph.num_entities
                few = number or top is None or len(asked) * size * draws <= FEW or top + SPARE >= size
                kept, left = size if few else top + SPARE, wanted.nonzero().squeeze(-1)  # type: ignore[operator]
                for by in ("all",) if few else ("estimates", "floor", "draws") if self._estimable else ("draws",):
                    parts, left = left.split(max(1, LOGITS // (kept * max(draws, FEWEST)))), left[:0]
                    for part in parts if len(parts[0]) else ():
                        mine = asked[part]
                        candidates = self._candidates(mine, kept, draws, seed, new, by, floor[part])
                        table, sure, floor[part] = self._measured_answers(
                            part, mine, *candidates, top, draws, interval, seed, new
                        )
                        if len(table):
                            found.append(table)
                        left = torch.cat([left, part[~sure]])
                        bar.update(int(sure.sum()))
        table = pd.concat(found, ignore_index=True).sort_values("query", kind="stable", ignore_index=True)
        table.attrs = found[0].attrs
        return table if len(given) else table[:0]

    @property
    def _estimable(self) -> bool:
        """Whether the probabilities of a query's candidates can be estimated from means and variances of latents."""
        fits = self.form is not None and self.guide is not None and not self.kg.categorical
        return fits and self.kg.score.multilinear and self.kg.score.linear and not self._by_evidence

    def _candidates(
        self, asked: Tensor, kept: int, draws: int, seed: int, new: bool, by: str, floor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of queries: whose they are ``(n,)``, in order, their ids ``(n,)``, and what others reach ``(b,)``.

        They are ``"all"`` that there are, the ``kept`` best by ``"estimates"`` or by all ``"draws"``, or those whose
        estimates are not below the ``"floor"``, a probability for each query, and none where these are too many.
        Others reach an estimate, -1 where there is none.
        """
        each, none, size = torch.arange(len(asked)), torch.full((len(asked),), -1.0), self.graph.num_entities
        if by == "all":
            ids = torch.arange(kept, device=self.device).expand(len(asked), -1)
            return each.repeat_interleave(kept), ids.flatten(), none
        query, found, beyond, known = [], [], [], self.graph.known_queries
        room = LOGITS // max(draws, FEWEST)  # candidates of all queries
        for part in each.split(max(1, (2 * AT_ONCE if by == "draws" else AT_ONCE // 2) // size)):
            anchor, row = self._as_rows(asked[part])
            key = (self._looked_over if by == "draws" else self._estimates)(anchor, row, draws, seed)
            if new:
                rows, others = known.answer_pairs(known.positions(anchor, row))
                key[rows.to(self.device), others.to(self.device)] = -math.inf
            if by == "floor":
                inside = key >= floor[part, None].logit().to(key)
                counts, least = inside.sum(1).sort()
                fits = least[(counts <= MOST) & (counts.cumsum(0) <= room)]
                mine, ids = inside[fits].nonzero().unbind(1)
                query.append(part[fits.cpu()][mine.cpu()])
                room -= len(ids)
                beyond.append(torch.full_like(none[part], math.inf).index_fill_(0, fits.cpu(), -1.0))
            else:
                best = key.topk(kept + (by == "estimates"))
                query.append(part.repeat_interleave(kept))
                ids = best.indices[:, :kept].flatten()
                beyond.append(best.values[:, -1].sigmoid().cpu() if by == "estimates" else none[part])
            found.append(ids)
        return torch.cat(query), torch.cat(found), torch.cat(beyond)

    def _estimates(self, anchor: Tensor, row: Tensor, draws: int, seed: int) -> Tensor:
        """Log-odds ``(b, E)`` of about the probability of each candidate, over all draws there could be.

        Of Gaussian log-odds ``N(m, v)`` these are about ``m / sqrt(1 + π v / 8)`` (MacKay 1992), from ``m - v/2`` to
        ``m + v/2`` (the mean of ``exp`` bounds that of the sigmoid). The mean is exact, the variance as if those of an
        entity's coordinates were alike.
        """
        assert self.guide is not None and self.form is not None
        anchor, row, R = anchor.to(self.device), row.to(self.device), self.graph.num_relations
        reverse, (ends, place) = row >= R, torch.unique(anchor, return_inverse=True)
        rows, latent = torch.unique(self._latent_rows(row), return_inverse=True)
        some = range(min(LOOKED, len(self.numbers(draws, seed))))
        drawn = (self.drawn(kind, ids, some, draws, seed) for kind, ids in (("entity", ends), ("relation", rows)))
        looks = [self._query(e[place], r[latent], reverse).square() for e, r in zip(*drawn, strict=True)]
        squares = torch.stack(looks).mean(0)
        total = None
        for _ in self.in_turn(self.guide.members):
            entities, relations = self._moments()
            query = self._query(entities[anchor], relations[self._latent_rows(row)], reverse)
            mean, (length, variance) = query @ entities.mT, self._spreads()
            spread = torch.stack([(squares - query.square()).clamp_min(0).mean(1), squares.sum(1)], 1)
            found = spread @ torch.stack([length, variance])
            if self.form.intercept:
                intercept = self.guide.field("intercept")()
                mean += posterior_mean(intercept)[row % R].unsqueeze(1)
                found += posterior_variance(intercept)[row % R].unsqueeze(1)
            low, high = mean.sub(found, alpha=0.5), mean.add(found, alpha=0.5)
            mean.div_(found.mul_(math.pi / 8).add_(1).sqrt_()).clamp_(low, high)
            total = mean if self.guide.members == 1 else mean.sigmoid_() if total is None else total + mean.sigmoid_()
        assert total is not None
        return total if self.guide.members == 1 else torch.logit(total / self.guide.members, eps=1e-12)

    def _spreads(self) -> tuple[Tensor, Tensor]:
        """Of each entity's latents the squared length of the mean and the mean variance, ``(E,)``."""
        assert self.guide is not None
        guide, everyone = self.guide, torch.arange(self.graph.num_entities, device=self.device)
        each = (posterior_variance(guide.posterior("entity", everyone[b])).mean(1) for b in self._blocks(len(everyone)))
        means = torch.linalg.vector_norm(self._moments()[0], dim=1).square()  # without a table of squares
        return means, self._cached("variances", guide.member, lambda: torch.cat([*each]), guide.members)

    def _looked_over(self, anchor: Tensor, row: Tensor, draws: int, seed: int) -> Tensor:
        """What the candidates of queries are ranked by, ``(b, E)``: their probability over all draws."""
        found = torch.empty(len(row), self.graph.num_entities, dtype=torch.double, device=self.device)
        whole, each = self.form is None or self.kg.categorical, AT_ONCE // (len(row) + self.kg.entity_size)
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        for ids in everyone.split(len(everyone) if whole else max(1, each)):
            total: dict[str, Tensor] = {}
            for logits in self.answer_logits(anchor, row, draws, seed, candidates=ids):
                parts = {"score": logits, "probability": logits.sigmoid()}
                if self._by_evidence:
                    parts |= {"std": parts["probability"].square(), "aleatoric": entropy(logits)}
                total = {name: total[name].add_(value) if total else value.clone() for name, value in parts.items()}
            mean = {name: value.double() / len(self.numbers(draws, seed)) for name, value in total.items()}
            key, score = mean["probability"], mean["score"]
            if self._by_evidence and not self.kg.categorical:
                mean["std"] = (mean["std"] - key.square()).clamp_min(0).sqrt()
                mean["epistemic"] = (label_entropy(key) - mean["aleatoric"]).clamp_min(0)
                ends = self.graph.frequency[ids.cpu()].minimum(self.graph.frequency[anchor.cpu()].unsqueeze(1))
                key = self._recalibrated(mean | {"frequency": ends}, row.unsqueeze(1) % self.graph.num_relations)
            found[:, ids] = key * (1 + 1e-10 * score)  # of equal ones the higher score
        return found

    def _as_rows(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """The given entity and the relation row of queries for entities, ``(b,)`` each."""
        tails = asked[:, 2] < 0
        return torch.where(tails, asked[:, 0], asked[:, 2]), asked[:, 1] + self.graph.num_relations * ~tails

    def _measured_answers(
        self, numbers: Tensor, asked: Tensor, query: Tensor, ids: Tensor, beyond: Tensor, top: int | None, draws: int,
        interval: float, seed: int, new: bool,
    ) -> tuple[pd.DataFrame, Tensor, Tensor]:  # fmt: skip
        """The best of the candidates of :meth:`_candidates`, in order, with all that is said of them.

        And of which queries that is sure, ``(b,)``, and what others must be below for that, ``(b,)``; those of which it
        is not have no rows.
        """
        relations = bool((asked[:, 1] < 0).any())
        facts = asked[query].to(self.device)
        facts = torch.where(facts < 0, ids.unsqueeze(1), facts)
        of_facts = relations or not self.kg.categorical
        parts = facts.split(max(1, LOGITS // draws) if of_facts else len(facts))
        keys, logits = [], torch.empty(0)
        for part in parts:
            if of_facts:
                logits = self.fact_logits(part, draws, seed)
            else:
                drawn = self.answer_logits(*self._as_rows(asked), draws, seed)
                logits = torch.stack([each[query.to(self.device), ids] for each in drawn])
            keys.append([*means(logits).values()])
            if of_facts and (self._by_evidence or (relations and self.recalibration is not None)):
                frequency = self.graph.frequency[part[:, [0, 2]].cpu()].amin(1)
                keys[-1].append(self._recalibrated(moments(logits) | {"frequency": frequency}, part[:, 1]))
        order = np.lexsort([*(-torch.cat(key).cpu().numpy() for key in zip(*keys, strict=True)), query.numpy()])
        order = order[self._known(facts.cpu()[order]) == ""] if new else order
        asks = query.numpy()[order]
        first = np.searchsorted(asks, np.arange(len(asked)))
        order = order if top is None else order[np.arange(len(order)) - first[asks] < top]
        sure, floor = beyond < 0, torch.full((len(asked),), -1.0, dtype=torch.double)
        if not bool(sure.all()) and len(order):
            ends = np.searchsorted(query.numpy()[order], np.arange(len(asked)), side="right")
            last = torch.from_numpy(order[ends - 1]).to(self.device)
            p = (logits[:, last] if len(parts) == 1 else self.fact_logits(facts[last], draws, seed)).double().sigmoid()
            floor = (p.mean(0) - ERRORS * p.std(0, correction=0) / math.sqrt(len(p))).cpu()
            floor[torch.from_numpy(np.diff(ends, prepend=0) != top)] = -1.0  # fewer than there should be
            sure |= beyond <= floor
            order = order[sure.numpy()[query.numpy()[order]]]
        if not len(order):
            return pd.DataFrame(), sure, floor
        chosen = torch.from_numpy(order).to(self.device)
        found = []
        for part in chosen.split(max(1, LOGITS // draws)):
            mine = logits.index_select(1, part) if len(parts) == 1 else self.fact_logits(facts[part], draws, seed)
            found.append(self._summary(mine, interval, facts[part], of_facts))
        columns = {key: torch.cat([each[key].to(self.device) for each in found]) for key in found[0]}
        table = self._table(facts[chosen], columns, interval)
        table.insert(0, "query", numbers[query[order]].numpy())
        return table, sure, floor
