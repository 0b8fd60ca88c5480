"""Checks of what tasks are given: names, whole numbers, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outlay.errors import InputError


def choose(knob: str, value: str, options: Sequence[str]) -> str:
    """`value` if it is one of `options` ("_" may stand for a space).

    Raises:
        InputError: naming the options.
    """
    plain = value.replace("_", " ") if isinstance(value, str) else value
    for option in options:
        if plain in (option, option.replace("_", " ")):
            return option
    raise InputError(f"{knob}={value!r}; choose one of {', '.join(map(repr, options))}")


def check_whole(knob: str, value: object, *, least: int | None = None) -> None:
    """Raise `InputError` unless `value` is an int (no bool), at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{knob}={value!r} is not a whole number; give an int")
    if least is not None and value < least:
        raise InputError(f"{knob}={value} is too small; give an int >= {least}")


def check_positive(knob: str, value: float, *, usual: float | None = None) -> None:
    """Raise `InputError` unless `value` is a finite number > 0; the message names a usual one."""
    if not (value > 0 and math.isfinite(value)):
        hint = "" if usual is None else f" ({usual:g} is usual)"
        raise InputError(f"{knob}={value}; give a number > 0{hint}")


def check_sample(seed: object, n: object) -> None:
    """Check the arguments of `Task.sample`."""
    check_whole("seed", seed)
    check_whole("n", n, least=1)


def check_chars(min_chars: int, max_chars: int) -> None:
    """Check the size limits of a context, in characters."""
    check_whole("min_chars", min_chars, least=0)
    check_whole("max_chars", max_chars, least=1)
    if min_chars > max_chars:
        raise InputError(
            f"min_chars={min_chars} is more than max_chars={max_chars}; lower the one or raise "
            "the other"
        )
