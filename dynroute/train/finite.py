"""Numbers that are none: steps with NaN or infinity are skipped and counted, and no such state is saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynroute.train.parse import ConfigError


def running_statistics(net: nn.Module) -> list[Tensor]:
    """Means and variances [C] of all BatchNorms, as they lie in the network."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]


def step_unless(skipped: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """The optimiser's step, if not skipped (bool scalar). A fused optimiser on a GPU finds that out on the device."""
    if not (skipped.is_cuda and getattr(optimiser, "_step_supports_amp_scaling", False)):
        if not skipped:
            optimiser.step()
        return
    optimiser.found_inf = skipped.float()  # type: ignore[attr-defined]  # as torch's GradScaler tells it
    try:
        optimiser.step()
    finally:
        del optimiser.found_inf  # type: ignore[attr-defined]


@torch.no_grad()
def put_back(skipped: Tensor, statistics: Sequence[Tensor], kept: Tensor) -> None:
    """If skipped (bool scalar), give `statistics` the values that `kept`, all of them in a row, has."""
    if not skipped.is_cuda:
        if not skipped:
            return
    else:
        kept = torch.where(skipped, kept, torch.cat(list(statistics)))
    torch._foreach_copy_(list(statistics), kept.split([s.numel() for s in statistics]))


class SkipLimit:
    """Ends a run of which many steps in a row were skipped.

    Args:
        most: how many that is.
        device: where steps are computed; on a GPU the count stays there until it is asked for.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self.most = most
        self._row = torch.zeros((), dtype=torch.int64, device=device)

    def count(self, skipped: Tensor, overflowed: Tensor) -> None:
        """Take in a step: bool scalars on the device, whether it was skipped, and whether that was float16's scale's
        fault, which makes it neither a bad step nor a good one."""
        self._row = torch.where(skipped, self._row + overflowed.logical_not(), 0)

    @property
    def row(self) -> int:
        """How many of the last steps were skipped; waits for the device."""
        return int(self._row)

    def check(self, step: int, ends: bool) -> None:
        """Raises ConfigError when the last `most` steps were skipped, or where the run ends with a skipped one."""
        row = self.row
        if row >= (1 if ends else self.most):
            raise ConfigError(
                f"step {step}: the last {row} steps were skipped, as loss or gradient was not finite"
                + (", with which a run cannot end" if ends else f" (run.max_skipped: {self.most})")
                + "; nothing was saved since, the checkpoints before stay; resuming with a lower optimiser.lr may "
                "help, or other images; should it come again, delete the last checkpoint to go on from the one before"
                + (", or change schedule.steps" if ends else "")
            )


@torch.no_grad()
def check_finite(net: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Raises ConfigError where a weight, a running statistic or a momentum is NaN or infinite, and names it."""
    tensors = dict(net.state_dict())
    for name, parameter in net.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key} of {name}"] = value
    names = [name for name, value in tensors.items() if value.is_floating_point()]
    if not names:
        return
    whole = torch.stack([tensors[name].isfinite().all() for name in names]).tolist()
    broken = [name for name, holds in zip(names, whole) if not holds]
    if broken:
        raise ConfigError(
            f"step {step}: {broken[0]} is not finite, as are {len(broken) - 1} other tensors of {len(names)}; this is "
            "not saved, the checkpoint before stays; a lower optimiser.lr may help"
        )
