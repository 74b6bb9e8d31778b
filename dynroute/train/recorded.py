"""A training step recorded once as a CUDA graph, and replayed: on a GPU a step is thousands of launches, which take the
host several times as long to make as the device to run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynroute.cost.budget import Budget
from dynroute.models.network import DynamicNetwork
from dynroute.objective import Losses, check_progress
from dynroute.train.amp import LossScale
from dynroute.train.finite import running_statistics
from dynroute.train.step import train_step, without_graph

WARMUP = 3  # steps of a shape before it is recorded: libraries choose their kernels, the optimiser makes its state
MOST_SHAPES = 4  # that are recorded; steps on images of others run as they are


@dataclass(frozen=True)
class Recording:
    """A step on images of one shape: where it reads its batch, and what it writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    losses: Losses


class RecordedStep:
    """`train_step` on a GPU, of one network and its optimiser: the same values, bit for bit, recorded or not.

    The first steps on images of a shape run as they are; then the step is recorded, and each further one is a copy of
    the batch and a replay. Recordings share their memory. What changes from step to step lies on the device: the
    learning rate (the optimiser's groups hold tensors from here on: set it by `set_learning_rate`), the position in
    training, the loss's scale, and whether the step is skipped. A budget's bridge is a number that kernels are told:
    steps with one, `budget.bridge_at`, are never recorded.

    Args:
        net: on the GPU, in training; its weights must stay where they are.
        optimiser: of `make_optimiser`.
        budget, clip_norm, amp, accumulate, scale, class_weights: as `train_step`'s; what is a tensor lies on the GPU.

    Raises:
        ValueError: a network that is not on a GPU.
    """

    def __init__(
        self,
        net: DynamicNetwork,
        optimiser: torch.optim.Optimizer,
        budget: Budget | None,
        clip_norm: float,
        amp: torch.dtype | None = None,
        accumulate: int = 1,
        scale: LossScale | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        device = next(net.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"net: wanted on a GPU for a recorded step, got {device}")
        self.net, self.optimiser, self.budget = net, optimiser, budget
        self.clip_norm, self.amp, self.accumulate, self.scale = clip_norm, amp, accumulate, scale
        self.class_weights = class_weights
        self._statistics = running_statistics(net)
        self._progress = torch.zeros((), device=device)
        for group in optimiser.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
        self._seen: dict[tuple[torch.Size, torch.Size], int] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.recordings: dict[tuple[torch.Size, torch.Size], Recording] = {}

    def __call__(self, images: Tensor, labels: Tensor, progress: float) -> Losses:
        """One step on images float32 [N, 3, H, W] and labels int64 [N, H, W], both on the GPU; progress: 0..1.

        Returns what `train_step` does, without the graph of autograd.

        Raises:
            ValueError: as `train_step`, or progress out of range.
        """
        check_progress(progress)
        self._progress.fill_(progress)
        bridge = self.budget.bridge_at(progress) if self.budget is not None else 0.0
        recording = None if bridge != 0.0 else self._recording(images, labels)
        if recording is None:
            return without_graph(self._step(images, labels, bridge))
        recording.images.copy_(images)
        recording.labels.copy_(labels)
        recording.graph.replay()
        return without_graph(recording.losses, Tensor.clone)

    def _recording(self, images: Tensor, labels: Tensor) -> Recording | None:
        """Of images of this shape; None while it has come too seldom, and where there are enough."""
        shape = (images.shape, labels.shape)
        if shape not in self.recordings and len(self.recordings) < MOST_SHAPES:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] > WARMUP:
                self.recordings[shape] = self._record(images.clone(), labels.clone())
        return self.recordings.get(shape)

    def _step(self, images: Tensor, labels: Tensor, bridge: float) -> Losses:
        return train_step(
            self.net, self.optimiser, images, labels, self._progress, self.budget, self.clip_norm, self.amp,
            self.accumulate, bridge, self._statistics, self.scale, self.class_weights,
        )  # fmt: skip

    def _record(self, images: Tensor, labels: Tensor) -> Recording:
        """Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # other threads bring data meanwhile, and may ask for memory
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = without_graph(self._step(images, labels, 0.0))
        return Recording(graph, images, labels, losses)
