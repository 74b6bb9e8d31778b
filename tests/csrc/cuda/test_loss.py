"""upsampled_cross_entropy on CUDA, by the emulator, against torch in float64: odd sizes, crops, any number of classes,
labels that are none, all schedules.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.native import library
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DeviceLimits
from tests.support import cases
from tests.support.cuda.devices import A100, H100
from tests.support.cuda.operators import emulated

REASON = library.why_not_loaded() or emulator.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ONE = A100._replace(multiprocessors=1)
SHAPES = [  # n, k, h, w, factor, crop
    (2, 19, 16, 16, 4, (0, 0)),
    (1, 1, 1, 1, 4, (1, 0)),
    (2, 2, 7, 5, 4, (3, 1)),
    (1, 11, 9, 34, 8, (2, 0)),  # two tiles
    (2, 3, 5, 50, 3, (0, 5)),
    (1, 2, 3, 3, 1, (0, 0)),
    (1, 19, 3, 140, 1, (0, 0)),
    (2, 21, 20, 9, 2, (23, 4)),  # most rows are cropped; two lanes to a pixel
    (1, 12, 33, 7, 5, (1, 1)),  # several bands
    (170, 2, 18, 3, 1, (0, 0)),  # bands of sixteen rows
    (1, 7, 3, 2, 64, (0, 0)),  # two passes
    (1, 40, 2, 3, 40, (7, 3)),  # passes that end within a gap
    (1, 150, 5, 9, 4, (1, 1)),  # sixteen lanes to a pixel
    (1, 544, 2, 3, 4, (0, 0)),  # all that a warp holds
    (1, 1000, 3, 4, 2, (0, 1)),  # three chunks
]


def by_torch(logits: Tensor, labels: Tensor, factor: int, weight: Tensor | None = None, ignored: int = 255) -> Any:
    """Loss and gradient in float64."""
    logits = logits.double().requires_grad_()
    full = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
    full = full[..., : labels.shape[1], : labels.shape[2]]
    weight = None if weight is None else weight.double()
    loss = F.cross_entropy(full, labels, weight, ignore_index=ignored, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def ours(logits: Tensor, labels: Tensor, factor: int, weight: Tensor | None = None, ignored: int = 255, **more: Any):
    """Loss and gradient; without a gradient the loss is the same."""
    loss, gradient = emulated("upsampled_cross_entropy", logits, labels, factor, weight, ignored, True, **more)
    assert loss.shape == () and gradient.shape == logits.shape
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    return loss, gradient


def check(*args: Any) -> tuple[Tensor, Tensor]:
    """Within rounding of float64."""
    found, true = ours(*args), by_torch(*args)
    labels = args[1]
    pixels = float((labels != (args[4] if len(args) > 4 else 255)).sum())
    assert (found[0].double() - true[0]).abs() <= 2e-7 * max(true[0].item(), pixels)
    assert (found[1].double() - true[1]).abs().max() <= 1e-6 * max(true[1].abs().max().item(), 1.0)
    return found


@pytest.mark.parametrize("n, k, h, w, factor, crop", SHAPES)
def test_parity(n: int, k: int, h: int, w: int, factor: int, crop: tuple[int, int]) -> None:
    logits, labels = cases.upsampled_cross_entropy(n, k, h, w, factor, crop)
    loss, _ = check(logits, labels, factor)
    alone, nothing = emulated("upsampled_cross_entropy", logits, labels, factor, None, 255, False)
    assert torch.equal(alone, loss) and nothing.shape == (0, k, h, w)


@pytest.mark.parametrize("k, ignored", [(19, 255), (11, -1), (150, 3)])
def test_weights_and_ignored_labels(k: int, ignored: int) -> None:
    logits, labels = cases.upsampled_cross_entropy(2, k, 5, 9)
    labels = labels.masked_fill(labels == 255, ignored)
    weight = torch.rand(k, generator=cases.generator(3))
    check(logits, labels, 4, weight, ignored)
    # what ignored pixels alone are made of is not looked at, whatever it is
    labels[:, :12, :24] = ignored
    expected = ours(logits, labels, 4, weight, ignored)
    logits[:, min(k - 1, 3), :2, :5] = float("nan")
    found = ours(logits, labels, 4, weight, ignored)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    loss, gradient = ours(logits, torch.full_like(labels, ignored), 4, weight, ignored)
    assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 5, 3, 2)])
def test_nothing_to_sum(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape[0], 12 if shape[0] == 0 else 0, 8, dtype=torch.int64)
    loss, gradient = ours(torch.ones(shape), labels, 4)
    assert loss == 0 and (gradient == 0).all()


@pytest.mark.parametrize("stray", [19, -1, 1 << 40])
def test_a_label_that_is_no_class_shows(stray: int) -> None:
    """In the loss, and in the gradient around it; the other sample's is as it was."""
    logits, labels = cases.upsampled_cross_entropy(2, 19, 5, 9)
    _, clean = ours(logits, labels, 4)
    labels[0, 9, 20] = stray  # between the rows 1 and 2, and the columns 4 and 5
    loss, gradient = ours(logits, labels, 4)
    assert loss.isnan()
    hit = gradient.isnan()
    assert hit[0, :, 1:3, 4:6].all() and hit.sum() == 19 * 4
    assert torch.equal(gradient[~hit], clean[~hit])


def test_large_logits() -> None:
    """No overflow, and a class that is out of question gets no gradient; a class may be masked by minus infinity."""
    logits = torch.tensor([1e4, -1e4, 9.9e3]).view(1, 3, 1, 1).expand(2, 3, 5, 4).contiguous()
    labels = torch.full((2, 20, 16), 2)
    loss, gradient = check(logits, labels, 4)
    assert loss == 100 * labels.numel() and (gradient[:, 1] == 0).all()
    logits[:, 1] = -torch.inf
    assert all(torch.equal(a, b) for a, b in zip(ours(logits, labels, 4), (loss, gradient), strict=True))


@pytest.mark.parametrize("k, h, w, factor", [(19, 20, 33, 4), (21, 6, 40, 3), (40, 3, 3, 40)])
def test_no_schedule_device_or_batch_changes_a_bit(k: int, h: int, w: int, factor: int) -> None:
    logits, labels = cases.upsampled_cross_entropy(2, k, h, w, factor)
    first = ours(logits, labels, factor)
    for seed, order in enumerate(("fwd", "rev", "rand")):
        again = ours(logits, labels, factor, order=order, seed=seed, resident=2)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), order
    for limits in (ONE, DeviceLimits(80, 84, 99 << 10, 100 << 10), *([H100] if k == 19 else [])):
        again = ours(logits, labels, factor, limits=limits)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), limits
    for i in range(2):
        _, alone = ours(logits[i : i + 1], labels[i : i + 1], factor)
        assert torch.equal(alone[0], first[1][i])


def test_no_thread_touches_what_another_does() -> None:
    """Races in global memory, of one task: what the last block to arrive reads, the checker cannot follow."""
    for shape in ((1, 19, 2, 9, 4), (1, 40, 2, 2, 40), (1, 600, 2, 3, 2)):
        logits, labels = cases.upsampled_cross_entropy(*shape)
        found: list = []
        ours(logits, labels, shape[-1], statistics=found, global_races=True, races="raise")
        assert [kernel for kernel, _ in found] == ["prepare", "upsampled_loss"]


def test_any_layout() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 11, 6, 5)
    expected = ours(logits, labels, 4)
    turned = labels.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (logits.to(memory_format=torch.channels_last), logits.transpose(2, 3).contiguous().transpose(2, 3)):
        found = ours(view, turned, 4)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_asked_of_memory() -> None:
    """No more than the borders of tasks beside logits and labels once, and the gradient once; few bank conflicts.

    On this small map a task has but two rows, of whose three gaps one is another's too.
    """
    logits, labels = cases.upsampled_cross_entropy(8, 19, 32, 62)
    found: list = []
    ours(logits, labels, 4, statistics=found, counters=True)
    (_, counted) = found[-1]
    assert counted["gld_bytes"] <= 1.75 * (logits.nbytes + labels.nbytes)
    assert counted["gst_bytes"] <= 1.01 * logits.nbytes
    assert counted["bank_conflict_ways"] < 1.25


def test_errors() -> None:
    logits, labels = cases.upsampled_cross_entropy(2, 5, 4, 3)
    for args, message in (
        ((logits.half(), labels, 4, None), "logits: wanted float32 or float64, got float16"),
        ((logits, labels.int(), 4, None), "labels: wanted int64, got int32"),
        ((logits, labels, 65, None), r"factor: wanted 1\.\.64, got 65"),
        ((logits, labels, 3, None), r"labels: wanted at most 12x9 \(logits' size times factor\), got 16x12"),
        ((logits, labels, 4, torch.ones(4)), r"weight: wanted shape \[5\], got \[4\]"),
    ):
        with pytest.raises(RuntimeError, match=f"upsampled_cross_entropy: {message}"):
            emulated("upsampled_cross_entropy", *args, 255, True)
