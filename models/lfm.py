"""The Latent Fact Model: latents are local, three for every fact.

    for every fact τ = (s, p, o):
        h_s ~ prior_E,  h_p ~ prior_R,  h_o ~ prior_E
        y_τ ~ Bernoulli(κ sigmoid(φ(h_s, h_p, h_o) + b_p))

Cowen-Rivers & Minervini 2018, section 3, with ``κ = 1`` (``--completeness``), or with answers drawn from softmax_o φ
(``--likelihood categorical``). The guide knows a fact by its symbols, and the KL divergence is paid once per fact. Two
things follow that the paper does not say. Under the prior every fact has the same marginal p(y), so the bound cannot
exceed the entropy of the base rate: at KL weight 1 the optimum is guide = prior, a collapse. And at β < 1 the objective
is a variational information bottleneck over the symbols (Alemi et al. 2017): β prices the information about its symbol
that a latent carries.

Facts come in groups that may share a draw without changing the bound's expectation, since each of its terms depends on
one fact only (or on those of one query): those of a query share h_s and h_p, and those of a candidate h_o. The plates
count every fact.
"""

import pyro

from kgpyro.program.batches import Batch
from kgpyro.program.setting import Setting


def lfm(kg: Setting, batch: Batch) -> None:
    entity_prior, relation_prior = kg.priors()

    with batch.query_plate() as (s, p):
        head = pyro.sample("head", entity_prior(s))
        relation = pyro.sample("relation", relation_prior(p))
    with batch.candidate_plate() as o:
        tail = pyro.sample("tail", entity_prior(o))

    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(head, relation, tail, batch), obs=batch.y)
