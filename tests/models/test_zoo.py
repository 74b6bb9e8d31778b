"""Models by name and by configuration, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dynroute
from dynroute.models.official import official_names
from tests.support.networks import random_images


@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_of_any_number_of_channels(in_channels: int) -> None:
    net = dynroute.create_model("dynamic_tiny", in_channels=in_channels).eval()
    assert net.stem.conv.weight.shape == (16, in_channels, 3, 3)
    assert net(random_images(1, 32, 40, channels=in_channels)).logits.shape == (1, 19, 32, 40)
    with pytest.raises(ValueError, match=rf"images: wanted float \[N,{in_channels},H,W\], got .* \[1, 3, 32, 40\]"):
        net(random_images(1, 32, 40))


def test_a_folder_saved_without_in_channels_has_three(tmp_path: Path) -> None:
    net = dynroute.create_model("dynamic_tiny")
    net.preprocess = {"mean": [1, 2, 3], "std": [1, 1, 1], "order": "rgb"}
    net.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved.pop("in_channels") == 3
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert dynroute.from_pretrained(tmp_path).config == net.config


def test_a_published_checkpoint_of_other_images_says_so_by_its_shapes() -> None:
    net = dynroute.create_model("dynamic_tiny", in_channels=5)
    names = official_names(net)
    again = dynroute.load_official({names[name]: value for name, value in net.state_dict().items()})
    assert again.config == net.config and again.config.in_channels == 5


@pytest.mark.parametrize(
    "fields",
    [{"in_channels": 0}, {"channels": 12}, {"gate": "relu"}, {"num_classes": 0}, {"cell": "conv"}, {"depth": 3}],
)
def test_configuration_errors(fields: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        dynroute.create_model("dynamic_tiny", **fields)


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="dynamic_raw_l16"):
        dynroute.create_model("resnet50")
    assert {"dynamic_raw_l16", "dynamic_a_l16", "dynamic_b_l16", "dynamic_c_l16", "dynamic_raw_l33", "fix_l16"} <= set(
        dynroute.list_models()
    )
