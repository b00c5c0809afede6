"""Every code block of the README runs, from top to bottom, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kgpyro.commands import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
INSTALLS = ("make ", "python3 -m venv", "pip ", ".venv/bin/")  # what has installed whoever runs this test


def test_blocks_have_a_language_and_nothing_hides_in_indentation() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh", "text"}
    outside = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^(?:    |\t).+", outside, flags=re.MULTILINE)


def test_everything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    said, ran = "", 0
    for language, block in BLOCKS:
        if language == "python":
            before = README[: README.index(block)].rsplit("\n\n", 2)[-2]
            for module in re.findall(r"`(\w+\.py)`", before):
                (tmp_path / module).write_text(block, encoding="utf-8")
            exec(compile(block, "README.md", "exec"), {})
        elif language == "sh":
            for line in block.splitlines():
                ran += run(line.split("  #")[0].strip())
        said += capfd.readouterr().out
    assert ran >= 9
    for shown in ("auroc", "calibration_error", "statistics misfit", "what the prior implies", "epistemic", "virus"):
        assert shown in said, shown
    assert (tmp_path / "runs" / "nations-laplace" / "metrics.json").is_file()
    assert (tmp_path / "mymodels.py").is_file() and (tmp_path / "myparts.py").is_file()


def run(line: str) -> int:
    """Run a command, and count it; one that installs or takes hours is looked up instead."""
    words = shlex.split(line)
    if line.startswith(INSTALLS):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        return 0
    if scripts := [word for word in words if word.startswith("benchmarks/") and word.endswith(".py")]:
        assert all((ROOT / script).is_file() for script in scripts), line
        return 0
    if "--devices" in words:  # processes of their own
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(words, check=True, env=environment, timeout=300)
        return 1
    assert words[:2] == ["python", "-m"] and words[2].startswith("kgpyro."), line
    assert COMMANDS[words[2].removeprefix("kgpyro.")](words[3:]) == 0, line
    return 1
