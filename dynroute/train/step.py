"""One step of training."""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.cost.budget import Budget
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.objective import Losses, objective


def train_step(
    net: DynamicNetwork,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    progress: float,
    budget: Budget | None,
    clip_norm: float,
    bf16: bool = False,
) -> Losses:
    """One step on images float32 [N, 3, H, W] and labels int64 [N, H, W], at the optimiser's learning rate.

    The losses say what the step's kernels counted, `executed_macs`: forward, backward; nothing for plain PyTorch's.

    Args:
        progress: 0..1, position in training.
        budget: None trains without.
        clip_norm: the gradient's norm is clipped to this.
        bf16: the forward runs under autocast to bfloat16.
    """
    before = library.total_macs()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        losses = objective(net, images, labels, progress, budget)
    between = library.total_macs()
    optimiser.zero_grad(set_to_none=True)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    losses.executed_macs = (between - before, library.total_macs() - between)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]  # sooner told than by the modules
    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimiser.step()
    return losses


def logged(losses: Losses) -> dict[str, Tensor]:
    """Scalars of a step to log; costs as a share of the network's own with everything open.

    `executed_gmacs_forward` and `_backward`: what the fused operators' kernels counted, all samples together.
    """
    out = losses.output
    executed = zip(("executed_gmacs_forward", "executed_gmacs_backward"), losses.executed_macs)
    return {
        "loss": torch.stack([loss.detach() for loss in losses.values()]).sum(),
        **losses,
        "expected_share": out.expected_mflops.detach().mean() / out.costs.all_open,
        "real_share": out.real_mflops.mean() / out.costs.all_open_real,
        **{name: torch.tensor(macs / 1e9) for name, macs in executed if macs > 0},
    }
