"""Checkpoints: our own folders, and files of the published implementation."""

from __future__ import annotations

import json

import pytest
import torch

import dynroute
from tests.support.networks import random_images, random_network


def test_save_and_load(tmp_path) -> None:
    net = random_network(small_gate=True)
    net.save_pretrained(tmp_path / "model")
    again = dynroute.from_pretrained(tmp_path / "model")
    x = random_images(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x).logits, again(x).logits)
    assert again.config == net.config
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "channels": 16}))
    with pytest.raises(ValueError, match="does not fit"):
        dynroute.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        dynroute.from_pretrained(tmp_path)


def test_official_checkpoints_bare_prefixed_and_wrong(tmp_path) -> None:
    from dynroute.models.official import official_names

    net = random_network(num_classes=19)
    names = official_names(net)
    state = {f"module.{names[k]}": v for k, v in net.state_dict().items()}
    path = tmp_path / "official.pth"
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, path)
    x = random_images(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(dynroute.load_official(path)(x).logits, net(x).logits)
    state.popitem()
    with pytest.raises(ValueError, match="1 parameters missing"):
        dynroute.load_official(state)
    with pytest.raises(ValueError, match="not a checkpoint of the published"):
        dynroute.load_official({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no such checkpoint"):
        dynroute.load_official(tmp_path / "none.pth")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a torch checkpoint"):
        dynroute.load_official(path)
