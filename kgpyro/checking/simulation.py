"""Whether intervals hold what they promise: graphs drawn from the model, fitted as any other, and held to the truth.

Latents and intercepts are drawn from their priors, a graph from the model given them, and the graph is fitted. If the
posterior is exact, the true probability of a fact is as likely to be at any rank among the posterior's draws as at any
other, and a 90 % interval holds it in 90 % of all cases (Cook, Gelman & Rubin 2006; Talts et al. 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.display import as_html, as_text, new_figure, write
from kgpyro.errors import InputError
from kgpyro.inference.fitting import fit
from kgpyro.inference.options import Options
from kgpyro.posterior.building import batches_of, build_setting, program_of
from kgpyro.posterior.fitted import Posterior
from kgpyro.posterior.replay import sites_run
from kgpyro.program.variational import PER_FACT, frame_of
from kgpyro.randomness import seeded

LEVELS = (0.5, 0.8, 0.9, 0.95)
BINS = 10  # of ranks
CELLS = 2_000_000  # facts of a graph, all of which are drawn


@dataclass(frozen=True)
class SimulationCheck:
    """What fits made of graphs whose true probabilities are known.

    Attributes:
        coverage: a row per level: ``coverage``, the share of facts whose true probability is in the central interval,
            and ``error``, its standard error over graphs.
        ranks: share of the facts by their true probability's rank among the draws, in ``BINS`` equal bins, shape
            ``(BINS,)``; an exact posterior has ``1 / BINS`` in each.
        error: mean absolute error of the predicted probability.
        graphs: how many.
        title: what was simulated.
    """

    coverage: pd.DataFrame
    ranks: np.ndarray
    error: float
    graphs: int
    title: str

    def __repr__(self) -> str:
        return f"{self.title}\n\n{as_text(self.coverage)}\n\nmean absolute error of a probability: {self.error:.3f}"

    def _repr_html_(self) -> str:
        return as_html(self.title, {"mean absolute error of a probability": f"{self.error:.3f}"}, self.coverage)

    def figure(self) -> Any:
        """Coverage by level, and the histogram of ranks. Raises InputError without matplotlib."""
        figure = new_figure(7.0, 3.2)
        left, right = figure.subplots(1, 2)
        levels = self.coverage.index.to_numpy(dtype=float)
        left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        left.errorbar(levels, self.coverage["coverage"], 2 * self.coverage["error"], fmt="o-", markersize=4, capsize=2)
        left.set(xlabel="interval", ylabel="share of true probabilities inside", xlim=(0.4, 1), ylim=(0, 1))
        right.bar((np.arange(BINS) + 0.5) / BINS, self.ranks, width=0.9 / BINS)
        right.axhline(1 / BINS, color="grey", linestyle=":", linewidth=1)
        right.set(xlabel="rank of the truth among draws", ylabel="share of facts", xlim=(0, 1))
        return figure

    def save(self, folder: str | Path) -> list[str]:
        """Write ``simulation.csv`` and ``simulation.png`` to a folder; returns the names."""
        return write(folder, {"simulation.csv": self.coverage.reset_index()}, {"simulation.png": self.figure})


def simulation_check(
    size: Graph | str | tuple[int, int] = (25, 3),
    options: Options | None = None,
    *,
    graphs: int = 20,
    base_rate: float | None = None,
    draws: int = 400,
    facts: int = 2000,
    seed: int = 0,
    progress: bool = True,
    **changes: Any,
) -> SimulationCheck:
    """Fit graphs that were drawn from the model, and compare the true probabilities of facts with the posterior's.

    Args:
        size: numbers of entities and relations, or a graph (or the name of one) whose numbers and base rate to take.
        options: of the fits (:class:`kgpyro.Options`), each of which can be given by its name as well. Default model:
            lim, whose latents facts share; in the lfm a fact has no probability of its own but the predictive one.
        graphs: how many to simulate.
        base_rate: probability of a fact whose score is 0, around which intercepts are drawn. Default: .1, or the
            graph's share of facts.
        draws: posterior draws of each fact's probability.
        facts: how many facts of each graph to look at, at random.
        seed: of the simulated graphs; the fits have that of the options.
        progress: show a progress bar.

    Raises:
        InputError: a model with latents per fact, a categorical likelihood, a graph of more than ``CELLS`` facts, or
            whatever a fit refuses.
    """
    given = {"model": "lim", **({} if options is None else vars(options)), **changes}
    chosen = Options.of(given)
    if chosen.likelihood == "categorical":
        raise InputError("simulation is of facts that are true or not; leave `likelihood` at bernoulli.")
    if graphs < 1 or draws < 2 or facts < 1:
        raise InputError("`graphs` and `facts` must be at least 1, and `draws` at least 2.")
    size, share = load_graph(size) if isinstance(size, str) else size, 0.1
    if isinstance(size, Graph):
        share = len(size.train) / (size.num_entities**2 * size.num_relations)
        size = size.num_entities, size.num_relations
    base_rate = share if base_rate is None else base_rate
    if not 0 < base_rate < 1:
        raise InputError(f"`base_rate` is a probability between 0 and 1; got {base_rate}.")
    if min(size) < 1 or size[0] < 2:
        raise InputError(f"a graph has at least two entities and one relation; got {size[0]} and {size[1]}.")
    if size[0] ** 2 * size[1] > CELLS:
        raise InputError(f"{size[0] ** 2 * size[1]:,} facts are too many to draw; {CELLS:,} are the most.")
    truth = _Truth(size, chosen, base_rate)
    inside, ranks, errors = [], np.zeros(BINS), []
    ends = torch.tensor([[(1 - level) / 2, (1 + level) / 2] for level in LEVELS], dtype=torch.double)
    for number in tqdm(range(graphs), desc="simulation", unit="graph", disable=not progress, leave=False):
        with seeded(seed * 1_000_003 + number):
            graph, cells, p = truth.draw()
            looked = torch.randperm(len(cells))[:facts]
            p = p[looked]
        drawn = fit(graph, chosen, progress=False).fact_logits(cells[looked], draws).double().sigmoid()
        low, high = torch.quantile(drawn, ends.flatten(), dim=0).unflatten(0, ends.shape).unbind(1)
        inside.append(((low <= p) & (p <= high)).double().mean(1).tolist())
        rank = (drawn < p).double().mean(0)
        ranks += np.histogram(rank.numpy(), bins=BINS, range=(0, 1))[0] / len(looked) / graphs
        errors.append(float((drawn.mean(0) - p).abs().mean()))
    shares = np.array(inside)
    spread = shares.std(0, ddof=1) / math.sqrt(graphs) if graphs > 1 else np.full(len(LEVELS), np.nan)
    table = pd.DataFrame({"coverage": shares.mean(0), "error": spread}, index=pd.Index(LEVELS, name="interval"))
    how = chosen.guide if chosen.inference == "svi" else chosen.inference
    title = f"{graphs} graphs of {size[0]} entities and {size[1]} relations, {truth.kg.score.name}, {how}"
    return SimulationCheck(table, ranks, float(np.mean(errors)), graphs, title)


class _Truth:
    """A model whose latents are drawn from their priors, and with them a graph's facts."""

    def __init__(self, size: tuple[int, int], options: Options, base_rate: float):
        entities, relations = (tuple(f"{w}{i}" for i in range(n)) for w, n in zip("er", size, strict=True))
        every = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]), torch.arange(size[0]))
        self.cells, none = every.reshape(-1, 3), torch.zeros(0, 3, dtype=torch.long)
        self.some = Graph("simulated", entities, relations, self.cells[: size[1] * size[0]], none, none)
        self.config = options.resolved(self.some, saving=False)
        self.kg = build_setting(self.some, self.config)
        with torch.no_grad():
            self.kg.base_rate.fill_(math.log(base_rate / (1 - base_rate)))
        self.program = program_of(self.config["model"], self.kg, batches_of(self.some, self.config, torch.float32))

    def draw(self) -> tuple[Graph, Tensor, Tensor]:
        """A graph, all of its facts ``(n, 3)``, and their true probabilities ``(n,)``, from the present random state.

        A graph without any fact is drawn again.
        """
        while True:
            sites = sites_run(self.program, self.program.model)
            if any(frame_of(site) in PER_FACT for site in sites.values()):
                raise InputError("simulation is of facts that share latents; choose `model` lim, or one such as it.")
            latents = {name: site["value"].unsqueeze(0) for name, site in sites.items() if name != self.program.label}
            posterior = Posterior(self.some, self.program, None, self.config, samples=latents)
            p = posterior.fact_logits(self.cells, 1)[0].double().sigmoid()
            true = torch.bernoulli(p * posterior.share_observed(self.cells[:, 0], self.cells[:, 2])).bool()
            if true.any():
                return replace(self.some, train=self.cells[true]), self.cells, p
