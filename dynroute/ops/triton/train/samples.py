"""Which samples take part: lists and weights made on the device, out of a mask or of alphas."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.registration import nhwc_empty
from dynroute.ops.triton.launch import some, wrapped
from dynroute.ops.triton.pieces import is_path_open, relu
from dynroute.ops.triton.route import append
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, UP


@triton.jit
def how_many(samples, n, ALL: tl.constexpr):
    """Samples that take part: what a list begins with, or all."""
    count = n
    if not ALL:
        count = tl.load(samples)
    return count


@triton.jit
def nth(samples, slot, ALL: tl.constexpr):
    """The slot-th sample that takes part, 64 bits."""
    sample = slot.to(tl.int64)
    if not ALL:
        sample = tl.load(samples + 1 + slot).to(tl.int64)
    return sample


class Samples(NamedTuple):
    """n samples, of which those of a list take part: int32 [1 + n], their number first; None: all."""

    n: int
    listed: Tensor | None = None

    def arguments(self, anything: Tensor) -> dict[str, Any]:
        """What `how_many` and `nth` are told; anything: a pointer where there is no list, to what the kernel writes:
        compilers take what an address depends on for written."""
        return {
            "samples": some(self.listed, anything),
            "n": self.n,
            "ALL": self.listed is None,
        }

    def new_map(self, like: Tensor, shape: tuple[Any, ...], is_whole: bool = True) -> Tensor:
        """A map in channels_last; zeros where kernels do not write to all of it, as to samples that take no part."""
        new = nhwc_empty(like, shape)
        return new if self.listed is None and is_whole else new.zero_()


@triton.jit
def mask_kernel(mask, samples, n, BLOCK: tl.constexpr):
    count = 0
    for first in range(0, n, BLOCK):
        sample = first + tl.arange(0, BLOCK)
        is_in = tl.load(mask + sample, sample < n, 0) != 0
        count = append(samples + 1, count, is_in, sample)
    tl.store(samples, count)


def masked(open: Tensor | None, n: int) -> Samples:
    """The samples of a mask, bool [N] or None for all."""
    if open is None or n == 0:
        return Samples(n)
    listed = torch.empty(1 + n, dtype=torch.int32, device=open.device)
    wrapped(mask_kernel)[(1,)](open.contiguous(), listed, n, BLOCK=_block(n))
    return Samples(n, listed)


@triton.jit
def node_kernel(
    alphas, open, ups, downs, slots, hidden_weight, x_weight, n, bridge,
    CLOSED: tl.constexpr, PATH_UP: tl.constexpr, PATH_KEEP: tl.constexpr, PATH_DOWN: tl.constexpr,
    SKIP: tl.constexpr, HAS_BRIDGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SPEC, "Node": lists of samples that are open and that go up and down; what H and x weigh in keep."""
    opened, upped, downed = 0, 0, 0
    for first in range(0, n, BLOCK):
        sample = first + tl.arange(0, BLOCK)
        there = sample < n
        up = tl.load(alphas + sample * 3 + PATH_UP, there, 0.0)
        keep = tl.load(alphas + sample * 3 + PATH_KEEP, there, 0.0)
        down = tl.load(alphas + sample * 3 + PATH_DOWN, there, 0.0)
        total = tl.load(alphas + sample * 3, there, 0.0) + tl.load(alphas + sample * 3 + 1, there, 0.0)
        total += tl.load(alphas + sample * 3 + 2, there, 0.0)
        is_closed = tl.where(total < CLOSED, 1, 0) != 0
        of_x = tl.where(is_closed, 1.0, 0.0)
        of_hidden = tl.where(is_closed, 0.0, keep)
        if HAS_BRIDGE:
            of_x = relu(1.0 - total / bridge)
            of_hidden = keep
        if SKIP:
            is_open = there & (is_closed == 0)
            of_hidden = tl.where(is_open, of_hidden, 0.0)
            place = opened + tl.cumsum(is_open.to(tl.int32), 0) - 1
            tl.store(slots + sample, tl.where(is_open, place, -1), there)
            opened = append(open + 1, opened, is_open, sample)
            upped = append(ups + 1, upped, is_open & is_path_open(up, CLOSED), sample)
            downed = append(downs + 1, downed, is_open & is_path_open(down, CLOSED), sample)
        tl.store(hidden_weight + sample, of_hidden, there)
        tl.store(x_weight + sample, of_x, there)
    if SKIP:
        tl.store(open, opened)
        tl.store(ups, upped)
        tl.store(downs, downed)


class NodeSamples(NamedTuple):
    """Of a node: who takes part in its cell and its paths; [N] each sample's place in the cell's list or -1 (None: all
    take part), and what H and x weigh in keep, float32."""

    open: Samples
    up: Samples
    down: Samples
    slots: Tensor | None
    hidden_weight: Tensor
    x_weight: Tensor


def of_node(alphas: Tensor, bridge: float, skip: bool) -> NodeSamples:
    """Out of alphas [N, 3], float32."""
    n = alphas.shape[0]
    weights = alphas.new_empty((2, n))
    lists = torch.empty((3, 1 + n), dtype=torch.int32, device=alphas.device)
    slots = torch.empty(n, dtype=torch.int32, device=alphas.device)
    if n:
        wrapped(node_kernel)[(1,)](
            alphas.contiguous(), lists[0], lists[1], lists[2], slots, weights[0], weights[1], n, bridge,
            CLOSED=CLOSED_BELOW, PATH_UP=UP, PATH_KEEP=KEEP, PATH_DOWN=DOWN, SKIP=skip, HAS_BRIDGE=bridge > 0,
            BLOCK=_block(n),
        )  # fmt: skip
    is_listed = skip and n > 0
    open, up, down = (Samples(n, listed if is_listed else None) for listed in lists)
    return NodeSamples(open, up, down, slots if is_listed else None, weights[0], weights[1])


def _block(n: int) -> int:
    return triton.next_power_of_2(max(min(n, 128), 1))
