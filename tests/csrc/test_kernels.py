"""The kernels of each instruction set without torch (kernels_check.cpp, train_check.cpp); NEON on other machines under
emulation.

Sources and flags are those of CMakeLists.txt. On a PC NEON needs a cross compiler and an emulator (Debian:
g++-aarch64-linux-gnu, qemu-user); without them its tests are skipped.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.isa import NEEDED_OF_CPU, cpu_flags

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "csrc"
KERNELS = INCLUDE / "cpu" / "kernels"
ARM = platform.machine() in ("aarch64", "arm64")
CROSS_COMPILER, CROSS_LIBRARIES = "aarch64-linux-gnu-g++", Path("/usr/aarch64-linux-gnu")


def from_cmake(name: str) -> list[str]:
    found = re.search(rf"set\({name} ([^)]+)\)", (ROOT / "CMakeLists.txt").read_text())
    assert found, f"CMakeLists.txt sets no {name}"
    return found[1].split()


def compiler(isa: str) -> str:
    """The C++ compiler for this instruction set, or the test is skipped."""
    if isa != "neon" or ARM:
        found = shutil.which("c++") or shutil.which("g++")
        if found is None:
            pytest.skip("no C++ compiler")
        return found
    found = shutil.which(CROSS_COMPILER)
    if found is None:
        pytest.skip(f"no {CROSS_COMPILER}: NEON kernels cannot be compiled here")
    return found


def emulator(isa: str) -> list[str]:
    if isa != "neon" or ARM:
        return []
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        pytest.skip("no qemu-aarch64: NEON kernels cannot be run here")
    return [found, "-L", str(CROSS_LIBRARIES)]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr[-4000:]
    assert done.returncode == 0, f"{' '.join(command)}: exit status {done.returncode}\n{said}"
    return done.stdout


Objects = Callable[[str, str], list[Path]]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """(compiler, instruction set) -> object files of its kernels, compiled once."""
    done: dict[tuple[str, str], list[Path]] = {}

    def compile_all(cxx: str, isa: str) -> list[Path]:
        if (cxx, isa) in done:
            return done[cxx, isa]
        folder = tmp_path_factory.mktemp(isa)
        flags = ["-std=c++17", "-O2", "-Werror", *from_cmake("KERNEL_FLAGS")]
        flags += from_cmake("AVX512_FLAGS") if isa == "amx" else []
        flags += from_cmake(f"{isa.upper()}_FLAGS") if isa in ("avx2", "avx512", "amx") else []
        flags += ["-Wno-psabi"] if isa == "portable" else []
        flags += [f"-DDYNROUTE_TARGET={isa}", f"-DDYNROUTE_TARGET_{isa.upper()}"]
        made = [folder / f"{name}.o" for name in from_cmake("KERNELS") + (["pointwise_amx"] if isa == "amx" else [])]
        commands = [[cxx, *flags, f"-I{INCLUDE}", "-c", str(KERNELS / f"{o.stem}.cpp"), "-o", str(o)] for o in made]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, commands))
        done[cxx, isa] = made
        return made

    return compile_all


STAGES = ["forward", "sums", "apply", "product", "depthwise", "paths_back", "paths", "gate"]
# the training kernels once with float maps of raw outputs, once with narrow ones
PROGRAMS = {
    "kernels_check": ["sepconv", "pulled", "transform", "aggregate", "gate", "upsample"],
    "train_check": [*STAGES, *STAGES, "aggregate", "loss"],
}


@pytest.mark.parametrize("isa", ["neon", "portable", "avx2", "avx512", "amx"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels(program: str, isa: str, objects: Objects, tmp_path: Path) -> None:
    """Every kernel agrees with the portable one in double precision, and touches nothing beyond its maps."""
    if program == "train_check" and isa == "amx":
        pytest.skip("a machine with AMX trains on its AVX-512 kernels")
    if isa != "neon" and not NEEDED_OF_CPU[isa] <= cpu_flags():
        pytest.skip(f"this machine does not support {isa}")
    cxx, emulated = compiler(isa), emulator(isa)
    parts = {path for name in (isa, "portable") for path in objects(cxx, name)}
    built, source = str(tmp_path / program), Path(__file__).with_name(f"{program}.cpp")
    flags = ["-std=c++17", "-O1", "-Wno-psabi", f"-DDYNROUTE_CHECK={isa}"]
    flags += ["-DDYNROUTE_CHECK_TILES"] if isa == "amx" else []
    run([cxx, *flags, f"-I{INCLUDE}", str(source), *map(str, parts), "-o", built])
    report = run([*emulated, built])
    print(report)  # the largest errors, with pytest -s
    assert re.findall(r"^(\w+) +[1-9]\d* cases", report, re.MULTILINE) == PROGRAMS[program]


@pytest.mark.parametrize("source", ["kernels/isa.cpp", "network/engine.cpp"])
def test_common_code_compiles_for_arm(source: str) -> None:
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-DDYNROUTE_HAS_NEON"]
    run([compiler("neon"), *flags, f"-I{INCLUDE}", str(INCLUDE / "cpu" / source)])
