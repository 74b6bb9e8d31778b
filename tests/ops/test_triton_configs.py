"""Which cut is found: tuned, checked in, by rule; and the files that cuts lie in."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynroute import ops
from dynroute.ops.triton import configs, launch
from dynroute.ops.triton.cuts import FORMAT, NAMES, Cut, Entry, Key, read_cuts, save_cuts, write_cuts
from tests.support import cases

F16 = torch.float16
KEY = Key("transform", 64, F16, 80)
OTHER = Cut(16, 16, 16, 2, 4)  # of no table


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the tuned file would be; the test begins and ends without one in force."""
    path = tmp_path / "cache" / "triton.json"
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", str(path))
    configs.load_tuning(again=True)
    yield path
    configs.forget_tuning()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: Path) -> Iterator[Path]:
    """A checked-in table of the test's own."""
    path = tmp_path / "table.json"
    monkeypatch.setattr(configs, "TABLE", path)
    configs._table.cache_clear()
    yield path
    configs._table.cache_clear()


def test_the_table_has_all_that_is_asked_for() -> None:
    """In every class and type, a cut for sm_80 and what is above; and whether a GPU has measured it is said."""
    entries = read_cuts(configs.TABLE)
    keys = {entry.key for entry in entries}
    for op in (*configs.OPERATORS, *configs.FAMILIES):
        for dtype in NAMES.values():
            assert {key.channels for key in keys if key[:1] == (op,) and key[2:] == (dtype, 80)} == set(configs.CLASSES)
    assert {key.arch for key in keys} <= {80, 86, 89, 90, 100, 120}
    assert {entry.cut.num_warps for entry in entries} <= {4, 8}
    assert "not measured" in json.loads(configs.TABLE.read_text())["basis"]
    for entry in entries:
        assert entry.measured is None or {"device", "ms", "before_ms"} <= set(entry.measured)


def test_lookup_order(tuned: Path, table: Path) -> None:
    by_80, by_86 = Cut(64, 16, 16), Cut(128, 16, 16)
    write_cuts(table, [Entry(KEY, by_80), Entry(KEY._replace(arch=86), by_86)])
    for arch, wanted in ((80, by_80), (82, by_80), (86, by_86), (90, by_86), (120, by_86)):
        assert configs.find("transform", 64, F16, arch) == wanted  # the nearest that is not above
    assert configs.find("transform", 40, F16, 80) == by_80  # the next class
    rule = configs.by_rule(KEY._replace(arch=75))
    assert configs.find("transform", 64, F16, 75) == rule not in (by_80, by_86)  # none below
    assert configs.find("transform", 64, torch.float32, 80) == configs.by_rule(KEY._replace(dtype=torch.float32))
    save_cuts(tuned, [Entry(KEY, OTHER, {"ms": 1.0})], [KEY])
    assert configs.find(*KEY) == by_80  # read once
    assert configs.load_tuning(again=True) == configs.Tuning(tuned, 1)
    assert configs.find(*KEY) == OTHER
    tuned.unlink()
    assert configs.find(*KEY) == OTHER  # asked at every launch: kept
    # for just these channels and this architecture
    assert configs.find("transform", 40, F16, 80) == by_80 and configs.find("transform", 64, F16, 86) == by_86
    configs.forget_tuning()
    assert configs.find(*KEY) == by_80 and configs.load_tuning().path is None


def test_classes_of_channels() -> None:
    assert [configs.class_of(c) for c in (1, 16, 17, 64, 65, 512, 4096)] == [16, 16, 32, 64, 128, 512, 512]


def test_the_rule_knows_every_kernel() -> None:
    for op in (*configs.OPERATORS, *configs.FAMILIES):
        for channels in (8, 300):
            cut = configs.by_rule(Key(op, channels, torch.float32, 70))
            assert min(cut[:3]) >= 16 and cut.num_warps in (4, 8)


def test_the_architecture_is_the_devices_or_what_is_assumed(tuned: Path) -> None:
    here = configs.architecture()
    if launch.interpreted():
        assert here == configs.DEFAULT_ARCH
    else:
        major, minor = torch.cuda.get_device_capability()
        assert here == 10 * major + minor
    assert configs.find("sepconv", 64, F16) == configs.find("sepconv", 64, F16, here)
    with configs.assume(75):
        assert configs.architecture() == 75
        assert configs.find("sepconv", 64, F16) == configs.find("sepconv", 64, F16, 75)
    assert configs.architecture() == here


def test_operators_are_launched_with_what_is_found(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    device = "cpu" if launch.interpreted() else "cuda"
    args = [tensor.to(device) for tensor in cases.transform(1, 16, 6, 5, 16)]
    key = Key("transform", 16, torch.float32, configs.architecture())
    used: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            def go(*values: Any, **named: Any) -> None:
                used.append(named)
                self.kernel[grid](*values, **named)

            return go

    monkeypatch.setattr(launch, "elsewhere", Recorder)
    before = ops.transform(*args, backend="triton")
    save_cuts(tuned, [Entry(key, OTHER)], [key])
    configs.load_tuning(again=True)
    torch.testing.assert_close(ops.transform(*args, backend="triton"), before)
    with configs.using(key, Cut(32, 16, 16)):
        torch.testing.assert_close(ops.transform(*args, backend="triton"), before)
    ops.transform(*args, backend="triton")
    blocks = [(one["BLOCK_M"], one["num_warps"], one["num_stages"]) for one in used]
    assert blocks[1:] == [(16, 2, 4), (32, 4, 3), (16, 2, 4)] and blocks[0] != blocks[1]


def test_round_trip(tuned: Path) -> None:
    """Measurements are merged; what was measured on another architecture stays."""
    measured = {"device": "a GPU", "ms": 0.5, "before_ms": 1.0, "versions": {"triton": "3.6.0"}, "command": ["bench"]}
    first, second = Entry(KEY, OTHER, measured), Entry(KEY._replace(arch=90, dtype=torch.bfloat16), Cut(64, 64, 32))
    assert read_cuts(tuned) == []
    save_cuts(tuned, [first], [KEY])
    save_cuts(tuned, [second], [second.key])
    assert read_cuts(tuned) == [first, second]
    save_cuts(tuned, [], [KEY])  # measured again, and the checked-in cut was best
    assert read_cuts(tuned) == [second]
    assert [file.name for file in tuned.parent.iterdir()] == [tuned.name]


def broken(**changes: Any) -> str:
    whole = {**KEY._asdict(), "dtype": "float16", "cut": OTHER._asdict(), "measured": None}
    entry = {name: value for name, value in {**whole, **changes}.items() if value != "gone"}
    return json.dumps({"format": FORMAT, "entries": [entry]})


BROKEN = [
    ("notes", "not JSON"),
    ("[1]", "wanted an object with format"),
    ('{"format": "dynroute tuning 1"}', "wanted an object with format"),
    (json.dumps({"format": FORMAT}), "entries: wanted a list"),
    (json.dumps({"format": FORMAT, "entries": [3]}), r"entries\[0\]: wanted an object"),
    (broken(op=3), r"entries\[0\]: op: wanted an operator's name, got 3"),
    (broken(op="gone"), r"entries\[0\]: 'op' is missing"),
    (broken(channels=0), r"entries\[0\]: channels: wanted a whole number from 1 to \d+, got 0"),
    (broken(dtype="float64"), r"entries\[0\]: dtype: wanted one of float32, .*, got 'float64'"),
    (broken(arch="sm_80"), r"entries\[0\]: arch: wanted a whole number from 1 to \d+, got 'sm_80'"),
    (broken(cut=[64, 64]), r"entries\[0\]: cut, measured: wanted objects"),
    (broken(cut={**OTHER._asdict(), "block_n": 48}), r"entries\[0\]: block_n: wanted a power of two, got 48"),
    (broken(cut={**OTHER._asdict(), "num_warps": True}), r"entries\[0\]: num_warps: wanted a whole number"),
    (broken(measured=7), r"entries\[0\]: cut, measured: wanted objects"),
    (broken()[:-2] + ", " + json.dumps(json.loads(broken())["entries"][0]) + "]}", r"entries\[1\]: stands there twice"),
]


@pytest.mark.parametrize("text, fault", BROKEN, ids=[fault for _, fault in BROKEN])
def test_a_broken_file(text: str, fault: str, tuned: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line that names it; nothing of it is in force, it is never written over."""
    tuned.parent.mkdir()
    tuned.write_text(text)
    with pytest.raises(ValueError, match=fault) as error:
        save_cuts(tuned, [Entry(KEY, OTHER)], [KEY])
    assert str(error.value).startswith(f"{tuned}: ") and tuned.read_text() == text
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        found = configs.load_tuning(again=True)
    assert found.path == tuned and found.entries == 0 and found.reason == str(error.value)
    (record,) = caplog.records
    assert str(tuned) in record.getMessage() and "\n" not in record.getMessage()
    assert configs.find(*KEY) == configs.checked_in(KEY)


def test_switched_off(tuned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_cuts(tuned, [Entry(KEY, OTHER)], [KEY])
    monkeypatch.setenv("DYNROUTE_TUNING", "off")
    assert configs.tuning_file() == tuned  # what is named counts
    monkeypatch.setenv("DYNROUTE_TRITON_TUNING", "off")
    assert configs.tuning_file() is None
    assert configs.load_tuning(again=True).path is None and configs.find(*KEY) != OTHER
    monkeypatch.delenv("DYNROUTE_TRITON_TUNING")
    assert configs.tuning_file() is None  # as the CPU's is off
    monkeypatch.setenv("DYNROUTE_TUNING", str(tmp_path / "cpu.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert configs.tuning_file() == tmp_path / "dynroute" / "triton_tuning.json"
