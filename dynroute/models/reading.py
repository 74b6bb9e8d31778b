"""What files of weights hold, read without running anything of theirs: safetensors and torch's files.

Numpy arrays in torch's files are put together here from the numbers stored, not by numpy's own unpickling: what a file
may name is a short list of stand-ins.
"""

from __future__ import annotations

import io
import re
import warnings
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

# Kinds and sizes of numbers that weights may be of, as numpy writes them.
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


def read_values(path: Path) -> Any:
    """What a file of weights holds, tensors on the CPU, numpy arrays as tensors.

    Raises:
        ValueError: it cannot be read, is of another kind, or holds more than numbers and names; one line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if content[8:9] == b"{":  # behind the length of the header
        try:
            return safetensors.torch.load(content)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: a broken safetensors file ({_first_line(error)})") from None
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are then refused
            return _as_tensors(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # whatever torch's reader makes of other bytes
        raise ValueError(_refusal(path, content, error)) from None


def _refusal(path: Path, content: bytes, error: Exception) -> str:
    message = str(error)
    if (named := re.search(r"GLOBAL (\S+)", message)) is not None:
        return (
            f"{path}: it holds {named[1]}, and only tensors, numpy arrays, numbers and names are read; where it is "
            "trusted, torch.save(net.state_dict(), FILE) makes one of its weights alone"
        )
    if content[:1] == b"\x80" and content[2:3] != b"\x8a":  # torch's own begin with a long number
        return (
            f"{path}: a plain pickle, which is not read, as it can run code; where it is trusted: torch.save({{name: "
            "torch.as_tensor(value) for name, value in pickle.load(open(FILE, 'rb'))['model'].items()}, 'weights.pth')"
        )
    if message.startswith("Weights only load failed"):  # and a page of advice
        message = f"{len(content)} bytes of another kind" if "error: " not in message else message.split("error: ")[1]
    return f"{path}: not a torch checkpoint: {_first_line(message or error)}"


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]


class _Type:
    """Stands for numpy.dtype; of plain numbers alone."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _NUMBERS:
            raise ValueError(f"numpy numbers of {', '.join(_NUMBERS)} wanted, got {name!r}")
        self.numpy = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(">" if state[1] == ">" else "<")

    def tensor(self, shape: tuple[int, ...], raw: bytes, columns_first: bool) -> Tensor:
        if len(raw) != prod(shape) * self.numpy.itemsize:
            raise ValueError(f"numpy array of {list(shape)}: {len(raw)} bytes do not make it")
        values = np.frombuffer(raw, self.numpy).reshape(shape, order="F" if columns_first else "C")
        return torch.from_numpy(values.astype(self.numpy.newbyteorder("="), order="C"))


class _Array:
    """Stands for numpy.ndarray."""

    tensor: Tensor

    def __setstate__(self, state: tuple) -> None:
        _, shape, of, columns_first, raw = state
        self.tensor = of.tensor(shape, raw, columns_first)


def _array(*_: Any) -> _Array:
    """Stands for numpy's way to begin an array, whose values follow as its state."""
    return _Array()


def _scalar(of: _Type, raw: bytes) -> Tensor:
    """Stands for numpy's scalars."""
    return of.tensor((), raw, False)


def _no_bytes() -> bytes:
    """Stands for bytes, which a pickle calls for those of an empty array."""
    return b""


# `core` before numpy 2, `_core` since
_STAND_INS: list[Any] = [
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_no_bytes, f"{builtins}.bytes") for builtins in ("__builtin__", "builtins")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _as_tensors(value: Any) -> Any:
    """The same with tensors in the place of arrays, in dictionaries too."""
    if isinstance(value, dict):
        return {key: _as_tensors(item) for key, item in value.items()}
    return value.tensor if isinstance(value, _Array) else value
