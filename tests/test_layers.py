"""The layering, read off the imports: a module imports only what stands before it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import kgpyro

ROOT = Path(kgpyro.__file__).parent
ROOMS = [
    "errors", "version", "names", "randomness", "files", "display", "data", "kernels", "evaluation", "program",
    "models", "guides", "posterior", "inference", "checking", "reporting", "arguments",
    "commands",
]  # fmt: skip
DOORS = {"__init__", "__main__", "fit", "evaluate", "predict", "check", "calibrate"}
NEVER = {
    "data": {"pyro", "lightning"},
    "kernels": {"pyro", "lightning"},
    "evaluation": {"pyro", "lightning"},
    "program": {"lightning"},
    "models": {"kgpyro.guides", "lightning"},
    "guides": {"kgpyro.models", "lightning"},
    "posterior": {"kgpyro.models", "kgpyro.guides", "lightning"},
    "inference": {"kgpyro.models", "kgpyro.guides"},
}


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    single = ROOT / f"{room}.py"
    return [single] if single.is_file() else sorted((ROOT / room).glob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_above_it(room: str) -> None:
    refused = {f"kgpyro.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]} | NEVER.get(room, set())
    for file in files_of(room):
        found = imports_of(file)
        wrong = {i for i in found for bad in refused if i == bad or i.startswith(bad + ".")}
        assert not wrong, f"{file.name} imports {wrong}"
        assert "kgpyro" not in found, f"{file.name} imports the package that imports it"


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_within_a_room(room: str) -> None:
    files = {f"kgpyro.{room}.{f.stem}": f for f in files_of(room)}
    above = {name: imports_of(file) & files.keys() for name, file in files.items()}
    while free := [name for name, needed in above.items() if not needed & above.keys()]:
        for name in free:
            del above[name]
    assert not above, f"a circle among {sorted(above)}"


def test_every_file_has_a_room_and_at_most_400_lines() -> None:
    assert {f.stem for f in ROOT.glob("*.py")} - DOORS <= set(ROOMS)
    files = [file for room in ROOMS for file in files_of(room)]
    long = {f.name: n for f in files if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long, long


@pytest.mark.parametrize("script", sorted((ROOT.parent / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_benchmarks_import_what_there_is(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kgpyro."):
            there = importlib.import_module(node.module or "")
            assert not [name.name for name in node.names if not hasattr(there, name.name)], node.module
