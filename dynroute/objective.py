"""The training objective: segmentation loss plus budget loss."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynroute import ops
from dynroute.cost.budget import Budget
from dynroute.models import fused
from dynroute.models.decoder import LOGITS_FACTOR
from dynroute.models.network import DynamicNetwork, Output
from dynroute.ops import synchronise

IGNORED_LABEL = 255


class Losses(dict[str, Tensor]):
    """Scalar losses by name, to be summed; `output` is what the network returned.

    A training step sets `executed_macs`, what its kernels counted, forward and backward, and two bool scalars:
    `skipped`, whether weights stayed as they were, as something was not finite, and `overflowed`, whether that was but
    the gradient times the scale of float16's loss.
    """

    def __init__(self, losses: dict[str, Tensor], output: Output) -> None:
        super().__init__(losses)
        self.output = output
        self.executed_macs = (0, 0)
        self.skipped = torch.zeros((), dtype=torch.bool)
        self.overflowed = torch.zeros((), dtype=torch.bool)


def objective(
    net: DynamicNetwork | DistributedDataParallel,
    images: Tensor,
    labels: Tensor,
    progress: float | Tensor,
    budget: Budget | None = None,
    class_weights: Tensor | None = None,
    labelled: Tensor | None = None,
    bridge: float | None = None,
) -> Losses:
    """Runs the network and prices the result (SPEC, "Cost" and "Training").

    Args:
        images: float [N,3,H,W], normalised.
        labels: int64 [N,H,W], 0..K-1, 255 ignored.
        progress: 0..1, position in training; the budget acts from `budget.start` on, drop path grows with it. A scalar
            on the device where the call is recorded as a graph and the value changes; it is not checked then.
        budget: None leaves the "budget" key out.
        class_weights: float [K], a factor for each class in the segmentation loss; None: 1. As in torch's cross entropy
            a labelled pixel counts by its class's factor in the mean too, so that a common factor of all changes
            nothing.
        labelled: scalar, what `labelled_pixels` says of the whole batch, where this one is a part of it; None: of this.
        bridge: the budget's at this point of training; None: by `progress`, which is a number then.

    With `net.use_ops` other than "reference" the segmentation loss is `ops.upsampled_cross_entropy`: the same, but for
    rounding, from the decoder's logits at a quarter of the size.

    Of a `DistributedDataParallel` network the losses are those of all processes' batches together, in every process:
    of all labelled pixels, and of the mean cost of all samples. Their gradients are such that DDP's mean over the
    processes is the gradient of these.

    Returns: {"segmentation": scalar, "budget": scalar}, with the network's output as `.output`.

    Raises:
        ValueError: labels whose shape is not the images', or progress out of range.
    """
    if labels.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"labels: wanted [N,H,W] = {[images.shape[0], *images.shape[2:]]}, got {list(labels.shape)}")
    if not isinstance(progress, Tensor):
        check_progress(progress)
    if bridge is None:
        bridge = budget.bridge_at(float(progress)) if budget is not None else 0.0
    out = net(images, progress=progress, bridge=bridge)
    network, group = unwrapped(net)
    if labelled is None:
        labelled = labelled_pixels(net, labels, class_weights)
    share = segmentation_loss(network, out, labels, class_weights, labelled)
    losses = {"segmentation": synchronise.joint_sum(share, group) if group else share}
    if budget is not None:
        mean = partial(_joint_mean, group=group) if group else Tensor.mean
        losses["budget"] = budget.loss(out.gates, out.costs, progress, mean)
    return Losses(losses, out)


def check_progress(progress: float) -> None:
    """Raises ValueError where it is no position in training."""
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress: wanted 0..1, got {progress}")


def unwrapped(net: DynamicNetwork | DistributedDataParallel) -> tuple[DynamicNetwork, str]:
    """The network itself, and the name of the group whose processes train it; "": this one alone."""
    if isinstance(net, DistributedDataParallel):
        return net.module, net.process_group.group_name  # type: ignore[return-value]
    return net, ""


def labelled_pixels(
    net: DynamicNetwork | DistributedDataParallel, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """How many of labels [N,H,W] say something, in all processes that train the network: int64 scalar.

    class_weights: [K], what each counts by its class; float64 scalar then.
    """
    count = _labelled(labels, class_weights)
    _, group = unwrapped(net)
    return synchronise.gathered(count, group).sum() if group else count


def _labelled(labels: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return (labels != IGNORED_LABEL).sum()
    factors = torch.zeros(IGNORED_LABEL + 1, dtype=torch.float64, device=labels.device)
    factors[: len(class_weights)] = class_weights
    return factors[labels].sum()


def _joint_mean(costs: Tensor, group: str) -> Tensor:
    samples = synchronise.gathered(torch.tensor(len(costs), device=costs.device), group).sum()
    return synchronise.joint_sum(costs.sum() / samples, group)


def segmentation_loss(
    net: DynamicNetwork,
    out: Output,
    labels: Tensor,
    class_weights: Tensor | None = None,
    labelled: Tensor | None = None,
) -> Tensor:
    """Cross entropy of what `net` returned, summed over labels [N,H,W] and divided by the labelled pixels.

    labelled: how many count as those; None: the labels' own. 0 where there are none. Other arguments as `objective`'s.
    """
    if class_weights is not None:
        class_weights = class_weights.to(torch.promote_types(out.low_logits.dtype, torch.float32))
    if fused.is_on(net):
        total = ops.upsampled_cross_entropy(
            out.low_logits, labels, LOGITS_FACTOR, class_weights, ignore_index=IGNORED_LABEL, backend=net.ops
        )
    else:
        logits = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
        # CUDA's own sum of pixels' losses adds them in another order each time
        reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
        total = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORED_LABEL, reduction=reduction).sum()
    if labelled is None:
        labelled = _labelled(labels, class_weights)
    # a crop can be all padding, or of classes that count nothing: 0 instead of 0/0
    return total / torch.where(labelled > 0, labelled, 1).to(total.dtype)
