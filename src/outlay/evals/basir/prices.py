"""Returns of sectors around an event, from opening prices of their companies.

A company's return is `open_after / open_before - 1`; a sector's is the mean, the median, or the
capitalisation-weighted mean over its companies. Prices must be adjusted for splits and bonuses: a
raw price that halves overnight looks like a crash, so moves beyond `SUSPICIOUS` are reported. A
list of today's companies applied to old events holds survivors only; nothing here can mend that.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from outlay.errors import InputError
from outlay.evals.basir.data import check_date, table
from outlay.evals.basir.labels import LabelSet
from outlay.evals.checks import check_whole

Aggregate = Literal["mean", "median", "cap"]

SUSPICIOUS = 0.4
"""Absolute return beyond which a price was probably not adjusted."""
_PRICE = ("event", "company", "sector", "open_before", "open_after", "cap")
_QUOTE = ("company", "sector", "date", "open", "cap")


def _number(value: object, name: str, where: str) -> float | None:
    """A positive number, or None where the field is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise InputError(
            f"{where} has {name} {value!r}; give a positive price, or leave it empty for a company "
            "that was not traded"
        )
    return number


@dataclass(frozen=True)
class Price:
    """A company's opening prices around one event; None where it was not traded.

    Raises:
        InputError: for a price or capitalisation that is NaN, zero or negative.
    """

    event: str
    company: str
    sector: str
    open_before: float | None
    open_after: float | None
    cap: float | None = None

    def __post_init__(self) -> None:
        where = f"company {self.company!r} at event {self.event!r}"
        for name in ("open_before", "open_after", "cap"):
            object.__setattr__(self, name, _number(getattr(self, name), name, where))


@dataclass(frozen=True)
class Quote:
    """A company's opening price on one day.

    Raises:
        InputError: for a bad date or a price that is NaN, zero or negative.
    """

    company: str
    sector: str
    date: str
    open: float | None
    cap: float | None = None

    def __post_init__(self) -> None:
        where = f"company {self.company!r} on {self.date}"
        check_date(self.date, where)
        for name in ("open", "cap"):
            object.__setattr__(self, name, _number(getattr(self, name), name, where))


def read_prices(path: str | os.PathLike[str]) -> list[Price]:
    """Prices by event, from .jsonl or .csv: event, company, sector, open_before, open_after, cap.

    Raises:
        InputError: naming the line that is wrong.
    """
    return [Price(**row) for row in _rows(path, _PRICE, ("event", "company", "sector"))]


def read_quotes(path: str | os.PathLike[str]) -> list[Quote]:
    """Daily prices, from .jsonl or .csv: company, sector, date, open, cap; see `around`.

    Raises:
        InputError: naming the line that is wrong.
    """
    return [Quote(**row) for row in _rows(path, _QUOTE, ("company", "sector", "date"))]


def _rows(
    path: str | os.PathLike[str], fields: Sequence[str], needed: Sequence[str]
) -> list[dict[str, Any]]:
    texts = {"event", "company", "sector", "date"} & set(fields)
    rows = []
    for _, row in table(path, fields, needed):
        filled = {name: row.get(name) for name in fields}
        rows.append({**filled, **{name: str(row[name]) for name in texts}})
    if not rows:
        raise InputError(f"{path} holds no price")
    return rows


def around(
    quotes: Sequence[Quote], dates: Mapping[str, str], window: tuple[int, int] = (-1, 1)
) -> list[Price]:
    """Prices by event from daily ones.

    Args:
        quotes: daily opening prices.
        dates: date of every event.
        window: trading days, counted from the event: -1 is the last one before its date, 1 the
            first one after it, 0 the first one on or after it. Trading days are those that any
            company was quoted on.

    Raises:
        InputError: for a window out of order, two prices of a company on a day, or an event
            outside the quoted days.
    """
    first, last = window
    check_whole("window", first)
    check_whole("window", last)
    if first >= last or first > 0:
        raise InputError(f"window={window}; the first day must come before the last, and be <= 0")
    days = sorted({quote.date for quote in quotes})
    by_company: dict[tuple[str, str], dict[str, Quote]] = {}
    for quote in quotes:
        prices = by_company.setdefault((quote.company, quote.sector), {})
        if quote.date in prices:
            raise InputError(f"company {quote.company!r} has two prices on {quote.date}")
        prices[quote.date] = quote
    found: list[Price] = []
    for event, date in dates.items():
        before, after = (_day(days, date, offset, event) for offset in window)
        for (company, sector), prices in by_company.items():
            opens = [prices[day].open if day in prices else None for day in (before, after)]
            cap = prices[before].cap if before in prices else None
            found.append(Price(event, company, sector, opens[0], opens[1], cap))
    return found


def _day(days: Sequence[str], date: str, offset: int, event: str) -> str:
    at = bisect.bisect_left(days, check_date(date, f"event {event!r}"))
    if offset < 0:
        place = at + offset
    elif offset == 0:
        place = at
    else:
        place = bisect.bisect_right(days, date) + offset - 1
    if not 0 <= place < len(days):
        span = f"{days[0]} to {days[-1]}" if days else "no day"
        raise InputError(
            f"event {event!r} of {date} needs trading day {offset:+d}, but prices cover {span}; "
            "add prices or change window="
        )
    return days[place]


@dataclass(frozen=True)
class SectorReturns:
    """Returns by event and sector, and what was left out.

    Args:
        returns: event -> label id -> return.
        untraded: companies without both prices, ignored.
        thin: (event, label id) pairs dropped for fewer than `min_companies` companies.
        suspicious: companies whose move looks like an unadjusted price.
    """

    returns: Mapping[str, Mapping[str, float]]
    untraded: int
    thin: tuple[tuple[str, str], ...]
    suspicious: tuple[str, ...]


def sector_returns(
    prices: Sequence[Price],
    labels: LabelSet,
    *,
    agg: Aggregate = "mean",
    min_companies: int = 1,
) -> SectorReturns:
    """Returns of every sector at every event.

    Raises:
        InputError: for an unknown sector (named), a company twice in a sector at an event, or a
            missing capitalisation with agg="cap".
    """
    if agg not in get_args(Aggregate):
        raise InputError(f"agg={agg!r}; choose one of {', '.join(get_args(Aggregate))}")
    check_whole("min_companies", min_companies, least=1)
    known = labels.names()
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    seen: set[tuple[str, str, str]] = set()
    untraded, suspicious = 0, []
    for price in prices:
        index = known.get(" ".join(price.sector.casefold().split()))
        if index is None:
            raise InputError(
                f"company {price.company!r} is in the unknown sector {price.sector!r}; add it to "
                "the label file (label_file=) or correct the price"
            )
        sector = labels[index].id
        if (key := (price.event, price.company, sector)) in seen:
            raise InputError(
                f"company {price.company!r} appears twice in sector {sector!r} at event "
                f"{price.event!r}"
            )
        seen.add(key)
        if price.open_before is None or price.open_after is None:
            untraded += 1
            continue
        move = price.open_after / price.open_before - 1.0
        if abs(move) > SUSPICIOUS:
            suspicious.append(f"{price.company} at {price.event}: {move:+.0%}")
        if agg == "cap" and price.cap is None:
            raise InputError(
                f"company {price.company!r} at event {price.event!r} has no cap; fill it in or use "
                "agg='mean'"
            )
        groups.setdefault((price.event, sector), []).append((move, price.cap or 1.0))
    returns: dict[str, dict[str, float]] = {}
    thin = []
    for (event, sector), moves in groups.items():
        if len(moves) < min_companies:
            thin.append((event, sector))
            continue
        values, caps = (np.array(column) for column in zip(*moves, strict=True))
        value = (
            np.median(values)
            if agg == "median"
            else np.average(values, weights=caps if agg == "cap" else None)
        )
        returns.setdefault(event, {})[sector] = float(value)
    return SectorReturns(returns, untraded, tuple(thin), tuple(suspicious))
