"""One batched call for prompts that each have their own ledger and budget.

`Model.extend` books on one account. Here every prompt's room is held on its own meter before the
call, and its entries and tokens are moved to its own books after it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from outlay.budget import Budget, Meter
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.ledger import Ledger, Stage
from outlay.models.base import (
    Account,
    Branch,
    Hold,
    LatentModel,
    Model,
    SamplingParams,
    Trail,
)


def late(account: Account) -> bool:
    """Whether the time limit of the account's budget has passed."""
    deadline = None if account.meter is None else account.meter.deadline
    return deadline is not None and time.monotonic() >= deadline


@dataclass(frozen=True)
class Growth:
    """n sampled children of every branch, on one account.

    Args:
        branches: of one model.
        sampling: one for all, or one per branch.
        n: children per branch.
        account: where they are booked, and whose budget they take room from.
        trail: hidden states that the children keep; only of a model that shows them.
    """

    branches: Sequence[Branch]
    sampling: SamplingParams | Sequence[SamplingParams]
    n: int
    account: Account
    trail: Trail | None = None

    def each(self) -> list[SamplingParams]:
        """The sampling of every branch."""
        if isinstance(self.sampling, SamplingParams):
            return [self.sampling] * len(self.branches)
        if len(self.sampling) != len(self.branches):
            raise InputError(
                f"{len(self.sampling)} sampling parameters for {len(self.branches)} branches"
            )
        return list(self.sampling)


def grow(model: Model, growths: Sequence[Growth]) -> list[list[list[Branch]] | BudgetError]:
    """Grow many trees in one call per number of children and kind of trail.

    Returns:
        Per growth the children, [branch][child], or the `BudgetError` of a budget that has nothing
        left.
    """
    results: list[list[list[Branch]] | BudgetError] = [[] for _ in growths]
    alike: dict[tuple[int, Trail | None], list[int]] = {}
    for at, growth in enumerate(growths):
        if growth.branches:
            alike.setdefault((growth.n, growth.trail), []).append(at)
    for (n, trail), members in alike.items():
        if len(members) == 1:
            growth = growths[members[0]]
            try:
                results[members[0]] = _extend(
                    model, growth.branches, growth.each(), n, growth.account, trail
                )
            except BudgetError as error:
                results[members[0]] = error
        else:
            for at, result in zip(
                members, _grow(model, [growths[i] for i in members], n, trail), strict=True
            ):
                results[at] = result
    return results


def _extend(
    model: Model,
    branches: Sequence[Branch],
    sampling: Sequence[SamplingParams],
    n: int,
    account: Account,
    trail: Trail | None,
) -> list[list[Branch]]:
    if trail is None:
        return model.extend(branches, sampling, n, account=account)
    if not isinstance(model, LatentModel):
        raise CapabilityError(f"{model.name} shows no hidden states; use a local model")
    return model.extend(branches, sampling, n, account=account, trail=trail)


def _grow(
    model: Model, growths: Sequence[Growth], n: int, trail: Trail | None
) -> list[list[list[Branch]] | BudgetError]:
    results: list[list[list[Branch]] | BudgetError] = []
    funded: list[tuple[Growth, Hold]] = []
    branches: list[Branch] = []
    granted: list[SamplingParams] = []
    for growth in growths:
        each = growth.each()
        try:
            hold = growth.account.hold([want.max_tokens for want in each for _ in range(n)])
        except BudgetError as error:
            results.append(error)
            continue
        results.append([])
        funded.append((growth, hold))
        branches += growth.branches
        for at, want in enumerate(each):
            room = min(hold.limits[at * n : (at + 1) * n])
            granted.append(replace(want, max_tokens=room))
    shared = Ledger()
    children: list[list[Branch]] = []
    try:
        if branches:
            deadline = _deadline([hold for _, hold in funded])
            place = funded[0][0].account
            whole = Account(shared, deadline, place.stage, place.role, place.method)
            children = _extend(model, branches, granted, n, whole, trail)
    finally:
        _book(shared, children, n, funded)
    parts = iter(zip(children, granted, strict=True))
    for at, result in enumerate(results):
        if not isinstance(result, BudgetError):
            results[at] = [
                [_named(child, given, want) for child in row]
                for want, (row, given) in zip(growths[at].each(), parts, strict=False)
            ]
    return results


def _named(child: Branch, given: SamplingParams, want: SamplingParams) -> Branch:
    """The child, its end called "budget" where the budget cut it."""
    cut = child.finish == "length" and given.max_tokens < want.max_tokens
    return replace(child, finish="budget") if cut else child


def _book(
    shared: Ledger,
    children: Sequence[Sequence[Branch]],
    n: int,
    funded: Sequence[tuple[Growth, Hold]],
) -> None:
    """Move entries to their own ledgers and settle; what a failed call spent is the first's."""
    owner: dict[str, int] = {}
    at = 0
    for index, (growth, _) in enumerate(funded):
        for row in children[at : at + len(growth.branches)]:
            owner.update((child.id, index) for child in row)
        at += len(growth.branches)
    counts, flops = [0] * len(funded), [0.0] * len(funded)
    for entry in shared.entries:
        index = owner.get(entry.branch or "", 0)
        account = funded[index][0].account
        moved = replace(entry, stage=account.stage, role=account.role, method=account.method)
        account.ledger.extend(Ledger([moved]))
        counts[index] += entry.generated
        flops[index] += entry.flops
    for (growth, hold), count, work in zip(funded, counts, flops, strict=True):
        growth.account.settle(hold, count, flops=work)


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
    places = [account.at(stage) for account in accounts]
    before = [len(place.ledger) for place in places]
    growths = [
        Growth([branch], want, 1, place)
        for branch, want, place in zip(branches, wants, places, strict=True)
    ]
    grown = grow(model, growths)
    for result in grown:
        if isinstance(result, BudgetError):
            if not any(map(late, places)):
                raise result
            return [None] * len(branches)
    made: list[tuple[Branch, int] | None] = []
    for result, place, start in zip(grown, places, before, strict=True):
        assert not isinstance(result, BudgetError)
        [[child]] = result
        fresh = place.ledger.entries[start:]
        made.append((child, sum(e.generated for e in fresh if e.branch == child.id)))
    return made


def _deadline(holds: Sequence[Hold]) -> Meter | None:
    """A meter that knows only the earliest deadline of the holds; None without one."""
    times = [hold.deadline for hold in holds if hold.deadline is not None]
    if not times:
        return None
    return Budget(seconds=max(1e-3, min(times) - time.monotonic())).meter()
