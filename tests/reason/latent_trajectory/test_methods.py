"""Both methods on the shipped reasoner: live runs equal replays, within budgets."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account, Capabilities, SamplingParams, Trail
from outlay.models.local import LocalModel
from outlay.reason import Question, solve_many
from outlay.reason.latent_trajectory import (
    LTEarly,
    LTScorer,
    LTSequential,
    Table,
    Trace,
    collect,
    forced,
    signals,
)
from outlay.testbeds.reasoner import ChainArith, parse_question, render_prompt

SAMPLING = SamplingParams(temperature=1.2, max_tokens=120, seed=11)


def asked(n: int, seed: int = 0, format: str | None = "long") -> list[Question]:
    task = ChainArith(operations=(2, 5))
    return [
        Question(
            render_prompt(p.question, format),
            p.question,
            "custom",
            read=partial(task.read, p),
            delimiter=";",
            id=p.id,
        )
        for p in task.sample(seed, n)
    ]


def right(question: Question, answer: str) -> bool:
    return answer == parse_question(question.text).answer


@pytest.fixture(scope="module")
def pool(reasoner: LocalModel) -> list[Trace]:
    return collect(reasoner, asked(24), right, k=12, sampling=SAMPLING)


def test_collected_traces_are_labelled_and_in_order(pool: list[Trace]) -> None:
    assert [t.index for t in pool] == list(range(5)) * 24
    assert {t.right for t in pool} == {True, False}
    for trace in pool:
        assert len(trace.signals.net_K) == -(-trace.tokens // 12) - 1
        assert trace.logprob < 0


@pytest.mark.filterwarnings("ignore:.*opposite of the paper")
@pytest.mark.parametrize("wave", [1, 2])
def test_a_live_run_does_what_the_replay_says(
    reasoner: LocalModel, pool: list[Trace], wave: int
) -> None:
    method = LTSequential(k=12, wave=wave).fit(pool)
    answers = solve_many(method, reasoner, asked(24), sampling=SAMPLING)
    played, table = method.replay(pool), Table.of(pool)
    by_id = dict(zip(table.questions, range(24), strict=True))
    for question, answer in zip(asked(24), answers, strict=True):
        q = by_id[question.id]
        assert answer.detail["accepted"] == played.accepted_Q[q]
        assert sum(answer.detail["thinking"]) == played.tokens_Q[q]
        assert (answer.value is not None and right(question, answer.value)) == played.right_Q[q]
        assert answer.status == ("accepted" if played.accepted_Q[q] else "voted")
    assert (played.accepted_Q > 0).sum() > 0


@pytest.mark.filterwarnings("ignore:.*opposite of the paper")
def test_many_questions_together_equal_one_at_a_time(
    reasoner: LocalModel, pool: list[Trace]
) -> None:
    for method in (
        LTSequential(k=12).fit(pool),
        LTEarly(k=12, K=3, classifier="logistic").fit(pool),
    ):
        together = solve_many(method, reasoner, asked(4, 3), sampling=SAMPLING)
        for question, answer in zip(asked(4, 3), together, strict=True):
            alone = method.solve(reasoner, question, sampling=SAMPLING)
            assert (alone.text, alone.value, alone.status) == (
                answer.text,
                answer.value,
                answer.status,
            )


@pytest.mark.filterwarnings("ignore:.*opposite of the paper")
def test_thresholds_at_the_ends_are_the_first_trace_and_the_majority(
    reasoner: LocalModel, pool: list[Trace]
) -> None:
    method = LTSequential(k=12).fit(pool)
    weights = method.fitted()
    first = replace(method, weights=replace(weights, threshold=-math.inf))
    never = replace(method, weights=replace(weights, threshold=math.inf))
    for question in asked(4, 1):
        one = first.solve(reasoner, question, sampling=SAMPLING)
        assert len(one.branches) == 1 or one.detail["accepted"] > 1
        vote = never.solve(reasoner, question, sampling=SAMPLING)
        given = [question.answer(b.completion()) for b in vote.branches]
        assert len(given) == 5
        assert vote.value == question.vote(given).value


def test_early_selection_stops_the_others_at_the_cut(
    reasoner: LocalModel, pool: list[Trace]
) -> None:
    method = LTEarly(k=12, K=2, classifier="tree").fit(pool)
    account = Account()
    answer = method.solve(reasoner, asked(1, 5)[0], sampling=SAMPLING, account=account)
    started = answer.detail["started"]
    assert max(started) == 24
    for index, branch in enumerate(answer.branches):
        if index != answer.detail["chosen"]:
            assert len(branch.completion_ids()) == started[index]
    assert answer.chosen is answer.branches[answer.detail["chosen"]]
    assert answer.value is not None
    spent = sum(entry.generated for entry in account.ledger.entries)
    assert spent == sum(started) + len(answer.chosen.completion_ids()) - 24


@pytest.mark.filterwarnings("ignore:.*opposite of the paper")
@pytest.mark.parametrize("tokens", [1, 7, 40, 90, 260])
def test_budgets_hold(reasoner: LocalModel, pool: list[Trace], tokens: int) -> None:
    for method in (
        LTSequential(k=12).fit(pool),
        LTEarly(k=12, K=3, classifier="logistic").fit(pool),
    ):
        account = Account.open(Budget(tokens=tokens))
        answer = method.solve(reasoner, asked(1, 7)[0], sampling=SAMPLING, account=account)
        assert sum(entry.generated for entry in account.ledger.entries) <= tokens
        assert answer.ledger is account.ledger


def test_the_signals_are_of_the_thinking_alone(reasoner: LocalModel) -> None:
    """The answer is not part of a trace, the end-of-think marker is; the prompt is not."""
    (question,) = asked(1, 2)
    (trace,) = collect(reasoner, [question], right, R=1, k=12, sampling=SAMPLING)
    root = reasoner.open(question.prompt)
    want = replace(SAMPLING, stop=("</think>",))
    thought = reasoner.extend([root], want, trail=Trail(12))[0][0]
    assert thought.text.endswith("</think>")
    assert trace.tokens == len(thought.token_ids)
    assert signals(reasoner.hidden([thought])[0]).net == pytest.approx(trace.signals.net)


def test_stored_text_scores_as_it_did_when_it_was_written(reasoner: LocalModel) -> None:
    (question,) = asked(1, 2)
    (trace,) = collect(reasoner, [question], right, R=1, k=12, sampling=SAMPLING)
    root = reasoner.open(question.prompt)
    thought = reasoner.extend([root], replace(SAMPLING, stop=("</think>",)))[0][0]
    for chunk in (5, 12, 500):
        found = LTScorer(reasoner, k=12, chunk=chunk).score(question.prompt, thought.token_ids)
        assert found.net == pytest.approx(trace.signals.net, rel=1e-5)
        assert found.cumulative == pytest.approx(trace.signals.cumulative, rel=1e-5)
        assert found.aligned == pytest.approx(trace.signals.aligned, rel=1e-5)
    with pytest.raises(InputError, match="lower k"):
        LTScorer(reasoner, k=500).score(question.prompt, thought.token_ids)


def test_forced_answers_show_the_first_tokens_distribution(reasoner: LocalModel) -> None:
    question = asked(1, 2)[0]
    root = reasoner.open(question.prompt)
    want = replace(SAMPLING, temperature=0.0, stop=("</think>",))
    (thought,) = reasoner.extend([root], want)[0]
    whole, cut = (
        forced(reasoner, [thought], "</think>", "<answer>", percent=p, tokens=2)[0]
        for p in (100, 30)
    )
    end = reasoner.append(thought, "<answer>")
    every = [reasoner.score(end, [[token]])[0][0] for token in range(reasoner.vocabulary)]
    p = np.exp(every)
    assert whole.entropy == pytest.approx(float(-(p * np.array(every)).sum()), abs=1e-4)
    top = np.sort(p)[-2:]
    assert whole.margin == pytest.approx(top[1] - top[0], abs=1e-4)
    assert whole.inverse == pytest.approx(1 / top[1], abs=1e-4)
    assert whole.text.split("<eos>")[0] == parse_question(question.text).answer
    assert cut.entropy != whole.entropy
    with pytest.raises(InputError, match="percent"):
        forced(reasoner, [thought], "</think>", "<answer>", percent=101)


def test_whole_completions_count_where_nothing_closes_thinking(reasoner: LocalModel) -> None:
    traces = collect(reasoner, asked(2), right, R=2, k=12, think_close="", sampling=SAMPLING)
    assert all(t.answer is not None for t in traces)
    for trace in traces:
        assert len(trace.signals.net_K) == -(-trace.tokens // 12) - 1


def test_a_model_without_hidden_states_is_refused(reasoner: LocalModel, pool: list[Trace]) -> None:
    blind = LocalModel(reasoner.model, reasoner.tokenizer, "blind")
    blind.capabilities = Capabilities()
    method = LTEarly(k=12, K=3, classifier="logistic").fit(pool)
    with pytest.raises(CapabilityError, match=r"latent-trajectory.*hidden_states.*blind"):
        method.solve(blind, asked(1)[0], sampling=SAMPLING)
    with pytest.raises(CapabilityError):
        collect(blind, asked(1), right)
    with pytest.raises(CapabilityError):
        LTScorer(blind)


@pytest.mark.parametrize(
    ("knobs", "word"),
    [({"R": 0}, "R=0"), ({"k": 0}, "k=0"), ({"layers": (99,)}, "layers")],
)
def test_collecting_refuses_bad_knobs(
    reasoner: LocalModel, knobs: dict[str, Any], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        collect(reasoner, asked(1), right, **knobs)


def test_collecting_needs_ids(reasoner: LocalModel) -> None:
    with pytest.raises(InputError, match="different ids"):
        collect(reasoner, [replace(asked(1)[0], id="")], right)
    with pytest.raises(InputError, match="different ids"):
        collect(reasoner, asked(1) * 2, right)
