"""All open against routed on the clock: interleaved rounds in one process, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dynroute.measure.opened import Model
from dynroute.measure.results import RouteTimes, Spread
from dynroute.space.wiring import CLOSED_BELOW, SCALES, build_space

WARMUP = 1


def random_patterns(layers: int, share: float, count: int, seed: int) -> Tensor:
    """float32 [count,L+1,4,3]: per sample the init cell and `share` of the grid's nodes open, with all their paths."""
    places = [(node.row, node.scale) for row in build_space(layers)[1:] for node in row]
    rng = np.random.default_rng((seed, round(share * 1000), layers))
    gates = torch.zeros(count, layers + 1, SCALES, 3)
    gates[:, 0] = 1.0
    for sample in range(count):
        for place in rng.permutation(len(places))[: round(share * len(places))]:
            gates[sample, places[place][0], places[place][1]] = 1.0
    return gates


def interleave(
    jobs: dict[str, Callable[[], object]],
    repeats: int,
    each: Callable[[], None] | None = None,
    pause: float = 0.0,
    device: torch.device | None = None,
) -> dict[str, np.ndarray]:
    """Seconds of each job in each of `repeats` rounds, after a warm-up; every round starts with another job.

    Args:
        pause: seconds to wait before each job, for worker threads of the one before it to fall asleep.
        device: a GPU is timed by its own events, from before the job's first launch to after its last.
    """
    names = list(jobs)
    taken = np.zeros((len(names), repeats))
    for turn in range(-WARMUP, repeats):
        for i in range(len(names)):
            which = (i + turn) % len(names)
            if pause:
                time.sleep(pause)
            seconds = _timed(jobs[names[which]], device)
            if turn >= 0:
                taken[which, turn] = seconds
        if each is not None:
            each()
    return dict(zip(names, taken))


def _timed(job: Callable[[], object], device: torch.device | None) -> float:
    """Seconds of one job."""
    if device is None or device.type != "cuda":
        started = time.perf_counter()
        job()
        return time.perf_counter() - started
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        job()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def time_routes(
    model: Model,
    batches: Sequence[Tensor],
    gates: Sequence[Tensor | None],
    repeats: int,
    eager: nn.Module | None = None,
    each: Callable[[], None] | None = None,
    routes: str = "",
) -> RouteTimes:
    """Times one round over `batches` all open, routed, and in eager PyTorch.

    Args:
        model: with a runtime.
        batches: images [N,3,H,W] each.
        gates: for each batch alphas [N,L+1,4,3] to force, or None for the network's own gates.
        repeats: rounds after one of warm-up.
        eager: the same network, channels_last, in evaluation mode; None leaves it out.
        each: called after each round.
        routes: what is routed, in words.
    """
    ones = model.open_gates()

    def over(run: Callable[[Tensor, Tensor | None], object], forced: Sequence[Tensor | None]) -> Callable[[], None]:
        def job() -> None:
            for images, alphas in zip(batches, forced):
                run(images, alphas)

        return job

    jobs: dict[str, Callable[[], object]] = {
        "all_open": over(model, [ones] * len(batches)),
        "routed": over(model, gates),
    }
    if eager is not None:
        jobs["eager"] = over(lambda images, _: eager(images), gates)
    with torch.inference_mode():
        seconds = interleave(jobs, repeats, each, device=model.device)
    count = sum(len(images) for images in batches)
    work, opened = {}, 0.0
    for name, forced in (("all_open", [ones] * len(batches)), ("routed", gates)):
        outs = [model(images, alphas) for images, alphas in zip(batches, forced)]
        work[name] = sum(int(out.executed_macs.sum()) for out in outs) / count
        opened = sum(float((out.gates[:, 1:].sum(-1) > CLOSED_BELOW).sum()) for out in outs) / count
    nodes = sum(len(row) for row in build_space(model.net.config.layers)[1:])
    time_ratio, work_ratio = seconds["all_open"] / seconds["routed"], work["all_open"] / work["routed"]
    medians = float(np.median(seconds["all_open"]) / np.median(seconds["routed"]))
    shares = Spread.of(time_ratio / work_ratio)
    return RouteTimes(
        routes=routes,
        batch=len(batches[0]),
        images=count,
        size=(batches[0].shape[-2], batches[0].shape[-1]),
        repeats=repeats,
        ms_per_image={name: Spread.of(values / count * 1e3) for name, values in seconds.items()},
        executed_macs=work,
        open_nodes=opened / nodes,
        time_ratio=medians,
        work_ratio=work_ratio,
        realised_share=medians / work_ratio,
        realised_spread=(shares.p10, shares.p90),
    )
