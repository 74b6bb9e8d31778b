"""Triton's kernels as PTX for sm_80 on the emulator, against float64: without a GPU, and not interpreted."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.processes import python
from tests.support.triton_checks import CHECKS, TRAINED

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found"),
]


@pytest.mark.parametrize("op", [*CHECKS, *TRAINED])
def test_as_compiled(op: str, tmp_path: Path) -> None:
    """What is checked, `tests/support/triton_checks.py` says; in a process where kernels are not interpreted."""
    done = python(
        "-m", "tests.support.triton_checks", op,
        TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
