"""A sample's result is the same bits alone and in any batch, with any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynroute import ops
from dynroute.native import library
from tests.support import cases

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


def runs() -> dict[str, tuple[Callable[..., Tensor], tuple, int]]:
    """Name -> function of the batched tensors, those tensors, and how many of them lead with N."""
    fused = cases.sepconv(5, 24, 70, 45, 3)
    staged = cases.sepconv(5, 128, 13, 9, 2)
    down = cases.transform(5, 40, 33, 21, 80)
    gate = cases.gate(5, 72, 45, 37)
    aggregate = cases.aggregate(5, 24, 34, 26)
    return {
        "sepconv fused": (lambda x: ops.sepconv(x, *fused[1:], residual=True, backend="cpu"), fused[:1]),
        "sepconv staged": (lambda x: ops.sepconv(x, *staged[1:], residual=True, backend="cpu"), staged[:1]),
        "sepconv stride 2": (lambda x: ops.sepconv(x, *fused[1:], stride=2, backend="cpu"), fused[:1]),
        "transform": (lambda x: ops.transform(x, *down[1:], stride=2, backend="cpu"), down[:1]),
        "gate": (lambda x: ops.gate(x, *gate[1:], backend="cpu"), gate[:1]),
        "small gate": (lambda x: ops.gate(x, *gate[1:], small=True, backend="cpu"), gate[:1]),
        "aggregate": (lambda *maps: ops.aggregate(*maps, backend="cpu"), aggregate),
    }


@pytest.mark.parametrize("name", list(runs()))
def test_bits(name: str) -> None:
    run, batched = runs()[name]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([run(*[t[i : i + 1] for t in batched]) for i in range(5)])
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for order in (torch.arange(5), torch.tensor([3, 0, 4])):
                assert torch.equal(run(*[t[order] for t in batched]), alone[order])
    finally:
        torch.set_num_threads(before)


def test_who_else_is_open_does_not_matter() -> None:
    x, *weights = cases.sepconv(5, 16, 40, 33)
    expected = ops.sepconv(x, *weights, backend="cpu")
    open = torch.tensor([True, False, False, True, True])
    assert torch.equal(ops.sepconv(x, *weights, open, backend="cpu")[open], expected[open])
