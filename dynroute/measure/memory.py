"""What a call takes of memory: torch's allocations, event by event, and what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def allocations(call: Callable[[], object]) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) of torch's CPU allocator during a call, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        held = call()
    del held  # so that the outputs' release is not among the events
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    found = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return [size for _, size in sorted(found, key=lambda event: event[0])]


def peak(sizes: list[int]) -> int:
    """Most bytes alive at once."""
    alive = most = 0
    for size in sizes:
        alive += size
        most = max(most, alive)
    return most


def saved_bytes(step: Callable[[], object], net: torch.nn.Module) -> int:
    """Bytes that autograd keeps for the backward, each piece of memory once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())
