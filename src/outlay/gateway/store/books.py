"""The protocol's arithmetic: what fits, what is reserved, what is settled. No database, no clock.

Invariant: for every budget, settled + reserved <= amount over the buckets that count. An admission
reserves the worst case on every budget that applies, or on none. A settlement moves a reservation
to what was used. Only an upstream that produced more than it was allowed can settle above what was
reserved (an overrun).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from outlay.gateway.money import Price
from outlay.gateway.windows import Window

Unit = Literal["tokens", "nanousd"]
Mode = Literal["reject", "shrink"]
RefusalKind = Literal["exhausted", "spent", "busy", "unpriced", "suspended", "revoked"]


@dataclass(frozen=True)
class Key:
    """A caller. `models` are patterns; empty for all."""

    id: str
    name: str
    role: str
    owner: str
    team: str
    digest: str
    models: tuple[str, ...] = ()
    expires_at: float | None = None
    revoked_at: float | None = None

    def alive(self, now: float) -> bool:
        """False once revoked or expired."""
        over = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is None and not over

    def may_use(self, model: str) -> bool:
        """Whether the key may ask for `model`."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True)
class BudgetRow:
    """A limit and whom it applies to: every filter that is given must match."""

    id: str
    name: str
    unit: Unit
    amount: int
    window: Window
    mode: Mode = "reject"
    key_id: str | None = None
    owner: str | None = None
    team: str | None = None
    model: str | None = None
    route: str | None = None

    def applies(self, ask: Ask) -> bool:
        """Whether a request is charged to this budget."""
        key = ask.key
        pairs = (
            (self.key_id, key.id),
            (self.owner, key.owner),
            (self.team, key.team),
            (self.model, ask.model),
            (self.route, ask.route),
        )
        return all(wanted is None or wanted == given for wanted, given in pairs)


@dataclass(frozen=True)
class Ask:
    """One attempt that wants to be admitted.

    Args:
        id: of the reservation.
        key: the caller's.
        model, route, endpoint, upstream: where it goes.
        prompt: bound of the prompt's tokens.
        output: most tokens per choice.
        choices: n.
        requests: calls upstream that it pays for; more than one where a policy makes them.
        price: None where the operator gave none.
        least: the fewest tokens per choice worth sending, for budgets that shrink.
        sent: whether it goes upstream at once; else it is `held` until `Store.send`.
        request: the request that attempts belong to.
        attempt: 1, 2, ...
        idempotency: the caller's key for the whole request, "" for none.
        fingerprint: of the request's body.
    """

    id: str
    key: Key
    model: str
    route: str
    endpoint: str
    upstream: str
    prompt: int
    output: int
    choices: int = 1
    price: Price | None = None
    least: int = 1
    sent: bool = True
    request: str = ""
    attempt: int = 1
    idempotency: str = ""
    fingerprint: str = ""
    requests: int = 1

    def tokens(self, output: int) -> int:
        """Worst case in tokens with `output` tokens per choice."""
        return self.prompt + self.choices * output

    def nanousd(self, output: int) -> int:
        """Worst case in nano-dollars; 0 without a price."""
        if self.price is None:
            return 0
        return self.price.worst(self.prompt, self.choices * output, self.requests)

    def need(self, unit: Unit, output: int) -> int:
        """Worst case in a budget's unit."""
        return self.tokens(output) if unit == "tokens" else self.nanousd(output)

    def most(self, unit: Unit, room: int) -> int | None:
        """Most tokens per choice whose worst case fits `room`; None for any, negative for none."""
        if unit == "tokens":
            return (room - self.prompt) // self.choices if room >= self.prompt else -1
        assert self.price is not None
        most = self.price.most_output(self.prompt, room, self.requests)
        return most if most is None or most < 0 else most // self.choices


class Line(NamedTuple):
    """What one budget holds for a reservation."""

    budget: str
    bucket: int
    unit: Unit
    amount: int


@dataclass(frozen=True)
class Left:
    """A budget after an admission or a settlement."""

    budget: str
    unit: Unit
    amount: int
    left: int
    renews_at: float | None


@dataclass(frozen=True)
class Grant:
    """An admitted attempt: at most `output` tokens per choice."""

    id: str
    output: int
    tokens: int
    nanousd: int
    lines: tuple[Line, ...]
    left: tuple[Left, ...]
    admitted_at: float


@dataclass(frozen=True)
class Refusal:
    """Why an attempt was not admitted.

    `exhausted` renews at `renews_at`, `spent` never does; `busy`: only reservations of others are
    in the way.
    """

    kind: RefusalKind
    budget: str = ""
    unit: Unit = "tokens"
    need: int = 0
    left: int = 0
    renews_at: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Charge:
    """What an attempt used, or that it is not known (`full`: it is charged in full).

    Args:
        prompt, cached, output, reasoning: tokens; `cached` is part of `prompt`, `reasoning` of
            `output`.
        nanousd: what these cost.
        full: charge all that was reserved, as `unknown`.
        unknown: some of it is not known and counted in full: booked as `unknown`.
        status: HTTP status that the caller got.
        seconds, ttft: durations.
        stages: JSON of a stack's own ledger.
        note: for people.
    """

    prompt: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    nanousd: int = 0
    full: bool = False
    unknown: bool = False
    status: int = 200
    seconds: float = 0.0
    ttft: float | None = None
    stages: str = ""
    note: str = ""

    @property
    def tokens(self) -> int:
        """Prompt and output."""
        return self.prompt + self.output


@dataclass
class Counter:
    """What one budget has settled and reserved in one bucket."""

    settled: int = 0
    reserved: int = 0


@dataclass
class Counters:
    """The counters of a batch, and how the batch changed them."""

    rows: dict[str, dict[int, Counter]] = field(default_factory=lambda: defaultdict(dict))
    changes: dict[tuple[str, int], Counter] = field(default_factory=dict)

    def at(self, budget: str, bucket: int) -> Counter:
        """One counter; zeros where there was none."""
        return self.rows[budget].setdefault(bucket, Counter())

    def change(self, budget: str, bucket: int, settled: int, reserved: int) -> None:
        """Add to one counter."""
        for counter in (
            self.at(budget, bucket),
            self.changes.setdefault((budget, bucket), Counter()),
        ):
            counter.settled += settled
            counter.reserved += reserved

    def used(self, budget: BudgetRow, now: float) -> Counter:
        """Sums over the buckets that count at `now`."""
        since = budget.window.since(now)
        total = Counter()
        for bucket, counter in self.rows[budget.id].items():
            if bucket >= since:
                total.settled += counter.settled
                total.reserved += counter.reserved
        return total

    def renews(self, budget: BudgetRow, now: float) -> float | None:
        """When spending on `budget` is next forgotten."""
        since = budget.window.since(now)
        spent = [
            bucket
            for bucket, counter in self.rows[budget.id].items()
            if bucket >= since and (counter.settled or counter.reserved)
        ]
        return budget.window.renews(now, min(spent, default=None))

    def left(self, budget: BudgetRow, now: float) -> Left:
        """A budget as callers are told about it."""
        used = self.used(budget, now)
        return Left(
            budget.name,
            budget.unit,
            budget.amount,
            max(0, budget.amount - used.settled - used.reserved),
            self.renews(budget, now),
        )


def admit(
    ask: Ask, budgets: Sequence[BudgetRow], counters: Counters, now: float
) -> Grant | Refusal:
    """Reserve the worst case on every budget in `budgets`, or on none.

    Budgets in mode "shrink" lower the output to what is left of them, down to `ask.least`.
    """
    output = ask.output
    for budget in budgets:
        if budget.unit == "nanousd" and ask.price is None:
            return Refusal(
                "unpriced", budget.name, budget.unit, reason=f"model {ask.model} has no price"
            )
        if budget.mode == "shrink":
            used = counters.used(budget, now)
            room = budget.amount - used.settled - used.reserved
            most = ask.most(budget.unit, room)
            if most is not None and ask.least <= most < output:
                output = most
    for budget in budgets:
        need = ask.need(budget.unit, output)
        used = counters.used(budget, now)
        left = budget.amount - used.settled - used.reserved
        if need > left:
            return _refusal(budget, need, used, counters, now)
    lines = tuple(
        Line(b.id, b.window.bucket(now), b.unit, ask.need(b.unit, output)) for b in budgets
    )
    for line in lines:
        counters.change(line.budget, line.bucket, 0, line.amount)
    left_now = tuple(counters.left(budget, now) for budget in budgets)
    return Grant(
        ask.id, output, ask.tokens(output), ask.nanousd(output), lines, left_now, admitted_at=now
    )


def _refusal(
    budget: BudgetRow, need: int, used: Counter, counters: Counters, now: float
) -> Refusal:
    renews = counters.renews(budget, now)
    kind: RefusalKind = "exhausted" if renews is not None else "spent"
    if need <= budget.amount - used.settled:
        kind = "busy"
    left = max(0, budget.amount - used.settled - used.reserved)
    return Refusal(kind, budget.name, budget.unit, need, left, renews)


def settle(lines: Iterable[Line], tokens: int, nanousd: int, counters: Counters) -> None:
    """Move a reservation's lines to what was used."""
    for line in lines:
        used = tokens if line.unit == "tokens" else nanousd
        counters.change(line.budget, line.bucket, used, -line.amount)


def index(budgets: Iterable[BudgetRow]) -> Mapping[tuple[str, str], list[BudgetRow]]:
    """Budgets by their narrowest filter, for `candidates`."""
    found: dict[tuple[str, str], list[BudgetRow]] = defaultdict(list)
    for budget in budgets:
        for name in ("key_id", "owner", "team", "model", "route"):
            value = getattr(budget, name)
            if value is not None:
                found[name, value].append(budget)
                break
        else:
            found["", ""].append(budget)
    return found


def candidates(ask: Ask, indexed: Mapping[tuple[str, str], Sequence[BudgetRow]]) -> list[BudgetRow]:
    """The budgets that apply, in a fixed order."""
    key = ask.key
    places = (
        ("key_id", key.id),
        ("owner", key.owner),
        ("team", key.team),
        ("model", ask.model),
        ("route", ask.route),
        ("", ""),
    )
    found = [b for place in places for b in indexed.get(place, ()) if b.applies(ask)]
    return sorted(found, key=lambda budget: budget.id)
