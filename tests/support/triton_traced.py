"""What compilers and exporters see of the Triton operators; in a process without TRITON_INTERPRET, on fake tensors.

Prints, as JSON, for each operator: kernels in the joint graph of both directions, and what an export calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from triton.backends.compiler import GPUTarget

from dynroute.ops.triton import operators
from tests.support import cases
from tests.support.trees import leaves

TRAINED = (False, "", 1e-5, False)  # frozen, group, eps, narrow
CALLS: dict[str, tuple[tuple, tuple]] = {  # tensors, and what comes behind them
    "sepconv": (cases.sepconv(2, 16, 6, 5, 2), (None, 1, True, True)),
    "transform": (cases.transform(2, 16, 6, 5, 8), (None, 2)),
    "gate": (cases.gate(2, 16, 6, 5), ("tanh", False, None)),
    "aggregate": (cases.aggregate(2, 16, 6, 4), ()),
    "sepconv_train": (cases.sepconv_train(2, 16, 6, 5), (None, 1, True, True, *TRAINED)),
    "transform_train": (cases.transform_train(2, 16, 6, 5, 8), (None, 1, True, *TRAINED)),
    "gate_train": (cases.gate_train(2, 16, 6, 5), ("tanh", [1, 0, 2], False, *TRAINED)),
    "node_train": (cases.node_train(2, 16, 6, 5), (None, 0.6, True, *TRAINED)),
    "upsampled_cross_entropy": (cases.upsampled_cross_entropy(2, 5, 6, 5), (4, None, 255, True)),
}
# Of an operator's arguments, those that have no gradient: running statistics.
RUNNING = {"sepconv_train": (5, 6), "transform_train": (4, 5), "gate_train": (4, 5), "node_train": (8, 9)}


class Driver:
    """Stands for the driver of a GPU that is not here: a compiler asks it what to compile for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)


class Module(nn.Module):
    """An operator on the tensors of its arguments, flat."""

    def __init__(self, run: Callable[..., Any], args: tuple) -> None:
        super().__init__()
        self.run = run
        self.flat, self.tree = tree_flatten(list(args))

    def forward(self, *tensors: Tensor) -> Any:
        left = iter(tensors)
        given = [next(left) if isinstance(value, Tensor) else value for value in self.flat]
        return self.run(*tree_unflatten(given, self.tree))


class Loss(Module):
    def forward(self, *tensors: Tensor) -> Any:
        return (sum(out.float().sum() for out in leaves(super().forward(*tensors)) if out.requires_grad),)


def kernels(graph: torch.fx.Graph) -> int:
    return sum("triton_kernel_wrapper" in str(node.target) for node in graph.nodes)


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    found: dict[str, Any] = {}
    for op, (tensors, options) in CALLS.items():
        args, overload = (*tensors, *options), getattr(getattr(torch.ops, operators.NAMESPACE), op).default
        running = {id(tensor) for i in RUNNING.get(op, ()) for tensor in leaves(args[i])}
        with FakeTensorMode() as mode:
            given = [
                mode.from_tensor(tensor).requires_grad_(tensor.is_floating_point() and id(tensor) not in running)
                for tensor in leaves(args)
            ]
            exported = torch.export.export(Module(overload, args), tuple(t.detach() for t in given))
            joint, signature = aot_export_module(Loss(overload, args), given, trace_joint=True, output_loss_index=0)
        found[op] = {
            "exported": sum(node.target is overload for node in exported.graph.nodes),
            "kernels": kernels(joint.graph),
            "mutated": sorted(signature.buffers_to_mutate) + sorted(signature.user_inputs_to_mutate),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
