"""The processes of a run: this one alone, or those that torchrun started."""

from __future__ import annotations

import datetime
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynroute.models.network import DynamicNetwork
from dynroute.train.meeting import agents_store
from dynroute.train.parse import ConfigError

T = TypeVar("T")
# Others wait this long for the first process, which evaluates alone.
PATIENCE = datetime.timedelta(hours=12)
# Of what gloo and nccl say when another process is gone.
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class Team:
    """The processes that train one network on one batch, each on its share; its methods have to be called by all.

    Attributes:
        rank, size: this process's number and how many there are.
        device: where this process computes.
        norms: torch.distributed's name of a group for BatchNorms; "" when alone.
        control: a group on the CPU, for what is no part of the computation.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    norms: str = ""
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes, evaluates and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process has the flag."""
        if self.size == 1:
            return flag
        flags = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.control)
        return bool(flags)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' tensors, on the device."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def listed(self, value: Any) -> list[Any]:
        """The value of each process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def first(self, act: Callable[[], T]) -> T:
        """What the first process alone does: every process gets what comes of it, or fails as it did."""
        found: list[Any] = [None]
        if self.leads:
            try:
                found = [act()]
            except (ConfigError, OSError) as error:
                found = [error]
        if self.size > 1:
            dist.broadcast_object_list(found, group=self.control)
        if isinstance(found[0], (ConfigError, OSError)):
            raise found[0]
        return found[0]  # type: ignore[no-any-return]

    def say(self, lines: Iterable[str]) -> None:
        """To the user, a line each, once."""
        for line in lines if self.leads else ():
            print(f"train: {line}", file=sys.stderr)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def share_buffers(self, net: nn.Module) -> None:
        """Gives all processes the first one's buffers."""
        for buffer in net.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, 0)


@contextmanager
def assembled(device: torch.device) -> Iterator[Team]:
    """The processes of this run; a group that nobody had made yet ends with it.

    Under torchrun the environment says which they are, gloo connects CPUs, nccl GPUs: the one with the process's
    number on its machine, unless `device` has a number.

    Raises:
        ValueError: an environment that names several processes, but not where they meet.
        ConnectionError: one of them is gone.
    """
    made = not (dist.is_available() and dist.is_initialized())
    if made and (int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ):
        yield Team(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.index is None else device
        torch.cuda.set_device(device)
    if made:
        backend, store = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", agents_store()
        if store is None:
            dist.init_process_group(backend)
        else:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        # of their own: gradients are on their way while a BatchNorm's backward gathers
        norms = dist.new_group()
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Team(device, dist.get_rank(), dist.get_world_size(), norms.group_name, control)
    except RuntimeError as error:
        if not any(words in str(error) for words in GONE):
            raise
        raise ConnectionError("another process of this run is gone; what it said tells why") from error
    finally:
        if made:
            dist.destroy_process_group()


def in_parallel(net: DynamicNetwork, device: torch.device) -> DistributedDataParallel:
    """The network with its gradients averaged over all processes; `objective` and `train_step` take it as it is.

    Every parameter has a gradient in every step, whatever the gates say, so that nobody has to look for those without.
    Buffers are left alone: with joined BatchNorms they are the same everywhere.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.13 renamed it
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # channels_last weights of 1x1 have strides that fused gradients lack; the values lie in the same order
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, **{buffers: False})  # type: ignore[arg-type]


def is_first() -> bool:
    """Whether this process is the one to print, before and after `assembled`."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"
