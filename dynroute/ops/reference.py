"""What each operator means, in a few lines of plain PyTorch: differentiable, any device, any dtype.

Tests compare kernels, and the backward passes written for them, with these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.ops import synchronise
from dynroute.space.routing import arrivals, is_closed, is_path_open
from dynroute.space.wiring import DOWN, KEEP, UP


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def only(mask: Tensor | None, value: Tensor) -> Tensor:
    """`value` where the mask is set, zeros (even for NaN) where it is not."""
    if mask is None:
        return value
    return torch.where(mask.view(-1, *[1] * (value.dim() - 1)), value, value.new_zeros(()))


def quarter(x: Tensor) -> Tensor:
    """Bilinear x1/4: floor of the size, the scale fixed, source coordinate 4 (i + 0.5) - 0.5."""
    return F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False, recompute_scale_factor=False)


def sepconv(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    open: Tensor | None = None,
    stride: int = 1,
    residual: bool = False,
    final_relu: bool = False,
) -> Tensor:
    x = y = only(open, x)
    for k, (dw, pw) in enumerate(zip(depthwise, pointwise)):
        y = F.conv2d(y, dw, padding=1, stride=stride if k == 0 else 1, groups=y.shape[1])
        y = affine(F.conv2d(y, pw), scale[k], shift[k])
        if k < len(depthwise) - 1:
            y = y.relu()
    if residual:
        y = y + x
    return only(open, y.relu() if final_relu else y)


def transform(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, open: Tensor | None = None, stride: int = 1
) -> Tensor:
    y = F.conv2d(only(open, x).relu(), weight, stride=stride)
    return only(open, affine(y, scale, shift).relu())


def gate(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str = "tanh",
    small: bool = False,
    present: Tensor | None = None,
) -> Tensor:
    x = only(present, x)
    if small:
        x = quarter(x)
    y = affine(F.conv2d(x, weight), scale, shift).relu().mean((2, 3), keepdim=True)
    return only(present, _activated("gate", F.conv2d(y, fc_weight, fc_bias).flatten(1), activation))


def _activated(op: str, logits: Tensor, activation: str) -> Tensor:
    if activation == "tanh":
        return logits.tanh().relu()
    if activation == "sigmoid":
        return logits.sigmoid()
    if activation == "softmax":
        return logits.softmax(1)
    raise ValueError(f"{op}: activation: wanted 'tanh', 'sigmoid' or 'softmax', got {activation!r}")


def aggregate(down: Tensor | None, keep: Tensor | None, up: Tensor | None, alphas: Tensor | None = None) -> Tensor:
    total = None
    for path, source in ((DOWN, down), (KEEP, keep), (UP, up)):
        if source is None:
            continue
        alpha = None if alphas is None else alphas[:, path]
        source = only(None if alpha is None else alpha != 0, source)
        if path == UP:
            source = F.interpolate(source, scale_factor=2, mode="bilinear", align_corners=False)
        term = source if alpha is None else alpha.view(-1, 1, 1, 1) * source
        total = term if total is None else total + term
    if total is None:
        raise ValueError("aggregate: down, keep, up: wanted at least one source, got none")
    return total


def _lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the set entries along the last dimension, in order, -1 behind them; and their number."""
    n = mask.shape[-1]
    index = torch.arange(n, device=mask.device).expand(mask.shape)
    ordered = torch.where(mask, index, n).sort(-1).values
    return torch.where(ordered == n, -1, ordered).to(torch.int32), mask.sum(-1).to(torch.int32)


def route(
    alphas: Tensor, present: Tensor, path_exists: Tensor, slots: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    masked = torch.where(present[:, :, None] & path_exists, alphas, alphas.new_zeros(()))
    closed = present & is_closed(masked)
    is_open = present & ~closed
    open_list, open_count = _lists(is_open.T)
    path_open = is_open[:, :, None] & path_exists & is_path_open(masked)
    path_list, path_count = _lists(path_open.permute(1, 2, 0))
    after = arrivals(is_open, present, path_exists)
    next_slots = torch.where(is_open, 1 - slots, slots)
    return masked, open_list, open_count, path_list, path_count, closed, after, next_slots


def batch_norm(
    raw: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    frozen: bool,
    group: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """BatchNorm of [N, C, H, W] by its own statistics or the running ones; [3, C] mean, inverse deviation, unbiased
    variance."""
    if group and not frozen:
        return synchronise.batch_norm(raw, gamma, beta, running_mean, running_var, group, eps)
    count = raw.numel() // raw.shape[1]
    if frozen or count == 0:
        mean, var = running_mean.clone(), running_var.clone()  # the caller writes to them before the backward
        unbiased = var
    else:
        var, mean = torch.var_mean(raw, (0, 2, 3), correction=0)
        unbiased = var * (count / max(count - 1, 1))
    invstd = (var + eps).rsqrt()
    scale = gamma * invstd
    return affine(raw, scale, beta - mean * scale), torch.stack([mean, invstd, unbiased]).detach()


def sepconv_train(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    gamma: Sequence[Tensor],
    beta: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    open: Tensor | None = None,
    stride: int = 1,
    residual: bool = False,
    final_relu: bool = False,
    frozen: bool = False,
    group: str = "",
    eps: float = 1e-5,
    narrow: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    here = x if open is None else x[open]
    y, raws, stats = here, [], []
    for k, (dw, pw) in enumerate(zip(depthwise, pointwise)):
        raw = F.conv2d(F.conv2d(y, dw, padding=1, stride=stride if k == 0 else 1, groups=y.shape[1]), pw)
        raw = _narrowed(raw) if narrow else raw
        y, of_stage = batch_norm(raw, gamma[k], beta[k], running_mean[k], running_var[k], frozen, group, eps)
        if k < len(depthwise) - 1:
            y = y.relu()
        raws.append(raw)
        stats.append(of_stage)
    if residual:
        y = y + here
    if final_relu:
        y = y.relu()
    whole = [_scattered(value, open, x) for value in (y, *raws)]
    return whole[0], torch.cat(whole[1:]).detach(), torch.stack(stats)


def transform_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    open: Tensor | None = None,
    stride: int = 1,
    relu_input: bool = True,
    frozen: bool = False,
    group: str = "",
    eps: float = 1e-5,
    narrow: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    here = x if open is None else x[open]
    raw = F.conv2d(here.relu() if relu_input else here, weight, stride=stride)
    raw = _narrowed(raw) if narrow else raw
    y, stats = batch_norm(raw, gamma, beta, running_mean, running_var, frozen, group, eps)
    return _scattered(y.relu(), open, x), _scattered(raw, open, x).detach(), stats[None]


def node_train(
    x: Tensor,
    alphas: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    up: Tensor | None,
    down: Tensor | None,
    gamma: Sequence[Tensor],
    beta: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    factor: Tensor | None = None,
    bridge: float = 0.0,
    skip: bool = False,
    frozen: bool = False,
    group: str = "",
    eps: float = 1e-5,
    narrow: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    k = len(depthwise)
    norms = list(zip(gamma, beta, running_mean, running_var))
    closed = is_closed(alphas)
    open = ~closed if skip else torch.ones_like(closed)
    of_cell = [[norm[i] for norm in norms[:k]] for i in range(4)]
    y, raw, stats = sepconv_train(
        x,
        depthwise,
        pointwise,
        of_cell[0],
        of_cell[1],
        of_cell[2],
        of_cell[3],
        open,
        frozen=frozen,
        group=group,
        eps=eps,
        narrow=narrow,
    )
    if factor is not None:
        y = y * factor.view(-1, 1, 1, 1)
    hidden = (y + x).relu()
    keep_weight, x_weight = alphas[:, KEEP], closed.to(x.dtype)
    if bridge > 0:
        x_weight = (1.0 - alphas.sum(1) / bridge).relu()
    else:
        keep_weight = torch.where(closed, 0.0, keep_weight)
    keep = x_weight.view(-1, 1, 1, 1) * x + only(open, keep_weight.view(-1, 1, 1, 1) * hidden)
    all_stats = [stats.flatten()]
    outputs, raws = [], []
    for path, weight, stride in ((UP, up, 1), (DOWN, down, 2)):
        if weight is None:
            outputs.append(x.new_empty(0))
            raws.append(x.new_empty(0))
            continue
        taken = open & is_path_open(alphas)[:, path] if skip else open
        norm = norms[k + len(all_stats) - 1]
        out, raw_of, stats = transform_train(hidden, weight, *norm, taken, stride, False, frozen, group, eps, narrow)
        outputs.append(out * alphas[:, path].view(-1, 1, 1, 1))
        raws.append(raw_of)
        all_stats.append(stats.flatten())
    return keep, *outputs, raw, *raws, torch.cat(all_stats)  # type: ignore[return-value]


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, factor: int, weight: Tensor | None, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    full = F.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=False)
    full = full[..., : labels.shape[-2], : labels.shape[-1]]
    loss = F.cross_entropy(full, labels, weight, ignore_index=ignore_index, reduction="sum")
    return loss, logits.new_empty((0, *logits.shape[1:]))  # autograd makes the gradient


def gate_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str = "tanh",
    columns: Sequence[int] = (KEEP,),
    small: bool = False,
    frozen: bool = False,
    group: str = "",
    eps: float = 1e-5,
    narrow: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    raw = F.conv2d(quarter(x) if small else x, weight)
    raw = _narrowed(raw) if narrow else raw
    y, stats = batch_norm(raw, gamma, beta, running_mean, running_var, frozen, group, eps)
    pooled = y.relu().mean((2, 3), keepdim=True)
    made = _activated("gate_train", F.conv2d(pooled, fc_weight, fc_bias).flatten(1), activation)
    of_column = dict(zip(columns, made.unbind(1), strict=True))
    alphas = torch.stack([of_column.get(column, made.new_zeros(len(x))) for column in range(3)], 1)
    apart = (raw - stats[0].view(1, -1, 1, 1)) * (y > 0)
    pool = torch.stack([pooled[:, :, 0, 0], (y > 0).sum((2, 3)).to(y.dtype), apart.sum((2, 3))], 1)
    return alphas, raw.detach(), stats[None], pool.detach()


def _narrowed(raw: Tensor) -> Tensor:
    """Rounded to bfloat16, in its own type; the gradient passes unchanged."""
    return raw + (raw.detach().to(torch.bfloat16).to(raw.dtype) - raw.detach())


def _scattered(value: Tensor, open: Tensor | None, x: Tensor) -> Tensor:
    """Samples back in their places; zeros where there is none."""
    if open is None:
        return value
    return value.new_zeros(len(x), *value.shape[1:]).index_put((open,), value)
