"""Self-evaluation: probabilities, exact books, known scores cost nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.models.base import Account, Message
from outlay.reason.verifiers import SelfEvaluation, ratio
from tiny_models import tiny_model

from .conftest import questions

FINITE = st.floats(-50, 0)


@given(yes=FINITE, no=FINITE)
def test_swapping_labels_gives_the_rest(yes: float, no: float) -> None:
    assert ratio(yes, no) + ratio(no, yes) == pytest.approx(1)
    assert 0 <= ratio(yes, no) <= 1
    assert ratio(yes, no, 1e9) == pytest.approx(0.5, abs=1e-6)
    assert ratio(yes, yes, 0.1) == 0.5


def test_a_score_is_the_share_of_yes() -> None:
    judge = tiny_model()
    verifier = SelfEvaluation(judge, labels=("a", "b"))
    (question,) = questions(1)
    account = Account(role="verifier")
    [row] = verifier.score([question], [("x;", "y;")], [()], accounts=[account])
    text = verifier.ask.format(question=question.text, solution="x;y;")
    root = judge.open([Message(role="user", content=text)])
    ((yes,), (no,)) = judge.score(root, ["a", "b"])
    assert row[1] == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)), abs=1e-5)


def test_known_steps_cost_nothing() -> None:
    verifier = SelfEvaluation(tiny_model())
    (question,) = questions(1)
    path = ("1+1=2;", "2+2=4;", "4+4=8;")
    whole, rest, none = (Account(role="verifier") for _ in range(3))
    [row] = verifier.score([question], [path], [()], accounts=[whole])
    [again] = verifier.score([question], [path], [row[:2]], accounts=[rest])
    [same] = verifier.score([question], [path], [row], accounts=[none])
    assert row == again == same
    assert 0 < rest.ledger.totals().prompt < whole.ledger.totals().prompt
    assert none.ledger.totals().prompt == 0
    assert whole.ledger.totals(role="verifier").prompt == whole.ledger.totals().prompt


def test_a_spent_budget_leaves_steps_undecided() -> None:
    verifier = SelfEvaluation(tiny_model())
    (question,) = questions(1)
    account = Account.open(Budget(tokens=1, counts="all")).at(role="verifier")
    [row] = verifier.score([question], [("a;", "b;")], [()], accounts=[account])
    assert row == [0.5, 0.5]


def test_requests_and_labels_are_checked() -> None:
    with pytest.raises(InputError, match="question"):
        SelfEvaluation(tiny_model(), ask="right?")
    with pytest.raises(InputError, match="begins with"):
        SelfEvaluation(tiny_model(), labels=("no", "nope"))
    with pytest.raises(InputError, match="tau"):
        ratio(-1, -1, 0)
