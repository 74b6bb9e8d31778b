"""The CUDA backend: one graph per shape, no word from the device while it runs.

The first call of a shape launches its list directly, then records it into a CUDA graph; later ones launch `begin`,
which tells the device where this call's inputs and outputs are, and the graph.  All work goes to the current stream.
Calls share one workspace: one on another stream than the call before waits for it, on the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits, NetworkPlan
from dynroute.runtime.cuda.planned import Io, PlannedExecutor

KEPT_SHAPES = 8


class _Shape:
    """What is kept for one shape: its launches for the workspace's address, the tables they read, the graph."""

    def __init__(self, plan: NetworkPlan, workspace: Tensor, weights: Tensor, table: Tensor) -> None:
        own: list[Tensor] = []
        addresses = []
        for buffer in plan.buffers()[0]:
            if buffer.offset >= 0:
                addresses.append(workspace.data_ptr() + buffer.offset)
            else:
                own.append(workspace.new_empty(buffer.bytes))
                addresses.append(own[-1].data_ptr())
        self.launches, rows = plan.launches(addresses, weights.data_ptr(), table)
        (self.rows,) = own
        self.rows.copy_(rows)
        self.graph: torch.cuda.CUDAGraph | None = None


class CudaExecutor(PlannedExecutor):
    """See `PlannedExecutor`.  May be used by several threads and on several streams; calls take turns."""

    def __init__(self, net: DynamicNetwork, storage: torch.dtype, device: torch.device, fusion: str = "auto") -> None:
        super().__init__(net, storage, device, DeviceLimits.of(device), fusion)
        self._lock = threading.Lock()
        self._shapes: OrderedDict[tuple[int, ...], _Shape] = OrderedDict()
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self._lent: list[tuple[Tensor, _Shape]] = []
        self._stream: torch.cuda.Stream | None = None  # of the last call, and the moment it will have ended
        self._ended = torch.cuda.Event()

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _launch(self, plan: NetworkPlan, io: Io) -> None:
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if torch.cuda.is_current_stream_capturing():
                self._in_callers_graph(plan, io)
                return
            if self._stream is not None and self._stream != stream:
                stream.wait_event(self._ended)
            shape = self._shape(plan)
            if shape.graph is None:
                self._records(shape, 0, io)
                shape.graph = self._record(shape)
            else:
                self._records(shape, 0, io, last=1)
                shape.graph.replay()
            self._ended.record(stream)
            self._stream = stream

    def _in_callers_graph(self, plan: NetworkPlan, io: Io) -> None:
        """Launches into a capture of the caller's, who sees to it that no other call runs beside the graph."""
        shape = self._shapes.get(tuple(plan.image))
        if shape is None:
            raise RuntimeError(f"run images of this shape, {plan.image[:3]}, once before they are captured in a graph")
        self._lent.append((self._workspace, shape))  # the graph holds their addresses
        self._records(shape, 0, io)

    def _records(self, shape: _Shape, first: int, io: Io | None, last: int = 1 << 30) -> None:
        torch.ops.dynroute.cuda_run(
            self._workspace, shape.launches, DTYPES.index(self.storage), first, last, io.addresses() if io else []
        )

    def _record(self, shape: _Shape) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # other threads may go on allocating and waiting while this one records
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._records(shape, 1, None)
        return graph

    def _shape(self, plan: NetworkPlan) -> _Shape:
        key = tuple(plan.image)
        if key in self._shapes:
            self._shapes.move_to_end(key)
            return self._shapes[key]
        wanted = plan.buffers()[1]
        if wanted > self._workspace.nbytes or len(self._shapes) >= KEPT_SHAPES:
            torch.cuda.synchronize()  # what is let go here may be in use, on any stream
        if wanted > self._workspace.nbytes:
            self._shapes.clear()  # they hold the old address
            self._workspace = self._workspace.new_empty(0)  # the old memory is free before the new is asked for
            self._workspace = self._workspace.new_empty(wanted)
        while len(self._shapes) >= KEPT_SHAPES:
            self._shapes.popitem(last=False)
        shape = self._shapes[key] = _Shape(plan, self._workspace, self.weights, self.table)
        return shape
