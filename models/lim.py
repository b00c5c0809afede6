"""The Latent Information Model: latents are global, one per entity and one per relation.

    h_e ~ prior_E                 for every entity e
    h_r ~ prior_R                 for every relation r (and for its inverse)
    b_r ~ Normal(logit of the base rate, 3²)
    y_τ ~ Bernoulli(κ sigmoid(φ(h_h, h_r, h_t) + b_r))   for every fact τ = (h, r, t)

Cowen-Rivers & Minervini 2018, section 3, with ``κ = 1``. Below 1 a true fact may be missing from the graph
(``completeness``). With a categorical likelihood each observed answer of a query ``(h, r)`` is drawn from
softmax_t φ(h_h, h_r, h_t) instead. Each latent's KL divergence is paid once, whatever the number of its facts.

With a ``relation_weight`` each fact of the graph is asked a third way, which relation holds between its ends (Chen et
al. 2021): a term softmax_r (φ(h_h, h_r, h_t) + b_r) on top, with that weight.
"""

import pyro

from kgpyro.program.plates import Batch
from kgpyro.program.setting import Setting


def lim(kg: Setting, batch: Batch) -> None:
    entity_prior, relation_prior = kg.priors()
    intercepts = kg.intercepts()

    with batch.entity_plate() as e:
        entities = pyro.sample("entities", entity_prior(e))
    with batch.relation_plate() as r:
        relations = pyro.sample("relations", relation_prior(r))

    with batch.fact_plate():
        pyro.sample("y", kg.likelihood(entities, relations, intercepts, batch), obs=batch.y)

    if batch.asks_relations:
        with batch.held_plate() as held:
            pyro.sample("r", kg.relation_likelihood(entities, relations, intercepts, held), obs=held.relation)
