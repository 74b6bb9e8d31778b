"""Forward-mode differentiation: the reference's, and an error of every other backend, which would drop tangents."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dynroute import ops
from dynroute.native import library
from tests.support import cases

N, C, H, W = 2, 8, 6, 4
native = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
triton = pytest.mark.skipif(find_spec("triton") is None or torch.cuda.is_available(), reason="triton, interpreted")


def _calls() -> dict[str, tuple[Tensor, Callable[[Tensor, str], Tensor]]]:
    """Of each operator its first tensor, and the call as a function of it and of the backend."""
    cell, path, gate = cases.sepconv(N, C, H, W), cases.transform(N, C, H, W, 16), cases.gate(N, C, H, W)
    cell_train, path_train = cases.sepconv_train(N, C, H, W), cases.transform_train(N, C, H, W, 16)
    gate_train, node = cases.gate_train(N, C, H, W, 1), cases.node_train(N, C, H, W)
    down, keep, up, alphas = cases.aggregate(N, C, H, W, "dku")
    logits, labels = cases.upsampled_cross_entropy(N, 5, H, W)
    present, slots = torch.ones(N, 4, dtype=torch.bool), torch.zeros(N, 4, dtype=torch.int32)
    exists = torch.ones(4, 3, dtype=torch.bool)
    return {
        "sepconv": (cell[0], lambda x, b: ops.sepconv(x, *cell[1:], backend=b)),
        "transform": (path[0], lambda x, b: ops.transform(x, *path[1:], backend=b)),
        "gate": (gate[0], lambda x, b: ops.gate(x, *gate[1:], backend=b)),
        "aggregate": (down, lambda x, b: ops.aggregate(x, keep, up, alphas, backend=b)),
        "route": (torch.rand(N, 4, 3), lambda x, b: ops.route(x, present, exists, slots, backend=b).alphas),
        "sepconv_train": (cell_train[0], lambda x, b: ops.sepconv_train(x, *cell_train[1:], backend=b)),
        "transform_train": (path_train[0], lambda x, b: ops.transform_train(x, *path_train[1:], backend=b)),
        "gate_train": (gate_train[0], lambda x, b: ops.gate_train(x, *gate_train[1:], backend=b)),
        "node_train": (node[0], lambda x, b: ops.node_train(x, *node[1:], backend=b).keep),
        "upsampled_cross_entropy": (logits, lambda x, b: ops.upsampled_cross_entropy(x, labels, 4, backend=b)),
    }


CALLS = _calls()


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=native), pytest.param("triton", marks=triton)])
@pytest.mark.parametrize("op", CALLS)
def test_kernels_refuse(op: str, backend: str) -> None:
    x, call = CALLS[op]
    refused = rf"^{op}: wanted tensors without tangents, got one with: only backend='reference'"
    with pytest.raises(RuntimeError, match=refused):
        torch.func.jvp(lambda x: call(x, backend), (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=refused):
        call(forward_ad.make_dual(x, torch.ones_like(x)), backend)


@pytest.mark.parametrize("op", ["sepconv", "transform", "gate", "aggregate"])
def test_the_reference_has_them(op: str) -> None:
    x, call = CALLS[op]
    x = x.double()
    step = 1e-6 * cases.normal(*x.shape, dtype=torch.float64, seed=9)
    with torch.no_grad():
        _, tangent = torch.func.jvp(lambda x: call(x, "reference"), (x.float(),), (step.float(),))
    assert tangent.abs().max() > 0


@native
def test_weights_and_maps_of_lists() -> None:
    x, depthwise, *others = cases.sepconv(N, C, H, W)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"^sepconv: wanted tensors without tangents"):
        ops.sepconv(x, [depthwise[0], forward_ad.make_dual(depthwise[1], depthwise[1])], *others)
    with forward_ad.dual_level():  # of which nothing here is a part
        ops.sepconv(x, depthwise, *others)
