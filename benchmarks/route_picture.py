"""One validation image of a training run as a picture: the image, its classes as predicted, and its route.

    python -m benchmarks.route_picture runs/quickstart/with --out docs/images/route.png

The route map has layers across and scales down.  A filled node was computed, an empty one was closed and handed its
input on, a dot was reached by nothing; the width of a path is its alpha.  The image is the one of median executed work
among those whose route has both open and closed nodes; --image takes another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from dynroute.cli.target import load_target, open_data
from dynroute.measure import Sample, observe, open_model
from dynroute.measure.observe import predict
from dynroute.report.choose import choose
from dynroute.report.palette import overlay, palette
from dynroute.report.svg import Marks, sample_marks
from dynroute.space.routing import is_path_open
from dynroute.space.wiring import DOWN, KEEP, PATH_NAMES, SCALES, UP, build_space

OBSERVED = 64  # images to choose from
WIDTH, HEIGHT, DPI = 1400, 440, 100  # pixels; pixels an inch
SHOWN = 0.002  # of the pixels: a smaller class is not named
SIDE = 480  # images are enlarged to this many pixels, so that the classes' edges stay sharp
INK, SOFT, SHUT = "#1d2026", "#5d6470", "#b0b2ba"
PATH_COLOURS = {UP: "#d9822b", KEEP: "#5b6472", DOWN: "#2f74c0"}
THINNEST, THICKEST = 0.9, 6.5  # points, of an open path
LEGEND: dict[str, Any] = {
    "loc": "upper center", "bbox_to_anchor": (0.5, -0.015), "frameon": False, "fontsize": 10.5, "labelcolor": SOFT,
}  # fmt: skip


def draw(run: str, image: int | None, out: Path) -> Sample:
    """Draws an image of the run's validation split (None: chosen by its route) into `out`; returns what was found.

    Raises:
        ValueError: not a run, no such image, or no image whose route has both open and closed nodes.
    """
    target = load_target(run)
    model, source = open_model(target.net), open_data(target, None, "val")
    if image is not None and not 0 <= image < len(source):
        raise ValueError(f"--image {image}: there are {len(source)} images, counted from 0")
    samples = observe(model, source, target.normalise, OBSERVED if image is None else image + 1).samples
    sample = pick(samples) if image is None else samples[image]
    labels, _ = predict(model, source, target.normalise, sample.index)
    paint(source.read(sample.index)[0], labels.numpy(), target.classes, sample, out)
    return sample


def pick(samples: list[Sample]) -> Sample:
    """The sample of median executed work among those with open and closed nodes. Raises ValueError if there is none."""
    mixed = [s for s in samples if (marks := sample_marks(s.gates, s.nodes)).node.any() and marks.passed.any()]
    if not mixed:
        raise ValueError("no image has a route with both open and closed nodes; --image takes one all the same")
    return mixed[choose(mixed, 1)[0][0]]


def paint(image: np.ndarray, labels: np.ndarray, classes: list[str], sample: Sample, out: Path) -> None:
    """Image uint8 [H,W,3], labels uint8 [H,W] as predicted, and the sample's route."""
    height, width = labels.shape
    size = (SIDE * width // height, SIDE)
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    large_labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    marks = sample_marks(sample.gates, sample.nodes)

    figure = plt.figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    left, middle, right = (
        figure.add_axes((x / WIDTH, 98 / HEIGHT, w / WIDTH, 300 / HEIGHT))
        for x, w in ((10, 300), (322, 300), (690, 700))
    )
    photograph(left, large, "image")
    photograph(middle, np.asarray(overlay(large, large_labels, len(classes))), "segmented")
    colours = palette(len(classes)) / 255.0
    shown = np.flatnonzero(np.bincount(labels.ravel(), minlength=len(classes)) > labels.size * SHOWN)
    patches = [Patch(color=colours[k], label=classes[k]) for k in shown]
    middle.legend(handles=patches, ncols=3, **LEGEND, handlelength=0.9, columnspacing=1.0)
    route_map(right, marks)
    computed, nodes = int(marks.node.sum()), sum(len(row) for row in build_space(len(sample.gates) - 1))
    space = sample.space / sample.full_space
    done = f"{space:.0%} of the space's work, {sample.share:.0%} of all"
    title(right, f"its route: {computed} of {nodes} nodes computed; {done}")
    figure.savefig(out)
    plt.close(figure)


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=13, color=INK, pad=8)


def photograph(axes: Axes, pixels: np.ndarray, name: str) -> None:
    axes.imshow(pixels)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    title(axes, name)


def route_map(axes: Axes, marks: Marks) -> None:
    """The states that the report's route maps show, in its colours."""
    layers = len(marks.node) - 1
    for node in (node for row in build_space(layers) for node in row):
        x, y = node.row, node.scale
        for path in (path for path in (UP, KEEP, DOWN) if node.paths[path]):
            # paths: up leads to the next finer scale, down to the next coarser one; the last keep, to the decoder
            ends = [x, x + (0.7 if x == layers else 1)], [y, y + path - KEEP]
            alpha = marks.path[x, y, path]
            if is_path_open(alpha):
                line = {"lw": THINNEST + (THICKEST - THINNEST) * min(float(alpha), 1.0), "color": PATH_COLOURS[path]}
            elif path == KEEP and marks.passed[x, y]:
                line = {"lw": 1.4, "color": PATH_COLOURS[KEEP], "ls": (0, (4, 3))}
            else:
                line = {"lw": 1.0, "color": SHUT, "ls": (0, (1, 2))}
            axes.plot(*ends, zorder=2 if is_path_open(alpha) else 1, solid_capstyle="butt", **line)
        if not marks.present[x, y]:
            axes.plot(x, y, "o", ms=6, mfc="white", mec=SHUT, zorder=3)
        else:
            axes.plot(x, y, "o", ms=14, mfc=INK if marks.node[x, y] else "white", mec=INK, mew=1.5, zorder=3)
    axes.set_xlim(-0.4, layers + 0.75)
    axes.set_ylim(SCALES - 0.6, -0.4)
    axes.set_yticks(range(SCALES), [f"1/{4 << s}" for s in range(SCALES)])
    axes.set_xticks(range(layers + 1), ["init", *(f"layer {row}" for row in range(layers))])
    axes.tick_params(length=0, labelsize=11, labelcolor=SOFT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    dot: dict[str, Any] = {"color": "none", "marker": "o"}
    axes.legend(
        handles=[
            Line2D([], [], **dot, mec=INK, ms=10, mfc=INK, label="computed"),
            Line2D([], [], **dot, mec=INK, ms=10, mfc="white", label="closed: hands its input on"),
            Line2D([], [], **dot, mec=SHUT, ms=6, mfc="white", label="reached by nothing"),
            Line2D([], [], lw=1.2, color=SHUT, ls=(0, (1, 2)), label="closed path"),
            *(Line2D([], [], lw=4, color=PATH_COLOURS[path], label=PATH_NAMES[path]) for path in (UP, KEEP, DOWN)),
        ],
        ncols=4, handlelength=1.5, columnspacing=2.0, **{**LEGEND, "bbox_to_anchor": (0.47, -0.1)},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.route_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a finished training run")
    parser.add_argument("--image", type=int, help="number of a validation image (default: chosen by its route)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/route.png"), metavar="PNG")
    args = parser.parse_args()
    try:
        sample = draw(args.run, args.image, args.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.out}: image {sample.index} ({sample.name}), {sample.share:.0%} of the work of all open (counted)")


if __name__ == "__main__":
    main()
