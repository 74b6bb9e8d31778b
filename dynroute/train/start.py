"""The network that a run starts with: fresh, from other weights, or as its checkpoint says; what of it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dynroute.data import Normalise, described, understood
from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork
from dynroute.models.transfer import transfer
from dynroute.models.weights import Weights, read_weights
from dynroute.models.zoo import create_model
from dynroute.space.wiring import padded_size
from dynroute.train.config import Config
from dynroute.train.parse import ConfigError
from dynroute.train.setup import normalisation

# Fields of the configuration's `model` that go before those of the weights, and of the named network.
_FIELDS = ("channels", "layers", "small_gate", "gate", "stem_width", "drop_prob")


def make_network(
    config: Config, class_names: Sequence[str], saved: Mapping[str, Any] | None = None
) -> tuple[DynamicNetwork, list[str]]:
    """The network that `config` names, for a data set of these classes, in training; and what is to be said of it.

    Args:
        saved: `NetworkConfig`'s fields in a checkpoint to go on from; `model.init` is not read again then.

    Raises:
        ConfigError: weights, fields, classes or parts that do not fit, with the reason.
    """
    fields = {name: getattr(config.model, name) for name in _FIELDS if getattr(config.model, name) is not None}
    fields["num_classes"] = config.model.num_classes or len(class_names)
    fields["in_channels"] = config.data.channels
    lines: list[str] = []
    try:
        if saved is not None:
            net = DynamicNetwork(NetworkConfig(**{**saved, "cell": tuple(saved["cell"])}))
        elif config.model.init is None:
            net = create_model(config.model.name, **fields)
        else:
            net, lines = _begun(config, fields)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if net.config.num_classes != len(class_names):
        raise ConfigError(f"model: {net.config.num_classes} classes, but the data set has {len(class_names)}")
    net.preprocess = described(normalisation(config.data), list(class_names))
    try:
        net.bn = config.train.bn
        net.freeze(*config.train.freeze)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from error
    trained = [parameter.requires_grad for parameter in net.parameters()]
    if not any(trained):
        raise ConfigError(f"train.freeze: {', '.join(config.train.freeze)}: nothing is left to train")
    if not all(trained):
        lines.append(f"train.freeze: {trained.count(False)} of {len(trained)} parameters stay as they are")
    return net.train(), lines


def _begun(config: Config, fields: Mapping[str, Any]) -> tuple[DynamicNetwork, list[str]]:
    """The network of `model.init`, but for what the configuration says. Raises ValueError."""
    assert config.model.init is not None
    try:
        weights = read_weights(config.model.init)
        net = create_model(config.model.name, **{**weights.fields, **fields})
        lines = transfer(net, weights)
    except ValueError as error:
        raise ValueError(f"init: {error}") from error
    lines += [
        f"model.{name} is {value!r} here, but was {weights.fields[name]!r} there"
        for name, value in fields.items()
        if name in _FIELDS and weights.fields.get(name, value) != value
    ]
    unsaid = [name for name in ("small_gate", "gate") if name not in weights.fields and name not in fields]
    lines += [f"the file does not say {name}: {getattr(net.config, name)!r}, or model.{name}" for name in unsaid]
    lines += _other_input(weights, normalisation(config.data))
    return net, [f"model.init: {line}" for line in lines]


def _other_input(weights: Weights, normalise: Normalise) -> list[str]:
    """A line where the weights have seen images otherwise normalised, or nothing says how."""
    if weights.preprocess is None:
        return ["nothing says how its images became its input: data.mean, data.std and data.order should be as then"]
    before, _ = understood(weights.preprocess, weights.label)
    return [
        f"data.{name} is {now!r} here, but was {then!r} there: its first layers will see other numbers than they know"
        for name, then in vars(before).items()
        if (now := getattr(normalise, name)) != then
    ]


def check_statistics(net: DynamicNetwork, crop: tuple[int, int], samples: int) -> None:
    """Refuses crops whose smallest maps leave a BatchNorm one value a channel, of which there is no variance.

    Args:
        net: in training.
        crop: height and width of a training image.
        samples: that a BatchNorm sees at once.

    Raises:
        ConfigError: there is such a map; it says where, and what would do.
    """
    for name, module, (height, width), routed in _maps(net, *padded_size(*crop, net.config.small_gate)):
        seen = 1 if routed and net.bn == "open" else samples  # of a node one sample may be open
        if seen * height * width > 1:
            continue
        if any(isinstance(norm, nn.BatchNorm2d) and norm.training for norm in module.modules()):
            raise ConfigError(
                f"data.crop: {list(crop)} makes {name} a map of 1x1, and of one sample BatchNorm then sees one value, "
                "of which there is no variance; wanted a larger crop"
                + (", or another train.bn" if seen < samples else ", or more samples (optimiser.batch / accumulate)")
            )


def _maps(net: DynamicNetwork, height: int, width: int) -> Iterator[tuple[str, nn.Module, tuple[int, int], bool]]:
    """Parts of the network with BatchNorms, the maps that these see of padded images, and whether it is routed."""
    for row in net.rows():
        for node in row:
            scale = node.node.scale
            h, w = height >> (scale + 2), width >> (scale + 2)
            where = f"at 1/{4 << scale}"
            yield f"a gate {where}", node.gate, (h // 4, w // 4) if net.config.small_gate else (h, w), False
            yield f"a cell {where}", node.cell, (h, w), True
            if hasattr(node, "up"):
                yield f"a path up {where}", node.up, (h, w), True
            if hasattr(node, "down"):
                yield f"a path down {where}", node.down, ((h + 1) // 2, (w + 1) // 2), True
    for scale, merge in enumerate(net.decoder.merge):
        yield "the decoder", merge, (height >> (scale + 2), width >> (scale + 2)), False
