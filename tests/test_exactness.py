"""Every estimator against the sum it estimates, enumerated on a tiny graph in float64."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch
from conftest import Parts, pairwise
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from kgpyro.data.graph import Graph
from kgpyro.inference.elbo import WeightedELBO
from kgpyro.inference.training import frequency_weights
from kgpyro.program.plates import Batch
from kgpyro.program.setting import INTERCEPT_SCALE

pytestmark = pytest.mark.usefixtures("double")
EVERY = pytest.mark.parametrize(("model", "inverse"), list(itertools.product(["lim", "lfm"], [True, False])))
TOLERANCE = 1e-5
INCOMPLETE = pytest.mark.parametrize("completeness", [1.0, 0.7])


class Fixed:
    """Latents as fixed functions of their symbols, so that the likelihood is a number to enumerate."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.entities = torch.randn(parts.kg.num_entities, parts.kg.entity_size)
        self.relations = torch.randn(parts.kg.num_relations, parts.kg.relation_size)

    @torch.no_grad()
    def log_likelihood(self, batch: Batch, site: str = "y") -> float:
        """The model's own estimate of the log-likelihood of all facts from a batch."""
        values = {
            "entities": self.entities[batch.entities],
            "relations": self.relations,
            "head": self.entities[batch.entities][batch.anchor],
            "relation": self.relations[batch.relation],
            "tail": self.entities[batch.entities][batch.candidate],
            "intercept": self.parts.intercepts,
        }
        conditioned = poutine.condition(self.parts.model, {site: values[site] for site in self.parts.sites})
        trace = poutine.trace(conditioned).get_trace(self.parts.kg, batch)
        trace.compute_log_prob()
        return float(trace.nodes[site]["log_prob_sum"])

    @torch.no_grad()
    def enumerated(self) -> float:
        """Σ log p(y_τ | h_τ) over every query and every candidate, ½ each, by the DistMult formula."""
        total = 0.0
        for relation, anchor, candidate, label in all_facts(self.parts):
            score = (self.entities[anchor] * self.relations[relation] * self.entities[candidate]).sum()
            logit = float(score + self.parts.intercepts[relation % self.parts.graph.num_relations])
            p = (1 if anchor == candidate else self.parts.kg.completeness) / (1 + math.exp(-logit))
            total += (math.log(p) if label else math.log1p(-p)) / 2
        return total


def all_facts(parts: Parts) -> list[tuple[int, int, int, bool]]:
    """(relation row, anchor, candidate, label) of every fact of every training query, straight from the triples."""
    graph, inverse = parts.graph, parts.batches.inverse
    shift = graph.num_relations if inverse else 0
    answers: dict[tuple[int, int, str], set[int]] = {}
    for head, relation, tail in graph.train.tolist():
        answers.setdefault((relation, head, "tail"), set()).add(tail)
        answers.setdefault((relation + shift, tail, "head"), set()).add(head)
    if parts.closed_world == "full":
        for relation, anchor in itertools.product(range(graph.num_relations), range(graph.num_entities)):
            answers.setdefault((relation, anchor, "tail"), set())
            answers.setdefault((relation + shift, anchor, "head"), set())
    return [(r, a, c, c in known) for (r, a, _), known in answers.items() for c in range(graph.num_entities)]


def splits(total: int, size: int) -> list[Tensor]:
    return list(torch.randperm(total).split(size))


def share(parts: Parts, index: Tensor) -> float:
    return len(index) / len(parts.batches)


def all_draws(parts: Parts, index: Tensor, number: int) -> list[dict[str, Tensor]]:
    """Every equally likely outcome of drawing ``number`` unobserved candidates for one query."""
    assert len(index) == 1
    known = set(parts.batches.queries.answer_pairs(index)[1].tolist())
    unobserved = [e for e in range(parts.graph.num_entities) if e not in known]
    rows = torch.zeros(number, dtype=torch.long)
    return [{"row": rows, "negative": torch.tensor(d)} for d in itertools.product(unobserved, repeat=number)]


@EVERY
@INCOMPLETE
@pytest.mark.parametrize("size", [1, 3, 100])
def test_all_candidates_sum_to_the_likelihood(
    tiny: Graph, model: str, inverse: bool, size: int, completeness: float
) -> None:
    parts = Parts(tiny, model, inverse=inverse, completeness=completeness)
    fixed = Fixed(parts)
    total = sum(share(parts, i) * fixed.log_likelihood(parts.batches(i)) for i in splits(len(parts.batches), size))
    assert total == pytest.approx(fixed.enumerated(), abs=TOLERANCE)


@EVERY
@INCOMPLETE
@pytest.mark.parametrize("number", [1, 2])
def test_sampled_likelihood_is_unbiased(
    tiny: Graph, model: str, inverse: bool, number: int, completeness: float
) -> None:
    parts = Parts(tiny, model, inverse=inverse, negatives=number, completeness=completeness)
    fixed = Fixed(parts)
    total = 0.0
    for index in splits(len(parts.batches), 1):
        draws = all_draws(parts, index, number)
        values = [fixed.log_likelihood(parts.batches.with_negatives(index, **draw)) for draw in draws]
        total += share(parts, index) * sum(values) / len(values)
    assert total == pytest.approx(fixed.enumerated(), abs=TOLERANCE)


@EVERY
@pytest.mark.parametrize("negatives", [None, 1])
def test_a_full_closed_world_is_of_every_query(tiny: Graph, model: str, inverse: bool, negatives: int | None) -> None:
    parts = Parts(tiny, model, inverse=inverse, negatives=negatives, closed_world="full")
    fixed, total = Fixed(parts), 0.0
    assert len(parts.batches) == 2 * tiny.num_relations * tiny.num_entities > len(tiny.training_queries)
    assert parts.batches.num_observed == len(tiny.train)
    for index in splits(len(parts.batches), 3 if negatives is None else 1):
        draws = [{}] if negatives is None else all_draws(parts, index, negatives)
        facts = [parts.batches.with_negatives(index, **draw) if draw else parts.batches(index) for draw in draws]
        total += share(parts, index) * sum(fixed.log_likelihood(batch) for batch in facts) / len(facts)
    assert total == pytest.approx(fixed.enumerated(), abs=TOLERANCE)


@EVERY
@pytest.mark.parametrize("size", [1, 3])
def test_random_unanswered_queries_are_unbiased(tiny: Graph, model: str, inverse: bool, size: int) -> None:
    """Summed over all batches and all equally likely unanswered queries, every cell counts once."""
    parts, full = Parts(tiny, model, inverse=inverse, unanswered=1), Parts(tiny, inverse=inverse, closed_world="full")
    fixed, total = Fixed(parts), 0.0
    assert parts.batches.num_unanswered == len(full.batches) - len(parts.batches)
    every = torch.arange(parts.batches.num_unanswered)
    for index in splits(len(parts.batches), size):
        values = [fixed.log_likelihood(parts.batches.with_unanswered(index, other)) for other in every.split(1)]
        total += share(parts, index) * sum(values) / len(values)
    whole = Fixed(full)
    whole.entities, whole.relations = fixed.entities, fixed.relations
    assert total == pytest.approx(whole.enumerated(), abs=TOLERANCE)


def test_without_inverses_each_cell_is_one_fact_of_one_probability(tiny: Graph) -> None:
    """Both directions ask for the same label, ½ each: the joint density of all cells, each once."""
    parts = Parts(tiny, inverse=False, closed_world="full")
    fixed, total, known = Fixed(parts), 0.0, set(map(tuple, tiny.train.tolist()))
    for h, r, t in itertools.product(range(tiny.num_entities), range(tiny.num_relations), range(tiny.num_entities)):
        logit = (fixed.entities[h] * fixed.relations[r] * fixed.entities[t]).sum() + parts.intercepts[r]
        total += float(torch.nn.functional.logsigmoid(logit if (h, r, t) in known else -logit))
    found = fixed.log_likelihood(parts.batches(torch.arange(len(parts.batches))))
    assert found == pytest.approx(total, abs=TOLERANCE)


@pytest.mark.parametrize("inverse", [True, False])
def test_the_trace_of_listed_facts_is_the_lfms_joint_density(tiny: Graph, inverse: bool) -> None:
    parts = Parts(tiny, "lfm", inverse=inverse)
    facts, y = torch.tensor([[0, 0, 1], [1, 0, 1], [3, 1, 0], [0, 0, 1]]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    trace = poutine.trace(parts.model).get_trace(parts.kg, parts.batches.listed(facts, y))
    pyro.clear_param_store()
    value = {name: trace.nodes[name]["value"] for name in ("head", "relation", "tail", "intercept")}
    normal, expected = torch.distributions.Normal(0.0, 1.0), 0.0
    expected += float(
        torch.distributions.Normal(parts.kg.base_rate, INTERCEPT_SCALE).log_prob(value["intercept"]).sum()
    )
    for i, (_, r, _) in enumerate(facts.tolist()):
        h, w, t = (value[name][i] for name in ("head", "relation", "tail"))
        expected += float(normal.log_prob(torch.stack([h, w, t])).sum())
        logit = (h * w * t).sum() + value["intercept"][r]
        expected += float(torch.nn.functional.logsigmoid(logit if y[i] else -logit))
    assert float(trace.log_prob_sum()) == pytest.approx(expected, abs=TOLERANCE)


def test_a_fixed_negative_weight_is_another_objective(tiny: Graph) -> None:
    parts = Parts(tiny, negatives=1, negative_weight=1.0)
    fixed = Fixed(parts)
    total = 0.0
    for index in splits(len(parts.batches), 1):
        values = [fixed.log_likelihood(parts.batches.with_negatives(index, **d)) for d in all_draws(parts, index, 1)]
        total += share(parts, index) * sum(values) / len(values)
    assert total > fixed.enumerated() + 0.1


@pytest.mark.parametrize("number", [1, 3])
def test_negatives_are_drawn_uniformly_from_the_unobserved(tiny: Graph, number: int) -> None:
    batches = Parts(tiny, negatives=number).batches
    for query in range(len(batches)):
        known = set(batches.queries.answer_pairs(torch.tensor([query]))[1].tolist())
        unobserved = [e for e in range(tiny.num_entities) if e not in known]
        position = torch.arange(len(unobserved))
        assert batches.nth_unobserved(torch.full_like(position, query), position).tolist() == unobserved
        row, drawn = batches.draw_negatives(torch.tensor([query]), number)
        assert row.tolist() == [0] * number
        assert set(drawn.tolist()) <= set(unobserved)


def naive_kl(loc: Tensor, log_scale: Tensor) -> Tensor:
    """KL(Normal(loc, scale) ‖ Normal(0, 1)) of each row, from the textbook formula."""
    scale = log_scale.exp()
    return 0.5 * (scale**2 + loc**2 - 1 - 2 * log_scale).sum(-1)


def kl_by_symbol(parts: Parts) -> tuple[Tensor, Tensor]:
    return tuple(naive_kl(t.loc, t.log_scale).detach() for t in (parts.guide.entity, parts.guide.relation))  # type: ignore[return-value]


@pytest.mark.parametrize("inverse", [True, False])
def test_lim_pays_each_kl_once(tiny: Graph, inverse: bool) -> None:
    parts = Parts(tiny, "lim", inverse=inverse)
    expected = sum(float(kl.sum()) for kl in kl_by_symbol(parts))
    for index in splits(len(parts.batches), 2):
        assert float(parts.terms(index).kl) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("negatives", [1, 2])
def test_lims_sampled_kl_is_unbiased(tiny: Graph, inverse: bool, negatives: int) -> None:
    """Each entity in a batch pays per occurrence; over all batches and draws every KL is paid once."""
    parts = Parts(tiny, "lim", inverse=inverse, negatives=negatives)
    expected = sum(float(kl.sum()) for kl in kl_by_symbol(parts))
    total = 0.0
    for index in splits(len(parts.batches), 1):
        outcomes = all_draws(parts, index, negatives)
        total += share(parts, index) * sum(float(parts.terms(index, **o).kl) for o in outcomes) / len(outcomes)
    assert total == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("negatives", [None, 1, 2])
def test_lfm_pays_the_kl_of_every_fact(tiny: Graph, inverse: bool, negatives: int | None) -> None:
    parts = Parts(tiny, "lfm", inverse=inverse, negatives=negatives)
    entity, relation = kl_by_symbol(parts)
    expected = sum(float(entity[a] + relation[r] + entity[c]) / 2 for r, a, c, _ in all_facts(parts))
    total = 0.0
    for index in splits(len(parts.batches), 2 if negatives is None else 1):
        outcomes = [{}] if negatives is None else all_draws(parts, index, negatives)
        total += share(parts, index) * sum(float(parts.terms(index, **o).kl) for o in outcomes) / len(outcomes)
    assert total == pytest.approx(expected, abs=TOLERANCE)


@EVERY
@pytest.mark.parametrize("negatives", [None, 2])
@pytest.mark.parametrize("prior", ["normal", "student_t"])
def test_the_bound_is_pyros_own(tiny: Graph, model: str, inverse: bool, negatives: int | None, prior: str) -> None:
    parts = Parts(tiny, model, prior, inverse=inverse, negatives=negatives)
    batch = parts.batches(torch.tensor([0, 2, 5]))
    torch.manual_seed(1)
    ours = WeightedELBO(estimator="plain").loss(parts.model, parts.guide, parts.kg, batch)
    torch.manual_seed(1)
    pyros = TraceMeanField_ELBO().loss(parts.model, parts.guide, parts.kg, batch)
    pyro.clear_param_store()
    assert ours == pytest.approx(pyros, abs=TOLERANCE)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_kl_weight_weighs_the_kl_alone(tiny: Graph, weight: float) -> None:
    parts = Parts(tiny)
    elbo = WeightedELBO(weight)
    loss = elbo.loss(parts.model, parts.guide, parts.kg, parts.batches(torch.arange(len(parts.batches))))
    assert loss == pytest.approx(weight * elbo.last.kl - elbo.last.log_likelihood)  # type: ignore[operator]


@EVERY
def test_frequent_symbols_pay_more(tiny: Graph, model: str, inverse: bool) -> None:
    """With ``kl_frequency`` each symbol's KL is multiplied by (facts / mean) ** power, and the untempered KL is not."""
    parts = Parts(tiny, model, inverse=inverse)
    elbo = WeightedELBO(0.3)
    elbo.symbol_weights = frequency_weights(parts.batches, 0.5, "cpu")
    elbo.loss(parts.model, parts.guide, parts.kg, parts.batches(torch.arange(len(parts.batches))))
    heads, relations, tails = tiny.train.T.tolist()
    facts = torch.tensor(
        [max(1, heads.count(e) + tails.count(e)) for e in range(tiny.num_entities)], dtype=torch.float64
    )
    rows = torch.tensor([relations.count(r) for r in range(tiny.num_relations)] * (2 if inverse else 1)).double()
    rows = rows if inverse else 2 * rows  # asked for tails and for heads
    weights = {"entity": (facts / facts.mean()).sqrt(), "relation": (rows / rows.mean()).sqrt()}
    each = {}
    for kind in weights:
        prior = parts.kg.priors()[kind == "relation"](...)
        each[kind] = kl_divergence(parts.guide.posterior(kind, ...), prior).detach()
    if model == "lim":
        plain = sum(float(kl.sum()) for kl in each.values())
        dear = sum(float((kl * weights[kind]).sum()) for kind, kl in each.items())
    else:
        plain = dear = 0.0
        for relation, anchor, candidate, _ in all_facts(parts):
            for kind, symbol in (("relation", relation), ("entity", anchor), ("entity", candidate)):
                plain += float(each[kind][symbol]) / 2
                dear += float(each[kind][symbol] * weights[kind][symbol]) / 2
    assert elbo.last.kl == pytest.approx(plain, abs=TOLERANCE)
    assert elbo.last.price == pytest.approx(0.3 * dear, abs=TOLERANCE)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize(("size", "negatives"), [(1, None), (3, None), (100, None), (3, 2)])
def test_the_relation_of_every_held_fact_is_asked(tiny: Graph, inverse: bool, size: int, negatives: int | None) -> None:
    """Half of ``softmax_r`` of each reading of each triple, summed over minibatches."""
    parts = Parts(tiny, inverse=inverse, relation_weight=3.0, negatives=negatives)
    fixed = Fixed(parts)
    found = sum(share(parts, i) * fixed.log_likelihood(parts.batches(i), "r") for i in splits(len(parts.batches), size))
    expected, R = 0.0, tiny.num_relations
    for head, relation, tail in tiny.train.tolist():
        for shift in (0, R if inverse else 0):
            rows = fixed.relations[shift : shift + R]
            scores = (fixed.entities[head] * rows * fixed.entities[tail]).sum(-1) + parts.intercepts
            expected += 3.0 / 2 * float(scores.log_softmax(-1)[relation])
    assert found == pytest.approx(expected, abs=TOLERANCE)
    posterior = parts.posterior(completeness=1.0)
    assert posterior.kg is parts.kg and "r" not in parts.sites


@pairwise(
    model=["lim", "lfm"],
    inverse=[True, False],
    score=["DistMult", "ComplEx"],
    completeness=[1.0, 0.7],
    relation_weight=[0.0, 2.0],
)
def test_local_noise_has_the_same_expectation(
    tiny: Graph, model: str, inverse: bool, score: str, completeness: float, relation_weight: float
) -> None:
    asked = relation_weight * (model == "lim")
    parts = Parts(tiny, model, score=score, inverse=inverse, completeness=completeness, relation_weight=asked)
    with torch.no_grad():  # a wide posterior, where a wrong self-loop or a wrong variance would show
        for table in (parts.guide.entity, parts.guide.relation):
            table.loc.normal_()  # type: ignore[union-attr]
            table.log_scale.fill_(0.0)  # type: ignore[union-attr]
        draws = {}
        for estimator in ("plain", "local"):
            values = [float(parts.terms(estimator=estimator).log_likelihood) for _ in range(1500)]
            draws[estimator] = torch.tensor(values)
    difference = draws["local"].mean() - draws["plain"].mean()
    error = (draws["local"].var() / 1500 + draws["plain"].var() / 1500).sqrt()
    assert abs(difference) < 4 * error
    assert completeness < 1 or draws["local"].var() < draws["plain"].var()
