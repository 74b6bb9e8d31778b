"""Triton's kernels tuned from end to end by the interpreter, on tiny maps; the clock alone is the test's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from dynroute.measure import triton_tuning
from dynroute.measure.triton_tuning import Call, Job, calls, candidates, tune, why_not
from dynroute.models.config import NetworkConfig
from dynroute.ops.triton import configs, launch
from dynroute.ops.triton.cuts import NAMES, Cut, Key, read_cuts, save_cuts

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
TINY = NetworkConfig(layers=4, channels=8, stem_width=8)
DEVICE = torch.device("cpu" if launch.interpreted() else "cuda")


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the tuned file would be; the test begins and ends without one in force."""
    path = tmp_path / "triton.json"
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", str(path))
    configs.load_tuning(again=True)
    yield path
    configs.forget_tuning()


class Clock:
    """Runs every job, and says what the test wants: seconds of a cut, round after round; of any other, 1."""

    def __init__(self, seconds: dict[Cut, list[float]]) -> None:
        self.seconds = {str(tuple(cut)): of for cut, of in seconds.items()}
        self.rounds: list[int] = []  # of each comparison

    def __call__(self, jobs: dict[str, Job], rounds: int) -> dict[str, np.ndarray]:
        self.rounds.append(rounds)
        for job in jobs.values():
            job()
        return {name: np.resize(self.seconds.get(name, [1.0]), rounds) for name in jobs}


def call_of(op: str) -> Call:
    """The operator at the first scale."""
    return next(call for call in calls(TINY, 32, 32, torch.float32, DEVICE) if call.key.op == op)


def test_calls_are_a_networks_and_run() -> None:
    found = calls(TINY, 50, 64, torch.float32, DEVICE)
    assert len(found) == 16 and len({call.key for call in found}) == 16
    assert {call.key.op for call in found} == set(configs.OPERATORS)
    assert [(call.key.channels, call.height, call.width) for call in found if call.key.op == "gate"] == [
        (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)
    ]  # fmt: skip
    for call in found[:4]:
        call.run()
    fixed = calls(NetworkConfig(layers=4, channels=8, gate="fixed"), 32, 32, torch.float16, DEVICE)
    assert {call.key.op for call in fixed} == {"sepconv", "transform", "aggregate"}


def test_candidates_begin_with_the_checked_in_cut() -> None:
    for op in (*configs.OPERATORS, *configs.FAMILIES):
        for channels in configs.CLASSES:
            for dtype in NAMES.values():
                key = Key(op, channels, dtype, 90)
                found = candidates(key)
                assert found[0] == configs.checked_in(key) and len(set(found)) == len(found) <= 80
                assert len(found) > 1 and {cut.num_warps for cut in found} <= {4, 8}


def test_the_fastest_is_saved_and_found(tuned: Path) -> None:
    of = [call_of("transform"), call_of("aggregate")]
    best = {call.key.op: candidates(call.key)[-1] for call in of}
    found = []
    for call in of:
        steps: list[tuple[int, int]] = []
        clock = Clock({best[call.key.op]: [0.5]})
        found += tune([call], 4, clock, lambda done, total, steps=steps: steps.append((done, total)))  # type: ignore[misc]
        count = len(candidates(call.key)) + 2
        assert steps == [(done, count) for done in range(1, count + 1)]
        assert clock.rounds == [triton_tuning.LOOK_ROUNDS, 4]
    assert [(row.key, row.chosen) for row in found] == [(call.key, best[call.key.op]) for call in of]
    for row, call in zip(found, of):
        assert row.before == configs.checked_in(call.key) and row.tried == len(candidates(call.key)) and not row.skipped
        assert (row.before_ms, row.chosen_ms, row.gain, row.best) == (1000.0, 500.0, 0.5, 0.5)
        assert configs.find(*call.key) == row.before  # nothing is left in force
    assert [row.key for row in tune(of, 1, Clock({}))] == [call.key for call in of]  # several at once

    entries = [row.entry(4, 7, "a GPU") for row in found]
    assert all(entry is not None for entry in entries)
    save_cuts(tuned, [entry for entry in entries if entry is not None], [row.key for row in found])
    measured = read_cuts(tuned)[0].measured
    assert measured is not None and measured["device"] == "a GPU" and (measured["seed"], measured["rounds"]) == (7, 4)
    assert (measured["before_ms"], measured["ms"]) == (1000.0, 500.0) and measured["height"] == of[0].height
    assert {"triton", "torch", "dynroute"} <= set(measured["versions"]) and measured["command"]
    configs.load_tuning(again=True)
    for call in of:
        assert configs.find(*call.key) == best[call.key.op]
        call.run()


@pytest.mark.parametrize("seconds", [[0.98], [0.5, 1.1, 1.1], [0.9, 0.98, 0.98], [0.9, 1.0, 0.99]])
def test_a_gain_that_is_small_or_not_sure_is_not_kept(seconds: list[float]) -> None:
    """Below 3%, or faster in the fastest round alone."""
    call = call_of("transform")
    (row,) = tune([call], 3, Clock({candidates(call.key)[1]: seconds}))
    assert row.chosen == row.before and row.gain == 0 and row.best < triton_tuning.LEAST_GAIN
    assert row.entry(3, 0, "a GPU") is None


def test_a_median_alone_is_no_gain() -> None:
    """The checked-in cut's fastest round is as fast: what made it slow was something else."""
    call = call_of("transform")
    first, other = candidates(call.key)[:2]
    (row,) = tune([call], 3, Clock({first: [1.0, 0.8, 1.0], other: [0.8]}))
    assert row.chosen == first


def test_what_does_not_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of("transform")
    good, wrong = candidates(call.key)[0], Cut(48, 16, 16)  # no power of two
    monkeypatch.setattr(triton_tuning, "candidates", lambda key: [good, wrong])
    (row,) = tune([call], 2, Clock({}))
    assert row.tried == 1 and row.chosen == good
    assert len(row.skipped) == 1 and row.skipped[0].startswith("(48, 16, 16, 4, 3): ") and "\n" not in row.skipped[0]
    monkeypatch.setattr(triton_tuning, "candidates", lambda key: [wrong, good])
    with pytest.raises(Exception, match="power of 2"):  # the checked-in one has to run
        tune([call], 2, Clock({}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_gpus_clock() -> None:
    """More pixels take longer, whatever the host needs for a launch."""
    from dynroute.measure.triton_tuning import on_gpu

    jobs = {
        str(size): next(c for c in calls(TINY, size, size, torch.float32, DEVICE) if c.key.op == "sepconv").run
        for size in (32, 1024)
    }
    for job in jobs.values():
        job()
    found = on_gpu(jobs, 5)
    assert {len(seconds) for seconds in found.values()} == {5} and min(found["32"]) > 0
    assert np.median(found["32"]) < np.median(found["1024"])


def test_what_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if launch.interpreted():
        assert why_not() == (
            "TRITON_INTERPRET is set: kernels are interpreted on the CPU, there is nothing to measure; wanted a GPU"
        )
    else:
        assert why_not() is None
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        assert "triton needs a GPU" in str(why_not())
    else:
        assert str(why_not(NetworkConfig(cell=("mbconv",)))).startswith("cell: wanted one of sepconv1, ")
