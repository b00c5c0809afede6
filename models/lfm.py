"""The Latent Fact Model: latents are local, three for every fact.

    b_r ~ Normal(logit of the base rate, 3²)
    for every fact τ = (h, r, t):
        h_h ~ prior_E,  h_r ~ prior_R,  h_t ~ prior_E
        y_τ ~ Bernoulli(κ sigmoid(φ(h_h, h_r, h_t) + b_r))

Cowen-Rivers & Minervini 2018, section 3, with ``κ = 1`` (``completeness``), or with answers drawn from softmax_t φ (a
categorical likelihood). The guide knows a fact by its symbols, and the KL divergence is paid once per fact. Two things
follow that the paper does not say. Under the prior every fact of a relation has the same marginal p(y), so the bound
cannot exceed the entropy of the base rate: at KL weight 1 the optimum is guide = prior, a collapse. And at β < 1 the
objective is a variational information bottleneck over the symbols (Alemi et al. 2017): β prices the information about
its symbol that a latent carries.

Facts come in groups that may share a draw without changing the bound's expectation, since each of its terms depends on
one fact only (or on those of one query): those of a query share h_h and h_r, and those of a candidate h_t. The plates
count every fact.
"""

import pyro

from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting


def lfm(kg: Setting, batch: Batch) -> None:
    entity_prior, relation_prior = kg.priors()
    intercepts = kg.intercepts()

    with batch.fact_heads() as h:
        head = pyro.sample("head", entity_prior(h))
    with batch.fact_relations() as r:
        relation = pyro.sample("relation", relation_prior(r))
    with batch.fact_tails() as t:
        tail = pyro.sample("tail", entity_prior(t))

    with batch.fact_plate():
        pyro.sample("y", kg.fact_likelihood(head, relation, tail, intercepts, batch), obs=batch.y)
