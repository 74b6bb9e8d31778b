"""upsampled_cross_entropy against upsampling and cross entropy by torch; and what torch expects of an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.measure.memory import allocations, peak
from dynroute.native import library
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import python

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
SHAPES = [  # n, k, h, w, factor, crop
    (2, 19, 16, 16, 4, (0, 0)),
    (1, 1, 1, 1, 4, (1, 0)),
    (2, 5, 7, 5, 4, (3, 1)),
    (3, 11, 33, 34, 4, (2, 0)),
    (2, 3, 5, 40, 3, (0, 5)),
    (1, 2, 3, 3, 1, (0, 0)),
    (2, 21, 20, 9, 2, (23, 4)),  # most rows are cropped: bands without a pixel
    (1, 4, 9, 17, 5, (1, 1)),
]


def by_torch(logits: Tensor, labels: Tensor, factor: int = 4, weight: Tensor | None = None) -> Tensor:
    full = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
    full = full[..., : labels.shape[1], : labels.shape[2]]
    return F.cross_entropy(full, labels, weight, ignore_index=255, reduction="sum")


def trained(run: Callable[..., Tensor], logits: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of three times the loss."""
    logits = logits.clone().requires_grad_()
    loss = run(logits, *rest, **options)
    return loss.detach(), torch.autograd.grad(3 * loss, logits)[0]


def close(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Within rounding, relative to the largest value; float32 results are held to float64's."""
    for a, e in zip(actual, expected, strict=True):
        epsilon = 2e-6 if a.dtype == torch.float32 else 1e-12
        largest = e.abs().max().item() if e.numel() else 0.0
        torch.testing.assert_close(a, e, rtol=0, atol=epsilon * max(largest, 1.0), check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n, k, h, w, factor, crop", SHAPES)
def test_parity(
    n: int, k: int, h: int, w: int, factor: int, crop: tuple[int, int], weighted: bool, dtype: torch.dtype
) -> None:
    logits, labels = cases.upsampled_cross_entropy(n, k, h, w, factor, crop, dtype)
    weight = torch.rand(k, dtype=dtype, generator=cases.generator(3)) if weighted else None
    expected = trained(by_torch, logits.double(), labels, factor, weight.double() if weighted else None)
    for backend in ("cpu", "reference"):
        found = trained(ops.upsampled_cross_entropy, logits, labels, factor, weight, backend=backend)
        assert found[0].dtype == dtype and found[0].shape == () and found[1].shape == logits.shape
        close(found, expected)
        with torch.no_grad():  # no gradient is made then, and the loss is the same
            loss = ops.upsampled_cross_entropy(logits, labels, factor, weight, backend=backend)
        assert torch.equal(loss, found[0])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), k=st.integers(1, 24), h=st.integers(1, 40), w=st.integers(1, 40), factor=st.integers(1, 5),
    cut=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)), weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, F64]),
)  # fmt: skip
def test_any_shape(
    n: int, k: int, h: int, w: int, factor: int, cut: tuple[float, float], weighted: bool, dtype: torch.dtype
) -> None:
    crop = (int(cut[0] * factor * h), int(cut[1] * factor * w))
    logits, labels = cases.upsampled_cross_entropy(n, k, h, w, factor, crop, dtype)
    weight = torch.rand(k, dtype=dtype, generator=cases.generator(3)) if weighted else None
    expected = trained(by_torch, logits.double(), labels, factor, weight.double() if weighted else None)
    close(trained(ops.upsampled_cross_entropy, logits, labels, factor, weight, backend="cpu"), expected)


def test_exp_and_log() -> None:
    """To a few units in the last place of float32, where logits are read as they are (factor 1)."""
    x = torch.cat([-torch.logspace(-6, math.log10(87.2), 4000, dtype=F64), -torch.linspace(0, 87.2, 4001, dtype=F64)])
    x = x.float().double()
    logits = torch.stack([torch.zeros_like(x), x])[None, :, None]  # of class 0: 0
    labels = torch.zeros(1, 1, len(x), dtype=torch.int64)
    _, gradient = trained(ops.upsampled_cross_entropy, logits.float(), labels, 1, backend="cpu")
    expected = 3 * x.exp() / (1 + x.exp())  # class 1's share: exp, a division, a product
    assert ((gradient[0, 1, 0] - expected) / expected).abs().max() < 5 * 2**-24
    for k in (*range(1, 40), 150, 1000):  # log: equal logits
        logits = torch.zeros(1, k, 1, 1)
        loss = ops.upsampled_cross_entropy(logits, labels[..., :1], 1, backend="cpu")
        assert abs(loss.item() - math.log(k)) <= 3 * 2**-24 * math.log(k)
    for value in x[::37].tolist():  # log next to 1
        loss = ops.upsampled_cross_entropy(torch.tensor([0, value]).view(1, 2, 1, 1), labels[..., :1], 1, backend="cpu")
        assert abs(loss.item() - math.log1p(math.exp(value))) <= 4 * 2**-24


def test_large_logits() -> None:
    """No overflow, and a class that is out of question gets no gradient."""
    logits = torch.tensor([1e4, -1e4, 9.9e3]).view(1, 3, 1, 1).expand(2, 3, 5, 4).contiguous()
    labels = torch.full((2, 20, 16), 2)
    loss, gradient = trained(ops.upsampled_cross_entropy, logits, labels, backend="cpu")
    close((loss, gradient), trained(by_torch, logits.double(), labels))
    assert (gradient[:, 1].abs() < 1e-30).all()


def test_ignored_pixels() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 7, 9, 20)
    loss, gradient = trained(ops.upsampled_cross_entropy, logits, torch.full_like(labels, 255), backend="cpu")
    assert loss == 0 and (gradient == 0).all()
    # what the ignored pixels alone are made of is not looked at, whatever it is
    labels[:, :24, :40] = 255
    expected = trained(ops.upsampled_cross_entropy, logits, labels, backend="cpu")
    poisoned = logits.clone()
    poisoned[:, 3, :5, :9] = float("nan")
    found = trained(ops.upsampled_cross_entropy, poisoned, labels, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    labels[0, 0, 0] = 1  # and one that is looked at shows
    loss, gradient = trained(ops.upsampled_cross_entropy, poisoned, labels, backend="cpu")
    assert loss.isnan() and gradient[0, :, 0, 0].isnan().all() and gradient[1].isfinite().all()
    another = labels.masked_fill(labels == 255, -1)
    assert ops.upsampled_cross_entropy(logits, another, ignore_index=-1, backend="cpu") == ops.upsampled_cross_entropy(
        logits, labels, backend="cpu"
    )
    assert ops.upsampled_cross_entropy(logits, another % 7, ignore_index=3, backend="cpu").isfinite()


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 5, 3, 2)])
def test_nothing_to_sum(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape[0], 12 if shape[0] == 0 else 0, 8, dtype=torch.int64)
    loss, gradient = trained(ops.upsampled_cross_entropy, torch.ones(shape), labels, backend="cpu")
    assert loss == 0 and gradient.shape == shape and (gradient == 0).all()


@pytest.mark.parametrize("k, h, w", [(19, 40, 33), (5, 9, 70)])
def test_bits(k: int, h: int, w: int) -> None:
    """The same with any number of threads; a sample's gradient also in any batch."""
    logits, labels = cases.upsampled_cross_entropy(3, k, h, w)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(trained(ops.upsampled_cross_entropy, logits, labels, backend="cpu"))
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    finally:
        torch.set_num_threads(before)
    for i in range(3):
        _, alone = trained(ops.upsampled_cross_entropy, logits[i : i + 1], labels[i : i + 1], backend="cpu")
        assert torch.equal(alone[0], results[0][1][i])


def test_layouts() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 11, 12, 10)
    expected = trained(ops.upsampled_cross_entropy, logits, labels, backend="cpu")
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().transpose(2, 3)):
        found = trained(ops.upsampled_cross_entropy, view, turned, backend="cpu")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Computed in float32; the gradient narrows."""
    logits, labels = cases.upsampled_cross_entropy(2, 11, 12, 10, dtype=dtype)
    wide = trained(ops.upsampled_cross_entropy, logits.float(), labels, backend="cpu")
    loss, gradient = trained(ops.upsampled_cross_entropy, logits, labels, backend="cpu")
    assert torch.equal(loss, wide[0]) and torch.equal(gradient, wide[1].to(dtype))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("factor, crop", [(4, (1, 3)), (3, (0, 0))])
def test_gradcheck(backend: str, factor: int, crop: tuple[int, int]) -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3, factor, crop, F64)
    weight = torch.rand(5, dtype=F64, generator=cases.generator(3))
    assert torch.autograd.gradcheck(
        lambda x: ops.upsampled_cross_entropy(x, labels, factor, weight, backend=backend),
        [logits.requires_grad_()],
        fast_mode=True,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted: bool) -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3)
    weight = torch.ones(5) if weighted else None
    operator = torch.ops.dynroute.upsampled_cross_entropy.default
    torch.library.opcheck(operator, (logits.clone().requires_grad_(), labels, 4, weight, 255, True))
    torch.library.opcheck(operator, (logits, labels, 4, weight, 255, False))


def test_compile() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3)

    def run(x: Tensor, labels: Tensor) -> Tensor:
        return ops.upsampled_cross_entropy(x * 2, labels, backend="cpu") / 7

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    close(trained(compiled, logits, labels), trained(run, logits, labels))
    with torch.no_grad():
        assert torch.equal(compiled(logits, labels), run(logits, labels))


def test_flops_and_gradients_nobody_wants() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3)
    weight = torch.ones(5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss = ops.upsampled_cross_entropy(logits, labels, weight=weight, backend="cpu")
    assert counter.get_total_flops() == 0
    _, gradient = torch.ops.dynroute.upsampled_cross_entropy(logits, labels, 4, None, 255, False)
    assert gradient.numel() == 0
    with pytest.raises(RuntimeError, match="with_gradient: wanted True for a backward pass, got False"):
        loss.backward()
    loss = ops.upsampled_cross_entropy(logits.requires_grad_(), labels, backend="cpu")
    with pytest.raises(RuntimeError, match="its gradient has none"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_memory() -> None:
    """Nothing of full size: not the upsampled logits, nor their gradient."""
    logits, labels = cases.upsampled_cross_entropy(2, 19, 32, 64)
    logits.requires_grad_()

    def step() -> Tensor:
        return torch.autograd.grad(ops.upsampled_cross_entropy(logits, labels, backend="cpu"), logits)[0]

    step()
    assert 2 * logits.nbytes <= peak(allocations(step)) <= 4 * logits.nbytes  # at full size they are 16 of these


def test_errors() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3)
    stray, negative = labels.clone(), labels.clone()
    stray[1, 15, 11], negative[0, 0, 0] = 5, -1
    wrong = [
        ((logits[0], labels), {}, r"logits: wanted shape \[\*, \*, \*, \*\], got \[5, 4, 3\]"),
        ((logits[:, :0], labels), {}, r"logits: wanted at least one class and a map of at least 1x1, got"),
        ((logits, labels.int()), {}, r"labels: wanted int64, got int32"),
        ((logits, labels[:1]), {}, r"labels: wanted shape \[2, \*, \*\], got \[1, 16, 12\]"),
        ((logits, labels, 3), {}, r"labels: wanted at most 12x9 \(logits' size times factor\), got 16x12"),
        ((logits, labels, 0), {}, r"factor: wanted 1\.\.64, got 0"),
        ((logits, labels), dict(weight=torch.ones(4)), r"weight: wanted shape \[5\], got \[4\]"),
        ((logits, labels), dict(weight=torch.ones(5, dtype=F64)), r"weight: wanted float32, got float64"),
        ((logits, stray), {}, r"labels: wanted 0\.\.4 or 255 \(ignore_index\), got 5"),
        ((logits, negative), {}, r"labels: wanted 0\.\.4 or 255 \(ignore_index\), got -1"),
        ((logits, labels), dict(ignore_index=7), r"labels: wanted 0\.\.4 or 7 \(ignore_index\), got 255"),
    ]
    for args, options, message in wrong:
        with pytest.raises(RuntimeError, match=f"upsampled_cross_entropy: {message}"):
            ops.upsampled_cross_entropy(*args, **options, backend="cpu")
    with pytest.raises(ValueError, match="upsampled_cross_entropy: backend: wanted one of auto"):
        ops.upsampled_cross_entropy(logits, labels, backend="tpu")


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file again, in a process held to another instruction set."""
    run = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
