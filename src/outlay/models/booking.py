"""Booking of passes that sample nothing: prompts, forced text, scoring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from outlay.models.base import Account, Hold


@contextlib.contextmanager
def given_back(account: Account, hold: Hold) -> Iterator[None]:
    """A call that fails is in no ledger, so the meter must not count it either."""
    try:
        yield
    except BaseException:
        account.settle(hold, -hold.fixed)
        raise


def book_pass(
    account: Account,
    hold: Hold,
    *,
    seconds: float,
    flops: float,
    prompt: int = 0,
    branch: str | None = None,
) -> None:
    """Settle a pass and enter it.

    Args:
        account: where it is booked.
        hold: the room that it was granted.
        seconds, flops: that it took.
        prompt: tokens that it read.
        branch: that it was made for.
    """
    account.settle(hold, 0, flops=flops)
    account.ledger.record(
        account.stage,
        account.role,
        prompt_new=prompt,
        branch=branch,
        method=account.method,
        seconds=seconds,
        flops=flops,
    )
