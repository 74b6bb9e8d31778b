"""Checkpoints that were damaged, disks that are full, and what is resumed from then."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import dynroute
from dynroute.train import ConfigError, train
from dynroute.train.checkpoint import NEEDED, Checkpoints
from tests.support.runs import small

STEP4, STEP8 = "checkpoints/step-0000004.pt", "checkpoints/step-0000008.pt"


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 16
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * (len(content) - 1))])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{f"bit at {s}": (lambda path, s=s: flip(path, s), "its bytes have changed") for s in (0, 0.01, 0.3, 0.77, 1)},
    **{f"cut to {s}": (lambda path, s=s: cut(path, s), "bytes, its manifest says") for s in (0.1, 0.5, 1)},
    "zero bytes": (lambda path: cut(path, 0), "0 bytes, its manifest says"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, its manifest says"),
    "no file": (lambda path: path.unlink(), "the file is missing, there is only its manifest"),
    "no manifest": (lambda path: path.with_suffix(".json").unlink(), "no manifest step-0000008.json"),
    "empty manifest": (lambda path: cut(path.with_suffix(".json"), 0), "its manifest step-0000008.json is broken"),
    "no JSON": (lambda path: path.with_suffix(".json").write_text("[1]"), "its manifest step-0000008.json is broken"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run"), quiet=True)


@pytest.mark.parametrize("name", DAMAGES)
def test_the_newest_that_verifies(whole: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damage, reason = DAMAGES[name]
    damage(run / STEP8)
    state, path, lines = Checkpoints(run).read()
    assert state["step"] == 4 and path == run / STEP4
    assert len(lines) == 1 and lines[0].startswith(f"passed over {run / STEP8}: ") and reason in lines[0]
    cut(run / STEP4, 0)
    with pytest.raises(ConfigError, match=r"none of 2 checkpoints can be resumed from: passed over .*; passed over"):
        Checkpoints(run).read()


def test_a_run_goes_on_from_the_one_before(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    flip(run / STEP8, 0.5)
    train(small(run), resume=True, quiet=True)
    assert "train: passed over" in capsys.readouterr().err
    state, path, lines = Checkpoints(run).read()
    assert (state["step"], path, lines) == (8, run / STEP8, [])
    one, two = (dynroute.from_pretrained(folder / "model").state_dict() for folder in (whole, run))
    assert all(torch.equal(one[key], two[key]) for key in one)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "alarm" not in record]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 8]  # the last is the evaluation


def test_a_run_of_the_old_form_goes_on(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    state = torch.load(run / STEP4, weights_only=True)
    del state["log"]["size"]
    state["log"]["sums"].pop("skipped", None)
    for key in ("keep_checkpoints", "max_skipped"):
        del state["config"]["run"][key]
    shutil.rmtree(run / "checkpoints")
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(small(run), quiet=True)
    train(small(run), resume=True, quiet=True)
    assert "has no manifest: it is of an older version" in capsys.readouterr().err
    one, two = (dynroute.from_pretrained(folder / "model").state_dict() for folder in (whole, run))
    assert all(torch.equal(one[key], two[key]) for key in one)
    for content in (b"", b"no"):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ConfigError, match=f"broken, {len(content)} bytes that torch cannot read"):
            train(small(run), resume=True, quiet=True)


def some_state(step: int, **more: Any) -> dict[str, Any]:
    return {**{key: {} for key in NEEDED}, "step": step, "model": {"w": torch.randn(1000)}, **more}


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_last_ones_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert not checkpoints
    (tmp_path / "checkpoint.pt").write_bytes(b"old")
    for step in (5, 10, 9_999_999, 10_000_000):
        checkpoints.write(some_state(step))
    expected = ["step-10000000.json", "step-10000000.pt", "step-9999999.json", "step-9999999.pt"]
    assert names(tmp_path) == expected and not (tmp_path / "checkpoint.pt").exists()
    assert checkpoints.read()[0]["step"] == 10_000_000
    # a broken one takes no good one's place
    cut(tmp_path / "checkpoints/step-10000000.pt", 0.5)
    assert checkpoints.read()[0]["step"] == 9_999_999
    checkpoints.write(some_state(10_000_001))
    assert names(tmp_path) == ["step-10000001.json", "step-10000001.pt", "step-9999999.json", "step-9999999.pt"]


def test_a_first_one_that_was_never_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed before its manifest: nothing to resume, and the run begins anew."""
    unfinished = tmp_path / "run/checkpoints/step-0000004.pt"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    (unfinished.parent / ".step-0000004.json.1.2").write_bytes(b"{")
    (tmp_path / "run/.model-x").mkdir()
    (tmp_path / "run/model").mkdir()
    (tmp_path / "run/model/.config.json.1.2").write_bytes(b"{")
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train(small(tmp_path / "run"), resume=True, quiet=True)
    train(small(tmp_path / "run", "schedule.steps=4"), quiet=True)
    assert "renamed to step-0000004.unfinished" in capsys.readouterr().err
    assert names(tmp_path / "run") == ["step-0000004.json", "step-0000004.pt", "step-0000004.unfinished"]
    assert not (tmp_path / "run/.model-x").exists()
    assert {path.name for path in (tmp_path / "run/model").iterdir()} == {
        "config.json", "model.safetensors", "preprocess.json",
    }  # fmt: skip


def test_a_network_of_nan_is_passed_over(tmp_path: Path) -> None:
    """As older versions saved it."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(some_state(1))
    checkpoints.write(some_state(2, model={"n": torch.tensor(3), "w": torch.tensor([0.0, float("nan")])}))
    state, _, lines = checkpoints.read()
    assert state["step"] == 1 and lines[0].endswith("step-0000002.pt: w is not finite")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Checkpoints(tmp_path).write(some_state(3, log=Harmful()))  # with a manifest that is right
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ConfigError, match="none of 2 checkpoints"):
        Checkpoints(tmp_path).read()
    assert not (tmp_path / "harm").exists()
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="no checkpoint of a run, it lacks config, log"):
        Checkpoints(tmp_path).read()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside, no file grows beyond so many bytes: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 2000, 4096, 5000])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, size: int) -> None:
    """At whatever byte it is full."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(some_state(1))
    before = names(tmp_path)
    with files_up_to(size), pytest.raises(OSError, match=r"step-0000002\.pt"):
        checkpoints.write(some_state(2))
    assert names(tmp_path) == before and checkpoints.read()[0]["step"] == 1
    checkpoints.write(some_state(2))
    assert checkpoints.read()[0]["step"] == 2


def test_a_manifest_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(some_state(1))
    before = names(tmp_path)
    real = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *a, **k: real(*a, **k) + " " * 100_000)
    with files_up_to(50_000), pytest.raises(OSError, match=r"File too large: '.*step-0000002\.json'"):
        checkpoints.write(some_state(2))
    assert names(tmp_path) == before and checkpoints.read()[0]["step"] == 1


def test_a_disk_that_fills_up_during_a_run(whole: Path, tmp_path: Path) -> None:
    """While checkpoint, log or network are written: one line with the path; nothing half written, and it goes on."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    sizes = {
        r"step-0000012\.pt": (run / STEP8).stat().st_size - 1,
        r"log\.jsonl": (run / "log.jsonl").stat().st_size + 100,
        r"model": (run / "model/model.safetensors").stat().st_size - 1,
    }
    log = (run / "log.jsonl").read_bytes()
    for name, size in sizes.items():
        steps = 8 if name == "model" else 12
        with files_up_to(size), pytest.raises(OSError, match=name) as failed:
            train(small(run, f"schedule.steps={steps}"), resume=True, quiet=True)
        assert "\n" not in str(failed.value)
        assert names(run) == [Path(p).with_suffix(s).name for p in (STEP4, STEP8) for s in (".json", ".pt")]
        assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
        for line in (run / "log.jsonl").read_text().splitlines():
            json.loads(line)
        (run / "log.jsonl").write_bytes(log)
    train(small(run, "schedule.steps=9"), resume=True, quiet=True)
    assert Checkpoints(run).read()[0]["step"] == 9
