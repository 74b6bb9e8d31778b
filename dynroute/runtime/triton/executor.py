"""The Triton backend: a plan of launches for each shape; interpreted on the CPU, and on a GPU what `graphed` runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from dynroute.models.network import DynamicNetwork
from dynroute.native.contract import NODE_PARTS, SAMPLE_PARTS, SampleMacs
from dynroute.runtime.flops import tell_counters
from dynroute.runtime.results import Executed, Executor
from dynroute.runtime.triton.plan import Launch, Plan, gate_sums
from dynroute.runtime.triton.weights import Weights
from dynroute.runtime.triton.workspace import Workspace, stem_side
from dynroute.space.wiring import SCALES, path_exists

KEPT_SHAPES = 8
MOST_SAMPLES = (1 << 16) - 1  # programs in a grid's third dimension
MOST_VALUES = 1 << 31  # of a sample's map: offsets inside it are of 32 bits


class Prepared:
    """What is kept for one shape: its plan for the workspace's address, and its graph, once there is one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.used = False
        self.graph: torch.cuda.CUDAGraph | None = None


class TritonExecutor(Executor):
    """Runs a network in Triton.  May be used by several threads; calls take turns.

    Work is counted by the kernels that do it.  A stage's depthwise is made again for each block of output channels, in
    registers; the counts have it once, and `halo`, which is of tiles that overlap, is 0: none do.

    Args:
        net: snapshot of its weights is taken.
        storage: of maps and products' weights: float32, float16 or bfloat16.
        device: where images are, and outputs will be.

    Raises:
        ValueError: when called with more than 65,535 samples, or where a sample has a map of 2^31 values or more.
    """

    _snapshot = ("config", "storage", "device", "_weights")

    def __init__(self, net: DynamicNetwork, storage: torch.dtype, device: torch.device) -> None:
        self.config, self.storage, self.device = net.config, storage, device
        with torch.inference_mode(False):
            self._weights = Weights(net, storage, device)
        self._begin()

    def _begin(self) -> None:
        with torch.inference_mode(False):
            self._paths = path_exists(self.config.layers).to(self.device)
            self._memory = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._lock = threading.Lock()
        self._prepared: OrderedDict[tuple[int, ...], Prepared] = OrderedDict()

    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        logits = self._empty((len(images), self.config.num_classes, height, width), torch.float32)
        return self._run(images, gates, logits)

    def labels(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Tensor:
        """uint8 [N,height,width], each pixel's class; logits at full size are not made."""
        labels = self._empty((len(images), height, width), torch.uint8)
        self._run(images, gates, labels)
        return labels

    @property
    def workspace_bytes(self) -> int:
        return self._memory.nbytes

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._weights.tensors())

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _run(self, images: Tensor, gates: Tensor | None, out: Tensor) -> Executed:
        """Writes `out`: logits, or labels (which are then what the result calls logits)."""
        n, _, h, w = images.shape
        if n == 0:
            rows = self.config.layers + 1
            nodes = self._empty((0, rows, SCALES, len(NODE_PARTS)), torch.int64)
            samples = self._empty((0, len(SAMPLE_PARTS)), torch.int64)
            alphas = self._empty((0, rows, SCALES, 3), torch.float32)
            return Executed(out, alphas, nodes, SampleMacs(*samples.unbind(1)))
        self._check_size(n, h, w)
        with self._lock:
            done = self._take_turn(images, gates, out)
        tell_counters(done.node_macs, done.sample_macs)
        return done

    def _check_size(self, n: int, h: int, w: int) -> None:
        if n > MOST_SAMPLES:
            raise ValueError(f"images: wanted at most {MOST_SAMPLES} samples, got {n}")
        c, quarter = self.config, (h // 4) * (w // 4)
        half = stem_side(h) * stem_side(w)
        largest = max(c.in_channels * h * w, half * c.stem_width, quarter * c.channels, quarter * c.num_classes)
        if largest >= MOST_VALUES:
            raise ValueError(f"images: wanted maps of fewer than 2^31 values a sample, got {largest} at {h}x{w}")

    def _take_turn(self, images: Tensor, gates: Tensor | None, out: Tensor) -> Executed:
        prepared = self._prepare(images, gates)
        done = self._call(prepared, images, gates, out)
        prepared.used = True
        return done

    def _call(self, prepared: Prepared, images: Tensor, gates: Tensor | None, out: Tensor) -> Executed:
        """`first` and `last` of a plan read the call's images and write its output; its middle may be a graph."""
        plan, buffers = prepared.plan, prepared.plan.buffers
        if gates is not None:
            buffers["gates"].copy_(gates.transpose(0, 1))
        elif self.config.gate == "fixed":
            buffers["gates"].fill_(1.0)
        launches = [*plan.first(images), *(plan.middle if prepared.graph is None else ())]
        for launch in launches if prepared.used else _progress(launches):
            launch.run()
        if prepared.graph is not None:
            prepared.graph.replay()
        plan.last(out).run()
        alphas = buffers["alphas"].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        samples = buffers["sample_macs"].clone().unbind(1)
        return Executed(out, alphas, buffers["node_macs"].clone(), SampleMacs(*samples))

    def _prepare(self, images: Tensor, gates: Tensor | None) -> Prepared:
        key = (*images.shape, gates is None)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        workspace = self._workspace(images)
        if workspace.bytes > self._memory.nbytes:
            self._prepared.clear()  # they hold the old address
            self._grow(workspace.bytes)
        while len(self._prepared) >= KEPT_SHAPES:
            self._prepared.popitem(last=False)
        self._prepared[key] = Prepared(self._plan(workspace, self._memory, gates))
        return self._prepared[key]

    def _grow(self, wanted: int) -> None:
        with torch.inference_mode(False):  # other calls write it too
            self._memory = self._memory.new_empty(0)  # the old memory is free before the new is asked for
            self._memory = self._memory.new_empty(wanted)

    def _workspace(self, images: Tensor) -> Workspace:
        n, _, h, w = images.shape
        return Workspace(self.config, n, h, w, self.storage, gate_sums(self.config, n, h, w, self.storage))

    def _plan(self, workspace: Workspace, memory: Tensor, gates: Tensor | None) -> Plan:
        gated = gates is None and self.config.gate != "fixed"
        with torch.inference_mode(False):
            return Plan(self.config, self._weights, workspace, memory, self._paths, gated)


def _progress(launches: list[Launch]) -> Iterable[Launch]:
    """Of a shape's first call, whose kernels may have to be compiled."""
    return tqdm(launches, desc="triton", unit="launch", delay=2, leave=False, dynamic_ncols=True, disable=None)
