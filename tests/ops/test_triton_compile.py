"""Triton's kernels compiled without a GPU: every configuration, for sm_80 and sm_90, without spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.sources import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def test_every_configuration_compiles(tmp_path: Path) -> None:
    """In a process of its own, as kernels are interpreted in this one."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "benchmarks.triton_code", "--out", str(tmp_path / "static.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "static.json").read_text())["kernels"]
    assert {row["operator"] for row in found} == {"sepconv", "transform", "gate", "route", "aggregate"}
    assert {row["arch"] for row in found} == {"sm_80", "sm_90"}
    for row in found:
        where = f"{row['kernel']} {row['arch']} {row['dtype']} {row['constants']}"
        assert row["shared_bytes"] <= 48 << 10, where
        if "registers" in row:  # cuobjdump was found
            assert row["registers"] <= 255 and row["stack_bytes"] == row["local_bytes"] == 0, where
