"""What FlopCounterMode counts: samples that take part, and a runtime's executed work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import dynroute
from dynroute import ops
from dynroute.native import library
from tests.support import cases
from tests.support.networks import random_images, random_network

native = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
N, C, H, W = 4, 8, 6, 4
SOME = torch.tensor([True, False, False, True])


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@native
@pytest.mark.parametrize("mask, n", [(None, 4), (SOME, 2), (torch.zeros(N, dtype=torch.bool), 0)], ids=str)
def test_samples_that_take_part(mask: torch.Tensor | None, n: int) -> None:
    x, *weights = cases.sepconv(N, C, H, W)
    cell = 2 * n * H * W * 2 * C * (9 + C)
    assert flops(lambda: ops.sepconv(x, *weights, mask)) == cell
    assert (
        flops(lambda: torch.ops.dynroute.sepconv(x, *weights, open=mask, stride=1, residual=False, final_relu=False))
        == cell
    )
    trained = cases.sepconv_train(N, C, H, W)
    assert flops(lambda: ops.sepconv_train(*trained, mask)) == cell
    path = 2 * n * (H // 2) * (W // 2) * C * 16
    assert flops(lambda: ops.transform(*cases.transform(N, C, H, W, 16), mask, 2)) == path
    assert flops(lambda: ops.transform_train(*cases.transform_train(N, C, H, W, 16), mask, 2)) == path
    gate = 2 * n * (C // 2) * (H * W * C + 3)
    assert flops(lambda: ops.gate(*cases.gate(N, C, H, W), present=mask)) == gate


@native
@pytest.mark.parametrize("skip, cells, downs", [(False, 4, 4), (True, 3, 2)])
def test_a_node_in_training(skip: bool, cells: int, downs: int) -> None:
    """Of four samples the second is closed, the third's down too."""
    args = cases.node_train(N, C, H, W)
    x = args[0].requires_grad_()
    cell, up, down = H * W * 2 * C * (9 + C), H * W * C * C // 2, H // 2 * (W // 2) * C * 2 * C
    made = []
    forward = flops(lambda: made.append(ops.node_train(x, *args[1:], skip=skip)))
    assert forward == 2 * (cells * (cell + up) + downs * down)
    (out,) = made
    backward = flops(lambda: (out.keep.sum() + out.up.sum() + out.down.sum()).backward())
    assert backward == 2 * (cells * (cell + up) + downs * down), "as no weight's gradient is wanted"


@native
def test_fake_masks_count_all() -> None:
    with FakeTensorMode() as mode:
        x, *weights = torch.utils._pytree.tree_map(mode.from_tensor, cases.sepconv(N, C, H, W))
        assert flops(lambda: ops.sepconv(x, *weights, mode.from_tensor(SOME))) == 2 * N * H * W * 2 * C * (9 + C)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=native)])
def test_a_runtime_counts_what_it_executed(backend: str) -> None:
    run = dynroute.optimize(random_network(layers=4, gate_shift=-0.3), backend)
    x, made = random_images(2, 32, 32), []
    counted = flops(lambda: made.append(run(x)))
    assert counted == 2 * int(made[0].executed_macs.sum()) > 0
    assert flops(lambda: run.labels(x)) == counted
    forced = flops(lambda: run(x, torch.zeros(5, 4, 3)))
    assert 0 < forced < counted
