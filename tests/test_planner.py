"""Plans change the time and nothing else; the tuning file is used where it holds, and never stops a run."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_images, random_network
from torch import Tensor

import dynroute
from dynroute import planner
from dynroute.measure.tuning import Candidate, candidates, cell_shapes, may_be_staged, plan_of
from dynroute.planner import Entry, Shape
from dynroute.runtime.executor import Runtime

pytestmark = pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not()))

SHAPE = Shape(2, 64, 64, 32, 48)


@pytest.fixture(autouse=True)
def no_tuning() -> Iterator[None]:
    """Each test begins and ends with the model's plans."""
    planner.forget_tuning()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    planner.forget_tuning()


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tuning file would be."""
    path = tmp_path / "cache" / "tuning.json"
    monkeypatch.setenv("DYNROUTE_TUNING", str(path))
    return path


def entry(shape: Shape = SHAPE, **changes: object) -> Entry:
    """One of this machine, whose plan is not the model's."""
    whole = Entry(shape, planner.machine(), False, 3, 8, 24, 2, 2.0, 1.0, dynroute.__version__)
    return replace(whole, **changes)  # type: ignore[arg-type]


def check(plan: planner.Plan, shape: Shape) -> None:
    assert 1 <= plan.step_rows <= plan.band_rows <= shape.h_out
    assert plan.strip >= 1 and 1 <= plan.tile_pixels <= planner.MAX_TILE_PIXELS
    assert plan.milliseconds > 0


SIZES = [(1, 1), (1, 300), (3, 5), (7, 8), (16, 32), (45, 60), (128, 256), (300, 1)]


@pytest.mark.parametrize("stages, channels", list(itertools.product((1, 2, 3), (8, 64, 200, 1024))))
def test_plans_fit_their_maps(stages: int, channels: int) -> None:
    for (h, w), stride, staged, samples, threads in itertools.product(
        SIZES, (1, 2), (False, True), (1, 3, 64), (1, 2, 17)
    ):
        shape = Shape(stages, channels, 2 * channels, h, w, stride)
        plan = planner.plan(stages, channels, 2 * channels, h, w, stride, staged, samples, threads)
        check(plan, shape)
        assert plan.fused or (staged and stages > 1)
        again = planner.plan(stages, channels, 2 * channels, h, w, stride, staged, samples, threads)
        assert plan == again


def test_tuned_plans_fit_their_maps_and_keep_to_what_was_fixed() -> None:
    for (h, w), fused, threads in itertools.product(SIZES, (None, True, False), (1, 8)):
        for rows, strip, pixels in itertools.product((0, 1, h), (0, 1, w), (0, 1, 96, planner.MAX_TILE_PIXELS)):
            planner.tune(2, 64, 64, h, w, fused=fused, band_rows=rows, step_rows=rows, strip=strip, tile_pixels=pixels)
            plan = planner.plan(2, 64, 64, h, w, threads=threads)
            check(plan, Shape(2, 64, 64, h, w))
            assert fused is None or plan.fused == fused
            assert not rows or plan.band_rows == rows
            assert not strip or plan.strip == strip
            assert not pixels or plan.tile_pixels == pixels
    assert planner.plan(2, 64, 64, 3, 5, staged=False).fused  # tuned to be staged, where that is not considered


def test_forgotten_tuning_is_gone() -> None:
    model = planner.plan(2, 64, 64, 32, 48)
    planner.tune(2, 64, 64, 32, 48, step_rows=1, strip=4, tile_pixels=8)
    assert planner.plan(2, 64, 64, 32, 48) != model
    planner.tune(2, 64, 64, 32, 48)
    assert planner.plan(2, 64, 64, 32, 48) == model
    planner.tune(2, 64, 64, 32, 48, strip=4)
    planner.forget_tuning()
    assert planner.plan(2, 64, 64, 32, 48) == model


@pytest.mark.parametrize(
    "wrong",
    [{"band_rows": 33}, {"step_rows": -1}, {"strip": 49}, {"tile_pixels": planner.MAX_TILE_PIXELS + 1}],
)
def test_tilings_beyond_the_map_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: wanted 0 to"):
        planner.tune(2, 64, 64, 32, 48, **wrong)  # type: ignore[arg-type]


def test_shapes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3 stages"):
        planner.plan(4, 8, 8, 8, 8)
    with pytest.raises(ValueError, match="samples, threads"):
        planner.plan(2, 8, 8, 8, 8, threads=0)


HEIGHT, WIDTH = 96, 160  # maps of 24x40, 12x20, 6x10 and 3x5


def outputs(run: Runtime, images: Tensor) -> list[Tensor]:
    """What no plan may change; the halo is none of it."""
    out = run(images)
    return [out.logits, out.gates, out.executed_macs, out.executed_nodes]


@pytest.mark.parametrize("cell", ["sepconv1", "sepconv", "sepconv3"])
def test_no_plan_changes_a_bit(cell: str) -> None:
    net = random_network(seed=3, layers=5, channels=16, cell=(cell,))
    run, images = dynroute.optimize(net, backend="cpu"), random_images(3, HEIGHT, WIDTH)
    shapes = cell_shapes(net.config, HEIGHT, WIDTH)
    wanted, halos, layouts = outputs(run, images), set(), set()
    assert 0 < int((wanted[3][..., 1] > 0).sum()) < wanted[3][..., 1].numel()  # some cells open, some not
    # (band, step) rows, strip, pixels of a panel; 0 the model's, -1 all of the map
    tilings = [
        (0, 0, 0, 0),
        (1, 1, 1, 1),
        (2, 1, 3, 5),
        (5, 2, 16, 48),
        (3, 3, -1, 7),
        (-1, 4, -1, 200),
        (-1, -1, 7, 96),
    ]
    for fused, (band, step, strip, pixels), threads in itertools.product((True, False), tilings, (1, 2)):
        torch.set_num_threads(threads)
        for s, shape in enumerate(shapes):
            h, w = shape.h_out, shape.w_out
            planner.tune(
                shape.stages, shape.c_in, shape.c_out, h, w, fused=fused,
                band_rows=h if band < 0 else min(band, h), step_rows=h if step < 0 else min(step, h),
                strip=w if strip < 0 else min(strip, w), tile_pixels=pixels,
            )  # fmt: skip
            plan = plan_of(shape, s, threads)
            assert plan.fused == (fused or not may_be_staged(shape, s))
            layouts.add((s, plan.fused, plan.band_rows, plan.step_rows, plan.strip, plan.tile_pixels))
        found = outputs(run, images)
        for got, want in zip(found, wanted):
            assert torch.equal(got, want), (fused, band, step, strip, pixels, threads)
        halos.add(int(run(images).halo_macs.sum()))
    assert len(layouts) >= 4 * len(tilings) - 4
    assert cell == "sepconv1" or len(halos) > 3  # the plans did reach the engine: other bands, other halos


def test_candidates_are_different_plans_and_leave_the_models_in_force() -> None:
    net = random_network(layers=5, channels=16)
    for s, shape in enumerate(cell_shapes(net.config, HEIGHT, WIDTH)):
        model = plan_of(shape, s, 1)
        found = candidates(shape, s, 1)
        assert found[0] == Candidate() and plan_of(shape, s, 1) == model
        plans = set()
        for candidate in found:
            candidate.put(shape)
            plan = plan_of(shape, s, 1)
            check(plan, shape)
            plans.add(replace(plan, milliseconds=0.0))
        assert len(plans) == len(found) <= 60
        planner.forget_tuning()


def test_trace_covers_the_kinds_of_work_and_counts_tasks() -> None:
    net = random_network(seed=3, layers=5, channels=16)
    run, images = dynroute.optimize(net, backend="cpu"), random_images(2, HEIGHT, WIDTH)
    counts = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for shape in cell_shapes(net.config, HEIGHT, WIDTH):
            planner.tune(shape.stages, shape.c_in, shape.c_out, shape.h_out, shape.w_out, fused=True, band_rows=2)
        with planner.tracing() as trace:
            out = run(images)
        assert {t.work for t in trace} == {
            "stem",
            "aggregate",
            "gate",
            "cell",
            "path",
            "merge",
            "predictor",
            "upsample",
            "memory",
        }
        assert all(t.tasks > 0 and t.milliseconds >= 0 and 0 <= t.scale < 4 for t in trace)
        tasks = {(t.work, t.scale): t.tasks for t in trace}
        opened = (out.executed_nodes[..., 1] > 0).sum((0, 1)).tolist()
        for s, (shape, count) in enumerate(zip(cell_shapes(net.config, HEIGHT, WIDTH), opened)):
            step = planner.plan(2, shape.c_in, shape.c_out, shape.h_out, shape.w_out, staged=False).band_rows
            assert tasks.get(("cell", s), 0) == count * -(-shape.h_out // step)
        counts.append(tasks)
    assert counts[0] == counts[1]
    with planner.tracing() as trace:
        pass
    assert trace == []


def test_tuning_file_round_trip(tuning: Path) -> None:
    model = planner.plan(2, 64, 64, 32, 48)
    other = Shape(1, 8, 16, 5, 9, 2)
    assert planner.read_tuning(tuning) == []
    planner.save_tuning(tuning, [entry()], [SHAPE])
    planner.save_tuning(tuning, [entry(other, fused=None)], [other])  # merged: what was measured before stays
    assert {e.shape for e in planner.read_tuning(tuning)} == {SHAPE, other}
    assert planner.read_tuning(tuning)[0] == entry()
    assert [f.name for f in tuning.parent.iterdir()] == ["tuning.json"]

    assert planner.load_tuning(again=True) == planner.Tuning(tuning, used=2)
    plan = planner.plan(2, 64, 64, 32, 48)
    assert (plan.fused, plan.step_rows, plan.strip, plan.tile_pixels) == (False, 3, 8, 24)
    planner.save_tuning(tuning, [], [SHAPE])  # measured again, and the model's was best
    assert [e.shape for e in planner.read_tuning(tuning)] == [other]
    assert planner.load_tuning().used == 2 and planner.plan(2, 64, 64, 32, 48) == plan  # read once
    assert planner.load_tuning(again=True).used == 1 and planner.plan(2, 64, 64, 32, 48) == model


def test_the_first_runtime_reads_the_file(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner.save_tuning(tuning, [entry()], [SHAPE])
    monkeypatch.setattr(planner, "_tuning", None)  # as in a new process
    dynroute.optimize(random_network(layers=4), backend="cpu")
    assert planner.load_tuning().used == 1
    assert planner.plan(2, 64, 64, 32, 48).strip == 8
    monkeypatch.setenv("DYNROUTE_TUNING", "off")
    assert planner.load_tuning(again=True).path is None
    assert planner.plan(2, 64, 64, 32, 48).strip != 8


def test_default_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNROUTE_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert planner.tuning_file() == tmp_path / "dynroute" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert planner.tuning_file() == tmp_path / ".cache" / "dynroute" / "tuning.json"
    found = planner.load_tuning(again=True)
    assert found.used == 0 and "no such file" in str(found.reason)


def test_entries_of_other_machines_are_ignored_and_kept(tuning: Path) -> None:
    model, here = planner.plan(2, 64, 64, 32, 48), planner.machine()
    others = [entry(machine={**here, "isa": "other"}), entry(machine={**here, "l2_bytes": 12345})]
    planner.save_tuning(tuning, others, [])
    found = planner.load_tuning(again=True)
    assert (found.used, found.ignored) == (0, 2)
    assert found.reason == f"2 ignored: for other, not {here['isa']}; for other cache sizes"
    assert planner.plan(2, 64, 64, 32, 48) == model
    planner.save_tuning(tuning, [entry()], [SHAPE])
    assert len(planner.read_tuning(tuning)) == 3
    found = planner.load_tuning(again=True)
    assert (found.used, found.ignored) == (1, 2) and found.reason is not None


def broken_files() -> dict[str, bytes]:
    """A word of what is said about it -> contents that are no tuning file."""

    def one(**changes: object) -> bytes:
        machine = {"isa": "x", "l1_bytes": 1, "l2_bytes": 1, "l3_bytes": 1}
        shape = {"stages": 2, "c_in": 8, "c_out": 8, "h_out": 4, "w_out": 4, "stride": 1}
        whole = {"shape": shape, "machine": machine, "fused": None, "step_rows": 1, "strip": 1, "tile_pixels": 1}
        whole |= {"threads": 1, "model_ms": 1.0, "ms": 1.0, "version": "0", **changes}
        return json.dumps({"format": planner.TUNING_FORMAT, "entries": [whole]}).encode()

    return {
        "not JSON": b'{"format": ',
        "can't decode": b"\xff\xfe\x00",
        "format": b"[1, 2]",
        "entries: wanted a list": json.dumps({"format": planner.TUNING_FORMAT, "entries": 3}).encode(),
        "strip": one(strip=5),
        "step_rows": one(step_rows=True),
        "tile_pixels": one(tile_pixels=10**6),
        "fused": one(fused=1),
        "shape": one(shape=None),
        "h_out": one(shape={"stages": 2, "c_in": 8, "c_out": 8}),
        "stages": one(shape={"stages": 9, "c_in": 8, "c_out": 8, "h_out": 4, "w_out": 4, "stride": 1}),
        "isa": one(machine={}),
    }


@pytest.mark.parametrize("fault, content", list(broken_files().items()))
def test_broken_file_is_one_warning(
    fault: str, content: bytes, tuning: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.parent.mkdir()
    tuning.write_bytes(content)
    monkeypatch.setattr(planner, "_tuning", None)
    model = planner.plan(2, 64, 64, 32, 48)
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        for _ in range(2):
            dynroute.optimize(random_network(layers=4), backend="cpu")
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert str(tuning) in line and fault in line and "\n" not in line
    assert planner.load_tuning().used == 0 and fault in str(planner.load_tuning().reason)
    assert planner.plan(2, 64, 64, 32, 48) == model
    with pytest.raises(ValueError, match=tuning.stem):
        planner.save_tuning(tuning, [entry()], [SHAPE])
    assert tuning.read_bytes() == content


def test_unreadable_file_is_a_warning_too(tuning: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning.mkdir(parents=True)
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert planner.load_tuning(again=True).reason is not None
    assert len(caplog.records) == 1


def test_without_the_planner_runs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "_find", lambda: None)
    monkeypatch.setattr(planner, "_tuning", None)
    net, images = random_network(layers=4), random_images(1, 64, 64)
    assert dynroute.optimize(net, backend="cpu")(images).logits.shape == (1, 5, 64, 64)
    assert "pybind11" in str(planner.load_tuning().reason)
    with pytest.raises(RuntimeError, match="pybind11"):
        planner.plan(2, 8, 8, 8, 8)
    monkeypatch.undo()  # before the planner is wanted again to forget
