"""Pictures of the README, the pages and the notebooks: each comes from a command, and is what that would draw now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLATES = ("lim", "lfm")
_SPEC = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
assert _SPEC is not None and _SPEC.loader is not None
figures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(figures)


def shown() -> set[Path]:
    """All pictures that some page shows."""
    pages = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [(page.parent, page.read_text(encoding="utf-8")) for page in pages]
    for page in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(page, as_version=4)["cells"]
        texts.append((page.parent, "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")))
    links = [(folder, link) for folder, text in texts for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)]
    return {(folder / link).resolve() for folder, link in links}


def test_every_picture_has_its_command_and_its_place() -> None:
    drawn = {RESULTS / f"{name}.png" for name in figures.FIGURES}
    assert drawn == set(RESULTS.glob("*.png"))
    assert shown() == drawn | {ROOT / "docs" / f"{model}.svg" for model in PLATES}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_figure_is_stale(name: str) -> None:
    with Image.open(RESULTS / f"{name}.png") as picture:
        assert picture.info["Source"] == figures.checksum(name), f"python benchmarks/figures.py {name}"
        assert picture.width <= 1100  # larger ones are shrunk until their letters cannot be read


@pytest.mark.parametrize("name", ["speed", "scale", "soak", "acquisition"])
def test_figures_of_results_are_drawn(name: str) -> None:
    panels = figures.FIGURES[name][0]().axes
    assert panels and all(panel.has_data() for panel in panels)


@pytest.mark.parametrize("model", PLATES)
def test_plates_are_the_models(model: str) -> None:
    picture = (ROOT / "docs" / f"{model}.svg").read_text()
    assert f"<!--\n{figures.plates(model)}-->" in picture, "python benchmarks/figures.py plates"
