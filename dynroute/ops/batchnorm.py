"""What training operators share: running statistics from a call's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, INVSTD, VARIANCE = 0, 1, 2  # of a BatchNorm's three rows of `stats`


@torch.no_grad()
def update(running_mean: Sequence[Tensor], running_var: Sequence[Tensor], stats: Tensor, momentum: float) -> None:
    """running += momentum * (batch's - running), in place, as torch's BatchNorm does.

    Args:
        running_mean, running_var: [C_k] of each BatchNorm.
        stats: any shape, for each BatchNorm [3, C_k] one after the other: mean, inverse deviation, unbiased variance.
            Where no pixel took part it holds the running statistics themselves, which then stay as they are.
    """
    sizes = [mean.numel() for mean in running_mean for _ in range(3)]
    rows = stats.flatten().to(running_mean[0].dtype).split(sizes)  # under autocast the reference's are of 16 bits
    torch._foreach_lerp_([*running_mean, *running_var], [*rows[MEAN::3], *rows[VARIANCE::3]], momentum)
