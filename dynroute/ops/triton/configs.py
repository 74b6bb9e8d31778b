"""Which cut a Triton kernel is launched with, by operator, channels, type and architecture.

Looked up in order: what was tuned on this machine (`dynroute bench --tune --backend triton`), for just these channels
and this architecture; the checked-in table (configs.json) for the next class of channels and the nearest architecture
that is not above this one; a rule.

The tuned file is the one that DYNROUTE_TRITON_TUNING names, or `default_tuning_file()`, beside the CPU's.  It is read
when a cut is first asked for.  DYNROUTE_TRITON_TUNING=off leaves it unread, and so does DYNROUTE_TUNING=off, which
leaves the CPU's unread, where the former is not set.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dynroute.files import cache_file
from dynroute.ops.triton.cuts import Cut, Key, read_cuts
from dynroute.ops.triton.launch import interpreted

TABLE = Path(__file__).parent / "configs.json"
OPERATORS = ("sepconv", "transform", "gate", "aggregate")
# Kernels of training: a stage forward, products of pixels with weights, a weight's gradient (a contraction over block_m
# pixels at a time, of block_n output and block_k input channels), the depthwise convolution's backward, maps of pixels
# times channels with their sums; and a dense 3x3 convolution.
FAMILIES = ("train_forward", "train_product", "train_outer", "train_depthwise", "train_map", "conv")
MAPS = ("aggregate", "train_depthwise", "train_map")  # have no product: no steps
CLASSES = (16, 32, 64, 128, 256, 512)  # of channels; more are in the last
DEFAULT_ARCH = 80  # without a GPU, and interpreted


@dataclass(frozen=True)
class Tuning:
    """What became of the tuned file.

    Attributes:
        path: the file; None where it is switched off.
        entries: in force, of all architectures.
        reason: why none is, in one line; None where they are.
    """

    path: Path | None
    entries: int = 0
    reason: str | None = None


_tuning: Tuning | None = None  # None: the file has not been looked for yet
_tuned: dict[Key, Cut] = {}
_answers: dict[Key, Cut] = {}  # what `find` has answered: it is asked at every launch
_assumed: int | None = None  # the architecture that `assume` said
_lock = threading.Lock()  # of `_tuning` and `_tuned`


def find(op: str, channels: int, dtype: torch.dtype, arch: int | None = None) -> Cut:
    """The cut of an operator's kernels on maps of so many channels.

    Args:
        op: one of `OPERATORS` or `FAMILIES`; others get the rule of a product.
        arch: 80 for sm_80; None is the current device's.
    """
    key = Key(op, int(channels), dtype, architecture() if arch is None else arch)
    cut = _answers.get(key)
    if cut is None:
        load_tuning()
        cut = _answers[key] = _tuned.get(key) or checked_in(key)
    return cut


def checked_in(key: Key) -> Cut:
    """The table's cut, else the rule's: what holds where nothing was tuned."""
    by_arch = _table().get((key.op, class_of(key.channels), key.dtype), {})
    nearest = max((arch for arch in by_arch if arch <= key.arch), default=None)
    return by_rule(key) if nearest is None else by_arch[nearest]


def by_rule(key: Key) -> Cut:
    """For architectures and kernels that the table has nothing for: small tiles that fit anywhere."""
    narrow, wide = key.channels <= 32, key.dtype == torch.float32
    if key.op in MAPS:
        return Cut(32, 32, 16)
    if key.op == "sepconv":  # nine pixels on their way for each
        return Cut(32, 32 if narrow else 64, 16, 4 if narrow else 8, 2)
    return Cut(32 if wide else 64, 32 if narrow else 64, 16 if wide or narrow else 32, 4 if narrow or wide else 8)


def class_of(channels: int) -> int:
    """The smallest class that has room for the channels, or the last."""
    return next((c for c in CLASSES if channels <= c), CLASSES[-1])


def architecture() -> int:
    """90 for sm_90: what is assumed, else the current device's, or `DEFAULT_ARCH` where there is none."""
    if _assumed is not None:
        return _assumed
    if interpreted() or not _has_gpu():
        return DEFAULT_ARCH
    return _architecture_of(torch.cuda.current_device())


@contextmanager
def assume(arch: int) -> Iterator[None]:
    """Operators ask for the cuts of this architecture inside the block: for who compiles without a GPU."""
    global _assumed
    before, _assumed = _assumed, arch
    try:
        yield
    finally:
        _assumed = before


@contextmanager
def using(key: Key, cut: Cut) -> Iterator[None]:
    """`find` answers `cut` for `key` inside the block: for who measures candidates."""
    before = find(*key)
    _answers[key] = cut
    try:
        yield
    finally:
        _answers[key] = before


def default_tuning_file() -> Path:
    """dynroute/triton_tuning.json in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    return cache_file("triton_tuning.json")


def tuning_file() -> Path | None:
    """The file that DYNROUTE_TRITON_TUNING names, or the default one; None where it is switched off."""
    named = os.environ.get("DYNROUTE_TRITON_TUNING")
    if named == "off" or (not named and os.environ.get("DYNROUTE_TUNING") == "off"):
        return None
    return Path(named) if named else default_tuning_file()


def load_tuning(again: bool = False) -> Tuning:
    """Puts the tuned file's entries in force, the first time that it is called.

    A file that cannot be used is one warning of the logger `dynroute`, and leaves the checked-in cuts.

    Args:
        again: read the file another time.
    """
    global _tuning
    with _lock:
        if _tuning is None or again:
            _put({})
            _tuning = _read()
        return _tuning


def forget_tuning() -> None:
    """Back to the checked-in cuts.  The file is not read again, but by `load_tuning(again=True)`."""
    global _tuning
    with _lock:
        _put({})
        _tuning = Tuning(None, reason="forgotten (forget_tuning)")


def _put(cuts: dict[Key, Cut]) -> None:
    global _tuned
    _tuned = cuts
    _answers.clear()


def _read() -> Tuning:
    path = tuning_file()
    if path is None:
        return Tuning(None, reason="switched off (DYNROUTE_TRITON_TUNING, DYNROUTE_TUNING)")
    try:
        entries = read_cuts(path)
        if not path.exists():
            return Tuning(path, reason="no such file; `dynroute bench --tune --backend triton` writes it")
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        logging.getLogger("dynroute").warning("dynroute: tuning is left out, Triton's cuts are its own: %s", message)
        return Tuning(path, reason=message)
    _put({entry.key: entry.cut for entry in entries})
    return Tuning(path, len(entries))


@cache
def _table() -> dict[tuple[str, int, torch.dtype], dict[int, Cut]]:
    """The checked-in cuts by architecture, of each operator, class of channels and type."""
    table: dict[tuple[str, int, torch.dtype], dict[int, Cut]] = defaultdict(dict)
    for entry in read_cuts(TABLE):
        table[entry.key[:3]][entry.key.arch] = entry.cut
    return dict(table)


@cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()


@cache
def _architecture_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
