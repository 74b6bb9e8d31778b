"""How kernels read maps of which only parts were kept, and gradients that are never stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton.launch import nhwc, some
from dynroute.ops.triton.pieces import both, relu


@triton.jit
def affine_of(gamma, beta, stats, column, there, channels):
    """A BatchNorm's scale and shift, its mean and inverse deviation; of columns that are there, zeros of others."""
    mean = tl.load(stats + column, there, 0.0)
    invstd = tl.load(stats + channels + column, there, 0.0)
    scale = tl.load(gamma + column, there, 0.0) * invstd
    return scale, tl.load(beta + column, there, 0.0) - mean * scale, mean, invstd


@triton.jit
def read(x, raw, at, row, inside, channels, scale, shift, by, KIND: tl.constexpr):
    """Values of a source, float32, 0 where not inside. at: where; row: from one line of pixels to the next.

    "x"; "relu": ReLU(x); "normed": ReLU(BatchNorm(raw)); "hidden": ReLU(x + by * BatchNorm(raw)), a node's H;
    "quarter": the mean of four pixels, which a bilinear x1/4 is.
    """
    if KIND == "normed":
        value = tl.load(raw + at, inside, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        value = tl.where(inside, relu(value), 0.0)
    elif KIND == "hidden":
        value = tl.load(raw + at, inside, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32) + by * value
        value = tl.where(inside, relu(value), 0.0)
    elif KIND == "quarter":
        value = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(x + at + channels, inside, 0.0).to(tl.float32)
        below = tl.load(x + at + row, inside, 0.0).to(tl.float32)
        value = 0.25 * (value + (below + tl.load(x + at + row + channels, inside, 0.0).to(tl.float32)))
    else:
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        if KIND == "relu":
            value = relu(value)
    return value


@triton.jit
def filtered(
    x, raw, gamma, beta, stats, taps, factor, first, sample, pixel, is_pixel, step,
    height, width, out_width, channels, stride,
    KIND: tl.constexpr, HAS_TAPS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """What a product reads for output pixels and input channels: the source there, or its depthwise 3x3; float32.

    first: where the sample begins. taps: [9, C].
    """
    is_step = step < channels
    by = 1.0
    if HAS_FACTOR:
        by = tl.load(factor + sample)
    scale = tl.zeros_like(step).to(tl.float32)
    shift = scale
    if HAS_NORM:
        scale, shift, _mean, _invstd = affine_of(gamma, beta, stats, step, is_step, channels)
    y0 = pixel // out_width * stride
    x0 = pixel % out_width * stride
    row = width * channels
    if HAS_TAPS:
        even = tl.zeros((pixel.shape[0], step.shape[0]), tl.float32)
        odd = even
        for tap in tl.static_range(9):
            y = y0 + tap // 3 - 1
            at = x0 + tap % 3 - 1
            is_map = is_pixel & (y >= 0) & (y < height) & (at >= 0) & (at < width)
            inside = is_map[:, None] & is_step[None, :]
            place = first + ((y * width + at)[:, None] * channels + step[None, :])
            weight = tl.load(taps + tap * channels + step, is_step, 0.0)
            part = read(x, raw, place, row, inside, channels, scale, shift, by, KIND) * weight[None, :]
            if tap % 2 == 0:
                even += part
            else:
                odd += part
        value = both(even, odd)
    else:
        if KIND == "quarter":  # the four pixels around the small one's centre
            y0 = pixel // out_width * 4 + 1
            x0 = pixel % out_width * 4 + 1
        inside = is_pixel[:, None] & is_step[None, :]
        place = first + ((y0 * width + x0)[:, None] * channels + step[None, :])
        value = read(x, raw, place, row, inside, channels, scale, shift, by, KIND)
    return value


@triton.jit
def raw_gradient(
    grad, raw, gamma, beta, stats, means, factor, sample, at, inside, column, there, channels,
    HAS_FACTOR: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """The gradient of a raw output, float32, out of the one behind its BatchNorm; 0 where not inside.

    means: [2, C] of that gradient, and of its product with what is normalised, times the inverse deviation. POOLED:
    grad is [N, C], the same for all of a sample's pixels that the ReLU behind the BatchNorm lets through.
    """
    scale, shift, mean, _invstd = affine_of(gamma, beta, stats, column, there, channels)
    value = tl.load(raw + at, inside, 0.0).to(tl.float32)
    if POOLED:
        of_pixel = tl.load(grad + sample * channels + column, there, 0.0)[None, :]
        behind = tl.where(value * scale[None, :] + shift[None, :] > 0.0, of_pixel, 0.0)
    else:
        behind = tl.load(grad + at, inside, 0.0).to(tl.float32)
    if HAS_FACTOR:
        behind = behind * tl.load(factor + sample)
    behind = behind - tl.load(means + column, there, 0.0)[None, :]
    behind = behind - (value - mean[None, :]) * tl.load(means + channels + column, there, 0.0)[None, :]
    return tl.where(inside, scale[None, :] * behind, 0.0)


class Norm(NamedTuple):
    """A BatchNorm: gamma and beta [C], a call's statistics [3, C]."""

    gamma: Tensor
    beta: Tensor
    stats: Tensor

    def arguments(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "beta": self.beta, "stats": self.stats}


class Source(NamedTuple):
    """A map as `read` makes it. x: [N, C, H, W]; raw: what lies before `norm`, where the kind reads it; factor: [N]."""

    kind: str
    x: Tensor
    raw: Tensor | None = None
    norm: Norm | None = None
    factor: Tensor | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        _, c, h, w = (self.raw if self.kind == "normed" else self.x).shape  # type: ignore[union-attr]
        return h, w, c

    def arguments(self) -> dict[str, Any]:
        """What `filtered` is told of it; any pointer for what it does not read."""
        x = nhwc(self.x)
        norm = self.norm.arguments() if self.norm is not None else dict.fromkeys(("gamma", "beta", "stats"), x)
        height, width, channels = self.size
        return {
            "x": x, "source": some(self.raw, x), **{f"source_{k}": v for k, v in norm.items()},
            "factor": some(self.factor, x), "height": height, "width": width,
            "channels": channels, "KIND": self.kind, "HAS_FACTOR": self.factor is not None,
            "HAS_NORM": self.norm is not None,
        }  # fmt: skip


class Gradient(NamedTuple):
    """The gradient of a raw output, as `raw_gradient` makes it. factor: [N], of `grad`, or None."""

    grad: Tensor
    raw: Tensor
    norm: Norm
    means: Tensor
    factor: Tensor | None = None
    pooled: bool = False

    def arguments(self) -> dict[str, Any]:
        """What `raw_gradient` is told of it."""
        return {
            "grad": self.grad, "raw": self.raw, **self.norm.arguments(), "means": self.means,
            "grad_factor": some(self.factor, self.means),
            "HAS_GRAD_FACTOR": self.factor is not None, "POOLED": self.pooled,
        }  # fmt: skip
