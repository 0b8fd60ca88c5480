"""What was reserved for one request, handed out call by call.

A policy's methods make many calls upstream. None is sent unless its own worst case fits what is
left of the reservation, so that the whole cannot cost more than was reserved, whatever a method
does.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from outlay.errors import BudgetError
from outlay.gateway.usage import Usage


@dataclass
class Taken:
    """The worst case of one call; `used` once its answer is `known`."""

    prompt: int
    output: int
    used: Usage | None = None
    sent: bool = False
    known: bool = False


@dataclass
class Purse:
    """The reservation of one request.

    Args:
        prompt, output: tokens that were reserved.
        calls: that were reserved, as each may have a price; None is no limit.
    """

    prompt: int
    output: int
    calls: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _calls: list[Taken] = field(default_factory=list)
    _closed: bool = False

    def take(self, prompt: int, output: int) -> Taken:
        """Set the worst case of one call aside.

        Raises:
            BudgetError: if it does not fit what is left, or the request is over.
        """
        with self._lock:
            if self._closed:
                raise BudgetError("the request is over; nothing more is sent")
            if self.calls is not None and self._made(held=True) >= self.calls:
                raise BudgetError(f"all {self.calls} calls of the reservation have been made")
            left = self._left()
            if prompt > left.prompt or output > left.output:
                raise BudgetError(
                    f"a call of up to {prompt} prompt and {output} output tokens does not fit what "
                    f"is left of the reservation: {left.prompt} and {left.output}"
                )
            taken = Taken(prompt, output)
            self._calls.append(taken)
            return taken

    def send(self, taken: Taken) -> None:
        """The call goes out now: from here on it counts in full until it is settled.

        Raises:
            BudgetError: if the request is over.
        """
        with self._lock:
            if self._closed:
                raise BudgetError("the request is over; nothing more is sent")
            taken.sent = True

    def settle(self, taken: Taken, used: Usage | None) -> None:
        """What a call used; None: it is not known, and the call counts in full."""
        with self._lock:
            taken.used = used or Usage(taken.prompt, 0, taken.output, 0)
            taken.known = used is not None

    def left(self) -> Usage:
        """What can still be taken."""
        with self._lock:
            return self._left()

    def _left(self) -> Usage:
        spent = self._spent(held=True)
        return Usage(max(0, self.prompt - spent.prompt), 0, max(0, self.output - spent.output), 0)

    def close(self) -> Usage:
        """End the request; what its calls used, those without an outcome in full."""
        with self._lock:
            self._closed = True
            return self._spent(held=False)

    @property
    def unknown(self) -> bool:
        """Whether a call was sent whose use is not known."""
        with self._lock:
            return any(taken.sent and not taken.known for taken in self._calls)

    @property
    def made(self) -> int:
        """Calls that were sent, without those that are known to have cost nothing."""
        with self._lock:
            return self._made(held=False)

    def _made(self, *, held: bool) -> int:
        return sum(
            taken.used is None or taken.used.prompt + taken.used.output > 0
            for taken in self._calls
            if held or taken.sent or taken.used is not None
        )

    def _spent(self, *, held: bool) -> Usage:
        counted = [
            taken.used or Usage(taken.prompt, 0, taken.output, 0)
            for taken in self._calls
            if held or taken.sent or taken.used is not None
        ]
        return Usage(
            sum(each.prompt for each in counted),
            sum(each.cached for each in counted),
            sum(each.output for each in counted),
            sum(each.reasoning for each in counted),
        )
