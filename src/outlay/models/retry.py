"""Trying again: which failures deserve it, how long to wait, and when to give up.

Only what can succeed on a second try is retried: a refused or lost connection, 429 and 5xx. Every
failed attempt that the server may bill is counted in a `Tries`, so that retries stay in the books.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from outlay.errors import EndpointError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds on one request.

    Args:
        connect: to open the connection.
        read: between two pieces of an answer; an unstreamed answer is one piece.
        total: for all attempts, waits included; checked between pieces.
    """

    connect: float = 5.0
    read: float = 300.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            if not getattr(self, name) > 0:
                raise InputError(f"timeouts.{name}={getattr(self, name)}; must be > 0 seconds")


@dataclass(frozen=True)
class Retry:
    """When to try again: waits double from `base` up to `cap` seconds, with jitter.

    Args:
        attempts: requests in all, the first one included.
        base: mean wait in seconds before the second attempt.
        cap: longest wait of our own.
        patience: longest Retry-After, in seconds, that is waited for.
    """

    attempts: int = 4
    base: float = 0.5
    cap: float = 20.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"retry.attempts={self.attempts}; must be >= 1 (1 never retries)")
        for name in ("base", "cap", "patience"):
            if not getattr(self, name) >= 0:
                raise InputError(f"retry.{name}={getattr(self, name)}; must be >= 0 seconds")

    def wait(self, failures: int) -> float:
        """Seconds to wait after that many failures: between half and 1.5 of the nominal wait."""
        return min(self.cap, self.base * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


@dataclass
class Tries:
    """Failed attempts of one request that the server may have billed.

    Args:
        prompts: attempts that failed with 5xx: the prompt may be billed.
        answers: attempts lost while the server was answering: prompt and answer may be billed.
    """

    prompts: int = 0
    answers: int = 0


class RefusedError(EndpointError):
    """The server refused the request itself (4xx)."""

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class OutOfTimeError(EndpointError):
    """The request did not end in time; `budget` is True where the budget's own limit passed."""

    def __init__(self, message: str, *, budget: bool) -> None:
        super().__init__(message)
        self.budget = budget


class RetriableError(Exception):
    """A failure worth another try, after `wait` seconds where the server named them."""

    def __init__(self, error: EndpointError, wait: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.wait = wait


@dataclass
class Clock:
    """The time left to one request, all its attempts included."""

    timeouts: Timeouts
    deadline: float | None
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds left, negative when over."""
        ends = [self.start + self.timeouts.total]
        if self.deadline is not None:
            ends.append(self.deadline)
        return min(ends) - time.monotonic()

    def check(self) -> None:
        """Raise `OutOfTimeError` when the time is over."""
        if self.left() <= 0:
            raise self.error()

    def error(self) -> OutOfTimeError:
        """The error that says whose limit passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return OutOfTimeError("the budget's time limit passed; raise seconds=", budget=True)
        return OutOfTimeError(
            f"no complete answer after {self.timeouts.total:g} s; raise timeouts.total or lower "
            "max_tokens",
            budget=False,
        )

    def httpx(self) -> httpx.Timeout:
        """Limits for one attempt within the time left."""
        left = max(0.001, self.left())
        return httpx.Timeout(
            connect=min(self.timeouts.connect, left),
            read=min(self.timeouts.read, left),
            write=left,
            pool=left,
        )


def attempt_until(attempt: Callable[[], T], clock: Clock, retry: Retry, attempts: int) -> T:
    """Call `attempt` until it does not raise `RetriableError`, `attempts` times at most.

    Raises:
        EndpointError: the last failure, or at once where waiting as long as needed is no use.
    """
    failures = 0
    while True:
        clock.check()
        try:
            return attempt()
        except RetriableError as failure:
            failures += 1
            cause = failure.__cause__
            wait = retry.wait(failures) if failure.wait is None else failure.wait
            if failures >= attempts:
                tail = f" ({failures} attempts)" if failures > 1 else ""
                raise EndpointError(f"{failure.error}{tail}") from cause
            if failure.wait is not None and wait > retry.patience:
                raise EndpointError(
                    f"{failure.error}; it asks to wait {wait:g} s, more than "
                    f"retry.patience={retry.patience:g}"
                ) from cause
            if wait >= clock.left():
                raise failure.error from cause
            time.sleep(wait)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date), None without one."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
