"""The Latent Information Model: latents are global, one per entity and one per relation.

    h_e ~ prior_E                 for every entity e
    h_p ~ prior_R                 for every relation p
    y_τ ~ Bernoulli(κ sigmoid(φ(h_s, h_p, h_o) + b_p))   for every fact τ = (s, p, o)

Cowen-Rivers & Minervini 2018, section 3, with ``κ = 1``. Below 1 a true fact may be missing from the graph
(``--completeness``). With ``--likelihood categorical`` each observed answer of a query ``(s, p)`` is drawn from
softmax_o φ(h_s, h_p, h_o) instead. Each latent's KL divergence is paid once, whatever the number of its facts.
"""

import pyro

from kgpyro.program.batches import Batch
from kgpyro.program.setting import Setting


def lim(kg: Setting, batch: Batch) -> None:
    entity_prior, relation_prior = kg.priors()

    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as p:
        relations = pyro.sample("relations", relation_prior(p))

    head, relation, tail = entities[batch.anchor], relations[batch.relation], entities[batch.candidate]
    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(head, relation, tail, batch), obs=batch.y)
