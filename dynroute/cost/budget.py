"""The budget: what the routing is asked to spend, as a loss (SPEC, "Cost")."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dynroute.cost.tables import CostTables

MEASURES = ("expected", "real")


@dataclass(frozen=True)
class Budget:
    """lambda2 * warmup * (C(Space)/C - mu)^2.

    Attributes:
        weight: lambda2; 0: no budget.
        target: mu, the share of C to spend.
        full_mflops: C in MFLOPs; None takes the network's own all-open expected cost at the input's size.
        measure: "expected" is the published loss.  "real" counts what a runtime would execute: the value uses the
            indicators of the real cost, the gradient goes straight through to the alphas, so that the pressure
            stays on until paths close and stops where they have (docs/guide/budget.md).
        ramp: share of training over which the weight grows linearly.
        bridge: above 0, a node whose alphas sum to less than this passes a part of its input in training, all of it at
            0; the threshold falls linearly from this at `start` to 0 at `bridge_end`, where the network is the
            published one again.  0: the published network throughout.
        start: share of training before which the budget does nothing (SPEC: 40%).
        bridge_end: share of training at which the bridge is gone.
        knee: above 0, the gradient of measure "real" takes each alpha's price as log(1 + alpha/knee) / log(1 + 1/knee)
            instead of alpha: a weak path is pressed harder than a strong one, so that gates part into closed and open
            instead of all fading together.  0: every alpha alike.
    """

    weight: float = 0.0
    target: float = 0.1
    full_mflops: float | None = None
    measure: str = "expected"
    ramp: float = 0.02
    bridge: float = 0.0
    start: float = 0.40
    bridge_end: float = 0.80
    knee: float = 0.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"budget.weight: wanted 0 or more, got {self.weight}")
        if self.measure not in MEASURES:
            raise ValueError(f"budget.measure: wanted one of {', '.join(MEASURES)}, got {self.measure!r}")
        if self.bridge < 0:
            raise ValueError(f"budget.bridge: wanted a sum of alphas, 0 or more, got {self.bridge}")
        if self.knee < 0:
            raise ValueError(f"budget.knee: wanted an alpha, 0 or more, got {self.knee}")
        if self.ramp <= 0:
            raise ValueError(f"budget.ramp: wanted a share of training above 0, got {self.ramp}")
        if not 0 <= self.start < self.bridge_end <= 1:
            raise ValueError(
                "budget.start, budget.bridge_end: wanted 0 <= start < bridge_end <= 1, "
                f"got {self.start}, {self.bridge_end}"
            )
        if self.full_mflops is not None and self.full_mflops <= 0:
            raise ValueError(f"budget.full_mflops: wanted a positive number or None, got {self.full_mflops}")

    def warmup(self, progress: float | Tensor) -> float | Tensor:
        """0 before `start`, then linear to 1 over the ramp (SPEC: from 40% of training over the next 2%)."""
        if isinstance(progress, Tensor):
            return ((progress - self.start) / self.ramp).clamp(0, 1)
        return min(max((progress - self.start) / self.ramp, 0.0), 1.0)

    def bridge_at(self, progress: float) -> float:
        """The sum of alphas below which a node passes part of its input, at this point of training."""
        if progress < self.start:
            return 0.0
        return self.bridge * max(0.0, (self.bridge_end - progress) / (self.bridge_end - self.start))

    def loss(
        self,
        gates: Tensor,
        tables: CostTables,
        progress: float | Tensor,
        mean: Callable[[Tensor], Tensor] = Tensor.mean,
    ) -> Tensor:
        """gates [N,L+1,4,3] -> scalar; C(Space) is the batch's mean; `mean`: of costs [N], if these are but a part."""
        full = tables.all_open if self.full_mflops is None else self.full_mflops
        if self.measure == "real":
            spent = mean(_priced_as_open(gates, tables, self.knee))
        else:
            spent = mean(tables.expected(gates))
        return self.weight * self.warmup(progress) * (spent / full - self.target) ** 2


def _priced_as_open(gates: Tensor, tables: CostTables, knee: float) -> Tensor:
    """gates [N,L+1,4,3] -> [N]: `CostTables.open_cost` with the gradient of `CostTables.expected` at bent alphas.

    A cell's price bears on the node's largest alpha alone, not on every open one: shared out, it would close the paths
    up and down, which saves no cell, and leave the scales cut off from each other.
    """
    bent = gates if knee == 0 else (gates / knee).log1p() / math.log1p(1 / knee)
    expected = tables.expected(bent)
    return expected + (tables.open_cost(gates.detach()) - expected).detach().to(expected)
