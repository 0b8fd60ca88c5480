"""The protocol's arithmetic as a state machine: no budget is ever exceeded, nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from outlay.gateway.money import Price
from outlay.gateway.store.books import (
    Ask,
    BudgetRow,
    Counters,
    Grant,
    Key,
    Line,
    Refusal,
    admit,
    candidates,
    index,
    settle,
)
from outlay.gateway.windows import Window

KEY = Key("k1", "ann", "caller", "ann", "red", "")
PRICE = Price(input=Decimal("0.5"), cached=Decimal("0.1"), output=Decimal(2))
ASK = Ask("r", KEY, "m", "default", "chat", "u", prompt=10, output=20)

windows = st.one_of(
    st.just(Window("total")),
    st.builds(Window, st.sampled_from(["hour", "day"])),
    st.builds(lambda s: Window("rolling", seconds=s), st.sampled_from([60, 3600, 86400])),
)
budgets = st.lists(
    st.builds(
        BudgetRow,
        id=st.uuids().map(lambda u: u.hex),
        name=st.just("b"),
        unit=st.sampled_from(["tokens", "nanousd"]),
        amount=st.integers(0, 300_000),
        window=windows,
        mode=st.sampled_from(["reject", "shrink"]),
    ),
    min_size=1,
    max_size=4,
)


class Books(RuleBasedStateMachine):
    """Admissions, settlements and the passing of time in any order."""

    @initialize(rows=budgets)
    def begin(self, rows: list[BudgetRow]) -> None:
        self.rows = rows
        self.counters = Counters()
        self.now = 1_795_000_000.0
        self.open: list[Grant] = []
        self.spent: list[tuple[float, int, int]] = []  # admitted at, tokens, nano-dollars

    @rule(
        prompt=st.integers(0, 500),
        output=st.integers(0, 500),
        choices=st.integers(1, 4),
        least=st.integers(1, 50),
    )
    def ask(self, prompt: int, output: int, choices: int, least: int) -> None:
        ask = replace(ASK, prompt=prompt, output=output, choices=choices, least=least, price=PRICE)
        before = {b.id: self.counters.used(b, self.now) for b in self.rows}
        found = admit(ask, self.rows, self.counters, self.now)
        if isinstance(found, Grant):
            assert found.output <= output
            if found.output < output:
                assert found.output >= least
                assert any(b.mode == "shrink" for b in self.rows)
            self.open.append(found)
            return
        assert isinstance(found, Refusal)
        for row in self.rows:  # nothing was reserved
            used = self.counters.used(row, self.now)
            assert (used.settled, used.reserved) == (
                before[row.id].settled,
                before[row.id].reserved,
            )
        assert found.need > found.left

    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data: st.DataObject, share: float) -> None:
        if not self.open:
            return
        at = data.draw(st.integers(0, len(self.open) - 1))
        grant = self.open.pop(at)
        tokens, nanousd = int(grant.tokens * share), int(grant.nanousd * share)
        settle(grant.lines, tokens, nanousd, self.counters)
        self.spent.append((grant.admitted_at, tokens, nanousd))

    @rule(seconds=st.floats(0, 90_000))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_budget_is_exceeded(self) -> None:
        for row in getattr(self, "rows", ()):
            used = self.counters.used(row, self.now)
            assert used.settled + used.reserved <= row.amount
            assert used.settled >= 0
            assert used.reserved >= 0

    @invariant()
    def the_counters_are_what_was_spent_and_what_is_open(self) -> None:
        for row in getattr(self, "rows", ()):
            since = row.window.since(self.now)
            unit = 1 if row.unit == "tokens" else 2
            settled = sum(s[unit] for s in self.spent if row.window.bucket(s[0]) >= since)
            reserved = sum(
                line.amount
                for grant in self.open
                for line in grant.lines
                if line.budget == row.id and line.bucket >= since
            )
            used = self.counters.used(row, self.now)
            assert (used.settled, used.reserved) == (settled, reserved)


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBooks = Books.TestCase


def budget(**knobs: object) -> BudgetRow:
    return replace(
        BudgetRow("b1", "ann's", "tokens", 100, Window("day")),
        **knobs,  # type: ignore[arg-type]
    )


def test_a_request_is_charged_to_every_budget_whose_filters_all_match() -> None:
    rows = [
        budget(id="a", key_id="k1"),
        budget(id="b", owner="ann", model="m"),
        budget(id="c", team="red", route="other"),
        budget(id="d"),
        budget(id="e", key_id="k2"),
        budget(id="f", model="m"),
    ]
    assert [b.id for b in candidates(ASK, index(rows))] == ["a", "b", "d", "f"]


def test_a_refusal_says_whether_waiting_helps() -> None:
    counters = Counters()
    counters.change("b1", Window("day").bucket(1e9), 0, 80)
    busy = admit(ASK, [budget()], counters, 1e9)
    assert isinstance(busy, Refusal)
    assert (busy.kind, busy.need, busy.left) == ("busy", 30, 20)
    settle([Line("b1", Window("day").bucket(1e9), "tokens", 80)], 80, 0, counters)
    exhausted = admit(ASK, [budget()], counters, 1e9)
    assert isinstance(exhausted, Refusal)
    assert exhausted.kind == "exhausted"
    assert exhausted.renews_at == Window("day").renews(1e9)
    spent = admit(ASK, [budget(window=Window("total"), amount=5)], Counters(), 1e9)
    assert isinstance(spent, Refusal)
    assert (spent.kind, spent.renews_at) == ("spent", None)


def test_without_a_price_nothing_is_admitted_on_a_money_budget() -> None:
    found = admit(ASK, [budget(unit="nanousd", amount=10**12)], Counters(), 1e9)
    assert isinstance(found, Refusal)
    assert found.kind == "unpriced"


@pytest.mark.parametrize("unit", ["tokens", "nanousd"])
def test_a_shrinking_budget_gives_the_most_that_fits(unit: str) -> None:
    ask = replace(ASK, choices=3, output=1000, price=PRICE)
    row = budget(unit=unit, mode="shrink", amount=100 if unit == "tokens" else 200_000)
    found = admit(ask, [row], Counters(), 1e9)
    assert isinstance(found, Grant)
    assert ask.need(row.unit, found.output) <= row.amount < ask.need(row.unit, found.output + 1)
    refused = admit(replace(ask, least=found.output + 1), [row], Counters(), 1e9)
    assert isinstance(refused, Refusal)


def test_a_budget_in_mode_reject_refuses_what_one_in_mode_shrink_would_cut() -> None:
    rows = [budget(id="a", mode="shrink", amount=25), budget(id="b", amount=20)]
    found = admit(ASK, rows, Counters(), 1e9)
    assert isinstance(found, Refusal)
    assert found.need == 25
