"""Measures cuts of the Triton kernels: what `dynroute bench --tune --backend triton` saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute.measure.timing import interleave
from dynroute.models.config import NetworkConfig
from dynroute.ops.triton import configs
from dynroute.ops.triton.cuts import Cut, Entry, Key
from dynroute.ops.triton.launch import interpreted
from dynroute.ops.triton.launch import why_not as why_not_run
from dynroute.provenance import provenance
from dynroute.runtime.weights.pack import CELL_STACKS
from dynroute.space.wiring import SCALES, padded_size

# A first look at all candidates; the best few then compete with the checked-in cut on times of their own, so that a
# candidate that was only lucky in the first look gains nothing by it.
LOOK_ROUNDS = 3
FINALISTS = 5
LEAST_GAIN = 0.03  # below it the checked-in cut stays: the next measurement could well say otherwise
CALLS = 10  # in a graph: what is timed takes long beside the clock's own microsecond

Job = Callable[[], object]
# Seconds of each job in each of so many rounds.
Timer = Callable[[dict[str, Job], int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Call:
    """An operator on one scale's maps, as the network calls it; what is measured.

    Attributes:
        key: whose cut it is launched with.
        height, width: of the maps in pixels, batch 1.
        run: the call, or the calls, with that cut: a scale's transforms share it.
    """

    key: Key
    height: int
    width: int
    run: Job


@dataclass(frozen=True)
class TunedCall:
    """What was found for one operator on one scale's maps.

    Attributes:
        key, height, width: as in `Call`.
        tried: candidates that ran, the checked-in cut among them.
        skipped: candidates that did not compile or run, and why, in one line each.
        before, chosen: cuts; the same where the checked-in one stays.
        before_ms, chosen_ms: measured milliseconds of the call; medians.
        gain: 1 - chosen / before, by the medians or by the fastest rounds, whichever is less; 0 where the checked-in
            cut stays.
        best: the best gain that any candidate showed, kept or not.
    """

    key: Key
    height: int
    width: int
    tried: int
    skipped: list[str]
    before: Cut
    chosen: Cut
    before_ms: float
    chosen_ms: float
    gain: float
    best: float

    def entry(self, rounds: int, seed: int, device: str) -> Entry | None:
        """A line for the tuned file; None where the checked-in cut stays."""
        if self.chosen == self.before:
            return None
        import triton

        about = provenance(seed)
        measured: dict[str, Any] = {
            "device": device, "height": self.height, "width": self.width, "batch": 1, "rounds": rounds,
            "before": self.before._asdict(), "before_ms": self.before_ms, "ms": self.chosen_ms,
            "versions": {**about["versions"], "triton": triton.__version__}, "command": about["command"], "seed": seed,
        }  # fmt: skip
        return Entry(self.key, self.chosen, measured)


def why_not(config: NetworkConfig | None = None) -> str | None:
    """Why nothing can be measured, in one line, or None if it can.

    Args:
        config: of the network whose calls are wanted; None asks for this machine alone.
    """
    if interpreted():
        return "TRITON_INTERPRET is set: kernels are interpreted on the CPU, there is nothing to measure; wanted a GPU"
    if not torch.cuda.is_available():
        return why_not_run(None)
    if config is not None and (len(config.cell) != 1 or config.cell[0] not in CELL_STACKS):
        return f"cell: wanted one of {', '.join(CELL_STACKS)}, this network has {', '.join(config.cell)}"
    return None


def calls(
    config: NetworkConfig, height: int, width: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> list[Call]:
    """What a network calls for one image of height x width pixels: cell, transforms, gate and sum of each scale.

    Maps and weights are random; the sample is open, by a mask.
    """
    from dynroute.ops.triton import operators  # noqa: F401  (importing registers them, and imports Triton)

    h, w = padded_size(height, width, config.small_gate)
    arch, generator = configs.architecture(), torch.Generator().manual_seed(seed)
    triton_ops = torch.ops.dynroute_triton
    is_open = torch.ones(1, dtype=torch.bool, device=device)

    def new(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator)
        if len(shape) == 4:
            made = (made * shape[1] ** -0.5).contiguous(memory_format=torch.channels_last)
        return made.to(device, dtype)

    def of_scale(s: int) -> dict[str, list[tuple[Any, ...]]]:
        """Arguments of each operator's calls."""
        c, (rows, columns) = config.channels << s, (h >> (s + 2), w >> (s + 2))
        x, stages = new(1, c, rows, columns), range(CELL_STACKS[config.cell[0]])
        weights = [[new(*shape) for _ in stages] for shape in ((c, 1, 3, 3), (c, c, 1, 1), (c,), (c,))]
        # the paths that have weights: up and down, as far as there is a scale
        paths = [*([(c // 2, 1)] if s > 0 else []), *([(2 * c, 2)] if s < SCALES - 1 else [])]
        above = new(1, c, rows, columns) if s > 0 else None
        below = new(1, c, rows // 2, columns // 2) if s < SCALES - 1 else None
        found: dict[str, list[tuple[Any, ...]]] = {
            "sepconv": [(x, *weights, is_open, 1, True, True)],
            "transform": [(x, new(out, c, 1, 1), new(out), new(out), is_open, by) for out, by in paths],
            "aggregate": [(above, x, below, new(1, 3).float())],
        }
        if config.gate != "fixed":
            fc = new(len(paths) + 1, c // 2, 1, 1), new(len(paths) + 1)
            pooled = new(c // 2, c, 1, 1), new(c // 2), new(c // 2)
            found["gate"] = [(x, *pooled, *fc, config.gate, config.small_gate, is_open)]
        return found

    def job(op: str, of: list[tuple[Any, ...]]) -> Job:
        return lambda: [getattr(triton_ops, op)(*args) for args in of]

    return [
        Call(Key(op, config.channels << s, dtype, arch), h >> (s + 2), w >> (s + 2), job(op, of))
        for s in range(SCALES)
        for op, of in of_scale(s).items()
    ]


def candidates(key: Key) -> list[Cut]:
    """Cuts worth a measurement, without repetition; the first is the checked-in one."""
    most = max(16, min(128, _power(2 * key.channels if key.op == "transform" else key.channels)))
    wide = key.dtype == torch.float32
    wanted = [configs.checked_in(key)]
    for m in (16, 32, 64, 128):
        for n in (16, 32, 64, 128):
            if n > most or not m // 4 <= n <= 2 * m or not 512 <= m * n <= (4096 if wide else 8192):
                continue
            for warps in (4, 8) if m * n >= 2048 else (4,):
                if key.op in configs.MAPS:
                    wanted.append(Cut(m, n, 16, warps))
                    continue
                for k in (16, 32, 64):
                    if k > 2 * min(m, n) or (k > max(16, _power(key.channels)) and key.op != "train_outer"):
                        continue
                    for loads in (2, 3) if k == 32 else (3,):
                        # of a contraction over pixels, these are its steps, and the sums are n x m
                        outer = key.op == "train_outer"
                        wanted.append(Cut(k, n, m, warps, loads) if outer else Cut(m, n, k, warps, loads))
    return list(dict.fromkeys(wanted))


def _power(channels: int) -> int:
    """The smallest power of two that has room."""
    return 1 << (channels - 1).bit_length()


def tune(
    of: Sequence[Call], rounds: int = 11, timer: Timer | None = None, progress: Callable[[int, int], None] | None = None
) -> list[TunedCall]:
    """Times candidates of each call, interleaved in rounds; in force is afterwards what was before.

    Args:
        rounds: of the last comparison.
        timer: what times jobs; None is the GPU's clock, `on_gpu`.
        progress: called with the steps done so far and all of them.

    Raises:
        RuntimeError: a checked-in cut does not run.
    """
    timer = timer or on_gpu
    tried = [candidates(call.key) for call in of]
    total, done = sum(len(cuts) + 2 for cuts in tried), 0

    def counted() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    found = []
    for call, cuts in zip(of, tried):
        jobs, skipped = _jobs(call, cuts, counted)
        looked = timer(jobs, LOOK_ROUNDS)
        counted()
        before, *others = jobs
        order = sorted(others, key=lambda name: float(np.median(looked[name])))[:FINALISTS]
        compared = timer({name: jobs[name] for name in (before, *order)}, rounds)
        counted()
        by_name = {str(tuple(cut)): cut for cut in cuts}
        medians = {name: float(np.median(seconds)) for name, seconds in compared.items()}
        # what else runs on the machine only ever adds time, so the fastest rounds have to agree with the medians
        gains = {
            name: min(1 - medians[name] / medians[before], 1 - float(compared[name].min() / compared[before].min()))
            for name in compared
        }
        best = max(gains, key=lambda name: gains[name])
        kept = best if gains[best] > LEAST_GAIN else before
        found.append(
            TunedCall(
                call.key, call.height, call.width, len(jobs), skipped, by_name[before], by_name[kept],
                medians[before] * 1e3, medians[kept] * 1e3, gains[kept], gains[best],
            )
        )  # fmt: skip
    return found


def _jobs(call: Call, cuts: Sequence[Cut], counted: Callable[[], None]) -> tuple[dict[str, Job], list[str]]:
    """Jobs that run the call, by cut, and why the others do not; the first cut has to run."""
    from triton.errors import TritonError

    jobs: dict[str, Job] = {}
    skipped = []
    for cut in cuts:

        def job(cut: Cut = cut) -> None:
            with configs.using(call.key, cut):
                call.run()

        try:
            job()  # compiled now, not while the clock runs
            jobs[str(tuple(cut))] = job
        except (TritonError, RuntimeError) as error:  # RuntimeError: of the compiler's passes, and of a launch
            if cut == cuts[0]:
                raise
            skipped.append(f"{tuple(cut)}: {' '.join(str(error).split())[:200]}")
        counted()
    return jobs, skipped


def on_gpu(jobs: dict[str, Job], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each job in each round, by the GPU's events: replays of graphs of `CALLS` calls, so that the host's
    time for a launch counts nowhere. The jobs have run before."""
    device = torch.device("cuda", torch.cuda.current_device())
    pool = torch.cuda.graph_pool_handle()  # one, as no result is looked at: candidates write where others did
    graphs: dict[str, Job] = {}
    for name, job in jobs.items():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            for _ in range(CALLS):
                job()
        graphs[name] = graph.replay
    return {name: seconds / CALLS for name, seconds in interleave(graphs, rounds, device=device).items()}
