"""A fitted posterior: scores, ranks, predictions with intervals; saved to and loaded from a folder of data files."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kgpyro.data.features import FeaturesLike, load_features
from kgpyro.data.graph import SPLITS, Graph
from kgpyro.display import Metrics, as_html
from kgpyro.errors import InputError
from kgpyro.evaluation.calibration import Recalibration
from kgpyro.evaluation.ranking import all_metrics, metrics_table, per_relation_table, rank_triples
from kgpyro.names import GUIDES, resolve
from kgpyro.posterior.acquisition import MEASURES, shortlist, unknown
from kgpyro.posterior.inference_data import to_arviz
from kgpyro.posterior.predictions import Predictions
from kgpyro.posterior.runs import Bounded, Run, refusing, store_recalibration
from kgpyro.posterior.scores import seeded
from kgpyro.program.families import posterior_mean
from kgpyro.program.interactions import resolve_score
from kgpyro.program.priors import resolve_prior
from kgpyro.program.setting import Setting
from kgpyro.program.variational import Guide


class Posterior(Predictions):
    """The variational posterior of a fitted model, with the graph it was fitted to.

    Attributes:
        graph: the graph, all three splits.
        kg: the setting: score, priors, intercepts.
        guide: ``q(h | symbol)``.
        config: the resolved options of the fit, as in ``config.yaml``.
        metrics: what ``metrics.json`` holds, as a dictionary that prints as a table.
        log: one row per epoch, as in ``log.csv``.
        seconds: how long the fit took, earlier parts of a resumed one included (0 for a loaded run).
        recalibration: what predicted probabilities go through; None for nothing.
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
        self.config, self.metrics = dict(config), Metrics(metrics or {})
        self.log = pd.DataFrame() if log is None else log
        self.seconds = 0.0
        self.provenance: dict[str, Any] = {}

    def __repr__(self) -> str:
        c = self.config
        return f"Posterior({c['model']}, {self.kg.score.name}, dim {c['dim']}, graph {self.graph.name!r})"

    def _repr_html_(self) -> str:
        priors = [self.config["entity_prior"] or self.config["prior"], self.config["relation_prior"]]
        values = {
            "model": self.config["model"],
            "prior": " and, of relations, ".join(str(prior) for prior in priors if prior is not None),
            "score": f"{self.kg.score.name}, dim {self.config['dim']}",
            "guide": self.config["guide"],
            "graph": repr(self.graph),
        }
        return as_html("Posterior", values, self.prior_parameters().set_index(["prior", "parameter"])) + (
            self.metrics._repr_html_()
        )

    def acquire(
        self,
        n: int = 10,
        by: str = "epistemic",
        draws: int = 100,
        relation: str | None = None,
        candidates: Sequence[Sequence[str]] | pd.DataFrame | Tensor | None = None,
        queries: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """The unknown facts to have labelled next: those whose label would say most about the latents.

        Unknown is every fact that the training split lacks: validation and test facts may be among them, as the model
        has not seen them. ``draws`` posterior draws choose ``4 n`` facts, and ten times as many, drawn anew, decide
        among these: the best of very many noisy estimates look better than they are.

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
        for name, value in {"n": n, "draws": draws, "queries": queries}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} must be a positive number; got {value}.")
        row = None if relation is None else self.graph.relation_id(relation)
        if candidates is None:
            ids = shortlist(self, 4 * n, by, draws, row, queries, seed, progress)
        else:
            ids = unknown(self._ids(candidates), self.graph)
            ids = ids if row is None else ids[ids[:, 1] == row]
        if not len(ids):
            raise InputError("training holds all of these facts; there is nothing to acquire.")
        if candidates is not None:
            ids = ids[self._measured(ids, draws, seed)[by].nlargest(4 * n).index.tolist()]
        found = self._measured(ids, 10 * draws, seed + 1).nlargest(n, by).reset_index(drop=True)
        return found[["head", "relation", "tail", "probability", "entropy", "epistemic"]]

    def _measured(self, ids: Tensor, draws: int, seed: int) -> pd.DataFrame:
        table = self.facts(ids, draws=draws, seed=seed)
        return table.assign(entropy=table["aleatoric"] + table["epistemic"])

    # ---- ranks ------------------------------------------------------------------------------------------------------

    def ranks(
        self,
        split: str = "test",
        by: str = "score",
        draws: int | None = None,
        unseen: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Ranks of the true head and tail of every triple of a split (:func:`kgpyro.evaluation.ranking.rank_triples`).

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
            features: of its entities (:func:`kgpyro.data.features.load_features`), or their values, shape ``(E, f)``.

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
        self.kg.refuse_a_parameter_per_entity()
        guide, kg = copy.deepcopy(self.guide), copy.deepcopy(self.kg)
        found = features if isinstance(features, Tensor) else load_features(features, graph)
        old = guide.get_buffer("features")
        if found.shape[1] != old.shape[1]:
            raise InputError(f"these entities have {found.shape[1]} features; the guide was fitted to {old.shape[1]}.")
        guide.features, kg.num_entities = found.to(old), graph.num_entities
        extended = Posterior(graph, kg, guide, self.config, self.metrics, self.log)
        extended.seconds, extended.provenance = self.seconds, self.provenance
        extended.recalibration = self.recalibration
        return extended

    to_arviz = to_arviz

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, unfinished: bool = False) -> None:
        """Write the run's files (:mod:`kgpyro.posterior.runs`).

        Raises InputError where the folder holds another run, unless it is the ``unfinished`` one of this fit.
        """
        parts = (("guide", self.guide), ("setting", self.kg))
        state = {f"{part}.{key}": value for part, module in parts for key, value in module.state_dict().items()}
        run = Run(self.graph, self.config, self.metrics, self.log, state, self.guide.sites, self.provenance)
        run.write(folder, unfinished)
        self.store_recalibration(folder)

    def store_recalibration(self, folder: str | Path) -> None:
        """Write ``recalibration.json`` to a run's folder, or remove it. Raises InputError where that cannot be."""
        store_recalibration(Path(folder), None if self.recalibration is None else asdict(self.recalibration))

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
        with refusing(Path(folder)), Bounded(run.state.values()), seeded(0):
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
        if run.recalibration is not None:
            found.recalibration = Recalibration.of(run.recalibration)
        return found


def _refuse_claims(run: Run, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise InputError, before memory is taken, where the options claim more than the file of weights has."""
    widest = max((size for value in run.state.values() for size in value.shape), default=0)
    sizes = resolve_score(config["score"]).sizes(config["dim"])
    if "score" not in own and "guide" not in own and max(sizes) > widest + 1:  # a simplex takes a number less
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
    kg.features, kg.completeness = features, config.get("completeness", 1.0)
    kg.categorical = config.get("likelihood") == "categorical"
    return kg


def build_guide(config: Mapping[str, Any], kg: Setting, sites: set[str]) -> Guide:
    """The guide that a configuration names, over a model's latent sites. Raises InputError for what is no guide."""
    guide = resolve(config["guide"], GUIDES, "guide")(kg, sites)
    if not isinstance(guide, Guide):
        raise InputError(f"guide {config['guide']} gives {type(guide).__name__}; derive it from kgpyro.Guide.")
    return guide
