"""A fitted posterior: scores, ranks, predictions with intervals; saved to and loaded from a folder of data files."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from kgpyro.data.features import FeaturesLike, load_features
from kgpyro.data.graph import SPLITS, Graph
from kgpyro.display import Metrics, as_html
from kgpyro.errors import InputError, meant
from kgpyro.evaluation import ranking
from kgpyro.evaluation.calibration import Recalibration
from kgpyro.files import write_text
from kgpyro.names import OWN
from kgpyro.posterior.asked import Facts, refuse_numbers
from kgpyro.posterior.building import batches_of, build_guide, build_setting, program_of, sites_of
from kgpyro.posterior.inference_data import to_arviz
from kgpyro.posterior.plots import embeddings, plot_answers, plot_embeddings, plot_history
from kgpyro.posterior.predictions import Predictions
from kgpyro.posterior.replay import Program
from kgpyro.posterior.runs import Bounded, Run, is_own_code, provenance, refusing
from kgpyro.posterior.streaming import refuse_no_update, updated, with_facts
from kgpyro.program.families import posterior_mean
from kgpyro.program.interactions import resolve_score
from kgpyro.program.owners import Share
from kgpyro.program.variational import Guide
from kgpyro.randomness import seeded


class Posterior(Predictions):
    """The variational posterior of a fitted model, with the graph it was fitted to.

    Attributes:
        graph: the graph, all three splits.
        kg: the setting: score, priors, intercepts.
        guide: ``q(h | symbol)``; None where the posterior is a set of draws.
        program: the model and what it takes to run it.
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
        program: Program,
        guide: Guide | None,
        config: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        log: pd.DataFrame | None = None,
        samples: Mapping[str, Tensor] | None = None,
    ):
        super().__init__(graph, program, guide, samples)
        self.config, self.metrics = dict(config), Metrics(metrics or {})
        self.log = pd.DataFrame() if log is None else log
        self.seconds, self.recalibration = 0.0, None
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

    @property
    def both_readings(self) -> bool:
        """Whether facts are ranked by the mean score of both their readings."""
        return not self.kg.categorical and self.config.get("closed_world") == "full"

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
            by: ``"score"``, the posterior mean of the score, or ``"probability"``, the posterior predictive. Under a
                local closed world half of the readings of unknown facts are untrained, so that a score there is that
                of the query's own reading; else it is that of both, as the probability always is.
            draws, unseen, progress: as of :meth:`evaluate`.

        Raises:
            InputError: unknown split or criterion, or no such triples.
        """
        if split not in SPLITS:
            raise InputError(f"unknown `split` {split!r}; {meant(split, SPLITS)}")
        options: dict[str, Any] = {} if draws is None else {"draws": draws}
        refuse_numbers(**options)
        if by == "score":
            score_all = partial(self.mean_scores, both=self.both_readings, **options)
        elif by == "probability":
            score_all = partial(self.probabilities, **options)
        else:
            raise InputError(f"facts are ranked by 'score' or 'probability', not by {by!r}.")
        triples = getattr(self.graph, split)
        if unseen:
            triples = triples[~self.graph.seen[triples[:, [0, 2]]].all(1)]
            if not len(triples):
                raise InputError(f"every entity of the {split} split is in training too; there is nothing unseen.")
        among = self.graph.known_queries, self.graph.num_entities
        return ranking.rank_triples(score_all, triples, *among, progress, self.kg.share)

    def evaluate(
        self,
        split: Literal["train", "valid", "test"] = "test",
        by: Literal["score", "probability"] = "score",
        draws: int | None = None,
        unseen: bool = False,
        per_relation: bool = False,
        relations: bool = False,
        distribution: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Filtered and raw metrics of head and tail prediction over all entities, realistic ranks.

        Args:
            split: train, valid or test.
            by: what facts are ranked by: score (its posterior mean) or probability (the posterior predictive).
            draws: Monte-Carlo draws; by default 32 for scores that need them and 100 for probabilities.
            unseen: only the triples with an entity that training has not seen.
            per_relation: a row per relation and side instead, filtered (Tables 3 and 4 of the paper).
            relations: rank the relation between the ends of each triple too, by its posterior mean log-odds.
            distribution: measure the distribution over all candidates of a query too: their probabilities, which of
                categorical fits sum to one, and of others are divided by their sum. NLL is the mean of minus the log of
                the true answer's; ECE and ACE say how far the share of most probable candidates that are the true
                answer is from their probability (in the filtered setting other known answers are no candidates).
            progress: show a progress bar.

        Returns:
            A row per setting (filtered, raw) and side: MRR, MR, AMRI, Hits@1, 3 and 10; with ``distribution`` also NLL,
            ECE and ACE.

        Raises:
            InputError: unknown split or criterion.
        """
        graph, ranks = self.graph, self.ranks(split, by, draws, unseen, progress)
        asked = getattr(graph, split), graph.known_queries, graph.num_entities
        if distribution:
            if unseen or relations:
                raise InputError("`distribution` is of heads and tails of all triples; leave out the others.")
            p = partial(self.probabilities, draws=100 if draws is None else draws)
            ranks = ranks.join(ranking.answer_distributions(p, *asked, progress))
        if relations:
            known, sizes = torch.cat([graph.train, graph.valid, graph.test]), (graph.num_entities, graph.num_relations)
            ranks = pd.concat([ranks, ranking.rank_relations(self.mean_relation_scores, asked[0], known, *sizes)])
        return ranking.per_relation_table(ranks, self.graph) if per_relation else ranking.metrics_table(ranks)

    def evaluation(self, split: str, progress: bool = False) -> dict[str, Any]:
        """All metrics of a split, nested as in ``metrics.json``."""
        return ranking.all_metrics(self.ranks(split, progress=progress))

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
                drawn = (self.samples or {}).get(site)
                mean = posterior_mean(self.its_guide(site).field(site)()) if drawn is None else drawn.mean(0)
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
        if self.guide is None or not self.guide.inductive:
            raise InputError(
                f"guide {self.config['guide']} knows only the entities it was fitted to; fit with `guide` features."
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
        batches = batches_of(graph, self.config, self.dtype).to(self.device)
        program = replace(self.program, kg=kg, batches=batches)
        extended = Posterior(graph, program, guide, self.config, self.metrics, self.log)
        extended.seconds, extended.provenance = self.seconds, self.provenance
        extended.recalibration = self.recalibration
        return extended

    def update(
        self,
        new_facts: Facts,
        epochs: int = 100,
        lr: float = 0.05,
        seed: int = 0,
        progress: bool = False,
    ) -> Posterior:
        """The posterior given more facts, fitted to these alone: this posterior is their prior (Broderick et al. 2013).

        What training did not hold was false; of a new fact between symbols of the graph that is taken back. Symbols
        that are new have the prior that the fit gave all, and all their other facts are false.

        Args:
            new_facts: as :meth:`facts` takes them; their names may be new. Facts of valid and test become training's.
            epochs: steps, each over all new facts.
            lr: learning rate of Adam at the first step; it falls to a hundredth.
            seed: of draws and of new symbols' initial values.
            progress: show a progress bar.

        Returns:
            A posterior over the larger graph, new names last in its tables; without recalibration and metrics. Its
            ``log`` is of the update.

        Raises:
            InputError: training holds all these facts, or the posterior is not one Gaussian per symbol.
        """
        refuse_no_update(self, self.config)
        refuse_numbers(epochs=epochs, seed=seed)
        larger, new = with_facts(self.graph, new_facts)
        program, guide, log = updated(self, larger, new, epochs, lr, seed, progress)
        found = Posterior(larger, program, guide, self.config, log=log)
        found.provenance = provenance(larger, self.config | {"seed": seed})
        return found

    to_arviz = to_arviz
    embeddings = embeddings
    plot_embeddings, plot_answers, plot_history = plot_embeddings, plot_answers, plot_history

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: loss, log-likelihood and KL in nats per training fact, KL weight, and seconds so far."""
        return self.log

    def to(self, device: str | torch.device) -> Posterior:
        """Move everything to a device, in place; returns the posterior itself. Raises InputError for an absent one."""
        names = {"gpu": "cuda", "auto": "cuda" if torch.cuda.is_available() else "cpu"}
        device = names.get(str(device), device)
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # AssertionError of a PyTorch without CUDA
            raise InputError(f"`device` {device} is not on this machine; cpu is.") from error
        for module in self.modules().values():
            module.to(device)
        self.program.batches.to(device)
        if self.samples is not None:
            self.samples = {site: value.to(device) for site, value in self.samples.items()}
        self.forget()
        return self

    # ---- files ------------------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: the files of a run, which hold no code. Raises InputError for a fit that cannot be saved."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "run")
            files = {file.name: file.read_bytes() for file in (Path(folder) / "run").iterdir() if file.is_file()}
        own = {key: self.config[key] for key in OWN if is_own_code(self.config.get(key))}
        return _revived, (files, own, str(self.device))

    def save(self, folder: str | Path, overwrite: bool = False, unfinished: bool = False) -> None:
        """Write the run's files (:mod:`kgpyro.posterior.runs`).

        Args:
            folder: a new one; with ``overwrite`` also that of another run, which this one replaces.
            overwrite: whether it may replace another run.
            unfinished: the folder is that of this very fit, from before it ended.

        Raises InputError where the folder holds another run, or cannot be written.
        """
        state = {f"draws.{site}": value for site, value in (self.samples or {}).items()}
        for part, module in self.modules().items():
            state |= {f"{part}.{key}": value for key, value in module.state_dict().items()}
        run = Run(self.graph, self.config, self.metrics, self.log, state, self.provenance)
        run.write(folder, unfinished or overwrite)
        self.store_recalibration(folder)

    def modules(self) -> dict[str, nn.Module]:
        """Whose parameters a run keeps."""
        found = {"setting": self.kg, "own": self.program.parameters.made}
        if self.guide is not None:
            found["guide"] = self.guide
        if isinstance(self.program.model, nn.Module):
            found["model"] = self.program.model
        return found

    def store_recalibration(self, folder: str | Path) -> None:
        """Write ``recalibration.json`` to a run's folder, or remove it. Raises InputError where that cannot be."""
        path = Path(folder) / "recalibration.json"
        if self.recalibration is not None:
            return write_text(path, json.dumps(asdict(self.recalibration)) + "\n")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be removed: {error}.") from error

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", **own: Any) -> Posterior:
        """Read a saved run. Nothing in the folder is executed.

        Args:
            folder: what :meth:`save` wrote.
            device: to put it on.
            **own: ``model``, ``prior``, ``entity_prior``, ``relation_prior``, ``score`` or ``guide`` where it was fit
                with your own code (``package.module:object``): code is never imported on the word of a run folder.

        Raises:
            InputError: no run there, or a file of it is missing or damaged.
        """
        return cls._of_run(Run.read(folder), folder, own).to(device)

    @classmethod
    def _of_run(cls, run: Run, folder: str | Path, own: dict[str, Any], share: Share | None = None) -> Posterior:
        """The posterior of a run's files, with this process's rows of its tables."""
        run.refuse_own_code(set(own))
        config = run.config | own
        with refusing(Path(folder)), Bounded(run.state.values()), seeded(0):
            _refuse_claims(run, config, own)
            graph = run.graph
            kg = build_setting(graph, config, run.state.get("guide.features"), share).to(run.dtype)
            program = program_of(config["model"], kg, batches_of(graph, config, run.dtype, share))
            samples = {k.removeprefix("draws."): v for k, v in run.state.items() if k.startswith("draws.")}
            guide = None if samples else build_guide(config["guide"], kg, sites_of(program)).to(run.dtype)
            found = cls(graph, program, guide, run.config, run.metrics, run.log, samples or None)
        run.fill(found.modules(), Path(folder), None if share is None else share.first)
        found.provenance = run.provenance
        if run.recalibration is not None:
            found.recalibration = Recalibration.of(run.recalibration)
        return found


def _revived(files: Mapping[str, bytes], own: Mapping[str, Any], device: str) -> Posterior:
    """A posterior from the files of its run, in another process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return Posterior.load(folder, device, **own)


def _refuse_claims(run: Run, config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise InputError, before memory is taken, where the options claim more than the file of weights has."""
    widest = max((size for value in run.state.values() for size in value.shape), default=0)
    sizes = resolve_score(config["score"]).sizes(config["dim"])
    if not {"score", "guide"} & own.keys() and max(sizes) > widest + 1:  # a simplex takes a number less
        raise InputError(f"the weights do not fit the dim {config['dim']} of config.yaml.")
