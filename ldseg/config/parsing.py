"""Plain values to dataclasses; unknown keys are errors that name the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nearest(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(keys)}"


def build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix or 'the configuration'} must be a mapping, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown configuration key {prefix + str(key)!r}{nearest(str(key), list(hints))}")
    return cls(**{key: _coerce(hints[key], value, prefix + key) for key, value in values.items()})


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """JSON has no tuples and writes 1.0 as 1; nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, key + ".")
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        options = [o for o in typing.get_args(hint) if o is not type(None)]
        return None if value is None else _coerce(options[0], value, key)
    if origin is Literal:
        return value
    if origin is tuple:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (value,)  # one for all
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(_coerce(typing.get_args(hint)[0], v, key) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{key} must be of type {hint.__name__}, got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    return value


class ConfigError(ValueError):
    """A configuration that can't be used; the message names the key and the cure."""


def check(condition: bool, message: str) -> None:
    """Raise a ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_choices(config: Any, section: str) -> None:
    """Raise a ConfigError unless each field that has a few choices has one of them."""
    cls: Any = type(config)
    for name, choices in _choices(cls).items():
        value, (*others, last) = getattr(config, name), choices
        check(value in choices, f"{section}.{name} must be {', '.join(others)} or {last}, got {value!r}")


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}
