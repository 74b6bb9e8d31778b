"""Parameter groups, learning rate and precise BatchNorm (SPEC, "Training")."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynroute.models.network import DynamicNetwork
from dynroute.train.config import OptimiserConfig, ScheduleConfig


def make_optimiser(net: DynamicNetwork, config: OptimiserConfig) -> torch.optim.SGD:
    """SGD with momentum, of what trains: no weight decay on normalisation parameters, a learning rate factor for gates.

    Each group holds its `factor`, by which the schedule's learning rate is multiplied. Momenta begin as zeros: torch
    would leave them as the memory was when the first step is skipped on the device.
    """
    norms = {id(p) for p in norm_parameters(net)}
    gates = {id(p) for p in net.gate_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        groups.setdefault((id(parameter) in gates, id(parameter) in norms), []).append(parameter)
    optimiser = torch.optim.SGD(
        [
            {
                "params": parameters,
                "weight_decay": 0.0 if norm else config.weight_decay,
                "factor": config.gate_lr_factor if gate else 1.0,
            }
            for (gate, norm), parameters in groups.items()
        ],
        lr=config.lr,
        momentum=config.momentum,
        fused=all(p.device.type in ("cpu", "cuda") for p in trained) or None,  # one pass instead of four
    )
    if config.momentum:
        for parameter in trained:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimiser


def norm_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all BatchNorm layers."""
    return [p for module in net.modules() if isinstance(module, _BatchNorm) for p in module.parameters(recurse=False)]


def learning_rate(step: int, lr: float, config: ScheduleConfig) -> float:
    """lr · (1 - step/steps)^power, times a factor that rises linearly from `warmup_factor` to 1 over the warm-up."""
    rate = lr * (1.0 - step / config.steps) ** config.power
    if step < config.warmup_steps:
        share = step / config.warmup_steps
        rate *= config.warmup_factor * (1.0 - share) + share
    return rate


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor; where it is a tensor, as for a recorded step, in place."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["factor"])
        else:
            group["lr"] = rate * group["factor"]


@torch.no_grad()
def precise_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by their plain mean over `batches` of images [N, 3, H, W].

    The running ones follow the last few hundred steps, while weights still moved. Drop path is off: the statistics are
    for evaluation, which has none. Those that are frozen stay. Leaves the network in the mode it was in.
    """
    training = net.training
    net.train()
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.training]
    momenta = [norm.momentum for norm in norms]
    if not norms:
        net.train(training)
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    seen = 0
    for images in batches:
        net(images)
        seen += 1
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    net.train(training)
    if not seen:
        raise ValueError("batches: wanted at least one batch of images, got none")
