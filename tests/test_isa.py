"""Which native code runs: DYNROUTE_CPU_ISA and DYNROUTE_LIBRARY, each in a process of its own (both are read once)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ops.test_parity import other_isas
from test_neon import NEEDED_OF_CPU, cpu_flags

from dynroute.native import library

native = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


@native
@pytest.mark.parametrize("isa", other_isas())
def test_goldens(isa: str) -> None:
    """The engine's logits are the published implementation's with every lower instruction set too."""
    file = str(Path(__file__).parent / "test_runtime.py")
    options = ["-x", "-p", "no:cacheprovider", "-k", "goldens and cpu"]
    run = python("-m", "pytest", *options, file, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-4000:] + run.stderr[-2000:]


@native
@pytest.mark.parametrize("isa", ["portable", "avx512", "amx", "neon", "AVX2"])
def test_named(isa: str) -> None:
    """A named instruction set is used or refused in one line, which whoever asks for the backend gets too."""
    code = """
import torch, dynroute.native.library as native
print(native.why_not_loaded() or native.build_info()["isa"])
try:
    dynroute.ops.transform(torch.ones(1, 8, 2, 2), torch.ones(8, 8, 1, 1), torch.ones(8), torch.ones(8), backend="cpu")
except RuntimeError as error:
    print(error)
"""
    known, compiled = {"portable", "avx2", "avx512", "amx", "neon"}, library.build_info()["isas"]
    if isa not in known:
        wanted = f"DYNROUTE_CPU_ISA: wanted one of portable, avx2, avx512, amx, neon, got '{isa}'"
    elif isa not in compiled:
        wanted = f"DYNROUTE_CPU_ISA: '{isa}' was not compiled into this library"
    elif not NEEDED_OF_CPU.get(isa, set()) <= cpu_flags():
        wanted = f"DYNROUTE_CPU_ISA: this machine does not support '{isa}'"
    else:
        wanted = isa
    run = python("-c", "import dynroute" + code, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith(wanted)
    assert lines[1:] == ([] if wanted == isa else [f"transform: backend 'cpu' cannot be used: {lines[0]}"])


def test_another_library(tmp_path: Path) -> None:
    """It is loaded, or the import fails and says why: no silent use of the reference."""
    code = "import dynroute.native.library as native; print(native.LIBRARY, native.why_not_loaded())"
    missing, broken = tmp_path / "missing.so", tmp_path / "broken.so"
    broken.write_text("not a library")
    for file, reason in ((missing, "there is no file"), (broken, "does not load")):
        run = python("-c", code, DYNROUTE_LIBRARY=str(file))
        assert run.returncode != 0 and not run.stdout
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: DYNROUTE_LIBRARY: ") and reason in last and str(library) in last
    if library.why_not_loaded() is None:
        copy = tmp_path / "copy.so"
        copy.write_bytes(library.LIBRARY.read_bytes())
        run = python("-c", code, DYNROUTE_LIBRARY=str(copy))
        assert run.stdout.split() == [str(copy), "None"], run.stderr
