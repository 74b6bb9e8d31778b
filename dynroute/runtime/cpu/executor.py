"""The network on the CPU engine."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.native.network import network_buffer, network_forward, network_workspace
from dynroute.runtime.cpu.outputs import OutputMemory
from dynroute.runtime.cpu.tuning_file import load_tuning
from dynroute.runtime.results import Executed, Executor
from dynroute.runtime.weights.pack import CpuLayout, pack


class CpuExecutor(Executor):
    """The native engine: one call runs the whole network.  Calls may overlap, each with a workspace of its own."""

    def __init__(self, net: DynamicNetwork, storage: torch.dtype) -> None:
        self.packed = pack(net, CpuLayout(storage))
        load_tuning()  # what was measured on this machine, the first time
        self._outputs = OutputMemory()
        self._idle: list[Tensor] = []
        self._lock = threading.Lock()

    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        n, _, h, w = images.shape
        config = self.packed.config
        workspace = self._take(network_workspace(n, h, w, config))
        try:
            logits = self._outputs.lend((n, config[3], height, width))
            alphas, nodes, other = network_forward(
                images, self.packed.weights, self.packed.table, config, gates, workspace, logits
            )
        finally:
            with self._lock:
                self._idle.append(workspace)
        return Executed(logits, alphas, nodes, other[:, 0], other[:, 1], other[:, 2])

    @property
    def workspace_bytes(self) -> int:
        with self._lock:
            return sum(workspace.nbytes for workspace in self._idle)

    @property
    def weight_bytes(self) -> int:
        return self.packed.weights.nbytes

    def _take(self, floats: int) -> Tensor:
        with self._lock:
            workspace = self._idle.pop() if self._idle else None
        if workspace is None or workspace.numel() < floats:
            workspace = network_buffer(floats)
        return workspace
