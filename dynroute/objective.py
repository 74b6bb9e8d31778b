"""The training objective: segmentation loss plus budget loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute import ops
from dynroute.cost.budget import Budget
from dynroute.models import fused
from dynroute.models.decoder import LOGITS_FACTOR
from dynroute.models.network import DynamicNetwork, Output

IGNORED_LABEL = 255


class Losses(dict[str, Tensor]):
    """Scalar losses by name, to be summed; `output` is what the network returned.

    `executed_macs`, set by a training step: what its kernels counted, forward and backward.
    """

    def __init__(self, losses: dict[str, Tensor], output: Output) -> None:
        super().__init__(losses)
        self.output = output
        self.executed_macs = (0, 0)


def objective(
    net: DynamicNetwork,
    images: Tensor,
    labels: Tensor,
    progress: float,
    budget: Budget | None = None,
    class_weights: Tensor | None = None,
) -> Losses:
    """Runs the network and prices the result (SPEC, "Cost" and "Training").

    Args:
        images: float [N,3,H,W], normalised.
        labels: int64 [N,H,W], 0..K-1, 255 ignored.
        progress: 0..1, position in training; the budget acts from `budget.start` on, drop path grows with it.
        budget: None leaves the "budget" key out.
        class_weights: float [K], a factor for each class in the segmentation loss; None: 1.

    With `net.use_ops` other than "reference" the segmentation loss is `ops.upsampled_cross_entropy`: the same, but for
    rounding, from the decoder's logits at a quarter of the size.

    Returns: {"segmentation": scalar, "budget": scalar}, with the network's output as `.output`.

    Raises:
        ValueError: labels whose shape is not the images', or progress out of range.
    """
    if labels.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"labels: wanted [N,H,W] = {[images.shape[0], *images.shape[2:]]}, got {list(labels.shape)}")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress: wanted 0..1, got {progress}")
    out = net(images, progress=progress, bridge=budget.bridge_at(progress) if budget is not None else 0.0)
    losses = {"segmentation": segmentation_loss(net, out, labels, class_weights)}
    if budget is not None:
        losses["budget"] = budget.loss(out.gates, out.costs, progress)
    return Losses(losses, out)


def segmentation_loss(net: DynamicNetwork, out: Output, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy of what `net` returned, over the labelled pixels; 0 where there are none.  Arguments as above."""
    if fused.is_on(net):
        total = ops.upsampled_cross_entropy(
            out.low_logits, labels, LOGITS_FACTOR, class_weights, ignore_index=IGNORED_LABEL, backend=net.ops
        )
    else:
        logits = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
        total = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORED_LABEL, reduction="sum")
    # a crop can be all padding: 0 instead of 0/0
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)
