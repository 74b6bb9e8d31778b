"""Every operator by every backend, in every type and both directions: how far each is from float64.

`python -m pytest tests/ops/test_parity_matrix.py -rP | grep '^|'` prints the table: operator, backend, direction, and
in float32, float16 and bfloat16 ours and PyTorch's own. Without a GPU CUDA's kernels run on the emulator, Triton's by
its interpreter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dynroute import ops
from dynroute.native import library
from dynroute.ops import backends
from dynroute.runtime.cuda import emulator
from tests.support import cases
from tests.support.cuda.trained import far
from tests.support.cuda.training import emulated_operators
from tests.support.trees import copies, leaves, to

ON_GPU = torch.cuda.is_available()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOME = torch.tensor([True, False, True])
N, C, H, W = 3, 16, 6, 10  # where no ReLU changes its sign between one rounding and another
CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "sepconv": (cases.sepconv(N, C, H, W), {"open": SOME, "residual": True, "final_relu": True}),
    "transform": (cases.transform(N, C, H, W, 32), {"open": SOME, "stride": 2}),
    "gate": (cases.gate(N, C, H, W), {"activation": "sigmoid", "present": SOME}),
    "route": (cases.route(N), {}),
    "aggregate": (cases.aggregate(N, C, H, W), {}),
    "sepconv_train": (cases.sepconv_train(N, C, H, W), {"open": SOME, "residual": True, "final_relu": True}),
    "transform_train": (cases.transform_train(N, C, H, W, 32), {"open": SOME, "stride": 2}),
    "gate_train": (cases.gate_train(N, C, H, W), {"activation": "sigmoid", "columns": (1, 0, 2)}),
    "node_train": (cases.node_train(N, C, H, W), {"skip": True, "bridge": 0.6}),
    "upsampled_cross_entropy": (cases.upsampled_cross_entropy(N, 5, H, W), {}),
}  # fmt: skip
RUNNING = {"sepconv_train": (5, 6), "transform_train": (4, 5), "gate_train": (4, 5), "node_train": (8, 9)}
HOW = {"cpu": "run", "cuda": "emulated", "triton": "interpreted"}  # without a GPU
Results = tuple[list[Tensor], list[Tensor]]


def in_type(op: str, args: tuple, dtype: torch.dtype) -> tuple:
    """Everything in a type; of training operators the maps alone."""
    if not op.endswith("_train") or dtype == torch.float64:
        return to(args, dtype)  # type: ignore[no-any-return]
    return args[0].to(dtype), *args[1:]


def run(op: str, args: tuple, backend: str, device: str = "cpu") -> Results:
    """Results, and gradients of a fixed weighting of them, of everything that has one."""
    given = to(copies(args), device)
    frozen = {id(statistic) for i in RUNNING.get(op, ()) for statistic in leaves(given[i])}
    learnt = [leaf for leaf in leaves(given) if leaf.is_floating_point() and id(leaf) not in frozen]
    for leaf in learnt:
        leaf.requires_grad_()
    outs = leaves(getattr(ops, op)(*given, **to(CALLS[op][1], device), backend=backend))
    outs = outs[:1] if op == "route" else outs  # the others are lists
    weights = [cases.normal(*(out.shape or (1,)), seed=70 + i).to(out.dtype) for i, out in enumerate(outs)]
    loss = sum((out.double() * weight.double().to(device)).sum() for out, weight in zip(outs, weights))
    grads = torch.autograd.grad(loss, learnt, allow_unused=True, materialize_grads=True)
    return [out.detach().cpu() for out in outs], [grad.cpu() for grad in grads]


def plain(op: str, args: tuple, dtype: torch.dtype) -> Results:
    """PyTorch's own in that type: of training operators, with weights of float32, under autocast."""
    lowers = op.endswith("_train") and dtype != torch.float32
    with torch.autocast("cpu", dtype) if lowers else nullcontext():
        return run(op, args, "reference")


@contextmanager
def kernels(backend: str) -> Iterator[Callable[..., Results]]:
    """What runs operators by a backend; skips where nothing does."""
    if backend == "cuda" and not ON_GPU:
        reason = library.why_not_loaded() or emulator.why_not()
        if reason is not None:
            pytest.skip(reason)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's word on kernels that are replaced
            with emulated_operators():
                yield partial(run, backend=backend)
        return
    reason = backends.why_not("node_train", backend)
    if reason is not None:
        pytest.skip(reason)
    yield partial(run, backend=backend, device="cuda" if ON_GPU and backend != "cpu" else "cpu")


@pytest.mark.parametrize("op", list(CALLS))
@pytest.mark.parametrize("backend", list(HOW))
def test_matrix(backend: str, op: str) -> None:
    rows: list[list[str]] = [[], []]
    with kernels(backend) as run_by:
        for dtype in DTYPES:
            given = in_type(op, CALLS[op][0], dtype)
            if backend == "cpu" and dtype != torch.float32 and op != "upsampled_cross_entropy":
                with pytest.raises(RuntimeError, match=r"is not float32 or float64"):
                    run_by(op, given)
                for row in rows:
                    row.append("refused")
                continue
            ours, own = run_by(op, given), plain(op, given, dtype)
            exact = run(op, in_type(op, given, torch.float64), "reference")
            for i, row in enumerate(rows):
                error, of_torch = far(ours[i], exact[i]), far(own[i], exact[i])
                limit = 4e-6 if dtype == torch.float32 else 4 * max(of_torch, torch.finfo(dtype).eps)
                assert error <= limit, (i, dtype, error, of_torch)
                row.append(f"{error:.1e} / {of_torch:.1e}")
    how = "on a GPU" if ON_GPU and backend != "cpu" else HOW[backend]
    for direction, row in zip(("forward", "backward"), rows):
        assert len(row) == len(DTYPES)
        print(f"| {op} | {backend}, {how} | {direction} | " + " | ".join(row) + " |")
