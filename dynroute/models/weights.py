"""Weights of a network from wherever they lie: their names are ours, and what they say of the network is found out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynroute.models import official
from dynroute.models.cell import CELL_OPS, Cell
from dynroute.models.config import NetworkConfig
from dynroute.models.reading import read_values

CONFIG, MODEL, PREPROCESS = "config.json", "model.safetensors", "preprocess.json"
# What state dicts lie under, and what wrappers put before names.
_UNDER = ("model", "state_dict", "module")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
PARTS = ("stem.", "init.", "grid.", "decoder.")
_SHAPES = (  # fields that a shape tells: the parameter, and its axis
    ("channels", "stem.pointwise2.weight", 0),
    ("num_classes", "decoder.predictor.weight", 0),
    ("stem_width", "stem.conv.weight", 0),
    ("in_channels", "stem.conv.weight", 1),
)


@dataclass(frozen=True)
class Weights:
    """What was found.

    Attributes:
        label: where.
        state: tensors by the names that `DynamicNetwork.state_dict` has; all of a network, or some.
        fields: of `NetworkConfig`, as far as they are known.
        preprocess: as `DynamicNetwork.preprocess`; None: nothing says.
        published: the names were those of the published implementation.
        whole: `fields` come from a configuration beside the weights, not from their shapes.
    """

    label: str
    state: dict[str, Tensor]
    fields: dict[str, Any]
    preprocess: dict[str, Any] | None
    published: bool = False
    whole: bool = False


def read_weights(source: str | Path | Mapping[str, Any]) -> Weights:
    """Reads weights, and runs nothing of theirs.

    Args:
        source: a run's folder or one of `save_pretrained`; a file of torch or safetensors: a training's checkpoint, one
            of the published implementation, or a state dict, bare or under `model`, `state_dict` or `module`, of
            tensors or numpy arrays, whose names are ours or the published ones, before them any of `module.`,
            `_orig_mod.` and `model.`; or such a state dict itself.

    Raises:
        ValueError: none of these, or unreadable; one line that names it.
    """
    if isinstance(source, Mapping):
        return _of_values(source, "state dict")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _of_folder(_model_folder(path))
        if not path.is_file():
            raise ValueError(f"{path}: no such checkpoint file or folder")
        if path.name == MODEL and (path.parent / CONFIG).is_file():
            return _of_folder(path.parent)
    except OSError as error:
        raise ValueError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    weights = _of_values(read_values(path), str(path))
    beside = path.parent / PREPROCESS
    if weights.preprocess is None and beside.is_file():
        weights = replace(weights, preprocess=_json_in(beside))
    return weights


def _model_folder(path: Path) -> Path:
    """Of a run or a model's folder the latter."""
    if (path / "config.yaml").is_file() or ((path / "model" / CONFIG).is_file() and not (path / CONFIG).is_file()):
        if not (path / "model").is_dir():
            raise ValueError(
                f"{path}: a run without a model/ yet: its training has not finished (train --resume); one of its "
                "checkpoints/ can be named instead"
            )
        path = path / "model"
    for name in (CONFIG, MODEL):
        if not (path / name).is_file():
            raise ValueError(
                f"{path}: wanted a run folder (config.yaml, model/) or a folder made by save_pretrained, but {name} is "
                "missing"
            )
    return path


def _of_folder(folder: Path) -> Weights:
    fields = _fields_in(_json_in(folder / CONFIG), str(folder / CONFIG))
    preprocess = _json_in(folder / PREPROCESS) if (folder / PREPROCESS).exists() else None
    state = read_values(folder / MODEL)
    return Weights(str(folder / MODEL), state, fields, preprocess, whole=True)


def _json_in(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: wanted a JSON object, got {type(values).__name__}")
    return values


def _fields_in(raw: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Fields of `NetworkConfig` from plain values. Raises ValueError."""
    try:
        return vars(NetworkConfig(**{**raw, "cell": tuple(raw["cell"])}))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{label}: not a network's configuration: {error}") from None


def _of_values(values: Any, label: str) -> Weights:
    whole = values if isinstance(values, Mapping) else {}
    state: Any = values
    if isinstance(whole.get("ema"), Mapping) and isinstance(whole.get("model"), Mapping):
        state = {**whole["model"], **whole["ema"]}  # a training's average is what it evaluates
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _UNDER if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{label}: wanted a state dict, bare or under {', '.join(map(repr, _UNDER))}, got {type(state).__name__}"
        )
    tensors = {_bare(str(k)): torch.as_tensor(v) for k, v in state.items() if hasattr(v, "dtype")}
    published = official.is_official(tensors)
    fixed = published and official.has_fixed_gates(tensors)
    if published:
        ours = {official.our_name(name): value for name, value in tensors.items()}
        tensors = {name: value for name, value in ours.items() if name is not None}
    tensors = {name: value for name, value in tensors.items() if name.startswith(PARTS)}
    if not tensors:
        first = next(iter(map(repr, state)), "nothing")
        raise ValueError(
            f"{label}: no weights of a routed network: wanted names such as stem.conv.weight, or the published "
            f"backbone.stem.stem_1.weight, got {first}"
        )
    if isinstance(whole.get("network"), Mapping):  # a training's checkpoint
        return Weights(label, tensors, _fields_in(whole["network"], label), whole.get("preprocess"), whole=True)
    fields = _fields_of(tensors)
    if published:
        fields["gate"] = "fixed" if fixed else "tanh"
    preprocess = dict(official.PREPROCESS) if published and fields.get("in_channels", 3) == 3 else None
    return Weights(label, tensors, fields, preprocess, published)


def _bare(name: str) -> str:
    """A name without what wrappers put before it, or between its parts."""
    name = name.replace("._orig_mod.", ".")
    while (wrapper := next((w for w in _WRAPPERS if name.startswith(w)), None)) is not None:
        name = name[len(wrapper) :]
    return name


def _fields_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names and shapes tell of the network: all but drop_prob, the small gate, and which activation gates have."""
    fields: dict[str, Any] = {}
    rows = [int(found[1]) for name in state if (found := re.match(r"grid\.(\d+)\.", name))]
    if rows:
        fields["layers"] = 1 + max(rows)
    for field, name, axis in _SHAPES:
        if name in state and state[name].dim() == 4:
            fields[field] = state[name].shape[axis]
    if any(name.startswith("init.") for name in state):
        if not any(".gate." in name for name in state):
            fields["gate"] = "fixed"
        if "channels" in fields and (cell := _cell_of(state, fields["channels"])):
            fields["cell"] = cell
    return fields


def _cell_of(state: Mapping[str, Tensor], channels: int) -> tuple[str, ...]:
    """Names of the init cell's operations, whose convolutions tell them apart (but a dilated one from the same without
    dilation); none where it is not known."""
    found: list[str] = []
    while of_op := _convolutions(state, f"init.cell.ops.{len(found)}."):
        op = next((op for op in CELL_OPS if of_op == _convolutions(_operation(channels, op), "ops.0.")), None)
        if op is None:
            return ()
        found.append(op)
    return tuple(found)


def _operation(channels: int, op: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Cell(channels, (op,)).state_dict()


def _convolutions(state: Mapping[str, Tensor], prefix: str) -> dict[int, torch.Size]:
    """The shape of each convolution's weight, by its place below a prefix."""
    name = re.compile(rf"{re.escape(prefix)}(\d+)\.weight")
    return {int(found[1]): value.shape for key, value in state.items() if (found := name.fullmatch(key))}
