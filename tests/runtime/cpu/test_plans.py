"""Plans change the time and nothing else: no bit of a result, no count but the halo."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import dynroute
from dynroute import planner
from dynroute.measure.tuning import cell_shapes, may_be_staged, plan_of
from dynroute.runtime.executor import Runtime
from tests.support.networks import random_images, random_network
from tests.support.plans import HEIGHT, WIDTH

pytestmark = [
    pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not())),
    pytest.mark.usefixtures("no_tuning"),
]


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
