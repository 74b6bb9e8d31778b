"""What NaN in an image has to do, for tests of every backend: go on to that sample's logits and to nothing else."""

from __future__ import annotations

import torch

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.space.wiring import path_exists
from tests.support.networks import BITS, random_images


def check_nan_stays(run: dynroute.Runtime, net: DynamicNetwork, n: int = 3, side: int = 32) -> None:
    """A NaN in the second sample: its logits are NaN where the plain model's are, and every node and path that there is
    is open; the others keep their bits, in that call and in the next."""
    x = random_images(n, side, side)
    clean, with_nan = x.to(run.device), x.clone()
    with_nan[1, 0, 21, 10] = torch.nan
    others = torch.arange(n) != 1
    wanted, out, after = run(clean), run(with_nan.to(run.device)), run(clean)
    for name in BITS:
        of_clean = getattr(wanted, name)
        assert torch.equal(getattr(out, name)[others], of_clean[others]), name
        assert torch.equal(getattr(after, name), of_clean), f"{name} of the next call"
    with torch.no_grad():
        of_model = net(with_nan)
    assert of_model.logits[1].isnan().all() and not of_model.logits[others].isnan().any()
    assert out.logits[1].isnan().all()
    exists = path_exists(net.config.layers)
    assert torch.equal(out.gates[1].isnan().cpu(), exists)
    all_open = run(clean[1:2], exists.float())
    assert torch.equal(out.executed_nodes[1, ..., 1:], all_open.executed_nodes[0, ..., 1:])
    assert float(out.real_mflops[1]) == float(all_open.real_mflops[0])
    assert out.expected_mflops[1].isnan() and not out.expected_mflops[others].isnan().any()


def check_infinity_is_the_models(run: dynroute.Runtime, net: DynamicNetwork) -> None:
    """Infinite pixels: numbers only where the plain model has some."""
    x = random_images(2, 64, 64)
    x[1, 0, 21, 10] = torch.inf
    with torch.no_grad():
        wanted = net(x).logits
    got = run(x.to(run.device)).logits.cpu()
    assert torch.equal(got.isfinite(), wanted.isfinite())
