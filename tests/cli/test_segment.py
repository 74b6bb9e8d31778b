"""`dynroute segment`: which images it finds, what it writes and leaves alone, and how it goes on."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dynroute.cli import main
from dynroute.data import images
from tests.support.ranks import together

KEYS = {
    "image", "overlay", "classes", "pixels", "expected_mflops", "real_mflops", "executed_macs", "executed_share",
    "seconds",
}  # fmt: skip


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 56)) -> Path:
    """An image of coarse blobs, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]).save(path)
    return path


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


class Segment:
    """The command on one run."""

    def __init__(self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.record, self.capsys = run, folder / "record.json", capsys

    def __call__(self, *args: str | Path) -> dict:
        """Succeeds; what it records."""
        assert main(["segment", str(self.run), *map(str, args), "--json", str(self.record)]) == 0
        return json.loads(self.record.read_text())

    def fails(self, *args: str | Path) -> str:
        """Fails; its one line."""
        self.capsys.readouterr()
        assert main(["segment", str(self.run), *map(str, args), "--json", str(self.record)]) == 1
        lines = self.capsys.readouterr().err.splitlines()
        assert "Traceback" not in "".join(lines) and lines[-1].startswith("dynroute: error: ")
        return lines[-1].removeprefix("dynroute: error: ")


@pytest.fixture
def segment(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Segment:
    monkeypatch.setattr(images, "_said", set())  # what is said once is said in each test
    return Segment(tiny_run, tmp_path, capsys)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, two of them of one name in folders of their own, and what is passed over."""
    folder = tmp_path / "photos"
    picture(folder / "a/1.png", 1)
    picture(folder / "b/1.jpg", 2)
    picture(folder / "2.png", 3)
    picture(folder / ".hidden/3.png")
    (folder / "b/._1.jpg").write_bytes(b"\0")
    (folder / "notes.txt").write_text("no image")
    return folder


RESULTS = sorted(f"{name}_{kind}.png" for name in ("2", "a/1", "b/1") for kind in ("overlay", "classes"))


def test_the_tree_of_a_folder_is_kept(segment: Segment, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = segment(photos, "--out", out)
    assert below(out) == RESULTS
    assert [row["image"] for row in found["images"]] == [str(photos / name) for name in ("2.png", "a/1.png", "b/1.jpg")]
    for row in found["images"]:
        assert row.keys() >= KEYS and sum(row["pixels"].values()) == pytest.approx(1.0, abs=1e-4)
        assert row["size"] == [40, 56] and row["tiles"] == 1 and 0 < row["executed_share"] < 1.5
        assert labels_of(Path(row["classes"])).shape == (40, 56) and Image.open(row["overlay"]).mode == "RGB"
    assert found["skipped"] == 0 and found["broken"] == {}


@pytest.mark.parametrize(
    "named, names",
    [
        (["photos/a/1.png"], ["1"]),
        (["photos/a/1.png", "photos/b/1.jpg"], ["a/1", "b/1"]),
        (["photos/b", "photos/a"], ["a/1", "b/1"]),
        (["photos/a", "photos/a/1.png"], ["1"]),
        (["photos/*/1.*"], ["a/1", "b/1"]),
        (["photos/**/*.png"], ["2", "a/1"]),
        (["photos/?.png", "photos/b/1.jpg"], ["2", "b/1"]),
    ],
)
def test_files_folders_and_patterns(
    segment: Segment, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str], names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    segment(*named, "--out", "out", "--only", "classes")
    assert below(tmp_path / "out") == [f"{name}_classes.png" for name in names]


def test_links_to_folders_are_followed_once(segment: Segment, photos: Path, tmp_path: Path) -> None:
    (photos / "a/up").symlink_to(photos)
    (photos / "c").symlink_to(picture(tmp_path / "elsewhere/5.png").parent)
    assert len(segment(photos, "--out", tmp_path / "out", "--only", "classes")["images"]) == 4


def test_what_names_no_image(segment: Segment, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file or folder" in segment.fails(photos / "4.png", "--out", out)
    assert "no image of this pattern" in segment.fails(f"{photos}/*.bmp", "--out", out)
    picture(photos / "2.bmp")
    line = segment.fails(photos, "--out", out)
    assert "2.png: its results would overwrite those of" in line and "2.bmp" in line
    (photos / "2.bmp").unlink()
    assert "is a file" in segment.fails(photos, "--out", photos / "2.png")
    assert not out.exists()


def test_results_among_the_images_are_not_segmented(
    segment: Segment, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = photos / "b/out"
    for out in (photos, photos, inside, inside):
        segment(photos, "--out", out)
    wanted = [*RESULTS, *(f"b/out/{name}" for name in RESULTS)]
    assert [name for name in below(photos) if name.endswith(("_overlay.png", "_classes.png"))] == sorted(wanted)
    assert f"{photos}: results of earlier runs passed over: 6 (such as 2_classes.png)" in caplog.text
    segment(f"{photos}/**/*.png", "--out", photos)
    line = segment.fails(inside, "--out", tmp_path / "out")
    assert "6 results of earlier runs and no image in this folder" in line
    # a mask that only has such a name is an image
    picture(photos / "4_classes.png")
    assert [row["image"] for row in segment(photos, "--out", photos)["images"]] == [str(photos / "4_classes.png")]


def test_what_is_done_is_not_done_again(segment: Segment, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, "--out", out)
    before = {name: (out / name).read_bytes() for name in RESULTS}
    (out / "a/1_overlay.png").unlink()
    segment.capsys.readouterr()
    found = segment(photos, "--out", out)
    assert [row["image"] for row in found["images"]] == [str(photos / "a/1.png")] and found["skipped"] == 2
    assert (
        "1 image segmented, 2 done before, passed over (--overwrite does them again)" in segment.capsys.readouterr().out
    )
    assert {name: (out / name).read_bytes() for name in RESULTS} == before
    # further results of the same network beside those that are there
    assert len(segment(photos, "--out", out, "--confidence")["images"]) == 3
    assert len(segment(photos, "--out", out, "--only", "classes")["images"]) == 0
    assert len(segment(photos, "--out", out, "--overwrite")["images"]) == 3


def test_results_of_others_are_not_overwritten(segment: Segment, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(photos, "--out", out)
    for options in (["--tile", "32x32", "--overlap", "0"], ["--range", "0", "200"], ["--storage", "bfloat16"]):
        line = segment.fails(photos, "--out", out, *options)
        assert "2_overlay.png: a result of another network or of other settings; wanted another --out" in line
    model = tmp_path / "other"
    shutil.copytree(segment.run / "model", model)
    weights = {name: value * 1.01 for name, value in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors")
    other = Segment(model, tmp_path, segment.capsys)
    assert "a result of another network" in other.fails(photos, "--out", out)
    assert other(photos, "--out", out, "--overwrite")["skipped"] == 0
    mine = picture(out / "2_classes.png")
    before = mine.read_bytes()
    line = segment.fails(photos, "--out", out, "--overwrite")
    assert line == f"{mine}: no result of dynroute segment, never overwritten; wanted another --out"
    assert mine.read_bytes() == before


def test_a_broken_image_stops_everything_or_is_passed_over(
    segment: Segment, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    whole = (photos / "a/1.png").read_bytes()
    (photos / "a/1.png").write_bytes(whole[: len(whole) * 2 // 3])
    line = segment.fails(photos, "--out", out)
    assert line.startswith(f"{photos / 'a/1.png'}: broken image") and not out.exists()
    # too many to decode all of them first: what comes before it is done
    monkeypatch.setattr("dynroute.cli.segment_job.CHECKED_PIXELS", 0)
    line = segment.fails(photos, "--out", out)
    assert "1 image done before it, the same command goes on" in line and "--skip-broken" in line
    assert below(out) == ["2_classes.png", "2_overlay.png"]
    line = segment.fails(photos, "--out", out, "--skip-broken", "--batch", "2")
    assert line == "1 image not segmented, see above; all others were"
    found = json.loads(segment.record.read_text())
    assert list(found["broken"]) == [str(photos / "a/1.png")] and found["skipped"] == 1
    assert below(out) == [name for name in RESULTS if not name.startswith("a/")]
    # the header is enough to stop a large set
    (photos / "a/1.png").write_bytes(whole[:9])
    assert "a/1.png: not a readable image" in segment.fails(photos, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (photos / "a/1.png").write_bytes(whole)
    assert [row["image"] for row in segment(photos, "--out", out)["images"]] == [str(photos / "a/1.png")]


def test_tiles(segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = picture(tmp_path / "large.png", size=(100, 150))
    cut = ["--tile", "64x96", "--overlap", "32"]
    row = segment(large, "--out", tmp_path / "tiled", *cut)["images"][0]
    assert row["tiles"] == 6 and row["size"] == [100, 150] and 0 < row["executed_share"] < 1.5
    assert ", 6 tiles)" in segment.capsys.readouterr().out
    several = segment(large, "--out", tmp_path / "batch", *cut, "--batch", "4")["images"][0]
    assert several["executed_macs"] == row["executed_macs"] and several["pixels"] == row["pixels"]
    whole = segment(large, "--out", tmp_path / "whole")["images"][0]
    assert whole["tiles"] == 1 and whole["executed_macs"] < row["executed_macs"]
    found, wanted = (labels_of(tmp_path / name / "large_classes.png") for name in ("tiled", "whole"))
    assert found.shape == wanted.shape == (100, 150) and (found == wanted).mean() > 0.5

    # by itself where the whole would take too much
    monkeypatch.setattr("dynroute.cli.segment_job.MOST_BYTES", 800_000)
    monkeypatch.setattr("dynroute.cli.segment_job.TILE", (64, 96))
    row = segment(large, "--out", tmp_path / "auto", "--overlap", "32")["images"][0]
    text = segment.capsys.readouterr().out
    assert (
        row["tiles"] == 6 and "100x150 would take about 0.0 GiB at once, so it goes through in 6 tiles of 64x96" in text
    )
    assert (labels_of(tmp_path / "auto/large_classes.png") == found).all()
    assert segment(large, "--out", tmp_path / "none", "--tile", "none", "--overlap", "32")["images"][0]["tiles"] == 1
    for options, wanted_line in (
        (["--tile", "64x100"], "--tile: wanted multiples of 32 pixels, got 64x100"),
        ([*cut[:2], "--overlap", "64"], "--overlap: wanted a multiple of 32 pixels below the tile's 64, got 64"),
    ):
        assert wanted_line in segment.fails(large, "--out", tmp_path / "no", *options)


def test_confidence(segment: Segment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    row = segment(picture(tmp_path / "a.png"), "--out", out, "--only", "classes", "--confidence")["images"][0]
    assert below(out) == ["a_classes.png", "a_confidence.png"]
    assert row["overlay"] is None and row["confidence"] == str(out / "a_confidence.png")
    sure = labels_of(out / "a_confidence.png") / 65535
    assert sure.shape == (40, 56) and 1 / 7 <= sure.min() < sure.max() <= 1


def test_a_range_brings_other_values_to_8_bits(segment: Segment, tmp_path: Path) -> None:
    eight = np.asarray(Image.open(picture(tmp_path / "a.png")).convert("L"))
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight.astype(np.uint16) * 16 + 100).save(tmp_path / "b.png")
    Image.fromarray(eight.astype(np.float32) * 16 + 100).save(tmp_path / "c.tif")
    segment(tmp_path / "a.png", "--out", tmp_path)
    segment(tmp_path / "b.png", tmp_path / "c.tif", "--out", tmp_path, "--range", "100", "4180")
    for name in ("b", "c"):
        assert (tmp_path / f"{name}_overlay.png").exists()
        assert (labels_of(tmp_path / f"{name}_classes.png") == labels_of(tmp_path / "a_classes.png")).all()
    assert "c.tif: float values" in segment.fails(tmp_path / "c.tif", "--out", tmp_path / "no")
    assert "range: wanted low < high" in segment.fails(
        tmp_path / "c.tif", "--out", tmp_path / "no", "--range", "5", "5"
    )


def test_the_range_of_training_is_that_of_segment(segment: Segment, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(segment.run / "model", model)
    said = json.loads((model / "preprocess.json").read_text())
    assert said["range"] is None
    (model / "preprocess.json").write_text(json.dumps({**said, "range": [100, 4180]}))
    eight = np.asarray(Image.open(picture(tmp_path / "a.png")).convert("L"))
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight.astype(np.uint16) * 16 + 100).save(tmp_path / "b.png")
    segment(tmp_path / "a.png", "--out", tmp_path)
    Segment(model, tmp_path, segment.capsys)(tmp_path / "b.png", "--out", tmp_path)
    assert (labels_of(tmp_path / "b_classes.png") == labels_of(tmp_path / "a_classes.png")).all()


def test_more_pixels_than_the_limit(segment: Segment, tmp_path: Path) -> None:
    path, out = picture(tmp_path / "a.png"), tmp_path / "out"
    line = segment.fails(path, "--out", out, "--max-pixels", "2000")
    assert line.endswith("; --max-pixels allows more") and "(2240 pixels)" in line and not out.exists()
    assert len(segment(path, "--out", out, "--max-pixels", "2240")["images"]) == 1


def test_an_output_that_is_not_finite_is_named_and_not_written(segment: Segment, photos: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(segment.run / "model", model)
    weights = load_file(model / "model.safetensors")
    next(value for name, value in weights.items() if name.startswith("decoder") and value.dim() == 4).fill_(
        float("nan")
    )
    save_file(weights, model / "model.safetensors")
    broken = Segment(model, tmp_path, segment.capsys)
    line = broken.fails(photos, "--out", out)
    assert line.startswith(f"{photos / '2.png'}: the network's output for it is not finite (NaN or infinity)")
    assert broken.fails(photos, "--out", out, "--skip-broken").startswith("3 images not segmented")
    assert not out.exists()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five images in two tars, one of them in a folder there."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, keys in enumerate((["0001", "0002", "a/0001"], ["0003", "0004"])):
        with tarfile.open(folder / f"train-{number:06d}.tar", "w") as tar:
            for key in keys:
                path = picture(tmp_path / "of_shards" / f"{key}.png", int(key[-1]))
                tar.add(path, f"{key}.png")
    return folder


def test_shards(segment: Segment, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = segment(shards, "--out", out, "--only", "classes")
    names = ["0001", "0002", "0003", "0004", "a/0001"]
    assert below(out) == [f"{name}_classes.png" for name in names]
    segment(tmp_path / "of_shards", "--out", tmp_path / "plain", "--only", "classes")
    for name in names:
        assert (labels_of(out / f"{name}_classes.png") == labels_of(tmp_path / f"plain/{name}_classes.png")).all()
    assert "train-000000.tar" in found["images"][0]["image"]
    assert segment(shards, "--out", out, "--only", "classes")["skipped"] == 5
    assert "shards, wanted alone" in segment.fails(shards, tmp_path / "of_shards", "--out", out)


def _of_rank(rank: int, size: int, *args: str) -> int:
    return main(["segment", *args])


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_share_the_images(segment: Segment, shards: Path, tmp_path: Path, sharded: bool) -> None:
    where, out, record = shards if sharded else tmp_path / "of_shards", tmp_path / "out", tmp_path / "record.json"
    args = [str(segment.run), str(where), "--out", str(out), "--only", "classes", "--json", str(record)]
    assert together(_of_rank, 2, tmp_path / "first", *args) == [0, 0]
    names = ["0001", "0002", "0003", "0004", "a/0001"]
    assert below(out) == [f"{name}_classes.png" for name in names]
    found = json.loads(record.read_text())
    assert len({row["image"] for row in found["images"]}) == 5 and found["skipped"] == 0
    if not sharded:
        (tmp_path / "of_shards/0002.png").write_bytes(b"broken")
        (out / "0002_classes.png").unlink()
        (out / "0003_classes.png").unlink()
        # one finds it, and the other writes nothing either; or goes on to its end
        assert together(_of_rank, 2, tmp_path / "second", *args) == [1, 1]
        assert not (out / "0003_classes.png").exists()
        assert together(_of_rank, 2, tmp_path / "third", *args, "--skip-broken") == [1, 1]
        found = json.loads(record.read_text())
        assert [row["image"] for row in found["images"]] == [str(where / "0003.png")]
        assert found["skipped"] == 3 and list(found["broken"]) == [str(where / "0002.png")]
