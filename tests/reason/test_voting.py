"""Baselines: one sample, votes, verifiers; budgets hold, and batching changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from outlay.budget import Budget
from outlay.errors import InputError, ModelError
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import BestOfN, Greedy, SelfConsistency, Shortest, solve_many
from outlay.reason.base import Question
from outlay.reason.voting import aggregate
from outlay.testbeds.reasoner.tokenizer import EOS

from .conftest import Broken, Constant, questions

SAMPLING = SamplingParams(temperature=1.0, max_tokens=120, seed=3)


def test_greedy_is_generate_at_temperature_0(reasoner: LocalModel) -> None:
    for question in questions(3):
        answer = Greedy().solve(reasoner, question, sampling=SAMPLING)
        plain = reasoner.generate(question.prompt, sampling=replace(SAMPLING, temperature=0.0))
        assert answer.text == plain.text
        assert answer.value == plain.text.rsplit("<answer>")[-1].removesuffix(EOS)


def test_many_questions_at_a_time_give_what_one_at_a_time_gives(reasoner: LocalModel) -> None:
    some = questions(5)
    for method in (SelfConsistency(n=4, wave=2), BestOfN(Constant(), n=3), Shortest(n=3)):
        alone = [method.solve(reasoner, q, Budget(tokens=300), SAMPLING) for q in some]
        batch = solve_many(method, reasoner, some, Budget(tokens=300), SAMPLING, together=3)
        for one, other in zip(alone, batch, strict=True):
            assert (one.text, one.value, one.status) == (other.text, other.value, other.status)
            left, right = one.ledger.totals(), other.ledger.totals()
            assert (left.generated, left.prompt) == (right.generated, right.prompt)
            assert left.delivered == right.delivered


def test_samples_of_one_question_differ_and_are_those_of_their_seeds(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    answer = SelfConsistency(n=6, early_stop=False).solve(reasoner, question, sampling=SAMPLING)
    texts = [branch.completion() for branch in answer.branches]
    assert len(set(texts)) > 1
    root = reasoner.open(question.prompt)
    for i, text in enumerate(texts):
        [[child]] = reasoner.extend([root], replace(SAMPLING, seed=SAMPLING.seed + i))
        assert child.completion() == text


def test_the_vote_is_the_most_frequent_answer(reasoner: LocalModel) -> None:
    for question in questions(4, (6, 8)):
        answer = SelfConsistency(n=7, early_stop=False).solve(reasoner, question, sampling=SAMPLING)
        found = [question.answer(branch.completion()) for branch in answer.branches]
        counts = Counter(value for value in found if value is not None)
        assert answer.value is not None
        assert counts[answer.value] == max(counts.values())


def test_early_stopping_never_changes_the_answer_and_saves_tokens(reasoner: LocalModel) -> None:
    some = questions(8, (2, 6))
    whole = solve_many(SelfConsistency(n=9, early_stop=False), reasoner, some, sampling=SAMPLING)
    early = solve_many(SelfConsistency(n=9, wave=1), reasoner, some, sampling=SAMPLING)
    assert [a.value for a in whole] == [a.value for a in early]
    assert sum(len(a.branches) for a in early) < sum(len(a.branches) for a in whole)


def test_majority_of_one_is_the_first_sample(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    one = SelfConsistency(n=1).solve(reasoner, question, sampling=SAMPLING)
    many = SelfConsistency(n=4, early_stop=False).solve(reasoner, question, sampling=SAMPLING)
    assert one.text == many.branches[0].completion()


def test_a_constant_verifier_makes_best_of_n_a_majority_or_the_first(reasoner: LocalModel) -> None:
    some = questions(4, (6, 8))
    plain = solve_many(SelfConsistency(n=5, early_stop=False), reasoner, some, sampling=SAMPLING)
    voted = solve_many(BestOfN(Constant(), n=5), reasoner, some, sampling=SAMPLING)
    naive = solve_many(BestOfN(Constant(), n=5, vote="naive"), reasoner, some, sampling=SAMPLING)
    assert [a.value for a in voted] == [a.value for a in plain]
    for answer in naive:
        assert answer.text == answer.branches[0].completion()


def test_the_verifiers_tokens_are_its_own(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    answer = BestOfN(Constant(), n=3).solve(reasoner, question, sampling=SAMPLING)
    steps = sum(len(question.steps(b.completion())) for b in answer.branches)
    assert answer.ledger.totals(role="verifier").prompt == steps
    assert answer.ledger.totals(role="verifier").generated == 0


@pytest.mark.parametrize("tokens", [1, 7, 60])
@pytest.mark.parametrize("n", [1, 5])
def test_no_method_spends_more_than_its_budget(reasoner: LocalModel, tokens: int, n: int) -> None:
    budget = Budget(tokens=tokens)
    methods: list[Any] = [Greedy(), SelfConsistency(n=n, wave=2), BestOfN(Constant(), n=n)]
    for method in methods:
        for answer in solve_many(method, reasoner, questions(3), budget, SAMPLING):
            total = answer.ledger.totals()
            assert total.generated <= tokens
            assert total.generated + total.forced == total.delivered + total.discarded


def test_a_spent_budget_answers_with_nothing(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    account = Account.open(Budget(tokens=1))
    Greedy().solve(reasoner, question, sampling=SAMPLING, account=account)
    answer = Greedy().solve(reasoner, question, sampling=SAMPLING, account=account)
    assert (answer.text, answer.value, answer.status) == ("", None, "budget")


def test_shortest_takes_the_shortest_with_an_answer(reasoner: LocalModel) -> None:
    (question,) = questions(1, (6, 6))
    answer = Shortest(n=5).solve(reasoner, question, sampling=SAMPLING)
    lengths = [len(b.completion_ids()) for b in answer.branches if question.answer(b.completion())]
    assert answer.value is not None
    assert min(lengths) == next(
        len(b.completion_ids()) for b in answer.branches if b.completion() == answer.text
    )


def test_a_verifier_that_answers_nonsense_is_named(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    wrong = (
        (lambda paths: [[float("nan")] * len(p) for p in paths], "nan"),
        (lambda paths: [[1.5] * len(p) for p in paths], "1.5"),
        (lambda paths: [[0.5] for _ in paths], "scores for"),
        (lambda paths: [], "answers for"),
    )
    for answer, said in wrong:
        with pytest.raises(ModelError, match=said):
            BestOfN(Broken(answer), n=2).solve(reasoner, question, sampling=SAMPLING)


def test_scores_of_steps_become_one() -> None:
    scores = [0.9, 0.5, 0.8]
    assert aggregate(scores, "last") == 0.8
    assert aggregate(scores, "min") == 0.5
    assert aggregate(scores, "prod") == pytest.approx(0.36)
    assert aggregate(scores, "mean") == pytest.approx(2.2 / 3)
    assert aggregate([], "min") == 0.0
    with pytest.raises(InputError, match="agg="):
        aggregate(scores, "median")  # type: ignore[arg-type]


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="n=0"):
        SelfConsistency(n=0)
    with pytest.raises(InputError, match="n=0"):
        BestOfN(Constant(), n=0)
    with pytest.raises(InputError, match="vote"):
        BestOfN(Constant(), vote="loud")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="delimiter"):
        Question("p", delimiter="")


def test_steps_join_to_the_completion() -> None:
    (question,) = questions(1)
    for text in ("", "a", "a;", "a;b", ";;", "a;b;</think>"):
        steps = question.steps(text)
        assert "".join(steps) == text
        assert all(step.count(";") <= 1 for step in steps)
