"""Every operator's CPU kernel against its plain PyTorch formula, on all compiled instruction sets.

The instruction set of a process is fixed when the library loads, so `test_instruction_sets` runs this file again in a
process of its own for each one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynroute import ops
from dynroute.native import library
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import ROOT, python

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
NAN = float("nan")


def close(actual: Tensor, expected: Tensor) -> None:
    """Within the rounding of sums of a few thousand terms, relative to the largest value."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if expected.numel() == 0:
        return
    epsilon = 2e-5 if actual.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, expected, rtol=epsilon, atol=epsilon * expected.abs().max().item())


def poisoned(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with NaN in the samples that must not be read."""
    return x if mask is None else torch.where(mask.view(-1, *[1] * (x.dim() - 1)), x, NAN)


@pytest.mark.parametrize("c", cases.CHANNELS)
@pytest.mark.parametrize("h, w", cases.ODD_SIZES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_sepconv(c: int, h: int, w: int, stages: int) -> None:
    args = cases.sepconv(2, c, h, w, stages)
    for options in (dict(residual=True, final_relu=True), dict(stride=2), dict(final_relu=True)):
        close(ops.sepconv(*args, **options, backend="cpu"), ops.sepconv(*args, **options, backend="reference"))


@pytest.mark.parametrize("h, w", [(64, 33), (70, 65), (97, 130)])
@pytest.mark.parametrize("c", [8, 24, 64])
@pytest.mark.parametrize("stages", [2, 3])
def test_sepconv_in_bands(c: int, h: int, w: int, stages: int) -> None:
    """Large enough for several bands of fused stages."""
    args = cases.sepconv(1, c, h, w, stages)
    for options in (dict(residual=True), dict(stride=2)):
        close(ops.sepconv(*args, **options, backend="cpu"), ops.sepconv(*args, **options, backend="reference"))


@pytest.mark.parametrize("c, out", [(8, 16), (16, 8), (24, 40), (64, 32), (40, 72)])
def test_sepconv_other_width(c: int, out: int) -> None:
    args = cases.sepconv(2, c, 9, 11, 2, out)
    close(ops.sepconv(*args, backend="cpu"), ops.sepconv(*args, backend="reference"))


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("mask", ["absent", "none", "some", "all"])
@pytest.mark.parametrize("c, h, w", [(16, 13, 9), (8, 40, 36)])
def test_open_samples(n: int, mask: str, c: int, h: int, w: int) -> None:
    """Samples that are not open are not read and give zeros."""
    open = cases.masks(n)[mask]
    x, *weights = cases.sepconv(n, c, h, w)
    x = poisoned(x, open)
    close(
        ops.sepconv(x, *weights, open, residual=True, backend="cpu"),
        ops.sepconv(x, *weights, open, residual=True, backend="reference"),
    )
    x, *rest = cases.transform(n, c, h, w, 2 * c)
    x = poisoned(x, open)
    close(ops.transform(x, *rest, open, 2, backend="cpu"), ops.transform(x, *rest, open, 2, backend="reference"))
    x, *rest = cases.gate(n, c, h, w)
    x = poisoned(x, open)
    close(ops.gate(x, *rest, present=open, backend="cpu"), ops.gate(x, *rest, present=open, backend="reference"))


@pytest.mark.parametrize("c", cases.CHANNELS)
@pytest.mark.parametrize("h, w", cases.ODD_SIZES)
def test_transform(c: int, h: int, w: int) -> None:
    for out, stride in ((c // 2, 1), (2 * c, 2)):
        args = cases.transform(2, c, h, w, out)
        close(
            ops.transform(*args, stride=stride, backend="cpu"), ops.transform(*args, stride=stride, backend="reference")
        )


@pytest.mark.parametrize("c", cases.CHANNELS)
@pytest.mark.parametrize("h, w", cases.ODD_SIZES)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
def test_gate(c: int, h: int, w: int, activation: str) -> None:
    for small in (False, True):
        if small and min(h, w) < 4:
            continue
        args = cases.gate(2, c, h, w, 2 if small else 3)
        close(
            ops.gate(*args, activation, small, backend="cpu"), ops.gate(*args, activation, small, backend="reference")
        )


@pytest.mark.parametrize("c", [4, 8, 24, 64])
@pytest.mark.parametrize("h, w", [(2, 2), (14, 10), (26, 36)])
@pytest.mark.parametrize("sources", ["d", "k", "u", "dk", "ku", "du", "dku"])
def test_aggregate(c: int, h: int, w: int, sources: str) -> None:
    args = cases.aggregate(2, c, h, w, sources)
    close(ops.aggregate(*args, backend="cpu"), ops.aggregate(*args, backend="reference"))


@pytest.mark.parametrize("c, w", [(512, 40), (516, 36), (64, 260), (8, 2100)])
def test_aggregate_in_blocks(c: int, w: int) -> None:
    """Rows of several blocks of `up`, whose borders read a neighbour's column."""
    args = cases.aggregate(1, c, 2, w, "u")
    close(ops.aggregate(*args, backend="cpu"), ops.aggregate(*args, backend="reference"))


@pytest.mark.parametrize("largest", [1e3, -1e3])
def test_softmax_of_large_logits(largest: float) -> None:
    *args, fc_bias = cases.gate(2, 8, 4, 4)
    for bias in (fc_bias + largest, fc_bias + torch.tensor([largest, 0.0, -largest])):
        alphas = ops.gate(*args, bias, "softmax", backend="cpu")
        close(alphas, ops.gate(*args, bias, "softmax", backend="reference"))
        torch.testing.assert_close(alphas.sum(1), torch.ones(2))


@pytest.mark.parametrize("h, w", [(1, 1), (7, 5), (13, 9)])
def test_aggregate_odd(h: int, w: int) -> None:
    args = cases.aggregate(3, 16, h, w, "dk")
    close(ops.aggregate(*args, backend="cpu"), ops.aggregate(*args, backend="reference"))


def test_aggregate_reads_no_closed_source() -> None:
    down, keep, up, alphas = cases.aggregate(8, 8, 6, 4)
    alphas *= torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
    up, keep, down = (poisoned(x, alphas[:, p] != 0) for p, x in enumerate((up, keep, down)))
    result = ops.aggregate(down, keep, up, alphas, backend="cpu")
    close(result, ops.aggregate(down, keep, up, alphas, backend="reference"))
    assert result.isfinite().all() and (result[0] == 0).all()


@pytest.mark.parametrize("n", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_route(n: int, dtype: torch.dtype) -> None:
    args = cases.route(n, dtype)
    for actual, expected in zip(ops.route(*args, backend="cpu"), ops.route(*args, backend="reference")):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_layouts() -> None:
    """Strided, transposed and NCHW inputs give what contiguous ones give; results are channels_last."""
    x, *weights = cases.sepconv(2, 16, 12, 10)
    expected = ops.sepconv(x, *weights, backend="cpu")
    wide = torch.full((2, 40, 24, 10), NAN)
    wide[:, 4:36:2, ::2] = x
    for view in (
        x.to(memory_format=torch.channels_last),
        wide[:, 4:36:2, ::2],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(ops.sepconv(view, *weights, backend="cpu"), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    turned = [[w.transpose(0, 1).contiguous().transpose(0, 1) for w in part] for part in weights[:2]]
    assert torch.equal(ops.sepconv(x, *turned, *weights[2:], backend="cpu"), expected)


@pytest.mark.parametrize("dtype", [torch.float64])
def test_double(dtype: torch.dtype) -> None:
    args = cases.sepconv(2, 24, 40, 33, 3, dtype=dtype)
    close(ops.sepconv(*args, residual=True, backend="cpu"), ops.sepconv(*args, residual=True, backend="reference"))
    args = cases.gate(2, 24, 9, 8, dtype=dtype)
    close(ops.gate(*args, small=True, backend="cpu"), ops.gate(*args, small=True, backend="reference"))
    args = cases.aggregate(2, 8, 6, 4, dtype=dtype)
    close(ops.aggregate(*args, backend="cpu"), ops.aggregate(*args, backend="reference"))


@settings(max_examples=60, deadline=None)
@given(
    c=st.integers(1, 12).map(lambda i: 8 * i),
    out=st.integers(1, 12).map(lambda i: 8 * i),
    h=st.integers(1, 45),
    w=st.integers(1, 45),
    stages=st.integers(1, 3),
    stride=st.integers(1, 2),
    relu=st.booleans(),
)
def test_any_shape(c: int, out: int, h: int, w: int, stages: int, stride: int, relu: bool) -> None:
    args = cases.sepconv(1, c, h, w, stages, out)
    close(
        ops.sepconv(*args, stride=stride, final_relu=relu, backend="cpu"),
        ops.sepconv(*args, stride=stride, final_relu=relu, backend="reference"),
    )
    args = cases.transform(1, c, h, w, out)
    close(ops.transform(*args, stride=stride, backend="cpu"), ops.transform(*args, stride=stride, backend="reference"))


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file and the engine's tests, in a process held to another instruction set."""
    files = [__file__, str(ROOT / "tests" / "native" / "test_network.py"), str(Path(__file__).parent / "test_bits.py")]
    run = python("-m", "pytest", "-x", "-q", "--durations=0", "-p", "no:cacheprovider", *files, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
