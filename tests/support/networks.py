"""Networks whose gates really open and close, images and gates for them, for tests of routing."""

from __future__ import annotations

import torch

import dynroute
from dynroute.models.network import DynamicNetwork

BITS = ("logits", "gates", "executed_nodes", "executed_macs")  # the halo follows the plan


def random_network(seed: int = 0, gate_shift: float = 0.0, **config) -> DynamicNetwork:
    """Evaluation-mode network with random weights and running statistics; gates spread around `gate_shift`."""
    torch.manual_seed(seed)
    settings = {"layers": 6, "channels": 8, "num_classes": 5, "stem_width": 16, **config}
    net = dynroute.create_model("dynamic_tiny", **settings)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.6, 1.2)
            module.bias.data.normal_(0, 0.1)
    for gate in net.gates():
        if gate.activation != "fixed":
            gate.fc.bias.data.normal_(gate_shift, 0.6)
    return net.eval()


def random_images(n: int, height: int, width: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """[n,channels,h,w] whose samples differ in contrast, so that they route differently."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=g)
    return x * (0.3 + 1.2 * torch.arange(n)).view(-1, 1, 1, 1) + torch.randn(n, channels, 1, 1, generator=g)


def random_gates(net: DynamicNetwork, n: int, share: float, seed: int = 0) -> torch.Tensor:
    """[n,L+1,4,3] alphas: a node is open with probability `share`, an open node's paths with 0.7."""
    g = torch.Generator().manual_seed(seed)
    shape = (n, net.config.layers + 1, 4)
    node = torch.rand(*shape, 1, generator=g) < share
    path = torch.rand(*shape, 3, generator=g) < 0.7
    return torch.rand(*shape, 3, generator=g) * node * path


def largest_error(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest value wanted."""
    return float((logits.float() - wanted).abs().max() / wanted.abs().max())


def same_bits(a: dynroute.RunOutput, b: dynroute.RunOutput, fields: tuple[str, ...] = BITS) -> None:
    for name in fields:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def check_batch_never_changes_a_sample(run: dynroute.Runtime, images: torch.Tensor) -> None:
    """Each sample's outputs are the same bits in the batch and alone; samples that all do the same would say little."""
    whole = run(images)
    assert len(set(whole.executed_macs.tolist())) > 1, "the samples should have differed"
    for i in range(len(images)):
        alone = run(images[i : i + 1])
        for name in BITS:
            assert torch.equal(getattr(whole, name)[i : i + 1], getattr(alone, name)), name
