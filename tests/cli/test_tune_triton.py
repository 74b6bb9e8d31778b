"""`dynroute bench --tune --backend triton`: what refuses says why; on a GPU, what is saved is in force."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dynroute.cli import main
from dynroute.cli.tune_triton import as_json, print_found
from dynroute.measure.triton_tuning import TunedCall
from dynroute.ops.triton import configs, launch
from dynroute.ops.triton.cuts import Cut, Key, read_cuts

TUNE = ["bench", "--tune", "--backend", "triton", "dynamic_tiny", "--size", "64x64"]
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("triton") is None, reason="torch sees no GPU, or triton is not installed"
)


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main([*TUNE, *options]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_switched_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", "off")
    assert "DYNROUTE_TRITON_TUNING or DYNROUTE_TUNING is off; wanted the name of a file" in refused(capsys)


def test_no_other_file_is_written_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", str(other))
    assert f"{other}: not a file of Triton's cuts" in refused(capsys)
    assert other.read_text() == "notes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_nothing_to_measure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", str(tmp_path / "triton.json"))
    assert "kernels are interpreted on the CPU, there is nothing to measure; wanted a GPU" in refused(capsys)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert ("triton needs a GPU" if find_spec("triton") else "triton is not installed") in refused(capsys)
    assert not (tmp_path / "triton.json").exists()


def test_the_table_and_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    key, before, chosen = Key("sepconv", 64, torch.float16, 90), Cut(64, 64, 32, 8), Cut(64, 32, 16, 4, 2)
    skipped = ["(128, 64, 64, 8, 3): out of resource: shared memory"]
    found = [
        TunedCall(key, 128, 256, 40, skipped, before, chosen, 0.2, 0.1, 0.5, 0.5),
        TunedCall(key._replace(op="gate"), 128, 256, 41, [], before, before, 0.2, 0.2, 0.0, 0.012),
    ]
    print_found(found, 11)
    head, _, first, second, *others = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert head.split()[-1] == "gain" and not others
    assert first.split()[:3] == ["sepconv", "64", "128x256"] and "64x32, 16, 4, 2" in first and "50.0%" in first
    assert "the same" in second and "- (best 1.2%)" in second
    record = json.loads(json.dumps(as_json(found[0])))
    assert record["dtype"] == "float16" and record["skipped"] == skipped
    assert record["chosen"] == {"block_m": 64, "block_n": 32, "block_k": 16, "num_warps": 4, "num_stages": 2}


@on_gpu
def test_tuned_on_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, record = tmp_path / "triton.json", tmp_path / "record.json"
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", str(path))
    monkeypatch.setattr("dynroute.measure.triton_tuning.LEAST_GAIN", -1.0)  # whatever was best counts
    assert not launch.interpreted()
    try:
        assert main([*TUNE, "--repeats", "2", "--json", str(record)]) == 0
        assert "checked-in cut" in capsys.readouterr().out
        result = json.loads(record.read_text())
        assert len(result["results"]) == 16 and result["arch"] == configs.architecture()
        for row in result["results"]:
            assert row["before_ms"] > 0 and row["chosen_ms"] <= row["before_ms"]
        for entry in read_cuts(path):
            assert configs.find(*entry.key) == entry.cut and entry.measured is not None
            assert entry.measured["device"] == torch.cuda.get_device_name()
    finally:
        configs.forget_tuning()
