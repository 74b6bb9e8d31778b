"""What compilers and exporters see of the Triton operators: the kernels themselves, in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.sources import ROOT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def test_kernels_are_seen() -> None:
    """In a process of its own, as kernels are interpreted in this one. An export calls the operator; a compiler's joint
    graph of both directions has the kernels, and finds no argument that they write to."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.triton_traced"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 9
    for op, seen in found.items():
        assert seen["exported"] == 1 and seen["kernels"] >= 1 and seen["mutated"] == [], (op, seen)
    # forward and backward: its stages' and paths' products, their gradients, sums and norms
    assert found["node_train"]["kernels"] > 2 * found["transform_train"]["kernels"] > 10
