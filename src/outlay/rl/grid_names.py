"""Stable names for what decides a run: knobs, reward functions, nested settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay.errors import InputError

_DEPTH = 20


def described(value: Any, depth: int = 0) -> Any:
    """JSON-ready, equal for equal values in any process.

    Dataclasses are their class and fields, functions their module and name, other objects their
    class and attributes.

    Args:
        value: anything that a method or a task holds.
        depth: of the nesting so far.

    Raises:
        InputError: for what has no stable name (a lambda, a function inside a function), numbers
            that are not finite, or nesting deeper than 20.
    """
    if depth > _DEPTH:
        raise InputError("a method nests deeper than 20 levels; it cannot name its runs")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value or abs(value) == float("inf"):
            raise InputError(f"{value} is no setting that can be stored; give a finite number")
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): described(one, depth + 1) for key, one in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [described(one, depth + 1) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(described(one, depth + 1) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: described(getattr(value, field.name), depth + 1)
            for field in dataclasses.fields(value)
        }
        return {"class": _path(type(value)), **fields}
    if hasattr(value, "__qualname__"):
        return _path(value)
    if hasattr(value, "__dict__"):
        held = {name: described(one, depth + 1) for name, one in sorted(vars(value).items())}
        return {"class": _path(type(value)), **held}
    raise InputError(
        f"{type(value).__name__} has no stable name; build methods of dataclasses, functions of "
        "modules, numbers and texts"
    )


def _path(value: Any) -> str:
    name = f"{value.__module__}:{value.__qualname__}"
    if "<" in name:  # <lambda>, <locals>
        raise InputError(
            f"{name} has no stable name, so its runs could not be told apart; define it at the "
            "top of a module"
        )
    return name
