"""`upsampled_cross_entropy` in Triton: bilinear upsampling and cross entropy; nothing of full size is stored.

The factor x factor pixels between four logits' centres, a gap, read the same four. A program goes over its gaps' pixels
and keeps what they give to the four corners; a second launch adds up each logit's, in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton.launch import check, nhwc, wrapped
from dynroute.ops.triton.train.norm import reduce
from dynroute.ops.triton.train.samples import Samples

VALUES = 512  # logits of a corner that a program holds


@triton.jit
def loss_kernel(
    logits, labels, weight, losses, corners, height, width, out_height, out_width, classes, factor, ignore_index,
    HAS_WEIGHT: tl.constexpr, HAS_GRADIENT: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_G gaps of a sample, all classes. A label that is none makes its loss and its gradients NaN."""
    sample, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    gap = block * BLOCK_G + tl.arange(0, BLOCK_G)
    k = tl.arange(0, BLOCK_K)
    gap_y = gap // (width + 1)
    gap_x = gap % (width + 1)
    is_gap = gap_y <= height
    inside = is_gap[:, None] & (k < classes)[None, :]
    above = tl.maximum(gap_y - 1, 0) * width  # borders repeat
    below = tl.minimum(gap_y, height - 1) * width
    left = tl.maximum(gap_x - 1, 0)
    right = tl.minimum(gap_x, width - 1)
    image = logits + sample * height * width * classes
    a = tl.load(image + (above + left)[:, None] * classes + k[None, :], inside, float("-inf"))
    b = tl.load(image + (above + right)[:, None] * classes + k[None, :], inside, float("-inf"))
    c = tl.load(image + (below + left)[:, None] * classes + k[None, :], inside, float("-inf"))
    d = tl.load(image + (below + right)[:, None] * classes + k[None, :], inside, float("-inf"))
    of_a = tl.zeros((BLOCK_G, BLOCK_K), tl.float32)
    of_b = tl.zeros((BLOCK_G, BLOCK_K), tl.float32)
    of_c = tl.zeros((BLOCK_G, BLOCK_K), tl.float32)
    of_d = tl.zeros((BLOCK_G, BLOCK_K), tl.float32)
    loss = tl.zeros((BLOCK_G,), tl.float32)
    for pixel in range(factor * factor):
        i = pixel // factor
        j = pixel % factor
        y = factor * (gap_y - 1) + factor // 2 + i
        x = factor * (gap_x - 1) + factor // 2 + j
        down = (2 * i + 1 - factor % 2) / (2.0 * factor)
        along = (2 * j + 1 - factor % 2) / (2.0 * factor)
        is_pixel = is_gap & (y >= 0) & (y < out_height) & (x >= 0) & (x < out_width)
        label = tl.load(labels + (sample * out_height + y) * out_width + x, is_pixel, ignore_index)
        counts = is_pixel & (label != ignore_index)
        is_class = (label >= 0) & (label < classes)
        by = tl.where(counts, 1.0, 0.0)
        if HAS_WEIGHT:
            by = by * tl.load(weight + label, counts & is_class, 1.0)
        by = tl.where(counts & (is_class == 0), float("nan"), by)
        value = (1.0 - down) * ((1.0 - along) * a + along * b) + down * ((1.0 - along) * c + along * d)
        value = tl.where(inside, value, float("-inf"))
        largest = tl.where(is_gap, tl.max(value, 1), 0.0)
        shares = tl.exp(value - largest[:, None])
        total = tl.sum(shares, 1)
        is_label = label[:, None] == k[None, :]
        of_label = tl.sum(tl.where(is_label & inside, value, 0.0), 1)
        lost = by * (tl.log(tl.where(is_gap, total, 1.0)) + largest - of_label)
        loss += tl.where(counts, lost, 0.0)
        if HAS_GRADIENT:
            of = shares / tl.where(is_gap, total, 1.0)[:, None] - tl.where(is_label, 1.0, 0.0)
            of = tl.where(inside & counts[:, None], by[:, None] * of, 0.0)
            of_a += (1.0 - down) * (1.0 - along) * of
            of_b += (1.0 - down) * along * of
            of_c += down * (1.0 - along) * of
            of_d += down * along * of
    tl.store(losses + sample * tl.num_programs(0) + block, tl.sum(loss, 0))
    if HAS_GRADIENT:
        gaps = (height + 1) * (width + 1)
        to = corners + ((sample * gaps + gap)[:, None] * 4 * classes + k[None, :])
        tl.store(to, of_a, inside)
        tl.store(to + classes, of_b, inside)
        tl.store(to + 2 * classes, of_c, inside)
        tl.store(to + 3 * classes, of_d, inside)


@triton.jit
def gather_kernel(corners, gradient, height, width, classes, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """A logit's gradient: of the four gaps around it the corner that it is, at borders those too that repeat it."""
    sample = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    inside = (pixel < height * width)[:, None] & (k < classes)[None, :]
    y = pixel // width
    x = pixel % width
    gaps = (height + 1) * (width + 1)
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for of in tl.static_range(16):
        gap_y = y + of // 8
        gap_x = x + of // 4 % 2
        corner_y = tl.minimum(tl.maximum(gap_y - 1 + of // 2 % 2, 0), height - 1)
        corner_x = tl.minimum(tl.maximum(gap_x - 1 + of % 2, 0), width - 1)
        is_own = inside & ((corner_y == y) & (corner_x == x))[:, None]
        place = (sample * gaps + gap_y * (width + 1) + gap_x) * 4 + of % 4
        total += tl.load(corners + (place[:, None] * classes + k[None, :]), is_own, 0.0)
    to = gradient + sample * height * width * classes + (pixel[:, None] * classes + k[None, :])
    tl.store(to, total, inside)


@torch.library.triton_op("dynroute_triton::upsampled_cross_entropy", mutates_args={})
def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, factor: int, weight: Tensor | None, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    op, logits = "upsampled_cross_entropy", nhwc(logits)
    n, classes, h, w = logits.shape
    fits = (
        labels.dim() == 3 and labels.shape[0] == n and labels.shape[1] <= factor * h and labels.shape[2] <= factor * w
    )
    check(1 <= factor <= 64, op, "factor", "1 to 64", factor)
    wanted, got = f"int64 [{n}, at most {factor * h}, at most {factor * w}]", f"{labels.dtype} {list(labels.shape)}"
    check(labels.dtype == torch.int64 and fits, op, "labels", wanted, got)
    if weight is not None:
        check(weight.shape == (classes,), op, "weight", f"[{classes}]", list(weight.shape))
    check(logits.dtype == torch.float32, op, "logits", "float32", logits.dtype)
    gradient = torch.empty(
        (n if with_gradient else 0, classes, h, w), dtype=logits.dtype, device=logits.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    loss = logits.new_zeros(())
    if logits.numel() == 0:
        return loss, gradient
    block_k = max(triton.next_power_of_2(classes), 2)
    block_g = max(VALUES // block_k, 1)
    gaps = (h + 1) * (w + 1)
    blocks = triton.cdiv(gaps, block_g)
    losses = logits.new_empty((n * blocks, 1))
    corners = logits.new_empty((n, gaps, 4, classes)) if with_gradient else losses
    wrapped(loss_kernel)[(blocks, n)](
        logits, labels.contiguous(), weight if weight is not None else logits, losses, corners, h, w, labels.shape[1],
        labels.shape[2], classes, factor, ignore_index, HAS_WEIGHT=weight is not None, HAS_GRADIENT=with_gradient,
        BLOCK_G=block_g, BLOCK_K=block_k,
    )  # fmt: skip
    reduce(losses, loss, Samples(n * blocks), 1)
    if with_gradient:
        wrapped(gather_kernel)[(triton.cdiv(h * w, block_g), n)](
            corners, gradient, h, w, classes, BLOCK_M=block_g, BLOCK_K=block_k
        )
    return loss, gradient
