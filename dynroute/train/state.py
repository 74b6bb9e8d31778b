"""What a run's steps change, and what of a step is drawn: all that a checkpoint must hold to go on as if nothing had
been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynroute.models.network import DynamicNetwork
from dynroute.train.amp import LossScale
from dynroute.train.ema import WeightAverage


@dataclass(frozen=True)
class Trained:
    """A network and what trains with it.

    Attributes:
        average: of its weights; None: none is kept.
        scale: of the loss; None: without.
    """

    net: DynamicNetwork
    optimiser: torch.optim.Optimizer
    average: WeightAverage | None
    scale: LossScale | None

    def state(self) -> dict[str, Any]:
        """Tensors, as they lie, and plain values."""
        return {
            "model": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.average.state() if self.average is not None else None,
            "scale": self.scale.state() if self.scale is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned, in place."""
        self.net.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for group in self.optimiser.param_groups:
            group["lr"] = float(group["lr"])  # a recorded step's is a tensor
        if self.average is not None:
            self.average.load_state(state["ema"])
        if self.scale is not None and state.get("scale") is not None:  # the run may have trained in another type
            self.scale.load_state(state["scale"])


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for step number `step` (0 is the first), on every device.

    What a step draws, drop path's samples, is a function of the run's seed and the step: the same in every process,
    which draws for the whole batch and takes its share, and whether the run was interrupted or not.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, 2, step)).generate_state(1, np.uint64)[0]))
