"""The Triton backend on a GPU: one graph for each shape that comes again, no word from the device while it runs.

A shape's first call launches its plan, and compiles kernels where Triton's cache has none; its second records the
plan's middle into a CUDA graph. What is before it reads the call's images and what is behind it writes its outputs:
these are launched by each call, so that nothing is copied but alphas and counts. Shapes that come once cost no
recording. All work goes to the current stream. Calls share one workspace: one on another stream than the call before
waits for it, on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.runtime.recording import RECORDING
from dynroute.runtime.results import Executed
from dynroute.runtime.triton.executor import Prepared, TritonExecutor
from dynroute.runtime.triton.plan import Plan


class GraphedExecutor(TritonExecutor):
    """See `TritonExecutor`.  May be used on several streams, too; calls take turns.

    A call inside a capture of the caller's launches into the caller's graph, with a workspace of that graph's own. The
    graph needs this executor's weights: keep it as long.

    Raises:
        RuntimeError: when called inside a capture as it has not been called outside one: kernels might have to be
            compiled and loaded then, which cannot be recorded.
    """

    def _begin(self) -> None:
        super()._begin()
        self._compiled: set[tuple[int, ...]] = set()  # kinds of calls whose kernels are
        self._streams: set[torch.cuda.Stream] = set()  # that the workspace has been used on
        self._stream: torch.cuda.Stream | None = None  # of the last call, and the moment it will have ended
        self._ended = torch.cuda.Event()
        self._recording: torch.cuda.Stream | None = None

    def _take_turn(self, images: Tensor, gates: Tensor | None, out: Tensor) -> Executed:
        kind = (*images.shape, gates is None, out.dim())
        with torch.cuda.device(self.device):
            if torch.cuda.is_current_stream_capturing():
                return self._into_callers_graph(kind, images, gates, out)
            stream = torch.cuda.current_stream()
            if self._stream is not None and self._stream != stream:
                stream.wait_event(self._ended)
            prepared = self._prepare(images, gates)
            self._hold(stream)
            if prepared.used and prepared.graph is None:
                prepared.graph = self._record(prepared.plan)
            done = self._call(prepared, images, gates, out)
            prepared.used = True
            self._compiled.add(kind)
            self._ended.record(stream)
            self._stream = stream
            return done

    def _into_callers_graph(self, kind: tuple[int, ...], images: Tensor, gates: Tensor | None, out: Tensor) -> Executed:
        if kind not in self._compiled:
            raise RuntimeError(
                f"images: wanted a call like this one (images {list(images.shape)}, gates "
                f"{'not ' if gates is None else ''}given) before it is captured, got the first"
            )
        workspace = self._workspace(images)
        memory = self._empty((workspace.bytes,), torch.uint8)  # which torch gives to the graph
        prepared = Prepared(self._plan(workspace, memory, gates))
        prepared.used = True
        return self._call(prepared, images, gates, out)

    def _hold(self, stream: torch.cuda.Stream) -> None:
        """Whoever lets memory go, it waits for what this stream still has to do."""
        if stream not in self._streams:
            for tensor in (self._memory, self._paths, *self._weights.tensors()):
                tensor.record_stream(stream)
            self._streams.add(stream)

    def _grow(self, wanted: int) -> None:
        self._streams.clear()
        super()._grow(wanted)

    def _record(self, plan: Plan) -> torch.cuda.CUDAGraph:
        """On a stream of its own: a stream that others use, or another device's, would record what is theirs."""
        if self._recording is None:
            self._recording = torch.cuda.Stream(device=self.device)
        graph = torch.cuda.CUDAGraph()
        with RECORDING, torch.cuda.stream(self._recording):
            # other threads may go on allocating and waiting while this one records
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for launch in plan.middle:
                    launch.run()
            finally:
                graph.capture_end()
        return graph
