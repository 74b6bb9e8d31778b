"""The network's Triton kernels as compiled, without a GPU: none spills, and they compute the network."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import python

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
FEW = 16  # bytes of a thread's stack
MOST_SHARED = 99 << 10  # bytes that a program may have on the smallest GPUs from sm_80 on


def checked(what: str, cache: Path) -> str:
    """What `tests.support.triton_network` prints, in a process where kernels are not interpreted."""
    done = python(
        "-m", "tests.support.triton_network", what,
        TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kernel_compiles(tmp_path: Path) -> None:
    """None spills more than a word or two; none is compiled for an image's size or a batch's, but `route`, for the
    samples that it looks at at once, and what writes rows of full size, for those that 16 divides."""
    found = json.loads(checked("compiled", tmp_path))
    for row in found["kernels"]:
        assert row["stack_bytes"] <= FEW and row["local_bytes"] == 0 and row["shared_bytes"] <= MOST_SHARED, row
    assert len({row["kernel"] for row in found["kernels"]}) == 11
    assert set(found["of_a_size"]) <= {"route_kernel", "logits_kernel"}


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")
def test_as_compiled(tmp_path: Path) -> None:
    checked("emulated", tmp_path)
