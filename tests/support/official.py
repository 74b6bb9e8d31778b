"""Data sets of a few tiny pictures in the layouts that Cityscapes, PASCAL VOC 2012 and SBD are distributed in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)
"""Height and width of every picture."""
CITIES = {"train": ("aachen", "bochum", "zurich"), "val": ("lindau", "munster"), "test": ("berlin", "bonn")}
FRAME = "000000_000019"
IDS = {"train": ("2007_000032", "2007_000039", "2008_000008"), "val": ("2007_000033", "2007_000042")}
# Of VOC's palette: what its masks' colours are.
VOC_COLOURS = {
    0: (0, 0, 0), 1: (128, 0, 0), 5: (128, 0, 128), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192),
}  # fmt: skip


def put(path: Path, pixels: np.ndarray, palette: Sequence[int] | None = None) -> None:
    """A picture in a file, the folders it lies in too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(list(palette))
    picture.save(path)


def bands(values: Sequence[int]) -> np.ndarray:
    """These values in upright bands of one width, uint8 [48,64]."""
    places = np.arange(SIZE[1]) * len(values) // SIZE[1]
    return np.tile(np.array(values, dtype=np.uint8)[places], (SIZE[0], 1))


def photo(seed: int) -> np.ndarray:
    """Noise, uint8 [48,64,3]."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def put_cityscapes(
    root: Path,
    kinds: Sequence[str] = ("labelIds",),
    splits: Sequence[str] = ("train", "val", "test"),
    annotations: str = "gtFine",
) -> Path:
    """Cityscapes with masks of these kinds: ids 7, 11, 33 (road, building, bicycle), and 4, which is not trained on.

    The masks of `test` hold what the official ones do: ids of borders alone.
    """
    for split in splits:
        for seed, city in enumerate(CITIES.get(split, ("troisdorf",))):
            stem = f"{city}_{FRAME}"
            put(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", photo(hash_of(split) + seed))
            folder = root / f"{annotations}/{split}/{city}"
            ids = bands([1, 3] if split == "test" else [7, 11, 33, 4])
            train_ids = bands([255] if split == "test" else [0, 2, 18, 255])
            for kind in (*kinds, "instanceIds", "color"):
                put(folder / f"{stem}_{annotations}_{kind}.png", train_ids if kind == "labelTrainIds" else ids)
            (folder / f"{stem}_{annotations}_polygons.json").write_text("{}")
    return root


def voc_palette() -> list[int]:
    """VOC's colours of the classes that the masks show, black else; 768 numbers."""
    colours = np.zeros((256, 3), dtype=int)
    for label, colour in VOC_COLOURS.items():
        colours[label] = colour
    return colours.ravel().tolist()


def put_voc(root: Path, more: bool = True) -> Path:
    """VOCdevkit with VOC2012 in it, masks of 0, 1, 15 and 255; with pictures that are in no list. Returns `root`."""
    home = root / "VOC2012"
    (home / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in IDS.items():
        for seed, name in enumerate(names):
            put(home / f"JPEGImages/{name}.jpg", photo(hash_of(split) + seed))
            put(home / f"SegmentationClass/{name}.png", bands([0, 1, 15, 255]), voc_palette())
    for split, names in {**IDS, "trainval": [*IDS["train"], *IDS["val"]]}.items():
        (home / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    if more:
        for seed, name in enumerate(("2008_000001", "2009_000002", "2010_000003")):
            put(home / f"JPEGImages/{name}.jpg", photo(50 + seed))
    return root


def put_sbd(root: Path) -> Path:
    """benchmark_RELEASE of SBD: one picture that VOC validates on, one it trains on, two others. Returns `dataset`."""
    from scipy.io import savemat

    home = root / "benchmark_RELEASE/dataset"
    lists = {"train": ("2008_000001", IDS["val"][0]), "val": ("2009_000002", IDS["train"][0])}
    for split, names in lists.items():
        for seed, name in enumerate(names):
            put(home / f"img/{name}.jpg", photo(50 + seed if split == "train" else 51 + seed))
            (home / "cls").mkdir(parents=True, exist_ok=True)
            savemat(
                home / f"cls/{name}.mat",
                {"GTcls": {"Segmentation": bands([0, 5, 20]), "Boundaries": 0}},
                do_compression=True,
            )
        (home / f"{split}.txt").write_text("\n".join(names) + "\n")
    return home


def hash_of(split: str) -> int:
    """Seeds of the splits, far apart: no picture is in two."""
    return 100 * ["train", "val", "test", "train_extra"].index(split)
