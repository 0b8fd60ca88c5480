"""Candidates in thinking traces: where they are, which are right, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.puzzles import Checkers, Hanoi, print_moves
from outlay.evals.puzzles.parsing import split_thinking
from outlay.evals.puzzles.trace import analyse, find_candidates, summarise
from outlay.proofs.puzzles_policies import Placed, count, planned

PLAN = [Placed(30, False), Placed(10, True), Placed(50, False), Placed(5, True, repeated=True)]


def test_positions_are_the_planned_ones():
    text, ends = planned(Hanoi(3), PLAN[:3], 40)
    trace = analyse(text, Hanoi(3), count)
    assert [each.position for each in trace.candidates] == ends
    assert [each.correct for each in trace.candidates] == [False, True, False]
    assert trace.first_correct == ends[1]
    assert trace.overthinking == 1 - ends[1]
    assert trace.tokens == count(text)


plans = st.lists(
    st.builds(Placed, st.integers(0, 40), st.booleans(), st.just(False)), min_size=1, max_size=4
)


@given(plans, st.integers(0, 50))
def test_positions_of_any_plan_are_recovered(plan, tail):
    text, ends = planned(Hanoi(3), plan, tail)
    trace = analyse(text, Hanoi(3), count, dedup=False)
    assert [each.position for each in trace.candidates] == ends
    assert [each.correct for each in trace.candidates] == [item.right for item in plan]
    assert all(0 < each.position <= 1 for each in trace.candidates)
    starts = analyse(text, Hanoi(3), count, dedup=False, position="start")
    assert all(
        0 <= a.position < b.position
        for a, b in zip(starts.candidates, trace.candidates, strict=True)
    )


def test_a_repeated_candidate_counts_where_it_first_appears():
    text, ends = planned(Hanoi(3), [Placed(9, True), Placed(30, True, repeated=True)], 5)
    assert [each.position for each in analyse(text, Hanoi(3), count).candidates] == ends
    assert len(analyse(text, Hanoi(3), count, dedup=False).candidates) == 2


def test_text_after_the_thinking_moves_nothing():
    text, _ = planned(Hanoi(3), PLAN, 12)
    reply = f"<think>{text}</think>moves = [[1, 0, 2]] and much more text"
    assert analyse(split_thinking(reply)[0], Hanoi(3), count) == analyse(text, Hanoi(3), count)


def test_named_and_bare_lists_count_and_echoes_do_not():
    example = [[1, 0, 1]]
    text = "as in [[1, 0, 1]] try [[1,0,2]] so moves=[[2, 0, 2]]"
    found = find_candidates(text, Hanoi(1), exclude=[example])
    assert [(moves, correct) for _, _, moves, _, correct in found] == [
        ([[1, 0, 2]], True),
        ([[2, 0, 2]], False),
    ]
    assert text[found[0][0] : found[0][1]] == "[[1,0,2]]"


def test_a_longer_solution_is_wrong_where_the_shortest_is_required():
    detour = print_moves([[1, 0, 1], [1, 1, 2]])
    assert analyse(detour, Hanoi(1), count).candidates[0].correct
    assert not analyse(detour, Hanoi(1), count, optimal_required=True).candidates[0].correct


def test_a_trace_without_candidates_is_a_trace():
    trace = analyse("nothing here", Hanoi(2), count)
    assert (trace.candidates, trace.first_correct, trace.overthinking) == ((), None, None)
    assert analyse("", Hanoi(2), count).tokens == 0


def test_summaries_are_level_by_level():
    texts = [planned(Hanoi(3), PLAN[:k], 40)[0] for k in (1, 2, 3)]
    traces = [analyse(text, Hanoi(3), count) for text in texts]
    traces += [analyse("no list", Checkers(2), count)]
    easy, hard = summarise(traces, bins=4)
    assert (easy.n, easy.traces, easy.correct_share) == (2, 1, None)
    assert (hard.n, hard.traces, hard.candidates) == (3, 3, 2.0)
    assert hard.correct_share == pytest.approx(2 / 6)
    assert (hard.correct.n, hard.incorrect.n, hard.first_correct.n) == (2, 4, 2)
    assert hard.first_failures == {5: 1, 6: 3}  # the k-th wrong one fails in its last k moves
    assert hard.failure_share == pytest.approx((3 * 6 + 5) / 4 / 7)
    every = [each for trace in traces[:3] for each in trace.candidates]
    for index, value in enumerate(hard.bins):
        inside = [e.correct for e in every if index / 4 <= e.position < (index + 1) / 4]
        assert value == (pytest.approx(sum(inside) / len(inside)) if inside else None)


def test_one_position_has_no_spread():
    (level,) = summarise([analyse(planned(Hanoi(2), [Placed(3, True)], 3)[0], Hanoi(2), count)])
    assert level.correct.sd is None
    assert level.incorrect is None


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"count": None}, "token count"),
        ({"count": count, "summary": True}, "no trace"),
        ({"count": count, "position": "middle"}, "position="),
        ({"count": lambda text: 0}, "0 tokens"),
    ],
)
def test_what_is_no_trace_is_refused(knobs, match):
    with pytest.raises(InputError, match=match):
        analyse("moves = [[1, 0, 2]]", Hanoi(1), **knobs)


def test_empty_summaries_are_refused():
    with pytest.raises(InputError, match="no traces"):
        summarise([])
    with pytest.raises(InputError, match="bins=0"):
        summarise([analyse("", Hanoi(1), count)], bins=0)
