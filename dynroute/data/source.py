"""What every data set offers: pairs of an image and its labels, by index."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

IGNORE = 255
"""The label that no loss and no metric looks at."""


class DataError(ValueError):
    """The data set on disk is not what it should be; the message names the file and what was wanted."""


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
        """Sample `index`: image uint8 [H, W, 3] in RGB, labels uint8 [H, W] with 255 ignored. Read-only."""
        ...
