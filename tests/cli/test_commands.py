"""Every command on a tiny run: what it prints, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute import planner
from dynroute.cli import COMMANDS, main
from dynroute.native import library

PROVENANCE = {"seed", "versions", "machine", "command", "commit"}


def test_train_leaves_a_whole_run(tiny_run: Path) -> None:
    for name in (
        "config.yaml",
        "checkpoints/step-0000010.pt",
        "checkpoints/step-0000010.json",
        "log.jsonl",
        "eval.json",
        "model/config.json",
        "model/model.safetensors",
    ):
        assert (tiny_run / name).is_file(), name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and f"dynroute {command}" in text and "--json" in text


def test_eval_agrees_with_training_and_between_backends(tiny_run: Path, tmp_path: Path) -> None:
    trained = json.loads((tiny_run / "eval.json").read_text())
    found = {}
    for backend in ("auto", "reference", "eager"):
        out = tmp_path / f"{backend}.json"
        assert main(["eval", str(tiny_run), "--backend", backend, "--batch", "2", "--json", str(out)]) == 0
        found[backend] = json.loads(out.read_text())
        assert found[backend].keys() >= PROVENANCE
        assert found[backend]["pixel_accuracy"] == pytest.approx(trained["pixel_accuracy"], abs=1e-3)
        assert found[backend]["real_mflops"] == pytest.approx(trained["real_mflops"], rel=1e-3)
    assert 0 < found["reference"]["shares"]["executed_macs"] < 1.5
    assert found["auto"]["executed_macs"] == pytest.approx(found["reference"]["executed_macs"], rel=1e-3)
    assert "executed_macs" not in found["eager"]


def test_eval_with_bfloat16_storage(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = json.loads((tiny_run / "eval.json").read_text())
    out = tiny_run / "bf16.json"
    assert main(["eval", str(tiny_run), "--storage", "bfloat16", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    out.unlink()
    assert "stored as bfloat16" in capsys.readouterr().out
    assert found["pixel_accuracy"] == pytest.approx(trained["pixel_accuracy"], abs=0.02)
    assert main(["eval", str(tiny_run), "--storage", "bfloat16", "--backend", "eager"]) != 0
    assert "storage: bfloat16 wants the cpu backend" in capsys.readouterr().err


def test_eval_on_a_folder(tiny_run: Path, folder_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tiny_run / "model"), "--data", str(folder_data)]) == 0
    assert "checkers" in capsys.readouterr().out


def test_segment_writes_overlay_and_map(tiny_run: Path, folder_data: Path, tmp_path: Path) -> None:
    out, record = tmp_path / "out", tmp_path / "segment.json"
    images = folder_data / "images/val"
    assert main(["segment", str(tiny_run), str(images), "--out", str(out), "--json", str(record)]) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"p{i}_{k}.png" for i in range(3) for k in ("classes", "overlay")
    )
    labels = np.asarray(Image.open(out / "p0_classes.png"))
    assert labels.shape == (48, 64) and labels.max() < 7
    assert Image.open(out / "p0_overlay.png").size == (64, 48)
    pixels = json.loads(record.read_text())["images"][0]["pixels"]
    assert sum(pixels.values()) == pytest.approx(1.0, abs=1e-4)


def test_flops_counts_by_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "flops.json"
    assert main(["flops", "dynamic_tiny", "--size", "64x96", "--json", str(record)]) == 0
    text = capsys.readouterr().out
    assert "layer 5" in text and "1/32" in text
    found = json.loads(record.read_text())
    sample = found["samples"][0]
    assert sample["executed_mmacs"] == sample["dense"]["executed_mmacs"]
    parts = np.asarray(found["executed_nodes_mmacs"]["values"])
    space = parts[..., 1:].sum() - parts[0, :, 1].sum()
    assert space == pytest.approx(sample["executed_space_mmacs"])


def test_flops_with_less_open_costs_less(tiny_run: Path, folder_data: Path, tmp_path: Path) -> None:
    def real(*extra: str) -> tuple[float, float]:
        record = tmp_path / "flops.json"
        assert main(["flops", str(tiny_run), *extra, "--json", str(record)]) == 0
        sample = json.loads(record.read_text())["samples"][0]
        return sample["real_mflops"], sample["executed_mmacs"]

    full, unet = real("--size", "64x64"), real("--size", "64x64", "--gates", "unet")
    assert unet[0] < full[0] and unet[1] < full[1]
    common = real("--size", "64x64", "--gates", str(tiny_run))
    assert common[0] <= full[0]
    own = real("--images", str(folder_data / "images/val"))
    assert own[0] > 0


def test_flops_published_decoder_differs_where_the_image_is_not_square(tmp_path: Path) -> None:
    costs = []
    for extra in ([], ["--published-decoder"]):
        record = tmp_path / "flops.json"
        assert main(["flops", "dynamic_tiny", "--size", "64x128", *extra, "--json", str(record)]) == 0
        costs.append(json.loads(record.read_text())["samples"][0]["parts"]["decoder"])
    assert costs[1] == pytest.approx(costs[0] / 2)


def test_bench_of_a_run_and_of_random_patterns(tiny_run: Path, tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    assert main(["bench", str(tiny_run), "--repeats", "2", "--batch", "1", "4", "--json", str(record)]) == 0
    rows = json.loads(record.read_text())["results"]
    assert [row["batch"] for row in rows] == [1, 4]
    options = ["--size", "64x64", "--repeats", "2", "--batch", "2", "--threads", "1"]
    assert main(["bench", "dynamic_tiny", *options, "--json", str(record)]) == 0
    patterns = json.loads(record.read_text())
    assert patterns["threads"] == 1 and patterns["seed"] == 0
    shares = [row["open_nodes"] for row in patterns["results"]]
    assert len(shares) == 4 and shares == sorted(shares) and shares[-1] == 1.0
    for row in rows + patterns["results"]:
        assert row["ms_per_image"].keys() == {"all_open", "routed", "eager"}
        assert row["realised_share"] == pytest.approx(row["time_ratio"] / row["work_ratio"])
    assert patterns["results"][-1]["work_ratio"] == 1.0
    assert patterns["results"][0]["work_ratio"] > 1.2


def test_doctor_gives_a_reason_for_what_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    record = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(record)]) == 0
    found = json.loads(record.read_text())
    assert found["backends"]["reference"] is None
    assert found["backends"]["cuda"] and found["backends"]["triton"]
    assert (found["native"] is None) == bool(found["native_reason"])
    assert found["operators"]["sepconv"]["reference"] is None and found["operators"]["sepconv"]["triton"]
    taken = found["auto"]["cpu"]
    assert f"takes {taken['backend']} for a network on the CPU: {taken['reason']}" in capsys.readouterr().out


needs_planner = pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not()))


@pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
def test_bench_of_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "train.json"
    options = ["--train", "--size", "64x64", "--batch", "4", "--repeats", "2", "--json", str(record)]
    assert main(["bench", "dynamic_tiny", *options]) == 0
    result = json.loads(record.read_text())
    rows = {row["name"]: row for row in result["results"]}
    fused, eager = rows["fused"], rows["eager channels_last"]
    assert fused["saved_bytes"] < 0.6 * eager["saved_bytes"] and fused["peak_bytes"] < eager["peak_bytes"]
    everything, left_out = (rows[f"fused, 50% of the nodes, bn={bn}"] for bn in ("all", "open"))
    assert 0 < left_out["executed_macs"] < everything["executed_macs"] and eager["executed_macs"] == 0
    assert "eager channels_last" in capsys.readouterr().out
    assert main(["bench", "--train"]) != 0 and "MODEL: wanted what to train" in capsys.readouterr().err


@needs_planner
def test_bench_tune_saves_what_doctor_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = tmp_path / "cache" / "tuning.json", tmp_path / "record.json"
    monkeypatch.setenv("DYNROUTE_TUNING", str(path))
    monkeypatch.setattr("dynroute.measure.tuning.LEAST_GAIN", -1.0)  # whatever was best counts,
    monkeypatch.setattr("dynroute.measure.tuning.MOST_LOSS", 100.0)  # and is kept
    try:
        options = ["--size", "60x64", "--threads", "1", "--repeats", "2", "--json", str(record)]
        assert main(["bench", "--tune", "dynamic_tiny", *options]) == 0
        text = capsys.readouterr().out
        assert "model's plan" in text and "chosen plan" in text and str(path) in text
        result = json.loads(record.read_text())
        assert [row["shape"]["h_out"] for row in result["results"]] == [16, 8, 4, 2]
        assert result["kept"] and result["file"] == str(path)
        for row in result["results"]:
            assert row["candidates"] >= 1 and row["model_ms"] > 0 and row["chosen_ms"] <= row["model_ms"]
        entries = planner.read_tuning(path)
        assert len(entries) == 4 and {entry.threads for entry in entries} == {1}
        assert [entry.name for entry in path.parent.iterdir()] == ["tuning.json"]
        assert planner.load_tuning().used == 4
        assert main(["doctor", "--json", str(record)]) == 0
        assert f"{path} 4 entries used" in capsys.readouterr().out
        found = json.loads(record.read_text())
        assert found["tuning"] == {"path": str(path), "used": 4, "ignored": 0, "reason": None}
        assert found["planner"] == planner.machine() and found["planner_reason"] is None
        monkeypatch.setattr("dynroute.measure.tuning.MOST_LOSS", -1.0)  # no network is fast enough
        before = path.read_text()
        assert main(["bench", "--tune", "dynamic_tiny", *options]) == 0
        assert "not saved" in capsys.readouterr().out
        assert path.read_text() == before and planner.load_tuning().used == 4
    finally:
        planner.forget_tuning()


def test_resume_after_the_end_is_allowed_and_changes_nothing(tiny_run: Path) -> None:
    before = (tiny_run / "model/model.safetensors").read_bytes()
    assert main(["train", str(tiny_run / "config.yaml"), "--resume"]) == 0
    assert (tiny_run / "model/model.safetensors").read_bytes() == before
