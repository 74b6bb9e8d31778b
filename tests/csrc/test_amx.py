"""Products in AMX tiles: their error against float64 beside that of fused multiply-adds, and numbers at the edges."""

from __future__ import annotations

import json

import torch

from dynroute import ops
from tests.support.isa import amx
from tests.support.processes import python

# root mean square and largest error of transforms against float64, over the largest output, by number of inputs
ERRORS = """
import json, torch
from dynroute import ops
found = {}
for k in (32, 64, 128, 256, 512):
    g = torch.Generator().manual_seed(k)
    x, w = torch.randn(4, k, 16, 16, generator=g), torch.randn(64, k, 1, 1, generator=g) / k**0.5
    scale, shift = torch.ones(64), torch.randn(64, generator=g)
    wanted = ops.transform(*(t.double() for t in (x, w, scale, shift)), backend="reference")
    error = (ops.transform(x, w, scale, shift, backend="cpu") - wanted) / wanted.abs().max()
    found[k] = [float(error.square().mean().sqrt()), float(error.abs().max())]
print(json.dumps(found))
"""


def errors(isa: str) -> dict[str, list[float]]:
    run = python("-c", ERRORS, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@amx
def test_float32_is_as_exact_as_fused_multiply_adds() -> None:
    tiles, fma = errors("amx"), errors("avx512")
    for k, both in tiles.items():
        print(k, both, fma[k])  # the figures of docs/kernels/cpu.md, with pytest -s
        assert all(ours <= 2 * theirs for ours, theirs in zip(both, fma[k], strict=True)), k


def product(x: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """ReLU(weight * ReLU(x)) for each of x's values, through a product of 32 inputs."""
    pixels = torch.zeros(1, 32, 1, len(x))
    pixels[0, 0, 0] = x
    weights = torch.zeros(8, 32, 1, 1)
    weights[:, 0] = weight
    return ops.transform(pixels, weights, torch.ones(8), torch.zeros(8), backend="cpu")[0, 0, 0]


@amx
def test_exact_where_one_part_suffices_or_all_do() -> None:
    """Every float is the sum of its parts: times a power of two nothing is lost, from 2^-102 up to the largest."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).abs()
    for values in (x, x * 2.0**-80, x * 2.0**100, torch.tensor([3.4028234e38, 1.0, 2.0**-102 * (1 + 2.0**-23)])):
        assert torch.equal(product(values), values)
        assert torch.equal(product(values, 0.5), values * 0.5)


@amx
def test_numbers_at_the_edges() -> None:
    """NaN stays NaN; an infinity is never finite again; below 2^-103 lower parts are lost, below 2^-126 all."""
    nan, inf = float("nan"), float("inf")
    assert product(torch.tensor([nan])).isnan().all()
    assert not product(torch.tensor([inf])).isfinite().any()
    tiny = torch.tensor([2.0**-120 * 1.2345678, 2.0**-127, 1e-45])
    error = (product(tiny) - tiny).abs()
    assert (error <= 2.0**-126).all()
