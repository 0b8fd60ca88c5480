"""HBPO: what is promised, what is paid, what it is worth, against hand-written references."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import BudgetError, InputError
from outlay.rl.base import Context, Judgement, Row
from outlay.rl.hbpo import HBPO
from outlay.testbeds.chainarith_rl import BUDGET_TAGS, build_tokenizer

SMALL = HBPO(budgets=(16, 32, 64, 96), l_max=128, prefix_template=BUDGET_TAGS)


def judged(n: int, *, right: bool = True, ok: bool = True) -> Judgement:
    return Judgement(right, float(right), ok, n, n - 1, 1, truncated=False)


def context(rewards: list[float], budgets: list[float], group: int) -> Context:
    rows: list[Row] = [{"prompt": "p", "budget": budget} for budget in budgets]
    rewards_NF = torch.tensor(rewards, dtype=torch.float64).view(-1, 1)
    return Context(
        rows=rows,
        completion_ids=[[1]] * len(rows),
        rewards_NF=rewards_NF,
        weights_F=torch.ones(1, dtype=torch.float64),
        advantages_N=torch.zeros(len(rows)),
        group=group,
        step=0,
        total_steps=10,
        local=slice(0, len(rows)),
    )


# -- promises -------------------------------------------------------------------------------------


def rows(group: int, questions: int = 2) -> list[Row]:
    return [
        {"prompt": f"question {q}", "member": member}
        for q in range(questions)
        for member in range(group)
    ]


def test_each_group_holds_as_many_rollouts_of_every_budget() -> None:
    method = SMALL.tokenized(build_tokenizer())
    planned = method.assign(rows(16), 0, 10, 16)
    for q in range(2):
        group = planned[q * 16 : (q + 1) * 16]
        assert [row["budget"] for row in group] == [16] * 4 + [32] * 4 + [64] * 4 + [96] * 4
        assert [tuple(row["prefix_ids"]) for row in group] == [
            prefix for prefix in method.prefixes for _ in range(4)
        ]


def test_promises_are_the_tokenisation_of_their_template() -> None:
    tokenizer = build_tokenizer()
    method = SMALL.tokenized(tokenizer)
    texts = [tokenizer.decode(list(ids), skip_special_tokens=False) for ids in method.prefixes]
    assert texts == list(BUDGET_TAGS)
    assert all(len(ids) == 1 for ids in method.prefixes)


def test_the_papers_promise_names_the_budget() -> None:
    assert [str(b) in text for b, text in zip(HBPO().budgets, HBPO().texts(), strict=True)] == [
        True
    ] * 4


def test_promises_are_in_the_loss_unless_the_knob_says_no() -> None:
    assert SMALL.prefix == "trained"
    assert replace(SMALL, train_prefix=False).prefix == "masked"


def test_shares_split_a_group_unevenly() -> None:
    method = replace(SMALL, shares=(0.5, 0.25, 0.125, 0.125))
    assert method.counts(16) == [8, 4, 2, 2]


def test_a_question_has_one_budget_in_the_baseline_whatever_the_process() -> None:
    method = replace(SMALL, per="question").tokenized(build_tokenizer())
    planned = method.assign(rows(16, 6), 3, 10, 16)
    seen = [{row["budget"] for row in planned[q * 16 : (q + 1) * 16]} for q in range(6)]
    assert all(len(budgets) == 1 for budgets in seen)
    assert len(set.union(*seen)) > 1
    alone = method.assign(rows(16, 6)[16:32], 3, 10, 16)
    assert [row["budget"] for row in alone] == [row["budget"] for row in planned[16:32]]


def test_natural_reasoning_promises_nothing_and_efficiency_few_tokens() -> None:
    plain: list[Row] = [{"prompt": "p"}]
    assert SMALL.at_inference(plain, 32) == plain
    brief = replace(SMALL, efficiency=True, least="<b1>").tokenized(build_tokenizer())
    (told,) = brief.at_inference(plain, 32)
    assert told["prefix_ids"] == list(brief.prefixes[0])


# -- pay ------------------------------------------------------------------------------------------


def f2(b: float, m: HBPO) -> float:
    return m.beta * math.cos(math.pi * b / (2 * m.l_max))


def f1(n: float, b: float, m: HBPO) -> float:
    return m.beta * math.cos(math.pi * n / (2 * m.l_max)) - abs(n - b) / m.l_max


@given(st.integers(2, 4096), st.sampled_from(HBPO().budgets))
def test_pay_is_the_papers_piecewise_function(n: int, budget: int) -> None:
    method = HBPO()
    expected = f2(budget, method) if n <= budget else f1(n, budget, method)
    assert method.reward(judged(n), budget) == pytest.approx(expected, abs=1e-12)
    least = min(f1(n, budget, method), f2(budget, method))
    assert replace(method, reward_form="min").reward(judged(n), budget) == pytest.approx(
        least, abs=1e-12
    )


def test_both_parts_meet_at_the_budget_and_pay_falls_beyond_it() -> None:
    method = HBPO()
    for budget in method.budgets:
        at, beyond = (
            method.reward(judged(budget), budget),
            method.reward(judged(budget + 1), budget),
        )
        assert at == pytest.approx(f1(budget, budget, method), abs=1e-12)
        assert beyond < at
        pays = [method.reward(judged(n), budget) for n in range(budget, 4096, 64)]
        assert pays == sorted(pays, reverse=True)
        assert {method.reward(judged(n), budget) for n in (2, budget // 2, budget)} == {at}


def test_the_order_of_budgets_reverses_between_short_and_long_answers() -> None:
    method = HBPO()
    short = [method.reward(judged(100), budget) for budget in method.budgets]
    long = [method.reward(judged(3000), budget) for budget in method.budgets]
    assert short == sorted(short, reverse=True)
    assert long == sorted(long)


@given(st.integers(2, 4096), st.sampled_from((1024, 2048, 2560)))
def test_the_releases_form_equals_the_papers_for_large_budgets(n: int, budget: int) -> None:
    method = HBPO()
    assert replace(method, reward_form="min").reward(judged(n), budget) == pytest.approx(
        method.reward(judged(n), budget), abs=1e-9
    )


def test_wrong_too_long_and_broken_answers() -> None:
    method = HBPO()
    assert method.reward(judged(10, right=False), 512) == 0
    assert method.reward(judged(4097), 512) == 0
    assert method.reward(judged(10, ok=False), 512) == -1
    assert replace(method, format_penalty=0.0).reward(judged(10, ok=False), 512) == 0
    assert method.reward(judged(4000), 512) < 0  # the paper lets it pay less than a wrong answer
    assert replace(method, floor=0.0).reward(judged(4000), 512) == 0
    assert replace(method, reward_form="flat").reward(judged(4000), 512) == 1


def test_without_a_promise_the_cosine_of_the_length_pays() -> None:
    assert HBPO().reward(judged(700), None) == pytest.approx(f2(700, HBPO()))


@given(st.integers(2, 8), st.integers(1, 127), st.sampled_from((16, 32, 64, 96)))
def test_scaling_context_budgets_and_lengths_leaves_pay_unchanged(
    factor: int, n: int, budget: int
) -> None:
    scaled = SMALL.scale_to(128 * factor)
    assert scaled.budgets == tuple(b * factor for b in SMALL.budgets)
    assert scaled.reward(judged(n * factor), budget * factor) == pytest.approx(
        SMALL.reward(judged(n), budget), abs=1e-12
    )


# -- advantages -----------------------------------------------------------------------------------


def reference(rewards: list[float], budgets: list[float], group: int, method: HBPO) -> list[float]:
    """Equations of section 3.3, rollout by rollout."""
    out = []
    for start in range(0, len(rewards), group):
        paid, promised = rewards[start : start + group], budgets[start : start + group]
        mean = sum(paid) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in paid) / (group - 1))
        for r, b in zip(paid, promised, strict=True):
            mine = [x for x, y in zip(paid, promised, strict=True) if y == b]
            intra = sum(mine) / len(mine) - f2(b, method)
            if method.intra_scale == "f2":
                intra /= f2(b, method)
            if method.intra_scale == "std":
                intra /= std + method.eps
            out.append((r - mean) / (std + method.eps) + method.intra_weight * intra)
    return out


@given(
    st.lists(st.floats(-1, 4), min_size=16, max_size=16),
    st.sampled_from(("none", "f2", "std")),
    st.sampled_from((0.0, 1.0, 2.0)),
)
def test_advantages_equal_the_reference(rewards: list[float], scale: Any, weight: float) -> None:
    method = replace(SMALL, intra_scale=scale, intra_weight=weight)
    budgets = [float(b) for _ in range(2) for b in SMALL.budgets for _ in range(2)]
    found = method.advantages(context(rewards, budgets, 8))
    torch.testing.assert_close(
        found, torch.tensor(reference(rewards, budgets, 8, method), dtype=torch.float64)
    )


def test_between_subgroups_advantages_sum_to_0_per_question() -> None:
    method = replace(SMALL, intra_weight=0.0)
    budgets = [float(b) for b in SMALL.budgets for _ in range(2)]
    found = method.advantages(context([1.0, 0, 3, 2, 0, 0, 1, 4], budgets, 8))
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)


def test_within_a_subgroup_the_term_is_constant_and_0_where_all_keep_their_promise() -> None:
    budgets = [float(b) for b in SMALL.budgets for _ in range(2)]
    kept = [SMALL.reward(judged(int(b)), b) for b in budgets]
    without = replace(SMALL, intra_weight=0.0)
    found = SMALL.advantages(context(kept, budgets, 8)) - without.advantages(
        context(kept, budgets, 8)
    )
    torch.testing.assert_close(found, torch.zeros(8, dtype=torch.float64))
    mixed = [0.0, kept[1], *kept[2:]]
    term = SMALL.advantages(context(mixed, budgets, 8)) - without.advantages(
        context(mixed, budgets, 8)
    )
    assert float(term[0]) == pytest.approx(float(term[1]))
    assert term[0] < 0
    torch.testing.assert_close(term[2:], torch.zeros(6, dtype=torch.float64))


def test_one_budget_with_all_right_teaches_nothing() -> None:
    method = HBPO(budgets=(64,), l_max=128, n=4, prefix_template="")
    pay = [method.reward(judged(10 + i), 64.0) for i in range(4)]
    torch.testing.assert_close(
        method.advantages(context(pay, [64.0] * 4, 4)), torch.zeros(4, dtype=torch.float64)
    )


@given(st.permutations(range(4)))
def test_permuting_rollouts_of_a_subgroup_permutes_advantages(order: list[int]) -> None:
    rewards, budgets = [3.0, 0, 1, 2, 4, 0, 0, 1], [16.0] * 4 + [64.0] * 4
    method = HBPO(budgets=(16, 64), l_max=128, n=8, prefix_template="")
    found = method.advantages(context(rewards, budgets, 8))
    moved = method.advantages(context([rewards[i] for i in order] + rewards[4:], budgets, 8))
    torch.testing.assert_close(moved[:4], found[list(order)])
    torch.testing.assert_close(moved[4:], found[4:])


def test_an_all_wrong_group_is_pushed_down_by_what_its_budgets_are_worth() -> None:
    """The sheet's pitfall: the term is not zero-mean, and must not be filtered away."""
    budgets = [float(b) for b in HBPO().budgets for _ in range(4)]
    found = HBPO().advantages(context([0.0] * 16, budgets, 16))
    assert [round(float(a), 6) for a in found] == [round(-f2(b, HBPO()), 6) for b in budgets]
    safe = replace(HBPO(), intra_scale="f2").advantages(context([0.0] * 16, budgets, 16))
    torch.testing.assert_close(safe, -torch.ones(16, dtype=torch.float64))


def test_unpaid_rollouts_neither_count_nor_learn() -> None:
    budgets = [16.0] * 4
    method = HBPO(budgets=(16,), l_max=128, n=4, prefix_template="")
    found = method.advantages(context([float("nan"), 1.0, 0.0, 2.0], budgets, 4))
    alone = method.advantages(context([1.0, 0.0, 2.0], [16.0] * 3, 3))
    assert float(found[0]) == 0
    torch.testing.assert_close(found[1:], alone)
    none = method.advantages(context([float("nan")] * 4, budgets, 4))
    torch.testing.assert_close(none, torch.zeros(4, dtype=torch.float64))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"n": 14}, "14 rollouts is not divisible into 4 subgroups"),
        ({"budgets": (64, 32)}, "rising"),
        ({"budgets": (32, 32, 64, 96)}, "different numbers"),
        ({"budgets": (0, 32)}, ">= 1"),
        ({"budgets": ()}, "give different numbers"),
        ({"budgets": (512, 4096)}, "reach l_max=4096"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"prefix_template": "I promise"}, r"no \{budget\}"),
        ({"prefix_template": ("a", "b")}, "2 promises for 4 budgets"),
        ({"shares": (1.0, 1.0)}, "2 shares for 4 budgets"),
        ({"reward_form": "cosine"}, "choose one of piecewise, min, flat"),
        ({"intra_scale": "rms"}, "choose one of none, f2, std"),
        ({"per": "token"}, "choose one of member, question"),
        ({"format_penalty": 1.0}, "must be <= 0"),
        ({"n": 1, "budgets": (5,)}, "at least 2 rollouts"),
        ({"intra_weight": -1.0}, "must be >= 0"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: dict[str, Any], match: str) -> None:
    with pytest.raises((InputError, BudgetError), match=match):
        replace(HBPO(), **knobs)


def test_a_group_of_another_size_is_refused_where_it_shows() -> None:
    method = SMALL.tokenized(build_tokenizer())
    with pytest.raises(InputError, match="change num_generations"):
        method.assign(rows(6, 1), 0, 10, 6)


def test_promises_must_be_tokenised_and_survive_it() -> None:
    with pytest.raises(InputError, match="not tokenised"):
        SMALL.assign(rows(16, 1), 0, 10, 16)
    with pytest.raises(InputError, match="not tokenised"):
        replace(SMALL, efficiency=True).at_inference([{"prompt": "p"}], 8)

    class Lossy:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "other"

    with pytest.raises(InputError, match="comes back from the tokenizer as 'other'"):
        HBPO().tokenized(Lossy())
