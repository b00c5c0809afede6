"""The layering, read off the imports: a module imports only what stands before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kgpyro

ROOT = Path(kgpyro.__file__).parent
LAYERS = [
    "errors", "display", "plotting", "files", "graph", "negatives", "calibration", "features", "names", "scoring",
    "kernels", "families", "priors", "hierarchy", "likelihood", "batches", "setting", "memory", "models", "guide",
    "guides", "elbo", "training", "ranking", "runs", "checkpoint", "conformal", "predictive", "scores", "predictions",
    "abstention", "acquisition", "inference_data", "posterior", "psis", "figures", "replicates", "checks",
    "comparison", "fitting", "explorer", "commands",
]  # fmt: skip
NEVER = {
    "graph": {"pyro", "lightning"},
    "scoring": {"pyro", "lightning"},
    "priors": {"kgpyro.scoring"},
    "models": {"kgpyro.guides", "kgpyro.guide", "kgpyro.training"},
    "guides": {"kgpyro.models", "kgpyro.training"},
    "posterior": {"kgpyro.training", "lightning"},
    "ranking": {"kgpyro.training", "lightning"},
    "training": {"kgpyro.commands"},
}


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(layer: str) -> list[Path]:
    single = ROOT / f"{layer}.py"
    return [single] if single.is_file() else sorted((ROOT / layer).glob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_layer(layer: str) -> None:
    later = {f"kgpyro.{name}" for name in LAYERS[LAYERS.index(layer) + 1 :]}
    for file in files_of(layer):
        wrong = {
            i
            for i in imports_of(file)
            for bad in later | NEVER.get(layer, set())
            if i == bad or i.startswith(bad + ".")
        }
        assert not wrong, f"{file.name} imports {wrong}"


def test_core_never_imports_models_or_guides() -> None:
    for file in ROOT.glob("*.py"):
        assert not {i for i in imports_of(file) if i.startswith(("kgpyro.models", "kgpyro.guides"))}, file.name


def test_every_module_has_a_layer() -> None:
    commands = {"__init__", "__main__", "fit", "evaluate", "predict", "check", "calibrate"}
    assert {f.stem for f in ROOT.glob("*.py")} - commands <= set(LAYERS)
