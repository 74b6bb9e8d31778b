"""Training in 16 bits (`run.amp`): autocast's type, and the scale of the loss that float16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynroute.train.parse import ConfigError

TYPES: dict[str, torch.dtype | None] = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

FIRST = 2.0**16  # the scale that a run begins with, as torch.amp.GradScaler's
GROWTH = 2000  # steps taken in a row after which it doubles
FLOOR = 1.0  # below it small gradients are lost rather than kept: then it is not the scale that is wrong


class LossScale:
    """Keeps float16 gradients in range: the loss is multiplied by `value`, gradients are divided by it.

    A step whose gradient overflows though its loss is finite is skipped and halves the scale; 2000 steps taken in a row
    double it. Everything stays on the device, in place, so that a recorded step can do it. This is the rule of
    torch.amp.GradScaler, which cannot be asked to leave the scale alone where the loss itself is not finite (an image
    with a NaN, weights that diverge): no scale would help there, and such steps are `SkipLimit`'s.

    Attributes:
        value: float32 scalar, a power of two.
        taken: int64 scalar, steps taken in a row.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), FIRST, device=device)
        self.taken = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divides them by the scale, in place."""
        torch._foreach_mul_(list(gradients), self.value.reciprocal())

    @torch.no_grad()
    def update(self, skipped: Tensor, overflowed: Tensor) -> None:
        """Take in a step: bool scalars, whether it was skipped, and whether that was the scale's fault."""
        taken = torch.where(overflowed, 0, self.taken + skipped.logical_not())
        grows = taken >= GROWTH
        factor = torch.where(overflowed, 0.5, torch.where(grows, 2.0, 1.0))
        self.value.mul_(factor)
        self.taken.copy_(torch.where(grows, 0, taken))

    def check(self, step: int) -> None:
        """Raises ConfigError where the scale has fallen under its floor; waits for the device."""
        scale = float(self.value)
        if scale < FLOOR:
            raise ConfigError(
                f"step {step}: the loss scale of float16 has fallen to {scale:g}, below {FLOOR:g}: gradients are not "
                "finite whatever the scale; the checkpoints before stay; resuming with run.amp=bfloat16, or with a "
                "lower optimiser.lr, may help"
            )

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "taken": self.taken}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.value.copy_(state["value"])
        self.taken.copy_(state["taken"])


def check_amp(choice: str, device: torch.device) -> None:
    """Raises ConfigError where `run.amp` cannot be had on the device."""
    if choice == "float16" and device.type != "cuda":
        raise ConfigError(
            f"run.amp: float16 wanted a GPU, this run is on {device.type}, where products of float16 have no hardware "
            "and the operators train in float32 all the same; bfloat16 runs here"
        )
