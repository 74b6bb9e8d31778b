"""Triton's kernels without a GPU: compiled out of what they are launched with, and run by tools/ptxsim.

In a process where TRITON_INTERPRET is not set. Triton itself says what a launch is specialised to (types, what 16
divides, what is 1), so kernels are those that a GPU would run; operators are called as ever, with tensors on the CPU.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dynroute.ops.triton import configs, launch
from dynroute.runtime.cuda import emulator

WARP = 32


def why_not(emulates: bool = False) -> str | None:
    """None if kernels can be compiled (and emulated) in this process, else the reason in one line."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if launch.interpreted():
        return "TRITON_INTERPRET is set: kernels would be interpreted, not compiled"
    if emulates and not (emulator.ROOT / "tools" / "ptxsim").is_dir():
        return "needs a source checkout (tools/ptxsim)"
    if emulates and shutil.which("g++") is None:
        return "g++ was not found"
    return None


class Launched(NamedTuple):
    """A launch of a kernel.

    Attributes:
        kernel: its name.
        code: what Triton made of it for these arguments (`CompiledKernel`): the same object when it comes again.
        grid: programs in each dimension.
        counts: what the emulator returned; empty where it did not run.
    """

    kernel: str
    code: Any
    grid: tuple[int, int, int]
    counts: dict[str, Any]

    @property
    def constants(self) -> dict[str, Any]:
        """Its constexpr parameters and options, by name; not what is 1 or None by chance."""
        source, metadata = self.code.src, self.code.metadata
        named = {parameter.name: (place,) for place, parameter in enumerate(source.fn.params) if parameter.is_constexpr}
        options = {name: getattr(metadata, name) for name in ("num_warps", "num_stages")}
        return {name: source.constants[place] for name, place in named.items()} | options


class _Device:
    """As much of a GPU as Triton's compiler asks its driver for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> str:  # what Triton keeps compiled kernels by
        return f"sm_{self.arch}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, WARP)


@contextmanager
def compiled(arch: int, run: Callable[..., dict[str, Any]] | None = None) -> Iterator[list[Launched]]:
    """Within, kernels are compiled for an architecture, with its cuts, instead of launched; the list is of launches.

    Args:
        arch: 80 for sm_80.
        run: what runs a launch, (code, arguments by name, grid); None computes nothing: results are what memory held.

    Raises:
        RuntimeError: `why_not`.
    """
    from triton.runtime import driver

    if (reason := why_not()) is not None:
        raise RuntimeError(f"cannot compile Triton's kernels: {reason}")
    launches: list[Launched] = []

    class Elsewhere:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def go(*args: Any, **named: Any) -> None:
                code = self.kernel.run(*args, grid=grid, warmup=True, **named)
                x, y, z = (*grid, 1, 1)[:3]
                values = dict(zip(self.kernel.arg_names, args)) | named
                launches.append(Launched(code.name, code, (x, y, z), run(code, values, (x, y, z)) if run else {}))

            return go

    before = launch.elsewhere
    launch.elsewhere = Elsewhere
    driver.set_active(_Device(arch))
    try:
        with configs.assume(arch):
            yield launches
    finally:
        launch.elsewhere = before
        driver.set_active(None)  # the machine's own, when it is next asked for


@contextmanager
def emulated(**options: Any) -> Iterator[list[Launched]]:
    """Within, kernels run on the emulator, compiled for sm_80 (of wgmma it knows nothing), on the tensors' own memory.

    Accesses out of bounds and races in shared memory raise.

    Args:
        options: of the emulator's launch, beside races=raise: global_races, order, seed, counters.

    Raises:
        RuntimeError: `why_not`.
    """
    if (reason := why_not(emulates=True)) is not None:
        raise RuntimeError(f"cannot emulate Triton's kernels: {reason}")
    modules: dict[Any, Any] = {}

    def run(code: Any, values: dict[str, Any], grid: tuple[int, int, int]) -> dict[str, Any]:
        if code not in modules:
            modules[code] = emulator._ptxsim().load(code.asm["ptx"])
        module = modules[code]
        given = [values[name] for name, kind in code.src.signature.items() if kind != "constexpr"]
        args = [value.data_ptr() if isinstance(value, Tensor) else value for value in given]
        args += [None] * (len(module.parameters(code.name)) - len(args))  # scratch that Triton appends, unused
        return module.launch(
            code.name, grid, WARP * code.metadata.num_warps, args, smem=code.metadata.shared,
            extra_buffers=memory([value for value in given if isinstance(value, Tensor)]),
            **{"races": "raise", **options},
        )  # fmt: skip

    with compiled(80, run) as launches:
        yield launches


@cache
def usage(code: Any) -> dict[str, int]:
    """What a kernel takes, by the tools that Triton brings: a thread's registers, its bytes of stack and local memory,
    and instructions that access them (registers that were spilled); a program's shared bytes."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        said = _said(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        registers, stack, local = map(int, re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)[0])
        sass = _said(knobs.nvidia.nvdisasm.path, "-c", file.name) if stack else ""
    return {
        "registers": registers, "stack_bytes": stack, "local_bytes": local,
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)), "shared_bytes": code.metadata.shared,
    }  # fmt: skip


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def memory(tensors: list[Tensor]) -> list[np.ndarray[Any, Any]]:
    """The bytes that tensors lie in, each once: those that overlap are one array."""
    spans = []
    for tensor in tensors:
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
            spans.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
    merged: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if merged and first < merged[-1][1]:
            first, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((first, end))
    return [np.ctypeslib.as_array((ctypes.c_uint8 * (end - at)).from_address(at)) for at, end in merged]
