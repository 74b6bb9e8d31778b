"""Alarms of a training: its gates, looked at each time a record is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynroute.cost.budget import Budget
from dynroute.measure.alarms import LEAST_IMAGES, Alarm, in_training
from dynroute.measure.taken import RoutesTaken
from dynroute.models.config import NetworkConfig
from dynroute.space.routing import is_path_open
from dynroute.space.wiring import PATH_NAMES, SCALES
from dynroute.train.processes import Team

# Windows in a row after which an alarm begins, or ends: a node that one image in a hundred opens would come and go.
HOLD = 3


@dataclass(frozen=True)
class Change:
    """An alarm that begins, or ends: then `alarm` is None, and `since` the step at which it began."""

    kind: str
    alarm: Alarm | None
    since: int


class Watch:
    """Gathers which paths the images of steps opened, on the device, and finds what is wrong when asked.

    With several processes each has one, all are asked together, and what they find is of all their images.

    Args:
        network: the one that trains.
        budget: None, or without a weight: there is none.
        crop: height and width of the images.
        steps: of the whole training.
    """

    def __init__(
        self, network: NetworkConfig, budget: Budget | None, crop: Sequence[int], steps: int, team: Team
    ) -> None:
        self.network, self.budget, self.crop, self.steps, self.team = network, budget, crop, steps, team
        self._routes: list[Tensor] = []  # bool [N,L+1,4,3] of each step since the last look
        self._counts: list[Tensor] = []  # bool [N]: whether the step was taken
        self._on: dict[str, int] = {}  # alarms that have begun, with the step
        self._row: dict[str, int] = {}  # windows in a row that say otherwise

    def step(self, gates: Tensor, skipped: Tensor | None) -> None:
        """gates [N,L+1,4,3] of a step's images; skipped: bool scalar, None: it was not. Waits for nothing."""
        self._routes.append(is_path_open(gates.detach()))
        taken = torch.ones((), dtype=torch.bool) if skipped is None else skipped.logical_not()
        self._counts.append(taken.to(gates.device).expand(len(gates)))

    def look(self, step: int, means: dict[str, float]) -> tuple[dict[str, float], list[Change]]:
        """Values of the routes taken by `step` since the last look, and which alarms have begun or ended.

        They are `open_nodes` and `route_bits` (see `RouteStatistics`). Nothing before there are enough images.

        means: of the record's values.
        """
        routes = self._gathered()
        if len(routes) < LEAST_IMAGES:
            return {}, []
        self._routes, self._counts = [], []
        taken = RoutesTaken()
        taken.add(routes.float())
        statistics = taken.statistics()
        assert statistics is not None
        known = "expected_share" in means and "space_share" in means  # not where all steps were skipped
        shares = (means["expected_share"], means["space_share"]) if known else None
        alarms = in_training(statistics, shares, self.network, self.budget, self.crop, step / self.steps)
        values = {"open_nodes": statistics.open_nodes, "route_bits": statistics.entropy_bits}
        return values, self._changes(step, alarms)

    def _changes(self, step: int, alarms: list[Alarm]) -> list[Change]:
        found = {alarm.kind: alarm for alarm in alarms}
        changes = []
        # a collapse hides the others, which stay as they were
        for kind in ["all_closed"] if "all_closed" in found else [*found, *sorted({*self._on, *self._row} - {*found})]:
            if (kind in found) == (kind in self._on):
                self._row.pop(kind, None)
                continue
            self._row[kind] = self._row.get(kind, 0) + 1
            if self._row[kind] < HOLD:
                continue
            del self._row[kind]
            changes.append(Change(kind, found.get(kind), self._on.pop(kind, step)))
            if kind in found:
                self._on[kind] = step
        return changes

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on; the images are those of all processes, which call this together."""
        return {"routes": self._gathered(), "on": dict(self._on), "row": dict(self._row)}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state` returned."""
        self._on, self._row = dict(state["on"]), dict(state["row"])
        routes = state["routes"].to(device)
        if self.team.leads and len(routes):
            self._routes, self._counts = [routes], [torch.ones(len(routes), dtype=torch.bool, device=device)]

    def _gathered(self) -> Tensor:
        """bool [M,L+1,4,3] on the CPU: of all processes' steps that were taken."""
        own = torch.zeros(0, self.network.layers + 1, SCALES, len(PATH_NAMES), dtype=torch.bool)
        if self._routes:
            own = torch.cat(self._routes)[torch.cat(self._counts)].cpu()
        return torch.cat(self.team.listed(own))
