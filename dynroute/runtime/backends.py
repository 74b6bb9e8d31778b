"""The network's backends, in the registry of `dynroute.ops.backends`: what each needs, and what makes its executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.ops.backends import NETWORK, Backend, Choice, anywhere, choose, find, register, registered, why_not
from dynroute.ops.triton import launch
from dynroute.runtime.cpu.executor import CpuExecutor
from dynroute.runtime.cuda import emulator
from dynroute.runtime.reference import ReferenceExecutor
from dynroute.runtime.results import Executor
from dynroute.runtime.weights.pack import CELL_STACKS, why_not_packable

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class NetworkBackend(Backend):
    """`run(net, storage)` makes the executor.

    Attributes:
        storage: types that maps and pointwise weights may be kept in.
    """

    storage: tuple[torch.dtype, ...] = (torch.float32,)


def _native(where: Callable[[], str | None]) -> Callable[[DynamicNetwork | None], str | None]:
    """`can_run` of a backend of native kernels; `where`: why not on this machine."""

    def can_run(net: DynamicNetwork | None) -> str | None:
        reason = library.why_not_loaded()
        if reason is not None:
            return f"the native CPU library is not there: {reason}"
        reason = where()
        return why_not_packable(net) if reason is None and net is not None else reason

    return can_run


def on_gpu(net: DynamicNetwork | None) -> bool:
    """Whether a network lies on a GPU; without one, whether one could."""
    if net is None:
        return torch.cuda.is_available()
    return next(net.parameters()).device.type == "cuda"


def home(name: str) -> str:
    """The type of device that a backend computes on; of "auto", and of others that take what they are given, "cpu"."""
    return "cuda" if name == "cuda" or (name == "triton" and not launch.interpreted()) else "cpu"


def _gpu_of(net: DynamicNetwork) -> torch.device:
    """The network's, or the current one."""
    device = next(net.parameters()).device
    return device if device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def _cuda(net: DynamicNetwork, storage: torch.dtype) -> Executor:
    from dynroute.runtime.cuda.executor import CudaExecutor

    return CudaExecutor(net, storage, _gpu_of(net))


def _why_not_triton(net: DynamicNetwork | None) -> str | None:
    reason = launch.why_not(None)
    if reason is None and net is not None and (len(net.config.cell) != 1 or net.config.cell[0] not in CELL_STACKS):
        cells = ", ".join(net.config.cell)
        return f"cell: the Triton kernels run {', '.join(CELL_STACKS)}, this network has {cells}"
    return reason


def _triton(net: DynamicNetwork, storage: torch.dtype) -> Executor:
    if launch.interpreted():
        from dynroute.runtime.triton.executor import TritonExecutor

        return TritonExecutor(net, storage, torch.device("cpu"))
    from dynroute.runtime.triton.graphed import GraphedExecutor

    return GraphedExecutor(net, storage, _gpu_of(net))


def _emulated(net: DynamicNetwork, storage: torch.dtype) -> Executor:
    from dynroute.runtime.cuda.emulated import EmulatedExecutor

    return EmulatedExecutor(net, storage)


register(
    NETWORK,
    NetworkBackend("cuda", _cuda, _native(library.why_not_cuda), on_gpu, (torch.float32, *_HALVES)),
    NetworkBackend(
        "triton", _triton, _why_not_triton, lambda net: on_gpu(net) and not launch.interpreted(), launch.DTYPES
    ),
    NetworkBackend("cpu", CpuExecutor, _native(lambda: None), storage=(torch.float32, torch.bfloat16)),
    NetworkBackend("reference", lambda net, storage: ReferenceExecutor(net), anywhere),
    NetworkBackend("cuda-emulated", _emulated, _native(emulator.why_not), lambda net: False, (torch.float32, *_HALVES)),
)


def take(net: DynamicNetwork, name: str, storage: torch.dtype) -> Choice:
    """The backend of that name, or what `auto` takes, for a network whose maps are kept in `storage`; and why.

    Raises:
        ValueError: an unknown name, a backend that does not run here or not this network, with the reason, or a storage
            that it does not have.
    """
    able: dict[torch.dtype, list[str]] = {}
    for backend in registered(NETWORK):
        assert isinstance(backend, NetworkBackend)
        for dtype in backend.storage:
            able.setdefault(dtype, []).append(backend.name)
    if storage not in able:
        *others, last = map(str, able)
        raise ValueError(f"storage: wanted {', '.join(others)} or {last}, got {storage}")
    reason = None if name == "auto" else why_not(NETWORK, name, net)
    if reason is not None:
        raise ValueError(f"backend {name!r}: {reason}")
    named = find(NETWORK, name)
    choice = choose(NETWORK, net) if named is None else Choice(named, "chosen by name")
    if choice.backend.name not in able[storage]:
        *others, last = sorted(known for known in able[storage] if known != "cuda-emulated")
        wanted = f"{', '.join(others)} or {last}"
        raise ValueError(f"storage: {storage} wants the {wanted} backend, got {choice.backend.name} ({choice.reason})")
    return choice
