"""Qualities of code lines and short answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.base import Problem, continuations, pick
from outlay.evals.metrics import (
    answer_contains,
    answer_exact,
    answer_f1,
    code_lines,
    edit_similarity,
    exact_match,
)

words = st.text(alphabet="ab \n#(", max_size=30)


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(words, words)
def test_edit_similarity_equals_the_slow_definition(target, prediction):
    wanted = code_lines(target)
    given_ = code_lines(prediction)[: len(wanted)]
    a, b = "\n".join(wanted), "\n".join(given_)
    slow = 1.0 if not a and not b else 1 - levenshtein(a, b) / max(len(a), len(b))
    assert edit_similarity(target, prediction) == pytest.approx(slow)
    assert (exact_match(target, prediction) == 1.0) == (a == b)
    assert 0.0 <= edit_similarity(target, prediction) <= 1.0


def test_comments_blank_lines_indentation_and_the_tail_do_not_count():
    target = "\n  x = 1\n  y = 2"
    prediction = "# note\nx = 1\n\n    y = 2\nz = 3\n"
    assert edit_similarity(target, prediction) == exact_match(target, prediction) == 1.0
    assert exact_match("x = 1", "x = 2") == 0.0
    assert edit_similarity("abcd", "abcx") == 0.75


def test_answers_compare_after_normalisation():
    assert answer_exact("Coldharbour", "the coldharbour.") == 1.0
    assert answer_exact("0.5", "05") == 0.0
    assert answer_exact("__init__", "init") == 0.0
    assert answer_contains("Coldharbour", "It is Coldharbour, I think") == 1.0
    assert answer_contains("harbour", "Coldharbour") == 0.0
    assert answer_f1("old stone house", "the stone house") == pytest.approx(2 * 2 / 5)
    assert answer_f1("a", "") == 0.0


@given(st.text(max_size=20))
def test_an_answer_equals_itself(text):
    assert answer_exact(text, text) == 1.0
    if text.strip():
        assert answer_contains(text, text) == answer_f1(text, text) == 1.0


def test_pick_takes_the_most_likely_option_per_token():
    problem = Problem(id="p", question="", choices=("one", "two words", "three"))
    assert continuations(problem) == (" one", " two words", " three")
    assert pick(problem, [[-2.0], [-1.0, -1.5], [-3.0]]) == "two words"
    assert pick(problem, [[-1.0], [-1.0, -1.0], [-1.0]]) == "one"


def test_pick_refuses_unusable_scores():
    problem = Problem(id="p", question="", choices=("one", "two"))
    with pytest.raises(InputError, match="1 scores for 2 options"):
        pick(problem, [[-1.0]])
    with pytest.raises(InputError, match="no usable score"):
        pick(problem, [[-1.0], []])
    with pytest.raises(InputError, match="no usable score"):
        pick(problem, [[-1.0], [math.nan]])
    with pytest.raises(InputError, match="needs >= 2"):
        continuations(Problem(id="q", question=""))
