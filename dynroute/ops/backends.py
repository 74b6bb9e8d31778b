"""Backends: which there are for each operator and for the network, which is taken, and why one cannot be.

One registry.  An operator's module, and `dynroute.runtime.backends` for the network, register what they have, fastest
first.  `auto` takes the first that runs; a backend that is named is taken or refused with its reason, never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd
from dynroute.ops.triton import launch

# All that may be named, whether or not a target has them.  The last is the network's, for who develops kernels.
USERS = ("cuda", "triton", "cpu", "reference")
NAMES = (*USERS, "cuda-emulated")
NETWORK = "network"


@dataclass(frozen=True)
class Backend:
    """One way to compute a target.

    Attributes:
        name: one of `NAMES`.
        run: what computes: an operator's function, or what makes the network's executor.
        can_run: why it cannot be used for what it is given (an operator's first tensor, the network), in one line, or
            None if it can; given None, whether it runs on this machine at all.
        automatic: whether `auto` may take it for what it is given; a backend that is named needs not be.
    """

    name: str
    run: Callable[..., Any]
    can_run: Callable[[Any], str | None]
    automatic: Callable[[Any], bool] = lambda given: True


class Choice(NamedTuple):
    """What is taken, and why: in one line, the faster ones that were refused with their reasons first."""

    backend: Backend
    reason: str


_REGISTRY: dict[str, list[Backend]] = {}


def register(target: str, *backends: Backend) -> None:
    """Registers the backends of an operator (by its name) or of the network (`NETWORK`), fastest first."""
    _REGISTRY[target] = list(backends)


def targets() -> list[str]:
    """The operators' names, and `NETWORK` last if it is registered."""
    return sorted(_REGISTRY, key=lambda target: (target == NETWORK, target))


def registered(target: str) -> list[Backend]:
    """The backends of a target, fastest first."""
    return list(_REGISTRY[target])


def find(target: str, name: str) -> Backend | None:
    """The backend of that name, or None where the target has none."""
    return next((backend for backend in _REGISTRY[target] if backend.name == name), None)


def why_not(target: str, name: str, given: Any = None) -> str | None:
    """Why a target's backend cannot be used (for what is given, or at all), in one line, or None if it can."""
    if name not in NAMES:
        return f"unknown; wanted auto or one of {', '.join(NAMES)}"
    backend = find(target, name)
    return "it is not built yet" if backend is None else backend.can_run(given)


def choose(target: str, given: Any = None) -> Choice:
    """What `auto` takes.

    Raises:
        RuntimeError: none of the target's backends runs.
    """
    refused: list[str] = []
    for backend in _REGISTRY[target]:
        if not backend.automatic(given):
            continue
        reason = backend.can_run(given)
        if reason is None:
            return Choice(backend, "; ".join([*refused, f"{backend.name} is the fastest that runs here"]))
        refused.append(f"{backend.name} does not run here: {reason}")
    raise RuntimeError(f"{target}: no backend runs here: {'; '.join(refused)}")


def operator(op: str, name: str, x: Tensor) -> Callable[..., Any]:
    """What computes an operator on `x`, its first tensor.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend cannot be used, with the reason.
    """
    if name == "auto":  # no reasons are put into words here: this is called for every operator
        for backend in _REGISTRY[op]:
            if backend.can_run(x) is None and backend.automatic(x):
                return backend.run
    if name not in USERS:
        raise ValueError(f"{op}: backend: wanted one of auto, {', '.join(USERS)}, got {name!r}")
    reason = why_not(op, name, x)
    named = find(op, name)
    if named is None or reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} cannot be used: {reason}")
    return named.run


def cpu_kernels(op: str) -> Backend:
    """The CPU kernels of an operator, `torch.ops.dynroute.<op>`."""

    return Backend("cpu", _native(op), on_cpu)


def cuda_kernels(op: str) -> Backend:
    """The CUDA kernels of an operator, `torch.ops.dynroute.<op>` too: its dispatcher goes by the tensors' device."""

    return Backend("cuda", _native(op), on_cuda)


def triton_kernels(op: str) -> Backend:
    """The Triton kernels of an operator, `torch.ops.dynroute_triton.<op>`; interpreted on the CPU only if named."""

    def run(*arguments: Any) -> Any:
        from dynroute.ops.triton import operators

        return autograd.call(operators.NAMESPACE, op, *arguments)

    return Backend("triton", run, launch.why_not, lambda given: not launch.interpreted())


def _native(op: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:  # looked up when it is called: there may be no library
        return autograd.call("dynroute", op, *arguments)

    return run


def on_cuda(x: Tensor | None) -> str | None:
    """`can_run` of the operators' CUDA kernels."""
    reason = library.why_not_cuda()
    if reason is not None or x is None:
        return reason
    if x.device.type != "cuda":
        return f"the tensors are on {x.device}"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"{x.dtype} is not float32, float16 or bfloat16"
    return None


def on_cpu(x: Tensor | None) -> str | None:
    """`can_run` of the operators' CPU kernels."""
    if library.why_not_loaded() is not None:
        return library.why_not_loaded()
    if x is None:
        return None
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    lowered = x.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled("cpu")  # float32 again inside
    if x.dtype not in (torch.float32, torch.float64) and not lowered:
        return f"{x.dtype} is not float32 or float64"
    return None


def anywhere(given: Any) -> None:
    """`can_run` of what runs everywhere."""
