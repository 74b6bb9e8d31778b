"""Modules of the network computed by the fused training operators, in training mode; parameters stay where they are.

`use` says which operators a network's modules are to take: "reference" is plain PyTorch, module by module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dynroute import ops
from dynroute.ops import backends, batchnorm, synchronise

CHOICES = ("auto", *backends.USERS)
TRAINED_OPS = (
    "node_train", "gate_train", "aggregate", "sepconv_train", "transform_train", "upsampled_cross_entropy",
)  # fmt: skip


def why_not(choice: str) -> str | None:
    """Why a network cannot train on these operators here, in one line, or None if it can."""
    if choice not in CHOICES:
        return f"ops: wanted one of {', '.join(CHOICES)}, got {choice!r}"
    for op in TRAINED_OPS if choice != "auto" else ():
        reason = backends.why_not(op, choice)
        if reason is not None:
            return f"ops: {choice!r} cannot be used: {op}: {reason}"
    return None


def use(net: nn.Module, choice: str) -> None:
    """Has every module of `net` that has a fused form compute by `choice` when it trains. Raises ValueError."""
    reason = why_not(choice)
    if reason is not None:
        raise ValueError(reason)
    in_eights = all(m.weight.shape[0] % 8 == 0 for m in net.modules() if getattr(m, "is_pointwise", False))  # type: ignore[union-attr, index]
    for module in net.modules():
        if hasattr(module, "train_ops"):
            module.train_ops = choice  # type: ignore[assignment]
            module.fits_cuda = in_eights  # type: ignore[assignment]


def is_on(module: nn.Module) -> bool:
    """Whether a module computes by fused operators now; "auto" takes them where there are kernels for its device."""
    if not module.training or module.train_ops == "reference":
        return False
    if module.train_ops != "auto":
        return True
    weight = next(module.parameters())
    if weight.device.type == "cuda":  # maps may be of 16 bits there, weights are float32
        fits = weight.dtype == torch.float32 and getattr(module, "fits_cuda", True)
        return fits and backends.why_not("node_train", "cuda", weight) is None
    return backends.why_not("node_train", "cpu", weight) is None


BATCHNORM = ("all", "open", "frozen")


def is_on_node(node: Any) -> bool:
    """Whether a node computes by `node_train` now: on fused operators, or with samples left out (in plain PyTorch)."""
    return node.training and node.cell.is_separable and node.one_mode and (node.bn != "all" or is_on(node))


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


def join(net: nn.Module, group: str) -> None:
    """Has the BatchNorms of `net` see one batch with those of a group's other processes; "": alone.

    Raises ValueError.
    """
    if group:
        synchronise.process_group(group)
    for module in net.modules():
        if hasattr(module, "norm_group"):
            module.norm_group = group  # type: ignore[assignment]


def norm(conv: Any, x: Tensor) -> Tensor:
    """The BatchNorm of a `ConvNorm` on what its convolution made, in plain PyTorch."""
    if not conv.norm_group or not conv.norm.training:
        return conv.norm(x)
    of = conv.norm
    settings = _settings([conv])
    y, stats = synchronise.batch_norm(x, of.weight, of.bias, of.running_mean, of.running_var, conv.norm_group, of.eps)
    batchnorm.update([of.running_mean], [of.running_var], stats, settings["momentum"])
    return y


def _is_narrow(x: Tensor, choice: str) -> bool:
    """Whether what operators keep of their own is bfloat16: where autocast would have plain PyTorch keep it so."""
    if x.device.type != "cpu" or choice == "triton":  # the operators' maps themselves are of autocast's type there
        return False
    lowered = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return lowered and x.dtype != torch.float64  # autocast lets that be


# Whether torch's convolutions of bfloat16 are faster than its float32 ones on this processor; else many times slower.
_LOWERED_PAYS = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of a network on fused operators that stays torch's: autocast lowers it where that pays."""
    lower = x.device.type != "cpu" or _LOWERED_PAYS
    with nullcontext() if lower else torch.autocast("cpu", enabled=False):
        return nn.Conv2d.forward(conv, x if lower else x.to(conv.weight.dtype))


def _settings(convs: Sequence[Any]) -> dict[str, Any]:
    """What the BatchNorms of one operator have in common; counts the batch, as BatchNorm's forward does."""
    norms = [conv.norm for conv in convs]
    first = norms[0]
    if any(
        type(norm) is not nn.BatchNorm2d
        or (norm.training, norm.momentum, norm.eps) != (first.training, first.momentum, first.eps)
        for norm in norms
    ):
        raise ValueError(
            "ops: the fused operators need BatchNorm2d modules that agree in mode, momentum and eps within a cell; "
            "net.use_ops('reference') trains any"
        )
    if first.training:
        for norm in norms:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
    momentum = first.momentum
    if momentum is None:  # the mean over all batches so far
        momentum = 1.0 / max(float(first.num_batches_tracked or 0), 1.0)
    return {"frozen": not first.training, "momentum": momentum, "eps": first.eps, "group": convs[0].norm_group}


def sepconv(modules: Sequence[Any], x: Tensor, choice: str, residual: bool = False, final_relu: bool = False) -> Tensor:
    """Pairs of depthwise and pointwise (`ConvNorm`) modules as one operator: x [N,C,h,w] -> [N,Cout,h',w'].

    Raises:
        ValueError: BatchNorms that one operator cannot compute.
    """
    depthwise, pointwise = modules[0::2], modules[1::2]
    norms = [pw.norm for pw in pointwise]
    return ops.sepconv_train(
        x,
        [dw.weight for dw in depthwise],
        [pw.weight for pw in pointwise],
        [norm.weight for norm in norms],
        [norm.bias for norm in norms],
        [norm.running_mean for norm in norms],
        [norm.running_var for norm in norms],
        stride=depthwise[0].stride[0],
        residual=residual,
        final_relu=final_relu,
        narrow=_is_narrow(x, choice),
        backend=choice,
        **_settings(pointwise),
    )


def transform(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, choice: str) -> Tensor:
    """1x1 convolution, BatchNorm and ReLU as one operator. Raises ValueError as `sepconv` does."""
    assert norm.running_mean is not None and norm.running_var is not None
    return ops.transform_train(
        x,
        conv.weight,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        stride=conv.stride[0],
        relu_input=False,
        narrow=_is_narrow(x, choice),
        backend=choice,
        **_settings([conv]),
    )


@contextmanager
def placed(net: Any, first: int, of: int) -> Iterator[None]:
    """Inside, a network's samples are those from `first` on of a batch of `of` samples.

    Drop path draws for the whole batch then: a sample's draws are the same in whichever process it is, where all have
    the same state of the generator.
    """
    nodes = [node for row in net.rows() for node in row] if net.config.drop_prob else []
    for of_node in nodes:
        of_node.place = of_node.cell.place = (first, of)
    try:
        yield
    finally:
        for of_node in nodes:
            of_node.place = of_node.cell.place = None


def drop_factor(
    x: Tensor, keep_prob: float | Tensor, dtype: torch.dtype, place: tuple[int, int] | None = None
) -> Tensor | None:
    """[N] of Bernoulli(keep_prob) / keep_prob, for each sample of x (scheduled drop path); None: nothing is dropped.

    place: where x's samples stand in their batch, see `placed`; None: they are all of it.
    """
    first, of = place or (0, len(x))
    if isinstance(keep_prob, Tensor):
        keep = keep_prob.to(dtype).expand(of)
        factor = torch.bernoulli(keep).div_(keep)
    elif keep_prob >= 1.0:
        return None
    else:
        factor = torch.empty(of, device=x.device, dtype=dtype).bernoulli_(keep_prob).div_(keep_prob)
    return factor[first : first + len(x)]


def node(module: Any, x: Tensor, alphas: Tensor, keep_prob: float | Tensor, bridge: float) -> ops.NodeOutput:
    """A node's cell and paths as one operator: x [N,C,h,w], alphas [N,3] -> what it hands on, up before its bilinear.

    Raises ValueError as `sepconv` does.
    """
    cell = list(module.cell.ops[0].children())
    depthwise, pointwise = cell[0::2], cell[1::2]
    up, down = (getattr(module, name, None) for name in ("up", "down"))
    convs = [conv for conv in (*pointwise, up, down) if conv is not None]
    norms = [conv.norm for conv in convs]
    dtype = norms[0].weight.dtype
    return ops.node_train(
        x,
        alphas.to(dtype),
        [dw.weight for dw in depthwise],
        [pw.weight for pw in pointwise],
        None if up is None else up.weight,
        None if down is None else down.weight,
        [norm.weight for norm in norms],
        [norm.bias for norm in norms],
        [norm.running_mean for norm in norms],
        [norm.running_var for norm in norms],
        drop_factor(x, keep_prob, dtype, module.place),
        bridge,
        skip=module.bn != "all",
        narrow=_is_narrow(x, module.train_ops),
        backend=module.train_ops,
        **_settings(convs),
    )


def gate(of_node: Any, x: Tensor, columns: Sequence[int], choice: str) -> Tensor:
    """A node's `Gate` as one operator: x [N,C,h,w] -> alphas [N,3], zeros but in `columns`, in the parameters' type.

    Raises:
        ValueError: BatchNorms that one operator cannot compute.
    """
    norm = of_node.conv.norm
    return ops.gate_train(
        x,
        of_node.conv.weight,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        of_node.fc.weight,
        of_node.fc.bias,
        activation=of_node.activation,
        columns=columns,
        small=of_node.small,
        narrow=_is_narrow(x, choice),
        backend=choice,
        **_settings([of_node.conv]),
    )
