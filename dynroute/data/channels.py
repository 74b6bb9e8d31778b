"""Pictures of any number of channels: arrays in `.npy` files, and TIFFs whose samples Pillow cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynroute.data.source import DataError, File

ARRAY, TIFF = ".npy", (".tif", ".tiff")
# Tags of a TIFF, and those of its kinds of colours that are plain samples, grey or not.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 258, 262, 274, 277
_WHITE_IS_ZERO, _PLAIN = 0, (0, 1, 2, 5)
_CHANNEL_AXES = "SCIQ"  # of tifffile: samples of a pixel, channels, and pages that are not said to be something else


def holds_bands(path: File, channels: int, exact: bool) -> bool:
    """Whether a picture is to be read by `read_bands`: an array, or a TIFF that Pillow would refuse or narrow.

    Args:
        channels: how many are wanted. For 3, of a TIFF that Pillow reads, its colours are as good.
        exact: whether more than 8 bits of a sample matter.
    """
    suffix = path.suffix.lower()
    if suffix not in TIFF:
        return suffix == ARRAY
    try:
        with path.open("rb") as stream, Image.open(stream) as file:
            tags: Any = getattr(file, "tag_v2", {})
            samples, bits = int(tags.get(_SAMPLES, 1)), int(max(tags.get(_BITS, (1,))))
            if samples > 1 and bits > 8 and exact:
                return True
            more = samples > len(file.getbands()) or getattr(file, "n_frames", 1) > 1
            return channels != 3 and (more or (samples > 1 and bits > 8))
    except Image.DecompressionBombError:
        return False  # whoever decodes it says so
    except Exception:  # not a kind that Pillow knows, or broken, which tifffile says
        return _is_tiff(path)


def read_bands(path: File) -> np.ndarray:
    """A picture as it is stored: [H,W,C], upright, in the machine's byte order and the file's own type.

    A `.npy` holds [H,W] or [H,W,C], and is mapped into memory where it is a file. A TIFF's channels are a pixel's
    samples, or pages of one size. No array with pickled objects is read.

    Raises:
        DataError: what is stored is not a picture, or a package to read it is missing; it names the file.
        Exception: whatever a broken file ends the readers in; more pixels than Pillow's limit for decompression, as its
            `DecompressionBombError`.
    """
    values = _read_array(path) if path.suffix.lower() == ARRAY else _read_tiff(path)
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: values of type {values.dtype}, wanted integers or floats")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def band_area(path: File) -> int:
    """Pixels of such a picture, by its header alone. Raises as `read_bands`."""
    if path.suffix.lower() == ARRAY:
        shape = _array_shape(path)
        return shape[0] * shape[1]
    with path.open("rb") as stream, _tifffile(path).TiffFile(stream) as file:
        return _check_area(file.pages[0].imagelength, file.pages[0].imagewidth)


def fit_channels(path: File, values: np.ndarray, channels: int) -> np.ndarray:
    """[H,W,C] with as many channels as are wanted; of grey three equal ones are made. Raises DataError."""
    got = values.shape[2]
    if got == channels:
        return values
    if (got, channels) == (1, 3):
        return np.repeat(values, 3, axis=2)
    hint = ""
    if path.suffix.lower() == ARRAY and values.shape[0] == channels:
        hint = f"; its shape is {list(values.shape)}, wanted [H,W,C]"
    raise DataError(f"{path}: wanted {channels} {_plural(channels)} (data.channels), got {got}{hint}")


def visible(image: np.ndarray) -> np.ndarray:
    """uint8 [H,W,C] -> [H,W,3] to look at: the first three channels, or the first alone as grey."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def _plural(count: int) -> str:
    return "channel" if count == 1 else "channels"


def _check_area(height: int, width: int) -> int:
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > 2 * most:
        raise Image.DecompressionBombError(f"{height * width} pixels, wanted at most {2 * most}")
    return height * width


def _array_shape(path: File) -> tuple[int, ...]:
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, kind = np.lib.format.read_array_header_2_0(stream)
    if kind.hasobject:
        raise DataError(f"{path}: an array of pickled objects, wanted one of numbers")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(f"{path}: an array of shape {list(shape)}, wanted [H,W] or [H,W,C]")
    _check_area(shape[0], shape[1])
    return shape


def _read_array(path: File) -> np.ndarray:
    _array_shape(path)
    if isinstance(path, Path):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with path.open("rb") as stream:
            values = np.load(stream, allow_pickle=False)
    return values if values.ndim == 3 else values[..., None]


def _is_tiff(path: File) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) in (b"II", b"MM")


def _tifffile(path: File) -> Any:
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f"{path}: a TIFF of many bands or bits, wanted tifffile: pip install 'dynroute[tiff]'"
        ) from None
    return tifffile


def _read_tiff(path: File) -> np.ndarray:
    with path.open("rb") as stream, _tifffile(path).TiffFile(stream) as file:
        # smaller copies of a picture lie beside it
        series = [one for one in file.series if not one.keyframe.is_reduced]
        if len(series) != 1:
            raise DataError(f"{path}: {len(series)} pictures of different kinds, wanted one")
        axes, page = series[0].axes, series[0].keyframe
        others = axes.replace("Y", "").replace("X", "")
        if axes.count("Y") != 1 or axes.count("X") != 1 or len(others) > 1 or others not in _CHANNEL_AXES:
            raise DataError(f"{path}: axes {axes} of sizes {list(series[0].shape)}, wanted rows, columns and channels")
        if int(page.photometric) not in _PLAIN:
            raise DataError(f"{path}: {page.photometric.name} of {page.bitspersample} bits, wanted grey, RGB or bands")
        _check_area(page.imagelength, page.imagewidth)
        values = series[0].asarray()
        white_is_zero = int(page.photometric) == _WHITE_IS_ZERO and values.dtype.kind == "u"
        turn = page.tags.valueof(_ORIENTATION, 1)
    places = [axes.index(axis) for axis in "YX"]
    values = np.moveaxis(values, places, (0, 1)) if others else np.transpose(values, places)[..., None]
    if white_is_zero:
        values = np.iinfo(values.dtype).max - values
    return np.ascontiguousarray(_upright(values, int(turn)))


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H,W,C] turned as EXIF's orientation says: 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::rows, ::columns]
