"""The executed work, for `torch.utils.flop_counter`: kernels of a runtime are launched past what it counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dynroute.native.contract import SampleMacs


@torch.library.custom_op("dynroute_runtime::executed", mutates_args=())
def _executed(node_macs: Tensor, stem_macs: Tensor, decoder_macs: Tensor) -> None:
    """Does nothing: counters see its arguments."""


@register_flop_formula(torch.ops.dynroute_runtime.executed, get_raw=True)
def _flops(node_macs: Tensor, stem_macs: Tensor, decoder_macs: Tensor, out_val: None = None) -> int:
    return 2 * int(node_macs.sum() + stem_macs.sum() + decoder_macs.sum())


def tell_counters(node_macs: Tensor, sample_macs: SampleMacs) -> None:
    """Has a FlopCounterMode around the call count twice its executed multiply-accumulates; it waits for a GPU then."""
    if torch._C._len_torch_dispatch_stack() > 0:
        torch.ops.dynroute_runtime.executed(node_macs, sample_macs.stem, sample_macs.decoder)
