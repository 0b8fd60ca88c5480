"""JoinedArith: chains of unequal length, exact answers, exact blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.base import Reads, Task
from outlay.testbeds.reasoner import parse_question, render_trace
from outlay.testbeds.reasoner.chains import split_of
from outlay.testbeds.reasoner.joined import JoinedArith, level_of


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["random", "ascending", "descending"]))
def test_problems_hold_what_the_knobs_promise(seed: int, order: Any) -> None:
    task = JoinedArith(order=order)
    for index, problem in enumerate(task.sample(seed, 9)):
        joined = task.chain(problem)
        lengths = [len(chain.operations) for chain in joined.chains]
        assert lengths == problem.meta["lengths"]
        assert len(lengths) == 2 + index % 3
        assert max(lengths) >= 2 * min(lengths)
        assert joined.operations <= task.total
        assert joined.answer == problem.answer
        assert split_of(problem.question) == "heldout"
        assert 1 <= problem.meta["level"] <= 5
        if order != "random":
            assert lengths == sorted(lengths, reverse=order == "descending")


def test_a_larger_sample_extends_a_smaller_one() -> None:
    task = JoinedArith()
    assert list(task.sample(3, 12))[:5] == list(task.sample(3, 5))
    assert task.sample(3, 5) != task.sample(4, 5)


def test_the_exact_trace_is_right_and_so_is_every_block() -> None:
    task = JoinedArith()
    assert isinstance(task, Task)
    assert isinstance(task, Reads)
    for problem in task.sample(0, 12):
        for format in ("short", "long"):
            text = render_trace(parse_question(problem.question), format)  # type: ignore[arg-type]
            assert task.verify(problem, text) == 1
            assert task.read(problem, text) == problem.answer
            if format == "short":
                assert all(task.blocks(problem, text))


def test_a_block_that_was_cut_or_is_wrong_counts_as_wrong() -> None:
    task = JoinedArith()
    problem = task.sample(0, 1)[0]
    text = render_trace(task.chain(problem), "short")
    first, rest = text.split("[2]")
    cut = first[: first.rindex("=")] + "[2]" + rest
    assert task.blocks(problem, cut) == [False, *task.blocks(problem, text)[1:]]
    assert task.blocks(problem, "") == [False] * len(problem.meta["lengths"])
    assert task.verify(problem, "<short>[1]") == 0


def test_levels_cover_the_range() -> None:
    assert [level_of(n, 18) for n in (1, 4, 5, 8, 12, 15, 18, 30)] == [1, 2, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize(
    "knobs",
    [
        {"chains": (1, 2)},
        {"chains": (4, 3)},
        {"chains": (2, 6)},
        {"operations": (0, 3)},
        {"operations": (5, 4)},
        {"total": 4},
        {"chains": (2, 2), "operations": (6, 12), "total": 16},
        {"chains": (2, 2), "operations": (3, 4)},
        {"order": "sorted"},
        {"template": "chat"},
    ],
)
def test_knobs_that_no_problem_fits_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        JoinedArith(**knobs)
