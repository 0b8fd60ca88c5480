"""Forms of answer: lists, single moves, programs in the sandbox, impossibility, budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import BudgetError, InputError
from outlay.evals.puzzles import Blocks, Checkers, Hanoi, River, print_moves
from outlay.evals.puzzles.answers import ProgramLimits, judge_kth, judge_moves, judge_program
from outlay.evals.puzzles.fairness import check_budget, fate, output_need
from outlay.proofs.puzzles_policies import count

HANOI = """```python
def solve(n={n}, a=0, c=2, b=1):
    if n:
        yield from solve(n - 1, a, b, c)
        yield [n, a, c]
        yield from solve(n - 1, b, c, a)
```"""
MOVE = "(s & -s).bit_length(), (s & s - 1) % 3, ((s | s - 1) + 1) % 3"


def block(code):
    return f"Here it is:\n```python\n{code}\n```"


# -- lists -----------------------------------------------------------------------------------------


def test_a_longer_solution_is_right_unless_the_shortest_is_required():
    detour = print_moves([[1, 0, 1], [1, 1, 2]])
    plain = judge_moves(Hanoi(1), detour)
    assert (plain.correct, plain.outcome, plain.verdict.excess) == (True, "solved", 1)
    strict = judge_moves(Hanoi(1), detour, optimal_required=True)
    assert (strict.correct, strict.outcome) == (False, "not optimal")
    assert "2 moves, 1 would do" in strict.reason


def test_an_empty_answer_is_unparsed_and_no_exception():
    for text in ("", "  ", "<think>long</think>"):
        judged = judge_moves(Hanoi(3), text)
        assert (judged.correct, judged.outcome) == (False, "unparsed")


def test_only_a_claim_of_impossibility_solves_an_impossible_crossing():
    puzzle = River(6, 3)
    assert judge_moves(puzzle, "impossible").outcome == "impossible"
    assert judge_moves(puzzle, "There is no solution: the boat is too small.").correct
    for text in (print_moves([["a_1", "A_1"]]), "", "I give up.", "moves = [] It is impossible."):
        judged = judge_moves(puzzle, text)
        assert not judged.correct
        assert "n <= 5" in judged.reason
    wrong = judge_moves(River(3, 2), "impossible")
    assert not wrong.correct
    assert "but there is one" in wrong.reason


# -- one move --------------------------------------------------------------------------------------


@pytest.mark.parametrize("puzzle", [Hanoi(4), Hanoi(3, 1, 0), Checkers(3), Blocks(6, 2), Blocks(5)])
def test_every_move_and_state_of_the_solution_is_right_and_its_neighbour_is_not(puzzle):
    moves = [list(move) for move in puzzle.solution()]
    for step, move in enumerate(moves, 1):
        text = f"I think move = {print_moves([move])[9:-1]}"
        assert judge_kth(puzzle, text, step).correct
        if step < len(moves) and moves[step] != move:
            assert not judge_kth(puzzle, text, step + 1).correct
        _, state = puzzle.at(step)
        shown = f'"{state}"' if isinstance(state, str) else print_moves(state)[8:]
        assert judge_kth(puzzle, f"state = {shown}", step, ask="state").correct
        assert not judge_kth(puzzle, f"state = {shown}", step % len(moves) + 1, ask="state").correct


def test_odd_answers_for_one_move_are_wrong_with_a_reason():
    assert judge_kth(Hanoi(3), "no idea", 1).outcome == "unparsed"
    assert judge_kth(Hanoi(3), "move = [1, 0]", 1).outcome == "wrong"
    assert "move 1 is [1, 0, 2]" in judge_kth(Hanoi(3), "move = [1, 0, 1]", 1).reason
    assert judge_kth(Hanoi(3), "", 1, ask="state").outcome == "unparsed"
    assert not judge_kth(Hanoi(3), "move = [True, 0, 2]", 1).correct


def test_one_move_of_several_solutions_is_refused():
    with pytest.raises(InputError, match="several shortest solutions"):
        judge_kth(River(3, 2), "move = [a_1]", 1)


# -- programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        HANOI.format(n=5),
        HANOI.format(n=5).replace("```python", "```"),
        block(f"for s in range(1, 32):\n    print([{MOVE}])"),
        block(f"for s in range(1, 32):\n    print(({MOVE}))"),
        block(f"print('moves = ' + str([[{MOVE}] for s in range(1, 32)]))"),
    ],
    ids=["generator", "bare fence", "printed lists", "printed tuples", "one list"],
)
def test_programs_print_or_yield_moves(text):
    judged = judge_program(Hanoi(5), text)
    assert judged.correct, judged.reason
    assert judged.verdict.optimal
    assert not judged.hard_coded


def test_a_program_streams_a_million_moves():
    judged = judge_program(
        Hanoi(20), HANOI.format(n=20).replace("yield [n", "yield (n").replace("c]", "c)")
    )
    assert judged.correct, judged.reason
    assert judged.verdict.n_moves == 2**20 - 1


def test_a_program_with_names_in_single_quotes_is_read():
    assert judge_program(River(1, 2), block("print(['a_1', 'A_1'])")).correct


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nprint([1, 0, 2])", "the program failed"),
        ("from outlay.evals.puzzles import Hanoi", "the program failed"),
        ("__import__('itertools').count()", "the program failed"),
        ("open('/etc/passwd').read()", "the program failed"),
        ("while True:\n    pass", "the program failed"),
        ("x = [0] * 10**10", "the program failed"),
        ("while True:\n    print([1, 0, 1])\n    print([1, 1, 0])", "more than"),
        ("print([1, 0, 2])\nraise ValueError", "the program failed"),
        ("print('disk 1 to peg 2')", "is not a move"),
        ("print([2, 0, 2])", "is not on top"),
        ("pass", "do not end at the goal"),
        ("def f(:", "the program failed"),
        ("def solve():\n    return 7", "the program failed"),
    ],
)  # fmt: skip
def test_programs_that_misbehave_are_stopped_and_wrong(code, reason):
    limits = ProgramLimits(seconds=1.0, moves=2_000)
    judged = judge_program(Hanoi(3), block(code), limits=limits)
    assert (judged.correct, judged.outcome) == (False, "wrong")
    assert reason in judged.reason


def test_a_program_that_holds_the_list_is_marked():
    moves = print_moves(list(Hanoi(3).solution()))
    judged = judge_program(Hanoi(3), block(f"{moves}\nfor m in moves:\n    print(m)"))
    assert judged.correct
    assert judged.hard_coded


def test_no_program_is_unparsed():
    assert judge_program(Hanoi(3), "I would rather not.").outcome == "unparsed"
    assert judge_program(River(6, 3), "It is impossible.").outcome == "impossible"


def test_other_pegs_defeat_a_program_for_the_usual_ones():
    assert not judge_program(Hanoi(4, 1, 0), HANOI.format(n=4)).correct


@pytest.mark.parametrize("knobs", [{"seconds": 0}, {"memory_mb": 1}, {"moves": 0}])
def test_limits_that_are_none_are_refused(knobs):
    with pytest.raises(InputError, match=next(iter(knobs))):
        ProgramLimits(**knobs)


# -- fairness --------------------------------------------------------------------------------------


@given(st.integers(1, 11))
def test_the_output_need_is_the_tokenizers_count_and_grows_with_n(n):
    need = output_need(Hanoi(n), count, overhead=7)
    assert need.exact
    assert need.tokens == count(print_moves(list(Hanoi(n).solution()))) + 7
    assert need.tokens < output_need(Hanoi(n + 1), count, overhead=7).tokens


@pytest.mark.parametrize(
    ("small", "large", "limit"),
    [
        (Hanoi(14), Hanoi(16), 4.0),
        (Checkers(140), Checkers(180), 1.66),
        (Blocks(1_000), Blocks(2_000), 2.0),
    ],
)
def test_long_solutions_are_extrapolated(small, large, limit):
    one, two = output_need(small, count), output_need(large, count)
    assert two.tokens / one.tokens == pytest.approx(limit, rel=0.02)
    assert two.exact == (two.moves <= 20_000)


def test_a_very_tall_tower_has_a_need_too():
    assert output_need(Hanoi(100), count).tokens > 2**100


def test_a_64k_limit_ends_hanoi_near_12_to_13_disks():
    """The sheet's estimate of 10 tokens a move; ours are counted."""
    fits = [n for n in range(8, 16) if output_need(Hanoi(n), count).tokens <= 64_000]
    assert max(fits) in (12, 13)


def test_fates():
    need = output_need(Hanoi(5), count)
    assert fate(True, "stop", need, 10_000) == "solved"
    assert fate(False, "stop", need, 10_000) == "wrong"
    assert fate(False, "length", need, 10_000) == "truncated"
    assert fate(True, "budget", need, 10_000) == "truncated"
    assert fate(False, "stop", need, need.tokens - 1) == "output_bound"
    assert fate(False, "stop", None, 1) == "wrong"


def test_needs_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="no solution to print"):
        output_need(River(6, 3), count)
    with pytest.raises(InputError, match="overhead=-1"):
        output_need(Hanoi(2), count, overhead=-1)


def test_a_budget_below_the_prompt_is_refused():
    assert check_budget(100, 50) == 100
    assert check_budget(100, 50, 120) == 70
    with pytest.raises(BudgetError, match="prompt of 50"):
        check_budget(100, 50, 50)
    with pytest.raises(BudgetError, match="max_tokens=0"):
        check_budget(0, 50)
