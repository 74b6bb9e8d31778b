"""What executors hand back, and what a runtime makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dynroute.cost.tables import CostTables, space_macs
from dynroute.models.network import Output
from dynroute.native.contract import SampleMacs


@dataclass
class Executed:
    """What a call did.

    Attributes:
        logits: float32 [N,K,height,width].
        gates: float32 [N,L+1,4,3], the alphas.
        node_macs: int64 [N,L+1,4,5], by `NODE_PARTS`.
        sample_macs: those of stem, decoder, halo.
    """

    logits: Tensor
    gates: Tensor
    node_macs: Tensor
    sample_macs: SampleMacs


class Executor(ABC):
    """Runs a network on images float32 [N,I,h,w], contiguous and padded; height and width are those of its output.

    Copies and pickles have the same weights and settings, and memory, locks and graphs of their own: an executor's
    `__getstate__` is what its `_begin` makes the rest from.

    Attributes:
        device: where images are wanted, and outputs will be.
    """

    device = torch.device("cpu")
    _snapshot: tuple[str, ...] = ()  # names of the attributes that are the network's and its settings

    def _begin(self) -> None:  # noqa: B027 (some have nothing of their own)
        """Makes what belongs to this object alone."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._snapshot}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @abstractmethod
    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        """gates: alphas [N,L+1,4,3] to force, or None."""

    def labels(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Tensor:
        """uint8 [N,height,width]: the class of the largest logit."""
        return self(images, gates, height, width).logits.argmax(1).to(torch.uint8)

    @property
    def workspace_bytes(self) -> int:
        """Memory held between calls for maps."""
        return 0

    @property
    def weight_bytes(self) -> int:
        """Memory of packed weights; 0 where they are the network's own."""
        return 0


class RunOutput(Output):
    """What a runtime returns: the network's fields and the work that was really done.

    Costs and sums are made when they are first asked for: a caller who wants logits alone waits for nothing else.

    Attributes:
        executed_macs: int64 [N], every convolution done for the sample (stem, init, gates, cells, paths, decoder), at
            true output sizes, taps on zero padding counted, recomputed halo not.
        executed_nodes: int64 [N,L+1,4,5], the same for each node's gate, cell, up, keep (none), down.
        halo_macs: int64 [N], convolution work done twice because tiles overlap.
        space_macs: int64 [N], the part of executed_macs that the budget is about: cells of the grid, and all paths.
    """

    def __init__(self, done: Executed, costs: CostTables) -> None:
        self.logits, self.gates = done.logits, done.gates
        self.executed_nodes, self.halo_macs = done.node_macs, done.sample_macs.halo
        self.costs, self._around = costs, done.sample_macs

    @cached_property
    def expected_mflops(self) -> Tensor:  # type: ignore[override]
        return self.costs.expected(self.gates)

    @cached_property
    def real_mflops(self) -> Tensor:  # type: ignore[override]
        return self.costs.real(self.gates)

    @cached_property
    def executed_macs(self) -> Tensor:
        return self.executed_nodes.sum((1, 2, 3)) + self._around.stem + self._around.decoder

    @property
    def space_macs(self) -> Tensor:
        return space_macs(self.executed_nodes)
