"""What is wrong with a network's routing, from what was measured: pure functions, from numbers to alarms.

Thresholds stand here, with their reasons. `dynroute.train.watch` asks at each log record; evaluation and report once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dynroute.cost.budget import Budget
from dynroute.measure.results import RouteStatistics, RouteTimes
from dynroute.measure.verdict import outcome, saves_work, sentence
from dynroute.models.config import NetworkConfig
from dynroute.space.wiring import build_space

# Of a grid's nodes that are open: one of the 61 of 16 layers is 1.6%. A budget of a tenth leaves six.
ALL_CLOSED = 0.02
# Of all paths that are open: a budget is asked for to close more than one in fifty.
ALL_OPEN = 0.98
# Of fewer images neither "none" nor "all" says much: a node that one image in four opens is missed by eight in 10%.
LEAST_IMAGES = 8
# Real less expected, as shares of the space's cost: open gates at their initial bias make 0.1, the budgeted CamVid
# network, which keeps what its budget promises, 0.17; where alphas shrink and nothing closes it is 0.7 and more.
FAR = 0.25
# Real cost of the space against the target, both as shares of it all open: CamVid's network is off by 0.05.
MISSED = 0.10
# Of the saving that was wanted, less than this was made: the target is not nearly but wholly missed.
MADE = 0.5
# Of training, from where the budget acts in full: gates need their time to close. CamVid's have by then.
SETTLING = 0.10


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong, in words for its user.

    Attributes:
        kind: which alarm it is.
        severity: "red" where the routing is worth nothing as it is, "yellow" where it is less than it seems.
        message: what was found; meaning: what follows from it; advice: what to try.
        numbers: what was measured, plain values.
    """

    kind: str
    severity: Literal["red", "yellow"]
    message: str
    meaning: str
    advice: str
    numbers: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.message}; {self.meaning}. To try: {self.advice}."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def all_closed(routes: RouteStatistics) -> Alarm | None:
    """Whether (nearly) nothing of the grid is open."""
    if routes.open_nodes >= ALL_CLOSED:
        return None
    return Alarm(
        "all_closed",
        "red",
        f"the gates have collapsed: {routes.open_nodes:.1%} of the grid's nodes are open",
        "next to nothing but stem and decoder is computed, and a closed gate has no gradient to open it again",
        "a smaller budget.weight, a larger budget.target or a longer budget.ramp; a smaller optimiser.lr or "
        "optimiser.gate_lr_factor",
        {"open_nodes": routes.open_nodes, "below": ALL_CLOSED},
    )


def all_open(routes: RouteStatistics, wanted: float, budget: Budget) -> Alarm | None:
    """Whether (nearly) everything is open though the budget wants the share `wanted` of the space's cost."""
    if routes.open_paths <= ALL_OPEN or wanted >= ALL_OPEN:
        return None
    return Alarm(
        "all_open",
        "red",
        f"the gates do not close: {routes.open_paths:.1%} of all paths are open, where the budget wants {wanted:.0%} "
        "of the space's cost",
        "every image costs what a network without gates does, and the gates besides",
        f"{_press(budget)}; sigmoid and softmax gates never close",
        {"open_paths": routes.open_paths, "above": ALL_OPEN, "wanted": wanted},
    )


def dead_nodes(routes: RouteStatistics) -> Alarm | None:
    """Nodes of the grid that no image opens."""
    dead = sorted([*routes.closed, *routes.absent])
    if not dead or routes.images < LEAST_IMAGES:
        return None
    grid = [(node.row - 1, 4 << node.scale) for row in build_space(routes.layers)[1:] for node in row]
    lost = sorted({scale for _, scale in dead} - {scale for _, scale in set(grid) - set(dead)})
    scales = " and ".join(f"1/{scale}" for scale in lost)
    reach = f"; nothing leads to {len(routes.absent)} of them" if routes.absent else ""
    return Alarm(
        "dead_nodes",
        "yellow",
        f"{len(dead)} of the grid's {len(grid)} nodes {'is' if len(dead) == 1 else 'are'} open for none of "
        f"{routes.images} images{reach} "
        f"({_places(dead)})",
        "their weights are learnt and kept for nothing" + (f", and no image uses the scale {scales}" if lost else ""),
        "where so few nodes do, fewer layers or channels; else a larger budget.target, a longer budget.ramp, or "
        "budget.bridge, by which a gate that closes does not cut its scale off",
        {"dead": len(dead), "closed": routes.closed, "absent": routes.absent, "images": routes.images},
    )


def one_route(routes: RouteStatistics) -> Alarm | None:
    """Whether all images take the same open paths."""
    if routes.distinct > 1 or routes.images < LEAST_IMAGES:
        return None
    return Alarm(
        "one_route",
        "yellow",
        f"all {routes.images} images take one route (0 bits)",
        "nothing is chosen by the image, then a fixed network would do, without gates",
        "the open paths as a fixed network (dynroute.routes.common); for routes that differ a target nearer to what "
        "the easy images need, budget.knee, or data whose images differ more",
        {"distinct": routes.distinct, "entropy_bits": routes.entropy_bits, "images": routes.images},
    )


def expected_far_from_real(expected: float, space: float, budget: Budget | None) -> Alarm | None:
    """Whether what is open costs far more than the alphas say; both as shares of the space's cost, all open."""
    if not space - expected > FAR:  # NaN is said elsewhere
        return None
    return Alarm(
        "expected_far_from_real",
        "yellow",
        f"by their alphas the gates spend {expected:.0%} of the space's cost (expected), by what is open {space:.0%} "
        "(real)",
        "alphas shrank and hardly any reached 0: the expected cost is no cost that anybody saves",
        _press(budget),
        {"expected_share": expected, "space_share": space, "above": FAR},
    )


def budget_missed(wanted: float, expected: float, space: float, budget: Budget) -> Alarm | None:
    """Whether the real cost of the space is not what the budget wants; all as shares of its cost, all open."""
    if not abs(space - wanted) > MISSED:
        return None
    numbers = {"wanted": wanted, "expected_share": expected, "space_share": space, "off_by": MISSED}
    found = (
        f"the budget's target is missed: {wanted:.0%} of the space's cost wanted, {space:.0%} left "
        f"(expected, by the alphas: {expected:.0%})"
    )
    if space < wanted:
        return Alarm(
            "budget_missed",
            "yellow",
            found,
            "more is closed than was asked for, and quality may have gone with it",
            "a smaller budget.weight, a longer budget.ramp",
            numbers,
        )
    return Alarm(
        "budget_missed",
        "red" if 1 - space < MADE * (1 - wanted) else "yellow",
        found,
        "a runtime skips only what is closed, so this is what it saves of cells and paths",
        f"{_press(budget)}; more steps",
        numbers,
    )


def of_routing(
    routes: RouteStatistics | None,
    shares: tuple[float, float] | None,
    network: NetworkConfig,
    budget: Budget | None,
    crop: Sequence[int],
) -> list[Alarm]:
    """All that is wrong with the routing of a data set.

    Args:
        routes: None without images.
        shares: of the space's cost, expected and real; None where they are not known.
        network: fixed gates are not blamed for one route.
        budget: of its training; None, or without a weight: there was none.
        crop: height and width of the training's images.
    """
    budget, wanted = _wanted(budget, network, crop)
    found: list[Alarm | None] = []
    if routes is not None and network.gate != "fixed":
        collapsed = all_closed(routes)
        if collapsed is not None:  # all that could be said besides follows from it
            return [collapsed]
        found += [all_open(routes, wanted, budget) if budget is not None else None]
        found += [dead_nodes(routes), one_route(routes)]
    if shares is not None:
        found.append(budget_missed(wanted, *shares, budget) if budget is not None else None)
        found.append(expected_far_from_real(*shares, budget))
    return ordered(found)


def in_training(
    routes: RouteStatistics,
    shares: tuple[float, float] | None,
    network: NetworkConfig,
    budget: Budget | None,
    crop: Sequence[int],
    progress: float,
) -> list[Alarm]:
    """All that is wrong with the routing of a training's last images; other arguments as `of_routing`'s.

    Gates begin open: what a budget has to bring about is looked for once it has had its time, by `progress`, 0..1; a
    missed target in the evaluation alone.
    """
    budget, wanted = _wanted(budget, network, crop)
    if network.gate == "fixed":
        return []
    collapsed = all_closed(routes)
    if collapsed is not None:
        return [collapsed]
    found = [dead_nodes(routes)]
    if budget is not None and is_settled(budget, progress):
        found += [all_open(routes, wanted, budget), one_route(routes)]
        found.append(expected_far_from_real(*shares, budget) if shares is not None else None)
    return ordered(found)


def wanted_share(budget: Budget, network: NetworkConfig, crop: Sequence[int]) -> float:
    """The budget's target as a share of the space's cost, all open, on images of the training's height and width."""
    if budget.full_mflops is None:
        return budget.target
    return budget.target * budget.full_mflops / network.costs(crop[0], crop[1]).all_open


def is_settled(budget: Budget, progress: float) -> bool:
    """Whether at this point of training, 0..1, the gates have had the time to do what the budget wants."""
    return progress >= min(1.0, budget.start + budget.ramp + SETTLING)


def of_times(rows: Sequence[RouteTimes]) -> list[Alarm]:
    """Where skipping does not pay, or the runtime does not, on the machine that was timed."""

    def alarm(kind: str, severity: Literal["red", "yellow"], wrong: list[tuple[RouteTimes, str]], meaning: str,
              advice: str) -> Alarm | None:  # fmt: skip
        if not wrong:
            return None
        numbers = [
            {"batch": row.batch, "routes": row.routes, "time": 1 / row.time_ratio, "work": 1 / row.work_ratio}
            for row, _ in wrong
        ]
        said = "; ".join(f"at batch {row.batch}, {row.routes}, {what}" for row, what in wrong)
        return Alarm(kind, severity, said, meaning, advice, {"rows": numbers})

    slower = [(row, sentence(row)) for row in rows if outcome(row) == "slower"]
    unseen = [(row, sentence(row)) for row in rows if outcome(row) == "same" and saves_work(row)]
    beaten = []
    for row in rows:
        eager = row.ms_per_image.get("eager")
        routed = row.ms_per_image["routed"]
        if eager is not None and eager.p90 < routed.p10:
            beaten.append((row, f"{routed.median:.2f} ms an image routed, {eager.median:.2f} in eager PyTorch"))
    return ordered(
        [
            alarm(
                "skipping_slower", "red", slower,
                "what routing leaves out takes less time than deciding about it",
                "larger images or a wider network, whose cells are worth skipping; other --threads; "
                "dynroute bench --tune; a network that closes more",
            ),
            alarm(
                "slower_than_eager", "red", beaten,
                "the runtime is no gain on this machine",
                "dynroute doctor, which says what runs here and why not the rest; other --threads; "
                "dynroute bench --tune",
            ),
            alarm(
                "saving_not_seen", "yellow", unseen,
                "work is saved and no time, as far as these rounds tell",
                "more --repeats on a machine without other work; a network that closes more",
            ),
        ]
    )  # fmt: skip


def in_words(routes: RouteStatistics) -> str:
    """How much images choose."""
    most = math.log2(routes.images)
    return (
        f"{routes.distinct} different for {routes.images} images, {routes.entropy_bits:.1f} bits of at most "
        f"{most:.1f}; {routes.largest:.0%} take the most frequent"
    )


def ordered(alarms: Sequence[Alarm | None]) -> list[Alarm]:
    """Those that are, red before yellow."""
    return sorted((alarm for alarm in alarms if alarm is not None), key=lambda alarm: alarm.severity != "red")


def _wanted(
    budget: Budget | None, network: NetworkConfig, crop: Sequence[int]
) -> tuple[Budget, float] | tuple[None, float]:
    """The budget, if there is one, and what it wants."""
    if budget is None or budget.weight == 0:
        return None, 1.0
    return budget, wanted_share(budget, network, crop)


def _press(budget: Budget | None) -> str:
    """What closes more than this budget did."""
    if budget is None:
        return "a budget, with budget.measure=real"
    ways = ["budget.measure=real, which presses until paths close"] if budget.measure != "real" else []
    if budget.knee == 0:
        ways.append("budget.knee=0.1, which presses weak paths more than strong ones")
    return ", ".join([*ways, f"a larger budget.weight than {budget.weight:g}"])


def _places(nodes: list[tuple[int, int]]) -> str:
    """(layer, n) at scale 1/n -> "at 1/4 layers 0 3-5, at 1/8 ..."."""
    said = []
    for scale in sorted({scale for _, scale in nodes}):
        layers = sorted(layer for layer, at in nodes if at == scale)
        runs: list[list[int]] = []
        for layer in layers:
            if runs and runs[-1][-1] == layer - 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        words = [f"{run[0]}-{run[-1]}" if len(run) > 2 else " ".join(map(str, run)) for run in runs]
        said.append(f"at 1/{scale} layer{'s' if len(layers) > 1 else ''} {' '.join(words)}")
    return ", ".join(said)
