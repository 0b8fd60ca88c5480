"""Cuts, rewards, knobs and refusals of anytime reasoning, on real tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.rl.anytime import AnytimeBRPO
from outlay.rl.anytime.outcomes import KEY, Outcome
from outlay.rl.base import Context, Judgement, Row, Verifier
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.chainarith_rl import build_tokenizer

TOKENIZER = build_tokenizer()
METHOD = AnytimeBRPO(
    budgets=(4, 8, 16),
    n_traces=2,
    n_summaries=2,
    max_summary_tokens=3,
    forced="..\n</think>",
    heading="<answer>",
    reward_fn=ChainArithVerifier(),
).tokenized(TOKENIZER)
ROW: Row = {"prompt": "<user>3+4=?<assistant><think>", "answer": "7"}


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


QUESTION = ids(str(ROW["prompt"]))


class Says:
    """A sampler that answers in turn with the given texts, and keeps what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts = [ids(text) for text in texts]
        self.asked: list[str] = []

    def __call__(self, prompts: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
        assert set(most) == {METHOD.max_summary_tokens}
        first = len(self.asked)
        self.asked += [TOKENIZER.decode(p) for p in prompts]
        return [self.texts[(first + k) % len(self.texts)] for k in range(len(prompts))]


def one(completion: str, *answers: str, method: AnytimeBRPO = METHOD) -> tuple[Outcome, Says]:
    sampler = Says(*answers)
    (found,) = method.outcomes([ROW], [QUESTION], [ids(completion)], sampler)
    return found, sampler


def test_a_short_thinking_is_forced_before_its_end_and_shared_after_it() -> None:
    found, sampler = one("<short>3+4=7;</think>", "7<eos>", "1<eos>")
    assert [(c.cut, c.slots, c.forced) for c in found.cuts] == [(4, (0,), True), (8, (1, 2), False)]
    start = str(ROW["prompt"])
    assert sampler.asked == [
        *[f"{start}<short>3+4..\n</think><answer>"] * 2,
        *[f"{start}<short>3+4=7;</think><answer>"] * 4,
    ]
    assert found.rewards == ((1.0, 0.0),) * 3
    assert [len(given) for given in found.summaries] == [2, 4]


def test_every_thinking_owns_s_times_a_answers() -> None:
    for text in ("<direct></think>", "<short>3+4=7;</think>", "<long>" + "3+4=7;" * 4):
        found, _ = one(text, "7<eos>")
        assert sum(map(len, found.summaries)) == 3 * 2
        assert len(found.rewards) == 3
        assert all(len(row) == 2 for row in found.rewards)


def test_a_thinking_stopped_by_the_limit_is_forced_everywhere() -> None:
    found, sampler = one("<long>" + "3+4=7;" * 4, "7<eos>")
    assert [c.forced for c in found.cuts] == [True] * 3
    assert len(found.thinking) == 16
    assert not found.ended
    assert all(text.endswith("..\n</think><answer>") for text in sampler.asked)


def test_what_follows_the_end_of_thinking_is_not_thinking() -> None:
    found, _ = one("<short>3+4=7;</think><answer>7<eos>", "7<eos>")
    assert TOKENIZER.decode(list(found.thinking)) == "<short>3+4=7;</think>"


def test_a_thinking_that_ends_the_text_earns_nothing_at_its_end() -> None:
    found, _ = one("<short>3+4<eos>", "7<eos>")
    assert found.ended
    assert found.rewards == ((1.0, 1.0), (0.0, 0.0), (0.0, 0.0))


def test_a_second_end_of_thinking_in_an_answer_earns_nothing() -> None:
    found, _ = one("<short>3+4=7;</think>", "</think><answer>7")
    assert not any(r for row in found.rewards for r in row)
    lenient = replace(METHOD, require_single_think_end=False)
    found, _ = one("<short>3+4=7;</think>", "</think><answer>7", method=lenient)
    assert all(r == 1 for row in found.rewards for r in row)


def test_an_answer_after_a_blank_line_is_not_read() -> None:
    pieces = METHOD.pieces
    assert TOKENIZER.decode(pieces.first_block(ids("7\n\n8"))) == "7\n\n"
    assert pieces.first_block(ids("7\n8")) == ids("7\n8")
    found, _ = one("<short>3+4=7;</think>", "\n\n7")
    assert not any(r for row in found.rewards for r in row)


class Counting(Verifier):
    """The real verifier, and how much it was asked."""

    def __init__(self, drop: int = 0) -> None:
        self.seen, self.drop = 0, drop

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        self.seen += len(rows)
        found = ChainArithVerifier().judge(rows, completion_ids)
        return found[self.drop :]


def test_equal_answers_to_one_cut_are_judged_once() -> None:
    counting = Counting()
    one("<short>3+4=7;</think>", "7<eos>", "1<eos>", method=replace(METHOD, reward_fn=counting))
    assert counting.seen == 4


def test_a_verifier_that_loses_answers_is_refused() -> None:
    with pytest.raises(InputError, match="reward_fn judged"):
        one("<short>3</think>", "7<eos>", method=replace(METHOD, reward_fn=Counting(drop=1)))


def test_the_objective_weighs_budgets_by_the_prior() -> None:
    found, _ = one("<short>3+4=7;</think>", "1<eos>", "1<eos>", "7<eos>", "7<eos>")
    assert found.means == [0.0, 1.0, 0.0]
    assert METHOD.objective([found]) == pytest.approx([8 / 28])
    assert replace(METHOD, prior="uniform").objective([found]) == pytest.approx([1 / 3])
    assert replace(METHOD, prior="base").objective([found]) == [0.0]


def context(outcomes: list[Outcome]) -> Context:
    n = len(outcomes)
    return Context(
        rows=[{KEY: o} for o in outcomes],
        completion_ids=[list(o.thinking) for o in outcomes],
        rewards_NF=torch.zeros(n, 1),
        weights_F=torch.ones(1),
        advantages_N=torch.zeros(n),
        group=2,
        step=0,
        total_steps=1,
        local=slice(0, n),
        trained_from=[0] * n,
    )


def test_only_segments_that_exist_are_trained() -> None:
    short, _ = one("<direct></think>", "7<eos>")
    long, _ = one("<long>" + "3+4=7;" * 4, "1<eos>")
    segments = METHOD.advantages(context([short, long]))
    assert [(a, b) for a, b, _ in segments[0]] == [(0, 2)]
    assert [(a, b) for a, b, _ in segments[1]] == [(0, 4), (4, 8), (8, 16)]
    means = torch.tensor([short.means, long.means], dtype=torch.float64)
    expected = METHOD.of_thinkings(means)
    assert segments[0][0][2] == float(expected[0, 0])
    assert [value for *_, value in segments[1]] == expected[1].tolist()


def test_answers_of_a_merged_branch_are_pooled() -> None:
    found, _ = one("<short>3+4=7;</think>", *["7<eos>"] * 3, *["1<eos>"] * 3)
    advantages = METHOD.of_summaries([found, found])[0]
    assert found.rewards == ((1.0, 1.0), (1.0, 0.0), (0.0, 0.0))
    assert advantages.tolist() == [[0.0, 0.0], [0.75, -0.25], [-0.25, -0.25]]
    assert float(advantages[1:].sum()) == 0


def test_the_last_judgement_speaks_for_the_rollout() -> None:
    row = dict(ROW)
    METHOD.probe([row], [QUESTION], [ids("<short>3+4=7;</think>")], Says("1<eos>", "7<eos>"))
    assert row["judgement"].correct
    assert row["judgement"].format_ok


def test_thinking_goes_up_to_the_largest_budget() -> None:
    (row,) = METHOD.assign([dict(ROW)], 0, 10, 2)
    assert row["budget"] == row["hard_cap"] == 16
    assert METHOD.config_defaults()["max_completion_length"] == 16
    assert METHOD.config_defaults()["epsilon_high"] == 0.2
    assert replace(METHOD, eps_high=0.28).config_defaults()["epsilon_high"] == 0.28


def test_defaults_are_the_papers() -> None:
    method = AnytimeBRPO()
    assert method.budgets == (2000, 4000, 6000, 8000)
    assert (method.prior, method.n_traces, method.n_summaries, method.lam) == ("linear", 8, 4, 0.5)
    assert method.forced == "\n...\n...\n</think>"
    assert method.heading == "\n\n**Final Answer**\n"
    assert method.config_defaults()["loss_type"] == "dr_grpo"


def test_knobs_can_be_read_by_the_registry_without_torch() -> None:
    script = (
        "import sys, typing; from outlay.rl.anytime import AnytimeBRPO; "
        "hints = typing.get_type_hints(AnytimeBRPO); assert 'budgets' in hints; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        ({"budgets": (8, 4)}, BudgetError, "budgets"),
        ({"budgets": ()}, BudgetError, "budgets"),
        ({"prior": "steep"}, InputError, "prior"),
        ({"prior": (1.0, 2.0)}, InputError, "prior"),
        ({"prior": (1.0, 0.0, -1.0)}, InputError, "prior"),
        ({"n_summaries": 0}, InputError, "n_summaries"),
        ({"n_traces": 0}, InputError, "n_traces"),
        ({"max_summary_tokens": 0}, InputError, "max_summary_tokens"),
        ({"lam": -0.1}, InputError, "lam"),
        ({"lam": float("nan")}, InputError, "lam"),
        ({"variance_reduction": "v3"}, InputError, "variance_reduction"),
        ({"summary_mode": "first"}, InputError, "summary_mode"),
        ({"packing": "flat"}, InputError, "packing"),
        ({"adv_norm": "max"}, InputError, "adv_norm"),
        ({"eps": 0.0}, InputError, "eps"),
        ({"eps_high": -1.0}, InputError, "eps_high"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(METHOD, **knobs)


def test_a_group_of_one_is_warned_about_where_v2_needs_more() -> None:
    with pytest.warns(UserWarning, match="n_traces=1"):
        AnytimeBRPO(n_traces=1)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"forced": "..\n"}, "forced"),
        ({"forced": "</think></think>"}, "forced"),
        ({"natural": "</think>"}, "natural"),
        ({"heading": "</think>"}, "heading"),
        ({"end_of_thinking": ""}, "end_of_thinking"),
        ({"heading": "\N{SNOWMAN}"}, "template"),
    ],
)
def test_bad_templates_are_refused(texts: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(METHOD, **texts).tokenized(TOKENIZER)


def test_an_end_tag_of_several_tokens_is_matched_as_a_sequence() -> None:
    from tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    pieces = AnytimeBRPO().tokenized(tokenizer).pieces
    assert len(pieces.end) > 1
    written = tokenizer("so it is 4</think> and", add_special_tokens=False)["input_ids"]
    thinking, ended = pieces.thinking(written, 1000)
    assert ended
    assert tokenizer.decode(thinking) == "so it is 4</think>"
    assert pieces.count_ends(written + list(pieces.end)) == 2


def test_without_templates_or_a_verifier_nothing_is_sampled() -> None:
    with pytest.raises(InputError, match="tokenized"):
        replace(METHOD, templates=None).outcomes([ROW], [QUESTION], [[5]], Says("7"))
    with pytest.raises(InputError, match="reward_fn"):
        replace(METHOD, reward_fn=None).outcomes([ROW], [QUESTION], [[5]], Says("7"))


def test_an_empty_completion_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        METHOD.outcomes([ROW], [QUESTION], [[]], Says("7"))


def test_trees_need_a_trainer_that_knows_them() -> None:
    with pytest.raises(CapabilityError, match="AnytimeTrainer"):
        replace(METHOD, packing="tree").probe([dict(ROW)], [QUESTION], [[5]], Says("7<eos>"))
