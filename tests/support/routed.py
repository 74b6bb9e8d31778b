"""Hand-made statistics of routes and rows of timings."""

from __future__ import annotations

from typing import Any

from dynroute.measure.results import RouteStatistics, RouteTimes, Spread


def routes(**changes: Any) -> RouteStatistics:
    """Of a network of 6 layers (21 nodes) with which nothing is wrong."""
    values: dict[str, Any] = {
        "images": 16, "layers": 6, "open_nodes": 0.5, "open_paths": 0.4, "distinct": 8, "largest": 0.125,
        "entropy_bits": 3.0, "closed": [], "absent": [],
    }  # fmt: skip
    return RouteStatistics(**{**values, **changes})


def timed(time: float, work: float, noise: float = 0.01, eager: float | None = None, batch: int = 1) -> RouteTimes:
    """Routed took `time` of all open's 10 ms, `work` of its work; rounds spread by the share `noise`; eager's ms."""
    ms = {"all_open": 10.0, "routed": 10.0 * time, **({"eager": eager} if eager is not None else {})}
    share = work / time
    return RouteTimes(
        routes="own gates",
        batch=batch,
        images=8,
        size=(64, 64),
        repeats=11,
        ms_per_image={name: Spread(v, v * (1 - noise), v * (1 + noise)) for name, v in ms.items()},
        executed_macs={"all_open": 1e6, "routed": 1e6 * work},
        open_nodes=0.5,
        time_ratio=1 / time,
        work_ratio=1 / work,
        realised_share=share,
        realised_spread=(share * (1 - noise), share * (1 + noise)),
    )
