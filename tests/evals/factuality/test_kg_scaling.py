"""Scaling curves: pass@k, majority@k, best-of-k, budget forcing, and their ledgers."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.decode.plain import PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import InputError
from outlay.evals.base import Problem
from outlay.evals.factuality.scaling import (
    Samples,
    best_of_k,
    draw,
    parallel_curve,
    request,
    sequential_curve,
)
from outlay.evals.factuality.tasks import Factuality
from outlay.ledger import Ledger
from outlay.models.base import SamplingParams
from outlay.testbeds.reasoner import ChainArith
from recording_model import RecordingModel
from tiny_models import tiny_model

TASK = ChainArith(operations=(3, 6))
DECODER = ThinkingBudget(overthink_prefix="", newline="", max_answer=4, wait="Wait", n_wait=2)


def group(correct, answers=None, scores=()):
    answers = answers or [f"\\boxed{{{'right' if c else 'wrong'}}}" for c in correct]
    problem = Problem("p", "Who?")
    return Samples(problem, tuple(answers), tuple(correct), (7,) * len(correct), 11, tuple(scores))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_pass_at_1_is_mean_accuracy_and_pass_at_n_is_any_correct(rows):
    points = parallel_curve([group(row) for row in rows], (1, 2, 3, 6))
    assert points[0].passed == pytest.approx(np.mean(rows))
    assert points[0].majority == pytest.approx(np.mean(rows))
    assert points[-1].passed == pytest.approx(np.mean([any(row) for row in rows]))
    passed = [point.passed for point in points]
    assert passed == sorted(passed)
    assert all(point.majority <= point.passed + 1e-12 for point in points)
    for point in points:
        subsets = list(combinations(range(6), point.k))
        seen = [any(row[i] for i in subset) for row in rows for subset in subsets]
        assert point.passed == pytest.approx(np.mean(seen))


def test_the_curve_matches_monte_carlo_subsampling():
    rng = np.random.default_rng(0)
    correct = [bool(x) for x in rng.random(16) < 0.3]
    answers = [f"\\boxed{{{'gold' if c else rng.choice(['x', 'y', 'z'])}}}" for c in correct]
    [point] = parallel_curve([group(correct, answers)], (5,))
    passed = voted = 0
    for _ in range(4_000):
        rows = np.sort(rng.choice(16, 5, replace=False))
        passed += any(correct[i] for i in rows)
        texts = [answers[i] for i in rows]
        top = max(map(texts.count, texts))
        voted += next(correct[i] for i in rows if texts.count(answers[i]) == top)
    assert point.passed == pytest.approx(passed / 4_000, abs=0.03)
    assert point.majority == pytest.approx(voted / 4_000, abs=0.03)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7),
    st.integers(1, 7),
)
def test_best_of_k_equals_trying_every_subset(pairs, k):
    k = min(k, len(pairs))
    scores, correct = [float(s) for s, _ in pairs], [c for _, c in pairs]
    tried = [
        correct[max(subset, key=lambda i: (scores[i], -i))]
        for subset in combinations(range(len(pairs)), k)
    ]
    assert best_of_k(scores, correct, k) == pytest.approx(np.mean(tried))


def test_tokens_count_the_prompt_once_and_solved_questions_pay_for_all():
    [point] = parallel_curve([group([True, True])], (2,))
    assert (point.tokens, point.per_solved) == (11 + 2 * 7, 25)
    [none] = parallel_curve([group([False, False])], (2,))
    assert none.per_solved == math.inf
    assert none.best is None


def test_empty_answers_do_not_vote():
    [point] = parallel_curve([group([False, False, True], ["\\boxed{}", " ", "\\boxed{x}"])], (3,))
    assert point.majority == 1.0


@pytest.mark.parametrize(("ks", "said"), [((4,), "k=4 is more"), ((0,), "ks=0"), ((), "no ks")])
def test_more_samples_than_drawn_are_refused(ks, said):
    with pytest.raises(InputError, match=said):
        parallel_curve([group([True] * 3)], ks)


def test_unusable_scores_are_refused():
    with pytest.raises(InputError):
        best_of_k([1.0], [True, False], 1)
    with pytest.raises(InputError):
        best_of_k([math.nan], [True], 1)
    with pytest.raises(InputError):
        best_of_k([1.0], [True], 2)


def test_one_greedy_sample_equals_plain_generation(reasoner):
    problems = TASK.sample(3, 4)
    greedy = SamplingParams(max_tokens=60)
    drawn = draw(reasoner, TASK, problems, n=1, sampling=greedy)
    plain = PlainDecoder().generate_many(
        reasoner, [request(reasoner, TASK, p) for p in problems], None, greedy
    )
    assert [one.replies[0] for one in drawn] == [made.text for made in plain]
    assert [one.tokens[0] for one in drawn] == [len(made.token_ids) for made in plain]


def test_samples_differ_are_repeatable_and_on_the_books(reasoner):
    problems = TASK.sample(0, 2)
    hot = SamplingParams(max_tokens=30, temperature=1.5, seed=4)
    ledger = Ledger()
    first = draw(
        reasoner, TASK, problems, n=6, sampling=hot, score=lambda p, r: len(r), ledger=ledger
    )
    assert len(set(first[0].replies)) > 1
    assert first[0].scores == tuple(len(reply) for reply in first[0].replies)
    again = draw(reasoner, TASK, problems, n=6, sampling=hot)
    assert [one.replies for one in again] == [one.replies for one in first]
    total = ledger.totals()
    assert total.generated == sum(sum(one.tokens) for one in first)
    assert total.prompt == sum(one.prompt_tokens for one in first)
    with pytest.raises(InputError, match="n=2000"):
        draw(reasoner, TASK, problems, n=2000)
    with pytest.raises(InputError, match="no questions"):
        draw(reasoner, TASK, [])


@pytest.fixture(scope="module")
def curve(reasoner):
    budgets = (4, 12, 20, 30, 48, 90, 160)
    return sequential_curve(reasoner, TASK, TASK.sample(1, 6), budgets, decoder=DECODER)


def thought(made):
    total = made.ledger.totals(stage="think")
    return total.generated + total.forced


def test_prompt_and_thinking_stay_within_the_budget(reasoner, curve):
    for point in curve:
        for made in point.results:
            prompt = made.ledger.totals().prompt
            assert thought(made) <= max(0, point.budget - prompt)
            assert made.waits <= 2


def test_a_budget_within_the_prompt_goes_straight_to_the_answer(curve):
    for made in curve[0].results:
        assert made.ledger.totals().prompt >= 4
        assert thought(made) == 0
        assert made.waits == 0
        assert made.ledger.totals(stage="answer").generated > 0


def test_a_larger_budget_never_thinks_less(curve):
    for shorter, longer in pairwise(curve):
        for a, b in zip(shorter.results, longer.results, strict=True):
            assert thought(a) <= thought(b)
    assert curve[-1].thinking > curve[1].thinking
    assert max(made.waits for made in curve[-1].results) > 0


def test_no_marker_means_no_wait(reasoner):
    patient = replace(DECODER, think_open="<think>", think_close="@@never@@", answer_open="")
    for point in sequential_curve(reasoner, TASK, TASK.sample(1, 3), (40,), decoder=patient):
        for made in point.results:
            if made.think_finish == "length":
                assert "Wait" not in made.thinking
                assert made.waits == 0


def test_without_waits_and_with_room_thinking_is_plain_generation(reasoner):
    problems = TASK.sample(2, 4)
    decoder = replace(DECODER, n_wait=0)
    [point] = sequential_curve(reasoner, TASK, problems, (300,), decoder=decoder)
    for problem, made in zip(problems, point.results, strict=True):
        plain = reasoner.generate(request(reasoner, TASK, problem), None, SamplingParams(300))
        assert made.thinking in plain.text
        assert plain.text.rsplit("</think>", 1)[1].startswith(made.text[:1])
    assert point.accuracy > 0.5


def test_tokens_are_prompt_thinking_and_answer(reasoner, curve):
    for point in curve:
        total = 0
        for made in point.results:
            sums = made.ledger.totals()
            assert made.tokens["thinking"] + made.tokens["answer"] == sums.generated
            total += sums.prompt + sums.generated + sums.forced
        assert point.tokens == pytest.approx(total / len(point.results))
        solved = sum(point.correct)
        assert point.per_solved == (pytest.approx(total / solved) if solved else math.inf)


def test_the_prompt_may_be_left_out_of_the_budget(reasoner):
    problems = TASK.sample(1, 2)
    [point] = sequential_curve(reasoner, TASK, problems, (5,), decoder=DECODER, counts_prompt=False)
    assert all(thought(made) == 5 for made in point.results)


@pytest.mark.parametrize("budgets", [(0,), (-3,), (1.5,), ()])
def test_budgets_that_are_no_positive_numbers_are_refused(reasoner, budgets):
    with pytest.raises(InputError):
        sequential_curve(reasoner, TASK, TASK.sample(0, 1), budgets, decoder=DECODER)


def test_a_budget_not_above_the_answers_allowance_is_warned_of(curve):
    assert "budget of 4 is not above the 4 tokens" in curve[0].warning
    assert [point.warning for point in curve[1:]] == [""] * (len(curve) - 1)


def test_worked_examples_are_turns_of_a_chat_or_text():
    task = Factuality(paths="path")
    first, asked = task.sample(0, 2)

    turns = request(tiny_model(), task, asked, [first])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == f"\\boxed{{{first.answer}}}"
    assert turns[2]["content"] == task.prompt(asked, asked.context)
    text = request(RecordingModel(), task, asked, [first])
    assert text.index(f"\\boxed{{{first.answer}}}") < text.index(asked.question)
