"""Networks opened for running and counting, with what the same network does when everything is open."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from dynroute.cost import CostTables
from dynroute.models import DynamicNetwork
from dynroute.runtime import optimize
from dynroute.runtime.backends import home
from dynroute.space.wiring import PATH_NAMES, SCALES


class Model:
    """A network behind one of the backends, or in plain PyTorch: what `evaluate` and the commands call.

    Attributes:
        net: the network, in evaluation mode.
        device: where it computes; images are brought there.
        runtime: None for plain PyTorch.
        label: one phrase that says what computes.
        seen: how many images of each size went through with their own gates.
    """

    def __init__(
        self,
        net: DynamicNetwork,
        backend: str = "auto",
        storage: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device(home(backend))
        self.net = net.eval().to(self.device)
        self.runtime: Any = None
        self.seen: Counter[tuple[int, int]] = Counter()
        self._all_open: dict[tuple[int, int], tuple[int, Tensor]] = {}
        if backend == "eager":
            if storage != "float32":
                raise ValueError(f"storage: {storage} wants the cpu backend, got eager")
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.label = "eager PyTorch (computes everything, whatever the routes)"
            return
        self.runtime = optimize(net, backend=backend, storage=getattr(torch, storage))
        self.device = self.runtime.device
        self.label = f"backend {self.runtime.backend}" + (f", stored as {storage}" if storage != "float32" else "")
        if backend == "auto" and self.runtime.backend == "reference":
            self.label += f" ({self.runtime.reason})"

    @torch.inference_mode()
    def __call__(self, images: Tensor, gates: Tensor | None = None) -> Any:
        """images [N,3,H,W] -> the network's or the runtime's output, on `device`."""
        images = images.to(self.device)
        if gates is None:
            self.seen[images.shape[-2], images.shape[-1]] += images.shape[0]
        return (self.runtime or self.net)(images, gates=gates)

    def costs(self, height: int, width: int) -> CostTables:
        """Cost tables at an image size, as the network's own."""
        return self.net.costs(height, width)

    def open_gates(self) -> Tensor:
        """float32 [L+1,4,3] of ones: every path that exists, open."""
        return torch.ones(self.net.config.layers + 1, SCALES, len(PATH_NAMES), device=self.device)

    def all_open_work(self, height: int, width: int) -> tuple[int, Tensor] | None:
        """Executed MACs of one image with all paths forced open: total and int64 [L+1,4,5]; None in plain PyTorch.

        The gates are given, so the total holds none of theirs.
        """
        if self.runtime is None:
            return None
        if (height, width) not in self._all_open:
            out = self(torch.zeros(1, self.net.config.in_channels, height, width), gates=self.open_gates())
            self._all_open[height, width] = (int(out.executed_macs[0]), out.executed_nodes[0].cpu())
        return self._all_open[height, width]

    def all_open_mean(self) -> float | None:
        """Mean over the images seen of their executed MACs, had everything been open; None in plain PyTorch."""
        total = 0
        for size, images in self.seen.items():
            full = self.all_open_work(*size)
            if full is None:
                return None
            total += full[0] * images
        return total / self.seen.total() if self.seen else None


def open_model(
    net: DynamicNetwork, backend: str = "auto", storage: str = "float32", device: torch.device | None = None
) -> Model:
    """`net`, moved to `device`, behind `backend`: auto, cpu, cuda, triton, reference, or eager.

    Args:
        storage: of maps and weights: float32, bfloat16, float16.
        device: None for the backend's.

    Raises:
        ValueError: the backend does not run here, or does not have this storage.
    """
    return Model(net, backend, storage, device)
