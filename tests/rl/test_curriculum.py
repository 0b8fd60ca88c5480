"""Curriculum GRPO without training: budgets, prompts, rewards, advantages, bad input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from outlay.errors import BudgetError, InputError, OutlayError
from outlay.rl.base import Context, Judgement, Row
from outlay.rl.curriculum import CurriculumGRPO
from outlay.rl.curriculum_format import Tags, told
from outlay.rl.curriculum_signals import Correct, FormatReward, population_advantages
from outlay.testbeds.chainarith_rl import ANSWER, EOS, build_tokenizer, render_prompt

TOKENIZER = build_tokenizer()
QUIET: Any = {"budget_in_prompt": False, "fmt": "verifier"}
CHAIN_TAGS = Tags(answer=(ANSWER, EOS))


def judged(correct: bool, tokens: int = 10, **more: Any) -> Judgement:
    facts: dict[str, Any] = {"score": float(correct), "format_ok": True, "thinking_tokens": tokens}
    facts |= {"answer_tokens": 0, "truncated": False, "given": "1", **more}
    return Judgement(correct=correct, tokens=tokens, **facts)


def rows(n: int = 4) -> list[Row]:
    return [{"prompt": f"{k}+{k}=?", "answer": str(2 * k), "member": k % 2} for k in range(n)]


# -- what rollouts are told -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "budget", "number"), [(0, 256, 256), (150, 178.68, 179), (300, 124.7, 125)]
)
def test_reward_has_the_real_budget_and_the_prompt_the_rounded_one(
    step: int, budget: float, number: int
) -> None:
    told_rows = CurriculumGRPO().assign(rows(), step, 600, 2)
    assert [row["budget"] for row in told_rows] == pytest.approx([budget] * 4, abs=0.05)
    assert all(f"exactly {number} tokens" in row["prompt"] for row in told_rows)
    assert [row["prompt"].split("User: ")[1] for row in told_rows] == [
        f"{k}+{k}=?\nAssistant:" for k in range(4)
    ]


def test_the_prompt_has_the_papers_parts_in_their_order() -> None:
    (row,) = CurriculumGRPO().assign(rows(1), 450, 600, 1)
    parts = ("assistant solves", "first thinks", "<think>", "</think>", "<answer>", "**Use exactly")
    places = [row["prompt"].index(part) for part in (*parts, "87", "User: 0+0=?", "Assistant:")]
    assert places == sorted(places)


def test_chats_are_told_in_the_last_message_of_the_user_and_not_changed_in_place() -> None:
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "1+1=?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+{budget}=?"},
    ]
    (row,) = CurriculumGRPO().assign([{"prompt": chat, "member": 0}], 0, 600, 1)
    assert row["prompt"][:3] == chat[:3]
    assert row["prompt"][3]["content"].startswith("2+{budget}=?\n")
    assert "exactly 256 tokens" in row["prompt"][3]["content"]
    assert chat[3]["content"] == "2+{budget}=?"


def test_a_question_with_braces_stays_as_it_was_asked() -> None:
    prompt = told("{question} {budget} {x}", "Q {question} in {budget}", "", 7)
    assert prompt == "Q {question} {budget} {x} in 7"


@given(st.integers(0, 700), st.integers(1, 40))
def test_the_cap_is_the_factor_times_the_budget_and_room_for_an_answer(step: int, n: int) -> None:
    method = CurriculumGRPO(n_decays=n, hard_cap_factor=1.5, answer_slack=7)
    (row,) = method.assign(rows(1), step, 0, 1)
    assert row["hard_cap"] == math.ceil(1.5 * method.budget_at(step)) + 7
    (free,) = CurriculumGRPO(hard_cap_factor=None).assign(rows(1), step, 0, 1)
    assert free["hard_cap"] is None


def test_without_the_prompt_a_row_keeps_its_words() -> None:
    (row,) = CurriculumGRPO(budget_in_prompt=False).assign(rows(1), 0, 600, 1)
    assert row["prompt"] == "0+0=?"


@given(st.integers(0, 599), st.integers(1, 8))
def test_a_step_decides_alone_whatever_the_group_or_the_rows_before(step: int, group: int) -> None:
    method = CurriculumGRPO()
    first = method.assign(rows(8), step, 600, group)
    for other in (0, 599, 300):
        method.assign(rows(8), other, 600, 2)
    assert CurriculumGRPO().assign(rows(8), step, 600, 1) == first


def test_total_steps_none_takes_the_runs_length_and_a_number_stays_beyond_it() -> None:
    run = CurriculumGRPO(total_steps=None)
    assert [round(run.budget_at(t, 40)) for t in (0, 10, 20, 39)] == [256, 179, 125, 87]
    fixed = CurriculumGRPO(total_steps=40)
    assert [round(fixed.budget_at(t, 60)) for t in (0, 10, 20, 59)] == [256, 179, 125, 87]


def test_every_schedule_is_its_function() -> None:
    def of(**knobs: Any) -> list[float]:
        method = CurriculumGRPO(total_steps=12, **knobs)
        return [round(method.budget_at(t, 12), 3) for t in range(12)]

    assert of(b0=80, b_final=20, n_decays=2) == [80] * 4 + [40] * 4 + [20] * 4
    assert of(schedule="linear", b0=80, b_final=20, n_decays=2) == [80] * 4 + [50] * 4 + [20] * 4
    assert of(schedule="rising", b0=20, b_final=80, n_decays=2) == [20] * 4 + [40] * 4 + [80] * 4
    assert of(schedule="constant", b_final=33) == [33] * 12
    assert of(schedule="exp_interval", b0=64, gamma=0.5, interval=6) == [64] * 6 + [32] * 6
    assert of(schedule=lambda step, total: 100 + step * 12 / total) == [100 + t for t in range(12)]


def test_no_decay_trains_at_the_last_budget() -> None:
    method = CurriculumGRPO(n_decays=0)
    assert {method.budget_at(t, 600) for t in range(600)} == {87}


def test_the_table_for_the_manifest_lists_every_change() -> None:
    table = CurriculumGRPO().schedule_table(600)
    assert [row["step"] for row in table] == [0, 150, 300, 450]
    assert [row["prompt"] for row in table] == [256, 179, 125, 87]
    assert [row["hard_cap"] for row in table] == [544, 390, 282, 206]


def test_after_training_prompts_name_the_last_budget_whatever_the_limit() -> None:
    for limit in (20, 256):
        (row,) = CurriculumGRPO().at_inference(rows(1), limit)
        assert "exactly 87 tokens" in row["prompt"]
    unknown = CurriculumGRPO(schedule="exp_interval", gamma=0.7, interval=100, total_steps=None)
    (row,) = unknown.at_inference(rows(1), 41)
    assert "exactly 41 tokens" in row["prompt"]
    known = CurriculumGRPO(schedule="exp_interval", gamma=0.7, interval=100)
    assert known.last_budget == pytest.approx(256 * 0.7**5)
    assert CurriculumGRPO(budget_in_prompt=False).at_inference(rows(1), 9) == rows(1)


# -- how they are paid ----------------------------------------------------------------------------

CASES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 700), st.booleans()), min_size=1, max_size=8
)
WEIGHTS = st.tuples(*[st.floats(0.01, 2)] * 3)


def total(method: CurriculumGRPO, judgement: Sequence[Judgement], budget: float) -> torch.Tensor:
    """(N,) the reward as TRL sums it, in fp64."""
    n = len(judgement)
    columns: dict[str, Any] = {"judgement": judgement, "budget": [budget] * n}
    columns |= {"prompts": [""] * n, "completions": [""] * n, "completion_ids": [[]] * n}
    paid = [function(**columns) for function in method.reward_functions()]
    weights = torch.tensor(method.reward_weights(), dtype=torch.float64)
    return (torch.tensor(paid, dtype=torch.float64).T * weights).sum(dim=1)


@given(CASES, WEIGHTS, st.floats(1, 300), st.booleans())
def test_the_reward_is_the_papers_sum(
    cases: list[tuple[bool, int, bool]],
    weights: tuple[float, float, float],
    budget: float,
    gate: bool,
) -> None:
    method = CurriculumGRPO(
        weights=weights, r_cor=2.0, r_max=3.0, alpha=(0.2, 0.4), gate_length=gate, fmt="verifier"
    )
    judgement = [judged(c, n, format_ok=fmt) for c, n, fmt in cases]
    for (correct, n, fmt), reward in zip(cases, total(method, judgement, budget), strict=True):
        up, down = 3.0 * n / budget, 3.0 * (1 - (n - budget) / budget)
        length = up if n <= budget else max(0.0, down)
        if gate and not correct:
            length = 0.0
        by_hand = weights[0] * 2.0 * correct + weights[1] * length + weights[2] * 0.6 * fmt
        assert float(reward) == pytest.approx(by_hand, abs=1e-9)


def test_wrong_answers_are_paid_for_length_unless_gated() -> None:
    wrong = [judged(False, 87)]
    assert float(total(CurriculumGRPO(weights=(1, 1, 0)), wrong, 87)) == 1
    assert float(total(CurriculumGRPO(weights=(1, 1, 0), gate_length=True), wrong, 87)) == 0


def test_the_triangle_pays_a_solved_problem_for_padding_and_the_band_does_not() -> None:
    short, padded = [judged(True, 11)], [judged(True, 80)]
    triangle, flat = CurriculumGRPO(fmt="verifier"), CurriculumGRPO(fmt="verifier", shape="band")
    assert total(triangle, padded, 80) > total(triangle, short, 80)
    assert total(flat, padded, 80) == total(flat, short, 80)


def test_partial_credit_can_soften_what_is_right() -> None:
    half = [judged(False, score=0.5)]
    assert Correct(2.0, soft=True)(half) == [1.0]
    assert Correct(2.0)(half) == [0.0]


def test_a_verifier_that_finds_no_answer_at_all_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="no answer in any of 2 completions"):
        Correct()([judged(False, given=None), judged(False, given=None)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Correct()([judged(False, given=None), judged(True)])


# -- format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>a</think><answer>b</answer>", (True, True)),
        ("<answer>b</answer> then <think>a</think>", (True, True)),  # order does not matter
        ("<think></think><answer></answer>", (True, True)),  # nor emptiness
        ("<think>a</think>b", (True, False)),
        ("a<answer>b</answer>", (False, True)),
        ("</think>a<think><answer>b</answer>", (False, True)),  # closed before opened
        ("<think>a</think></think><answer>b</answer>", (False, True)),  # closed twice
        ("<think>a<answer>b</answer></think>", (False, False)),  # nested
        ("<think>a<answer></think>b</answer>", (False, False)),  # intersecting
        ("<think>a<answer></think>b", (True, False)),  # no second span to intersect
        ("", (False, False)),
    ],
)
def test_tag_pairs_are_well_formed_once_in_order_and_apart(
    text: str, found: tuple[bool, bool]
) -> None:
    assert Tags().found(text) == found


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x"]), max_size=7
)


@given(PIECES)
def test_tag_pairs_by_brute_force(pieces: list[str]) -> None:
    def span(opening: str, closing: str) -> set[int] | None:
        if pieces.count(opening) != 1 or pieces.count(closing) != 1:
            return None
        start, end = pieces.index(opening), pieces.index(closing)
        return set(range(start, end + 1)) if start < end else None

    think, answer = span("<think>", "</think>"), span("<answer>", "</answer>")
    if think and answer and think & answer:
        think = answer = None
    assert Tags().found("".join(pieces)) == (think is not None, answer is not None)


def test_thinking_that_the_prompt_opened_counts_as_opened() -> None:
    reward = FormatReward(CHAIN_TAGS, (0.5, 0.25), TOKENIZER)
    ids = TOKENIZER("<short>3+4=7;</think><answer>7<eos>", add_special_tokens=False)["input_ids"]
    opened, closed = render_prompt("3+4=?"), "3+4=?"
    assert reward([opened, closed], ["", ""], [ids, ids]) == [0.75, 0.25]
    chat = [{"role": "user", "content": "3+4=?"}]
    told_so = FormatReward(Tags(answer=(ANSWER, EOS), opened=True), (0.5, 0.25), TOKENIZER)
    assert told_so([chat], [[{"role": "assistant", "content": ""}]], [ids]) == [0.75]


def test_special_tokens_vanish_from_trls_text_and_not_from_token_ids() -> None:
    ids = TOKENIZER("<short>3+4=7;</think><answer>7<eos>", add_special_tokens=False)["input_ids"]
    text = TOKENIZER.decode(ids, skip_special_tokens=True)
    prompt = render_prompt("3+4=?")
    assert FormatReward(CHAIN_TAGS)([prompt], [text], [ids]) == [0.5]
    assert FormatReward(CHAIN_TAGS, tokenizer=TOKENIZER)([prompt], [text], [ids]) == [1.0]


def test_without_a_tokenizer_tags_are_read_from_text_or_messages() -> None:
    text = "<think>a</think><answer>b</answer>"
    messages = [{"role": "assistant", "content": text}]
    assert FormatReward()(["", ""], [text, messages], [[], []]) == [1.0, 1.0]


# -- advantages -----------------------------------------------------------------------------------


def context_of(rewards: Sequence[float], group: int) -> Context:
    n = len(rewards)
    return Context(
        rows=[{} for _ in range(n)],
        completion_ids=[[1]] * n,
        rewards_NF=torch.tensor(rewards, dtype=torch.float64)[:, None],
        weights_F=torch.ones(1, dtype=torch.float64),
        advantages_N=torch.zeros(n),
        group=group,
        step=0,
        total_steps=600,
        local=slice(0, n),
    )


GROUPS = st.integers(2, 5).flatmap(
    lambda g: st.tuples(
        st.just(g), st.lists(st.lists(st.floats(-3, 3), min_size=g, max_size=g), min_size=1)
    )
)


@given(GROUPS)
def test_population_advantages_in_fp64_against_a_plain_reference(
    case: tuple[int, list[list[float]]],
) -> None:
    group, values = case
    flat = [value for one in values for value in one]
    found = CurriculumGRPO(advantage="population").advantages(context_of(flat, group))
    assert found is not None
    assert found.dtype == torch.float64
    expected = []
    for one in values:
        mean = math.fsum(one) / group
        variance = math.fsum((r - mean) ** 2 for r in one) / group
        expected += [(r - mean) / math.sqrt(variance + 1e-6) for r in one]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@given(GROUPS, st.floats(-2, 2))
def test_a_constant_added_to_all_rewards_changes_nothing(
    case: tuple[int, list[list[float]]], shift: float
) -> None:
    group, values = case
    flat = torch.tensor(values, dtype=torch.float64).view(-1)
    base = population_advantages(flat, group, 1e-4)
    assert torch.allclose(base, population_advantages(flat + shift, group, 1e-4), atol=1e-9)


def test_equal_rewards_give_zero_advantages() -> None:
    assert population_advantages(torch.full((6,), 0.25), 3, 1e-6).tolist() == [0.0] * 6


def test_length_alone_decides_at_full_size_where_all_answers_are_right() -> None:
    """Group normalisation takes the weight of the length signal away."""
    judgement = [judged(True, n) for n in (20, 40)]
    found = []
    for weight in (0.3, 0.03):
        method = CurriculumGRPO(weights=(0.6, weight, 0.1), fmt="verifier")
        found.append(population_advantages(total(method, judgement, 40), 2, 1e-12))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert found[0].tolist() == pytest.approx([-1, 1], abs=1e-4)


def test_trls_advantages_are_the_default() -> None:
    assert CurriculumGRPO().advantages(context_of([0, 1], 2)) is None


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"b0": 50}, "rising"),
        ({"b_final": 0.5}, "b_final=0.5"),
        ({"b0": -4}, "b0=-4"),
        ({"b0": math.inf}, "b0=inf"),
        ({"n_decays": -1}, "n_decays=-1"),
        ({"n_decays": -1, "total_steps": None}, "n_decays=-1"),
        ({"n_decays": 600}, "601 stages of 600 steps"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
        ({"schedule": "rising"}, "schedule='exp_endpoints'"),
        ({"schedule": "exp_interval"}, "needs gamma and interval"),
        ({"schedule": "exp_interval", "gamma": 0.7}, "needs gamma and interval"),
        ({"schedule": "exp_interval", "gamma": 1.0, "interval": 9}, "gamma=1.0"),
        ({"schedule": "exp_interval", "gamma": -0.1, "interval": 9}, "gamma=-0.1"),
        ({"schedule": "exp_interval", "gamma": 0.7, "interval": 0}, "interval=0"),
        ({"gamma": 0.7, "interval": 9}, "give one form"),
        ({"schedule": "exp_interval", "gamma": 0.7, "interval": 9, "b_final": 9}, "give one form"),
        ({"schedule": "exp_interval", "gamma": 0.7, "interval": 9, "n_decays": 1}, "give one form"),
        ({"shape": "round"}, "shape='round'"),
        ({"count": "words"}, "count='words'"),
        ({"weights": (0.6, -0.3, 0.1)}, r"weights=\(0.6, -0.3, 0.1\)"),
        ({"weights": (0, 0, 0)}, "pay nothing"),
        ({"weights": (1, 1)}, "give 3"),
        ({"weights": (1, math.nan, 1)}, "finite"),
        ({"alpha": (-1, 0.5)}, "alpha"),
        ({"alpha": (0.5,)}, "give 2"),
        ({"r_cor": 0}, "r_cor=0"),
        ({"r_max": math.inf}, "r_max=inf"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"hard_cap_factor": 0.5}, "hard_cap_factor=0.5"),
        ({"answer_slack": -1}, "answer_slack=-1"),
        ({"num_generations": 1}, "num_generations=1"),
        ({"context": 0}, "context=0"),
        ({"advantage": "rank"}, "advantage='rank'"),
        ({"fmt": "regex"}, "fmt='regex'"),
        ({"template": "no question {budget}"}, "question"),
        ({"template": "{question}"}, "budget"),
    ],
)
def test_what_cannot_be_is_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(OutlayError, match=said):
        CurriculumGRPO(**knobs)


def test_a_schedule_that_needs_the_runs_length_says_so() -> None:
    with pytest.raises(InputError, match="set max_steps in GRPOConfig, or total_steps"):
        CurriculumGRPO(total_steps=None).assign(rows(), 0, 0, 2)


def test_a_run_that_ends_before_the_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="total_steps=200"):
        CurriculumGRPO().assign(rows(), 0, 200, 2)


def test_more_stages_than_steps_of_the_run_are_refused() -> None:
    with pytest.raises(InputError, match="4 stages of 3 steps"):
        CurriculumGRPO(total_steps=None).assign(rows(), 0, 3, 2)


def test_a_function_that_gives_no_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"schedule\(5, 600\)=0"):
        CurriculumGRPO(schedule=lambda step, total: 0).assign(rows(), 5, 600, 2)


def test_a_chat_without_words_of_the_user_is_refused() -> None:
    with pytest.raises(InputError, match="no text of the user"):
        CurriculumGRPO().assign([{"prompt": [{"role": "system", "content": "x"}]}], 0, 600, 1)


def forgetful() -> PreTrainedTokenizerFast:
    """A tokenizer that knows three words and reads all others as unknown."""
    words = {"<unk>": 0, "Ask": 1, "in": 2, "60": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_tags_that_a_tokenizer_does_not_give_back_are_refused() -> None:
    with pytest.raises(InputError, match="tag '<think>' comes back from the tokenizer as '<unk>'"):
        CurriculumGRPO(tokenizer=forgetful(), budget_in_prompt=False)
    strange = Tags(think=("\u00a7", "\u00b6"))
    with pytest.raises(InputError, match="cannot spell"):
        CurriculumGRPO(tokenizer=TOKENIZER, tags=strange, budget_in_prompt=False)


def test_a_template_that_a_tokenizer_cannot_spell_is_refused() -> None:
    knobs: dict[str, Any] = {"tokenizer": forgetful(), "fmt": "verifier", "b0": 60, "b_final": 30}
    CurriculumGRPO(template="Ask {question} in {budget}", **knobs)
    with pytest.raises(InputError, match="cannot spell the prompt's template"):
        CurriculumGRPO(template="Tell {question} in {budget}", **knobs)
    with pytest.raises(InputError, match="cannot spell"):
        CurriculumGRPO(tokenizer=TOKENIZER, template="\u00a7 {question} {budget}", fmt="verifier")


@pytest.mark.parametrize("four", [("", "b", "c", "d"), ("a", "a", "c", "d")])
def test_tags_must_be_four_different_texts(four: tuple[str, str, str, str]) -> None:
    with pytest.raises(InputError, match="two different texts"):
        Tags(think=four[:2], answer=four[2:])


def test_a_budget_that_the_tags_fill_is_refused() -> None:
    with pytest.raises(BudgetError, match="cannot hold more than the tags, which take 3"):
        CurriculumGRPO(tokenizer=TOKENIZER, tags=CHAIN_TAGS, budget_in_prompt=False, b_final=3)
    shrinking = CurriculumGRPO(
        schedule=lambda step, total: 4.0 - step,
        tokenizer=TOKENIZER,
        tags=CHAIN_TAGS,
        **QUIET | {"fmt": "tags"},
    )
    shrinking.assign(rows(), 0, 600, 2)
    with pytest.raises(BudgetError, match="a budget of 3 tokens"):
        shrinking.assign(rows(), 1, 600, 2)


def test_prompt_and_cap_beyond_the_context_are_refused() -> None:
    method = CurriculumGRPO(tokenizer=TOKENIZER, tags=CHAIN_TAGS, budget_in_prompt=False, b0=400)
    with pytest.raises(BudgetError, match="a cap of 832 exceed the context of 640"):
        method.assign(rows(), 0, 600, 2)
    small = CurriculumGRPO(tokenizer=TOKENIZER, tags=CHAIN_TAGS, budget_in_prompt=False, context=99)
    with pytest.raises(BudgetError, match="context of 99"):
        small.assign(rows(), 0, 600, 2)
