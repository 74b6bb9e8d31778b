"""What `optimize` and a runtime are given by mistake: one line that says what was wanted and what came."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import dynroute
from tests.support.networks import random_images, random_network

IMAGES = random_images(2, 32, 32)


@pytest.fixture(scope="module")
def run() -> dynroute.Runtime:
    return dynroute.optimize(random_network(layers=4))


@pytest.mark.parametrize(
    "images, message",
    [
        ([IMAGES], "images: wanted a float32 tensor [N,3,H,W] on the CPU, got list of 1; torch.from_numpy"),
        (IMAGES.numpy(), "a float32 tensor [N,3,H,W] on the CPU, got numpy.ndarray float32 [2, 3, 32, 32]; torch.from"),
        ("a.png", "images: wanted a float32 tensor [N,3,H,W] on the CPU, got str;"),
        (IMAGES.byte(), "float32 on the CPU, got torch.uint8 on cpu; pixels have to be normalised first"),
        (IMAGES.double(), "images: wanted float32 on the CPU, got torch.float64 on cpu"),
        (IMAGES.to("meta"), "images: wanted float32 on the CPU, got torch.float32 on meta"),
        (IMAGES[:, :1], "images: wanted float32 [N,3,H,W], got [2, 1, 32, 32]"),
        (IMAGES[0], "images: wanted float32 [N,3,H,W], got [3, 32, 32]; images[None] is a batch of one"),
    ],
    ids=lambda given: "" if isinstance(given, str) else type(given).__name__,
)  # fmt: skip
def test_images(run: dynroute.Runtime, images: Any, message: str) -> None:
    for call in (run, run.labels):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(images)


def test_gates(run: dynroute.Runtime) -> None:
    with pytest.raises(ValueError, match=re.escape("gates: wanted a tensor [N,L+1,4,3] or without N, got list of 2")):
        run(IMAGES, gates=[1, 2])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_tangents(backend: str) -> None:
    run = dynroute.optimize(random_network(layers=4), backend)
    with pytest.raises(ValueError, match="images: wanted no tangent, got one: a runtime has no derivative"):
        torch.func.jvp(lambda images: run(images).logits, (IMAGES,), (IMAGES,))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_what_torch_wraps_a_network_in(wrap: Any, run: dynroute.Runtime) -> None:
    made = dynroute.optimize(wrap(random_network(layers=4)))
    assert torch.equal(made(IMAGES).logits, run(IMAGES).logits)


def test_distributed_data_parallel(run: dynroute.Runtime, tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        made = dynroute.optimize(nn.parallel.DistributedDataParallel(random_network(layers=4)))
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(made(IMAGES).logits, run(IMAGES).logits)


def test_what_is_no_network(run: dynroute.Runtime) -> None:
    wanted = "net: wanted a network of create_model, load_official or from_pretrained, got "
    for given, message in (
        (run, "net: wanted a network, got what optimize has made of one already: Runtime(backend='cpu'"),
        (random_network(layers=4).to("meta"), "net: wanted a network with weights, got one on the meta device"),
        (nn.Linear(2, 2), f"{wanted}torch.nn.modules.linear.Linear"),
        (nn.Sequential(random_network(layers=4)), f"{wanted}torch.nn.modules.container.Sequential"),
        ("dynamic_tiny", f"{wanted}str"),
        (None, f"{wanted}NoneType"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            dynroute.optimize(given)


def test_the_reference_runs_a_network_of_another_type() -> None:
    net = random_network(layers=4)
    wanted = dynroute.optimize(net, "reference")(IMAGES).logits
    torch.testing.assert_close(dynroute.optimize(net.double(), "reference")(IMAGES).logits, wanted)
