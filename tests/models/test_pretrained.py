"""Networks saved and loaded: our folders, the published implementation's files, and what else weights lie in."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.models.official import PREPROCESS, official_names
from tests.support.networks import random_images, random_network

SEEN = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "order": "rgb", "class_names": ["a", "b", "c", "d", "e"]}


def saved(folder: Path, **config: Any) -> DynamicNetwork:
    net = random_network(**{"layers": 4, **config})
    net.preprocess = SEEN
    net.save_pretrained(folder)
    return net


def check_same(net: DynamicNetwork, again: DynamicNetwork) -> None:
    assert again.config == net.config and not again.training
    x = random_images(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x).logits, again(x).logits)


@pytest.mark.parametrize("inside", ["", "model", "model/model.safetensors"])
def test_save_and_load_folder_run_and_file(tmp_path: Path, inside: str) -> None:
    net = saved(tmp_path / "model", small_gate=True, cell=("mbconv", "sepconv3"))
    again = dynroute.from_pretrained(tmp_path / inside)
    check_same(net, again)
    assert again.preprocess == SEEN
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "preprocess.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "wanted a run folder .* save_pretrained, but config.json is missing"),
        ("model.safetensors", None, "but model.safetensors is missing"),
        ("config.json", '{"channels": 8', "config.json: not JSON"),
        ("config.json", "[]", "config.json: wanted a JSON object, got list"),
        ("config.json", '{"channels": 9, "cell": ["sepconv"]}', "not a network's configuration: channels: wanted"),
        ("config.json", '{"width": 9, "cell": ["sepconv"]}', "not a network's configuration: .*width"),
        ("model.safetensors", "garbage", "model.safetensors: not a torch checkpoint"),
        ("model.safetensors", "garbage {and more", "model.safetensors: a broken safetensors file"),
        ("preprocess.json", "x", "preprocess.json: not JSON"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as found:
        dynroute.from_pretrained(tmp_path)
    assert "\n" not in str(found.value)


def test_weights_that_do_not_fit_their_configuration(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "channels": 16}))
    with pytest.raises(
        ValueError, match=r"does not fit config.json: stem.pointwise2.weight is \[8, 16, 1, 1\], wanted"
    ):
        dynroute.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers": 7}))
    with pytest.raises(ValueError, match=r"\d+ parameters missing \['grid"):
        dynroute.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"a run without a model/ yet: .* checkpoints/ can be named"):
        dynroute.from_pretrained(tmp_path)


def test_files_have_the_users_permissions_and_say_when_they_cannot_be_read() -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        folder = Path(made) / "model"
        before = os.umask(0o027)
        try:
            saved(folder)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
        folder.chmod(0o755)
        (folder / "config.json").chmod(0o644)
        for name in ("model.safetensors", "preprocess.json"):
            (folder / name).chmod(0o600)
        user = os.geteuid()
        if user == 0:  # who may read everything
            os.seteuid(65534)
        else:
            (folder / "model.safetensors").chmod(0)
            (folder / "preprocess.json").chmod(0o644)
        try:
            wanted = "preprocess.json" if user == 0 else "model.safetensors"
            with pytest.raises(ValueError, match=rf"{wanted}: cannot be read \(Permission denied\)"):
                dynroute.from_pretrained(folder)
            if user == 0:
                with pytest.raises(ValueError, match=r"model.safetensors: cannot be read \(Permission denied\)"):
                    dynroute.models.reading.read_values(folder / "model.safetensors")
        finally:
            os.seteuid(user)


def test_without_preprocess_saving_warns_and_leaves_no_others(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.warns(UserWarning, match=r"no preprocess.json, as net.preprocess is None"):
        random_network().save_pretrained(tmp_path)
    assert not (tmp_path / "preprocess.json").exists()
    assert dynroute.from_pretrained(tmp_path).preprocess is None


OURS, THEIRS = "ours", "theirs"


def written(net: DynamicNetwork, path: Path, form: str, names: str) -> None:
    """Weights of the network in a file, under the names of either."""
    called = official_names(net) if names == THEIRS else {name: name for name in net.state_dict()}
    state = {called[name]: value for name, value in net.state_dict().items()}
    if form == "safetensors":
        return safetensors.torch.save_file(state, path)
    if form == "numpy":
        state = {name: value.numpy() for name, value in state.items()}
    prefix = {"module": "module.", "compiled": "_orig_mod.module.", "lightning": "model._orig_mod."}.get(form, "")
    state = {f"{prefix}{name}": value for name, value in state.items()}
    wholes = {
        "module": {"model": state, "optimizer": {"lr": 0.1}, "iteration": 7},
        "compiled": {"state_dict": state, "epoch": 3},
        "lightning": {"module": state},
        "numpy": {"model": state, "__author__": "them", "matching_heuristics": True},
    }
    torch.save(wholes.get(form, state), path)


@pytest.mark.parametrize("names", [OURS, THEIRS])
@pytest.mark.parametrize("form", ["bare", "module", "compiled", "lightning", "numpy", "safetensors"])
def test_files_of_all_forms(tmp_path: Path, form: str, names: str) -> None:
    net = random_network(layers=4, num_classes=7, small_gate=True)
    written(net, tmp_path / "weights.pth", form, names)
    again = dynroute.from_pretrained(tmp_path / "weights.pth", small_gate=True)
    check_same(net, again)
    assert again.preprocess == (PREPROCESS if names == THEIRS else None)
    if names == THEIRS:
        check_same(net, dynroute.load_official(tmp_path / "weights.pth", small_gate=True))
    else:
        with pytest.raises(ValueError, match="not a checkpoint of the published implementation"):
            dynroute.load_official(tmp_path / "weights.pth")


def test_a_submodule_that_was_compiled() -> None:
    net = random_network()
    state = {name.replace("grid.0.", "grid.0._orig_mod."): value for name, value in net.state_dict().items()}
    read = dynroute.models.weights.read_weights(state)
    assert read.state.keys() == net.state_dict().keys()


@pytest.mark.parametrize("cell", [*((op,) for op in dynroute.models.cell.CELL_OPS), ("mbconv", "sepconv")])
@pytest.mark.parametrize("gate", ["tanh", "fixed"])
def test_what_shapes_tell(cell: tuple[str, ...], gate: str) -> None:
    net = random_network(layers=4, num_classes=3, in_channels=4, cell=cell, gate=gate)
    fields = dynroute.models.weights.read_weights(net.state_dict()).fields
    wanted = {"layers": 4, "channels": 8, "num_classes": 3, "stem_width": 16, "in_channels": 4, "cell": cell}
    if gate == "fixed":
        wanted["gate"] = "fixed"
    if cell == ("dilconv",):  # dilation leaves no trace in shapes
        wanted["cell"] = ("sepconv1",)
    assert fields == wanted


def test_fields_that_a_file_does_not_say_are_given_others_refused(tmp_path: Path) -> None:
    net = random_network(layers=4, gate="sigmoid")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    check_same(net, dynroute.from_pretrained(tmp_path / "weights.pth", gate="sigmoid"))
    (tmp_path / "preprocess.json").write_text(json.dumps(SEEN))
    assert dynroute.from_pretrained(tmp_path / "weights.pth").preprocess == SEEN
    with pytest.raises(ValueError, match=r"weights.pth: layers is 4 there, got 8"):
        dynroute.from_pretrained(tmp_path / "weights.pth", layers=8)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


def put(path: Path, value: Any) -> None:
    torch.save(value, path) if not isinstance(value, bytes) else path.write_bytes(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Harmful(), "it holds .*mkdir, and only tensors, .*torch.save"),
        ({"model": {"stem.conv.weight": Harmful()}}, "it holds .*mkdir"),
        (torch.nn.Conv2d(1, 1, 1), "it holds torch.nn.modules.conv.Conv2d, and only tensors"),
        (pickle.dumps(Harmful()), "a plain pickle, which is not read, as it can run code; .*torch.save"),
        (pickle.dumps({"model": {}}, protocol=2), "a plain pickle"),
        (b"not a checkpoint", "not a torch checkpoint"),
        (b"", "not a torch checkpoint"),
        (b"PK\x03\x04 cut off", "not a torch checkpoint"),
        ([torch.zeros(1)], "wanted a state dict, bare or under 'model', 'state_dict', 'module', got list"),
        (
            {"weight": torch.zeros(1)},
            "no weights of a routed network: wanted names such as stem.conv.weight, .*'weight'",
        ),
        ({"model": {}}, "no weights of a routed network.*got nothing"),
    ],
)
def test_what_is_no_checkpoint_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "weights.pth", value)
    with pytest.raises(ValueError, match=rf"weights.pth: {message}") as found:
        dynroute.from_pretrained(tmp_path / "weights.pth")
    assert "\n" not in str(found.value) and not (tmp_path / "harm").exists()


def numpy_in(path: Path, values: Any) -> Any:
    torch.save({"a": values}, path)
    return dynroute.models.reading.read_values(path)["a"]


def test_numpy_arrays_are_read_by_their_numbers(tmp_path: Path) -> None:
    for values in (
        np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.float64(2.5),
        np.arange(3, dtype=">f8"), np.zeros((0, 3), np.float16), np.array([True, False]), np.array(7, dtype=np.uint8),
    ):  # fmt: skip
        read = numpy_in(tmp_path / "a.pth", values)
        np.testing.assert_array_equal(read.numpy(), values)
        assert read.numpy().dtype == values.dtype.newbyteorder("=")
    for values in (np.array([None]), np.array(["x"]), np.zeros(2, "f4,f4"), np.zeros(2, "c8")):
        with pytest.raises(ValueError, match="not a torch checkpoint: numpy numbers of"):
            numpy_in(tmp_path / "a.pth", values)


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_numpy_of_either_version(tmp_path: Path, core: bytes) -> None:
    values = {"a": np.arange(3.0), "b": np.float32(2)}
    torch.save(values, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    written = (tmp_path / "a.pth").read_bytes()
    for other in (b"numpy._core.", b"numpy.core."):
        written = written.replace(other, b"numpy." + core + b".")
    (tmp_path / "a.pth").write_bytes(written)
    read = dynroute.models.reading.read_values(tmp_path / "a.pth")
    assert read["a"].tolist() == [0.0, 1.0, 2.0] and read["b"].item() == 2.0


def test_official_checkpoints_that_are_not_whole(tmp_path: Path) -> None:
    net = random_network(layers=4, num_classes=19)
    names = official_names(net)
    state = {f"module.{names[k]}": v for k, v in net.state_dict().items()}
    counts = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    check_same(net, dynroute.load_official({"model": counts}))
    del state[f"module.{names['decoder.predictor.bias']}"]
    with pytest.raises(ValueError, match=r"state dict: does not fit its network: 1 parameters missing \['decoder.pred"):
        dynroute.load_official(state)
    with pytest.raises(ValueError, match="no such checkpoint"):
        dynroute.load_official(tmp_path / "none.pth")
