"""`optimize`: from a network to a runtime; one class whatever the backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynroute import _native, planner
from dynroute.cost.ledger import CostTables
from dynroute.models.network import DynamicNetwork, Output, check_inputs
from dynroute.models.space import PART_NAMES, SCALES
from dynroute.models.stem import pad_images
from dynroute.ops.network import network_buffer, network_forward, network_workspace
from dynroute.runtime.folding import pack, why_not_packable
from dynroute.runtime.outputs import OutputMemory
from dynroute.runtime.reference import ReferenceExecutor

BACKENDS = ("reference", "cpu", "cuda", "triton")
_CELL_AND_PATHS = [PART_NAMES.index(part) for part in ("cell", "up", "keep", "down")]


@dataclass
class RunOutput(Output):
    """What a runtime returns: the network's fields and the work that was really done.

    Attributes:
        executed_macs: int64 [N], every convolution done for the sample (stem, init, gates, cells, paths, decoder), at
            true output sizes, taps on zero padding counted, recomputed halo not.
        executed_nodes: int64 [N,L+1,4,5], the same for each node's gate, cell, up, keep (none), down.
        halo_macs: int64 [N], convolution work done twice because tiles overlap.
    """

    executed_macs: Tensor
    executed_nodes: Tensor
    halo_macs: Tensor

    @property
    def space_macs(self) -> Tensor:
        """int64 [N]: the part of `executed_macs` in the routing space, cells and paths."""
        return self.executed_nodes[..., _CELL_AND_PATHS].sum((1, 2, 3))


@dataclass
class Executed:
    """What an executor hands back: logits, alphas, and MACs per node part and in stem, decoder and halo ([N] each)."""

    logits: Tensor
    gates: Tensor
    nodes: Tensor
    stem: Tensor
    decoder: Tensor
    halo: Tensor


class CpuExecutor:
    """The native engine: one call runs the whole network.  Calls may overlap, each with a workspace of its own."""

    def __init__(self, net: DynamicNetwork, storage: torch.dtype) -> None:
        self.packed = pack(net, storage)
        planner.load_tuning()  # what was measured on this machine, the first time
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

    def _take(self, floats: int) -> Tensor:
        with self._lock:
            workspace = self._idle.pop() if self._idle else None
        if workspace is None or workspace.numel() < floats:
            workspace = network_buffer(floats)
        return workspace


def why_not(backend: str, net: DynamicNetwork | None = None) -> str | None:
    """None if `backend` runs here (and runs `net`, if given), else the reason in one line."""
    if backend == "reference":
        return None
    if backend == "cpu":
        reason = _native.why_not_loaded()
        if reason is not None:
            return f"the native CPU library is not there: {reason}"
        return why_not_packable(net) if net is not None else None
    if backend in BACKENDS:
        return f"this version has no {backend} kernels yet"
    return f"unknown; wanted auto or one of {', '.join(BACKENDS)}"


class Runtime:
    """Inference with what `optimize` chose.

    Attributes:
        backend: the backend's name.
        reason: why it was chosen.
        config: the network's `NetworkConfig`.
        storage: what maps and weights are kept in.
    """

    def __init__(self, net: DynamicNetwork, backend: str, reason: str, storage: torch.dtype = torch.float32) -> None:
        self.backend, self.reason, self.config, self.storage = backend, reason, net.config, storage
        self._execute: Callable[[Tensor, Tensor | None, int, int], Executed] = (
            CpuExecutor(net, storage) if backend == "cpu" else ReferenceExecutor(net)
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, gates: Tensor | None = None) -> RunOutput:
        """images float32 [N,3,H,W], normalised, any size and any N; gates as in the network's forward.

        Raises:
            ValueError: images or gates of another shape, type or device; raised before anything is computed.
        """
        if images.dtype != torch.float32 or images.device.type != "cpu":
            raise ValueError(f"images: wanted float32 on the CPU, got {images.dtype} on {images.device}")
        forced = check_inputs(images, gates, self.config)
        h, w = images.shape[-2:]
        padded = pad_images(images, self.config.small_gate).contiguous()
        done = self._execute(padded, forced, h, w)
        tables = self.costs(h, w)
        executed = done.nodes.sum((1, 2, 3)) + done.stem + done.decoder
        return RunOutput(
            done.logits, done.gates, tables.expected(done.gates), tables.real(done.gates),
            executed, done.nodes, done.halo,
        )  # fmt: skip

    @property
    def workspace_bytes(self) -> int:
        """Memory held between calls for maps, grown to the largest call so far; 0 on the reference backend."""
        return self._execute.workspace_bytes if isinstance(self._execute, CpuExecutor) else 0

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights; 0 on the reference backend, which keeps the network's own."""
        return self._execute.packed.weights.nbytes if isinstance(self._execute, CpuExecutor) else 0

    def costs(self, height: int, width: int) -> CostTables:
        """Cost tables at an input of height x width pixels."""
        return self.config.costs(height, width)

    def all_open_gates(self) -> Tensor:
        """float32 [L+1,4,3] of ones: forces every cell and path open."""
        return torch.ones(self.config.layers + 1, SCALES, 3)

    def __repr__(self) -> str:
        c = self.config
        return f"Runtime(backend={self.backend!r}, layers={c.layers}, channels={c.channels}; {self.reason})"


def optimize(net: DynamicNetwork, backend: str = "auto", storage: torch.dtype = torch.float32) -> Runtime:
    """Makes the inference runtime of a network: a snapshot of its weights in evaluation mode.

    Args:
        net: the network; it is not changed, and later changes to it do not reach the runtime.
        backend: "cpu" (native kernels), "reference" (plain PyTorch, slow, the definition), or "auto": the fastest
            that runs here, with the reason in `Runtime.reason`.
        storage: torch.float32, or torch.bfloat16 on the CPU backend: maps and pointwise weights then take half the
            memory; everything is still computed in float32 and rounded once, when it is stored.  Images and logits
            stay float32.  See docs/design.md for the error.

    Raises:
        ValueError: the named backend is unknown or does not run here, with the reason, never a silent fallback; or a
            storage that the backend does not have.
    """
    if storage not in (torch.float32, torch.bfloat16):
        raise ValueError(f"storage: wanted torch.float32 or torch.bfloat16, got {storage}")
    if backend != "auto":
        reason = why_not(backend, net)
        if reason is not None:
            raise ValueError(f"backend {backend!r}: {reason}")
        why = "chosen by name"
    else:
        reason = why_not("cpu", net)
        backend = "cpu" if reason is None else "reference"
        why = (
            "the native CPU library is there and runs this network"
            if reason is None
            else f"cpu does not run here: {reason}"
        )
    if backend != "cpu" and storage != torch.float32:
        raise ValueError(f"storage: {storage} wants the cpu backend, got {backend} ({why})")
    return Runtime(net, backend, why, storage)
