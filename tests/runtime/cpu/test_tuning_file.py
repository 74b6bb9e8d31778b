"""The tuning file is used where it holds, and never stops a run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

import dynroute
from dynroute import planner
from dynroute.native import planner as native
from dynroute.planner import Entry, Shape
from dynroute.runtime.cpu import tuning_file
from tests.support.networks import random_images, random_network

pytestmark = [
    pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not())),
    pytest.mark.usefixtures("no_tuning"),
]
SHAPE = Shape(2, 64, 64, 32, 48)


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tuning file would be."""
    path = tmp_path / "cache" / "tuning.json"
    monkeypatch.setenv("DYNROUTE_TUNING", str(path))
    return path


def entry(shape: Shape = SHAPE, **changes: object) -> Entry:
    """One of this machine, whose plan is not the model's."""
    whole = Entry(shape, planner.machine(), False, 3, 8, 24, 2, 2.0, 1.0, dynroute.__version__)
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_tuning_file_round_trip(tuning: Path) -> None:
    model = planner.plan(2, 64, 64, 32, 48)
    other = Shape(1, 8, 16, 5, 9, 2)
    assert planner.read_tuning(tuning) == []
    planner.save_tuning(tuning, [entry()], [SHAPE])
    planner.save_tuning(tuning, [entry(other, fused=None)], [other])  # merged: what was measured before stays
    assert {e.shape for e in planner.read_tuning(tuning)} == {SHAPE, other}
    assert planner.read_tuning(tuning)[0] == entry()
    assert [f.name for f in tuning.parent.iterdir()] == ["tuning.json"]

    assert planner.load_tuning(again=True) == planner.Tuning(tuning, used=2)
    plan = planner.plan(2, 64, 64, 32, 48)
    assert (plan.fused, plan.step_rows, plan.strip, plan.tile_pixels) == (False, 3, 8, 24)
    planner.save_tuning(tuning, [], [SHAPE])  # measured again, and the model's was best
    assert [e.shape for e in planner.read_tuning(tuning)] == [other]
    assert planner.load_tuning().used == 2 and planner.plan(2, 64, 64, 32, 48) == plan  # read once
    assert planner.load_tuning(again=True).used == 1 and planner.plan(2, 64, 64, 32, 48) == model


def test_the_first_runtime_reads_the_file(tuning: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner.save_tuning(tuning, [entry()], [SHAPE])
    monkeypatch.setattr(tuning_file, "_tuning", None)  # as in a new process
    dynroute.optimize(random_network(layers=4), backend="cpu")
    assert planner.load_tuning().used == 1
    assert planner.plan(2, 64, 64, 32, 48).strip == 8
    monkeypatch.setenv("DYNROUTE_TUNING", "off")
    assert planner.load_tuning(again=True).path is None
    assert planner.plan(2, 64, 64, 32, 48).strip != 8


def test_default_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNROUTE_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert planner.tuning_file() == tmp_path / "dynroute" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert planner.tuning_file() == tmp_path / ".cache" / "dynroute" / "tuning.json"
    found = planner.load_tuning(again=True)
    assert found.used == 0 and "no such file" in str(found.reason)


def test_entries_of_other_machines_are_ignored_and_kept(tuning: Path) -> None:
    model, here = planner.plan(2, 64, 64, 32, 48), planner.machine()
    others = [entry(machine={**here, "isa": "other"}), entry(machine={**here, "l2_bytes": 12345})]
    planner.save_tuning(tuning, others, [])
    found = planner.load_tuning(again=True)
    assert (found.used, found.ignored) == (0, 2)
    assert found.reason == f"2 ignored: for other, not {here['isa']}; for other cache sizes"
    assert planner.plan(2, 64, 64, 32, 48) == model
    planner.save_tuning(tuning, [entry()], [SHAPE])
    assert len(planner.read_tuning(tuning)) == 3
    found = planner.load_tuning(again=True)
    assert (found.used, found.ignored) == (1, 2) and found.reason is not None


def broken_files() -> dict[str, bytes]:
    """A word of what is said about it -> contents that are no tuning file."""

    def one(**changes: object) -> bytes:
        machine = {"isa": "x", "l1_bytes": 1, "l2_bytes": 1, "l3_bytes": 1}
        shape = {"stages": 2, "c_in": 8, "c_out": 8, "h_out": 4, "w_out": 4, "stride": 1}
        whole = {"shape": shape, "machine": machine, "fused": None, "step_rows": 1, "strip": 1, "tile_pixels": 1}
        whole |= {"threads": 1, "model_ms": 1.0, "ms": 1.0, "version": "0", **changes}
        return json.dumps({"format": planner.TUNING_FORMAT, "entries": [whole]}).encode()

    return {
        "not JSON": b'{"format": ',
        "can't decode": b"\xff\xfe\x00",
        "format": b"[1, 2]",
        "entries: wanted a list": json.dumps({"format": planner.TUNING_FORMAT, "entries": 3}).encode(),
        "strip": one(strip=5),
        "step_rows": one(step_rows=True),
        "tile_pixels": one(tile_pixels=10**6),
        "fused": one(fused=1),
        "shape": one(shape=None),
        "h_out": one(shape={"stages": 2, "c_in": 8, "c_out": 8}),
        "stages": one(shape={"stages": 9, "c_in": 8, "c_out": 8, "h_out": 4, "w_out": 4, "stride": 1}),
        "isa": one(machine={}),
    }


@pytest.mark.parametrize("fault, content", list(broken_files().items()))
def test_broken_file_is_one_warning(
    fault: str, content: bytes, tuning: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.parent.mkdir()
    tuning.write_bytes(content)
    monkeypatch.setattr(tuning_file, "_tuning", None)
    model = planner.plan(2, 64, 64, 32, 48)
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        for _ in range(2):
            dynroute.optimize(random_network(layers=4), backend="cpu")
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert str(tuning) in line and fault in line and "\n" not in line
    assert planner.load_tuning().used == 0 and fault in str(planner.load_tuning().reason)
    assert planner.plan(2, 64, 64, 32, 48) == model
    with pytest.raises(ValueError, match=tuning.stem):
        planner.save_tuning(tuning, [entry()], [SHAPE])
    assert tuning.read_bytes() == content


def test_unreadable_file_is_a_warning_too(tuning: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuning.mkdir(parents=True)
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert planner.load_tuning(again=True).reason is not None
    assert len(caplog.records) == 1


def test_without_the_planner_runs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_find", lambda: None)
    monkeypatch.setattr(tuning_file, "_tuning", None)
    net, images = random_network(layers=4), random_images(1, 64, 64)
    assert dynroute.optimize(net, backend="cpu")(images).logits.shape == (1, 5, 64, 64)
    assert "pybind11" in str(planner.load_tuning().reason)
    with pytest.raises(RuntimeError, match="pybind11"):
        planner.plan(2, 8, 8, 8, 8)
    monkeypatch.undo()  # before the planner is wanted again to forget
