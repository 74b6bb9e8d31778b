"""`make gpu-check` without a GPU: its stages' motions on the CPU, what they write down, and how they fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_counters import COUNTERS, read_counters
from dynroute.native import library

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


def document_of(stage: str, folder: Path) -> dict:
    return json.loads((folder / f"gpu_{stage}.json").read_text())


def kinds(value: object) -> set[str]:
    """All that is said of how numbers came about."""
    if isinstance(value, dict):
        here = {value["kind"]} if "kind" in value else set()
        return here.union(*map(kinds, value.values()))
    return set().union(*map(kinds, value)) if isinstance(value, list) else set()


@needs_library
@pytest.mark.parametrize("stage", ["parity", "sanitize", "speed", "train", "triton", "compile"])
def test_a_dry_run_of_each_stage(stage: str, tmp_path: Path) -> None:
    assert gpu_check.main([stage, "--dry-run", "--out", str(tmp_path), "--tools", "memcheck"]) == 0
    document = document_of(stage, tmp_path)
    assert document["good"] and document["dry_run"] and {"command", "commit", "versions"} <= set(document["provenance"])
    assert "measured" not in kinds(document), "nothing was measured"
    if stage == "parity":
        assert {test["outcome"] for test in document["tests"]} == {"skipped"}
    if stage == "speed":
        (row,) = document["all_open"]
        assert all(set(row["ms"][how]) == {"ours", "eager", "eager_graph"} for how in ("warm", "cold", "call"))
        assert document["routed"][0]["patterns"]["0.5"]["macs"]["value"] < row["macs"]
        assert kinds(document) == {"stand-in", "counted"}
        overlap = document["overlap"]
        assert overlap["same_bits"] and all(set(overlap["ms"][name]) == {"warm", "cold"} for name in ("on", "off"))
        assert document["kernels"][0]["shape"] == overlap["shape"]
        assert [row["operator"] for row in document["operators"]] == ["cell", "transform down", "gate", "aggregate"]
        assert all(max(row["errors"].values()) < 1e-5 for row in document["operators"])
    if stage == "train":
        assert [step["autocast"] for step in document["training"]] == [None, "bfloat16"]
        ways = {"auto", "reference", "auto_graph", "reference_graph"}
        assert all(set(step["ms"]) == ways for step in document["training"])
        assert {row["operator"] for row in document["operators"]} == {"node", "gate", "aggregate"}
        assert all(row["error"] < 1e-4 for row in document["operators"])
        assert "'cuda' cannot be used" in document["cuda_operators"]
    if stage == "triton":
        assert "would be interpreted" in document["triton"]
    if stage == "compile":
        assert "torch_compile" in document["all_open"][0]["ms"]["warm"]
        assert "tensorrt" in document["all_open"][1]["absent"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
@needs_library
def test_a_dry_run_of_the_build(tmp_path: Path) -> None:
    assert gpu_check.main(["build", "--dry-run", "--out", str(tmp_path)]) == 0
    document = document_of("build", tmp_path)
    assert (
        document["architecture"] == "80-real"
        and "-DDYNROUTE_CUDA_ARCHITECTURES=80-real" in document["steps"][0]["command"]
    )


@needs_library
def test_a_library_built_elsewhere(tmp_path: Path) -> None:
    assert gpu_check.main(["build", "--dry-run", "--library", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "wanted libdynroute_cpu.so and libdynroute_cuda.so in it" in document_of("build", tmp_path)["failed"]
    for name in gpu_check.LIBRARIES:
        (tmp_path / name).touch()
    assert gpu_check.main(["build", "--dry-run", "--library", str(tmp_path), "--out", str(tmp_path)]) == 0


def test_a_stage_that_takes_too_long_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(run: gpu_check.Run):
        yield {"first": 1, "steps": []}
        yield {
            "first": 1,
            "steps": [run.command([sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)"])],
        }

    monkeypatch.setitem(gpu_check.STAGES, "speed", slow)
    assert gpu_check.main(["speed", "--dry-run", "--limit", "1.5", "--out", str(tmp_path)]) == 1
    document = document_of("speed", tmp_path)
    assert (
        not document["good"] and document["steps"][0]["status"] == "cut" and document["steps"][0]["tail"] == ["began"]
    )


def test_a_sanitizer_that_refuses_the_device_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu_check.Run(False, False, None, ["memcheck", "racecheck"], 60)
    said = {"memcheck": ["========= Error: Device not supported."], "racecheck": ["RACE"]}
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(run, "command", lambda command, **env: {"status": 1, "tail": said[command[2]]})
    *_, document = gpu_check.sanitize(run)
    assert [step["status"] for step in document["steps"]] == [0, 1] and "absent" in document["steps"][0]
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert list(gpu_check.sanitize(run)) == [{"steps": [], "absent": "compute-sanitizer was not found"}]


def test_tests_are_read_from_the_report(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a" time="0.5"/>'
        '<testcase name="b" time="1"><failure message="no&#10;x"/></testcase>'
        '<testcase name="c" time="0"><skipped message="one GPU"/></testcase></testsuite></testsuites>'
    )
    assert gpu_check.read_tests(report) == [
        {"name": "a", "seconds": 0.5, "outcome": "passed"},
        {"name": "b", "seconds": 1.0, "outcome": "failed", "why": ["no"]},
        {"name": "c", "seconds": 0.0, "outcome": "skipped", "why": ["one GPU"]},
    ]


def test_counters_are_read_from_ncu() -> None:
    names = ",".join(f'"{name}"' for name in COUNTERS.values())
    text = f"""==PROF== Connected
"ID","Kernel Name",{names}
"","","ns","%","%","%","inst","byte","byte"
"0","cell_f16(CellParams)","2,000","40.0","50.0","60","1,000","10","20"
"1","cell_f16(CellParams)","4000","44.0","50.0","62","3,000","30","40"
"2","merge_f16(MergeParams)","1500","10","31.25","20","5","6","7"
"""
    cell, merge = read_counters(text)
    assert list(cell.values()) == ["cell_f16", 2, 3.0, 42.0, 50.0, 61.0, 2000.0, 20.0, 30.0]
    assert merge["name"] == "merge_f16" and merge["us"] == 1.5 and merge["l2_bytes"] == 7.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["speed", "--out", str(tmp_path)]) == 2
    assert "gpu-check needs, and this machine lacks" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["sped"])
    assert "STAGE: wanted some of build, parity" in capsys.readouterr().err
