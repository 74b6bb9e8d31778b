"""What nvcc made of the CUDA kernels: registers, spills, shared memory, instructions, occupancy.  No GPU is needed.

Needs nvcc, and cuobjdump (of the CUDA toolkit, or `pip install nvidia-cuda-cuobjdump`) for the instructions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

INCLUDE = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = INCLUDE / "cuda" / "kernels"
ARCHITECTURES = ("sm_80", "sm_90")
WARP = 32


@dataclass
class Kernel:
    """One entry point for one architecture.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread: 0, or registers were indexed at run time or ran out.
        spills: bytes stored and loaded again because registers ran out.
        shared: bytes of static shared memory.
        code: SASS mnemonics with their modifiers, in order; empty without cuobjdump.
    """

    source: str
    name: str
    arch: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    code: list[str] = field(default_factory=list)

    @property
    def instructions(self) -> Counter[str]:
        """Mnemonics -> occurrences."""
        return Counter(self.code)

    @property
    def dtype(self) -> str:
        """f32, f16 or bf16."""
        return self.name.rpartition("_")[2]

    def counted(self, pattern: str) -> int:
        """Instructions whose mnemonic matches."""
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))

    @property
    def tensor(self) -> int:
        """mma instructions."""
        return self.counted(r"HMMA\.16816\.F32")

    @property
    def local(self) -> int:
        """Accesses of local memory."""
        return self.counted(r"(LDL|STL)\b")

    def accesses(self, kind: str) -> dict[int, int]:
        """Bits -> instructions, of kind "load" or "store" in global memory; asynchronous copies are loads."""
        widths: Counter[int] = Counter()
        for name, n in self.instructions.items():
            asynchronous = name.startswith("LDGSTS")
            if not (asynchronous or name.startswith("LDG.")) if kind == "load" else not name.startswith("STG."):
                continue
            wide = re.search(r"\.(64|128)\b", name.replace("BYPASS.", "").replace("LTC128B", ""))
            narrow = re.search(r"\.[US](8|16)\b", name)
            widths[int((wide or narrow).group(1)) if wide or narrow else 32] += n  # type: ignore[union-attr]
        return dict(widths)


def sources() -> list[Path]:
    """The kernels' files."""
    return sorted(SOURCES.glob("*.cu"))


@cache
def cuobjdump() -> str | None:
    """The tool's path, or None."""
    beside = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    return shutil.which("cuobjdump") or (str(beside[-1]) if beside else None)


@cache
def compile_all() -> list[Kernel]:
    """Every kernel for every architecture.

    Raises:
        RuntimeError: nvcc is missing, or a source does not compile.
    """
    if shutil.which("nvcc") is None:
        raise RuntimeError("nvcc was not found")
    jobs = [(source, arch) for source in sources() for arch in ARCHITECTURES]
    with ThreadPoolExecutor() as pool:
        return [kernel for kernels in pool.map(lambda job: compile_one(*job), jobs) for kernel in kernels]


def compile_one(source: Path, arch: str) -> list[Kernel]:
    """The kernels of one file for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            f"-I{INCLUDE}",
            f"-arch={arch}",
            "-cubin",
            "-Xptxas",
            "-v",
            str(source),
            "-o",
            str(cubin),
        ]
        log = _run(command)
        kernels = {kernel.name: kernel for kernel in _parse(log, source.stem, arch)}
        tool = cuobjdump()
        if tool is not None:
            _count(_run([tool, "-sass", str(cubin)]), kernels)
    return list(kernels.values())


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr + done.stdout)[:2000]}")
    return done.stdout + done.stderr


def _parse(log: str, source: str, arch: str) -> list[Kernel]:
    found: list[Kernel] = []
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            found.append(Kernel(source, match[1], arch))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[-1].stack, found[-1].spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            found[-1].registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1].shared = int(shared[1]) if shared else 0
    return found


def _count(sass: str, kernels: dict[str, Kernel]) -> None:
    current: Kernel | None = None
    for line in sass.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            current = kernels.get(match[1])
        elif current and (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)):
            current.code.append(match[1])


@dataclass(frozen=True)
class Device:
    """A GPU as data sheets give it: leads for estimates, nothing measured.

    Attributes:
        tensor: dense 16-bit tensor-core FLOP/s with float32 accumulation.
        simt: float32 FLOP/s.
        bandwidth: of device memory, bytes/s.
        l2: bytes.
        clock: boost, cycles/s; a multiprocessor issues four warps' instructions in each.
    """

    name: str
    capability: int
    multiprocessors: int
    registers: int  # of a multiprocessor
    shared: int  # bytes of a multiprocessor
    shared_per_block: int
    warps: int  # of a multiprocessor
    blocks: int
    tensor: float
    simt: float
    bandwidth: float
    l2: int
    clock: float


DEVICES = (
    Device("H200", 90, 132, 65536, 228 << 10, 227 << 10, 64, 32, 989e12, 67e12, 4.8e12, 50 << 20, 1.98e9),
    Device("A100", 80, 108, 65536, 164 << 10, 163 << 10, 64, 32, 312e12, 19.5e12, 2.0e12, 40 << 20, 1.41e9),
    Device("RTX 4090", 89, 128, 65536, 100 << 10, 99 << 10, 48, 24, 165e12, 82.6e12, 1.008e12, 72 << 20, 2.52e9),
)
RESERVED_SHARED = 1 << 10  # of each block, by the system


def resident_blocks(device: Device, registers: int, threads: int, shared: int) -> int:
    """Blocks of a kernel that a multiprocessor holds at once (CUDA's occupancy rules: registers are handed out in 256s
    to a warp)."""
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // 256) * 256
    by_registers = device.registers // per_warp // warps if registers else device.blocks
    by_shared = device.shared // (shared + RESERVED_SHARED) if shared <= device.shared_per_block else 0
    return max(0, min(device.blocks, device.warps // warps, by_registers, by_shared))
