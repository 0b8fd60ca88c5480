"""Reasoners over decoders: samples are the decoder's, budgets hold, one sample is delivered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outlay.budget import Budget
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import BudgetError, CapabilityError
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import SelfConsistency, Shortest
from outlay.reason.decoded import Decoded
from outlay.stack import Stack

from .conftest import questions

SAMPLING = SamplingParams(temperature=1.0, max_tokens=120, seed=3)
THINK = ThinkingBudget(max_think=30, max_answer=8)


def test_samples_are_the_decoders_answers_of_their_seeds(reasoner: LocalModel) -> None:
    (question,) = questions(1, (6, 6))
    model = Decoded(reasoner, THINK)
    found = SelfConsistency(n=3, early_stop=False).solve(model, question, sampling=SAMPLING)
    alone = [
        THINK.generate(reasoner, question.prompt, None, replace(SAMPLING, seed=SAMPLING.seed + i))
        for i in range(3)
    ]
    assert [branch.completion() for branch in found.branches] == [one.text for one in alone]
    spent = sum(one.ledger.totals().generated for one in alone)
    assert found.ledger.totals().generated == spent


def test_only_the_chosen_sample_is_delivered(reasoner: LocalModel) -> None:
    (question,) = questions(1, (6, 6))
    found = SelfConsistency(n=4, early_stop=False).solve(
        Decoded(reasoner, THINK), question, sampling=SAMPLING
    )
    assert found.chosen is not None
    totals = found.ledger.totals()
    chosen = [e for e in found.ledger.entries if e.branch == found.chosen.id]
    assert totals.delivered == sum(e.generated + e.forced for e in chosen) > 0
    assert totals.discarded > 0


def test_a_budget_is_shared_by_the_samples_and_never_exceeded(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    decoder = ThinkingBudget(max_answer=8)
    for tokens in (12, 40, 200):
        found = SelfConsistency(n=4, early_stop=False).solve(
            Decoded(reasoner, decoder), question, Budget(tokens=tokens), SAMPLING
        )
        assert found.ledger.totals().generated <= tokens
        assert len(found.branches) == 4


def test_a_fixed_budget_is_each_samples_own(reasoner: LocalModel) -> None:
    (question,) = questions(1, (8, 8))
    each = Budget(tokens=20, stages={"think": 14, "answer": 6})
    found = Shortest(n=3).solve(Decoded(reasoner, THINK, each), question, sampling=SAMPLING)
    for branch in found.branches:
        own = [e for e in found.ledger.entries if e.branch == branch.id]
        assert 0 < sum(e.generated for e in own) <= 20


def test_a_budget_without_room_for_one_sample_says_so(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    model = Decoded(reasoner, replace(THINK, n_wait=1))
    root = model.open(question.prompt)
    account = Account.open(Budget(tokens=1))
    with pytest.raises(BudgetError):
        model.extend([root], SAMPLING, account=account)
    assert account.ledger.totals().generated == 0


def test_what_grows_partial_solutions_is_refused(reasoner: LocalModel) -> None:
    model = Decoded(reasoner, THINK)
    root = model.open(questions(1)[0].prompt)
    [[child]] = model.extend([root], SAMPLING)
    with pytest.raises(CapabilityError, match="decodes by itself"):
        model.extend([child], SAMPLING)
    with pytest.raises(CapabilityError, match="cannot be continued"):
        model.append(child, "x")
    with pytest.raises(CapabilityError, match="no state"):
        model.score(child, ["x"])
    with pytest.raises(CapabilityError, match="drop the prefix"):
        model.open("x", "y")


def test_stacks_take_both_where_samples_are_whole() -> None:
    stack = Stack.parse("self-consistency:n=3+m1:max_think=8")
    assert stack.reason == SelfConsistency(n=3)
    assert stack.decode == ThinkingBudget(max_think=8)
    assert Stack.parse(stack.label()) == stack
