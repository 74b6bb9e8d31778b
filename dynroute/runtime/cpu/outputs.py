"""Memory of outputs, lent to the caller and taken back when the last tensor on it is gone.

A call's logits are most of what it would allocate (40 MB for 19 classes at 512 x 1024), and the system clears every
fresh page: a tenth of the time of a sparsely routed image.  The caller owns what it was lent for as long as it, a view
of it, or whatever else shares its storage lives.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from torch import Tensor

from dynroute.native.network import network_buffer

KEPT = 2  # idle buffers: one for the next call and one for a caller that compares two results


class OutputMemory:
    """Lends float32 tensors; may be used by several threads."""

    def __init__(self) -> None:
        # not a lock but a deque, whose append and pop are atomic: memory comes back wherever its last owner dies, also
        # in the middle of `lend`
        self._idle: deque[Tensor] = deque(maxlen=KEPT)

    def lend(self, shape: tuple[int, ...]) -> Tensor:
        """A contiguous float32 tensor of that shape, uninitialised."""
        memory = self._pop(math.prod(shape))
        loan = memory.numpy().view()  # an object of its own, which the tensor's storage keeps
        weakref.finalize(loan, self._idle.append, memory).atexit = False
        return torch.from_numpy(loan).view(shape)

    def _pop(self, floats: int) -> Tensor:
        while True:
            try:
                memory = self._idle.pop()
            except IndexError:
                return network_buffer(floats)
            if memory.numel() == floats:  # others were for another size of image, and are let go
                return memory

    @property
    def idle_bytes(self) -> int:
        """Memory held that is not lent."""
        return sum(memory.nbytes for memory in tuple(self._idle))
