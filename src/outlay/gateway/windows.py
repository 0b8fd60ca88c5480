"""Budget windows: which spending counts together, and when it is forgotten.

A *bucket* is the start of the stretch of time that an admission falls in, in seconds since 1970.
Calendar windows have one bucket each. A rolling window has sixty, and a bucket counts until all of
it is older than the window: an admission may be counted for a sixtieth longer, never shorter.
"""

from __future__ import annotations

import datetime
import zoneinfo
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from outlay.errors import InputError

Kind = Literal["total", "hour", "day", "week", "month", "rolling"]
_GRAINS = 60
_LONGEST = 366 * 86_400


@dataclass(frozen=True)
class Window:
    """A window.

    Args:
        kind: "total" never renews; "hour", "day", "week" (ISO, from Monday) and "month" are those
            of the calendar; "rolling" is the last `seconds`.
        zone: IANA time zone of calendar windows.
        seconds: length of a rolling window.

    Raises:
        InputError: for an unknown kind or zone, or a length that is missing or out of range.
    """

    kind: Kind = "month"
    zone: str = "UTC"
    seconds: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"window {self.kind!r}; choose {', '.join(get_args(Kind))}")
        if self.kind == "rolling" and not 60 <= self.seconds <= _LONGEST:
            raise InputError(
                f"a rolling window of {self.seconds} seconds; between 60 and {_LONGEST} are allowed"
            )
        if self.kind != "rolling" and self.seconds:
            raise InputError(f"seconds={self.seconds} is for rolling windows, not {self.kind!r}")
        self._zone()

    def _zone(self) -> zoneinfo.ZoneInfo:
        try:
            return zoneinfo.ZoneInfo(self.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InputError(
                f"time zone {self.zone!r} is not known; write an IANA name such as Europe/Berlin"
            ) from error

    @property
    def grain(self) -> int:
        """Seconds of a bucket of a rolling window."""
        return -(-self.seconds // _GRAINS)

    @lru_cache(maxsize=4096)  # noqa: B019 - a batch of requests asks for one instant again and again
    def bucket(self, now: float) -> int:
        """The bucket of an admission at `now`."""
        if self.kind == "total":
            return 0
        if self.kind == "rolling":
            return int(now // self.grain) * self.grain
        return int(self._start(now).timestamp())

    @lru_cache(maxsize=4096)  # noqa: B019
    def since(self, now: float) -> int:
        """The oldest bucket that still counts at `now`."""
        if self.kind == "rolling":
            oldest = int(now - self.seconds - self.grain) + 1
            return -(-oldest // self.grain) * self.grain
        return self.bucket(now)

    @lru_cache(maxsize=4096)  # noqa: B019
    def renews(self, now: float, oldest: int | None = None) -> float | None:
        """When spending is next forgotten; None for never.

        Args:
            now: seconds since 1970.
            oldest: of a rolling window, the oldest bucket with spending; None is the current one.
        """
        if self.kind == "total":
            return None
        if self.kind == "rolling":
            first = self.bucket(now) if oldest is None else oldest
            return float(first + self.grain + self.seconds)
        start = self._start(now)
        if self.kind == "hour":  # in elapsed time: an hour that the clocks repeat is two hours
            return start.timestamp() + 3600
        days = {"day": 1, "week": 7, "month": 32}[self.kind]
        later = start.replace(tzinfo=None) + datetime.timedelta(days=days)
        if self.kind == "month":
            later = later.replace(day=1)
        return later.replace(tzinfo=self._zone()).timestamp()

    def _start(self, now: float) -> datetime.datetime:
        zone = self._zone()
        local = datetime.datetime.fromtimestamp(now, zone)
        if self.kind == "hour":  # keeps the fold, so that a repeated hour is a window of its own
            return local.replace(minute=0, second=0, microsecond=0)
        day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self.kind == "week":
            naive = day.replace(tzinfo=None) - datetime.timedelta(days=day.weekday())
            return naive.replace(tzinfo=zone)
        if self.kind == "month":
            return day.replace(day=1)
        return day
