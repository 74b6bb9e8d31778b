"""The training operators on CUDA, by the emulator, both directions, against float64: odd sizes, no samples, every gate
pattern, all schedules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dynroute.native import library
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits
from tests.support import cases, trained_cases
from tests.support.cuda import trained
from tests.support.cuda.operators import emulated
from tests.support.trained_cases import GATE, NODE, PATTERNS, SEPCONV, TRANSFORM, in_type

REASON = library.why_not_loaded() or emulator.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(op: str, args: tuple, options: tuple, **how: Any) -> None:
    trained_cases.check(op, args, options, emulated, **how)


@types
@pytest.mark.parametrize("case", SEPCONV, ids=str)
def test_sepconv(case: tuple, dtype: torch.dtype) -> None:
    *size, options = case
    check("sepconv_train", in_type(cases.sepconv_train(*size), dtype), options, global_races=True)


@types
@pytest.mark.parametrize("case", TRANSFORM, ids=str)
def test_transform(case: tuple, dtype: torch.dtype) -> None:
    *size, options = case
    check("transform_train", in_type(cases.transform_train(*size), dtype), options, global_races=True)


@types
@pytest.mark.parametrize("case", GATE, ids=str)
def test_gate(case: tuple, dtype: torch.dtype) -> None:
    *size, options = case
    check("gate_train", in_type(cases.gate_train(*size), dtype), options, global_races=True)


@types
@pytest.mark.parametrize("case", NODE, ids=str)
def test_node(case: tuple, dtype: torch.dtype) -> None:
    *size, options = case
    check("node_train", in_type(cases.node_train(*size), dtype), options, global_races=True)


@pytest.mark.parametrize("n", [17, 257])
def test_many_parts(n: int) -> None:
    """So many samples that a sum over parts is shared by a block's warps, or by more rows of threads; of the gate, by
    turns."""
    check("sepconv_train", in_type(cases.sepconv_train(n, 8, 1, 2, 1), torch.float32), (None, 1, True, True, False, ""))
    check("gate_train", in_type(cases.gate_train(n, 16, 1, 2), torch.float32), ("tanh", [1, 0, 2], False, False, ""))


@pytest.mark.parametrize("bridge", [0.0, 0.6])
def test_every_gate_pattern(bridge: float) -> None:
    """Each of two samples closed, open without one path or the other, or open: what is left out, and what passes x."""
    x, _, *weights = cases.node_train(2, 16, 5, 6)
    for one, other in itertools.product(PATTERNS, repeat=2):
        args = (x.contiguous(memory_format=torch.channels_last), torch.stack([one, other]), *weights)
        check("node_train", args, (None, bridge, True, False, ""))


@types
def test_no_samples(dtype: torch.dtype) -> None:
    """Statistics are the running ones, gradients of weights are 0."""
    trained_cases.check_no_samples(dtype, emulated)


def test_nobody_takes_part() -> None:
    open = torch.zeros(3, dtype=torch.bool)
    args = in_type(cases.sepconv_train(3, 16, 6, 4), torch.float16)
    results, gradients, _ = trained.both_directions("sepconv_train", args, (open, 1, True, True, False, ""))
    assert (results[0] == 0).all() and all((g == 0).all() for g in gradients)


def test_statistics_far_from_zero() -> None:
    """A mean that is 1000 deviations away: the variance keeps its digits."""
    x, weight, *norm = cases.transform_train(2, 8, 16, 16, 8)
    x = x + 1000 / weight.sum(1).abs().min()
    args = in_type((x, weight, *norm), torch.float32)
    _, raw, stats = emulated("transform_train", *args, None, 1, False, False, "", 1e-5, False)
    exact = raw.double().var((0, 2, 3), correction=1)
    torch.testing.assert_close(stats[0, 2].double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_schedule_or_device_changes_a_bit(dtype: torch.dtype) -> None:
    calls = (
        ("sepconv_train", cases.sepconv_train(2, 24, 9, 17, 2, 72), (None, 2, False, True, False, "")),
        ("gate_train", cases.gate_train(2, 24, 37, 21, 3, 16), ("softmax", [0, 1, 2], True, False, "")),
        ("node_train", cases.node_train(3, 16, 9, 18), (None, 0.6, True, False, "")),
    )
    hows: list[dict[str, Any]] = [{"order": o, "seed": i, "resident": 2} for i, o in enumerate(("fwd", "rev", "rand"))]
    hows.append({"limits": DeviceLimits(80, 1, 99 << 10, 100 << 10)})
    for op, args, options in calls:
        given = in_type(args, dtype)
        first = trained.both_directions(op, given, options)
        for how in hows:
            again = trained.both_directions(op, given, options, **how)
            for a, b in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
                assert torch.equal(a, b), (op, how)


def test_what_is_not_wanted_is_not_made() -> None:
    args = in_type(cases.node_train(2, 16, 5, 6), torch.float16)
    options = (None, 0.0, True, False, "")
    outs = emulated("node_train", *args, *options, 1e-5, False)
    keep = torch.ones_like(outs[0])
    given = (keep, None, None, *args[:8], *outs[3:], *options, False)
    whole = emulated("node_train_backward", *given, [True, True])
    for wanted, kernels in (
        ([False, True], set()),
        ([True, False], {"train_outer"}),
        ([False, False], {"train_outer"}),
    ):
        launches: list[Any] = []
        x, alphas, flat = emulated("node_train_backward", *given, wanted, statistics=launches)
        assert x.shape[0] == (2 if wanted[0] else 0) and torch.equal(alphas, whole[1])
        norms = 2 * sum(g.numel() for g in args[6])
        assert torch.equal(flat[-norms:], whole[2][-norms:])
        assert not kernels & {kernel for kernel, _ in launches}
    assert (whole[2] != 0).any() and not whole[
        2
    ].isnan().any()  # up's and down's weights: 0, as nothing came from there


def test_errors() -> None:
    x, *rest = cases.transform_train(2, 16, 6, 5, 16)
    options = (None, 1, True, False, "", 1e-5)
    half: list[Tensor] = [r.half() for r in rest]
    for args, message in (
        ((x.double(), *rest, *options, False), "transform_train: x: wanted float32, float16 or bfloat16, got float64"),
        ((x.half(), *half, *options, False), "transform_train: weight: wanted float32, got float16"),
        ((x, *rest, *options, True), "transform_train: narrow: wanted False on CUDA"),
        ((x, *cases.transform_train(2, 16, 6, 5, 12)[1:], *options, False),
         "transform_train: weight: wanted channels in a multiple of 8, got 12"),
        ((x, *rest, torch.tensor([True]), *options[1:], False),
         r"transform_train: open: wanted shape \[2\], got \[1\]"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            emulated("transform_train", *args)
