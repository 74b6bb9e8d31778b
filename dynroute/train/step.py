"""One step of training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynroute.cost.budget import Budget
from dynroute.models import fused
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.objective import Losses, labelled_pixels, objective, unwrapped
from dynroute.ops import synchronise
from dynroute.train.amp import LossScale
from dynroute.train.finite import put_back, running_statistics, step_unless


def train_step(
    net: DynamicNetwork | DistributedDataParallel,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    progress: float | Tensor,
    budget: Budget | None,
    clip_norm: float,
    amp: torch.dtype | None = None,
    accumulate: int = 1,
    bridge: float | None = None,
    statistics: list[Tensor] | None = None,
    scale: LossScale | None = None,
    class_weights: Tensor | None = None,
) -> Losses:
    """One step on images float32 [N, 3, H, W] and labels int64 [N, H, W], at the optimiser's learning rate.

    Where the loss or the gradient's norm is NaN or infinite the step is skipped: the optimiser does nothing, running
    statistics of BatchNorm are put back, as they saw the same activations, and the losses say so, `skipped`; with a
    scale also `overflowed`, where the gradient alone is not finite. Several processes find the same, as their losses
    and gradients are joint. On a GPU nothing waits for the answer.

    Drop path draws for the whole batch, so that processes whose generators are alike take one process's step.

    The losses say what the step's kernels counted, `executed_macs`: forward, backward; nothing for plain PyTorch's.

    Args:
        net: with several processes, wrapped: the step is one on all their images (see `objective`).
        progress, bridge: as `objective`'s.
        budget: None trains without.
        clip_norm: the gradient's norm is clipped to this.
        amp: the forward runs under autocast to this type; None: without.
        accumulate: parts that the images go through the network in, one after the other: the segmentation loss is the
            whole batch's, BatchNorm and the budget see a part at a time (the budget's loss is the parts' mean).
        statistics: `running_statistics(net)`; None looks for them, at each call.
        class_weights: as `objective`'s.
        scale: of the loss, for float16; the step updates it. None: 1.

    Raises:
        ValueError: images that do not divide into so many parts.
    """
    if len(images) % accumulate:
        raise ValueError(f"accumulate: wanted a divisor of the batch, {len(images)} images, got {accumulate}")
    labelled = labelled_pixels(net, labels, class_weights) if accumulate > 1 else None
    statistics = running_statistics(net) if statistics is None else statistics
    kept = torch.cat(statistics) if statistics else None
    optimiser.zero_grad(set_to_none=True)
    network, rank, size = _place(net)
    parts: list[Losses] = []
    for some, of in zip(images.chunk(accumulate), labels.chunk(accumulate)):
        first = rank * len(images) + len(parts) * len(some)
        # gradients of all parts but the last stay in their process
        waits = isinstance(net, DistributedDataParallel) and len(parts) + 1 < accumulate
        with net.no_sync() if waits else nullcontext(), fused.placed(network, first, size * len(images)):  # type: ignore[operator]
            before = library.total_macs()
            with torch.autocast(images.device.type, amp, enabled=amp is not None):
                losses = objective(net, some, of, progress, budget, class_weights, labelled, bridge)
            if accumulate > 1 and "budget" in losses:
                losses["budget"] = losses["budget"] / accumulate
            between = library.total_macs()
            total: Tensor = sum(losses.values())  # type: ignore[assignment]
            (total if scale is None else total * scale.value).backward()
            losses.executed_macs = (between - before, library.total_macs() - between)
        parts.append(losses if accumulate == 1 else without_graph(losses))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]  # sooner told than by the modules
    if scale is not None:
        scale.unscale([p.grad for p in parameters if p.grad is not None])
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    joined = parts[0] if accumulate == 1 else _joined(parts)
    loss = torch.stack([loss.detach() for loss in joined.values()]).sum()
    joined.skipped = (norm + loss).isfinite().logical_not()
    if scale is not None:
        joined.overflowed = joined.skipped & loss.isfinite()
        scale.update(joined.skipped, joined.overflowed)
    step_unless(joined.skipped, optimiser)
    if kept is not None:
        put_back(joined.skipped, statistics, kept)
    return joined


def _place(net: DynamicNetwork | DistributedDataParallel) -> tuple[DynamicNetwork, int, int]:
    """The network itself, this process's number among those that train it, and how many these are."""
    network, group = unwrapped(net)
    if not group:
        return network, 0, 1
    processes = synchronise.process_group(group)
    return network, processes.rank(), processes.size()


def without_graph(losses: Losses, keep: Callable[[Tensor], Tensor] = Tensor.detach) -> Losses:
    """The same values; what the graph held is free. keep: what is made of each."""
    out = losses.output
    values: dict[str, Any] = {name: keep(getattr(out, name)) for name in _BY_SAMPLE}
    bare = Losses({name: keep(loss) for name, loss in losses.items()}, replace(out, **values))
    bare.executed_macs = losses.executed_macs
    bare.skipped, bare.overflowed = keep(losses.skipped), keep(losses.overflowed)
    return bare


_BY_SAMPLE = ("low_logits", "gates", "expected_mflops", "real_mflops")


def _joined(parts: list[Losses]) -> Losses:
    """The whole batch's, from those of its parts."""
    outs = [part.output for part in parts]
    values: dict[str, Any] = {name: torch.cat([getattr(out, name) for out in outs]) for name in _BY_SAMPLE}
    losses = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    joined = Losses(losses, replace(outs[0], **values))
    forward, backward = (sum(counts) for counts in zip(*(part.executed_macs for part in parts)))
    joined.executed_macs = (forward, backward)
    return joined


def logged(losses: Losses) -> dict[str, Tensor]:
    """Scalars of a step to log; costs as a share of the network's own with everything open: expected cost of the space,
    real cost of the whole, real cost of the space.

    `executed_gmacs_forward` and `_backward`: what the fused operators' kernels counted, all samples together.
    """
    out = losses.output
    executed = zip(("executed_gmacs_forward", "executed_gmacs_backward"), losses.executed_macs)
    return {
        "loss": torch.stack([loss.detach() for loss in losses.values()]).sum(),
        **losses,
        "expected_share": out.expected_mflops.detach().mean() / out.costs.all_open,
        "real_share": out.real_mflops.mean() / out.costs.all_open_real,
        "space_share": (out.real_mflops.mean() - out.costs.around) / out.costs.all_open,
        **{name: torch.tensor(macs / 1e9) for name, macs in executed if macs > 0},
    }
