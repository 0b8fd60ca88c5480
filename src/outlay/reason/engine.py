"""Runs strategies, many questions at a time: one model call serves the requests of all of them.

Every question keeps its own ledger and budget: room is held on its meter before a shared call, and
its entries are moved to its books after it. A question whose budget is spent gets `BudgetError`
where it asked, and usually answers with what it has; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlay.budget import Budget
from outlay.decode.batching import Growth, grow
from outlay.errors import BudgetError, InputError, ModelError
from outlay.models.base import Account, Model, SamplingParams
from outlay.reason.base import (
    Answer,
    Extend,
    Open,
    Question,
    Reasoner,
    Request,
    Score,
    Session,
    Strategy,
    Verifier,
)

_SAMPLED = SamplingParams(temperature=0.8, max_tokens=512)


@dataclass
class _Live:
    """A strategy under way."""

    index: int
    strategy: Strategy
    session: Session
    request: Request | None = None


def solve_many(
    reasoner: Reasoner,
    model: Model,
    questions: Sequence[Question],
    budget: Budget | None = None,
    sampling: SamplingParams = _SAMPLED,
    *,
    accounts: Sequence[Account] | None = None,
    method: str = "",
    together: int = 64,
) -> list[Answer]:
    """Answer `questions`, each within `budget`, up to `together` of them at a time.

    The answers are those that one question at a time would give.

    Args:
        reasoner: the method.
        model: the target.
        questions: to answer.
        budget: of each question.
        sampling: temperature, seed and so on.
        accounts: books of each question; None opens new ones.
        method: name in the ledgers.
        together: questions in flight; more use larger batches and more memory.

    Raises:
        InputError: for a wrong number of accounts.
    """
    if accounts is None:
        accounts = [Account.open(budget, method=method) for _ in questions]
    if len(accounts) != len(questions):
        raise InputError(f"{len(accounts)} accounts for {len(questions)} questions; give one each")
    if together < 1:
        raise InputError(f"together={together}; must be at least 1")
    answers: list[Answer | None] = [None] * len(questions)
    waiting = list(enumerate(zip(questions, accounts, strict=True)))[::-1]
    live: list[_Live] = []
    while waiting or live:
        while waiting and len(live) < together:
            index, (question, account) = waiting.pop()
            session = Session(model, question, account, sampling)
            entered = _Live(index, reasoner.plan(session), session)
            if _advance(entered, None, answers):
                live.append(entered)
        results = _serve(model, live)
        live = [
            each
            for each, result in zip(live, results, strict=True)
            if _advance(each, result, answers)
        ]
    return [answer for answer in answers if answer is not None]


def solve(
    reasoner: Reasoner,
    model: Model,
    question: Question,
    budget: Budget | None = None,
    sampling: SamplingParams = _SAMPLED,
    *,
    account: Account | None = None,
    method: str = "",
) -> Answer:
    """Answer one question; what the `solve` of every reasoner does."""
    account = account or Account.open(budget, method=method)
    (answer,) = solve_many(reasoner, model, [question], sampling=sampling, accounts=[account])
    return answer


def _advance(each: _Live, result: Any, answers: list[Answer | None]) -> bool:
    """Hand a result to a strategy; False when it has answered."""
    try:
        if isinstance(result, BudgetError):
            each.request = each.strategy.throw(result)
        else:
            each.request = each.strategy.send(result)
    except StopIteration as end:
        answer: Answer = end.value
        answers[each.index] = answer
        return False
    return True


def _serve(model: Model, live: Sequence[_Live]) -> list[Any]:
    results: list[Any] = [None] * len(live)
    growing: list[tuple[int, Growth]] = []
    scoring: dict[int, list[int]] = {}
    for at, each in enumerate(live):
        request, account = each.request, each.session.account
        if isinstance(request, Open):
            try:
                results[at] = model.open(
                    each.session.question.prompt, request.prefix, account=account
                )
            except BudgetError as error:
                results[at] = error
        elif isinstance(request, Extend):
            place = account.at(request.stage, request.role)
            growth = Growth(request.branches, request.sampling, request.n, place, request.trail)
            growing.append((at, growth))
        elif isinstance(request, Score):
            scoring.setdefault(id(request.verifier), []).append(at)
        else:
            raise InputError(f"a strategy yielded {request!r}; it may yield Open, Extend, Score")
    for (at, _), grown in zip(growing, grow(model, [g for _, g in growing]), strict=True):
        results[at] = grown
    for members in scoring.values():
        for at, scores in zip(members, _judge([live[at] for at in members]), strict=True):
            results[at] = scores
    return results


def _judge(asking: Sequence[_Live]) -> list[list[list[float]]]:
    requests = [each.request for each in asking]
    verifier: Verifier | None = None
    questions, paths, accounts, sizes = [], [], [], []
    known: list[Sequence[float]] = []
    for each, request in zip(asking, requests, strict=True):
        assert isinstance(request, Score)
        verifier = request.verifier
        sizes.append(len(request.paths))
        for path, scores in zip(request.paths, request.known, strict=True):
            questions.append(each.session.question)
            paths.append(path)
            known.append(scores)
            accounts.append(each.session.account.at("think", "verifier"))
    assert verifier is not None
    found = verifier.score(questions, paths, known, accounts=accounts) if paths else []
    _check_scores(found, paths, type(verifier).__name__)
    parts, at = [], 0
    for size in sizes:
        parts.append(found[at : at + size])
        at += size
    return parts


def _check_scores(
    scores: Sequence[Sequence[float]], paths: Sequence[Sequence[str]], name: str
) -> None:
    if len(scores) != len(paths):
        raise ModelError(f"verifier {name} gave {len(scores)} answers for {len(paths)} paths")
    for row, path in zip(scores, paths, strict=True):
        if len(row) != len(path):
            raise ModelError(f"verifier {name} gave {len(row)} scores for {len(path)} steps")
        for value in row:
            if not 0 <= value <= 1:  # also NaN
                raise ModelError(
                    f"verifier {name} gave {value}; scores are probabilities in [0, 1]"
                )


def limited(sampling: SamplingParams, room: int | None) -> SamplingParams:
    """`sampling` with at most `room` tokens, where there is a limit."""
    if room is None or sampling.max_tokens <= room:
        return sampling
    return replace(sampling, max_tokens=max(0, room))
