"""Windows: calendars of a zone, rolling sums that never forget too early, money that adds up."""

from __future__ import annotations

import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.gateway.money import Price, dollars, nano
from outlay.gateway.windows import Window

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")
times = st.floats(1.6e9, 2.2e9)
calendars = st.builds(
    Window, st.sampled_from(["hour", "day", "week", "month"]), st.sampled_from(ZONES)
)


def at(*when: int, zone: str = "UTC") -> float:
    return datetime.datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()


@given(calendars, times)
def test_a_moment_lies_between_its_buckets_start_and_its_renewal(
    window: Window, now: float
) -> None:
    start, end = window.bucket(now), window.renews(now)
    assert end is not None
    assert start <= now < end
    assert window.since(now) == start


@given(calendars, times)
def test_windows_follow_each_other_without_gap_or_overlap(window: Window, now: float) -> None:
    end = window.renews(now)
    assert end is not None
    assert window.bucket(end) == round(end)
    assert window.bucket(end - 1) == window.bucket(now)


def test_a_day_is_the_zones_day_and_a_week_begins_on_monday() -> None:
    now = at(2026, 11, 26, 23, 30)  # a Thursday
    assert Window("day").bucket(now) == at(2026, 11, 26)
    assert Window("day", "Asia/Kathmandu").bucket(now) == at(2026, 11, 27, zone="Asia/Kathmandu")
    assert Window("week").bucket(now) == at(2026, 11, 23)
    assert Window("month").renews(now) == at(2026, 12, 1)


def test_days_with_a_clock_change_are_as_long_as_they_are() -> None:
    spring = Window("day", "Europe/Berlin")
    now = at(2026, 3, 29, 12, zone="Europe/Berlin")
    assert spring.renews(now) == spring.bucket(now) + 23 * 3600
    autumn = at(2026, 10, 25, 12, zone="Europe/Berlin")
    assert spring.renews(autumn) == spring.bucket(autumn) + 25 * 3600


def test_an_hour_that_the_clocks_repeat_is_two_windows() -> None:
    hour = Window("hour", "Europe/Berlin")
    first = at(2026, 10, 25, 0, 30)  # 02:30 summer time
    assert hour.bucket(first + 3600) == hour.bucket(first) + 3600


@given(st.integers(60, 10**6), times, st.floats(0, 2))
def test_a_rolling_window_counts_at_least_its_length_and_a_sixtieth_more_at_most(
    seconds: int, now: float, lengths: float
) -> None:
    window = Window("rolling", seconds=seconds)
    age = lengths * seconds
    counted = window.bucket(now - age) >= window.since(now)
    if age <= seconds:
        assert counted
    if age > seconds + 2 * window.grain:
        assert not counted


@given(st.integers(60, 10**6), times)
def test_a_rolling_window_forgets_a_bucket_when_it_says(seconds: int, now: float) -> None:
    window = Window("rolling", seconds=seconds)
    bucket = window.bucket(now)
    renews = window.renews(now)
    assert renews is not None
    assert bucket >= window.since(renews - 1)
    assert bucket < window.since(renews + 1)


def test_a_total_never_renews() -> None:
    window = Window("total")
    assert (window.bucket(5), window.since(1e9), window.renews(5)) == (0, 0, None)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"kind": "year"}, "window 'year'; choose"),
        ({"kind": "day", "zone": "Mars/Base"}, "write an IANA name"),
        ({"kind": "day", "zone": "../../etc/passwd"}, "write an IANA name"),
        ({"kind": "rolling"}, "rolling window of 0 seconds"),
        ({"kind": "day", "seconds": 60}, "is for rolling windows"),
    ],
)
def test_windows_that_cannot_be_are_refused(knobs: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Window(**knobs)  # type: ignore[arg-type]


prices = st.builds(
    lambda a, b, c, d: Price(input=a, cached=b, cache_write=c, output=d),
    *[st.decimals(0, 500, places=4)] * 4,
)
tokens = st.integers(0, 10**7)


@given(prices, tokens, tokens, st.integers(0, 10**6))
def test_no_use_costs_more_than_its_worst_case(
    price: Price, prompt: int, output: int, cached: int
) -> None:
    assert price.cost(prompt, min(cached, prompt), output) <= price.worst(prompt, output)


@given(prices, tokens, st.integers(0, 10**13))
def test_the_most_output_is_the_largest_that_fits(price: Price, prompt: int, amount: int) -> None:
    most = price.most_output(prompt, amount)
    if most is None:
        assert price.worst(prompt, 10**12) <= amount
    elif most < 0:
        assert price.worst(prompt, 0) > amount
    else:
        assert price.worst(prompt, most) <= amount < price.worst(prompt, most + 1)


@given(st.integers(0, 10**18))
def test_dollars_and_nano_dollars_are_inverse(amount: int) -> None:
    assert nano(dollars(amount)) == amount


def test_published_prices_are_exact() -> None:
    price = Price(input=Decimal("0.15"), cached=Decimal("0.0375"), output=Decimal("0.6"))
    assert price.cost(1_000_000, 0, 0) == 150_000_000
    assert price.cost(8, 8, 0) == 300
    assert price.cost(1, 1, 0) == 38  # 37.5 nano-dollars, rounded up


def test_amounts_that_cannot_be_are_refused() -> None:
    for amount in ("-1", "x", "NaN", "Infinity", "0.0000000001"):
        with pytest.raises(InputError):
            nano(amount)
    with pytest.raises(ValueError, match="six decimals"):
        Price(input=Decimal("0.0000001"), output=Decimal(1))
