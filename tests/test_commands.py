"""The commands as a person runs them: what they print, the files they leave, and the sentence for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import kgpyro.commands as commands
from kgpyro.commands import evaluate_command, fit_command, predict_command

QUICK = ["--epochs", "2", "--dim", "4", "--no-progress", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "nations"
    assert fit_command([*QUICK, "--prior", "laplace(scale=0.5)", "--out", str(folder)]) == 0
    return folder


def test_a_run_folder(run: Path) -> None:
    assert {f.name for f in run.iterdir()} == {
        "config.yaml", "metrics.json", "log.csv", "posterior.safetensors", "graph.json", "run.json",
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("test", "valid"):
        assert {"mrr", "mr", "hits@1", "hits@3", "hits@10"} <= set(metrics[split]["realistic"])
        for part in ("head", "tail", "raw"):
            assert set(metrics[split][part]) == {"realistic", "optimistic", "pessimistic"}
    assert isinstance(metrics["elbo_per_fact"], float)
    assert len(pd.read_csv(run / "log.csv")) == 2
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["prior"] == "laplace(scale=0.5)"
    assert config["kl_weight"] > 0


def test_the_saved_config_repeats_the_run(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert fit_command(["--config", str(run / "config.yaml"), "--no-progress", "--out", str(again)]) == 0
    assert (again / "metrics.json").read_text() == (run / "metrics.json").read_text()


def test_what_a_fit_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_command([*QUICK, "--per-relation"]) == 0
    printed = capsys.readouterr().out
    for words in ("objective", "untempered", "nats per training fact", "hits@10", "realistic", "commonbloc0"):
        assert words in printed


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command([str(run), "--split", "valid"]) == 0
    printed = capsys.readouterr().out
    mrr = json.loads((run / "metrics.json").read_text())["valid"]["realistic"]["mrr"]
    assert f"{mrr:.3f}" in printed
    assert evaluate_command([str(run), "--by", "probability", "--draws", "5", "--per-relation"]) == 0
    assert "commonbloc0" in capsys.readouterr().out


def test_predict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict_command([str(run), "--head", "brazil", "--relation", "commonbloc0", "--top", "14"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("probability", "std", "low", "high", "90%", "train"))
    assert len(printed.strip().splitlines()) == 3 + 14
    assert predict_command([str(run), "--tail", "usa", "--relation", "embassy"]) == 0


def folder(tmp_path: Path, **files: str) -> str:
    content = {"train": "a\tr\tb\nb\tr\tc\n", "valid": "a\tr\tc\n", "test": "c\tr\ta\n"} | files
    for split, text in content.items():
        if text != "missing":
            (tmp_path / f"{split}.txt").write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "nowhere"], ["unknown data set 'nowhere'"]),
        (["--model", "lda"], ["unknown model 'lda'", "lim, lfm"]),
        (["--prior", "nromal"], ["unknown prior 'nromal'", "student_t"]),
        (["--prior", "laplace(scale="], ["does not parse"]),
        (["--prior", "poisson"], ["Poisson", "not reparameterisable"]),
        (["--prior", "wishart"], ["Wishart", "matrices"]),
        (["--score", "complax"], ["unknown score 'complax'", "ComplEx"]),
        (["--dim", "7"], ["--dim must be even; got 7"]),
        (["--dim", "0"], ["--dim must be a positive number"]),
    ],
)
def test_mistakes(options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_command([*QUICK, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kgpyro: error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train": "missing"}, "no train split"),
        ({"train": "a\tr\tb\na\tr\n"}, "train.txt, line 2: 2 tab-separated columns"),
        ({"test": "a\tr\tb\tc\n"}, "test.txt, line 1: 4 tab-separated columns"),
        ({"test": ""}, "test.txt is empty"),
        ({"test": "a\tq\tb\n"}, "test.txt, line 1: relation 'q' occurs here but never in train"),
    ],
)
def test_bad_graphs(files: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_command([*QUICK, "--dataset", folder(tmp_path, **files)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_out_with_another_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f.name: f.read_bytes() for f in run.iterdir()}
    assert fit_command([*QUICK, "--out", str(run)]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before


@pytest.mark.parametrize("options", [["--nonsense", "1"], ["--epochs", "many"], ["--kl-schedule", "sawtooth"]])
def test_options_that_do_not_exist(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit_command(options)
    assert stopped.value.code == 2
    assert options[0].lstrip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_unknown_keys_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("dim: 4\nlearning_rate: 0.1\n")
    with pytest.raises(SystemExit) as stopped:
        fit_command(["--config", str(tmp_path / "run.yaml")])
    assert stopped.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("command", [evaluate_command, predict_command])
def test_no_run(command: commands.Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_modules_and_the_script() -> None:
    for module in ("fit", "evaluate", "predict"):
        shown = subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", f"kgpyro.{module}", "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"python -m kgpyro.{module}" in shown.stdout
        assert shown.stderr == ""
    wrong = subprocess.run([sys.executable, "-m", "kgpyro", "fti"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "{fit,evaluate,predict,check,calibrate,priors}" in wrong.stderr


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (fit_command, evaluate_command, predict_command):
        with pytest.raises(SystemExit):
            command(["--help"])
    named = (
        "model prior entity-prior relation-prior score guide dataset dim epochs batch-size negatives negative-weight"
    )
    named += " kl-weight kl-schedule inverse no-inverse lr optimizer seed device precision early-stopping out config"
    printed = capsys.readouterr().out
    assert all(f"--{name}" in printed for name in named.split())


def test_importing_the_command_keeps_the_function() -> None:
    code = (
        "import kgpyro, kgpyro.fit; assert callable(kgpyro.fit); from kgpyro import fit; print(fit.__doc__ is not None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
