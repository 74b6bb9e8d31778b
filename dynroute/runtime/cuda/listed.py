"""What the CUDA backend and its emulated twin share: packed weights, a launch list for each call, its outputs."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.native.contract import SampleMacs
from dynroute.runtime.cuda.launch_list import DeviceLimits, LaunchList
from dynroute.runtime.flops import tell_counters
from dynroute.runtime.results import Executed, Executor
from dynroute.runtime.weights.pack import CudaLayout, pack
from dynroute.space.wiring import SCALES


class Io(NamedTuple):
    """A call's inputs and outputs, in the order of struct Io (csrc/cuda/kernels/params.h)."""

    images: Tensor
    gates: Tensor | None
    logits: Tensor | None
    labels: Tensor | None
    alphas: Tensor
    node_macs: Tensor
    sample_macs: Tensor

    def addresses(self) -> list[int]:
        return [0 if tensor is None else tensor.data_ptr() for tensor in self]


class ListedExecutor(Executor):
    """Runs a network by launch lists.

    Args:
        net: snapshot of its weights is taken.
        storage: of maps and pointwise weights.
        device: where images are, and outputs will be.
        limits: what kernels may use.
        fusion: one of `dynroute.runtime.cuda.launch_list.FUSIONS`.
    """

    _snapshot: tuple[str, ...] = ("storage", "device", "limits", "fusion", "config", "table", "weights")

    def __init__(
        self, net: DynamicNetwork, storage: torch.dtype, device: torch.device, limits: DeviceLimits, fusion: str
    ) -> None:
        self.storage, self.device, self.limits, self.fusion = storage, device, limits, fusion
        packed = pack(net, CudaLayout(storage))
        self.config, self.table = packed.config, packed.table
        self.weights = packed.weights.to(device)

    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        logits = self._empty((len(images), self.config.num_classes, height, width), torch.float32)
        io = self._run(images, gates, logits, None)
        return Executed(logits, io.alphas, io.node_macs, SampleMacs(*io.sample_macs.unbind(1)))

    def labels(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Tensor:
        """uint8 [N,height,width], each pixel's class; logits at full size are not made."""
        labels = self._empty((len(images), height, width), torch.uint8)
        self._run(images, gates, None, labels)
        return labels

    def launch_list(self, n: int, h: int, w: int, out_h: int, out_w: int) -> LaunchList:
        """The list for padded images [n,3,h,w] and outputs of out_h x out_w pixels."""
        return LaunchList(self.config, (n, h, w, out_h, out_w), self.storage, self.fusion, self.limits)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _run(self, images: Tensor, gates: Tensor | None, logits: Tensor | None, labels: Tensor | None) -> Io:
        n, rows = len(images), self.config.layers + 1
        forced = None if gates is None else gates.contiguous()
        io = Io(
            images, forced, logits, labels, self._empty((n, rows, SCALES, 3), torch.float32),
            self._empty((n, rows, SCALES, 5), torch.int64),
            self._empty((n, len(SampleMacs._fields)), torch.int64),
        )  # fmt: skip
        out = logits if logits is not None else labels
        assert out is not None
        if n > 0:
            self._launch(self.launch_list(*images.shape[:1], *images.shape[2:], *out.shape[-2:]), io)
            tell_counters(io.node_macs, SampleMacs(*io.sample_macs.unbind(1)))
        return io

    @abstractmethod
    def _launch(self, launch_list: LaunchList, io: Io) -> None:
        """The whole list, for these inputs and outputs; `init_call` clears alphas and counts."""

    @property
    def weight_bytes(self) -> int:
        return self.weights.nbytes
