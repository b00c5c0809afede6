"""The options of a fit: what each means and may be, how they are completed for a graph, and told in words."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kgpyro.errors import InputError, meant
from kgpyro.names import GUIDES, MODELS, SCORES, name_of, refuse_misspelt_prior, refuse_unknown, resolve

if TYPE_CHECKING:
    from kgpyro.data.features import FeaturesLike
    from kgpyro.data.graph import Graph
    from kgpyro.program.interactions import Score
    from kgpyro.program.priors import PriorLike
else:  # options are checked before PyTorch is imported, which takes seconds
    FeaturesLike = Score = PriorLike = str | Any

EXACT_UP_TO = 100_000  # entities up to which all candidates are the default
ALL_QUERIES_UP_TO = 50_000  # queries up to which all of a full closed world are summed by default
POSITIVE = (
    "dim", "epochs", "batch_size", "lr", "warmup_draws", "posterior_draws", "negatives", "unanswered", "devices",
    "nodes", "validate_every", "negative_weight", "draws", "top", "queries", "entities", "facts", "trials",
)  # fmt: skip
AT_LEAST_0 = ("kl_weight", "kl_frequency", "relation_weight", "early_stopping", "checkpoint_every", "seed")
SHARES = ("interval", "above")


@dataclass(frozen=True)
class Options:
    """What a fit can be told, the same in Python, on the command line and in ``config.yaml``.

    Values are checked and brought to their type as it is made: NumPy's numbers are numbers, 64.0 is a whole number, and
    the case of a name does not matter. Raises InputError for one that cannot be.

    Args:
        model: generative model: lim (latents per entity and relation), lfm (latents per fact), or your own as
            package.module:object.
        prior: prior of all latents: a family of pyro.distributions such as normal, a call such as laplace(scale=0.5),
            your own as package:MyPrior; in Python also a Pyro distribution.
        entity_prior: prior of entity latents where it differs from `prior`.
        relation_prior: prior of relation latents where it differs from `prior`.
        score: scoring function: DistMult, ComplEx, TransE-L1, TransE-L2, RESCAL, CP, RotatE, pykeen:NAME, or your own
            (h, r, t) -> score as package.module:function.
        guide: variational family: lookup (a location and scale per symbol), mlp(width=32, hidden=128) (a narrow
            embedding through a shared network), lowrank(rank=4) (correlated dimensions), flow(layers=2, hidden=64) (a
            normalising flow), features(hidden=128) (entities known by `features` alone), mixture(members=4) (several
            lookup tables with starts of their own, as in an ensemble), point (a point estimate), or your own as
            package.module:object.
        inference: svi (a guide, optimised); for small graphs and models with global latents such as lim also uha (svi,
            and then the guide's draws annealed to the posterior by uncorrected Hamiltonian steps: intervals nearly as
            wide as the posterior's, in a third of hmc's time), hmc (svi, and then the guide's draws moved by
            Hamiltonian Monte Carlo, many chains at once), or nuts (Pyro's No-U-Turn sampler).
        warmup_draws: draws by which nuts or hmc adapts, and which it throws away; steps of uha from guide to posterior.
            Default: 500; 128 for uha.
        posterior_draws: draws that nuts, hmc or uha keeps.
        features: file with features of the entities: CSV, TSV or parquet with names in the first column, or npy with
            the names of its rows in a txt beside it; in Python also a DataFrame indexed by name. Entities that training
            lacks then take no part in it, and are predicted all the same.
        dim: real numbers per entity latent; ComplEx, CP and RotatE split them in two halves.
        epochs: passes over the training queries.
        batch_size: queries per step.
        negatives: all (every entity is a candidate of every query; the exact objective), or the number of unobserved
            candidates drawn per query, weighted so that the objective stays unbiased. Default: all up to 100,000
            entities, 100 above.
        negative_weight: fixed weight of a drawn candidate instead of the unbiased one; 1 is plain negative sampling, a
            different objective.
        kl_weight: weight of the KL divergence at the end of its schedule. At 1 the bound is the posterior's; below it
            the posterior is a colder one, by choice. Default: 1 where latents are global (lim); 2 over the number of
            queries where they are per fact (lfm), since at 1 that model's optimum is the prior.
        kl_frequency: power α by which a symbol's KL counts more the more facts it is in, (n / mean n) ** α; 0 for all
            alike, which is the posterior. Above 0 each symbol has a colder or warmer one of its own; graphs with a few
            very frequent symbols are ranked better.
        kl_schedule: warmup (from 0, linearly), constant, or compression (Blundell et al. 2015).
        warmup: share of all steps that the warm-up takes.
        estimator: how a step integrates over the latents: local (each score has noise of its own, where score and guide
            admit it), shared (one draw of all latents), or plain (the same in plain Pyro, without the fused kernel).
        inverse: give every relation an inverse with latents of its own, which answers head queries. A fact's log-odds
            are then the mean of both readings. Default: yes; no for uha, hmc and nuts, where a relation has one latent.
        likelihood: bernoulli (each fact of a query is true or not; the paper's), or categorical (each answer of a query
            is drawn from all entities, which says who answers and not whether a fact is true).
        relation_weight: weight of a third question about each fact, which relation holds between its ends, beside those
            for its tail and its head (Chen et al. 2021: 4 on FB15k-237, .05 on WN18RR); 0 for none. Above 0 what is
            optimised is no bound of the graph's probability; models with a latent per relation (lim).
        completeness: probability with which a true fact between two entities is in the training graph; at 1 whatever it
            lacks is false, below 1 a fact may be true and missing (Elkan & Noto 2008).
        closed_world: full (the data are all facts of every entity and relation: what training does not hold is false),
            or local (only the facts of queries that training answers, a conditional likelihood: ranks as well or better
            on large graphs, and says nothing of other facts). Default: full; local where answers are drawn from all
            entities, or candidates are sampled.
        unanswered: how many of the queries that training does not answer each step of a full closed world sees, at
            random and weighted without bias; all to go through them as through the others. Default: all on small
            graphs, else an eighth of the batch size.
        lr: learning rate.
        lr_schedule: constant, or linear (from `lr` down to 0 over the fit; for Adam, whose steps do not shrink by
            themselves).
        optimizer: adagrad, adam, adamw, rmsprop or sgd.
        seed: of initial values, batches and draws.
        device: auto, cpu, gpu, mps, or one GPU by its number, such as cuda:0.
        devices: processes on each node, one per device; they share every batch (PyTorch's DistributedDataParallel).
        nodes: machines; for torchrun and Slurm, which start the processes themselves, say how many there are.
        shard: spread the entities' rows, their gradients and the optimiser's state over the processes, each of which
            owns as many, for tables past one machine; `model` lim, `guide` lookup or point, on processors.
        precision: bits of floating point: 32, 64, or mixed bf16 (32 on a processor without bf16 products) or 16.
        early_stopping: epochs without a better validation MRR after which to stop; the best state is kept (0: never).
        validate_every: epochs between validations where early stopping asks for them.
        learn_by: how a prior's parameters that are written `learn` are learned: gradients, or em (one scale of normal,
            or strength of n3 and complex_n3, per kind, dimension or symbol: before each epoch halfway to where the
            expected log prior is highest, which is known in closed form; Bamler et al. 2019).
        finish: map makes a point estimate of the fit: once it is done, the posterior mean is trained on for as many
            epochs, at the priors as they were learned, to where the joint density is highest (Bamler et al. 2019).
            The run is then one of guide point, without intervals.
        checkpoint_every: seconds between checkpoints in `out`, at least (0: after every step); longer where writing
            them would take more than a fiftieth of the time.
    """

    model: str | Callable = "lfm"
    prior: PriorLike = "normal"
    entity_prior: PriorLike | None = None
    relation_prior: PriorLike | None = None
    score: str | Score | Callable = "ComplEx"
    guide: str | Callable = "lookup"
    inference: Literal["svi", "uha", "hmc", "nuts"] = "svi"
    warmup_draws: int | None = None
    posterior_draws: int = 500
    features: FeaturesLike | None = None
    dim: int = 100
    epochs: int = 100
    batch_size: int = 256
    negatives: int | Literal["all"] | None = None
    negative_weight: float | None = None
    kl_weight: float | None = None
    kl_frequency: float = 0.0
    kl_schedule: Literal["warmup", "constant", "compression"] = "warmup"
    warmup: float = 0.3
    estimator: Literal["local", "shared", "plain"] = "local"
    inverse: bool | None = None
    likelihood: Literal["bernoulli", "categorical"] = "bernoulli"
    relation_weight: float = 0.0
    completeness: float = 1.0
    closed_world: Literal["local", "full"] | None = None
    unanswered: int | Literal["all"] | None = None
    lr: float = 0.1
    lr_schedule: Literal["constant", "linear"] = "constant"
    optimizer: Literal["adagrad", "adam", "adamw", "rmsprop", "sgd"] = "adagrad"
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    shard: bool = False
    precision: Literal["32", "64", "bf16", "16"] = "32"
    early_stopping: int = 0
    validate_every: int = 5
    learn_by: Literal["gradients", "em"] = "gradients"
    finish: Literal["map"] | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))
        refuse_unknown(self.model, MODELS, "model")
        refuse_unknown(self.guide, GUIDES, "guide")
        refuse_unknown(self.score, SCORES, "score")
        for prior in (self.prior, self.entity_prior, self.relation_prior):
            refuse_misspelt_prior(prior)
        if not 0 <= self.warmup <= 1:
            raise InputError(f"`warmup` is a share of all steps, from 0 to 1; got {self.warmup}.")
        if not 0 < self.completeness <= 1:
            raise InputError(f"`completeness` is a probability above 0 and up to 1; got {self.completeness}.")
        if not re.fullmatch(r"auto|cpu|gpu|mps|cuda(:\d+)?", self.device):
            found = f"got {self.device}."
            raise InputError(f"`device` must be auto, cpu, gpu, mps or a GPU by number such as cuda:0; {found}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Those given, the others by default. Raises InputError for a name there is none of."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"a fit has no option {name!r}; {meant(name, known)}")
        return cls(**given)

    def resolved(self, graph: Graph, saving: bool) -> dict[str, Any]:
        """The options completed for a graph, as ``config.yaml`` has them. Raises InputError for what does not go."""
        config = {"dataset": graph.source or graph.name, **vars(self)}
        config["model"] = _named(self.model, MODELS, "model", saving)
        config["guide"] = _named(self.guide, GUIDES, "guide", saving)
        config |= {key: _prior_text(getattr(self, key)) for key in ("prior", "entity_prior", "relation_prior")}
        config["score"] = _score_text(self.score)
        if not isinstance(self.features, (str, type(None))):
            config["features"] = str(self.features) if isinstance(self.features, Path) else None
        categorical = self.likelihood == "categorical"
        if self.negatives is None:
            config["negatives"] = "all" if categorical or graph.num_entities <= EXACT_UP_TO else 100
        if self.closed_world is None:
            config["closed_world"] = "local" if categorical or config["negatives"] != "all" else "full"
        if categorical and (config["negatives"], self.completeness, config["closed_world"]) != ("all", 1, "local"):
            raise InputError(
                "`likelihood` categorical draws each query's answers from all entities; leave out `negatives` and "
                "`completeness` and `closed_world`."
            )
        if graph.confidences and (categorical or self.completeness < 1):
            raise InputError(
                f"graph {graph.name!r} says how sure it is of each fact, which `likelihood` categorical and "
                "`completeness` know nothing of; leave them out."
            )
        chains = self.inference != "svi"
        if chains and self.relation_weight:
            raise InputError(f"`inference` {self.inference} is of the posterior itself; leave `relation_weight` at 0.")
        if chains and (self.kl_weight not in (None, 1) or self.kl_frequency):
            raise InputError(f"`inference` {self.inference} is of the posterior itself; leave `kl_weight` at 1.")
        if self.finish and (chains or self.devices * self.nodes > 1):
            raise InputError("`finish` map goes with `inference` svi in one process; leave it out.")
        if self.warmup_draws is None:
            config["warmup_draws"] = 128 if self.inference == "uha" else 500
        config["inverse"] = not chains if self.inverse is None else self.inverse
        every = 2 * graph.num_relations * graph.num_entities
        if config["closed_world"] == "local":
            if self.unanswered is not None:
                raise InputError("`unanswered` draws from the queries of a full closed world; add `closed_world` full.")
        elif self.unanswered is None:
            few = chains or every <= ALL_QUERIES_UP_TO or config["negatives"] != "all"
            config["unanswered"] = "all" if few else max(1, self.batch_size // 8)
        if config["negatives"] != "all" and config["unanswered"] not in (None, "all"):
            raise InputError(
                "`unanswered` draws whole queries and does not go with `negatives`; leave one of them out."
            )
        if config["early_stopping"] and not len(graph.valid):
            raise InputError(f"`early_stopping` watches validation triples, and graph {graph.name!r} has none.")
        if config["negatives"] == "all" and self.negative_weight is not None:
            raise InputError("`negative_weight` weighs drawn candidates; give it together with `negatives` K.")
        return config


def objective_name(config: Mapping[str, Any], point: bool = False) -> str:
    """What was optimised, in words; of a point estimate it is no bound."""
    if config.get("likelihood") == "categorical":
        facts = "answers drawn from all candidates (categorical)"
    elif config["negatives"] == "all":
        facts = "exact over all candidates"
    elif config["negative_weight"] is None:
        facts = f"Bernoulli-sampled, {config['negatives']} unobserved candidates per query with 1/b weights (unbiased)"
    else:
        facts = (
            f"negative sampling, {config['negatives']} candidates per query with weight {config['negative_weight']:g}: "
            f"NOT the ELBO over all facts"
        )
    if config["closed_world"] == "local":
        facts += " of the queries that training answers (local closed world)"
    elif config["unanswered"] != "all":
        facts += f", those of {config['unanswered']} random queries without an answer in each step among them"
    if config["completeness"] < 1:
        facts += f", of which the graph is taken to hold {config['completeness']:g} of the true ones"
    if config.get("relation_weight"):
        facts += f", and {config['relation_weight']:g} times which relation holds between the ends of each fact"
    weight = config["kl_weight"]
    bound = "log joint density (a point estimate, no bound)" if point else "ELBO"
    bound += "" if weight == 1 else f" with {'prior' if point else 'KL'} weight {weight:.3g}"
    if config.get("kl_frequency"):
        bound += f", times each symbol's (facts / mean) ** {config['kl_frequency']:g}"
    if point and config.get("finish"):
        bound += ", begun at the mean of a posterior and at the priors learned with it"
    return f"{bound}, {facts}; KL schedule {config['kl_schedule']}"


def _named(given: Any, table: dict[str, str], kind: str, saving: bool) -> Any:
    resolve(given, table, kind)
    try:
        return name_of(given, table, kind)
    except InputError:
        if saving:
            raise
        return given


def _prior_text(prior: PriorLike | None) -> Any:
    from kgpyro.program.priors import resolve_prior

    if prior is None:
        return None
    return resolve_prior(prior).text or prior


def _score_text(given: str | Score | Callable) -> Any:
    from kgpyro.program import interactions

    score = interactions.resolve_score(given)
    return score.name if isinstance(given, str) or interactions.SCORES.get(score.name.lower()) is score else given


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Options)


def checked(name: str, value: Any, hint: Any) -> Any:
    """A value as the type of an option or argument of that name has it. Raises InputError for one that cannot be."""
    kinds = typing.get_args(hint) if is_union(hint) else (hint,)
    names = [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    found = _converted(value, kinds, names)
    if found is None and not (value is None and type(None) in kinds):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
        wanted = [*map(repr, names), *(word for kind, word in words.items() if kind in kinds)]
        if isinstance(value, str) and len(wanted) == len(names) > 1:
            raise InputError(f"unknown `{name}` {value!r}; {meant(value, names)}")
        raise InputError(f"`{name}` must be {' or '.join(wanted)}; got {value!r}.")
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        if name in POSITIVE and not 0 < found < math.inf:
            raise InputError(f"`{name}` must be a positive number; got {value}.")
        if name in SHARES and not 0 < found < 1:
            raise InputError(f"`{name}` must be between 0 and 1, such as 0.9; got {value}.")
        if name in AT_LEAST_0 and not 0 <= found < math.inf:
            raise InputError(f"`{name}` must be at least 0; got {value}.")
    return found


def _converted(value: Any, kinds: tuple[Any, ...], names: list[Any]) -> Any:
    """The value as one of the kinds, or one of the names; None where it is none of them."""
    if isinstance(value, (str, int)) and str(value).lower() in names:
        return str(value).lower()
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's too
        return bool(value) if bool in kinds else None
    if isinstance(value, Integral) and (int in kinds or float in kinds):
        return int(value) if int in kinds else float(value)
    if isinstance(value, Real) and int in kinds and float(value).is_integer():
        return int(float(value))
    if isinstance(value, Real) and float in kinds:
        return float(value)
    if str in kinds and (isinstance(value, str) or type(value).__name__ == "device"):  # PyTorch's
        return str(value)
    plain = {int, float, bool, str, type(None)}
    free = any(kind not in plain and typing.get_origin(kind) is not Literal for kind in kinds)
    return value if free and not isinstance(value, (str, Real)) else None


def is_union(hint: Any) -> bool:
    """Whether a type is a union, however it is written."""
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"
