"""Budgets, splits, meters, and the account that models book their calls in."""

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import (
    Budget,
    Meter,
    Reservation,
    decaying_weights,
    split_even,
    split_weighted,
)
from outlay.errors import BudgetError, OutlayError
from outlay.models.base import Account

TOTALS = st.integers(0, 10**9)
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=12).filter(
    lambda weights: max(weights) > 0
)


# Splits


@given(TOTALS, WEIGHTS, st.sampled_from(["largest", "priority"]))
def test_a_split_sums_to_exactly_the_total(total, weights, remainder):
    shares = split_weighted(total, weights, remainder=remainder)
    assert sum(shares) == total
    assert len(shares) == len(weights)
    assert min(shares) >= 0


@given(TOTALS, WEIGHTS)
def test_largest_remainder_keeps_the_quota_rule(total, weights):
    norm = sum(map(Fraction, weights))
    for share, weight in zip(split_weighted(total, weights), weights, strict=True):
        exact = total * Fraction(weight) / norm
        assert abs(share - exact) < 1 + Fraction(1, 10**5)  # shares are computed in floats


@given(st.integers(0, 10_000), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_split_equals_hamiltons_method_in_exact_arithmetic(total, weights):
    if not any(weights):
        return
    norm = sum(weights)
    exact = [Fraction(total * weight, norm) for weight in weights]
    shares = [math.floor(part) for part in exact]
    order = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    remainders = [exact[i] - shares[i] for i in order]
    left = total - sum(shares)
    # Where the last left-over token has rivals of equal remainder, rounding may choose another.
    if 0 < left < len(order) and remainders[left - 1] == remainders[left]:
        assert sum(split_weighted(total, weights)) == total
        return
    for i in order[:left]:
        shares[i] += 1
    assert split_weighted(total, weights) == shares


@given(TOTALS, WEIGHTS)
def test_a_part_without_weight_gets_nothing(total, weights):
    for share, weight in zip(split_weighted(total, weights), weights, strict=True):
        assert weight > 0 or share == 0


@given(TOTALS, st.integers(1, 40))
def test_even_shares_differ_by_at_most_one_and_never_grow(total, parts):
    shares = split_even(total, parts)
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == total


@given(st.integers(0, 10**6), WEIGHTS, st.sampled_from([2.0, 0.5, 1024.0]))
def test_scaling_all_weights_changes_nothing(total, weights, scale):
    scaled = [weight * scale for weight in weights]  # powers of two: no rounding
    assert split_weighted(total, weights) == split_weighted(total, scaled)


def test_huge_totals_and_extreme_weights_still_sum_up():
    for total in (10**15, 10**18):
        assert sum(split_weighted(total, [0.1, 0.7, 3e-5, 1e9])) == total
    assert split_weighted(10, [5e-324, 5e-324]) == [5, 5]
    assert split_weighted(9, [1e308, 1e308, 1e308]) == [3, 3, 3]


def test_priority_remainder_goes_one_each_by_weight():
    # floor shares 4, 3, 2 of 10: the left-over token goes to the largest weight, not remainder.
    assert split_weighted(10, [4.05, 3.0, 2.95], remainder="priority") == [5, 3, 2]
    assert split_weighted(10, [4.05, 3.0, 2.95], remainder="largest") == [4, 3, 3]


def test_decaying_weights_fall_by_a_constant_factor():
    assert decaying_weights(3, decay=0.5) == [1.0, 0.5, 0.25]
    assert decaying_weights(2, decay=1.0) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split_weighted(-1, [1.0]), "total=-1"),
        (lambda: split_weighted(1.5, [1.0]), "not a whole number"),
        (lambda: split_weighted(True, [1.0]), "not a whole number"),
        (lambda: split_weighted(5, []), "at least one part"),
        (lambda: split_weighted(5, [1.0, -0.1]), "weight 1 is -0.1"),
        (lambda: split_weighted(5, [math.nan]), "weight 0 is nan"),
        (lambda: split_weighted(5, [math.inf]), "weight 0 is inf"),
        (lambda: split_weighted(5, [0.0, 0.0]), "all weights are zero"),
        (lambda: split_even(5, 0), "parts=0"),
        (lambda: decaying_weights(0), "parts=0"),
        (lambda: decaying_weights(2, decay=0.0), "decay=0.0"),
        (lambda: decaying_weights(2, decay=1.01), "decay=1.01"),
        (lambda: Budget(tokens=0), "tokens=0 is too small"),
        (lambda: Budget(tokens=-5), "tokens=-5"),
        (lambda: Budget(tokens=1.0), "tokens=1.0 is not a whole number"),
        (lambda: Budget(tokens="512"), "tokens='512'"),
        (lambda: Budget(tokens=True), "tokens=True"),
        (lambda: Budget(calls=0), "calls=0"),
        (lambda: Budget(usd=0.0), "usd=0.0"),
        (lambda: Budget(usd=math.nan), "usd=nan"),
        (lambda: Budget(flops=math.inf), "flops=inf"),
        (lambda: Budget(seconds=-1), "seconds=-1"),
        (lambda: Budget(seconds="1"), "seconds='1'"),
        (lambda: Budget(tokens=5, counts="words"), "choose one of generated, think"),
        (lambda: Budget(stages={"think": 5}), "give tokens= as well"),
        (lambda: Budget(tokens=5, stages={"think": 4, "answer": 2}), "sum to 6 tokens"),
        (lambda: Budget(tokens=5, stages={"think": -1}), "stages['think']=-1"),
        (lambda: Budget(usd=1.0).split({"think": 1.0}), "give tokens="),
        (lambda: Budget(tokens=4).meter().reserve(-1), "tokens=-1"),
    ],
)
def test_bad_input_raises_a_budget_error_that_says_why(call, words):
    with pytest.raises(BudgetError) as caught:
        call()
    assert words in str(caught.value)
    assert isinstance(caught.value, OutlayError)
    assert isinstance(caught.value, ValueError)


# Budget values


def test_a_budget_splits_its_tokens_over_stages():
    budget = Budget(tokens=10).split({"think": 2.0, "answer": 1.0})
    assert dict(budget.stages) == {"think": 7, "answer": 3}
    assert budget.stage("think") == 7
    assert budget.stage("prompt") == 10
    assert Budget(usd=1.0).stage("think") is None


def test_a_budget_survives_pickling_and_hashes_with_its_equals():
    budget = Budget(tokens=10, stages={"think": 6, "answer": 4}, usd=0.5, calls=3)
    copy = pickle.loads(pickle.dumps(budget))  # noqa: S301 - our own bytes
    assert copy == budget
    assert hash(copy) == hash(budget)


def test_stages_cannot_be_changed_afterwards():
    given_stages = {"think": 6}
    budget = Budget(tokens=10, stages=given_stages)
    given_stages["think"] = 100
    assert budget.stages["think"] == 6
    with pytest.raises(TypeError):
        budget.stages["think"] = 1  # type: ignore[index]


def test_labels_tell_different_limits_apart():
    budgets = [
        Budget(),
        Budget(tokens=5),
        Budget(tokens=5, counts="think"),
        Budget(tokens=5, stages={"think": 5}),
        Budget(usd=0.12345671),
        Budget(usd=0.12345672),
        Budget(flops=1e12),
        Budget(seconds=2),
        Budget(calls=2),
    ]
    assert len({budget.label() for budget in budgets}) == len(budgets)
    assert Budget().label() == "unlimited"
    assert Budget(flops=1e12).label() == "1e+12 FLOPs"


# Meter


def test_room_is_held_until_it_is_settled():
    meter = Budget(tokens=10).meter()
    first = meter.reserve(6)
    assert meter.remaining() == 4
    second = meter.reserve(6)
    assert second.tokens == 4
    with pytest.raises(BudgetError, match=r"0 of 10 generated tokens left.*raise tokens="):
        meter.reserve(1)
    meter.settle(first, 2)
    assert meter.remaining() == 4
    meter.settle(second, 4)
    assert meter.spent == 6
    assert not meter.exhausted()


def test_least_refuses_less_than_is_useful():
    meter = Budget(tokens=10).meter()
    meter.reserve(7)
    with pytest.raises(BudgetError, match="5 needed"):
        meter.reserve(8, least=5)
    assert meter.remaining() == 3


def test_overspending_is_booked_in_full_and_stops_what_follows():
    meter = Budget(tokens=10).meter()
    meter.settle(meter.reserve(4), 12)
    assert meter.spent == 12
    assert meter.remaining() == 0
    assert meter.exhausted()
    with pytest.raises(BudgetError):
        meter.reserve(1)


def test_a_stage_cannot_take_more_than_its_share():
    meter = Budget(tokens=10, stages={"think": 6, "answer": 4}).meter()
    think = meter.reserve(100, stage="think")
    assert think.tokens == 6
    assert meter.exhausted("think")
    assert meter.remaining("answer") == 4
    meter.settle(think, 1)
    assert meter.remaining("think") == 5


@pytest.mark.parametrize(
    ("budget", "spend", "words"),
    [
        (Budget(calls=1), {}, "all 1 calls"),
        (Budget(usd=1.0), {"usd": 1.0}, "money limit"),
        (Budget(flops=100.0), {"flops": 100.0}, "100 FLOPs"),
    ],
)
def test_other_limits_stop_the_next_call(budget, spend, words):
    meter = budget.meter()
    meter.settle(meter.reserve(5, **spend), 5)
    assert meter.exhausted()
    with pytest.raises(BudgetError, match=words):
        meter.reserve(1)


def test_a_call_that_might_cost_too_much_is_refused_beforehand():
    meter = Budget(usd=1.0).meter()
    meter.reserve(1, usd=0.75)
    with pytest.raises(BudgetError, match=r"0\.25 of 1 are left; raise usd="):
        meter.reserve(1, usd=0.5)


def test_settling_less_gives_money_back():
    meter = Budget(usd=1.0, flops=10.0).meter()
    meter.settle(meter.reserve(1, usd=0.75, flops=8.0), 1, usd=0.25, flops=3.0)
    assert (meter.usd, meter.flops) == (0.25, 3.0)
    meter.settle(meter.reserve(1, usd=0.5), 1)
    assert meter.usd == 0.75


def test_time_runs_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("outlay.budget.time.monotonic", lambda: now[0])
    meter = Meter(Budget(seconds=5), _start=100.0)
    assert meter.deadline == 105.0
    assert not meter.exhausted()
    now[0] = 105.0
    assert meter.exhausted()
    with pytest.raises(BudgetError, match="time limit of 5 s"):
        meter.reserve(1)
    assert Meter(Budget(tokens=1)).deadline is None


def test_without_a_token_limit_everything_is_granted():
    meter = Budget(calls=5).meter()
    assert meter.remaining() is None
    assert meter.reserve(10**6).tokens == 10**6


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30))
def test_honest_spenders_never_pass_the_limit(requests):
    meter = Budget(tokens=100).meter()
    spent = 0
    for want, use in requests:
        try:
            held = meter.reserve(want, least=0)
        except BudgetError:
            continue
        used = min(use, held.tokens)
        meter.settle(held, used)
        spent += used
        assert meter.spent == spent <= 100
        assert meter.remaining() == 100 - spent


def test_eight_threads_never_overspend_and_spend_it_all():
    meter = Budget(tokens=5_000, stages={"think": 3_000}).meter()
    start = threading.Barrier(8)

    def spender(index: int) -> tuple[int, int]:
        start.wait()
        spent = {"think": 0, "answer": 0}
        for turn in range(2_000):
            stage = ("think", "answer")[(index + turn) % 2]
            try:
                held = meter.reserve(1 + turn % 7, stage=stage)
            except BudgetError:
                continue
            used = held.tokens - held.tokens // 3
            meter.settle(held, used)
            spent[stage] += used
        return spent["think"], spent["answer"]

    with ThreadPoolExecutor(8) as pool:
        spent = list(pool.map(spender, range(8)))
    assert sum(think for think, _ in spent) <= 3_000
    assert sum(map(sum, spent)) == meter.spent <= 5_000
    assert meter.remaining() == 5_000 - meter.spent
    assert meter.exhausted("think")


# Account


def fair_reference(wants: list[int], room: int) -> list[int]:
    """Hand out one token at a time, round and round, to whoever still wants one."""
    caps = [0] * len(wants)
    while room > 0 and caps != wants:
        for index, want in enumerate(wants):
            if room > 0 and caps[index] < want:
                caps[index] += 1
                room -= 1
    return caps


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 100))
def test_hold_shares_scarce_room_as_the_slow_reference_does(wants, room):
    account = Account.open(Budget(tokens=room))
    hold = account.hold(wants)
    assert list(hold.limits) == fair_reference(wants, room)
    assert hold.truncated == (sum(wants) > room)
    assert account.meter.remaining() == room - sum(hold.limits)


def test_no_branch_falls_below_an_even_share_while_another_gets_more():
    assert Account.open(Budget(tokens=10)).hold([2, 9, 9]).limits == (2, 4, 4)
    assert Account.open(Budget(tokens=10)).hold([9, 9, 9]).limits == (4, 3, 3)


def test_settling_gives_back_what_was_not_sampled():
    account = Account.open(Budget(tokens=10))
    hold = account.hold([8])
    account.settle(hold, 3)
    assert account.meter.spent == 3
    assert account.meter.remaining() == 7


@pytest.mark.parametrize(
    ("counts", "stage", "counted"),
    [
        ("generated", "answer", 4),
        ("generated", "think", 4),
        ("think", "think", 4),
        ("think", "answer", 0),
        ("prompt", "answer", 0),
        ("all", "answer", 4 + 5 + 2),
    ],
)
def test_counts_decides_which_tokens_are_taken(counts, stage, counted):
    account = Account.open(Budget(tokens=20, counts=counts)).at(stage=stage)
    hold = account.hold([4], prompt=5, forced=2)
    assert hold.limits == (4,)
    account.settle(hold, 4)
    assert account.meter.spent == counted


def test_a_budget_of_all_tokens_leaves_room_for_the_prompt_first():
    account = Account.open(Budget(tokens=20, counts="all"))
    hold = account.hold([50], prompt=12, forced=3)
    assert hold.limits == (5,)
    account.settle(hold, 5)
    assert account.meter.remaining() == 0


def test_a_prompt_that_fills_the_budget_is_refused_with_the_numbers():
    account = Account.open(Budget(tokens=20, counts="all"))
    with pytest.raises(BudgetError, match=r"20 of 20 all tokens left.*26 needed"):
        account.hold([5], prompt=25)


def test_an_empty_account_refuses_what_is_wanted_but_not_nothing():
    account = Account.open(Budget(tokens=5))
    account.settle(account.hold([5]), 5)
    with pytest.raises(BudgetError, match="raise tokens="):
        account.hold([1])
    assert account.hold([0, 0]).limits == (0, 0)


@pytest.mark.parametrize(
    ("budget", "rate"),
    [
        (Budget(flops=100.0), {"flops_per_token": 10.0, "flops_fixed": 35.0}),
        (Budget(usd=1.0), {"usd_per_token": 0.1, "usd_fixed": 0.35}),
        (Budget(tokens=50, flops=100.0), {"flops_per_token": 10.0, "flops_fixed": 35.0}),
    ],
)
def test_money_and_flops_cap_the_tokens(budget, rate):
    hold = Account.open(budget).hold([50], **rate)
    assert hold.limits == (6,)
    assert hold.truncated


@pytest.mark.parametrize("tokens", [None, 50])
def test_too_little_money_for_one_token_is_an_error(tokens):
    account = Account.open(Budget(tokens=tokens, usd=1.0))
    with pytest.raises(BudgetError, match="no room for a single token"):
        account.hold([5], usd_per_token=2.0)
    assert account.meter.calls == 0


def test_an_account_without_a_budget_grants_all():
    account = Account()
    hold = account.hold([7, 8])
    assert hold.limits == (7, 8)
    account.settle(hold, 3)


def test_at_moves_within_the_same_ledger_and_meter():
    account = Account.open(Budget(tokens=5), method="m1")
    other = account.at("think", "verifier")
    assert (other.stage, other.role, other.method) == ("think", "verifier", "m1")
    assert other.ledger is account.ledger
    assert other.meter is account.meter


def test_a_hold_never_grants_more_than_it_reserved_when_another_spends_in_between():
    """The room read first may be gone when it is reserved; the caps must follow."""

    class Raced(Meter):
        def reserve(self, tokens: int, **options: object) -> Reservation:
            if not self.calls:
                super().reserve(6)
            return super().reserve(tokens, **options)  # type: ignore[arg-type]

    account = Account(meter=Raced(Budget(tokens=10)))
    hold = account.hold([10])
    assert hold.limits == (4,)
    assert hold.truncated


def test_eight_threads_holding_through_accounts_never_overspend():
    account = Account.open(Budget(tokens=3_000))
    start = threading.Barrier(8)

    def work(index: int) -> int:
        start.wait()
        total = 0
        for turn in range(300):
            try:
                hold = account.hold([1 + turn % 9, 3 + index])
            except BudgetError:
                continue
            used = sum(hold.limits) - turn % 2
            account.settle(hold, max(0, used))
            total += max(0, used)
        return total

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(work, range(8)))
    assert spent == account.meter.spent <= 3_000
