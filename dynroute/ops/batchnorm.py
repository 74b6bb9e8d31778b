"""What training operators share: running statistics from a call's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, INVSTD, VARIANCE = 0, 1, 2  # of `stats`


def pixels(out: Tensor, open: Tensor | None) -> Tensor | int:
    """How many pixels the statistics are of; a tensor where a mask says it, so that nobody waits for it."""
    size = out.shape[2] * out.shape[3]
    return out.shape[0] * size if open is None else open.sum() * size


@torch.no_grad()
def update(
    running_mean: Sequence[Tensor], running_var: Sequence[Tensor], stats: Tensor, count: Tensor | int, momentum: float
) -> None:
    """running += momentum * (batch's - running), in place; the variance is the unbiased one.

    Args:
        running_mean, running_var: [C] of each stage.
        stats: [stages, 3, C]: mean, inverse deviation, variance.
        count: pixels they are of; none leaves the running ones alone, for one the variance is taken as it is.
    """
    if isinstance(count, int):
        rate, unbiased = (momentum if count else 0.0), count / max(count - 1, 1)
        for k, (mean, var) in enumerate(zip(running_mean, running_var)):
            mean.lerp_(stats[k, MEAN].to(mean.dtype), rate)
            var.lerp_(stats[k, VARIANCE].to(var.dtype) * unbiased, rate)
        return
    some = count > 0
    unbiased_of = count / (count - 1).clamp(min=1)
    for k, (mean, var) in enumerate(zip(running_mean, running_var)):
        mean.copy_(torch.where(some, mean.lerp(stats[k, MEAN].to(mean.dtype), momentum), mean))
        var.copy_(torch.where(some, var.lerp(stats[k, VARIANCE].to(var.dtype) * unbiased_of, momentum), var))
