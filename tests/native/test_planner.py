"""Plans fit their maps, and tuning holds them to what it fixes until it is forgotten."""

from __future__ import annotations

import itertools

import pytest
import torch

import dynroute
from dynroute import planner
from dynroute.measure.tuning import cell_shapes
from dynroute.planner import Shape
from tests.support.networks import random_images, random_network
from tests.support.plans import HEIGHT, WIDTH, check

pytestmark = [
    pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not())),
    pytest.mark.usefixtures("no_tuning"),
]
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
