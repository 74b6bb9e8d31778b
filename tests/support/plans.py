"""What every plan of the CPU planner must fit in, and the sizes of the networks whose plans are changed."""

from __future__ import annotations

from dynroute import planner
from dynroute.planner import Shape

HEIGHT, WIDTH = 96, 160  # maps of 24x40, 12x20, 6x10 and 3x5


def check(plan: planner.Plan, shape: Shape) -> None:
    assert 1 <= plan.step_rows <= plan.band_rows <= shape.h_out
    assert plan.strip >= 1 and 1 <= plan.tile_pixels <= planner.MAX_TILE_PIXELS
    assert plan.milliseconds > 0
