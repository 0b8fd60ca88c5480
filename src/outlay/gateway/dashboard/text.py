"""Numbers, money and times as people read them."""

from __future__ import annotations

import datetime

from outlay.gateway.money import NANO, dollars

_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**4, "k"))


def whole(value: int) -> str:
    """`1 234 567`, with narrow spaces that do not break."""
    return f"{value:,}".replace(",", "\u202f")


def brief(value: int) -> str:
    """At most four digits and a letter: `9 999`, `12.3k`, `4.56M`."""
    for scale, letter in _SCALES:
        if abs(value) >= scale:
            short = value / scale if letter != "k" else value / 1000
            return f"{short:.3g}{letter}" if abs(short) < 999.5 else f"{short:.0f}{letter}"
    return whole(value)


def money(nanousd: int) -> str:
    """Dollars with two decimals, or with three digits where that would hide them."""
    usd = nanousd / NANO
    if nanousd == 0:
        return "$0"
    if abs(usd) >= 1000:
        return f"${usd:,.0f}".replace(",", "\u202f")
    if abs(usd) >= 0.995:
        return f"${usd:.2f}"
    digits = f"{usd:.12f}"
    first = next(i for i, c in enumerate(digits) if c in "123456789")
    return "$" + f"{usd:.{min(9, max(2, first + 1))}f}".rstrip("0")


def exact_money(nanousd: int) -> str:
    """All the digits there are."""
    return f"${dollars(nanousd)}"


def amount(value: int, unit: str) -> str:
    """Tokens or money, short."""
    return brief(value) if unit == "tokens" else money(value)


def exact(value: int, unit: str) -> str:
    """Tokens or money, in full, with the unit."""
    return f"{whole(value)} tokens" if unit == "tokens" else exact_money(value)


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `9 days`."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    minutes = left // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{round(left / 86_400)} days"


def clock(at: float, *, day: bool = True, seconds: bool = False) -> str:
    """A time in UTC."""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    hour = moment.strftime("%H:%M:%S" if seconds else "%H:%M")
    return f"{moment.day} {moment:%b} {hour}" if day else hour


def date(at: float) -> str:
    """A day in UTC."""
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return f"{moment.day} {moment:%b}"


def stamp(at: float) -> str:
    """A time for machines: ISO 8601."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


FILTERS = {
    "whole": whole,
    "brief": brief,
    "money": money,
    "exact_money": exact_money,
    "amount": amount,
    "exact": exact,
    "span": span,
    "clock": clock,
    "date": date,
    "stamp": stamp,
}
