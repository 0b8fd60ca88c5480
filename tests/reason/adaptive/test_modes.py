"""The modes on the reasoner: who is asked, what is compared, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay import registry
from outlay.budget import Budget
from outlay.catalogue import Entry
from outlay.errors import CapabilityError, InputError
from outlay.evals.answers import majority
from outlay.models.base import SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import Answer, Question, solve_many
from outlay.reason.adaptive import ARM, REASONER, Adaptive
from outlay.reason.adaptive.method import most_agreed
from outlay.testbeds.reasoner import render_prompt

from ..conftest import questions

SAMPLING = SamplingParams(temperature=0.7, max_tokens=160, seed=5)
OURS = Adaptive(formats="reasoner")
CONSENSUS = replace(OURS, mode="consensus")
SOME = questions(6, (2, 7))


def always(one: str, other: str) -> bool:
    return True


def never(one: str, other: str) -> bool:
    return False


def test_adaptive_is_plain_generation(reasoner: LocalModel) -> None:
    for question in SOME:
        answer = OURS.solve(reasoner, question, sampling=SAMPLING)
        plain = reasoner.generate(question.prompt, sampling=SAMPLING)
        assert answer.text == plain.text
        assert answer.detail["format"] == REASONER.detect(plain.text)
        assert answer.ledger.totals().forced == 0


@pytest.mark.parametrize("name", REASONER.names)
def test_a_guided_response_has_the_format_asked_for_and_its_tag_is_forced(
    reasoner: LocalModel, name: str
) -> None:
    method = replace(OURS, mode=f"guided:{name}")
    answers = solve_many(method, reasoner, SOME, None, SAMPLING)
    for question, answer in zip(SOME, answers, strict=True):
        assert answer.detail["format"] == name
        assert answer.text.startswith(f"<{name}>")
        assert answer.ledger.totals().forced == reasoner.count(REASONER.prefix(name)) == 1
        assert answer.value == question.answer(answer.text)


def test_guided_and_greedy_is_the_continuation_of_a_prompt_with_the_tag(
    reasoner: LocalModel,
) -> None:
    greedy = replace(SAMPLING, temperature=0.0)
    for question in SOME:
        answer = replace(OURS, mode="guided:short").solve(reasoner, question, sampling=greedy)
        assert isinstance(question.prompt, str)
        plain = reasoner.generate(question.prompt + "<short>", sampling=greedy)
        assert answer.text == "<short>" + plain.text


def test_equal_answers_make_exactly_three_calls_and_others_four(reasoner: LocalModel) -> None:
    for equal, status, calls in ((always, "agreed", 3), (never, "fallback", 4)):
        method = replace(CONSENSUS, equal_fn=equal)
        for answer in solve_many(method, reasoner, SOME, None, SAMPLING):
            found = answer.detail["calls"]
            assert (answer.status, len(found), len(answer.branches)) == (status, calls, calls)
            wanted = ["direct", "short", "code", "long"][:calls]
            assert [call["format"] for call in found] == wanted
            assert answer.detail["format"] == ("long" if calls == 4 else "direct")


def test_the_ledger_is_the_sum_of_all_calls(reasoner: LocalModel) -> None:
    for answer in solve_many(CONSENSUS, reasoner, SOME, None, SAMPLING):
        total = answer.ledger.totals()
        assert total.generated + total.forced == sum(c["tokens"] for c in answer.detail["calls"])
        assert total.generated + total.forced == total.delivered + total.discarded
        assert answer.chosen is not None
        assert total.delivered == len(answer.chosen.completion_ids())
        assert total.forced == len(answer.branches)


def test_the_calls_of_consensus_are_those_of_guided_mode(reasoner: LocalModel) -> None:
    both = solve_many(replace(CONSENSUS, equal_fn=never), reasoner, SOME, None, SAMPLING)
    for at, name in enumerate(REASONER.names):
        method = replace(OURS, mode=f"guided:{name}")
        each = solve_many(method, reasoner, SOME, None, SAMPLING)
        for answer, alone in zip(both, each, strict=True):
            assert answer.branches[at].completion() == alone.text


def test_stepwise_formats_agree_on_easy_questions_by_the_questions_own_equality(
    reasoner: LocalModel,
) -> None:
    method = replace(CONSENSUS, consensus_formats=("short", "long"), fallback_format="code")
    for answer in solve_many(method, reasoner, questions(6, (1, 2)), None, SAMPLING):
        values = [call["answer"] for call in answer.detail["calls"]]
        agreed = len(values) == 2
        assert agreed == (values[0] is not None and values[0] == values[1])
        assert answer.status == ("agreed" if agreed else "fallback")
        assert answer.value == values[0 if agreed else 2]


def test_missing_answers_never_agree(reasoner: LocalModel) -> None:
    brief = replace(SAMPLING, max_tokens=1)  # no format answers in one token
    for answer in solve_many(replace(CONSENSUS, equal_fn=always), reasoner, SOME, None, brief):
        assert answer.status == "fallback"
        assert [call["answer"] for call in answer.detail["calls"]] == [None] * 4
        assert answer.value is None


def test_equality_is_asked_both_ways(reasoner: LocalModel) -> None:
    asked: list[tuple[str, str]] = []

    def at_most(one: str, other: str) -> bool:
        asked.append((one, other))
        return int(one) <= int(other)

    method = replace(CONSENSUS, equal_fn=at_most)
    for answer in solve_many(method, reasoner, SOME, None, SAMPLING):
        values = [call["answer"] for call in answer.detail["calls"][:3]]
        agreed = None not in values and len(set(values)) == 1
        assert (answer.status == "agreed") == agreed
    assert any(int(one) < int(other) for one, other in asked)


def test_maj_at_1_is_the_adaptive_sample(reasoner: LocalModel) -> None:
    one = solve_many(replace(OURS, mode="maj@1"), reasoner, SOME, None, SAMPLING)
    plain = solve_many(OURS, reasoner, SOME, None, SAMPLING)
    assert [a.text for a in one] == [a.text for a in plain]


def test_maj_at_k_votes_over_k_adaptive_samples(reasoner: LocalModel) -> None:
    different = set()
    for answer in solve_many(replace(OURS, mode="maj@5"), reasoner, SOME, None, SAMPLING):
        values = [call["answer"] for call in answer.detail["calls"]]
        assert len(answer.branches) == len(values) == 5
        assert answer.value == majority(values, "text").value
        different.add(len({branch.completion() for branch in answer.branches}))
    assert max(different) > 1  # samples have seeds of their own


VALUES = st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=9)


@given(VALUES, st.randoms())
def test_the_vote_does_not_depend_on_order_up_to_ties(
    values: list[str | None], rng: object
) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    same: Callable[[str, str], bool] = str.__eq__
    one, other = values[most_agreed(values, same)], shuffled[most_agreed(shuffled, same)]
    assert values.count(one) == values.count(other)
    assert (one is None) == (other is None) == (set(values) == {None})


@given(VALUES)
def test_with_an_equivalence_the_vote_is_the_majority(values: list[str | None]) -> None:
    assert values[most_agreed(values, str.__eq__)] == majority(values, "text").value


def test_a_member_that_agrees_with_most_others_wins_where_equality_is_not_transitive() -> None:
    def near(one: str, other: str) -> bool:
        return abs(int(one) - int(other)) <= 1

    assert most_agreed(["5", "1", "2", "3", "9"], near) == 2


@pytest.mark.parametrize("mode", ["adaptive", "guided:long", "consensus", "maj@3"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 9, 40, 90])
def test_no_mode_spends_more_than_its_budget(reasoner: LocalModel, mode: str, tokens: int) -> None:
    method = replace(OURS, mode=mode)
    for counts in ("generated", "all"):
        budget = Budget(tokens=tokens, counts=counts)
        for answer in solve_many(method, reasoner, SOME[:3], budget, SAMPLING):
            total = answer.ledger.totals()
            assert (total.generated if counts == "generated" else total.all) <= tokens
            assert total.generated + total.forced == total.delivered + total.discarded


def test_a_budget_that_ends_before_the_long_answer_leaves_the_cheap_ones(
    reasoner: LocalModel,
) -> None:
    method = replace(CONSENSUS, equal_fn=never, consensus_formats=("direct", "short"))
    for answer in solve_many(method, reasoner, SOME, Budget(tokens=8), SAMPLING):
        # The direct answer takes 4 tokens, the short one does not end in as many.
        direct, short, *_ = answer.detail["calls"]
        assert answer.status == "budget"
        assert direct["answer"] is not None
        assert short["answer"] is None
        assert answer.value == direct["answer"]


def test_many_questions_at_a_time_give_what_one_at_a_time_gives(reasoner: LocalModel) -> None:
    for mode in ("adaptive", "consensus", "maj@3"):
        method, budget = replace(OURS, mode=mode), Budget(tokens=120)
        batch = solve_many(method, reasoner, SOME, budget, SAMPLING, together=4)
        for question, answer in zip(SOME, batch, strict=True):
            alone = method.solve(reasoner, question, budget, SAMPLING)
            assert (alone.text, alone.value, alone.status) == (
                answer.text,
                answer.value,
                answer.status,
            )
            assert alone.ledger.totals().generated == answer.ledger.totals().generated


def test_a_tag_in_the_question_changes_nothing(reasoner: LocalModel) -> None:
    quoting = Question(
        "<code>" + render_prompt("3+4=?") + "<direct>", kind="custom", read=SOME[0].read
    )
    for mode, found in (("adaptive", None), ("guided:short", "short"), ("guided:code", "code")):
        answer = replace(OURS, mode=mode).solve(reasoner, quoting, sampling=SAMPLING)
        assert answer.detail["format"] == (found or REASONER.detect(answer.text))
        assert answer.detail["calls"][0]["foreign"] == list(
            REASONER.foreign(answer.detail["format"], answer.text)
        )


def test_a_model_that_does_not_know_the_formats_is_told_apart(reasoner: LocalModel) -> None:
    (question,) = questions(1)
    answer = Adaptive().solve(reasoner, replace(question, kind="text"), sampling=SAMPLING)
    assert (answer.detail["format"], answer.value) == ("unknown", None)
    loose = Adaptive(loose=True).solve(reasoner, question, sampling=SAMPLING)
    assert loose.value == question.answer(loose.text)
    assert loose.value is not None


def test_modes_and_formats_that_do_not_exist_are_refused() -> None:
    for mode in ("fast", "guided", "guided:", "maj", "maj@", "maj@x", "consensus:2", ""):
        with pytest.raises(InputError, match="choose adaptive, consensus, guided"):
            replace(OURS, mode=mode)
    for mode in ("maj@0", "maj@1025"):
        with pytest.raises(InputError, match="k must be from 1 to 1024"):
            replace(OURS, mode=mode)
    with pytest.raises(InputError, match="unknown format 'poem'; choose one of direct, short"):
        replace(OURS, mode="guided:poem")
    with pytest.raises(InputError, match="unknown format 'cot'"):
        replace(OURS, consensus_formats=("direct", "cot"))
    with pytest.raises(InputError, match="unknown format 'cot'"):
        replace(OURS, fallback_format="cot")
    with pytest.raises(InputError, match="'short' is one of consensus_formats"):
        replace(OURS, consensus_formats=("direct", "short"), fallback_format="short")
    for names in (("direct",), ("direct", "direct")):
        with pytest.raises(InputError, match="two or more different formats"):
            replace(CONSENSUS, consensus_formats=names)
    with pytest.raises(InputError, match="choose arm, reasoner, prompted"):
        Adaptive(formats="mine")
    with pytest.raises(InputError, match="no format holds programs"):
        Adaptive(formats=replace(ARM, code=""), execute_code=True)


def test_the_fallback_may_be_any_format_left_out_of_the_cheap_ones() -> None:
    assert CONSENSUS.cheap == ("direct", "short", "code")
    assert CONSENSUS.fallback == "long"
    other = replace(CONSENSUS, fallback_format="code")
    assert other.cheap == ("direct", "short", "long")
    assert Adaptive(detector="strip").known.detect(" <COT>") == "cot"
    assert Adaptive().known.detect(" <COT>") == "unknown"


def test_answers_are_json_ready(reasoner: LocalModel) -> None:
    import json

    answer: Answer = CONSENSUS.solve(reasoner, SOME[0], sampling=SAMPLING)
    assert json.loads(json.dumps(answer.detail)) == answer.detail


def test_a_spec_writes_every_knob_that_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("arm", "outlay.reason.adaptive:Adaptive", "reason", "ARM", "")
    monkeypatch.setattr(registry, "_table", lambda kind: {entry.slug: entry})
    made = registry.create(
        "methods",
        'arm:mode=guided:short,formats=reasoner,consensus_formats=["direct","code"],'
        "fallback_format=short,detector=strip,loose=true",
    )
    assert made == Adaptive(
        "guided:short", "reasoner", ("direct", "code"), "short", None, "strip", True
    )
    assert registry.create("methods", "arm:mode=maj@4") == Adaptive("maj@4")


def test_a_sandbox_is_needed_to_run_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")  # where programs cannot be isolated
    with pytest.raises(CapabilityError):
        Adaptive(execute_code=True)
