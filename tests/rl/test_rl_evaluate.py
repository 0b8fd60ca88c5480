"""Evaluation under several budgets, on the smallest reasoner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from outlay.errors import BudgetError, InputError
from outlay.rl import Method, Row, evaluate_policy
from outlay.rl.evaluate import Inference
from outlay.rl.verifiers import ChainArithVerifier
from outlay.testbeds.reasoner import ChainArith, load, render_prompt


@pytest.fixture(scope="module")
def policy() -> Any:
    torch.set_num_threads(1)
    return load("small")


def rows(n: int = 24) -> list[Row]:
    return [
        {"prompt": render_prompt(p.question), "answer": p.answer, "ops": p.meta["difficulty"]}
        for p in ChainArith((1, 4)).sample(2, n)
    ]


def run(policy: Any, method: Method | None = None, **knobs: Any) -> Any:
    model, tokenizer = policy
    inference = Inference(**{"budget": 20, **knobs})
    return evaluate_policy(
        model, tokenizer, rows(), ChainArithVerifier(), inference, method=method, difficulty="ops"
    )


def test_greedy_answers_are_those_of_generate_alone(policy: Any) -> None:
    model, tokenizer = policy
    found = run(policy, temperatures=(0.0,), scales=(1.0,), batch_size=5).cells[0]
    for index, row in enumerate(rows()):
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :].tolist()
        assert found.tokens[index] == len(out)
    assert found.metrics["acc"] == sum(found.right) / 24
    assert set(found.bins) == {"1", "2", "3", "4"}


def test_no_completion_exceeds_its_budget_and_more_budget_helps(policy: Any) -> None:
    report = run(policy, scales=(0.25, 0.5, 1.0, 2.0))
    assert [cell.budget for cell in report.cells] == [5, 10, 20, 40] * 2
    for cell in report.cells:
        assert max(cell.tokens) <= cell.budget
        assert cell.metrics["violation"] == 0
    points, mean = report.curve()
    assert [budget for budget, _ in points] == [5, 10, 20, 40]
    assert points[-1][1] > points[0][1]
    assert mean == pytest.approx(sum(acc for _, acc in points) / 4)
    with pytest.raises(InputError):
        report.curve(temperature=0.7)
    assert len(report.to_dict()["cells"]) == 8


def test_seeds_repeat_and_leave_the_random_state_alone(policy: Any) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    policy[0].train(True)
    one = run(policy, temperatures=(1.0,), seeds=(1, 2), scales=(1.0,))
    assert torch.equal(before, torch.get_rng_state())
    assert policy[0].training
    policy[0].train(False)
    two = run(policy, temperatures=(1.0,), seeds=(1, 2), scales=(1.0,))
    assert one == two
    assert one.cells[0].tokens != one.cells[1].tokens


def test_a_forced_end_makes_a_cut_thought_answer(policy: Any) -> None:
    _, tokenizer = policy
    forced = tuple(tokenizer("</think><answer>")["input_ids"])
    knobs = {"temperatures": (0.0,), "scales": (0.5,)}
    cut = run(policy, **knobs).cells[0]
    answered = run(
        policy, **knobs, forced_ids=forced, end_of_thinking=forced[:1], answer_tokens=2
    ).cells[0]
    assert cut.metrics["truncated"] > 0
    assert answered.metrics["truncated"] == 0
    assert max(answered.tokens) <= 10 + len(forced) + 2
    assert sum(answered.right) >= sum(cut.right)


@dataclass(frozen=True)
class Told(Method):
    """Opens a style and asks another question."""

    prefix_ids: tuple[int, ...] = ()

    def at_inference(self, rows: Sequence[Row], budget: int) -> Sequence[Row]:
        return [{**row, "prefix_ids": list(self.prefix_ids)} for row in rows]


def test_a_method_says_what_the_model_is_told(policy: Any) -> None:
    _, tokenizer = policy
    direct = Told(tuple(tokenizer("<direct>")["input_ids"]))
    knobs = {"temperatures": (0.0,), "scales": (1.0,)}
    told = run(policy, direct, **knobs).cells[0]
    free = run(policy, **knobs).cells[0]
    assert told.metrics["tokens_mean"] < free.metrics["tokens_mean"]
    assert told.metrics["thinking_mean"] == 1  # the style's tag alone


@pytest.mark.parametrize(
    ("knobs", "error"),
    [
        ({"budget": 0}, BudgetError),
        ({"scales": (0.0,)}, BudgetError),
        ({"scales": ()}, BudgetError),
        ({"answer_tokens": 0}, BudgetError),
        ({"batch_size": 0}, BudgetError),
        ({"temperatures": (-1.0,)}, InputError),
        ({"seeds": ()}, InputError),
        ({"forced_ids": (1,)}, InputError),
        ({"budget": 700, "scales": (1.0,)}, BudgetError),
    ],
)
def test_bad_settings_are_refused(policy: Any, knobs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(policy, **knobs)


def test_no_rows_are_refused(policy: Any) -> None:
    with pytest.raises(InputError, match="0 rows"):
        evaluate_policy(*policy, [], ChainArithVerifier(), Inference(8))
