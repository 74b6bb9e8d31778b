"""Which kernels run: DYNROUTE_CPU_ISA, each in a process of its own (it is read once)."""

from __future__ import annotations

import pytest

from dynroute.native import library
from tests.support.isa import NEEDED_OF_CPU, amx, cpu_flags, other_isas
from tests.support.processes import ROOT, python

native = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


@native
@pytest.mark.parametrize("isa", other_isas())
def test_goldens(isa: str) -> None:
    """The engine's logits are the published implementation's with every lower instruction set too."""
    file = str(ROOT / "tests" / "runtime" / "test_goldens.py")
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


@native
@pytest.mark.parametrize("isa, message", [("sse9", "wanted one of"), ("neon", "not compiled"), ("avx2", None)])
def test_isa_by_name(isa: str, message: str | None) -> None:
    """A named instruction set is used or refused; refused, the package still imports and says why."""
    info = library.build_info()
    if (isa in info["isas"]) != (message is None):
        pytest.skip("another machine's case")
    code = "import dynroute.native.library as n; print(n.why_not_loaded() or n.build_info()['isa'])"
    run = python("-c", code, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stderr
    assert (message or isa) in run.stdout


@amx
def test_a_lower_set_can_be_named() -> None:
    code = "import dynroute.native.library as n; i = n.build_info(); print(i['isa'], '|', i['why'])"
    run = python("-c", code, DYNROUTE_CPU_ISA="avx512")
    assert run.stdout.strip() == "avx512 | named by DYNROUTE_CPU_ISA"
