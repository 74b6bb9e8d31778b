"""Modules of the network computed by the fused training operators, in training mode; parameters stay where they are.

`use` says which operators a network's modules are to take: "reference" is plain PyTorch, module by module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dynroute import ops
from dynroute.ops.backends import USERS, why_not

CHOICES = ("auto", *USERS)


def check(choice: str) -> None:
    """Raises ValueError for a name that is unknown, or operators that do not run here, with the reason."""
    if choice not in CHOICES:
        raise ValueError(f"ops: wanted one of {', '.join(CHOICES)}, got {choice!r}")
    if choice != "auto":
        for op in ("sepconv_train", "transform_train"):
            reason = why_not(op, choice)
            if reason is not None:
                raise ValueError(f"ops: {choice!r} cannot be used: {op}: {reason}")


def use(net: nn.Module, choice: str) -> None:
    """Has every module of `net` that has a fused form compute by `choice` when it trains. Raises ValueError."""
    check(choice)
    for module in net.modules():
        if hasattr(module, "train_ops"):
            module.train_ops = choice  # type: ignore[assignment]


def is_on(module: nn.Module) -> bool:
    """Whether a module computes by fused operators now."""
    return module.training and module.train_ops != "reference"


def is_separable(modules: Sequence[nn.Module]) -> bool:
    """Whether the modules are pairs of a depthwise 3x3 with padding 1 and a pointwise convolution."""
    return len(modules) in (2, 4, 6) and all(
        isinstance(dw, nn.Conv2d)
        and isinstance(pw, nn.Conv2d)
        and dw.kernel_size == (3, 3)
        and dw.dilation == (1, 1)
        and dw.groups == dw.in_channels
        and pw.kernel_size == (1, 1)
        for dw, pw in zip(modules[0::2], modules[1::2])
    )


def _momentum(norm: nn.BatchNorm2d) -> float:
    """How far the running statistics go towards the batch's; counts the batch, as BatchNorm's forward does."""
    if not norm.training:
        return 0.0
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def sepconv(modules: Sequence[Any], x: Tensor, choice: str, residual: bool = False, final_relu: bool = False) -> Tensor:
    """Pairs of depthwise and pointwise (`ConvNorm`) modules as one operator: x [N,C,h,w] -> [N,Cout,h',w']."""
    depthwise, pointwise = modules[0::2], modules[1::2]
    norms = [pw.norm for pw in pointwise]
    rates = [_momentum(norm) for norm in norms]
    return ops.sepconv_train(
        x, [dw.weight for dw in depthwise], [pw.weight for pw in pointwise], [n.weight for n in norms],
        [n.bias for n in norms], [n.running_mean for n in norms], [n.running_var for n in norms],
        stride=depthwise[0].stride[0], residual=residual, final_relu=final_relu, frozen=not norms[0].training,
        momentum=rates[0], eps=norms[0].eps, backend=choice,
    )  # fmt: skip


def transform(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, choice: str) -> Tensor:
    """1x1 convolution, BatchNorm and ReLU as one operator."""
    rate = _momentum(norm)
    assert norm.running_mean is not None and norm.running_var is not None
    return ops.transform_train(
        x, conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, stride=conv.stride[0],
        relu_input=False, frozen=not norm.training, momentum=rate, eps=norm.eps, backend=choice,
    )  # fmt: skip
