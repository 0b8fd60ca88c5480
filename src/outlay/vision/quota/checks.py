"""Knobs that are checked the same way everywhere."""

from __future__ import annotations

import math

from outlay.errors import InputError


def whole(name: str, value: object, least: int, most: int) -> int:
    """`value` as it is, if it is an int in [least, most].

    Raises:
        InputError: names the knob.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name}={value!r} is not a whole number; give an int >= {least}")
    if not least <= value <= most:
        raise InputError(f"{name}={value}; give an int from {least} to {most}")
    return value


def real(name: str, value: object, least: float, most: float) -> float:
    """`value` as a float, if it is finite and in [least, most].

    Raises:
        InputError: names the knob.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}={value!r} is not a finite number")
    if not least <= value <= most:
        raise InputError(f"{name}={value}; give a number from {least:g} to {most:g}")
    return float(value)


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a word that is not known.

    Raises:
        InputError: names the knob and the words.
    """
    if value not in known:
        raise InputError(f"{name}={value!r}; choose one of {', '.join(known)}")
