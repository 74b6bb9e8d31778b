"""The CUDA backend: one graph per shape that comes again, no word from the device while it runs.

A shape's first call launches its list directly; its second records it into a CUDA graph, and from then on a call is
`init_call`, which tells the device where this call's inputs and outputs are, and the graph.  Shapes that come once
cost no recording.  All work goes to the current stream.  Calls share one workspace: one on another stream than the
call before waits for it, on the device.  A call inside a capture of the caller's has a workspace of that graph's own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.runtime.cuda.launch_list import DeviceLimits, LaunchList, run_launches
from dynroute.runtime.cuda.listed import Io, ListedExecutor
from dynroute.runtime.recording import RECORDING

KEPT_SHAPES = 8
_ALL = 1 << 30  # launches


class _Prepared:
    """What is kept for one shape: its launches for the workspace's address, and their graph, once there is one."""

    def __init__(self, launches: Tensor) -> None:
        self.launches = launches
        self.used = False
        self.graph: torch.cuda.CUDAGraph | None = None


class CudaExecutor(ListedExecutor):
    """See `ListedExecutor`.  May be used by several threads and on several streams; calls take turns."""

    def __init__(self, net: DynamicNetwork, storage: torch.dtype, device: torch.device, fusion: str = "auto") -> None:
        super().__init__(net, storage, device, DeviceLimits.of(device), fusion)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._prepared: OrderedDict[tuple[int, ...], _Prepared] = OrderedDict()
        self._workspace = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._streams: set[torch.cuda.Stream] = set()  # that the workspace has been used on
        self._stream: torch.cuda.Stream | None = None  # of the last call, and the moment it will have ended
        self._ended = torch.cuda.Event()
        self._recording: torch.cuda.Stream | None = None

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _launch(self, launch_list: LaunchList, io: Io) -> None:
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if torch.cuda.is_current_stream_capturing():
                self._into_callers_graph(launch_list, io)
                return
            if self._stream is not None and self._stream != stream:
                stream.wait_event(self._ended)
            prepared = self._prepare(launch_list)
            if stream not in self._streams:
                # whoever lets them go, the memory waits for what this stream still has to do
                self._workspace.record_stream(stream)
                self.weights.record_stream(stream)
                self._streams.add(stream)
            if prepared.used and prepared.graph is None:
                prepared.graph = self._record(prepared)
            prepared.used = True
            if prepared.graph is None:
                self._run_launches(prepared, 0, io)
            else:
                self._run_launches(prepared, 0, io, last=1)
                prepared.graph.replay()
            self._ended.record(stream)
            self._stream = stream

    def _into_callers_graph(self, launch_list: LaunchList, io: Io) -> None:
        """Launches into a capture of the caller's. The graph may be replayed beside other calls, and outlive this
        executor: its workspace is memory that torch gives to the graph, and it holds the weights."""
        buffers, wanted = launch_list.buffers()
        workspace = torch.empty(wanted, dtype=torch.uint8, device=self.device)
        addresses = [workspace.data_ptr() + buffer.offset for buffer in buffers]
        launches = launch_list.launches(addresses, self.weights.data_ptr(), self.table)
        torch.ops.dynroute.cuda_hold(self.weights)
        run_launches(workspace, launches, self.storage, 0, _ALL, io.addresses())

    def _run_launches(self, prepared: _Prepared, first: int, io: Io | None, last: int = _ALL) -> None:
        addresses = io.addresses() if io else []
        run_launches(self._workspace, prepared.launches, self.storage, first, last, addresses)

    def _record(self, prepared: _Prepared) -> torch.cuda.CUDAGraph:
        """On a stream of its own: a stream that others use, or another device's, would record what is theirs."""
        if self._recording is None:
            self._recording = torch.cuda.Stream(device=self.device)
        graph = torch.cuda.CUDAGraph()
        with RECORDING, torch.cuda.stream(self._recording):
            # other threads may go on allocating and waiting while this one records
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._run_launches(prepared, 1, None)
            finally:
                graph.capture_end()
        return graph

    def _prepare(self, launch_list: LaunchList) -> _Prepared:
        key = tuple(launch_list.image)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        buffers, wanted = launch_list.buffers()
        if wanted > self._workspace.nbytes:
            self._prepared.clear()  # they hold the old address
            self._streams.clear()
            self._workspace = self._workspace.new_empty(0)  # the old memory is free before the new is asked for
            self._workspace = self._workspace.new_empty(wanted)
        while len(self._prepared) >= KEPT_SHAPES:
            self._prepared.popitem(last=False)
        addresses = [self._workspace.data_ptr() + buffer.offset for buffer in buffers]
        prepared = _Prepared(launch_list.launches(addresses, self.weights.data_ptr(), self.table))
        self._prepared[key] = prepared
        return prepared
