"""Measures tilings of a network's cells against the cost model's: what `dynroute bench --tune` saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork
from dynroute.native import planner
from dynroute.native.planner import Plan, Shape
from dynroute.runtime import optimize
from dynroute.runtime.cpu import tuning_file
from dynroute.runtime.cpu.tuning_file import Entry
from dynroute.runtime.executor import Runtime
from dynroute.runtime.weights.pack import CELL_STACKS
from dynroute.space.wiring import SCALES, padded_size
from dynroute.version import __version__

# A first look at all candidates; the best few then compete with the model's plan on times of their own, so that a
# candidate that was only lucky in the first look gains nothing by it.
LOOK_ROUNDS = 3
FINALISTS = 5
LEAST_GAIN = 0.03  # below it the model's plan stays: the next measurement could well say otherwise
MOST_LOSS = 0.01  # of the whole network, with all chosen plans together; beyond it none of them is kept


@dataclass(frozen=True)
class Candidate:
    """What is fixed of a plan; the rest, the bands above all, is the model's. Fields as in `planner.tune`."""

    fused: bool | None = None
    step_rows: int = 0
    strip: int = 0
    tile_pixels: int = 0

    def put(self, shape: Shape) -> None:
        """For all runs from now on."""
        planner.tune(
            shape.stages, shape.c_in, shape.c_out, shape.h_out, shape.w_out, shape.stride, fused=self.fused,
            step_rows=self.step_rows, strip=self.strip, tile_pixels=self.tile_pixels,
        )  # fmt: skip


@dataclass(frozen=True)
class TunedShape:
    """What was found for the cells of one scale.

    Attributes:
        shape: of the cells.
        candidates: how many different plans were timed, the model's among them.
        model, chosen: plans; the same where the model's stays.
        model_ms, chosen_ms: measured milliseconds of this scale's cells in one pass, all nodes open, batch 1, added up
            over threads; medians.
        gain: 1 - chosen / model, by the medians or by the fastest rounds, whichever is less; 0 where the model's stays.
        best: the best gain that any candidate showed, kept or not.
        choice: what is fixed; None where the model's plan stays.
    """

    shape: Shape
    candidates: int
    model: Plan
    chosen: Plan
    model_ms: float
    chosen_ms: float
    gain: float
    best: float
    choice: Candidate | None


@dataclass(frozen=True)
class TunedNetwork:
    """All scales, and the whole network's milliseconds (wall time, batch 1, all open) before and after; medians.

    `kept` is False where the chosen plans together made the network slower; there are no entries then.
    """

    shapes: list[TunedShape]
    threads: int
    model_ms: float
    chosen_ms: float
    kept: bool

    def entries(self) -> list[Entry]:
        """Lines for the tuning file."""
        here = planner.machine()
        return [
            Entry(
                found.shape, here, found.choice.fused, found.choice.step_rows, found.choice.strip,
                found.choice.tile_pixels, self.threads, found.model_ms, found.chosen_ms, __version__,
            )
            for found in self.shapes
            if found.choice is not None and self.kept
        ]  # fmt: skip


def cell_shapes(config: NetworkConfig, height: int, width: int) -> list[Shape]:
    """Shapes of the four scales' cells for images of height x width pixels, as the engine asks the planner for them."""
    h, w = padded_size(height, width, config.small_gate)
    stages, c = CELL_STACKS[config.cell[0]], config.channels
    return [Shape(stages, c << s, c << s, h >> (s + 2), w >> (s + 2)) for s in range(SCALES)]


def may_be_staged(shape: Shape, scale: int) -> bool:
    """Whether the engine considers one stage at a time for the cells of this scale, in float32."""
    return planner.may_be_staged(shape.stages, scale)


def plan_of(shape: Shape, scale: int, threads: int) -> Plan:
    """The plan in force for one open cell of this scale."""
    return planner.plan(
        shape.stages, shape.c_in, shape.c_out, shape.h_out, shape.w_out, shape.stride,
        staged=may_be_staged(shape, scale), samples=1, threads=threads,
    )  # fmt: skip


def candidates(shape: Shape, scale: int, threads: int) -> list[Candidate]:
    """Tilings worth a measurement, each making another plan; the first is the model's.  Leaves the model's in force."""
    wanted = [Candidate()]
    for fused in (True, False) if may_be_staged(shape, scale) else (None,):
        for step in (1, 2, 4, 8):
            # within a strip narrower than the map a panel is one row of it, so its size matters in whole rows only
            wanted += [Candidate(fused, step, strip) for strip in (16, 32, 64) if strip < shape.w_out]
            wanted += [Candidate(fused, step, shape.w_out, pixels) for pixels in (24, 48, 96, 192)]
    found: dict[tuple[object, ...], Candidate] = {}
    for candidate in wanted:
        if candidate.step_rows > shape.h_out:
            continue
        candidate.put(shape)
        plan = plan_of(shape, scale, threads)
        strip = min(plan.strip, shape.w_out)
        rows = max(1, plan.tile_pixels // shape.w_out) if strip == shape.w_out else 1
        # the kernel joins whole rows into a panel, no more than a step has
        found.setdefault((plan.fused, plan.band_rows, plan.step_rows, strip, min(rows, plan.step_rows)), candidate)
    Candidate().put(shape)
    return list(found.values())


def tune_network(
    net: DynamicNetwork,
    images: Tensor,
    rounds: int = 11,
    progress: Callable[[int, int], None] | None = None,
) -> TunedNetwork:
    """Times plans for the cells of `net` on this machine, at the images' size and torch's number of threads.

    Candidates of all four scales are timed side by side, each with its own scale's share of the engine's trace,
    interleaved in rounds. No tuning is in force during the measurement, nor after it.

    Args:
        net: in evaluation mode.
        images: float32 [1,3,H,W]; all nodes are forced open.
        rounds: of the last comparison.
        progress: called after each run with the runs done so far and those expected in all.

    Raises:
        RuntimeError: the planner is not there.
        ValueError: the CPU backend does not run this network.
    """
    runtime = optimize(net, backend="cpu")
    tuning_file.forget_tuning()
    threads = torch.get_num_threads()
    shapes = cell_shapes(net.config, images.shape[-2], images.shape[-1])
    tried = [candidates(shape, s, threads) for s, shape in enumerate(shapes)]
    done, most = 0, max(map(len, tried))
    total = 1 + LOOK_ROUNDS * most + rounds * (min(FINALISTS, most - 1) + 3)

    def counted() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    try:
        models = [plan_of(shape, s, threads) for s, shape in enumerate(shapes)]
        gates = runtime.all_open_gates()
        runtime(images, gates)
        counted()
        looked = _time(runtime, images, gates, shapes, tried, LOOK_ROUNDS, counted)
        finals = []
        for of_scale, times in zip(tried, looked):
            order = np.argsort([np.median(t) for t in times[1:]])[:FINALISTS]
            finals.append([of_scale[0], *(of_scale[1 + int(i)] for i in order)])
        compared = _time(runtime, images, gates, shapes, finals, rounds, counted)

        found = []
        for s, shape in enumerate(shapes):
            medians = [float(np.median(t)) for t in compared[s]]
            # what else runs on the machine only ever adds time, so the fastest rounds have to agree with the medians
            gains = [
                min(1 - middle / medians[0], 1 - min(t) / min(compared[s][0]))
                for middle, t in zip(medians, compared[s])
            ]
            best = int(np.argmax(gains))
            choice = finals[s][best] if gains[best] > LEAST_GAIN else None
            (choice or Candidate()).put(shape)
            chosen, kept = plan_of(shape, s, threads), best if choice is not None else 0
            found.append(
                TunedShape(
                    shape, len(tried[s]), models[s], chosen, medians[0], medians[kept], gains[kept], gains[best], choice
                )
            )
        return TunedNetwork(found, threads, *_time_whole(runtime, images, gates, found, threads, rounds, counted))
    finally:
        tuning_file.forget_tuning()


def _time(
    runtime: Runtime,
    images: Tensor,
    gates: Tensor,
    shapes: Sequence[Shape],
    tried: Sequence[Sequence[Candidate]],
    rounds: int,
    counted: Callable[[], None],
) -> list[list[list[float]]]:
    """Milliseconds per scale, candidate and round.  Every round starts with another candidate."""
    times: list[list[list[float]]] = [[[] for _ in of_scale] for of_scale in tried]
    most = max(map(len, tried))
    for turn in range(rounds):
        for i in range(most):
            which = [(i + turn) % len(of_scale) for of_scale in tried]
            for shape, of_scale, index in zip(shapes, tried, which):
                of_scale[index].put(shape)
            with planner.tracing() as trace:
                runtime(images, gates)
            for s, index in enumerate(which):
                # one stage at a time stores X first: that is part of its price
                spent = sum(t.milliseconds for t in trace if t.scale == s and t.work in ("cell", "aggregate"))
                times[s][index].append(spent)
            counted()
    return times


def _time_whole(
    runtime: Runtime,
    images: Tensor,
    gates: Tensor,
    found: Sequence[TunedShape],
    threads: int,
    rounds: int,
    counted: Callable[[], None],
) -> tuple[float, float, bool]:
    """Median wall milliseconds of the network with the model's and the chosen plans, and whether these are kept."""
    # where nothing was chosen the plans are the same, and one time says all
    sides = (False, True) if any(of_scale.choice is not None for of_scale in found) else (False,)
    times: dict[bool, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        for side in sides[:: 1 if turn % 2 == 0 else -1]:
            for s, of_scale in enumerate(found):
                ((of_scale.choice if side else None) or Candidate()).put(of_scale.shape)
                plan_of(of_scale.shape, s, threads)  # made now, not while the clock runs
            started = time.perf_counter()
            runtime(images, gates)
            times[side].append((time.perf_counter() - started) * 1e3)
            counted()
    model = float(np.median(times[False]))
    if len(sides) == 1:
        return model, model, True
    ratio = float(np.median(np.divide(times[True], times[False])))  # within a round, as the machine's speed drifts
    return model, float(np.median(times[True])), ratio <= 1 + MOST_LOSS
