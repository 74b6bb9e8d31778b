"""What timings of routed against all open say, noise and all."""

from __future__ import annotations

from typing import Literal

from dynroute.measure.results import RouteTimes

# Of all open's work: where less is saved, there is no saving that a clock could show (work without any differs by the
# gates, a percent or so, as all open has its gates given).
LEAST_SAVED = 0.02


def saves_work(row: RouteTimes) -> bool:
    """Whether routed does noticeably less than all open."""
    return 1 - 1 / row.work_ratio >= LEAST_SAVED


def time_range(row: RouteTimes) -> tuple[float, float]:
    """10th and 90th percentile over rounds of routed's time as a share of all open's."""
    low, high = (share * row.work_ratio for share in row.realised_spread)  # of T_open / T_routed
    return 1 / high, 1 / low


def outcome(row: RouteTimes) -> Literal["faster", "slower", "same"]:
    """How routed compares with all open; "same" where four rounds in five lie on both sides of 1, or around it."""
    low, high = time_range(row)
    if high < 1 < row.time_ratio:
        return "faster"
    return "slower" if row.time_ratio < 1 < low else "same"


def pays(row: RouteTimes) -> bool:
    """Whether a realised share means something: work was saved, and so was time."""
    return saves_work(row) and outcome(row) == "faster"


def disappoints(row: RouteTimes) -> bool:
    """Whether routed is slower, or saved work that no clock shows."""
    return outcome(row) == "slower" or (outcome(row) == "same" and saves_work(row))


def sentence(row: RouteTimes) -> str:
    """What the row says, the unwelcome first."""
    work = f"for {1 / row.work_ratio:.0%} of the work"
    found = outcome(row)
    if found == "slower":
        return (
            f"routed takes {1 / row.time_ratio:.2f} times as long as all open on this machine, {work}: "
            "skipping does not pay here"
        )
    if found == "same":
        low, high = time_range(row)
        said = f"no difference measured: routed takes {low:.0%} to {high:.0%} of all open's time, {work}"
    else:
        said = f"routed takes {1 / row.time_ratio:.0%} of all open's time, {work}"
    return said if saves_work(row) else f"{said}: hardly any work was skipped"
