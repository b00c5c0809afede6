"""A fitted posterior: scores, ranks, predictions with intervals; saved to and loaded from a folder of data files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kgpyro.conformal import Thresholds, misfit, open_candidates
from kgpyro.errors import InputError
from kgpyro.families import posterior_mean
from kgpyro.features import FeaturesLike, load_features
from kgpyro.graph import SPLITS, Graph
from kgpyro.guide import Guide
from kgpyro.names import GUIDES, resolve
from kgpyro.predictive import summary
from kgpyro.priors import resolve_prior
from kgpyro.ranking import all_metrics, metrics_table, per_relation_table, rank_triples
from kgpyro.runs import Bounded, Run, refusing
from kgpyro.scores import PosteriorScores, seeded
from kgpyro.scoring import resolve_score
from kgpyro.setting import Setting


class Posterior(PosteriorScores):
    """The variational posterior of a fitted model, with the graph it was fitted to.

    Attributes:
        graph: the graph, all three splits.
        kg: the setting: score, priors, intercepts.
        guide: ``q(h | symbol)``.
        config: the resolved options of the fit, as in ``config.yaml``.
        metrics: what ``metrics.json`` holds.
        log: one row per epoch, as in ``log.csv``.
        seconds: how long the fit took (0 for a loaded run).
        provenance: versions, commit, seed, threads, precision and data of the fit, as in ``run.json``.
    """

    def __init__(
        self,
        graph: Graph,
        kg: Setting,
        guide: Guide,
        config: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        log: pd.DataFrame | None = None,
    ):
        super().__init__(graph, kg, guide)
        self.config, self.metrics = dict(config), dict(metrics or {})
        self.log = pd.DataFrame() if log is None else log
        self.seconds = 0.0
        self.provenance: dict[str, Any] = {}
        self._thresholds: dict[int, Thresholds] = {}

    def __repr__(self) -> str:
        c = self.config
        return f"Posterior({c['model']}, {self.kg.score.name}, dim {c['dim']}, graph {self.graph.name!r})"

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
    ) -> pd.DataFrame:
        """The posterior predictive of any facts.

        Args:
            triples: names ``(head, relation, tail)``, a frame with these columns, or ids of shape ``(n, 3)``.
            draws: posterior draws.
            interval: mass of the central interval.
            seed: of the draws.

        Returns:
            A row per fact, as given: ``head``, ``relation``, ``tail``, ``probability``, ``std``, ``low``, ``high``,
            ``aleatoric`` and ``epistemic`` (:func:`kgpyro.predictive.summary`). Where relations have inverses a draw's
            probability is asked both ways, and the fact's draws are those of either.

        Raises:
            InputError: an unknown name.
        """
        ids = self._ids(triples).to(self.device)
        found = []
        with seeded(seed):
            for part in ids.split(max(1, (1 << 23) // (draws * max(self.kg.entity_size, self.kg.relation_size)))):
                ways = [(part[:, 0], part[:, 1], part[:, 2])]
                if self.inverse:
                    ways.append((part[:, 2], part[:, 1] + self.graph.num_relations, part[:, 0]))
                each = torch.cat([self._draw_pairs(*way, draws=-(-draws // len(ways))) for way in ways])
                found.append(summary(each, interval))
        names = {key: torch.cat([part[key] for part in found]).cpu().numpy() for key in found[0]} if found else {}
        g = self.graph
        h, r, t = (
            [table[i] for i in column]
            for table, column in zip((g.entities, g.relations, g.entities), ids.T.tolist(), strict=True)
        )
        return pd.DataFrame({"head": h, "relation": r, "tail": t} | names)

    def _ids(self, triples: Sequence[Sequence[str]] | pd.DataFrame | Tensor) -> Tensor:
        if isinstance(triples, Tensor):
            return triples
        rows = (
            triples[["head", "relation", "tail"]].itertuples(index=False)
            if isinstance(triples, pd.DataFrame)
            else triples
        )
        g = self.graph
        ids = [[g.entity_id(h), g.relation_id(r), g.entity_id(t)] for h, r, t in rows]
        return torch.tensor(ids, dtype=torch.long).reshape(-1, 3)

    # ---- ranks ------------------------------------------------------------------------------------------------------

    def ranks(
        self,
        split: str = "test",
        by: str = "score",
        draws: int | None = None,
        unseen: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Ranks of the true head and tail of every triple of a split (:func:`kgpyro.ranking.rank_triples`).

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.
            by: ``"score"``, the posterior mean of the score, or ``"probability"``, the posterior predictive.
            draws: Monte-Carlo draws; by default 32 for scores that need them and 100 for probabilities.
            unseen: only the triples with an entity that training has not seen.
            progress: show a progress bar.

        Raises:
            InputError: unknown split or criterion, or no such triples.
        """
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}.")
        functions = {"score": self.mean_scores, "probability": self.probabilities}
        if by not in functions:
            raise InputError(f"facts are ranked by 'score' or 'probability', not by {by!r}.")
        options = {} if draws is None else {"draws": draws}

        def score_all(anchor: Tensor, row: Tensor) -> Tensor:
            return functions[by](anchor, row, **options)

        triples = getattr(self.graph, split)
        if unseen:
            triples = triples[~self.graph.seen[triples[:, [0, 2]]].all(1)]
            if not len(triples):
                raise InputError(f"every entity of the {split} split is in training too; there is nothing unseen.")
        return rank_triples(score_all, triples, self.graph.known_queries, self.graph.num_entities, progress)

    def evaluate(
        self,
        split: str = "test",
        by: str = "score",
        draws: int | None = None,
        unseen: bool = False,
        per_relation: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Filtered and raw metrics of head and tail prediction over all entities, realistic ranks.

        Args:
            split: train, valid or test.
            by: what facts are ranked by: score (its posterior mean) or probability (the posterior predictive).
            draws: Monte-Carlo draws; by default 32 for scores that need them and 100 for probabilities.
            unseen: only the triples with an entity that training has not seen.
            per_relation: a row per relation and side instead, filtered (Tables 3 and 4 of the paper).
            progress: show a progress bar.

        Returns:
            A row per setting (filtered, raw) and side: MRR, MR, AMRI, Hits@1, 3 and 10.

        Raises:
            InputError: unknown split or criterion.
        """
        ranks = self.ranks(split, by, draws, unseen, progress)
        return per_relation_table(ranks, self.graph) if per_relation else metrics_table(ranks)

    def evaluation(self, split: str, progress: bool = False) -> dict[str, Any]:
        """All metrics of a split, nested as in ``metrics.json``."""
        return all_metrics(self.ranks(split, progress=progress))

    # ---- predictions ------------------------------------------------------------------------------------------------

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
            One row per answer, most probable first: ``tail`` (or ``head``), ``probability`` (posterior predictive),
            ``std`` and ``low``, ``high`` (standard deviation and interval of the fact's probability over the
            posterior), ``aleatoric`` and ``epistemic`` (the two parts of the doubt, in nats;
            :func:`kgpyro.predictive.summary`), ``known`` (the split that holds the fact, or an empty string).

        Raises:
            InputError: unknown names, or not exactly one given entity.
        """
        side, given, relation_id, row = self._query(head, relation, tail)
        everyone = torch.arange(self.graph.num_entities, device=self.device)
        chosen = everyone if top is None else self._most_probable(given, row, top, draws, seed)
        parts = chosen.split(max(1, (1 << 22) // draws))
        found = [summary(self._draws(given, row, part, draws, seed), interval) for part in parts]
        columns = {key: torch.cat([part[key] for part in found]).cpu().numpy() for key in found[0]}
        known = self._known(given, relation_id, side)
        ids = chosen.tolist()
        frame = pd.DataFrame(
            {side: [self.graph.entities[i] for i in ids], **columns, "known": [known.get(i, "") for i in ids]}
        )
        return frame.sort_values("probability", ascending=False, kind="stable", ignore_index=True)

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

        Calibrated on the validation facts (:mod:`kgpyro.conformal`), the first time this takes a while.

        Args:
            head, relation, tail: names; the relation and exactly one of the entities.
            coverage: how probable it is, over facts like those of the validation split, that the set has the answer.
            per_relation: calibrate each relation apart where it has enough validation facts.
            draws: posterior draws behind the predictive probabilities.

        Returns:
            One row per member, most probable first: ``tail`` (or ``head``), ``probability``, ``known``. Facts that
            training holds are left out.

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
            g = self.graph
            probabilities = partial(self.probabilities, draws=draws)
            self._thresholds[draws] = Thresholds.of(probabilities, g.valid, g.training_queries, g.num_entities)
        return self._thresholds[draws]

    def _query(self, head: str | None, relation: str | None, tail: str | None) -> tuple[str, int, int, int]:
        """Which side a query asks for, its given entity, its relation and its row. Raises InputError for no query."""
        if relation is None or (head is None) == (tail is None):
            raise InputError("a prediction needs a relation and either a head or a tail.")
        side = "tail" if tail is None else "head"
        given = self.graph.entity_id(head if tail is None else tail)  # type: ignore[arg-type]
        relation_id = self.graph.relation_id(relation)
        return side, given, relation_id, relation_id if side == "tail" else relation_id + self.graph.num_relations

    def _most_probable(self, given: int, row: int, top: int, draws: int, seed: int) -> Tensor:
        """The ids of a query's answers with the highest predictive probability, in blocks of draws."""
        total = torch.zeros(self.graph.num_entities, device=self.device, dtype=self.dtype)
        at_once = max(1, (1 << 22) // self.graph.num_entities) if self._cheap_draws else 1
        a, r = (torch.tensor([value], device=self.device) for value in (given, row))
        with seeded(seed):
            for start in range(0, draws, at_once):
                rows = min(at_once, draws - start)
                total += self._draw_logits(a.expand(rows), r.expand(rows)).sigmoid_().sum(0)
        return total.topk(min(top, len(total))).indices

    def _known(self, given: int, relation: int, side: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for split in reversed(SPLITS):
            triples = getattr(self.graph, split)
            here = (triples[:, 1] == relation) & (triples[:, 0 if side == "tail" else 2] == given)
            found |= dict.fromkeys(triples[here][:, 2 if side == "tail" else 0].tolist(), split)
        return found

    @torch.no_grad()
    def prior_parameters(self) -> pd.DataFrame:
        """The parameters of the priors that are not fixed numbers.

        Returns:
            A row per parameter: ``prior`` (entity or relation), ``parameter``, ``how`` (learned, or latent: then its
            posterior mean), ``values`` (how many it has), and their ``mean``, ``low`` and ``high`` (5 % and 95 %).
        """
        found: list[tuple[str, str, str, Tensor]] = []
        for kind in self.kg.families:
            prior = self.kg.symbol_prior(kind)
            found += [(kind, name, "learned", value) for name, value in prior.values().items()]
            for site in prior.latents:
                mean = posterior_mean(self.guide.hyper[site]())
                found.append((kind, site.removeprefix(f"{kind}_"), "latent", mean))
        rows = []
        for kind, name, how, values in found:
            flat = values.double().flatten().cpu()
            low, high = torch.quantile(flat, torch.tensor([0.05, 0.95], dtype=torch.double)).tolist()
            rows.append([kind, name, how, len(flat), float(flat.mean()), low, high])
        return pd.DataFrame(rows, columns=["prior", "parameter", "how", "values", "mean", "low", "high"])

    def extend(self, graph: Graph, features: FeaturesLike | Tensor) -> Posterior:
        """The same posterior over a graph with other entities, known by their features.

        Args:
            graph: with the same relations; its entities may all be new.
            features: of its entities (:func:`kgpyro.features.load_features`), or their values, shape ``(E, f)``.

        Raises:
            InputError: the guide does not go by features, or graph or features do not fit.
        """
        if not self.guide.inductive:
            raise InputError(
                f"guide {self.config['guide']} knows only the entities it was fitted to; fit with --guide features."
            )
        if graph.relations != self.graph.relations:
            raise InputError(
                f"graph {graph.name!r} has other relations than {self.graph.name!r}; they must be the same."
            )
        if any(u.per == "symbol" for u in self.kg.symbol_prior("entity").prior.unknown.values()):
            raise InputError(
                "the entity prior has a parameter per entity, which new ones lack; learn it for all, or per dimension."
            )
        guide, kg = copy.deepcopy(self.guide), copy.deepcopy(self.kg)
        found = features if isinstance(features, Tensor) else load_features(features, graph)
        old = guide.get_buffer("features")
        if found.shape[1] != old.shape[1]:
            raise InputError(f"these entities have {found.shape[1]} features; the guide was fitted to {old.shape[1]}.")
        guide.features, kg.num_entities = found.to(old), graph.num_entities
        extended = Posterior(graph, kg, guide, self.config, self.metrics, self.log)
        extended.seconds, extended.provenance = self.seconds, self.provenance
        return extended

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, unfinished: bool = False) -> None:
        """Write the run's files (:mod:`kgpyro.runs`).

        Raises InputError where the folder holds another run, unless it is the ``unfinished`` one of this fit.
        """
        parts = (("guide", self.guide), ("setting", self.kg))
        state = {f"{part}.{key}": value for part, module in parts for key, value in module.state_dict().items()}
        run = Run(self.graph, self.config, self.metrics, self.log, state, self.guide.sites, self.provenance)
        run.write(folder, unfinished)

    @classmethod
    def load(cls, folder: str | Path, **own: Any) -> Posterior:
        """Read a saved run. Nothing in the folder is executed.

        Args:
            folder: what :meth:`save` wrote.
            **own: ``prior``, ``entity_prior``, ``relation_prior``, ``score`` or ``guide`` where the run was fitted with
                your own code (``package.module:object``): code is never imported on the word of a run folder.

        Raises:
            InputError: no run there, or a file of it is missing or damaged.
        """
        run = Run.read(folder)
        run.refuse_own_code(set(own))
        config = run.config | own
        with refusing(Path(folder)), Bounded(run.state.values()):
            _refuse_claims(run, config, own)
            kg = build_setting(run.graph, config, run.state.get("guide.features"))
            guide = build_guide(config, kg, run.sites)
        try:
            for part, module in (("guide", guide), ("setting", kg)):
                state = {k.removeprefix(f"{part}."): v for k, v in run.state.items() if k.startswith(f"{part}.")}
                module.to(run.state["setting.intercept"].dtype).load_state_dict(state)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            raise InputError(f"the weights in {folder} do not fit its config.yaml: {what}.") from error
        found = cls(run.graph, kg, guide, run.config, run.metrics, run.log)
        found.provenance = run.provenance
        return found


def _refuse_claims(run: Run, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise InputError, before memory is taken, where the options claim more than the file of weights has."""
    widest = max((size for value in run.state.values() for size in value.shape), default=0)
    if "score" not in own and "guide" not in own and max(resolve_score(config["score"]).sizes(config["dim"])) > widest:
        raise InputError(f"the weights do not fit the dim {config['dim']} of config.yaml.")
    if run.state["setting.intercept"].dtype not in (torch.float32, torch.float64):
        raise InputError("the weights do not fit: they are no floating-point numbers of 32 or 64 bits.")


def build_setting(graph: Graph, config: Mapping[str, Any], features: Tensor | None = None) -> Setting:
    """The setting that a configuration names. Raises InputError for names there are none of."""
    relation_rows = graph.num_relations * (2 if config["inverse"] else 1)
    entity_prior = resolve_prior(config["entity_prior"] or config["prior"])
    relation_prior = resolve_prior(config["relation_prior"] or config["prior"])
    score = resolve_score(config["score"])
    kg = Setting(graph.num_entities, relation_rows, score, config["dim"], entity_prior, relation_prior)
    kg.features = features
    return kg


def build_guide(config: Mapping[str, Any], kg: Setting, sites: set[str]) -> Guide:
    """The guide that a configuration names, over a model's latent sites. Raises InputError for what is no guide."""
    guide = resolve(config["guide"], GUIDES, "guide")(kg, sites)
    if not isinstance(guide, Guide):
        raise InputError(f"guide {config['guide']} gives {type(guide).__name__}; derive it from kgpyro.Guide.")
    return guide
