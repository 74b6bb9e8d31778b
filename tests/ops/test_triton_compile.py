"""Triton's kernels compiled without a GPU: every configuration, for sm_80 and sm_90; registers and shared memory do."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import python
from tests.support.triton_cases import CASES

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
INFERENCE = ("sepconv", "transform", "gate", "route", "aggregate")
MOST_SHARED = 48 << 10  # bytes of a program that every GPU grants unasked
# Bytes of a thread that may spill where 16 does not divide the channels, as it does a network's, and in training, where
# ptxas stays below a number of registers of its own choice.
FEW = 160


def test_every_configuration_compiles(tmp_path: Path) -> None:
    """In processes of their own, as kernels are interpreted in this one."""
    out = tmp_path / "static.json"
    done = python(
        "-m", "benchmarks.triton_code", "--only", "static", "--out", str(out),
        TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["static"]["kernels"]
    for arch in ("sm_80", "sm_90"):
        assert {row["operator"] for row in found if row["arch"] == arch} == {case.op for case in CASES}
    for row in found:
        is_networks = row["operator"] in INFERENCE and " channels: i32/16" in row["signature"]
        assert row["registers"] <= 255 and row["local_bytes"] == 0, row
        assert row["stack_bytes"] <= (0 if is_networks else FEW), row
        assert row["shared_bytes"] <= MOST_SHARED, row
