"""How Triton's kernels are launched: whether they run here, and how their work is cut.

Kernels read maps in channels_last. A program has a tile of a sample's pixels, and channels; a sample that takes no part
is asked for by its program, on the device: nothing waits for a mask.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INSTALLED = find_spec("triton") is not None  # asked here, as torch.compile cannot trace the question


def interpreted() -> bool:
    """Whether kernels run on the CPU, by Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(x: Tensor | None) -> str | None:
    """`can_run` of the operators' Triton kernels."""
    if not INSTALLED:
        return "triton is not installed"
    if not interpreted() and not torch.cuda.is_available():
        return "triton needs a GPU; TRITON_INTERPRET=1 runs it on the CPU, slowly"
    if x is None:
        return None
    wanted = "cpu" if interpreted() else "cuda"
    if x.device.type != wanted:
        return f"the tensors are on {x.device}, TRITON_INTERPRET is {'' if interpreted() else 'not '}set"
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, float16 or bfloat16"
    return None


# What kernels are launched by instead, `elsewhere(kernel)[grid](...)`: who emulates or records them sets it.
elsewhere: Callable[[Any], Any] | None = None


def wrapped(kernel: Any) -> Any:
    """The kernel of an operator: as compilers see it, or, interpreted, as it is."""
    return direct(kernel) if elsewhere is not None or interpreted() else torch.library.wrap_triton(kernel)


def direct(kernel: Any) -> Any:
    """The kernel as it is: outside operators a wrapped one is a call of torch's dispatcher at each launch."""
    return elsewhere(kernel) if elsewhere is not None else kernel


def nhwc(x: Tensor) -> Tensor:
    """The map in channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def by_taps(depthwise: Tensor) -> Tensor:
    """[C, 1, 3, 3] as [9, C]: the weights of neighbouring channels side by side, as those are in a map."""
    return depthwise.view(-1, 9).t().contiguous()


def some(value: Tensor | None, other: Tensor) -> Tensor:
    """The tensor, or any other: a pointer for what a kernel does not read."""
    return other if value is None else value


def strided(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def check(holds: bool, op: str, what: str, wanted: str, got: object) -> None:
    """Raises RuntimeError as the native operators' checks do."""
    if not holds:
        raise RuntimeError(f"{op}: {what}: wanted {wanted}, got {got}")
