"""BatchNorms of several processes that see one batch: how the operators reach torch.distributed; plain PyTorch's form.

A group is named by a string, `torch.distributed`'s own (`dist.group.WORLD.group_name`), so that an operator can take
it; "" is this process alone. Every process of a group has to call the same operators in the same order.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dynroute.native import library


def process_group(name: str) -> Any:
    """The process group of that name. Raises ValueError."""
    try:
        return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
    except (RuntimeError, AttributeError, KeyError):
        raise ValueError(f"group: wanted the name of a process group of torch.distributed, got {name!r}") from None


def gathered(mine: Tensor, group: str) -> Tensor:
    """[...] of each process -> [processes, ...], in the order of ranks."""
    of = process_group(group)
    everyone = mine.new_empty((of.size(), *mine.shape))
    dist.all_gather(list(everyone.unbind()), mine.contiguous(), group=of)
    return everyone


def joint_sum(x: Tensor, group: str) -> Tensor:
    """The sum of the processes' x: a term of one loss that all of them have.

    Its gradient is times the number of processes: for parameters whose gradients are averaged over the processes
    afterwards, as DistributedDataParallel does.
    """
    return _JointSum.apply(x, group)  # type: ignore[no-any-return]


class _JointSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        everyone = gathered(x.detach(), group)
        ctx.processes = len(everyone)
        return everyone.sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return grads[0] * ctx.processes, None


@torch._disable_dynamo  # a compiler would see a collective on memory that it does not know
def batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, group: str, eps: float
) -> tuple[Tensor, Tensor]:
    """BatchNorm by the statistics of all processes' x, in plain PyTorch, on any device.

    Args:
        x: [N, C, H, W] of this process; N may be another elsewhere, and 0.
        gamma, beta, running_mean, running_var: [C]; the running ones normalise where nobody has a pixel.
        group: the processes.
        eps: BatchNorm's.

    Returns:
        The output, like x, and [3, C] mean, inverse deviation, unbiased variance, the same in all processes.
    """
    wide = x.to(torch.promote_types(x.dtype, gamma.dtype))
    y, stats = _BatchNorm.apply(wide, gamma, beta, running_mean, running_var, group, eps)
    return y.to(x.dtype), stats


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, group: str,
        eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        c = x.shape[1]
        pixels = x.numel() // c
        mine = torch.zeros(1 + 2 * c, dtype=torch.float64, device=x.device)
        if pixels:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            mine[0], mine[1 : c + 1], mine[c + 1 :] = pixels, mean, var.double() * pixels
        count, mean, squares = mine.new_zeros(()), mine.new_zeros(c), mine.new_zeros(c)
        for of in gathered(mine, group):  # Chan, Golub, LeVeque 1983
            share = of[0] / (count + of[0]).clamp(min=1)
            apart = of[1 : c + 1] - mean
            squares = squares + of[c + 1 :] + apart**2 * count * share
            mean, count = mean + apart * share, count + of[0]
        any_pixel = count > 0
        mean = torch.where(any_pixel, mean, running_mean.double())
        var = torch.where(any_pixel, squares / count.clamp(min=1), running_var.double())
        unbiased = torch.where(any_pixel, squares / (count - 1).clamp(min=1), running_var.double())
        stats = torch.stack([mean, (var + eps).rsqrt(), unbiased]).to(x.dtype)
        ctx.group = group
        ctx.save_for_backward(x, gamma, stats, count)
        ctx.mark_non_differentiable(stats)
        scale = gamma * stats[1]
        return x * scale.view(1, -1, 1, 1) + (beta - stats[0] * scale).view(1, -1, 1, 1), stats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, gamma, stats, count = ctx.saved_tensors
        grad, mean, invstd = grads[0], stats[0].view(1, -1, 1, 1), stats[1].view(1, -1, 1, 1)
        normal = (x - mean) * invstd
        own = torch.stack([grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))])
        total, product = (gathered(own.double(), ctx.group).sum(0) / count.clamp(min=1)).to(x.dtype)
        inner = grad - total.view(1, -1, 1, 1) - normal * product.view(1, -1, 1, 1)
        return inner * (gamma.view(1, -1, 1, 1) * invstd), own[1], own[0], None, None, None, None


# The kernels' way out: they know nothing of torch.distributed but this function's address.
_failure: BaseException | None = None
_DOUBLES = ctypes.POINTER(ctypes.c_double)


class _OnDevice:
    """Doubles in a GPU's memory, for torch to make a tensor of."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {"shape": (count,), "typestr": "<f8", "data": (address, False), "version": 3}


def _doubles(pointer: Any, count: int, device: int) -> Tensor:
    """The values behind a pointer of C's, as a tensor on them."""
    if device < 0:
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (count,)))
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    assert address is not None
    return torch.as_tensor(_OnDevice(address, count), device=torch.device("cuda", device))


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, _DOUBLES, ctypes.c_int64, _DOUBLES, ctypes.c_int)
def _gather(name: bytes, mine: Any, count: int, everyone: Any, device: int) -> int:
    """`GatherFunction` of csrc/bindings/gather.h; an exception is kept for `failure`, as it cannot go through C."""
    global _failure
    _failure = None
    try:
        processes = int(process_group(name.decode()).size())
        if everyone:
            made = gathered(_doubles(mine, count, device), name.decode())
            _doubles(everyone, processes * count, device).copy_(made.view(-1))
        return processes
    except BaseException as error:
        _failure = error
        return 0


def failure() -> BaseException | None:
    """What the last gather of an operator ended with, told once; None: it went well."""
    global _failure
    kept, _failure = _failure, None
    return kept


if library.why_not_loaded() is None:
    torch.ops.dynroute.set_gather(ctypes.cast(_gather, ctypes.c_void_p).value)
if library.is_cuda_loaded():
    torch.ops.dynroute.cuda_set_gather(ctypes.cast(_gather, ctypes.c_void_p).value)
