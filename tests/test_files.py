"""Files are data: crafted, damaged and half-written runs are refused, and nothing in one is ever executed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_posterior import CONFIG, posterior_of

import kgpyro
import kgpyro.posterior.runs
from kgpyro.commands import fit as fit_command
from kgpyro.data.graph import Graph
from kgpyro.data.stored import read_graph, write_graph
from kgpyro.errors import InputError
from kgpyro.files import claim, write_text, write_whole

FILES = ("posterior.safetensors", "graph.safetensors", "config.yaml", "metrics.json", "run.json", "log.csv")


@pytest.fixture(scope="module")
def saved(tiny: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    posterior = kgpyro.fit(tiny, model="lim", dim=4, epochs=1, progress=False, device="cpu")
    posterior.save(tmp_path_factory.mktemp("runs") / "run")
    return next(tmp_path_factory.getbasetemp().glob("runs*/run"))


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def edit(run: Path, file: str, **changed: Any) -> None:
    data = yaml.safe_load((run / file).read_text()) | changed
    (run / file).write_text(json.dumps(data))


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", FILES)
def test_no_file_can_execute(run: Path, file: str) -> None:
    """A pickle, a torch file, YAML that asks for a call: each is refused or taken as text."""
    target = run.parent / "executed"
    (run / "torch.bin").unlink(missing_ok=True)
    torch.save({"x": Payload(target)}, run / "torch.bin")
    yaml_call = f"!!python/object/apply:os.mkdir ['{target}']".encode()
    for content in (pickle.dumps(Payload(target)), (run / "torch.bin").read_bytes(), yaml_call):
        (run / file).write_bytes(content)
        if file != "log.csv":
            with pytest.raises(InputError, match="incomplete or damaged"):
                kgpyro.load(run)
        assert not target.exists()


def test_mutated_files_load_or_are_refused(saved: Path, run: Path) -> None:
    """Bytes changed, cut and doubled at random, 300 times: an InputError of one line, or a run."""
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        file = chance.choice(FILES)
        content = bytearray((saved / file).read_bytes())
        place = chance.randrange(len(content))
        how = chance.randrange(3)
        if how == 0:
            content[place] = chance.randrange(256)
        elif how == 1:
            del content[place:]
        else:
            content[place:place] = content[max(0, place - 40) : place]
        (run / file).write_bytes(content)
        try:
            kgpyro.load(run)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
        shutil.copy(saved / file, run / file)
    assert refused > 100
    kgpyro.load(run)


@pytest.mark.parametrize(
    ("file", "changed", "words"),
    [
        ("config.yaml", {"dim": 10**9}, "dim"),
        ("config.yaml", {"dim": 10**9, "score": "RESCAL"}, "dim"),
        ("config.yaml", {"score": "RESCAL"}, "do not fit"),
        ("config.yaml", {"guide": "mlp(width=1000000, hidden=1000000)"}, "do not fit"),
        ("config.yaml", {"guide": "lowrank(rank=1000000000)"}, "do not fit"),
        ("config.yaml", {"guide": "lowrank(rank=1000000000)", "prior": "normal(scale=half_cauchy(1))"}, "do not fit"),
        ("config.yaml", {"guide": "flow(layers=1000000000, hidden=1)"}, "do not fit"),
        ("config.yaml", {"guide": "mixture(members=1000000000)"}, "do not fit"),
        ("config.yaml", {"prior": "normal(scale=learn_per_symbol)"}, "do not fit"),
        ("config.yaml", {"prior": "-" * 100_000 + "1"}, "damaged|does not parse"),
        ("config.yaml", {"dim": "4"}, "no int"),
        ("config.yaml", {"dim": True}, "no int"),
        ("config.yaml", {"prior": ["normal"]}, "no str"),
        ("config.yaml", {"model": {"a": 1}}, "no str"),
        ("config.yaml", {"entity_prior": "os:system"}, "your own entity_prior"),
        ("metrics.json", [], "holds no object"),
    ],
)
def test_false_claims(run: Path, file: str, changed: Any, words: str) -> None:
    if isinstance(changed, dict):
        edit(run, file, **changed)
    else:
        (run / file).write_text(json.dumps(changed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words) as caught:
        kgpyro.load(run)
    assert len(str(caught.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "more than 300 MB were taken"


def rewrite(
    run: Path, metadata: dict[str, str] | None = None, name: str = "posterior.safetensors", **tensors: torch.Tensor
) -> None:
    with safe_open(run / name, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()} | tensors  # noqa: SIM118
        found = file.metadata() | (metadata or {})
    safetensors.torch.save_file(state, run / name, {k: v for k, v in found.items() if v})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"train": torch.tensor([[0, 0, 5]], dtype=torch.int32)}, "triples of its names"),
        ({"train": torch.tensor([[0, 2, 1]], dtype=torch.int32)}, "triples of its names"),
        ({"valid": torch.tensor([[-1, 0, 1]])}, "triples of its names"),
        ({"negatives.test": torch.tensor([[0, 1]])}, "triples of its names"),
        ({"test": torch.tensor(3)}, "triples of its names"),
        ({"test": torch.zeros(1, 3)}, "triples of its names"),
        ({"train": torch.zeros(0, 3, dtype=torch.int32)}, "no training triples"),
        ({"entities": torch.tensor(list(b"abcd"), dtype=torch.uint8)}, "lengths"),
        (
            {
                "entities": torch.tensor(list("".join(map(chr, range(10_000, 40_000))).encode()), dtype=torch.uint8),
                "entities.lengths": torch.ones(30_000, dtype=torch.int32),
            },
            "do not fit",
        ),
        ({"entities": torch.tensor([255] * 5, dtype=torch.uint8)}, "damaged"),
        ({"entities": torch.tensor(list(b"aabcd"), dtype=torch.uint8)}, "distinct"),
        ({"entities.lengths": torch.tensor([2, -1, 2, 1, 1])}, "lengths"),
        ({"entities.lengths": torch.ones(5)}, "damaged"),
        ({"relations.lengths": torch.tensor([10**12])}, "lengths"),
        ({"confidences.train": torch.ones(2, dtype=torch.float64)}, "confidences of 'train'"),
        ({"confidences.test": torch.full((2,), 1.5, dtype=torch.float64)}, "confidences of 'test'"),
        ({"confidences.test": torch.ones(2)}, "confidences of 'test'"),
    ],
)
def test_graphs_that_are_none(run: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    rewrite(run, None, "graph.safetensors", **tensors)
    with pytest.raises(InputError, match=words):
        kgpyro.load(run)


@pytest.mark.parametrize("about", ["", "[1]", "{", '{"name": 3}'])
def test_graphs_without_a_name(run: Path, about: str) -> None:
    rewrite(run, {"graph": about}, "graph.safetensors")
    with pytest.raises(InputError, match=r"damaged|no name"):
        kgpyro.load(run)


TEXT = st.text(st.characters(), min_size=1, max_size=6)  # lone surrogates, line breaks and NUL among them


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    entities=st.lists(TEXT, min_size=2, max_size=6, unique=True),
    relations=st.lists(TEXT, min_size=1, max_size=3, unique=True),
    name=TEXT,
    sure=st.booleans(),
    false=st.booleans(),
    seed=st.integers(0, 99),
)
def test_graphs_go_through_a_run(
    tmp_path_factory: pytest.TempPathFactory,
    entities: list[str],
    relations: list[str],
    name: str,
    sure: bool,
    false: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor([len(entities), len(relations), len(entities)])
    parts = [(torch.rand(n, 3, generator=generator) * ends).long() for n in (4, 0, 2, 3)]
    graph = Graph(name, tuple(entities), tuple(relations), *parts[:3], notes=("left out \ud800",))
    if sure:
        values = {"train": torch.rand(4, dtype=torch.float64), "valid": torch.ones(0, dtype=torch.float64)}
        graph = replace(graph, confidences=values)
    graph = replace(graph, negatives={"test": parts[3]} if false else {})
    folder = tmp_path_factory.mktemp("g")
    write_graph(graph, folder)
    assert_same(read_graph(folder), graph)


def assert_same(found: Graph, graph: Graph) -> None:
    """Not only equal: every part of them."""
    for part in ("name", "entities", "relations", "notes"):
        assert getattr(found, part) == getattr(graph, part)
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(found, split), getattr(graph, split))
        assert getattr(found, split).dtype == torch.long
    for part in ("confidences", "negatives"):
        there, given = getattr(found, part), getattr(graph, part)
        assert {split: values.tolist() for split, values in there.items()} == {k: v.tolist() for k, v in given.items()}


@pytest.mark.parametrize("confident", [True, False])
def test_a_run_has_the_graph_as_it_was_read(tmp_path: Path, confident: bool) -> None:
    """Columns, hold-out, labels and confidences are needed no more."""
    rows = [(f"Q{i % 7}", i / 60, "ignored", "P1" if i % 3 else "P2", f"Q{(3 * i + i // 7) % 11}") for i in range(60)]
    text = "from,sure,note,how,to\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "facts.csv").write_text(text)
    (tmp_path / "labels.tsv").write_text("".join(f"Q{i}\tname {i}\n" for i in range(9)) + "P1\tlikes\n")
    columns = ["from", "how", "to", *(["sure"] if confident else [])]
    graph = kgpyro.load_graph(
        tmp_path / "facts.csv", columns=columns, holdout=0.1, seed=3, labels=tmp_path / "labels.tsv"
    )
    assert "name 3" in graph.entities and len(graph.valid) and bool(graph.confidences) == confident
    options = {"model": "lim", "dim": 2, "epochs": 1, "progress": False, "device": "cpu"}
    fitted = kgpyro.fit(graph, out=tmp_path / "out", **options)
    fitted.save(tmp_path / "saved")
    for file in ("facts.csv", "labels.tsv"):
        (tmp_path / file).unlink()
    assert_same(kgpyro.load(tmp_path / "out").graph, graph)
    assert_same(kgpyro.load(tmp_path / "saved").graph, graph)
    assert kgpyro.load(tmp_path / "out").graph == graph


@pytest.mark.parametrize(
    "tensors",
    [
        {"guide.entity.loc": torch.zeros(5, 5)},
        {"guide.entity.loc": torch.zeros(0)},
        {"guide.unheard_of": torch.zeros(1)},
        {"setting.intercept": torch.zeros(3)},
        {"setting.intercept": torch.zeros(4, dtype=torch.int64)},
        {"setting.intercept": torch.zeros(4, dtype=torch.complex64)},
        {"setting.intercept": torch.zeros(4, dtype=torch.bool)},
        {"guide.features": torch.zeros(7)},
    ],
)
def test_tensors_that_do_not_fit(run: Path, tensors: dict[str, torch.Tensor]) -> None:
    rewrite(run, **tensors)
    with pytest.raises(InputError, match=r"do not fit|damaged"):
        kgpyro.load(run)


def test_a_header_that_claims_too_much(run: Path) -> None:
    content = (run / "posterior.safetensors").read_bytes()
    (run / "posterior.safetensors").write_bytes((2**62).to_bytes(8, "little") + content[8:])
    with pytest.raises(InputError, match="damaged"):
        kgpyro.load(run)


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
def test_deep_nesting(run: Path, file: str) -> None:
    (run / file).write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        kgpyro.load(run)


def test_aliases_that_multiply(run: Path) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(12))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + levels)
    with pytest.raises(InputError, match="an option that none can be"):
        kgpyro.load(run)


def test_names_are_no_paths(tmp_path: Path) -> None:
    rows = [["../../escaped", "/etc/passwd", "..\\x\ny"], ["~", "/etc/passwd", "../../escaped"]]
    graph = Graph.from_triples("../outside", rows, rows[:1], rows[:1])
    (tmp_path / "in").mkdir()
    posterior_of(graph).save(tmp_path / "in" / "run")
    again = kgpyro.load(tmp_path / "in" / "run")
    assert again.graph.entities == graph.entities
    assert again.graph.name == "../outside"
    again.predict(head="~", relation="/etc/passwd")
    assert [f.name for f in tmp_path.iterdir()] == ["in"]
    assert [f.name for f in (tmp_path / "in").iterdir()] == ["run"]


def test_versions(run: Path) -> None:
    with safe_open(run / "posterior.safetensors", framework="pt") as file:
        assert file.metadata()["kgpyro"] == kgpyro.__version__
    rewrite(run, {"format": "3", "kgpyro": "7.5"})
    with pytest.raises(InputError, match=r"has format 3, written by kgpyro 7\.5; this kgpyro .* reads 2"):
        kgpyro.load(run)
    rewrite(run, {"format": "1", "kgpyro": "0.1.0"})
    with pytest.raises(InputError, match=r"written by kgpyro 0\.1\.0"):
        kgpyro.load(run)
    rewrite(run, {"format": "2", "kgpyro": ""})  # as before the version was written
    (run / "run.json").unlink()
    assert kgpyro.load(run).provenance == {}


def test_provenance(saved: Path, tiny: Graph) -> None:
    found = kgpyro.load(saved).provenance
    assert found["kgpyro"] == kgpyro.__version__
    assert found["torch"] == torch.__version__
    assert (found["seed"], found["precision"], found["threads"]) == (0, "32", torch.get_num_threads())
    assert found["data_sha256"] == tiny.checksum
    commit = found["commit"]
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    other = Graph.from_triples("tiny", [["a", "r", "b"]], [["a", "r", "b"]], [["b", "r", "a"]])
    assert other.checksum != tiny.checksum
    assert Graph.from_triples("x", [["a", "r", "b"]], [["a", "r", "b"]], [["b", "r", "a"]]).checksum == other.checksum


def test_a_broken_write_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "old")

    def fill(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"file cannot be written: .*No space left"):
        write_whole(file, fill)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_weights_are_written_last(tiny: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails, there is no run that looks complete."""
    posterior = posterior_of(tiny)
    real = write_whole
    for fail_at in range(5):
        calls = []

        def failing(path: Path, write: Any, calls: list[Path] = calls, fail_at: int = fail_at) -> None:
            calls.append(path)
            if len(calls) > fail_at:
                raise InputError("disk full")
            real(path, write)

        monkeypatch.setattr("kgpyro.files.write_whole", failing)
        monkeypatch.setattr("kgpyro.posterior.runs.write_whole", failing)
        monkeypatch.setattr("kgpyro.data.stored.write_whole", failing)
        with pytest.raises(InputError, match="disk full"):
            posterior.save(tmp_path / str(fail_at))
        with pytest.raises(InputError, match=r"has not finished|holds no run"):
            kgpyro.load(tmp_path / str(fail_at))
    assert calls[-1].name == "posterior.safetensors"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tiny: Graph, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        posterior_of(tiny).save(tmp_path / "run")


def test_a_folder_under_a_file(tiny: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        posterior_of(tiny).save(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that nobody may write to")
def test_a_folder_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_command(["--epochs", "1", "--dim", "2", "--no-progress", "--device", "cpu", "--out", "/proc/run"]) == 2
    assert capsys.readouterr().err.startswith("kgpyro: error: /proc/run cannot be written to")


def test_vanished_data(tiny: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run needs its data no more; to repeat its fit does, and says so."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        (data / f"{split}.txt").write_text("a\tr\tb\n")
    options = ["--epochs", "1", "--dim", "2", "--no-progress", "--device", "cpu"]
    assert fit_command([*options, "--dataset", str(data), "--out", str(tmp_path / "run")]) == 0
    shutil.rmtree(data)
    assert kgpyro.load(tmp_path / "run").graph.num_entities == 2
    capsys.readouterr()
    assert fit_command(["--config", str(tmp_path / "run" / "config.yaml")]) == 2
    error = capsys.readouterr().err
    assert str(data) in error
    assert error.count("\n") == 1


def test_a_claimed_folder(tmp_path: Path) -> None:
    with claim(tmp_path / "run"), pytest.raises(InputError, match="another fit is writing"), claim(tmp_path / "run"):
        pass
    with claim(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_the_configuration_that_tests_use_is_complete() -> None:
    assert CONFIG.keys() >= kgpyro.posterior.runs.REQUIRED.keys()


def test_a_long_tensor_is_no_covariance(run: Path) -> None:
    rewrite(run, **{"guide.entity.loc": torch.zeros(5, 40_000)})
    edit(run, "config.yaml", dim=40_000, prior="multivariate_normal")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="do not fit"):
        kgpyro.load(run)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "more than 300 MB were taken"
