"""`optimize`: from a network to a runtime; one class whatever the backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dynroute.cost.tables import CostTables
from dynroute.models.network import DynamicNetwork, check_inputs, costs_on
from dynroute.models.stem import pad_images
from dynroute.runtime.backends import take
from dynroute.runtime.results import Executor, RunOutput
from dynroute.space.wiring import SCALES


class Runtime:
    """Inference with what `optimize` chose.

    Attributes:
        backend: the backend's name.
        reason: why it was chosen.
        config: the network's `NetworkConfig`.
        storage: what maps and weights are kept in.
        device: where images are wanted, and outputs will be.
        executor: what computes.
    """

    def __init__(
        self, net: DynamicNetwork, backend: str, reason: str, storage: torch.dtype, executor: Executor
    ) -> None:
        self.backend, self.reason, self.config, self.storage = backend, reason, net.config, storage
        self.executor, self.device = executor, executor.device

    @torch.no_grad()
    def __call__(self, images: Tensor, gates: Tensor | None = None) -> RunOutput:
        """images float32 [N,I,H,W], normalised, any size and any N; gates as in the network's forward.

        NaN in a sample's image makes its logits NaN, as the network's; other samples keep their bits.

        Raises:
            ValueError: images or gates of another shape, type or device, or with tangents; raised before anything is
                computed.
        """
        padded, forced, height, width = self._inputs(images, gates)
        done = self.executor(padded, forced, height, width)
        return RunOutput(done, costs_on(self.config, height, width, self.device))

    @torch.no_grad()
    def labels(self, images: Tensor, gates: Tensor | None = None) -> Tensor:
        """uint8 [N,H,W]: each pixel's class, that of the largest logit (the first of equal ones).

        On CUDA and in Triton logits are not written at full size: for 19 classes 1/76 of the bytes.
        """
        return self.executor.labels(*self._inputs(images, gates))

    def _inputs(self, images: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor | None, int, int]:
        is_tensor = isinstance(images, Tensor) and images.dtype == torch.float32 and images.device == self.device
        if not is_tensor or images.dim() != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(self._why_not(images))
        if gates is not None and not isinstance(gates, Tensor):
            raise ValueError(f"gates: wanted a tensor [N,L+1,4,3] or without N, got {_described(gates)}")
        if forward_ad.unpack_dual(images).tangent is not None:
            raise ValueError("images: wanted no tangent, got one: a runtime has no derivative; the network has")
        forced = check_inputs(images, gates, self.config)
        padded = pad_images(images, self.config.small_gate).contiguous()
        return padded, forced, images.shape[-2], images.shape[-1]

    def _why_not(self, images: Any) -> str:
        """What is wrong with what was given as images."""
        shape, where = f"[N,{self.config.in_channels},H,W]", "the CPU" if self.device.type == "cpu" else self.device
        if not isinstance(images, Tensor):
            got = f"{_described(images)}; torch.from_numpy and torch.stack make a tensor"
            return f"images: wanted a float32 tensor {shape} on {where}, got {got}"
        if images.dtype != torch.float32 or images.device != self.device:
            hint = "; pixels have to be normalised first" if images.dtype == torch.uint8 else ""
            return f"images: wanted float32 on {where}, got {images.dtype} on {images.device}{hint}"
        hint = "; images[None] is a batch of one" if images.dim() == 3 else ""
        return f"images: wanted float32 {shape}, got {list(images.shape)}{hint}"

    @property
    def workspace_bytes(self) -> int:
        """Memory held between calls for maps, grown to the largest call so far; 0 on the reference backend."""
        return self.executor.workspace_bytes

    @property
    def weight_bytes(self) -> int:
        """Memory of the packed weights; 0 on the reference backend, which keeps the network's own."""
        return self.executor.weight_bytes

    def costs(self, height: int, width: int) -> CostTables:
        """Cost tables at an input of height x width pixels."""
        return self.config.costs(height, width)

    def all_open_gates(self) -> Tensor:
        """float32 [L+1,4,3] of ones: forces every cell and path open."""
        return torch.ones(self.config.layers + 1, SCALES, 3)

    def __repr__(self) -> str:
        c = self.config
        return f"Runtime(backend={self.backend!r}, layers={c.layers}, channels={c.channels}; {self.reason})"


def _described(value: Any) -> str:
    """What was given in the place of a tensor."""
    kind, shape, dtype = type(value), getattr(value, "shape", None), getattr(value, "dtype", None)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if shape is None:
        return f"{name} of {len(value)}" if isinstance(value, (list, tuple)) else name
    return f"{name} {dtype} {list(shape)}"


def _network(net: Any) -> DynamicNetwork:
    """The network itself, out of what torch wraps it in to train or to compile it."""
    while not isinstance(net, DynamicNetwork):
        if isinstance(net, Runtime):
            raise ValueError(f"net: wanted a network, got what optimize has made of one already: {net!r}")
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
        elif isinstance(net, nn.Module) and isinstance(getattr(net, "_orig_mod", None), nn.Module):  # torch.compile's
            net = net._orig_mod
        else:
            raise ValueError(
                f"net: wanted a network of create_model, load_official or from_pretrained, got {_described(net)}"
            )
    if any(tensor.is_meta for tensor in net.state_dict().values()):
        raise ValueError("net: wanted a network with weights, got one on the meta device, which has none")
    return net


def optimize(net: nn.Module, backend: str = "auto", storage: torch.dtype = torch.float32) -> Runtime:
    """Makes the inference runtime of a network: a snapshot of its weights in evaluation mode.

    Args:
        net: a `DynamicNetwork`, as it is or as DataParallel, DistributedDataParallel or torch.compile wrap it; it is
            not changed, and later changes to it do not reach the runtime.
        backend: "cpu" (native kernels), "cuda" (the same on a GPU: the network's, or the current one), "triton" (in
            Triton, on any GPU that it serves, without the native library; with TRITON_INTERPRET=1 on the CPU, slowly),
            "reference" (plain PyTorch, slow, the definition), or "auto": the fastest that runs where the network is,
            with the reason in `Runtime.reason`.  "cuda-emulated" is for who develops kernels: those of "cuda", run on
            the CPU with every memory access checked, very slowly.
        storage: what maps and pointwise weights are kept in: torch.float32; on "cpu" also torch.bfloat16, on "cuda"
            and "triton" torch.bfloat16 and torch.float16.  16 bits take half the memory; sums are float32 and rounded
            once, when they are stored.  Images and logits stay float32.  See docs/kernels/cpu.md for the error.

    Raises:
        ValueError: no such network, or one without weights; the named backend is unknown or does not run here, with
            the reason, never a silent fallback; or a storage that the backend does not have.
    """
    net = _network(net)
    chosen, why = take(net, backend, storage)
    return Runtime(net, chosen.name, why, storage, chosen.run(net, storage))
