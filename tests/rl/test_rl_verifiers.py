"""Verifiers: right, wrong, cut off, broken, hanging."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import InputError, OutlayError
from outlay.evals.base import Problem
from outlay.evals.puzzles import Hanoi, Puzzles
from outlay.evals.puzzles.parsing import print_moves
from outlay.rl.grading import gym_score, math_equal
from outlay.rl.guard import Guard
from outlay.rl.rewards import GatedLength, accuracy, partial_credit, well_formed
from outlay.rl.verifiers import (
    ChainArithVerifier,
    GymVerifier,
    MathVerifier,
    Reading,
    TaskVerifier,
    gym_dataset,
)
from outlay.testbeds.reasoner import build_tokenizer

TOKENIZER = build_tokenizer()


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text)["input_ids"]
    return found


@pytest.fixture(scope="module")
def maths() -> Iterator[MathVerifier]:
    verifier = MathVerifier(Reading(TOKENIZER), workers=1, seconds=60)
    yield verifier
    verifier.guard.close()


def test_math_is_graded_on_the_answer_part_only(maths: MathVerifier) -> None:
    texts = [
        "so 1/2</think>The answer is \\boxed{0.5}.<eos>",
        "\\boxed{1/2}</think>\\boxed{3}<eos>",
        "\\boxed{1/2}",  # a thought that was cut
        "x</think>\\boxed{1/2}",  # an answer that was finished before the cut
        "x</think><eos>",
        "x</think>y</think>\\boxed{1/2}<eos>",
    ]
    found = maths.judge([{"answer": "1/2"}] * 6, [ids(text) for text in texts])
    assert [j.correct for j in found] == [True, False, False, True, False, True]
    assert [j.truncated for j in found] == [False, False, True, True, False, False]
    assert [j.format_ok for j in found] == [True, True, False, True, False, False]
    assert [j.given for j in found][2:5] == [None, "1/2", None]
    assert not any(j.failed for j in found)
    for text, judgement in zip(texts, found, strict=True):
        assert judgement.tokens == len(ids(text))
        assert judgement.thinking_tokens == len(ids(text.split("</think>")[0]))
    assert accuracy(judgement=found) == [1, 0, 0, 1, 0, 1]
    assert well_formed(judgement=found) == [1, 1, 0, 1, 0, 0]


def test_padding_is_not_counted(maths: MathVerifier) -> None:
    pad = TOKENIZER.pad_token_id
    cut, whole = ids("x</think>\\boxed{2}"), ids("x</think>\\boxed{2}<eos>")
    found = maths.judge([{"answer": "2"}] * 2, [[*cut, pad, pad], [*whole, pad]])
    assert [j.tokens for j in found] == [len(cut), len(whole)]
    assert [j.truncated for j in found] == [True, False]


def test_a_row_without_an_answer_is_refused(maths: MathVerifier) -> None:
    with pytest.raises(InputError, match="no column 'answer'"):
        maths.judge([{"prompt": "1"}], [[1]])
    with pytest.raises(InputError, match="no column 'answer'"):
        ChainArithVerifier().judge([{"prompt": "1"}], [[1]])


def test_a_completion_that_cannot_be_read_is_wrong_and_counted() -> None:
    found = ChainArithVerifier().judge([{"answer": "7"}] * 2, [[100_000, 1], ids("<direct>")])
    assert [j.failed for j in found] == [True, False]
    assert (found[0].correct, found[0].tokens, found[0].truncated) == (False, 2, True)


def test_equality_of_mathematics_is_math_verifys() -> None:
    assert math_equal("1/2", "0.5")
    assert math_equal("$x^2+1$", "\\boxed{1+x^2}")
    assert not math_equal("12", "13")


def test_an_end_of_thinking_must_survive_the_tokenizer() -> None:
    class Lossy:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "<unk>"

    with pytest.raises(InputError, match="comes back from the tokenizer as '<unk>'"):
        Reading(Lossy())  # type: ignore[arg-type]


def test_models_that_do_not_think_answer_with_everything(maths: MathVerifier) -> None:
    part = Reading(TOKENIZER, end_of_thinking="").split(ids("7<eos>"))
    assert (part.thinking_tokens, part.answer_tokens, part.answer) == (0, 2, "7")
    assert part.format_ok


def test_partial_credit_of_reasoning_gym_is_not_right() -> None:
    data = gym_dataset("countdown", 2, seed=1)
    entry = json.loads(data[0]["entry"])
    verifier = GymVerifier(Reading(TOKENIZER), "countdown", workers=1, seconds=60)
    try:
        expression = entry["metadata"]["expression"].replace(" ", "")
        texts = [f"t</think>{answer}<eos>" for answer in (expression, "1+1", "what?")]
        found = verifier.judge([data[0]] * 3, [ids(text) for text in texts])
    finally:
        verifier.guard.close()
    assert [j.correct for j in found] == [True, False, False]
    assert found[0].score == 1
    assert 0 < found[1].score < 1  # paid by reasoning-gym although wrong
    assert partial_credit(judgement=found) == [j.score for j in found]
    assert gym_score("countdown", "{}", data[0]["entry"], "1+1") == found[1].score


def test_unknown_tasks_of_reasoning_gym_are_refused() -> None:
    with pytest.raises(InputError, match="no-such-task"):
        gym_dataset("no-such-task", 1)
    with pytest.raises(InputError, match="size=0"):
        gym_dataset("countdown", 0)


def test_puzzles_are_replayed_and_a_broken_verifier_is_counted() -> None:
    task = Puzzles("hanoi", levels=(2,))
    problem = task.sample(0, 1)[0]
    moves = print_moves(list(Hanoi(2).solution()))
    verifier = TaskVerifier(Reading(TOKENIZER), task, [problem])
    rows = [{"id": problem.id}] * 3
    texts = [f"t</think>{moves}<eos>", "t</think>moves = [[1, 0, 2]]<eos>", f"{moves}"]
    found = verifier.judge(rows, [ids(text) for text in texts])
    assert [j.correct for j in found] == [True, False, False]
    assert verifier.failures == 0

    class Broken(Puzzles):
        def verify(self, problem: Problem, answer: str) -> float:
            raise ZeroDivisionError("bad task")

    broken = TaskVerifier(Reading(TOKENIZER), Broken("hanoi", levels=(2,)), [problem])
    judged = broken.judge(rows[:1], [ids(texts[0])])
    assert (judged[0].correct, judged[0].failed, broken.failures) == (False, True, 1)
    with pytest.raises(InputError, match="no problem has the id"):
        broken.judge([{"id": "other"}], [[1]])
    with pytest.raises(InputError, match="one id"):
        TaskVerifier(Reading(TOKENIZER), task, [problem, problem])


def test_what_raises_or_hangs_is_counted_and_the_pool_goes_on() -> None:
    guard = Guard("time:sleep", workers=2, seconds=1.5)
    try:
        guard.map([[0]])
        began = time.monotonic()
        found = guard.map([[0.01], [30], ["text"], [0.02]])
        assert time.monotonic() - began < 20
        assert [fine for fine, _ in found] == [True, False, False, True]
        assert (guard.calls, guard.timeouts, guard.raised, guard.failures) == (5, 1, 1, 2)
        assert guard.map([[0]]) == [(True, None)]
    finally:
        guard.close()


def test_a_function_that_does_not_exist_is_named() -> None:
    guard = Guard("outlay.rl.grading:nothing", workers=1)
    with pytest.raises(OutlayError, match=r"outlay\.rl\.grading:nothing did not start"):
        guard.map([[1]])
    with pytest.raises(InputError, match="workers=0"):
        Guard("time:sleep", workers=0)
    with pytest.raises(InputError, match="seconds=0"):
        Guard("time:sleep", seconds=0)


def test_a_gated_length_reward_pays_short_right_answers() -> None:
    verifier = ChainArithVerifier()
    texts = ["<direct></think><answer>7<eos>", "<short>3+4=7;</think><answer>7<eos>", "<direct>"]
    judged = verifier.judge([{"answer": "7"}] * 3, [ids(text) for text in texts])
    pay = GatedLength(scale=10, slope=0.5)
    assert pay(judgement=judged) == [1 - 0.5 * 5 / 10, 0.5, 0]
    assert pay.__name__ == "gated_length"
    thought = GatedLength(scale=10, slope=0.5, count="thinking")
    assert thought(judgement=judged) == [1 - 0.5 * 1 / 10, 1 - 0.5 * 7 / 10, 0]
    assert GatedLength(scale=10, slope=0)(judgement=judged) == accuracy(judgement=judged)
    for wrong in ({"scale": 0}, {"scale": 1, "slope": 2}, {"scale": 1, "count": "words"}):
        with pytest.raises(InputError):
            GatedLength(**wrong)  # type: ignore[arg-type]


def test_the_room_is_imported_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, outlay.rl, outlay.rl.metrics, outlay.rl.rewards, outlay.rl.planning;"
        "sys.exit('torch' in sys.modules or 'trl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert Path(__file__).name.startswith("test_rl_")
