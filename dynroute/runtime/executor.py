"""`optimize`: from a network to a runtime; one class whatever the backend."""

from __future__ import annotations

import torch
from torch import Tensor

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
        """images float32 [N,3,H,W], normalised, any size and any N; gates as in the network's forward.

        Raises:
            ValueError: images or gates of another shape, type or device; raised before anything is computed.
        """
        done = self.executor(*self._inputs(images, gates))
        return RunOutput(done, costs_on(self.config, *images.shape[-2:], self.device))

    @torch.no_grad()
    def labels(self, images: Tensor, gates: Tensor | None = None) -> Tensor:
        """uint8 [N,H,W]: each pixel's class, that of the largest logit (the first of equal ones).

        On CUDA and in Triton logits are not written at full size: for 19 classes 1/76 of the bytes.
        """
        return self.executor.labels(*self._inputs(images, gates))

    def _inputs(self, images: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor | None, int, int]:
        if images.dtype != torch.float32 or images.device != self.device:
            where = "the CPU" if self.device.type == "cpu" else self.device
            raise ValueError(f"images: wanted float32 on {where}, got {images.dtype} on {images.device}")
        forced = check_inputs(images, gates, self.config)
        padded = pad_images(images, self.config.small_gate).contiguous()
        return padded, forced, images.shape[-2], images.shape[-1]

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


def optimize(net: DynamicNetwork, backend: str = "auto", storage: torch.dtype = torch.float32) -> Runtime:
    """Makes the inference runtime of a network: a snapshot of its weights in evaluation mode.

    Args:
        net: the network; it is not changed, and later changes to it do not reach the runtime.
        backend: "cpu" (native kernels), "cuda" (the same on a GPU: the network's, or the current one), "triton" (in
            Triton, on any GPU that it serves, without the native library; with TRITON_INTERPRET=1 on the CPU, slowly),
            "reference" (plain PyTorch, slow, the definition), or "auto": the fastest that runs where the network is,
            with the reason in `Runtime.reason`.  "cuda-emulated" is for who develops kernels: those of "cuda", run on
            the CPU with every memory access checked, very slowly.
        storage: what maps and pointwise weights are kept in: torch.float32; on "cpu" also torch.bfloat16, on "cuda"
            and "triton" torch.bfloat16 and torch.float16.  16 bits take half the memory; sums are float32 and rounded
            once, when they are stored.  Images and logits stay float32.  See docs/kernels/cpu.md for the error.

    Raises:
        ValueError: the named backend is unknown or does not run here, with the reason, never a silent fallback; or a
            storage that the backend does not have.
    """
    chosen, why = take(net, backend, storage)
    return Runtime(net, chosen.name, why, storage, chosen.run(net, storage))
