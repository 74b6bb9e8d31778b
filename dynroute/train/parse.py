"""From plain YAML values to typed dataclasses, with errors that name the key, what was wanted and what was got."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def set_override(tree: dict[str, Any], override: str) -> None:
    """Apply `key.sub=value` to a nested dictionary in place; the value is read as YAML. Raises ConfigError."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: wanted key.sub=value, such as optimiser.lr=0.02")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: not a valid YAML value") from error
    node = tree
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {key!r} is a value, it has no key {keys[-1]!r}")
        node = child
    node[keys[-1]] = value


def build(kind: type[T], tree: Any, path: str = "") -> T:
    """A dataclass from a nested dictionary; missing keys keep their defaults. Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: wanted keys below it, got {tree!r}")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
            raise ConfigError(f"{full}: unknown key{hint}")
        if is_dataclass(hints[key]):
            values[key] = build(hints[key], {} if value is None else value, full)  # type: ignore[arg-type]
        else:
            values[key] = _convert(hints[key], value, full)
    try:
        return kind(**values)
    except ValueError as error:  # values that do not make sense together
        raise ConfigError(str(error)) from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [item for item in arguments if item is not type(None)]
        shape = dict if isinstance(value, dict) else tuple if isinstance(value, (list, tuple)) else None
        fitting = [item for item in kinds if shape and typing.get_origin(item) is shape]
        return _convert((fitting or kinds)[0], value, path)
    if origin is Literal:
        value = "off" if value is False and "off" in arguments else value  # what YAML makes of the bare word
        if value not in arguments:
            raise ConfigError(f"{path}: wanted one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is dict and isinstance(value, dict):
        return {_convert(arguments[0], k, path): _convert(arguments[1], v, f"{path}[{k}]") for k, v in value.items()}
    if origin is tuple:
        return _tuple(arguments, value, path)
    # YAML reads 1e-4 (no dot) as a string; and a bool is an int to Python, but not to whoever wrote the file.
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"{path}: wanted {_word(hint)}, got {value!r}")


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    open_ended = len(arguments) == 2 and arguments[1] is Ellipsis
    wanted = f"a list of {_word(arguments[0])}s" if open_ended else f"a list of {len(arguments)} {_word(arguments[0])}s"
    if not isinstance(value, (list, tuple)) or not (open_ended or len(value) == len(arguments)):
        raise ConfigError(f"{path}: wanted {wanted}, got {value!r}")
    kinds = [arguments[0]] * len(value) if open_ended else arguments
    return tuple(_convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))


def _word(hint: Any) -> str:
    return {int: "integer", float: "number", str: "string", bool: "true or false"}.get(hint, str(hint))
