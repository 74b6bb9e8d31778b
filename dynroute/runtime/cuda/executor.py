"""The CUDA backend: one graph per shape, no word from the device while it runs.

The first call of a shape launches its list directly, then records it into a CUDA graph; later ones launch `init_call`,
which tells the device where this call's inputs and outputs are, and the graph.  All work goes to the current stream.
Calls share one workspace: one on another stream than the call before waits for it, on the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.runtime.cuda.launch_list import Buffer, DeviceLimits, LaunchList, run_launches
from dynroute.runtime.cuda.listed import Io, ListedExecutor

KEPT_SHAPES = 8


class _Prepared:
    """What is kept for one shape: its launches for the workspace's address, the tables they read, the graph."""

    def __init__(
        self, launch_list: LaunchList, buffers: list[Buffer], workspace: Tensor, weights: Tensor, table: Tensor
    ) -> None:
        own: list[Tensor] = []
        addresses = []
        for buffer in buffers:
            if buffer.offset >= 0:
                addresses.append(workspace.data_ptr() + buffer.offset)
            else:
                own.append(workspace.new_empty(buffer.bytes))
                addresses.append(own[-1].data_ptr())
        self.launches, rows = launch_list.launches(addresses, weights.data_ptr(), table)
        (self.rows,) = own
        self.rows.copy_(rows)
        self.graph: torch.cuda.CUDAGraph | None = None


class CudaExecutor(ListedExecutor):
    """See `ListedExecutor`.  May be used by several threads and on several streams; calls take turns."""

    def __init__(self, net: DynamicNetwork, storage: torch.dtype, device: torch.device, fusion: str = "auto") -> None:
        super().__init__(net, storage, device, DeviceLimits.of(device), fusion)
        self._lock = threading.Lock()
        self._prepared: OrderedDict[tuple[int, ...], _Prepared] = OrderedDict()
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self._lent: list[tuple[Tensor, _Prepared]] = []
        self._stream: torch.cuda.Stream | None = None  # of the last call, and the moment it will have ended
        self._ended = torch.cuda.Event()

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _launch(self, launch_list: LaunchList, io: Io) -> None:
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if torch.cuda.is_current_stream_capturing():
                self._in_callers_graph(launch_list, io)
                return
            if self._stream is not None and self._stream != stream:
                stream.wait_event(self._ended)
            prepared = self._prepare(launch_list)
            if prepared.graph is None:
                self._run_launches(prepared, 0, io)
                prepared.graph = self._record(prepared)
            else:
                self._run_launches(prepared, 0, io, last=1)
                prepared.graph.replay()
            self._ended.record(stream)
            self._stream = stream

    def _in_callers_graph(self, launch_list: LaunchList, io: Io) -> None:
        """Launches into a capture of the caller's, who sees to it that no other call runs beside the graph."""
        prepared = self._prepared.get(tuple(launch_list.image))
        if prepared is None:
            size = launch_list.image[:3]
            raise RuntimeError(f"run images of this shape, {size}, once before they are captured in a graph")
        self._lent.append((self._workspace, prepared))  # the graph holds their addresses
        self._run_launches(prepared, 0, io)

    def _run_launches(self, prepared: _Prepared, first: int, io: Io | None, last: int = 1 << 30) -> None:
        addresses = io.addresses() if io else []
        run_launches(self._workspace, prepared.launches, self.storage, first, last, addresses)

    def _record(self, prepared: _Prepared) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # other threads may go on allocating and waiting while this one records
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run_launches(prepared, 1, None)
        return graph

    def _prepare(self, launch_list: LaunchList) -> _Prepared:
        key = tuple(launch_list.image)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        buffers, wanted = launch_list.buffers()
        if wanted > self._workspace.nbytes or len(self._prepared) >= KEPT_SHAPES:
            torch.cuda.synchronize()  # what is let go here may be in use, on any stream
        if wanted > self._workspace.nbytes:
            self._prepared.clear()  # they hold the old address
            self._workspace = self._workspace.new_empty(0)  # the old memory is free before the new is asked for
            self._workspace = self._workspace.new_empty(wanted)
        while len(self._prepared) >= KEPT_SHAPES:
            self._prepared.popitem(last=False)
        prepared = _Prepared(launch_list, buffers, self._workspace, self.weights, self.table)
        self._prepared[key] = prepared
        return prepared
