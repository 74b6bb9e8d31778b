"""What a run starts from: other weights, as far as they fit; and crops of which BatchNorm has something to see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dynroute
from dynroute.cli import main
from dynroute.cli.target import load_target
from dynroute.data import Normalise, understood
from dynroute.models.official import official_names
from dynroute.train import ConfigError, load_config, train
from dynroute.train.checkpoint import read_checkpoint
from dynroute.train.start import check_statistics, make_network
from tests.support.networks import random_network
from tests.support.runs import SMALL, small

QUICK = [*SMALL, "schedule.steps=2", "run.checkpoint_every=1", "budget.weight=0", "evaluation.precise_bn_batches=0"]
OF_FOLDER = ["data.kind=folder", "model.layers=null", "model.drop_prob=null", "model.small_gate=null"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two steps on scenes, whose 7 classes it knows."""
    return train(load_config(None, [*QUICK, f"run.folder={tmp_path_factory.mktemp('start') / 'run'}"]), quiet=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of 4 classes, with one image to train on and one to validate on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, shape, most in (("images", (64, 64, 3), 256), ("masks", (64, 64), 4)):
            (tmp_path / f"data/{kind}/{split}").mkdir(parents=True)
            picture = Image.fromarray(rng.integers(0, most, shape, dtype=np.uint8))
            picture.save(tmp_path / f"data/{kind}/{split}/a.png")
    return tmp_path / "data"


def fine_tuned(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, init: Any, *overrides: str
) -> tuple[dynroute.models.DynamicNetwork, list[str]]:
    """A run of two steps by the command line: its network, and what it said of its weights."""
    settings = [*QUICK, *OF_FOLDER, f"data.root={data}", f"model.init={init}", *overrides]
    settings = ["train", "scenes_quick", "--set", *settings, "--run", str(folder)]
    assert main(settings) == 0
    said = [line.removeprefix("train: ") for line in capsys.readouterr().err.splitlines()]
    return dynroute.from_pretrained(folder), [line for line in said if line.startswith(("model.", "train."))]


FROZEN = "train.freeze=[stem, init, grid, decoder.merge]"


@pytest.mark.parametrize("init", ["", "checkpoints/step-0000002.pt"])
def test_from_a_run_to_other_classes(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], init: str
) -> None:
    net, said = fine_tuned(capsys, tmp_path / "run", data, run / init, FROZEN)
    where = run / (init if init.startswith("check") else "model/model.safetensors")
    assert said == [
        f"model.init: {where}: 442 of 444 tensors taken",
        "model.init: decoder.predictor: 7 classes there, 4 here: fresh",
        "train.freeze: 250 of 252 parameters stay as they are",
    ]
    before = dynroute.from_pretrained(run)
    assert net.config == type(net.config)(**{**vars(before.config), "num_classes": 4})
    for name, value in net.state_dict().items():
        assert torch.equal(value, before.state_dict().get(name)) != name.startswith("decoder.predictor"), name


def test_from_published_weights(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = random_network(layers=4, num_classes=19, small_gate=True)
    names = official_names(theirs)
    state = {f"module.{names[name]}": value.numpy() for name, value in theirs.state_dict().items()}
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, tmp_path / "Dynamic-A.pth")
    net, said = fine_tuned(
        capsys,
        tmp_path / "run",
        data,
        tmp_path / "Dynamic-A.pth",
        FROZEN,
        "model.name=dynamic_a_l16",
        "data.std=[57,57,57]",
    )
    assert said == [
        f"model.init: {tmp_path}/Dynamic-A.pth: 442 of 444 tensors taken",
        "model.init: decoder.predictor: 19 classes there, 4 here: fresh",
        "model.init: the file does not say small_gate: True, or model.small_gate",
        "model.init: data.std is (57.0, 57.0, 57.0) here, but was (1.0, 1.0, 1.0) there: its first layers will see "
        "other numbers than they know",
        "train.freeze: 250 of 252 parameters stay as they are",
    ]
    assert net.config == type(net.config)(**{**vars(theirs.config), "num_classes": 4})
    assert torch.equal(net.grid[1][0].gate.fc.weight, theirs.grid[1][0].gate.fc.weight)
    assert load_target(str(tmp_path / "Dynamic-A.pth"), small_gate=True).normalise == Normalise()
    # the recipe's own normalisation needs no word
    _, said = fine_tuned(
        capsys, tmp_path / "own", data, tmp_path / "Dynamic-A.pth", "data.std=[1,1,1]", "model.small_gate=true"
    )
    assert len(said) == 2


def made(folder: Path, init: Path, *overrides: str) -> tuple[dynroute.models.DynamicNetwork, list[str]]:
    config = small(folder, "model.layers=null", "model.drop_prob=null", f"model.init={init}", *overrides)
    return make_network(config, [f"class_{k}" for k in range(5)])


def saved(folder: Path, **config: Any) -> dynroute.models.DynamicNetwork:
    net = random_network(**{"layers": 4, **config})
    net.preprocess = {"mean": [103.53, 116.28, 123.675], "std": [57, 57, 57], "order": "bgr"}
    net.save_pretrained(folder)
    return net


@pytest.mark.parametrize(
    ("there", "overrides", "lines"),
    [
        ({}, [], []),
        (
            {},
            ["model.layers=5"],
            [
                "grid.3.0.gate.fc: [1, 4, 1, 1] there, [2, 4, 1, 1] here: fresh",
                "grid.3.0.down, grid.3.1.up, grid.3.1.down, grid.3.2.up, grid.3.2.down, "
                "grid.3.3.up and 1 more: not there",
                "model.layers is 5 here, but was 4 there",
            ],
        ),
        ({"layers": 5}, ["model.layers=4"], ["not here: left out"]),
        ({"in_channels": 4}, [], ["stem.conv.weight: 4 channels of images there, 3 here: fresh"]),
        ({"gate": "fixed"}, ["model.gate=tanh"], ["init.gate", "not there: fresh"]),
        ({}, ["model.gate=fixed"], ["not here: left out", "model.gate is 'fixed' here"]),
    ],
)  # fmt: skip
def test_what_fits_is_taken(tmp_path: Path, there: dict[str, Any], overrides: list[str], lines: list[str]) -> None:
    before = saved(tmp_path / "model", **there)
    net, said = made(tmp_path / "run", tmp_path / "model", *overrides)
    text = "\n".join(said[1:])
    assert all(line in text for line in lines) and (lines or not text), text
    old, new = before.state_dict(), net.state_dict()
    fitting = [name for name in new if name in old and old[name].shape == new[name].shape]
    assert said[0].endswith(f"model.safetensors: {len(fitting)} of {len(new)} tensors taken")
    assert all(torch.equal(new[name], old[name]) for name in fitting)
    assert net.training and net.preprocess is not None and len(net.preprocess["class_names"]) == 5


@pytest.mark.parametrize(
    ("there", "overrides", "message"),
    [
        (
            {"channels": 16},
            ["model.channels=8"],
            r"only 86 of 418 tensors of stem, init cell and grid fit; channels is 16 there, 8 here",
        ),
        (
            {},
            ["model.channels=16", "model.stem_width=32"],
            "channels is 8 there, 16 here; stem_width is 16 there, 32 here",
        ),
        ({}, ["model.layers=3"], "layers: wanted at least 4"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, there: dict[str, Any], overrides: list[str], message: str
) -> None:
    saved(tmp_path / "model", **there)
    with pytest.raises(ConfigError, match=rf"^model.init: .*{message}"):
        made(tmp_path / "run", tmp_path / "model", *overrides)


def test_home_and_weights_that_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(random_network(layers=4).state_dict(), tmp_path / "weights.pth")
    _, said = made(tmp_path / "run", Path("~/weights.pth"), "model.gate=sigmoid")
    assert said == [
        f"model.init: {tmp_path}/weights.pth: 444 of 444 tensors taken",
        "model.init: the file does not say small_gate: False, or model.small_gate",
        "model.init: nothing says how its images became its input: data.mean, data.std and data.order should be as "
        "then",
    ]


def test_a_run_goes_on_without_what_it_began_from(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "model", tmp_path / "init")
    fine_tuned(capsys, tmp_path / "run", data, tmp_path / "init", FROZEN)
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "init")
    for path in (tmp_path / "run/checkpoints").glob("step-0000002*"):
        path.unlink()
    said = main(["train", str(tmp_path / "run/config.yaml"), "--resume"])
    assert said == 0 and "tensors taken" not in capsys.readouterr().err
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before


def test_a_network_saved_again_evaluates_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its normalisation goes with it; where it is missing, commands ask for it."""
    dynroute.from_pretrained(run / "model").save_pretrained(tmp_path / "again")
    results = []
    for model in (run / "model", tmp_path / "again", run / "checkpoints/step-0000002.pt"):
        argv = ["eval", str(model), "--data", "scenes", "--images", "4", "--json", str(tmp_path / "eval.json")]
        assert main(argv) == 0
        results.append(json.loads((tmp_path / "eval.json").read_text()))
    assert results[0]["miou"] == results[1]["miou"] and results[0]["iou"].keys() == results[1]["iou"].keys()
    assert results[0]["real_mflops"] == results[1]["real_mflops"]
    (tmp_path / "again/preprocess.json").unlink()
    (tmp_path / "photo.png").write_bytes(b"")
    for argv in (
        ["eval", str(tmp_path / "again"), "--data", "scenes"],
        ["segment", str(tmp_path / "again"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert main(argv) != 0
        said = capsys.readouterr().err.strip()
        assert "again: no preprocess.json, so nothing says how images become this network's input; put that of " in said
        assert "\n" not in said and not (tmp_path / "out").exists()
    (tmp_path / "again/preprocess.json").write_text('{"mean": [1, 2, 3], "std": [1, 1, 1], "order": "rgb"}')
    assert main(["eval", str(tmp_path / "again"), "--data", "scenes", "--images", "1"]) == 0


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({}, "preprocess: wanted mean, std, order, as training writes them"),
        ({"mean": [1, 2, 3], "std": [1, 1, 1], "order": "xyz"}, "order must be"),
        ({"mean": [1, 2, 3], "std": [1, 1, 1], "order": "rgb", "gamma": 2}, "gamma"),
        ({"mean": [1, 2, 3], "std": [1, 1, 1], "order": "rgb", "class_names": ["a"]}, "1 class names, but .* has 5"),
        ({"mean": [1.0], "std": [1.0], "order": "rgb"}, "channels"),
    ],
)
def test_preprocess_that_makes_no_sense(tmp_path: Path, preprocess: dict[str, Any], message: str) -> None:
    saved(tmp_path)
    (tmp_path / "preprocess.json").write_text(json.dumps(preprocess))
    with pytest.raises(ValueError, match=message):
        load_target(str(tmp_path)).normalise  # noqa: B018


def test_a_checkpoint_says_what_network_it_is_of(run: Path) -> None:
    state = read_checkpoint(run / "checkpoints/step-0000002.pt")
    net = dynroute.from_pretrained(run / "checkpoints/step-0000002.pt")
    assert net.config.layers == state["network"]["layers"] == 4 and net.config.drop_prob == 0.3
    normalise, names = understood(net.preprocess, "")
    assert normalise.std == (57.0, 57.0, 57.0) and names is not None and names[0] == "ground"


def test_a_checkpoint_with_an_average_is_the_average(tmp_path: Path) -> None:
    folder = train(load_config(None, [*QUICK, f"run.folder={tmp_path}/run", "train.ema=0.9"]), quiet=True)
    net, left = (dynroute.from_pretrained(folder / at) for at in ("checkpoints/step-0000002.pt", "model"))
    for (name, got), wanted in zip(net.named_parameters(), left.parameters()):
        assert torch.equal(got, wanted), name


TOO_SMALL = r"makes {} a map of 1x1, and of one sample BatchNorm then sees one value"


@pytest.mark.parametrize(
    ("overrides", "crop", "samples", "message"),
    [
        ({}, (32, 32), 1, TOO_SMALL.format("a path down at 1/16")),
        ({"gate": "fixed"}, (9, 32), 1, TOO_SMALL.format("a path down at 1/16")),
        ({}, (32, 33), 1, None),
        ({}, (32, 32), 2, None),
        ({"small_gate": True}, (160, 224), 1, TOO_SMALL.format("a gate at 1/32")),
        ({"small_gate": True}, (160, 256), 1, None),
        ({"small_gate": True}, (32, 32), 2, None),
        ({"bn": "open"}, (32, 32), 8, TOO_SMALL.format("a path down at 1/16") + ".*another train.bn"),
        ({"bn": "open"}, (64, 32), 8, None),
        ({"bn": "frozen"}, (32, 32), 1, None),
        ({"freeze": ("init", "grid")}, (32, 32), 1, TOO_SMALL.format("the decoder")),
        ({"freeze": ("init", "grid", "decoder.merge")}, (32, 32), 1, None),
    ],
)
def test_maps_that_leave_batchnorm_one_value(
    overrides: dict[str, Any], crop: tuple[int, int], samples: int, message: str | None
) -> None:
    settings = dict(overrides)
    bn, freeze = settings.pop("bn", "all"), settings.pop("freeze", ())
    net = random_network(layers=4, **settings)
    net.bn = bn
    net.freeze(*freeze).train()
    images = torch.zeros(1 if bn == "open" else samples, 3, *crop)
    if message is None:
        check_statistics(net, crop, samples)
        net(images, progress=0.0)  # PyTorch agrees
        return
    with pytest.raises(ConfigError, match=message):
        check_statistics(net, crop, samples)
    if bn == "all":
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net(images, progress=0.0)


def test_training_finds_it_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^data.crop: \[32, 32\] makes a path down .* or more samples \(optimiser.batch"
    ):
        train(small(tmp_path / "run", "data.crop=[32, 32]", "optimiser.accumulate=2"), quiet=True)
    assert not (tmp_path / "run").exists()
