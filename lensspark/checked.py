"""Dataclasses from dictionaries, checked against their fields' types and limits."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names key, value and expectation."""


def one_of(*choices: str) -> dict[str, Any]:
    """Limits of a `field`: its values."""
    return {"choices": choices}


def between(low: float, high: float) -> dict[str, Any]:
    """Limits of a `field`: its lowest and highest value, or those of each of a tuple's."""
    return {"low": low, "high": high}


def field(**limits: Any) -> Any:
    """A dataclass's field with the limits that `section` checks: `one_of`, `between`, `length` or `low_length`."""
    return dataclasses.field(metadata=limits)


def section(kind: type, values: dict[str, Any], name: str) -> Any:
    """The dataclass `kind` from `values`, checked against its types and limits; ConfigError names section `name`."""
    hints = get_type_hints(kind)
    checked = {}
    for item in dataclasses.fields(kind):
        if item.name not in values:
            raise ConfigError(f"{name}.{item.name} is missing")
        checked[item.name] = _check(f"{name}.{item.name}", values[item.name], hints[item.name], item.metadata)
    return kind(**checked)


def _check(key: str, value: Any, kind: Any, limits: Any) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} = {value!r}: expected a list")
        if len(value) < limits.get("low_length", 0) or len(value) != limits.get("length", len(value)):
            expected = limits.get("length", f"at least {limits.get('low_length')}")
            raise ConfigError(f"{key} = {list(value)!r}: expected {expected} values")
        return tuple(_check(key, item, get_args(kind)[0], limits) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} = {value!r}: expected {kind.__name__}")
    if "choices" in limits and value not in limits["choices"]:
        raise ConfigError(f"{key} = {value!r}: expected one of {list(limits['choices'])}")
    if "low" in limits and not limits["low"] <= value <= limits["high"]:
        raise ConfigError(f"{key} = {value!r}: expected {limits['low']} to {limits['high']}")
    return value
