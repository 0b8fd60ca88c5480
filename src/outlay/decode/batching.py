"""One batched call for prompts that each have their own ledger and budget.

`Model.extend` books on one account. Here every prompt's room is held on its own meter before the
call, and its entries and tokens are moved to its own books after it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from outlay.budget import Budget, Meter
from outlay.errors import BudgetError
from outlay.ledger import Ledger, Stage
from outlay.models.base import Account, Branch, Hold, Model, SamplingParams


def late(account: Account) -> bool:
    """Whether the time limit of the account's budget has passed."""
    deadline = None if account.meter is None else account.meter.deadline
    return deadline is not None and time.monotonic() >= deadline


def sample(
    model: Model,
    branches: Sequence[Branch],
    wants: Sequence[SamplingParams],
    accounts: Sequence[Account],
    stage: Stage,
) -> list[tuple[Branch, int] | None]:
    """One child per branch, and the tokens sampled for it (dropped stops included).

    Args:
        model: of the branches.
        branches, wants, accounts: one each per prompt.
        stage: where the tokens are booked.

    Returns:
        The children; all None where a time limit has passed.

    Raises:
        BudgetError: if a prompt's budget has nothing left.
    """
    if not branches:
        return []
    places = [account.at(stage) for account in accounts]
    try:
        if len(branches) == 1:
            return [_alone(model, branches[0], wants[0], places[0])]
        return list(_together(model, branches, wants, places, stage))
    except BudgetError:
        if not any(map(late, places)):
            raise
        return [None] * len(branches)


def _alone(
    model: Model, branch: Branch, want: SamplingParams, place: Account
) -> tuple[Branch, int]:
    before = len(place.ledger)
    [[child]] = model.extend([branch], [want], account=place)
    fresh = place.ledger.entries[before:]
    return child, sum(entry.generated for entry in fresh if entry.branch == child.id)


def _together(
    model: Model,
    branches: Sequence[Branch],
    wants: Sequence[SamplingParams],
    places: Sequence[Account],
    stage: Stage,
) -> list[tuple[Branch, int]]:
    shared = Ledger()
    holds: list[Hold] = []
    children: list[Branch] = []
    counts: list[int] = []
    try:
        for place, want in zip(places, wants, strict=True):
            holds.append(place.hold([want.max_tokens]))
        granted = [
            replace(want, max_tokens=hold.limits[0])
            for want, hold in zip(wants, holds, strict=True)
        ]
        whole = Account(shared, _deadline(holds), stage, places[0].role, places[0].method)
        children = [row[0] for row in model.extend(branches, granted, account=whole)]
    finally:
        counts = _book(shared, children, places, holds)
    return list(zip(children, counts, strict=True))


def _book(
    shared: Ledger,
    children: Sequence[Branch],
    places: Sequence[Account],
    holds: Sequence[Hold],
) -> list[int]:
    """Move entries to the prompts' ledgers and settle; what a failed call spent is the first's."""
    row = {child.id: i for i, child in enumerate(children)}
    counts, flops = [0] * len(places), [0.0] * len(places)
    for entry in shared.entries:
        i = row.get(entry.branch or "", 0)
        places[i].ledger.extend(Ledger([replace(entry, method=places[i].method)]))
        counts[i] += entry.generated
        flops[i] += entry.flops
    for place, hold, count, work in zip(places, holds, counts, flops, strict=False):
        place.settle(hold, count, flops=work)
    return counts[: len(children)]


def _deadline(holds: Sequence[Hold]) -> Meter | None:
    """A meter that knows only the earliest deadline of the holds; None without one."""
    times = [hold.deadline for hold in holds if hold.deadline is not None]
    if not times:
        return None
    return Budget(seconds=max(1e-3, min(times) - time.monotonic())).meter()
