"""`route` in Triton: open lists, counts, slots and the next layer's nodes out of a layer's alphas.

One launch, a program to each scale, which looks at its neighbours' states itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton.launch import check, wrapped
from dynroute.ops.triton.pieces import inside_if, is_path_open
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, UP

SCALES, PATHS = 4, 3


@triton.jit
def path_alpha(alphas, present, exists, sample, there, scale, PATH: tl.constexpr):
    """A path's alpha; 0 where the node is absent or has no such path, as beyond the first and the last scale."""
    at = tl.minimum(tl.maximum(scale, 0), 3)
    is_path = tl.load(exists + at * 3 + PATH).to(tl.int32) * tl.where(scale == at, 1, 0)
    is_node = tl.load(present + sample * 4 + at, there, 0) != 0
    return tl.load(alphas + (sample * 4 + at) * 3 + PATH, inside_if(is_node, is_path), 0.0)


@triton.jit
def is_open_node(alphas, present, exists, sample, there, scale, CLOSED: tl.constexpr):
    """Whether a node is present and its alphas do not sum to less than the threshold."""
    total = path_alpha(alphas, present, exists, sample, there, scale, 0)
    total += path_alpha(alphas, present, exists, sample, there, scale, 1)
    total += path_alpha(alphas, present, exists, sample, there, scale, 2)
    at = tl.minimum(tl.maximum(scale, 0), 3)
    is_node = tl.load(present + sample * 4 + at, there, 0) != 0
    return inside_if(is_node, tl.where(scale == at, 1, 0)) & (tl.where(total < CLOSED, 0, 1) != 0)


@triton.jit
def append(to, count, is_in, sample):
    """The samples that are in, behind the first `count` of a list; how many there are then."""
    place = tl.cumsum(is_in.to(tl.int32), 0)
    tl.store(to + count + place - 1, sample, is_in)
    return count + tl.sum(is_in.to(tl.int32), 0)


@triton.jit
def end_list(to, count, n, BLOCK: tl.constexpr):
    """-1 behind a list's samples."""
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(to + at, tl.full((BLOCK,), -1, tl.int32), (at >= count) & (at < n))


@triton.jit
def route_kernel(
    alphas, present, exists, slots, masked, open_list, open_count, path_list, path_count, closed, after, next_slots, n,
    CLOSED: tl.constexpr, PATH_UP: tl.constexpr, PATH_KEEP: tl.constexpr, PATH_DOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scale = tl.program_id(0)
    opened, ups, keeps, downs = 0, 0, 0, 0
    lists = path_list + scale * 3 * n
    for first in range(0, n, BLOCK):
        sample = first + tl.arange(0, BLOCK)
        there = sample < n
        node = sample * 4 + scale
        is_node = tl.load(present + node, there, 0) != 0
        is_open = is_open_node(alphas, present, exists, sample, there, scale, CLOSED)
        up = path_alpha(alphas, present, exists, sample, there, scale, PATH_UP)
        keep = path_alpha(alphas, present, exists, sample, there, scale, PATH_KEEP)
        down = path_alpha(alphas, present, exists, sample, there, scale, PATH_DOWN)
        tl.store(masked + node * 3 + PATH_UP, up, there)
        tl.store(masked + node * 3 + PATH_KEEP, keep, there)
        tl.store(masked + node * 3 + PATH_DOWN, down, there)
        opened = append(open_list + scale * n, opened, is_open, sample)
        ups = append(lists + PATH_UP * n, ups, is_open & is_path_open(up, CLOSED), sample)
        keeps = append(lists + PATH_KEEP * n, keeps, is_open & is_path_open(keep, CLOSED), sample)
        downs = append(lists + PATH_DOWN * n, downs, is_open & is_path_open(down, CLOSED), sample)
        tl.store(closed + node, is_node & (is_open == 0), there)
        slot = tl.load(slots + node, there, 0)
        tl.store(next_slots + node, tl.where(is_open, 1 - slot, slot), there)
        # by keep from a node that is present, by up and down from one that is open
        arrives = inside_if(is_node, tl.load(exists + scale * 3 + PATH_KEEP).to(tl.int32))
        below, above = scale + 1, scale - 1
        from_below = is_open_node(alphas, present, exists, sample, there, below, CLOSED)
        from_above = is_open_node(alphas, present, exists, sample, there, above, CLOSED)
        goes_up = tl.load(exists + tl.minimum(below, 3) * 3 + PATH_UP).to(tl.int32)
        goes_down = tl.load(exists + tl.maximum(above, 0) * 3 + PATH_DOWN).to(tl.int32)
        arrives = arrives | inside_if(from_below, goes_up) | inside_if(from_above, goes_down)
        tl.store(after + node, arrives, there)
    end_list(open_list + scale * n, opened, n, BLOCK)
    end_list(lists + PATH_UP * n, ups, n, BLOCK)
    end_list(lists + PATH_KEEP * n, keeps, n, BLOCK)
    end_list(lists + PATH_DOWN * n, downs, n, BLOCK)
    tl.store(open_count + scale, opened)
    tl.store(path_count + scale * 3 + PATH_UP, ups)
    tl.store(path_count + scale * 3 + PATH_KEEP, keeps)
    tl.store(path_count + scale * 3 + PATH_DOWN, downs)


def block_of(n: int) -> int:
    """Samples that `route_kernel` looks at at once."""
    return triton.next_power_of_2(max(min(n, 128), 1))


@torch.library.triton_op("dynroute_triton::route", mutates_args={})
def route(
    alphas: Tensor, present: Tensor, path_exists: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = alphas.shape[0]
    check(alphas.shape == (n, SCALES, PATHS), "route", "alphas", f"[N, {SCALES}, {PATHS}]", list(alphas.shape))

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=alphas.device)

    masked = torch.empty_like(alphas, memory_format=torch.contiguous_format)
    lists, counts = new(torch.int32, SCALES, n), new(torch.int32, SCALES)
    path_lists, path_counts = new(torch.int32, SCALES, PATHS, n), new(torch.int32, SCALES, PATHS)
    closed, after = new(torch.bool, n, SCALES), new(torch.bool, n, SCALES)
    next_slots = new(torch.int32, n, SCALES)
    wrapped(route_kernel)[(SCALES,)](
        alphas.contiguous(), present.contiguous(), path_exists.contiguous(), slots.contiguous(),
        masked, lists, counts, path_lists, path_counts, closed, after, next_slots, n,
        CLOSED=CLOSED_BELOW, PATH_UP=UP, PATH_KEEP=KEEP, PATH_DOWN=DOWN,
        BLOCK=block_of(n),
    )  # fmt: skip
    return masked, lists, counts, path_lists, path_counts, closed, after, next_slots
