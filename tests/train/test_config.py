"""The configuration tree: files, overrides and errors."""

from pathlib import Path

import pytest

from dynroute.train import Config, ConfigError, list_configs, load_config


@pytest.mark.parametrize("name", ["camvid", "camvid_budget", "cityscapes_raw_l16", "scenes_quick"])
def test_shipped_configs_load(name: str) -> None:
    assert name in list_configs()
    assert load_config(name).schedule.steps > 0


def test_published_recipe() -> None:
    config = load_config("cityscapes_raw_l16")
    assert (config.optimiser.lr, config.optimiser.momentum, config.optimiser.weight_decay) == (0.05, 0.9, 1e-4)
    assert config.data.short_sides == (512, 768, 1024, 1280, 1536, 2048) and config.data.crop == (768, 768)
    assert config.schedule.steps == 190_000 and config.evaluation.precise_bn_batches == 200


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    overrides = ["optimiser.lr=1e-2", "data.crop=[64, 96]", "model.small_gate=true", "run.threads=null"]
    config = load_config("camvid", overrides)
    assert config.optimiser.lr == 0.01
    assert config.data.crop == (64, 96) and config.model.small_gate is True and config.run.threads is None
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_empty_file_holds_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("data: {kind: scenes}\nmodel:\n")
    expected = Config()
    expected.data.kind = "scenes"
    assert load_config(tmp_path / "empty.yaml") == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1", r"optimizer: unknown key, did you mean 'optimiser'\?"),
        ("schedule.stepz=1", r"schedule.stepz: unknown key, did you mean 'steps'\?"),
        ("schedule.xyzzy=1", "schedule.xyzzy: unknown key; known here: steps"),
        ("schedule.steps=many", "schedule.steps: wanted integer, got 'many'"),
        ("schedule.steps=1.5", "schedule.steps: wanted integer, got 1.5"),
        ("schedule.steps=0", "schedule.steps: wanted 1 or more"),
        ("optimiser.lr=true", "optimiser.lr: wanted number, got True"),
        ("data.crop=[64]", r"data.crop: wanted a list of 2 integers, got \[64\]"),
        ("data.crop=[64, a]", r"data.crop\[1\]: wanted integer"),
        ("data.kind=tfds", "data.kind: wanted one of folder, scenes, got 'tfds'"),
        ("data.flip=3", "data.flip: wanted true or false"),
        ("optimiser=3", "optimiser: wanted keys below it"),
        ("optimiser.lr", "wanted key.sub=value"),
        ("data.root.x=1", "'root' is a value"),
        ("data.root=null", "data.root: wanted the folder"),
    ],
)
def test_errors(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("camvid", [override])


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file, wanted a YAML file or one of camvid"):
        load_config("nowhere")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="wanted keys"):
        load_config(tmp_path / "list.yaml")
