"""The moving average of a network's weights (`train.ema`), which is what is evaluated and saved in the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynroute.train.finite import running_statistics


class WeightAverage:
    """Exponential moving average of a network's parameters and running statistics: a <- d a + (1 - d) w at each step.

    d is `decay`, but (1 + t) / (10 + t) at most after step t, so that an average of a short past is not one of the
    first weights. A function of the step, so that a resumed run needs nothing but the average.

    Args:
        net: the network; its tensors have to stay where they are.
        decay: 0 <= decay < 1.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        names = {id(t): name for name, t in (*net.named_parameters(), *net.named_buffers())}
        self._of: list[Tensor] = [p.detach() for p in net.parameters()] + running_statistics(net)
        self._names = [names[id(t)] for t in (*net.parameters(), *running_statistics(net))]
        self._average = [t.clone() for t in self._of]

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after step number `step` (1 after the first), if it was not skipped (bool scalar); a GPU
        is not waited for."""
        weight = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        if not skipped.is_cuda:
            if not skipped:
                torch._foreach_lerp_(self._average, self._of, weight)
            return
        apart = torch._foreach_sub(self._of, self._average)
        torch._foreach_mul_(apart, torch.where(skipped, 0.0, weight))
        torch._foreach_add_(self._average, apart)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network holds the average, in the memory of its weights, and what becomes of it there stays with
        the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        kept = [t.clone() for t in self._of]
        torch._foreach_copy_(self._of, self._average)
        torch._foreach_copy_(self._average, kept)

    def state(self) -> dict[str, Tensor]:
        """By the names of the network's state."""
        return dict(zip(self._names, self._average))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        torch._foreach_copy_(self._average, [state[name].to(t.device) for name, t in zip(self._names, self._average)])
