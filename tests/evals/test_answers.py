"""Finding, comparing and voting over answers."""

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.answers import (
    after_answer,
    boxed,
    equivalent,
    extract,
    final_answer,
    group,
    majority,
    naive,
    weighted,
)
from outlay.evals.mathguard import MathGuard

OPTIONS = ("Folic acid", "Iron", "Vitamin B12", "Acid")
texts = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{Iron}}", "Iron"),
        (r"only \fbox{B}", "B"),
        (r"\boxed{unclosed", None),
        ("nothing", None),
    ],
)
def test_box_is_the_last_balanced_one(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Answer: 1</think>\nAnswer: 2", "2"),
        ("x <answer> a b </answer> y", "a b"),
        ("Answer: 5\n\nNow another question. Answer is 7", "5"),
        ("**Answer:** seven", "seven"),
        ("I think the answer is Paris.", "Paris"),
        ("Paris", "Paris"),
        ("", ""),
    ],
)
def test_final_answer_is_what_follows_the_marker(text, answer):
    assert final_answer(text) == answer


def test_grids_keep_their_white_space_after_the_marker():
    assert after_answer("Answer:\n_ Q\nQ _\n") == "\n_ Q\nQ _\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The sum is 1,250.0 euros", "1250"),
        ("Answer: -7", "-7"),
        ("it is \N{MINUS SIGN}3.5", "-7/2"),
        ("2/4", "1/2"),
        ("5-3", "3"),
        ("1e3", "1000"),
        ("x2 and v3", None),
        ("1/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_numbers_are_canonical(text, number):
    assert extract(text, "number") == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{Iron}}", "B"),
        (r"\boxed{C. Vitamin B12}", "C"),
        (r"\boxed{answer = D}", "D"),
        ("b", "B"),
        ("(C)", "C"),
        ("B. iron", "B"),
        ("The answer is C because of A.", "C"),
        ("The answer is iron.", "B"),
        ("the answer is folic acid", "A"),
        ("## Final Response\nOption D", "D"),
        ("First A, but in the end B", "B"),
        ("A patient needs iron", "B"),
        ("It must be folic acid", "A"),
        ("<think>The answer is A</think> B", "B"),
        ("garbage", None),
        ("", None),
    ],
)
def test_choice_chain(text, letter):
    assert extract(text, "choice", options=OPTIONS) == letter


def test_only_the_official_matcher_guesses():
    assert extract("irn", "choice", options=OPTIONS) is None
    assert extract("irn", "choice", options=OPTIONS, matcher="official") == "B"


@given(st.integers(0, 3))
def test_gold_letter_text_and_both_are_right(index):
    letter = "ABCD"[index]
    for text in (letter, OPTIONS[index], f"{letter}. {OPTIONS[index]}"):
        assert extract(text, "choice", options=OPTIONS) == letter
        assert extract(f"\\boxed{{{text}}}", "choice", options=OPTIONS) == letter


@given(st.text(max_size=80))
def test_any_text_gives_a_letter_or_none(text):
    assert extract(text, "choice", options=OPTIONS) in {"A", "B", "C", "D", None}
    assert isinstance(final_answer(text), str)
    extract(text, "number")


@pytest.mark.parametrize(
    "options", [("a",), ("a", "A"), ("a", " "), tuple("abcdefghijklmnopqrstuvwxyz1")]
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match="option"):
        extract("a", "choice", options=options)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="kind"):
        extract("a", "essay")
    with pytest.raises(InputError, match="string"):
        extract(None, "text")
    with pytest.raises(InputError, match="custom="):
        extract("a", "custom")
    with pytest.raises(InputError, match="custom="):
        equivalent("a", "b", "custom")
    with pytest.raises(InputError, match="matcher"):
        extract("a", "choice", matcher="lucky")


def test_custom_kind_uses_the_given_functions():
    assert extract("ab", "custom", custom=str.upper) == "AB"
    assert equivalent("a", "A", "custom", custom=lambda g, a: g == a.lower())


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "50%", True),
        ("x^2+1", "1+x^2", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("x^2+1", "x^2+2", False),
        ("3", "4", False),
        ("3", "banana", False),
    ],
)
def test_math_answers_compare_by_value(gold, answer, same):
    assert equivalent(gold, answer, "math") is same


def test_math_is_found_in_text():
    assert extract(r"Thus \boxed{\frac{3}{4}}.", "math") == r"\frac{3}{4}"
    assert extract("no mathematics here", "math") is None


def test_math_works_outside_the_main_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(equivalent("2x", "x+x", "math")))
    thread.start()
    thread.join(60)
    assert seen == [True]


def test_guard_ends_a_comparison_that_takes_too_long_and_recovers():
    guard = MathGuard(seconds=1e-4)
    start = time.monotonic()
    assert guard.equivalent("(a+b+c)^{30}", "(c+b+a)^{30}") is False
    assert time.monotonic() - start < 60
    guard.seconds = 30.0
    assert guard.equivalent("1/2", "0.5") is True
    guard.close()


def test_number_and_text_compare_after_normalisation():
    assert equivalent("1/2", "0.50", "number")
    assert not equivalent("1", "2", "number")
    assert not equivalent("a", "b", "number")
    assert equivalent("The Inn", "inn.", "text")
    assert equivalent("b", "B", "choice")


def test_groups_keep_the_order_of_appearance():
    assert group(["2", None, "1/2", "0.5", None, "2"], "math") == [[0, 5], [1, 4], [2, 3]]


@given(texts)
def test_none_never_wins_while_an_answer_exists(answers):
    vote = majority(answers, "number")
    assert (vote.value is None) == all(a is None for a in answers)
    assert sorted(i for members in vote.groups for i in members) == list(range(len(answers)))


@given(texts, st.randoms(use_true_random=False))
def test_vote_does_not_depend_on_order_except_for_ties(answers, rng):
    vote = majority(answers, "number")
    found = [w for g, w in zip(vote.groups, vote.weights, strict=True) if answers[g[0]] is not None]
    shuffled = list(answers)
    rng.shuffle(shuffled)
    again = majority(shuffled, "number")
    assert sorted(again.weights) == sorted(vote.weights)
    if found and found.count(max(found)) == 1:
        assert again.value == vote.value


@given(texts, st.integers(1, 5))
def test_a_none_answer_never_changes_the_winner(answers, extra):
    if any(a is not None for a in answers):
        assert (
            majority([None] * extra + answers, "number").value == majority(answers, "number").value
        )


@given(texts, st.sampled_from([1e-9, 0.1, 1.0]))
def test_equal_scores_give_the_majority(answers, score):
    equal = weighted(answers, [score] * len(answers), "number")
    assert equal.value == majority(answers, "number").value


@given(texts)
def test_constant_scores_give_the_first_sample(answers):
    first = next((a for a in answers if a is not None), None)
    assert naive(answers, [0.5] * len(answers), "number").value == first
    assert majority(answers[:1], "number").value == answers[0]


def test_votes_by_weight_and_by_best_score():
    answers, scores = ["1", "2", "2", None], [0.7, 0.4, 0.4, 1.0]
    assert weighted(answers, scores, "number").value == "2"
    assert naive(answers, scores, "number").value == "1"
    assert naive(["1/2", "0.5"], [0.1, 0.9], "math").index == 1


def test_ties_go_to_the_earliest_or_to_a_seeded_choice():
    answers = ["3", "1", "1", "3", "2"]
    assert majority(answers, "number").value == "3"
    drawn = {majority(answers, "number", tie="random", seed=s).value for s in range(20)}
    assert drawn == {"3", "1"}
    assert majority(answers, "number", tie="random", seed=4) == majority(
        answers, "number", tie="random", seed=4
    )


def test_bad_votes_are_refused():
    with pytest.raises(InputError, match="no answers"):
        majority([], "number")
    with pytest.raises(InputError, match="1 scores for 2 answers"):
        weighted(["1", "2"], [1.0], "number")
    for score in (float("nan"), float("inf"), -0.1):
        with pytest.raises(InputError, match="score 0"):
            naive(["1"], [score], "number")
    with pytest.raises(InputError, match="tie"):
        majority(["1"], "number", tie="last")


def test_grouping_equals_a_comparison_with_every_first_member():
    rng = random.Random(0)
    answers = [rng.choice(["1", "1.0", "2/2", "3", "6/2", None]) for _ in range(30)]
    slow: list[list[int]] = []
    for index, answer in enumerate(answers):
        for members in slow:
            first = answers[members[0]]
            if (first is None and answer is None) or (
                first is not None and answer is not None and equivalent(first, answer, "number")
            ):
                members.append(index)
                break
        else:
            slow.append([index])
    assert group(answers, "number") == slow
