"""``kgpyro.explore``: play with priors in a notebook; see what they claim, fit them, and compare the fits.

Everything here is a call that you can make yourself: the figure is :func:`kgpyro.prior_predictive`, the Fit button
calls :func:`kgpyro.fit` in a thread, a row of the table is :func:`kgpyro.compare`. The Code tab shows the calls.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import weakref
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from pyro.distributions import constraints

from kgpyro.checking.comparison import compare
from kgpyro.checking.prior_predictive import PriorPredictive, prior_predictive
from kgpyro.data.graph import Graph
from kgpyro.data.reading import load_graph
from kgpyro.display import as_html, png_of
from kgpyro.errors import InputError
from kgpyro.inference.fitting import fit
from kgpyro.names import MODELS, STANDARD
from kgpyro.posterior.fitted import Posterior
from kgpyro.program.catalogue import parameters_of
from kgpyro.program.interactions import SCORES
from kgpyro.program.priors import GRANULARITIES

try:
    import ipywidgets as widgets
except ImportError as error:
    raise InputError("kgpyro.explore needs ipywidgets; pip install 'kgpyro[jupyter]'.") from error

LATENTS = 2_000_000  # numbers drawn for one figure, at most
FIXED = "fixed"
CLAIM = ("prior", "relation_prior", "score", "dim")  # the options that a prior's claims hang on
NARROW = widgets.Layout(width="22em")


class PriorControls(widgets.VBox):
    """A family and its parameters, each a number or learned, as a prior to be written on the command line."""

    def __init__(self, changed: Callable[[], None], title: str):
        self._changed = changed
        self.family = widgets.Dropdown(options=list(STANDARD), value="normal", description=title, layout=NARROW)
        self.numbers: dict[str, Any] = {}
        self.how: dict[str, Any] = {}
        super().__init__()
        self.family.observe(self._new_family, "value")
        self._new_family()

    @property
    def text(self) -> str:
        """The prior, such as ``laplace(loc=0, scale=learn(0.3))``; standard parameters are left out."""
        written = []
        for key, parameter in parameters_of(self.family.value).items():
            value, how = self.numbers[key].value, self.how[key].value
            if how != FIXED:
                written.append(f"{key}={how}({value:.3g})")
            elif f"{value:.3g}" != f"{parameter.default:.3g}":
                written.append(f"{key}={value:.3g}")
        return f"{self.family.value}({', '.join(written)})" if written else self.family.value

    def _new_family(self, _: Any = None) -> None:
        self.numbers, self.how, rows = {}, {}, []
        for key, parameter in parameters_of(self.family.value).items():
            self.numbers[key] = number = _slider(key, parameter.default, parameter.constraint)
            choices = [FIXED, *GRANULARITIES] if parameter.constraint is not None else [FIXED]
            self.how[key] = how = widgets.Dropdown(options=choices, layout=widgets.Layout(width="9em"))
            rows.append(widgets.HBox([number, how] if parameter.constraint is not None else [number]))
            for control in (number, how):
                control.observe(lambda _: self._changed(), "value")
        self.children = [self.family, *rows]
        self._changed()


def _slider(key: str, value: float, constraint: constraints.Constraint | None) -> Any:
    shared = {"value": value, "description": key, "continuous_update": False, "layout": NARROW, "readout_format": ".3g"}
    if constraint is constraints.positive:
        return widgets.FloatLogSlider(min=-3, max=2, step=0.05, **shared)
    if constraint is constraints.unit_interval:
        return widgets.FloatSlider(min=0.01, max=0.99, step=0.01, **shared)
    return widgets.FloatSlider(min=-5, max=5, step=0.1, **shared)


class Watch(pl.Callback):
    """How far a fit in another thread is, and its end after the present step."""

    def __init__(self) -> None:
        self.share, self.stopped = 0.0, False

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.share = module.step / module.schedule.steps
        trainer.should_stop |= self.stopped


class PriorExplorer(widgets.VBox):
    """Controls of a prior beside what it claims about a graph, fits of it, and the code behind both.

    Attributes:
        graph: the graph.
        fits: the fits made so far, by name.
        table: a row per fit, best bound first, as :func:`kgpyro.compare` has them of the validation split.
        predictive: the :class:`.PriorPredictive` shown; None where the controls say what cannot be.
    """

    def __init__(self, graph: Graph | str | Path, out: str | Path | None = None):
        self.graph = load_graph(graph)
        self._out = Path(tempfile.mkdtemp(prefix="kgpyro-") if out is None else out)
        if out is None:
            weakref.finalize(self, shutil.rmtree, self._out, ignore_errors=True)
        self.fits: dict[str, Posterior] = {}
        self.table = pd.DataFrame()
        self.predictive: PriorPredictive | None = None
        self._figure: Any = None
        self._running: Watch | None = None
        self._task: asyncio.Task | None = None
        self._ready = False
        label = {"style": {"description_width": "5.5em"}, "layout": NARROW}
        self.prior = PriorControls(self.refresh, "prior")
        self.separate = widgets.Checkbox(description="another prior for relations", indent=False)
        self.relation_prior = PriorControls(self.refresh, "relations")
        scores = list(dict.fromkeys(score.name for score in SCORES.values()))
        self.score = widgets.Dropdown(options=scores, value="ComplEx", description="score", **label)
        self.dim = widgets.IntSlider(
            value=100, min=2, max=400, step=2, description="dim", continuous_update=False, **label
        )
        self.model = widgets.Dropdown(options=list(MODELS), value="lim", description="model", **label)
        self.epochs = widgets.BoundedIntText(value=50, min=1, max=100_000, description="epochs", **label)
        self.seed = widgets.BoundedIntText(value=0, min=0, max=2**31, description="seed", **label)
        self.fit_button = widgets.Button(description="Fit", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", disabled=True, tooltip="end after the present step")
        self.progress = widgets.FloatProgress(max=100, layout=widgets.Layout(width="14em", visibility="hidden"))
        self.message = widgets.HTML()
        self.image = widgets.Image(
            format="png",
            layout=widgets.Layout(
                flex="1 1 0%", min_width="0", max_width="800px", height="auto", align_self="flex-start"
            ),
        )
        self.claims, self.comparison, self.shown_code = widgets.HTML(), widgets.HTML("No fits yet."), widgets.HTML()
        for control in (self.separate, self.score, self.dim):
            control.observe(lambda _: self.refresh(), "value")
        for control in (self.model, self.epochs, self.seed):  # of the fit alone: the claims stay
            control.observe(lambda _: self._show_code(), "value")
        self.fit_button.on_click(self._start)
        self.stop_button.on_click(lambda _: self.stop())
        controls = [self.prior, self.separate, self.relation_prior, self.score, self.dim]
        fitting = [self.model, self.epochs, self.seed, widgets.HBox([self.fit_button, self.stop_button]), self.progress]
        tabs = widgets.Tab([self.comparison, self.claims, self.shown_code], titles=["Fits", "What it claims", "Code"])
        left = widgets.VBox([*controls, *fitting, self.message], layout=widgets.Layout(min_width="33em"))
        super().__init__([widgets.HBox([left, self.image]), tabs])
        self.add_class("kgpyro-explorer")
        self._ready = True
        self.refresh()

    def __repr__(self) -> str:
        return f"PriorExplorer({self.graph!r}, {self.prior.text}; {len(self.fits)} fits)"

    # ---- the state, and what it means ----------------------------------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        """What the controls say, as keywords of :func:`kgpyro.fit`."""
        apart = {"relation_prior": self.relation_prior.text} if self.separate.value else {}
        chosen = {name: getattr(self, name).value for name in ("score", "dim", "model", "epochs", "seed")}
        return {"prior": self.prior.text, **apart, **chosen}

    @property
    def code(self) -> str:
        """Python for the present state: the claims, the fit, and the comparison."""
        graph = f"kgpyro.load_graph({self.graph.source!r})" if self.graph.source else "graph  # your Graph"
        written = {key: f"{key}={value!r}" for key, value in self.options.items()}
        claim = ", ".join(text for key, text in written.items() if key in CLAIM)
        return (
            f"import kgpyro\n\ngraph = {graph}\n"
            f"kgpyro.prior_predictive(graph, {claim}).figure()\n"
            f"posterior = kgpyro.fit(graph, {', '.join(written.values())})\n"
            f"kgpyro.compare({{{self._name()!r}: posterior}}, split='valid')\n"
        )

    def refresh(self) -> None:
        """Show what the controls say."""
        if not self._ready:
            return
        self.relation_prior.layout.display = "" if self.separate.value else "none"
        self._show_code()
        options = {key: value for key, value in self.options.items() if key in CLAIM}
        draws = min(5, max(2, LATENTS // (self.graph.num_entities * self.dim.value)))
        try:
            self.predictive = prior_predictive(self.graph, draws=draws, facts=200, queries=50, **options)
            new, self._figure = self._figure is None, self.predictive.figure(self._figure)
        except InputError as error:
            self.predictive = None
            self._say(str(error))
            return
        if new:
            self._figure.set_layout_engine(None)  # it is drawn twice otherwise
            self._figure.subplots_adjust(left=0.09, right=0.98, bottom=0.09, top=0.88, hspace=0.5, wspace=0.25)
        self.image.value = png_of(self._figure, dpi=80)
        self.claims.value = self.predictive._repr_html_()
        self._say("\n".join(self.predictive.warnings))

    def _show_code(self) -> None:
        self.shown_code.value = f"<pre>{escape(self.code)}</pre>"

    def _say(self, text: str) -> None:
        self.message.value = f"<div style='width:32em;line-height:1.3'>{escape(text)}</div>"

    # ---- fits ----------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        o = self.options
        apart = f" and {o['relation_prior']}" if "relation_prior" in o else ""
        return (
            f"{o['prior']}{apart}, {o['score']}, dim {o['dim']}, {o['model']}, {o['epochs']} epochs, seed {o['seed']}"
        )

    def _start(self, _: Any) -> None:
        self._task = asyncio.get_running_loop().create_task(self.fit())

    def stop(self) -> None:
        """End the fit after its present step; it is evaluated and joins the table as it is."""
        if self._running is not None:
            self._running.stopped = True

    async def fit(self) -> Posterior | None:
        """What the Fit button does: fit the present state in a thread, and add it to the table.

        In a notebook ``await explorer.fit()`` waits for it, and the controls go on working meanwhile. Returns the
        posterior; None, and a message among the controls, where the fit was refused or another one is running.
        """
        if self._running is not None:
            self._say("A fit is running; wait for it, or stop it.")
            return None
        name, self._running = self._name(), Watch()
        self._out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="fit-", dir=self._out)
        how: dict[str, Any] = {"out": folder, "progress": False, "callbacks": [self._running]}
        self.fit_button.disabled, self.stop_button.disabled = True, False
        self.progress.layout.visibility = "visible"
        try:
            running = asyncio.create_task(asyncio.to_thread(fit, self.graph, **how, **self.options))
            while not running.done():
                self.progress.value = 100 * self._running.share
                self.progress.description = "fit" if 0 < self._running.share < 1 else "…"
                await asyncio.wait([running], timeout=0.2)
            posterior = running.result()
            row = compare({name: posterior}, split="valid")
        except InputError as error:
            self._say(str(error))
            return None
        finally:
            self._running = None
            self.fit_button.disabled, self.stop_button.disabled = False, True
            self.progress.layout.visibility = "hidden"
        self.fits[name] = posterior
        rows = [self.table.drop(index=name), row] if name in self.table.index else [self.table, row]
        self.table = pd.concat([part for part in rows if not part.empty]).sort_values("elbo_per_fact", ascending=False)
        title = "Fits, best bound first: nats per training fact, and how well validation triples are predicted"
        self.comparison.value = as_html(title, {}, self.table)
        self._say("\n".join(posterior.metrics.get("warnings", [])))
        return posterior


def explore(graph: Graph | str | Path, out: str | Path | None = None) -> PriorExplorer:
    """Controls for priors in a notebook cell: live figures of what a prior claims, fits, and the code for both.

    Args:
        graph: a Graph, the name of a data set, or a folder of triples files.
        out: folder that keeps the fits' runs; by default a temporary one.

    Raises:
        InputError: no such graph, or ipywidgets is not installed.
    """
    return PriorExplorer(graph, out)
