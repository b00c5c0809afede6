"""Every code block of the README and of the pages runs, from top to bottom, each page in a folder of its own."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import in_group

import kgpyro
from kgpyro import Graph, Posterior
from kgpyro.commands import COMMANDS
from kgpyro.posterior.answers import Answers
from kgpyro.posterior.predictions import Predictions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALLS = ("make ", "python3 -m venv", "pip ", ".venv/bin/")  # what has installed whoever runs this test
SHOWN = {
    "README": ["hits@10", "pathologic_function", "probability"],
    "start": ["issue_in", "epistemic", "cell_or_molecular_dysfunction"],
    "uncertainty": ["expected_over_true", "decision", "coverage", "isotonic"],
    "checks": ["statistics misfit", "elbo_per_fact"],
    "priors": ["what the prior implies"],
}


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_have_a_language_and_nothing_hides_in_indentation(page: Path) -> None:
    languages = {language for language, _ in blocks(page) if not language.startswith("{")}  # Sphinx's directives
    assert languages <= {"python", "sh", "text"}
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^(?:    |\t).+", outside, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(\s*([^)#\s]+)[^)]*\)", outside):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_everything_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    text, said, session = page.read_text(encoding="utf-8"), "", {"__name__": "__main__"}
    for language, block in blocks(page):
        if block.startswith(">>>"):
            talk(block, page.name, session)
        elif language == "python":
            before = text[: text.index(block)].rsplit("\n\n", 2)[-2]
            for module in re.findall(r"`(\w+\.py)`", before):
                (tmp_path / module).write_text(block, encoding="utf-8")
            exec(compile(block, page.name, "exec"), {})
        elif language == "sh":
            for line in block.splitlines():
                run(line.split("  #")[0].strip())
        said += capfd.readouterr().out
    for shown in SHOWN.get(page.stem, []):
        assert shown in said, shown


def test_the_api_page_is_whole() -> None:
    """Every public name, and every public method of graphs and posteriors, is used in an example."""
    said = "".join(block for _, block in blocks(ROOT / "docs" / "api.md") if block.startswith(">>>"))
    names = {f"kgpyro.{name}" for name in kgpyro.__all__ if name not in ("Guide", "InputError", "Posterior")}
    for cls in (Graph, Posterior, Predictions, Answers):
        names |= {f".{name}" for name in vars(cls) if not name.startswith("_") and name != "source"}
    assert not [name for name in sorted(names) if not re.search(rf"{re.escape(name)}\b", said)]


def test_a_package_index_shows_no_links_to_files_that_it_lacks() -> None:
    shown = re.findall(
        r'readme = \{ content-type = "text/markdown", text = """(.*?)"""', (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert "```python" in shown[0] and not re.search(r"\]\((?!https?:)", shown[0])


def talk(block: str, name: str, session: dict) -> None:
    """Run a dialogue with Python and compare what it says; the dialogues of a page go on from one another."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    test = doctest.DocTestParser().get_doctest(block, session, name, name, 0)
    found: list[str] = []
    runner.run(test, out=found.append, clear_globs=False)
    session.update(test.globs)
    assert not found, "".join(found)


def run(line: str) -> None:
    """Run a command; one that installs or takes hours is looked up instead."""
    words = shlex.split(line)
    if line.startswith(INSTALLS):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
    elif scripts := [word for word in words if word.startswith("benchmarks/") and word.endswith(".py")]:
        assert all((ROOT / script).is_file() for script in scripts), line
    elif "--devices" in words or words[0] == "torchrun":  # test_shards.py and test_processes.py start them themselves
        module = words.index("-m") + 1
        in_group(in_one_of_several, 2, words[module].removeprefix("kgpyro."), words[module + 1 :])
    else:
        words = words[1:] if words[0] == "kgpyro" else [words[2].removeprefix("kgpyro."), *words[3:]]
        assert COMMANDS[words[0]](words[1:]) == 0, line


def in_one_of_several(command: str, words: list[str]) -> None:
    assert COMMANDS[command](words) == 0
