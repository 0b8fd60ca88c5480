"""The discriminative baseline: one reading, a probability per step, exact books."""

from __future__ import annotations

import copy

import pytest
import torch

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.models.base import Account, Message
from outlay.models.local import LocalModel
from outlay.reason import Question
from outlay.reason.think_prm import COMPACT, Source
from outlay.reason.think_prm.discriminative import (
    DiscriminativePRM,
    DiscriminativeSettings,
    encode,
    fit,
)
from tiny_models import tiny_model

from ..conftest import questions

PATHS = [("3+4=7;", "7*7=9;", "</think><answer>9"), ("3+4=8;", "8*7=16;")]


@pytest.fixture(scope="module")
def prm(reasoner) -> DiscriminativePRM:
    model = LocalModel(copy.deepcopy(reasoner.model), reasoner.tokenizer, "student")
    return DiscriminativePRM(model, layout="compact")


def books(n):
    return [Account(stage="think", role="verifier") for _ in range(n)]


def test_scores_are_those_of_a_plain_reading(prm):
    asked, accounts = questions(2), books(2)
    rows = prm.score(asked, PATHS, [(), ()], accounts=accounts)
    pair = [prm.model.encode(name)[0] for name in ("+", "-")]
    for question, path, row, account in zip(asked, PATHS, rows, accounts, strict=True):
        request = [Message(role="user", content=COMPACT.render(question.text, path))]
        text = prm.model.render(request).removesuffix("<assistant><think>")
        ids, ends = encode(prm, question.text, path)
        assert prm.model.decode(ids) == text
        logits_TV = prm.model.model(torch.tensor([ids]), use_cache=False).logits[0]
        wanted = logits_TV[ends][:, pair].softmax(-1)[:, 0].tolist()
        assert row == pytest.approx(wanted, abs=1e-5)
        assert account.ledger.totals(role="verifier").prompt == len(ids)
        assert account.ledger.totals().generated == 0


def test_known_scores_come_back_and_cost_nothing(prm):
    asked, accounts = questions(1), books(2)
    [row] = prm.score(asked, PATHS[:1], [()], accounts=accounts[:1])
    [same] = prm.score(asked, PATHS[:1], [row], accounts=accounts[1:])
    [rest] = prm.score(asked, PATHS[:1], [[0.25]], accounts=books(1))
    assert same == row
    assert rest == [0.25, *row[1:]]
    assert not len(accounts[1].ledger)
    assert prm.score(asked, [()], [()], accounts=books(1)) == [[]]


def test_a_spent_budget_leaves_steps_undecided(prm):
    poor = Account.open(Budget(tokens=5, counts="all")).at("think", "verifier")
    rich = Account.open(Budget(tokens=500, counts="all")).at("think", "verifier")
    rows = prm.score(questions(2), PATHS, [(), ()], accounts=[poor, rich])
    assert rows[0] == [0.5] * 3
    assert rows[1] != [0.5] * 2
    assert rich.meter.remaining() == 500 - rich.ledger.totals().prompt


def test_fitting_separates_labels_up_to_the_first_wrong_step():
    student = DiscriminativePRM(tiny_model(), layout="compact")
    rows = [
        Source("q", ("3+4=7;", "7*7=9;"), ("good", "good")),
        Source("q", ("3+4=7;", "7*7=8;", "8+1=9;"), ("good", "bad", "bad")),
    ]
    losses = fit(student, rows, DiscriminativeSettings(epochs=25, batch=2, lr=1e-2, warmup=0.0))
    assert len(losses) == 25
    assert losses[-1] < 0.1 < losses[0]
    question = Question("q")
    right, wrong = student.score(
        [question] * 2, [row.steps for row in rows], [(), ()], accounts=books(2)
    )
    assert min(right) > 0.8
    assert wrong[1] < 0.2


def test_bad_input_is_refused(prm):
    with pytest.raises(InputError, match="classes"):
        DiscriminativePRM(prm.model, classes=("yes", "no"))
    with pytest.raises(InputError, match="batch_tokens"):
        DiscriminativePRM(prm.model, batch_tokens=0)
    with pytest.raises(InputError, match="boxed or compact"):
        DiscriminativePRM(prm.model, layout="free")
    with pytest.raises(InputError, match="no labelled"):
        fit(prm, [])
    with pytest.raises(InputError, match="warmup"):
        DiscriminativeSettings(warmup=2)
    with pytest.raises(InputError, match="window"):
        encode(prm, "1+1" * 500, ("1+1=2;",))
