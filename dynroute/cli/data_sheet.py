"""The contact sheet of `dynroute data check`: one HTML file with images under their masks."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from dynroute.data.channels import visible
from dynroute.data.check import DataCheck
from dynroute.data.images import read_image
from dynroute.data.labels import Labels
from dynroute.data.layout import list_split
from dynroute.data.source import IGNORE, DataError
from dynroute.files import write_whole
from dynroute.report.palette import data_uri, overlay, palette

OF_EACH = 12
WIDTH = 320
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:88rem;padding:0 1rem}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}"
    "figure{margin:0}img{width:100%}figcaption{overflow-wrap:anywhere;font-size:.85em}"
    "i{display:inline-block;width:1em;height:1em;vertical-align:-.15em;margin-right:.3em}span{margin-right:1em}"
)


def write_sheet(out: Path, root: Path, found: DataCheck) -> None:
    """Write thumbnails of up to a dozen pairs of each checked split, spread over it, and the lines on what is wrong."""
    colours = palette(len(found.class_names))
    legend = [(name, colours[k]) for k, name in enumerate(found.class_names)] + [("ignored", (0, 0, 0))]
    keys = "".join(f'<span><i style="background:rgb({r},{g},{b})"></i>{escape(n)}</span>' for n, (r, g, b) in legend)
    parts = [f"<h1>{escape(found.root)}</h1><p>{keys}</p>"]
    for split in found.splits:
        parts.append(f"<h2>{escape(split.split)}</h2><p>{split.images} images, {split.pairs} with a mask</p>")
        wrong = [*split.refused, *split.unreadable.values(), *split.said]
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in wrong[:50]) + "</ul>" if wrong else "")
        parts.append(f'<div class="grid">{"".join(_figures(root, split.split, found))}</div>')
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(found.root)}</title><style>{_STYLE}</style>'
    write_whole(out, head + "\n".join(parts) + "\n")


def _figures(root: Path, split: str, found: DataCheck) -> Iterator[str]:
    listing = list_split(root, split)
    labels = Labels(listing.scheme(found.labels), found.ignore)
    count = len(listing.pairs)
    for index in sorted({round(k) for k in np.linspace(0, count - 1, min(OF_EACH, count))}):
        image, mask = listing.pairs[index]
        try:
            pixels = visible(read_image(image, found.channels, found.range))
            if mask is None:
                own = np.full(pixels.shape[:2], IGNORE, dtype=np.uint8)
            else:
                own = labels(mask, listing.read(mask), len(found.class_names))
            picture = _blended(pixels, own, found)
            shown = f'<img alt="" src="{data_uri(picture, WIDTH, photo=True)}">'
            caption = image.name
        except (DataError, OSError) as error:
            shown, caption = "", str(error)
        yield f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _blended(image: np.ndarray, labels: np.ndarray, found: DataCheck) -> Image.Image:
    """A thumbnail of an image under its classes' colours, at most as wide as it is shown. Raises DataError."""
    if image.shape[:2] != labels.shape:
        raise DataError(f"image {image.shape[1]}x{image.shape[0]}, mask {labels.shape[1]}x{labels.shape[0]}")
    height, width = labels.shape
    if width > WIDTH:
        size = (WIDTH, max(1, round(height * WIDTH / width)))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    return overlay(image, labels, len(found.class_names), 0.5)
