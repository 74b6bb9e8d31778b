"""What every data set offers: pairs of an image and its labels, by index."""

from __future__ import annotations

from typing import BinaryIO, Literal, Protocol, runtime_checkable

import numpy as np

IGNORE = 255
"""The label that no loss and no metric looks at."""


class DataError(ValueError):
    """The data set on disk is not what it should be; the message names the file and what was wanted."""


class File(Protocol):
    """What can be read as a file: a path, or a member of a tar (`dynroute.data.tar.Member`); its text names it."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    def open(self, mode: Literal["rb"], /) -> BinaryIO: ...

    def read_bytes(self) -> bytes: ...


@runtime_checkable
class Source(Protocol):
    """A finite, indexable set of labelled images."""

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in label order."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """A short name of sample `index`, for logs and reports."""
        ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `index`: image uint8 [H, W, C], RGB where C is 3, labels uint8 [H, W] with 255 ignored. Read-only."""
        ...


@runtime_checkable
class Shuffling(Protocol):
    """A source that says in what order an epoch of training goes through it; others are gone through in any."""

    def shuffled(self, generator: np.random.Generator) -> np.ndarray:
        """The indices of all samples, int64, as a function of the generator's state alone."""
        ...
