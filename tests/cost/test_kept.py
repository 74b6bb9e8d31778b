"""Tables are kept as numbers or real tensors: whatever was tried before, a network, its runtime and its loss work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import dynroute
from dynroute.models.network import DynamicNetwork
from tests.support.networks import random_images, random_network

SIDE = 64


def tiny() -> DynamicNetwork:
    return dynroute.create_model("dynamic_tiny", layers=4, channels=8, num_classes=5, stem_width=16).eval()


def with_fake_tensors() -> None:
    with FakeTensorMode():
        tiny()(torch.empty(1, 3, SIDE, SIDE))


def on_meta() -> None:
    with torch.device("meta"):
        tiny()(torch.empty(1, 3, SIDE, SIDE))


def in_inference_mode() -> None:
    with torch.inference_mode():
        tiny()(torch.zeros(1, 3, SIDE, SIDE))


def with_another_default_type() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        tiny()(torch.zeros(1, 3, SIDE, SIDE))
    finally:
        torch.set_default_dtype(torch.float32)


TRIED: dict[str, Callable[[], object]] = {
    "fake": with_fake_tensors,
    "meta": on_meta,
    "inference": in_inference_mode,
    "float64": with_another_default_type,
    "export": lambda: torch.export.export(tiny(), (torch.zeros(1, 3, SIDE, SIDE),)),
    "make_fx": lambda: make_fx(tiny())(torch.zeros(1, 3, SIDE, SIDE)),
    "vmap": lambda: torch.func.vmap(lambda x: tiny()(x[None]).logits)(torch.zeros(1, 3, SIDE, SIDE)),
    "grad": lambda: torch.func.grad(lambda x: tiny()(x).logits.sum())(torch.zeros(1, 3, SIDE, SIDE)),
    "jvp": lambda: torch.func.jvp(lambda x: tiny()(x).logits, *[(torch.zeros(1, 3, SIDE, SIDE),)] * 2),
    "trace": lambda: torch.jit.trace(lambda x: tiny()(x).logits, torch.zeros(1, 3, SIDE, SIDE)),
}


def forget() -> None:
    """Nothing is known of any size."""
    from dynroute.models import network
    from dynroute.space import wiring

    for kept in (network.costs_on, network._paths_brought, wiring.path_exists):
        kept.forget()  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", TRIED)
def test_afterwards_everything_works(what: str) -> None:
    forget()
    try:
        TRIED[what]()
    except Exception as error:  # some are no way to run a network: what they leave behind is looked at
        print(f"{what}: {type(error).__name__}: {error}")
    net, images = random_network(layers=4), random_images(2, SIDE, SIDE)
    with torch.no_grad():
        out = net(images)
    for table in (out.costs.cell, out.costs.path, out.costs.gate):
        assert type(table) is torch.Tensor and table.dtype == torch.float64 and table.device.type == "cpu"
        assert not table.is_inference() and not table.requires_grad
    run = dynroute.optimize(net)
    torch.testing.assert_close(run(images).real_mflops, out.real_mflops)
    labels = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    losses = dynroute.objective(net.train(), images, labels, progress=0.5, budget=dynroute.Budget(0.5))
    sum(losses.values()).backward()
    assert losses["budget"].item() > 0


def test_counting_draws_no_random_number() -> None:
    before = torch.random.get_rng_state()
    for cell in ("sepconv", "mbconv", "bottleneck"):
        dynroute.NetworkConfig(layers=4, channels=8, cell=(cell,)).costs(96, 96)
    assert torch.equal(torch.random.get_rng_state(), before)
