"""The one harness: a registry of benchmarks, and interleaved rounds in one process.

A benchmark is a function of shapes that returns a `Case`: named callables, ours and its peers', with their work. The
harness runs a case's callables in rounds, each round starting with another one, and compares within a round, so that
what else the machine does meets all of them alike.

Every number in the results is `{"kind": ..., ...}`; the kinds are
    measured   read off a clock, an allocator or an output
    counted    added up by the kernels while they ran
    computed   follows from shapes or from other numbers by definition
    estimated  computed under an assumption that is said beside it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynroute.measure.results import Spread
from dynroute.measure.timing import interleave

KINDS = ("measured", "counted", "computed", "estimated")
LEAST_SECONDS = 4e-3  # of a sample: shorter callables are called several times, to be told from the clock
LEAST_ROUNDS = 5  # a slow case is given fewer rounds than asked for, but no fewer than these
PAUSE_SECONDS = 3e-3  # before a sample: worker threads of the library before it spin for a while, then sleep
SCALES = ("full", "quick", "tiny")
OURS = "ours"
SEED = 20200612


def number(kind: str, value: float, **more: Any) -> dict[str, Any]:
    """A number of the results, with its kind."""
    assert kind in KINDS, kind
    return {"kind": kind, "value": value, **more}


def measured(values: np.ndarray) -> dict[str, Any]:
    """Samples -> median and 10th to 90th percentile."""
    return {"kind": "measured", **asdict(Spread.of(values))}


def bar(name: str, wanted: float, got: Mapping[str, Any], at_least: bool = True) -> dict[str, Any]:
    """A bar and whether `got` (with `median` or `value`) clears it."""
    value = float(got["median"] if "median" in got else got["value"])
    hit = value >= wanted if at_least else value <= wanted
    return {"name": name, "wanted": wanted, "at_least": at_least, "got": value, "hit": hit, "kind": got["kind"]}


@dataclass
class Settings:
    """What a benchmark is told beside its shapes.

    Attributes:
        rounds: of each case.
        seconds: what the rounds of one case may take before their number is lowered (to LEAST_ROUNDS at least).
        scale: one of SCALES: which of its shapes a benchmark takes.
        peers: names of `benchmarks.peers` to compare with; None for all.
        run: a training run's folder, for the benchmarks that want trained gates.
        cache: where exported models are kept.
    """

    rounds: int = 15
    seconds: float = 30.0
    scale: str = "full"
    peers: tuple[str, ...] | None = None
    run: str | None = None
    cache: Path = Path("build/benchmarks")
    say: Callable[[str], None] = lambda text: None

    def wants(self, peer: str) -> bool:
        return self.peers is None or peer in self.peers


@dataclass
class Case:
    """Callables that do the same work.

    Attributes:
        jobs: by name. If OURS is among them every other one's time is also given as a ratio to it.
        macs: multiply-accumulates of one call of OURS, as `number`; None where there is no such thing.
        bytes: compulsory bytes of one call: inputs and weights read once, outputs written once.
        errors: by job, its largest difference from the definition over the definition's largest value.
        absent: jobs that are not there, with the reason.
        bars: how many times OURS' time a job's time should be, by job.
        facts: numbers that no clock is needed for.
        derive: from seconds per call by job, [rounds] each, to further numbers.
        judge: from the finished result to further bars.
    """

    jobs: dict[str, Callable[[], object]] = field(default_factory=dict)
    macs: dict[str, Any] | None = None
    bytes: dict[str, Any] | None = None
    errors: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    derive: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] | None = None
    judge: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Benchmark:
    name: str
    group: str
    make: Callable[..., Case]
    shapes: Mapping[str, Sequence[dict[str, Any]]]  # by scale
    guess: Callable[[dict[str, Any]], float]  # how long a shape takes, for the progress bar only


REGISTRY: dict[str, Benchmark] = {}


def benchmark(
    group: str,
    full: Sequence[dict[str, Any]],
    quick: Sequence[dict[str, Any]] | None = None,
    tiny: Sequence[dict[str, Any]] | None = None,
    name: str | None = None,
    guess: Callable[[dict[str, Any]], float] = lambda shape: 1.0,
) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Registers `make(settings, **shape) -> Case` for a list of shapes per scale.

    Args:
        group: what belongs together in the tables.
        full: all shapes; quick: what a look of a minute takes (default: the first); tiny: what a test takes.
        name: default: the function's.
        guess: how long a shape takes, relative to the others.
    """

    def register(make: Callable[..., Case]) -> Callable[..., Case]:
        key = f"{group}.{name or make.__name__}"
        assert key not in REGISTRY, key
        fewer = full[:1] if quick is None else quick
        shapes = {"full": full, "quick": fewer, "tiny": fewer if tiny is None else tiny}
        REGISTRY[key] = Benchmark(key, group, make, shapes, guess)
        return make

    return register


def plan(settings: Settings, only: Sequence[str] = ()) -> list[tuple[Benchmark, dict[str, Any]]]:
    """Benchmarks with shapes, in the order registered; `only` keeps names that contain one of the words.

    Raises:
        ValueError: a word that is in no name.
    """
    for word in only:
        if not any(word in name for name in REGISTRY):
            raise ValueError(f"--only {word}: wanted a part of one of {', '.join(REGISTRY)}")
    chosen = [b for name, b in REGISTRY.items() if not only or any(word in name for word in only)]
    return [(b, shape) for b in chosen for shape in b.shapes[settings.scale]]


def run_case(
    benchmark: Benchmark, shape: dict[str, Any], settings: Settings, each: Callable[[float], None] = lambda part: None
) -> dict[str, Any]:
    """Builds a case, times it, and returns its JSON-able result.

    Args:
        each: told after every round which part of the case it was.
    """
    result: dict[str, Any] = {"benchmark": benchmark.name, "group": benchmark.group, "shape": shape}
    with torch.inference_mode():
        torch.manual_seed(SEED)
        case = benchmark.make(settings, **shape)
        result |= {"macs": case.macs, "bytes": case.bytes, "absent": case.absent, "facts": case.facts}
        result["errors"] = {name: number("measured", value) for name, value in case.errors.items()}
        if case.jobs:
            result |= _time(case, settings, each)
    bars = [bar(f"{name} / {OURS}", wanted, result["ratios"][name]) for name, wanted in case.bars.items()
            if name in result.get("ratios", {})]  # fmt: skip
    result["bars"] = bars + (case.judge(result) if case.judge else [])
    return result


def _time(case: Case, settings: Settings, each: Callable[[float], None]) -> dict[str, Any]:
    once = {name: _seconds(job) for name, job in case.jobs.items()}
    calls = {name: max(1, round(LEAST_SECONDS / max(taken, 1e-6))) for name, taken in once.items()}
    one_round = sum(calls[name] * taken for name, taken in once.items())
    rounds = min(settings.rounds, max(LEAST_ROUNDS, int(settings.seconds / max(one_round, 1e-6))))
    jobs = {name: _repeat(job, calls[name]) for name, job in case.jobs.items()}
    taken = interleave(jobs, rounds, lambda: each(1 / (rounds + 1)), pause=PAUSE_SECONDS)
    seconds = {name: values / calls[name] for name, values in taken.items()}
    out: dict[str, Any] = {
        "rounds": rounds,
        "calls_per_sample": calls,
        "ms": {name: measured(values * 1e3) for name, values in seconds.items()},
        "ratios": {},
    }
    if OURS in seconds:
        out["ratios"] = {name: measured(values / seconds[OURS]) for name, values in seconds.items() if name != OURS}
    if case.derive is not None:
        out["derived"] = case.derive(seconds)
    return out


def _seconds(job: Callable[[], object]) -> float:
    """Of the second of two calls: the first also fills caches and workspaces."""
    job()
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def _repeat(job: Callable[[], object], calls: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(calls):
            job()

    return job if calls == 1 else repeated
