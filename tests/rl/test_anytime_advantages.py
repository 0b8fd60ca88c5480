"""Advantages of anytime reasoning against hand-written references, in 64 bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outlay.errors import BudgetError, InputError
from outlay.rl.anytime.advantages import (
    baseline,
    from_earlier,
    from_group,
    returns,
    summary_advantages,
    thinking_advantages,
)
from outlay.rl.anytime.cuts import branches, check_budgets, prior_weights, spans

MODES = ("brpo", "v1", "v2", "none")


def reference(
    rewards: list[list[float]], prior: list[float], lam: float, mode: str, loo: bool = False
) -> list[list[float]]:
    """The sheet's formulas, one number at a time; s counts from 1."""
    group, slots = len(rewards), len(prior)

    def ret(g: int, s: int) -> float:
        return sum(prior[j - 1] * rewards[g][j - 1] for j in range(s, slots + 1))

    found = []
    for g in range(group):
        row = []
        for s in range(1, slots + 1):
            tail = sum(prior[j - 1] for j in range(s, slots + 1))
            v1 = 0.0
            if s > 1:
                weights = [lam ** (s - j) for j in range(1, s)]
                past = sum(w * rewards[g][j - 1] for j, w in zip(range(1, s), weights, strict=True))
                v1 = past / sum(weights) * tail
            others = [ret(k, s) for k in range(group) if not (loo and k == g)]
            v2 = sum(others) / len(others) if group > 1 else 0.0
            value = {
                "none": 0.0,
                "v1": v1,
                "v2": v2,
                "brpo": (s - 1) / slots * v1 + (slots - s + 1) / slots * v2,
            }[mode]
            row.append(ret(g, s) - value)
        found.append(row)
    return found


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[list[float]], list[float], float]:
    group, slots = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    reward = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    rows = st.lists(reward, min_size=slots, max_size=slots)
    rewards = draw(st.lists(rows, min_size=group, max_size=group))
    raw = draw(st.lists(st.floats(0.01, 1), min_size=slots, max_size=slots))
    return rewards, list(prior_weights(tuple(raw), range(1, slots + 1))), draw(st.floats(0.05, 1))


def tensor(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(groups(), st.sampled_from(MODES), st.booleans())
def test_every_baseline_equals_the_formula(
    case: tuple[list[list[float]], list[float], float], mode: str, loo: bool
) -> None:
    rewards, prior, lam = case
    found = thinking_advantages(tensor(rewards), prior, lam, mode, loo)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, tensor(reference(rewards, prior, lam, mode, loo)), rtol=0, atol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(groups(), st.floats(-1, 1), st.sampled_from(["brpo", "v2"]))
def test_a_constant_added_to_all_rewards_changes_nothing(
    case: tuple[list[list[float]], list[float], float], c: float, mode: str
) -> None:
    rewards, prior, lam = case
    if len(rewards) == 1:
        rewards = rewards * 2
    plain = thinking_advantages(tensor(rewards), prior, lam, mode)  # type: ignore[arg-type]
    moved = thinking_advantages(tensor(rewards) + c, prior, lam, mode)  # type: ignore[arg-type]
    torch.testing.assert_close(plain, moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["brpo", "v1", "v2"])
def test_equal_rewards_give_no_advantage(mode: str) -> None:
    found = thinking_advantages(
        torch.full((3, 4), 0.7, dtype=torch.float64),
        prior_weights("linear", (1, 2, 3, 4)),
        0.5,
        mode,  # type: ignore[arg-type]
    )
    later = found[:, 1:] if mode == "v1" else found
    torch.testing.assert_close(later, torch.zeros_like(later), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(groups())
def test_v2_alone_sums_to_zero_over_the_group(
    case: tuple[list[list[float]], list[float], float],
) -> None:
    rewards, prior, lam = case
    if len(rewards) == 1:
        rewards = [*rewards, [1.0] * len(prior)]
    total = thinking_advantages(tensor(rewards), prior, lam, "v2").sum(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_v1_of_the_first_budget_and_v2_of_a_single_thinking_are_zero() -> None:
    rewards = tensor([[1.0, 0.0, 1.0]])
    prior = prior_weights("uniform", (1, 2, 3))
    assert from_earlier(rewards, prior, 0.5)[0, 0] == 0
    assert not from_group(returns(rewards, prior)).any()


def test_at_lam_0_only_the_last_budget_counts() -> None:
    rewards = tensor([[1.0, 0.0, 0.25, 1.0]])
    prior = prior_weights("uniform", (1, 2, 3, 4))
    found = from_earlier(rewards, prior, 0.0)[0]
    expected = [0.0, 1.0 * 0.75, 0.0 * 0.5, 0.25 * 0.25]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    near = from_earlier(rewards, prior, 1e-9)[0]
    torch.testing.assert_close(found, near, rtol=0, atol=1e-6)


def test_weights_of_the_release_give_the_same_v1() -> None:
    rewards, prior = torch.rand(3, 5, dtype=torch.float64), prior_weights("linear", range(1, 6))
    found = from_earlier(rewards, prior, 0.5)
    for s in range(1, 5):
        weights = torch.tensor([2.0**j for j in range(s)], dtype=torch.float64)
        mean = (rewards[:, :s] * weights).sum(1) / weights.sum()
        torch.testing.assert_close(found[:, s], mean * sum(prior[s:]))


def test_credit_goes_to_the_segment_that_made_the_answer_right() -> None:
    """Wrong up to the second cut, right from the third on, among thinkings never right."""
    rewards = tensor([[0, 0, 1, 1, 1], *[[0, 0, 0, 0, 0]] * 3])
    prior = prior_weights("uniform", range(1, 6))
    own = returns(rewards, prior)[0]
    assert own[0] == own[1] == own[2] > own[3] > own[4]
    for mode in ("brpo", "v1"):
        found = thinking_advantages(rewards, prior, 0.5, mode)[0]  # type: ignore[arg-type]
        assert found[2] > found[3] > found[4]


def test_base_prior_and_v2_give_one_advantage_to_the_whole_thinking_as_grpo_does() -> None:
    rewards = torch.rand(8, 4, dtype=torch.float64)
    found = thinking_advantages(rewards, prior_weights("base", (1, 2, 3, 4)), 0.5, "v2")
    grpo = rewards[:, -1] - rewards[:, -1].mean()
    torch.testing.assert_close(found, grpo[:, None].expand(8, 4))


def test_one_budget_and_one_answer_is_dr_grpo() -> None:
    rewards = torch.rand(8, 1, 1, dtype=torch.float64)
    plain = (rewards - rewards.mean(0)).squeeze()
    thinking = thinking_advantages(rewards[:, :, 0], (1.0,), 0.5, "brpo")
    answers = summary_advantages(rewards, torch.zeros(8, 1, dtype=torch.long), "last")
    torch.testing.assert_close(thinking.squeeze(), plain)
    torch.testing.assert_close(answers.squeeze(), plain)


def test_std_divides_by_the_spread_of_the_returns() -> None:
    rewards, prior = torch.rand(6, 3, dtype=torch.float64), prior_weights("uniform", (1, 2, 3))
    plain = thinking_advantages(rewards, prior, 0.5, "v2")
    scaled = thinking_advantages(rewards, prior, 0.5, "v2", norm="std")
    spread = torch.stack([returns(rewards, prior)[:, s].std() for s in range(3)])
    torch.testing.assert_close(scaled, plain / (spread + 1e-4))


def test_leave_one_out_is_unbiased_where_the_own_return_is_not() -> None:
    """The covariance of a thinking's return with its baseline, over all 0/1 groups of three."""
    cases = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)

    def covariance(loo: bool) -> float:
        v2 = torch.stack([from_group(row[:, None], loo)[0, 0] for row in cases])
        own = cases[:, 0]
        return float(((own - own.mean()) * (v2 - v2.mean())).mean())

    assert abs(covariance(True)) < 1e-12
    assert covariance(False) > 0.05


# -- answers --------------------------------------------------------------------------------------


def slow_summaries(rewards: Tensor, branch: Tensor) -> Tensor:
    found = torch.zeros_like(rewards)
    for g, s in itertools.product(range(rewards.shape[0]), range(rewards.shape[1])):
        pooled = [
            float(rewards[g, j, a])
            for j in range(rewards.shape[1])
            if branch[g, j] == branch[g, s]
            for a in range(rewards.shape[2])
        ]
        found[g, s] = rewards[g, s] - sum(pooled) / len(pooled)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 4), st.integers(0, 1000))
def test_answers_are_compared_within_their_branch(g: int, s: int, a: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (g, s, a), generator=generator).double()
    branch = torch.randint(0, 2, (g, s), generator=generator).cumsum(1)
    found = summary_advantages(rewards, branch)
    torch.testing.assert_close(found, slow_summaries(rewards, branch), rtol=0, atol=1e-12)
    for row, number in itertools.product(range(g), branch.unique().tolist()):
        assert abs(float(found[row][branch[row] == number].sum())) < 1e-9


def test_with_one_answer_the_group_is_compared_at_the_same_budget() -> None:
    rewards = torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]], [[0.0], [1.0]]], dtype=torch.float64)
    found = summary_advantages(rewards, torch.zeros(3, 2, dtype=torch.long))
    torch.testing.assert_close(found, rewards - rewards.mean(0, keepdim=True))


def test_last_trains_the_answers_of_the_last_budget_only() -> None:
    rewards = torch.rand(2, 3, 4, dtype=torch.float64)
    branch = torch.tensor([[0, 1, 2], [0, 1, 1]])
    every, last = summary_advantages(rewards, branch), summary_advantages(rewards, branch, "last")
    assert not last[:, :2].any()
    torch.testing.assert_close(last[:, 2], every[:, 2])


def test_coupled_answers_are_weighed_by_the_prior() -> None:
    rewards = torch.rand(2, 3, 4, dtype=torch.float64)
    branch = torch.arange(3).expand(2, 3)
    plain = summary_advantages(rewards, branch)
    coupled = summary_advantages(rewards, branch, weights_S=(0.0, 1.0, 2.0))
    expected = plain * torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(coupled, expected)


# -- cuts -----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(1, 80),
    st.booleans(),
)
def test_every_budget_has_one_branch_of_the_right_cut(
    budgets: list[int], length: int, ended: bool
) -> None:
    length = min(length, budgets[-1])
    found = branches(length, ended, budgets)
    slots = [slot for one in found for slot in one.slots]
    assert slots == list(range(len(budgets)))
    assert len({(one.cut, one.forced) for one in found}) == len(found)
    for one in found:
        for slot in one.slots:
            assert one.cut == min(budgets[slot], length)
            assert one.forced == (length > budgets[slot] or not ended)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(1, 60),
)
def test_segments_tile_the_thinking_and_no_more(budgets: list[int], length: int) -> None:
    length = min(length, budgets[-1])
    found = spans(length, budgets)
    tokens = [t for start, end in found for t in range(start, end)]
    assert tokens == list(range(length))
    assert [start for start, _ in found] == [b for b in (0, *budgets[:-1]) if b < length]


def test_a_thinking_that_ended_shares_its_end_among_later_budgets() -> None:
    found = branches(12, True, (8, 16, 32, 64))
    assert [(one.cut, one.slots, one.forced) for one in found] == [
        (8, (0,), True),
        (12, (1, 2, 3), False),
    ]
    stopped = branches(64, False, (8, 16, 32, 64))
    assert [(one.cut, one.forced) for one in stopped] == [
        (8, True),
        (16, True),
        (32, True),
        (64, True),
    ]


def test_a_thinking_that_ends_at_a_budget_is_whole_there() -> None:
    assert [(one.cut, one.forced) for one in branches(16, True, (8, 16))] == [
        (8, True),
        (16, False),
    ]


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("uniform", (0.25, 0.25, 0.25, 0.25)),
        ("linear", (1 / 15, 2 / 15, 4 / 15, 8 / 15)),
        ("base", (0.0, 0.0, 0.0, 1.0)),
        ((1.0, 0.0, 1.0, 2.0), (0.25, 0.0, 0.25, 0.5)),
    ],
)
def test_priors_sum_to_one(prior: object, expected: tuple[float, ...]) -> None:
    found = prior_weights(prior, (8, 16, 32, 64))  # type: ignore[arg-type]
    assert found == pytest.approx(expected)
    assert sum(found) == pytest.approx(1, abs=1e-12)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [(), (0, 4), (8, 8), (16, 8), (1.5,), (True, 4), (20_000_000,)])
def test_budgets_that_do_not_rise_are_refused(budgets: tuple[int, ...]) -> None:
    with pytest.raises(BudgetError, match="budgets"):
        check_budgets(budgets)


@pytest.mark.parametrize(
    "prior", ["flat", (1.0,), (1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)]
)
def test_bad_priors_are_refused(prior: object) -> None:
    with pytest.raises(InputError, match="prior"):
        prior_weights(prior, (8, 16))  # type: ignore[arg-type]


def test_an_empty_thinking_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        branches(0, True, (8,))


@pytest.mark.parametrize(
    "rewards", [torch.zeros(4), torch.zeros(2, 3), torch.zeros(0, 2), torch.full((2, 2), torch.nan)]
)
def test_bad_rewards_are_refused(rewards: Tensor) -> None:
    with pytest.raises(InputError, match="reward"):
        baseline(rewards, (0.5, 0.5))


def test_bad_rewards_of_answers_are_refused() -> None:
    with pytest.raises(InputError, match="G, S, A"):
        summary_advantages(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(InputError, match="finite"):
        summary_advantages(torch.full((1, 1, 2), torch.nan), torch.zeros(1, 1, dtype=torch.long))
