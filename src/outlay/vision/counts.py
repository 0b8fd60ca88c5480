"""How many visual tokens live in each decoder layer: rounding and schedules.

Rates are relative to the original number of visual tokens, never to the layer before. Counts are
rounded half up, and at least 1 where the rate is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from outlay.errors import InputError


def half_up(value: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(value + 0.5)


def kept(rate: float, n: int) -> int:
    """Tokens that a rate keeps of `n`: rounded half up, at least 1 unless the rate is 0."""
    return 0 if rate == 0 else max(1, min(n, half_up(rate * n)))


def check_rate(rate: float, name: str = "rate") -> None:
    """Refuse a keep rate outside (0, 1].

    Raises:
        InputError: says which knob.
    """
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 < rate <= 1:
        raise InputError(f"{name}={rate!r}; a keep rate is in (0, 1], and 1 keeps everything")


def budgeted(rate: float, max_tokens: int | None, n: int) -> int:
    """Tokens to keep of `n`: under an absolute limit if there is one, else at a rate.

    Raises:
        InputError: for one out of range.
    """
    check_rate(rate)
    if max_tokens is None:
        return kept(rate, n)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise InputError(f"max_tokens={max_tokens!r}; need an int >= 1")
    return min(n, max_tokens)


def staircase(drops: Mapping[int, float], layers: int) -> tuple[float, ...]:
    """Rates of every layer from the layers before which they change.

    Args:
        drops: layer -> rate from there on.
        layers: of the decoder.

    Raises:
        InputError: for a layer out of range, or rates that grow.
    """
    for layer in drops:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
            raise InputError(
                f"a drop before layer {layer!r}; the decoder has layers 0..{layers - 1}"
            )
    rates, now = [], 1.0
    for layer in range(layers):
        now = drops.get(layer, now)
        rates.append(now)
    check_schedule(rates, layers)
    return tuple(rates)


def check_schedule(rates: Sequence[float], layers: int, *, before_first: bool = True) -> None:
    """Refuse a schedule that cannot be applied.

    Args:
        rates: of every layer, relative to the original count.
        layers: of the decoder.
        before_first: whether tokens may go before layer 0 (at the decoder's input).

    Raises:
        InputError: for a wrong length, rates outside [0, 1], NaN, or rates that grow.
    """
    if len(rates) != layers:
        raise InputError(f"the schedule has {len(rates)} rates for a decoder of {layers} layers")
    last = 1.0
    for layer, rate in enumerate(rates):
        if not 0 <= rate <= 1:  # NaN fails, too
            raise InputError(f"rate {rate!r} of layer {layer} is outside [0, 1]")
        if rate > last:
            raise InputError(
                f"rates grow from {last:g} to {rate:g} before layer {layer}; a token that was "
                "dropped cannot come back"
            )
        last = rate
    if not before_first and rates[0] != 1:
        raise InputError(
            f"the schedule drops before layer 0 (rate {rates[0]:g}) by attention, which nothing "
            "has computed yet; start at layer 1, or prune at the input"
        )


def counts_of(rates: Sequence[float], n: int) -> list[int]:
    """Visual tokens of every layer, of `n`."""
    return [kept(rate, n) for rate in rates]
