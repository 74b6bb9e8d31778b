"""The operators on CUDA tensors as far as that goes without a GPU: fake tensors, autocast, what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dynroute import ops
from dynroute.native import library
from dynroute.ops import backends
from tests.support import cases

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
ON_CUDA = ("sepconv", "gate", "transform", "aggregate")


def fakes() -> dict[str, tuple]:
    """Arguments of each operator; inside a FakeTensorMode."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="cuda")

    x, norm = empty(2, 8, 6, 4), [empty(8)]
    return {
        "sepconv": (x, [empty(8, 1, 3, 3)], [empty(8, 8, 1, 1)], norm, norm, None, 1, True, True),
        "transform": (x, empty(16, 8, 1, 1), empty(16), empty(16), None, 2),
        "gate": (x, empty(4, 8, 1, 1), empty(4), empty(4), empty(2, 4, 1, 1), empty(2), "tanh", True, None),
        "aggregate": (x, x, empty(2, 8, 3, 2), empty(2, 3)),
    }


def lowered(autocast: torch.dtype | None, call: Any, *args: Any) -> Any:
    """A call under CUDA's autocast, which `torch.autocast` refuses where there is no GPU."""
    try:
        torch.set_autocast_enabled("cuda", autocast is not None)
        if autocast is not None:
            torch.set_autocast_dtype("cuda", autocast)
        return call(*args)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", ON_CUDA)
def test_fake_and_autocast(op: str, autocast: torch.dtype | None) -> None:
    """The result's device, layout and type; autocast lowers it as it lowers torch's convolutions."""
    with FakeTensorMode():
        out = lowered(autocast, getattr(torch.ops.dynroute, op), *fakes()[op])
        assert out.dtype == (autocast or torch.float32) and out.device.type == "cuda"
        assert out.dim() < 4 or out.is_contiguous(memory_format=torch.channels_last)


TRAINED = {
    "sepconv_train": (cases.sepconv_train(2, 16, 6, 4), (None, 1, True, True, False, "", 1e-5, False)),
    "transform_train": (cases.transform_train(2, 16, 6, 4, 8), (None, 2, True, False, "", 1e-5, False)),
    "gate_train": (cases.gate_train(2, 16, 6, 4), ("tanh", [1, 0, 2], False, False, "", 1e-5, False)),
    "node_train": (cases.node_train(2, 16, 6, 4), (None, 0.0, True, False, "", 1e-5, False)),
}


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", list(TRAINED))
def test_training_lowers_maps_alone(op: str, autocast: torch.dtype | None) -> None:
    """Maps in autocast's type; statistics, alphas and the gradients of weights in float32."""
    args, options = TRAINED[op]

    def on_cuda(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty(value.shape, device="cuda")
        return [on_cuda(v) for v in value] if isinstance(value, list) else value

    with FakeTensorMode():
        given = [on_cuda(value) for value in args]
        outs = lowered(autocast, getattr(torch.ops.dynroute, op), *given, *options)
        of_maps = autocast or torch.float32
        for out in outs:
            assert out.dtype == (of_maps if out.dim() == 4 else torch.float32) and out.device.type == "cuda"
        given_back = (
            (*given[:4], given[6]) if op == "gate_train" else given[: {"sepconv_train": 5, "node_train": 8}.get(op, 4)]
        )
        made = 3 if op == "node_train" else 1
        kept = outs if op == "gate_train" else outs[made:]
        wanted = [True] * (3 if op == "sepconv_train" else 2)
        grads = getattr(torch.ops.dynroute, f"{op}_backward")(
            *outs[:made], *given_back, *kept, *options[:-2], False, wanted
        )
        assert grads[0].shape == given[0].shape and grads[-1].dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_is_not_lowered(autocast: bool) -> None:
    """It computes in float32, under autocast too."""
    with FakeTensorMode(), torch.autocast("cuda", torch.float16, enabled=autocast):
        logits = torch.empty(2, 5, 6, 4, device="cuda")
        labels = torch.empty(2, 24, 16, device="cuda", dtype=torch.int64)
        loss, gradient = torch.ops.dynroute.upsampled_cross_entropy(logits, labels, 4, None, 255, True)
    assert loss.dtype == gradient.dtype == torch.float32
    assert loss.device.type == "cuda" and loss.shape == ()
    assert gradient.shape == logits.shape and gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", [*ON_CUDA, "upsampled_cross_entropy"])
def test_who_is_refused(op: str) -> None:
    """By name, with the reason; "auto" then takes the CPU's kernels for what lies there."""
    x = cases.normal(1, 8, 4, 4)
    reason = backends.why_not(op, "cuda", x)
    assert reason is not None and (reason == library.why_not_cuda() or reason == "the tensors are on cpu")
    assert backends.choose(op, x).backend.name == "cpu"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot be used"):
        backends.operator(op, "cuda", x)
    of_triton = ["triton"]
    assert [backend.name for backend in backends.registered(op)] == ["cuda", "cpu", *of_triton, "reference"]


def test_the_public_functions_say_what_they_take() -> None:
    for op in ON_CUDA:
        assert callable(getattr(ops, op))
