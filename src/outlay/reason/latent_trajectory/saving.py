"""What the two methods share: knobs that a saved fit brings along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from outlay.errors import InputError, ModelError


def adopt(method: Any, record: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Set the knobs with which a saved method was fitted.

    Raises:
        InputError: for a knob that was given and differs.
        ModelError: for a record that lacks a knob.
    """
    defaults = {field.name: field.default for field in fields(method)}
    for name in names:
        try:
            value = record["knobs"][name]
        except (KeyError, TypeError) as error:
            raise ModelError(f"saved={method.saved!r} lacks the knob {name}; fit again") from error
        value = tuple(value) if isinstance(value, list) else value
        given = getattr(method, name)
        if given not in (defaults[name], value):
            raise InputError(
                f"{name}={given!r}, but saved={method.saved!r} was fitted with {value!r}; drop "
                f"{name}, or fit again"
            )
        object.__setattr__(method, name, value)
