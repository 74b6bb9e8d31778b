"""The network on the CPU engine."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.native.contract import SampleMacs
from dynroute.native.network import network_buffer, network_forward, network_workspace
from dynroute.runtime.cpu.outputs import OutputMemory
from dynroute.runtime.cpu.tuning_file import load_tuning
from dynroute.runtime.flops import tell_counters
from dynroute.runtime.results import Executed, Executor
from dynroute.runtime.weights.pack import CpuLayout, pack


class CpuExecutor(Executor):
    """The native engine: one call runs the whole network.  Calls may overlap, each with a workspace of its own."""

    _snapshot = ("packed", "in_tiles")

    def __init__(self, net: DynamicNetwork, storage: torch.dtype) -> None:
        self.packed = pack(net, CpuLayout(storage))
        self.in_tiles = _in_tiles()
        self._begin()

    def _begin(self) -> None:
        reason = library.why_not_loaded()
        if reason is None and self.in_tiles != _in_tiles():
            kinds = ("panels", "AMX tiles")
            reason = f"its weights lie in {kinds[self.in_tiles]}, kernels here read {kinds[not self.in_tiles]}"
        if reason is not None:
            raise RuntimeError(f"a runtime made elsewhere cannot run here: {reason}; make it here, with optimize")
        load_tuning()  # what was measured on this machine, the first time
        self._outputs = OutputMemory()
        self._idle: list[Tensor] = []
        self._sizes: dict[tuple[int, ...], int] = {}
        self._lock = threading.Lock()

    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        packed = self.packed
        workspace = self._take(self._floats(*images.shape))
        try:
            logits = self._outputs.lend((len(images), packed.config.num_classes, height, width))
            alphas, node_macs, sample_macs = network_forward(
                images, packed.weights, packed.table, packed.config, gates, workspace, logits
            )
        finally:
            with self._lock:
                self._idle.append(workspace)
        samples = SampleMacs(*sample_macs.unbind(1))
        tell_counters(node_macs, samples)
        return Executed(logits, alphas, node_macs, samples)

    @property
    def workspace_bytes(self) -> int:
        with self._lock:
            return sum(workspace.nbytes for workspace in self._idle)

    @property
    def weight_bytes(self) -> int:
        return self.packed.weights.nbytes

    def _floats(self, n: int, channels: int, h: int, w: int) -> int:
        """Workspace of a call, asked for once: the operator sizes what it runs in by itself, and checks."""
        key = (n, h, w, torch.get_num_threads())
        if key not in self._sizes:
            self._sizes[key] = network_workspace(n, h, w, self.packed.config)
        return self._sizes[key]

    def _take(self, floats: int) -> Tensor:
        with self._lock:
            workspace = self._idle.pop() if self._idle else None
        if workspace is None or workspace.numel() < floats:
            workspace = network_buffer(floats)
        return workspace


def _in_tiles() -> bool:
    """Whether the kernels in use read weights in tiles, as far as they can."""
    return bool(library.build_info()["isa"] == "amx")
