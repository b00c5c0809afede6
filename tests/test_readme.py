"""The README's Python runs, and its model is the LIM."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kgpyro

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert (tmp_path / "runs" / "nations-laplace" / "metrics.json").is_file()
    exec(compile(BLOCKS[1], "README.md", "exec"), {})
    assert "auroc" in capsys.readouterr().out


def test_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mymodels.py").write_text(BLOCKS[3], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    posterior = kgpyro.fit("nations", model="mymodels:mine", epochs=2, dim=4, progress=False, device="cpu")
    assert posterior.guide.sites == {"entities", "relations"}


def test_the_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[2], "README.md", "exec"), {})
    assert "calibration_error" in capsys.readouterr().out


def test_there_are_no_other_blocks() -> None:
    assert len(BLOCKS) == 4
