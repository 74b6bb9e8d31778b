"""The configuration tree: files, overrides and errors."""

from pathlib import Path

import pytest

from dynroute.train import Config, ConfigError, list_configs, load_config, train
from tests.support.runs import small


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
        ("data.kind=tfds", "data.kind: wanted one of folder, shards, scenes, got 'tfds'"),
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


# Every field of numbers or of names: a value out of range, what is wanted, what is got. Those of `data` are elsewhere.
RANGES = [
    ("model.in_channels=4", r"wanted 3 \(data.channels\), got 4"),
    ("data.range=[5, 5]", r"wanted low < high, got \[5.0, 5.0\]"),
    ("data.range=[0, .inf]", "wanted a finite number, got inf"),
    ("data.range=4095", "wanted a list of 2 numbers, got 4095"),
    ("optimiser.batch=0", "wanted 1 or more, got 0"),
    ("optimiser.accumulate=0", r"wanted a divisor of optimiser.batch \(8\), got 0"),
    ("optimiser.accumulate=3", r"wanted a divisor of optimiser.batch \(8\), got 3"),
    ("optimiser.lr=0", "wanted a positive number, got 0.0"),
    ("optimiser.lr=.nan", "wanted a finite number, got nan"),
    ("optimiser.gate_lr_factor=-1", "wanted 0 or more, got -1.0"),
    ("optimiser.momentum=2", "wanted 0 <= momentum < 1, got 2.0"),
    ("optimiser.momentum=-0.1", "wanted 0 <= momentum < 1, got -0.1"),
    ("optimiser.weight_decay=-1", "wanted 0 or more, got -1.0"),
    ("optimiser.weight_decay=inf", "wanted a finite number, got inf"),
    ("optimiser.clip_norm=0", "wanted a positive number, got 0.0"),
    ("schedule.steps=-1", "wanted 1 or more, got -1"),
    ("schedule.warmup_steps=-1", r"wanted 0 to 6000 \(schedule.steps\), got -1"),
    ("schedule.warmup_steps=6001", r"wanted 0 to 6000 \(schedule.steps\), got 6001"),
    ("schedule.warmup_factor=-1", "wanted 0 to 1, got -1.0"),
    ("schedule.power=-1", "wanted 0 or more, got -1.0"),
    ("budget.weight=-1", "wanted 0 or more, got -1.0"),
    ("budget.weight=.nan", "wanted a finite number, got nan"),
    ("budget.target=-0.1", "wanted 0 or more, got -0.1"),
    ("budget.full_mflops=0", "wanted a positive number or None, got 0.0"),
    ("budget.measure=flops", "wanted one of expected, real, got 'flops'"),
    ("budget.ramp=0", "wanted a share of training above 0, got 0.0"),
    ("budget.bridge=-1", "wanted a sum of alphas, 0 or more, got -1.0"),
    ("budget.start=0.9", r"budget.bridge_end: wanted 0 <= start < bridge_end <= 1, got 0.9, 0.8"),
    ("budget.bridge_end=1.5", r"budget.bridge_end: wanted 0 <= start < bridge_end <= 1, got 0.4, 1.5"),
    ("budget.knee=-1", "wanted an alpha, 0 or more, got -1.0"),
    ("train.bn=some", "wanted one of all, open, frozen, got 'some'"),
    ("train.bn=frozen", "wanted its folder in model.init"),
    ("train.sync_bn=1", "wanted true or false, got 1"),
    ("train.freeze=stem", "wanted a list of strings, got 'stem'"),
    ("train.class_weights=rare", "wanted one of balanced, enet, got 'rare'"),
    ("train.class_weights=[]", r"wanted balanced, enet, or numbers from 0 on, not all 0, got \(\)"),
    ("train.class_weights=[1, -1]", r"not all 0, got \(1.0, -1.0\)"),
    ("train.class_weights=[0, 0]", r"not all 0, got \(0.0, 0.0\)"),
    ("train.class_weights=[1, .nan]", "wanted a finite number, got nan"),
    ("train.class_weights=[1, many]", "wanted number, got 'many'"),
    ("evaluation.every=-1", "wanted 0 or more, got -1"),
    ("evaluation.precise_bn_batches=-1", "wanted 0 or more, got -1"),
    ("evaluation.flip=no thanks", "wanted true or false, got 'no thanks'"),
    ("evaluation.scales=[]", r"wanted at least one scale, such as \[1.0\], got \[\]"),
    ("evaluation.scales=[1, 0]", r"wanted positive numbers, got \[1.0, 0.0\]"),
    ("evaluation.scales=[.inf]", "wanted a finite number, got inf"),
    ("evaluation.max_images=0", "wanted 1 or more, got 0"),
    ("run.folder=''", "wanted a folder's name, got ''"),
    ("run.seed=-1", "wanted 0 to 4611686018427387903, got -1"),
    ("run.threads=0", "wanted 1 to 1024, or null, got 0"),
    ("run.threads=100000", "wanted 1 to 1024, or null, got 100000"),
    ("run.amp=half", "wanted one of off, bfloat16, float16, got 'half'"),
    ("run.amp=true", "wanted one of off, bfloat16, float16, got True"),
    ("run.bf16=true", "it is run.amp now: write amp: bfloat16 for true, and leave it out for false"),
    ("run.deterministic=1", "wanted true or false, got 1"),
    ("run.resume=yes", "wanted one of never, auto, always, got True"),
    ("train.ema=1", "wanted 0 <= decay < 1, got 1.0"),
    ("train.ema=-0.5", "wanted 0 <= decay < 1, got -0.5"),
    ("run.compile=2", "wanted true or false, got 2"),
    ("run.graph=2", "wanted true or false, got 2"),
    ("run.log_every=0", "wanted 1 or more, got 0"),
    ("run.checkpoint_every=0", "wanted 1 or more, got 0"),
    ("run.keep_checkpoints=1", "wanted 2 or more, got 1"),
    ("run.max_skipped=0", "wanted 1 or more, got 0"),
]
# Those that only training knows, before it has made the run's folder.
RANGES_OF_TRAINING = [
    ("model.name=resnet", "wanted one of .*, got 'resnet'"),
    ("model.num_classes=3", "3 classes, but the data set has 7"),
    ("model.channels=9", "wanted a positive multiple of 8, got 9"),
    ("model.layers=3", "wanted at least 4, got 3"),
    ("model.gate=relu", "wanted one of .*, got 'relu'"),
    ("model.stem_width=-8", "wanted a positive multiple of 8, got -8"),
    ("model.drop_prob=1", "wanted 0 <= drop_prob < 1, got 1.0"),
    ("model.init=nowhere", "nowhere"),
    ("train.freeze=[stem, gate]", "wanted parts of stem, init, grid, gates, decoder, or .*got 'gate'"),
    ("train.freeze=[stem, init, grid, decoder]", "stem, init, grid, decoder: nothing is left to train"),
    ("train.class_weights=[1, 2]", "wanted 7 numbers, one for each class, got 2"),
    ("run.device=meta", "wanted auto, cpu, cuda or cuda:N, got 'meta'"),
    ("run.device=mps", "wanted auto, cpu, cuda or cuda:N, got 'mps'"),
    ("run.device=tpu", "wanted auto, cpu, cuda or cuda:N, got 'tpu'"),
    ("run.device='cpu:x'", "wanted auto, cpu, cuda or cuda:N, got 'cpu:x'"),
    ("run.ops=fast", "wanted .*fast|fast.*wanted"),
]


@pytest.mark.parametrize(("override", "message"), RANGES, ids=[override for override, _ in RANGES])
def test_ranges(override: str, message: str) -> None:
    """One line that names the field, what was wanted and what was got."""
    with pytest.raises(ConfigError, match=message) as failed:
        load_config("camvid", [override])
    assert override.partition("=")[0] in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize(("override", "message"), RANGES_OF_TRAINING, ids=[o for o, _ in RANGES_OF_TRAINING])
def test_ranges_that_training_finds(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as failed:
        train(small(tmp_path / "run", override), quiet=True)
    assert override.split(".")[0] in str(failed.value) and "\n" not in str(failed.value)
    assert not (tmp_path / "run").exists()


def test_every_field_has_its_range() -> None:
    """A new field asks for one; these take any value of their type, or stand in `data`."""
    free = {"model.small_gate"}
    seen = {override.partition("=")[0] for override, _ in RANGES + RANGES_OF_TRAINING}
    fields = {
        f"{section}.{key}" for section, values in Config().to_dict().items() for key in values if section != "data"
    }
    assert fields - seen - free == set()


def test_a_configuration_made_in_python_is_checked(tmp_path: Path) -> None:
    config = small(tmp_path / "run")
    config.evaluation.max_images = 0
    with pytest.raises(ConfigError, match=r"evaluation.max_images: wanted 1 or more, got 0"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file, wanted a YAML file or one of camvid"):
        load_config("nowhere")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="wanted keys"):
        load_config(tmp_path / "list.yaml")
