"""The commands as a person runs them: what they print, the files they leave, and the sentence for each mistake."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import kgpyro
from kgpyro import commands
from kgpyro.arguments import Argument, Form, arguments_of
from kgpyro.commands import COMMANDS, OF_FIT, main
from kgpyro.commands import evaluate as evaluate_command
from kgpyro.commands import fit as fit_command
from kgpyro.commands import predict as predict_command
from kgpyro.names import PUBLIC

QUICK = ["--epochs", "2", "--dim", "4", "--no-progress", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "nations"
    assert fit_command([*QUICK, "--prior", "laplace(scale=0.5)", "--out", str(folder)]) == 0
    return folder


def test_a_run_folder(run: Path) -> None:
    assert {f.name for f in run.iterdir()} == {
        "config.yaml", "metrics.json", "log.csv", "posterior.safetensors", "graph.safetensors", "run.json",
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
    title, _, *table = printed.strip().splitlines()
    assert title == "(brazil, commonbloc0, ?)" and len(table) >= 1 + 14 + 2
    assert table[15] == "" and table[16].startswith("low to high: ")
    assert max(map(len, printed.splitlines())) <= 100
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
        (["--prior", "nromal"], ["unknown prior 'nromal'", "did you mean 'normal'?"]),
        (["--prior", "laplace(scale="], ["does not parse"]),
        (["--prior", "poisson"], ["Poisson", "not reparameterisable"]),
        (["--prior", "wishart"], ["Wishart", "no standard member"]),
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


OPTION_MISTAKES = [
    ("fit --modle lfm", "there is no option --modle; did you mean --model"),
    ("fit --nonsense 1", "there is no option --nonsense; see"),
    ("fit -x", "there is no option -x; see"),
    ("fit nations", "there is no place for 'nations'"),
    ("fit --dim", "--dim needs a value"),
    ("fit --inverse=yes", "takes no value"),
    ("fit --epochs many", "--epochs must be a whole number; got 'many'"),
    ("fit --epochs 0", "--epochs must be a positive number; got 0"),
    ("fit --validate-every 0", "--validate-every must be a positive number"),
    ("fit --seed -1", "--seed must be at least 0; got -1"),
    ("fit --kl-schedule sawtooth", "unknown --kl-schedule 'sawtooth'; choose from warmup, constant, compression"),
    ("fit --kl-schedule warmpu", "did you mean 'warmup'?"),
    ("fit --model lfn", "unknown model 'lfn'; did you mean 'lfm'"),
    ("fit --guide flwo", "unknown guide 'flwo'; did you mean 'flow'"),
    ("fit --prior nromal", "unknown prior 'nromal'; did you mean 'normal'"),
    ("fit --relation-prior StudenT(df=3)", "unknown prior 'StudenT(df=3)'; did you mean 'student_t'"),
    ("check --prior lapalce", "unknown prior 'lapalce'; did you mean 'laplace'?"),
    ("search --score complx", "unknown score 'complx'; did you mean 'ComplEx'"),
    ("fit --score product", "unknown score 'product'; choose from DistMult, ComplEx"),
    ("FIT --epochs 0", "--epochs must be a positive number; got 0"),
    ("fit --config nowhere.yaml", "--config nowhere.yaml: no such file"),
    ("fit --out=", "--out is empty; name a path"),
    ("fit --device tpu", "--device must be auto"),
    ("predict", "name a RUN"),
    ("predict RUN --haed x", "there is no option --haed; did you mean --head"),
    ("predict RUN --head -x", "one that begins with - is written --head=-x"),
    ("predict RUN --top 0", "--top must be a positive number; got 0"),
    ("predict RUN --top 1.5", "--top must be a whole number; got 1.5"),
    ("predict RUN --draws 0", "--draws must be a positive number"),
    ("predict RUN --interval 90", "--interval must be between 0 and 1, such as 0.9; got 90"),
    ("predict RUN --interval=-.1", "--interval must be between 0 and 1"),
    ("evaluate RUN --split tset", "unknown --split 'tset'; did you mean 'test'?"),
    ("calibrate RUN --method isotonc", "unknown --method 'isotonc'; did you mean 'isotonic'?"),
    ("compare RUN RUN --by beauty", "unknown --by 'beauty'; choose from elbo_per_fact"),
    ("search --trials 0", "--trials must be a positive number"),
    ("fti", "there is no command fti; did you mean 'fit'?"),
    ("--vresion", "there is no option --vresion; did you mean --version?"),
]


@pytest.mark.parametrize(("line", "words"), OPTION_MISTAKES)
def test_mistakes_in_options(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kgpyro: error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err


@pytest.mark.parametrize(
    ("lines", "heavy"),
    [
        ([[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ()),
        ([line.split() for line, _ in OPTION_MISTAKES], ()),
        ([["predict", "no run", "--head", "usa"], ["evaluate", "no run"], ["check", "no run"]], ()),
        ([["fit", "--dataset", "nationz"], ["fit", "--dataset", "none.csv"]], ("torch", "pandas", "scipy", "pyro")),
    ],
    ids=["help", "options", "runs", "data"],
)
def test_help_and_mistakes_import_nothing_heavy(lines: list[list[str]], heavy: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
import contextlib, sys
from kgpyro.commands import main
for line in {lines}:
    with contextlib.suppress(SystemExit):
        main(line)
found = {{"torch", "pyro", "lightning", "pandas", "scipy", "optuna"}} & set(sys.modules) - set({heavy})
assert not found, found
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-500:]


@pytest.mark.parametrize("columns", [80, 100])
def test_help_pages_fit_their_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        page = capsys.readouterr().out
        assert COMMANDS[name].__doc__
        assert "Union" not in page and "Literal" not in page and "`" not in page
        assert max(map(len, page.splitlines())) <= columns, name
    assert main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name} " in page for name in COMMANDS)
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("public", ["fit", "Options", "Posterior.evaluate", "Posterior.predict", "compare", "search"])
def test_the_source_says_what_the_signature_says(public: str) -> None:
    """Names, defaults and docstrings, also of inherited methods."""
    function: Any = functools.reduce(getattr, public.split("."), kgpyro)
    signature = inspect.signature(function).parameters.values()
    options = {field.name for field in dataclasses.fields(kgpyro.Options)} if public == "fit" else set()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    real = {p.name: p for p in signature if p.name not in {"self", *options} and p.kind not in kinds}
    read = arguments_of(public)
    assert [*read] == [*real]
    for name, argument in read.items():
        assert argument.text, name
        default = real[name].default
        assert (argument.default is None) == (default is inspect.Parameter.empty), name
        if argument.default is not None:
            assert ast.literal_eval(argument.default) == default


def test_defaults_that_the_help_tells_are_those_of_the_functions() -> None:
    """Of options that mean one thing in one question and another in the next."""
    for argument, publics in (
        (commands.DRAWN, ("Posterior.predict", "Posterior.answers")),
        (commands.DRAWN, ("Posterior.facts", "Posterior.discover")),
        (commands.DRAWS, ("posterior_predictive", "prior_predictive")),
        (commands.SAMPLED, ("posterior_predictive", "prior_predictive")),
    ):
        told = re.findall(r"\d+", argument.text)
        found = [arguments_of(public).get(argument.name) for public in publics]
        defaults = [str(ast.literal_eval(one.default)) for one in found if one is not None and one.default]
        assert defaults and defaults == told[: len(defaults)]


def test_every_option_of_a_fit_has_one_group() -> None:
    grouped = " ".join(OF_FIT.values()).split()
    assert len(grouped) == len(set(grouped))
    assert {field.name for field in dataclasses.fields(kgpyro.Options)} <= set(grouped)


@given(label=st.text(), query=st.booleans())
@example(label="--", query=False)
def test_a_label_is_what_is_written(label: str, query: bool) -> None:
    name = "head" if query else "tail"
    form = Form("kgpyro predict", "", "")
    form.group("a group", Argument(name, "a label"))
    assert form.read([f"--{name}={label}"]) == {name: label}


ODD = ["null", "~", "#x", "&a", "1e3", "00001740", "true", "-x", "--head", "%s", "Ω", "*", "a b", "`dim`", "x" * 120]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a graph with odd names."""
    folder, run = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("odd") / "run"
    lines = [f"{a}\tnull\t{b}\n" for a, b in zip(ODD, ODD[1:] + ODD[:1], strict=True)]
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    assert main(["fit", *QUICK, "--dataset", str(folder), "--out", str(run)]) == 0
    return run


def test_odd_labels(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ODD:
        assert main(["predict", str(odd), f"--head={label}", "--relation=null", "--draws", "5", "--top", "all"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"({label}, null, ?)")
        table = printed.splitlines()[2:]
        assert table.index("") == 1 + len(ODD)
        assert max(map(len, table)) <= 100


def test_a_terminal_without_utf8(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["predict", str(odd), "--head=%s", "--relation=null", "--draws", "5", "--top", "all"]) == 0
    terminal.flush()
    assert b" ? " in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_control_characters_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "\x1b[31mred"]) == 2
    assert "\x1b" not in (printed := capsys.readouterr().err)
    assert "\ufffd[31mred" in printed


def test_folders_are_what_a_shell_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for out, where in (("#run", tmp_path / "#run"), ("~/run", tmp_path / "home" / "run"), ("null", tmp_path / "null")):
        assert main(["fit", *QUICK, f"--out={out}"]) == 0
        assert (where / "posterior.safetensors").is_file()


def test_unknown_keys_of_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, words in (
        ("dim: 4\nlearning_rate: 0.1\n", "there is no option learning_rate"),
        ("epochz: 4\n", "did you mean 'epochs'"),
        ("epochs: [4]\n", "--epochs must be a whole number; got [4]"),
        ("- 4\n", "holds no options"),
        ("a: b: c", "cannot be read"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        assert main(["fit", "--config", str(tmp_path / "run.yaml")]) == 2
        assert words in (error := capsys.readouterr().err)
        assert error.count("\n") == 1


def test_flags_overrule_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("dim: 6\nepochs: 1\nprecision: 64\nfeatures: null\nlr: 1e-2\nprogress: false\n")
    options = ["--config", str(tmp_path / "run.yaml"), "--dim", "8", "--out", str(tmp_path / "run")]
    assert main(["fit", *options]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert [config[key] for key in ("dim", "epochs", "precision", "lr")] == [8, 1, "64", 0.01]


@pytest.mark.parametrize("command", [evaluate_command, predict_command])
def test_no_run(command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_report_says_what_to_type_next(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *QUICK, "--out", str(tmp_path / "a run")]) == 0
    printed = capsys.readouterr().out
    assert "lim, ComplEx, dim 4, prior normal, guide lookup" in printed
    assert "nations: 14 entities, 55 relations, 1,592 training triples" in printed
    shown = dict(re.findall(r"^(saved|next) +(.*)$", printed, flags=re.MULTILINE))
    assert shown["saved"] == str(tmp_path / "a run")
    program, *words = shlex.split(shown["next"])
    assert program == "kgpyro"
    assert main(words) == 0
    assert "probability" in capsys.readouterr().out


def test_a_graph_without_hold_out(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    posterior = kgpyro.load(run)
    posterior.graph = dataclasses.replace(posterior.graph, test=posterior.graph.test[:0])
    posterior.save(tmp_path / "run")
    for options in ([], ["--per-relation"]):
        assert main(["evaluate", str(tmp_path / "run"), *options]) == 2
        assert "has no test triples to rank" in capsys.readouterr().err


def test_a_device_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["evaluate", str(run)], ["fit", "--epochs", "1"]):
        assert main([*line, "--device", "cuda:63"]) == 2
        error = capsys.readouterr().err
        assert "--device cuda:63" in error and error.count("\n") == 1


def test_runs_side_by_side(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path / "other")
    assert main(["compare", str(run), str(tmp_path / "other"), "--draws", "2", "--by", "MRR"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("best first by mrr")
    assert "nations" in printed and "other" in printed
    mrr = json.loads((run / "metrics.json").read_text())["test"]["realistic"]["mrr"]
    assert printed.count(f"{mrr:.3f}") >= 2


def test_a_comparison_tells_each_run_of_its_own_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ownprior.py").write_text("import pyro.distributions as dist\n\nprior = dist.Normal(0.0, 0.5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = str(tmp_path / "own")
    assert main(["fit", *QUICK, "--prior", "ownprior:prior", "--out", own]) == 0
    assert main(["compare", str(run), own, "--draws", "2"]) == 2
    assert "--run-prior ownprior:prior" in capsys.readouterr().err
    assert main(["compare", str(run), own, "--draws", "2", "--run-prior", "ownprior:prior"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())  # of laplace(scale=0.5), which stays its prior
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("nations"))
    assert f"{metrics['elbo_per_fact']:.3f}" in row


def test_questions_and_their_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which method of a posterior each question goes to, and with what; and the files that answers are written to."""
    asked: dict[str, Any] = {}
    answer = pd.DataFrame(
        {"head": ["a" * 60], "relation": ["null"], "tail": ["c"], "probability": [0.5], "known": [""]}
    )
    answer = answer.assign(std=0.1, low=0.2, high=0.8, aleatoric=0.1, epistemic=0.1, score=0.1, frequency=3, error=0.1)

    def answers(
        self: Any, queries: str, top: int = 10, draws: int = 100, new: bool = False, progress: bool = False
    ) -> Any:
        asked["answers"] = (queries, top, draws, new, progress)
        return answer

    def facts(self: Any, triples: str, draws: int = 500) -> Any:
        asked["facts"] = (triples, draws)
        return answer

    def discover(self: Any, above: float = 0.5, relation: str | None = None, progress: bool = False) -> Any:
        asked["discover"] = (above, relation, progress)
        return answer

    for method in (answers, facts, discover):
        monkeypatch.setattr(kgpyro.Posterior, method.__name__, method, raising=False)
    readers = {
        ".csv": pd.read_csv,
        ".tsv": partial(pd.read_csv, sep="\t"),
        ".parquet": pd.read_parquet,
        ".json": pd.read_json,
    }
    for suffix, reader in readers.items():
        out = tmp_path / f"answers{suffix}"
        read = {"keep_default_na": False} if suffix in (".csv", ".tsv") else {}
        assert main(["predict", str(run), "--queries", "q.csv", "--top", "3", f"--out={out}"]) == 0
        assert reader(out, **read)["relation"].tolist() == ["null"]
        printed = capsys.readouterr().out
        assert f"saved      {out}" in printed
        assert max(map(len, printed.splitlines())) <= 100
    assert main(["predict", str(run), "--facts", "f.tsv", "--draws", "7"]) == 0
    assert main(["predict", str(run), "--above", "0.9", "--relation", "embassy"]) == 0
    assert asked == {
        "answers": ("q.csv", 3, 100, False, True),
        "facts": ("f.tsv", 7),
        "discover": (0.9, "embassy", True),
    }
    for line, words in (
        (["--queries", "q.csv", "--facts", "f.csv"], "--facts does not go with --queries"),
        (["--facts", "f.csv", "--top", "3"], "--top does not go with --facts"),
        (["--queries", "q.csv", "--out", "answers.doc"], "must end in .csv, .tsv, .parquet, .json"),
        (["--queries", "q.csv", "--out", f"{tmp_path}/answers.csv"], "answers.csv is there already"),
    ):
        assert main(["predict", str(run), *line]) == 2
        assert words in capsys.readouterr().err


def test_explore_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "umls"]) == 0
    assert "kgpyro.explore('umls')" in capsys.readouterr().out


def test_modules_and_the_script() -> None:
    for module in ("fit", "evaluate", "predict", "check", "calibrate"):
        shown = subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", f"kgpyro.{module}", "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"usage: python -m kgpyro.{module}" in shown.stdout
        assert shown.stderr == ""
    wrong = subprocess.run([sys.executable, "-m", "kgpyro", "fti"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == "kgpyro: error: there is no command fti; did you mean 'fit'?\n"


def test_what_is_public_is_told_three_times_alike() -> None:
    """Where a name is found, what ``import *`` takes, and what type checkers see; and each name is there."""
    tree = ast.parse(Path(kgpyro.__file__).read_text(encoding="utf-8"))
    block = next(line for line in tree.body if isinstance(line, ast.If))
    seen = {a.name: line.module for line in block.body if isinstance(line, ast.ImportFrom) for a in line.names}
    assert seen == PUBLIC
    assert {*kgpyro.__all__} == {*PUBLIC, "InputError"}
    assert {*dir(kgpyro)} == {*kgpyro.__all__, "__version__"}
    assert all(getattr(kgpyro, name) is not None for name in kgpyro.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kgpyro.nothing  # noqa: B018


def test_importing_the_command_keeps_the_function() -> None:
    code = (
        "import kgpyro, kgpyro.fit; assert callable(kgpyro.fit); from kgpyro import fit; print(fit.__doc__ is not None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
