"""Alarms and honest headlines of `eval`, `bench` and `report`, of real networks with faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dynroute
from dynroute.cli import main
from dynroute.measure.results import Bench, RouteTimes
from tests.support.networks import random_network
from tests.support.routed import timed


def saved(folder: Path, net: dynroute.DynamicNetwork) -> str:
    net.preprocess = {"mean": [0.0] * 3, "std": [57.0] * 3, "order": "bgr"}
    return str(net.save_pretrained(folder))


def evaluated(tmp_path: Path, model: str, *options: str) -> dict[str, Any]:
    record = tmp_path / "eval.json"
    assert main(["eval", model, "--images", "8", "--backend", "reference", *options, "--json", str(record)]) == 0
    return json.loads(record.read_text())


def test_nodes_whose_gates_never_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = random_network(num_classes=7, layers=4)
    for layer, scale in ((1, 0), (2, 3), (3, 3)):
        gate = net.grid[layer][scale].gate
        torch.nn.init.zeros_(gate.fc.weight)
        torch.nn.init.constant_(gate.fc.bias, -1.0)
    found = evaluated(tmp_path, saved(tmp_path / "net", net), "--data", "scenes")
    alarm = next(alarm for alarm in found["alarms"] if alarm["kind"] == "dead_nodes")
    dead = alarm["numbers"]["closed"] + alarm["numbers"]["absent"]
    assert {(1, 4), (2, 32), (3, 32)} <= {tuple(place) for place in dead}
    assert dead == found["routes"]["closed"] + found["routes"]["absent"]
    assert "no image uses the scale 1/32" in alarm["meaning"]
    text = capsys.readouterr().out
    assert "yellow alarm: " in text and "at 1/32 layers 2 3" in text
    assert re.search(r"routes: \d different for 8 images, [\d.]+ bits of at most 3.0; \d+% take", text)


def test_a_network_whose_gates_are_all_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = random_network(num_classes=7, layers=4, gate_shift=-100.0)
    found = evaluated(tmp_path, saved(tmp_path / "net", net), "--data", "scenes")
    assert [alarm["kind"] for alarm in found["alarms"]] == ["all_closed"]
    assert "red alarm: the gates have collapsed: 0.0% of the grid's nodes are open" in capsys.readouterr().out


@pytest.mark.parametrize("different", [False, True])
def test_images_that_are_all_one(tmp_path: Path, different: bool) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "val").mkdir(parents=True)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for i in range(8):
        if different:
            picture = np.clip(rng.normal(128, 10 * i, (64, 64, 3)) + rng.normal(0, 60, 3), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"data/images/val/{i}.png")
        Image.fromarray(rng.integers(0, 7, (64, 64), dtype=np.uint8)).save(tmp_path / f"data/masks/val/{i}.png")
    model = saved(tmp_path / "net", random_network(num_classes=7, gate_shift=-0.2))
    found = evaluated(tmp_path, model, "--data", str(tmp_path / "data"))
    alarms = {alarm["kind"]: alarm for alarm in found["alarms"]}
    assert ("one_route" in alarms) == (not different)
    if different:
        assert found["routes"]["distinct"] > 1 and found["routes"]["entropy_bits"] > 0
    else:
        assert found["routes"]["distinct"] == 1 and found["routes"]["entropy_bits"] == 0
        assert "then a fixed network would do" in alarms["one_route"]["meaning"]


def benched(*rows: RouteTimes) -> Bench:
    return Bench("x", "backend cpu", True, 1, "cpu", "float32", 0, list(rows))


def test_bench_says_first_what_does_not_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = timed(1.29, 0.98), timed(0.8, 0.72, batch=8), timed(1.0, 1.0, batch=4)
    monkeypatch.setattr("dynroute.cli.bench.bench", lambda *_: benched(*rows))
    record = tmp_path / "bench.json"
    assert main(["bench", "dynamic_tiny", "--json", str(record)]) == 0
    text = capsys.readouterr().out
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines() if line[:3] in ("1, ", "8, ", "4, ")]
    assert [line[-3:] for line in lines] == [["98%", "129%", "-"], ["72%", "80%", "0.90"], ["100%", "100%", "-"]]
    assert "batch 4, own gates: no difference measured" in text
    assert text.count("skipping does not pay here") == 1
    assert "red alarm: at batch 1, own gates, routed takes 1.29 times as long as all open on this machine" in text
    found = json.loads(record.read_text())
    assert [alarm["kind"] for alarm in found["alarms"]] == ["skipping_slower"]
    assert Bench.from_json(found).results == list(rows)


def test_the_report_begins_with_alarms(tiny_run: Path, tmp_path: Path) -> None:
    """Ten steps close next to nothing, and on this machine, says its bench.json, skipping is slower."""
    bench = tiny_run / "bench.json"
    bench.write_text(json.dumps(benched(timed(1.29, 0.98, eager=5.0)).to_json()))
    out = tmp_path / "r.html"
    try:
        assert main(["report", str(tiny_run), "--images", "1", "--out", str(out)]) == 0
    finally:
        bench.unlink()
    text = out.read_text()
    first, last = text.index('<section class="alarms">'), text.index('<div class="tiles">')
    box = text[first:last]
    assert "routed takes 1.29 times as long as all open on this machine" in box
    assert "12.90 ms an image routed, 5.00 in eager PyTorch" in box
    assert "the budget&#x27;s target is missed".lower() in box.lower() and "35% of the space&#x27;s cost wanted" in box
    assert box.count('class="alarm red"') >= 3 and box.count("To try: ") == box.count('class="alarm ')
    assert "<b>0.76</b>" not in text and "of the saving shows" not in text
    said = re.search(r"cost wanted, (\d+)% left", box)
    row = re.search(r"Real cost of the space, MFLOPs</td>.*?([\d.]+)%</td>", text)
    assert said is not None and row is not None and abs(float(said[1]) - float(row[1])) <= 0.51
    assert "129%</b><span>of the all-open time, batch 1: slower" in text
    assert "Routes, by which paths are open: " in text and "bits of at most 2.6" in text
