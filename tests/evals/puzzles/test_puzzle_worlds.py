"""Simulators and solvers: known optima, breadth-first search, symmetries, fast against slow."""

import itertools
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals.puzzles import Blocks, Checkers, Hanoi, River, difficulty, shortest
from outlay.evals.puzzles.base import LARGEST, IllegalMoveError, check_solvable
from outlay.evals.puzzles.river import paper_boat
from outlay.evals.puzzles.solver import random_walk

WORLDS = (
    Hanoi(1),
    Hanoi(4),
    Hanoi(3, 2, 1),
    Checkers(1),
    Checkers(3),
    River(2, 2),
    River(3, 2),
    River(4, 3),
    River(6, 4),
    Blocks(1),
    Blocks(4),
    Blocks(5),
    Blocks(6, 2),
    Blocks(3, labels=("X", "a7", "M")),
)
worlds = st.sampled_from(WORLDS)

RIVER_LENGTHS = {
    1: [None] * 6,
    2: [1, 5, 11, None, None, None],
    3: [1, 3, 5, 9, 11, None],
    4: [1, 1, 3, 5, 7, 9],
}


# -- optima ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 7))
def test_hanoi_needs_2_to_the_n_minus_1_and_only_one_list_does_it(n):
    search = shortest(Hanoi(n))
    assert (search.length, search.solutions) == (2**n - 1, 1)
    assert list(Hanoi(n).solution()) == list(search.path)


@pytest.mark.parametrize("n", range(1, 8))
def test_checkers_need_n_plus_1_squared_minus_1_and_two_lists_do_it(n):
    search = shortest(Checkers(n))
    assert (search.length, search.solutions) == ((n + 1) ** 2 - 1, 2)


@pytest.mark.parametrize("k", RIVER_LENGTHS)
@pytest.mark.parametrize("n", range(1, 7))
def test_river_lengths_are_those_of_the_table(n, k):
    puzzle = River(n, k)
    wanted = RIVER_LENGTHS[k][n - 1]
    assert puzzle.min_moves() == wanted
    assert puzzle.solvable() == (wanted is not None)


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 5) for k in range(1, 5)])
def test_counting_states_of_the_river_equals_searching_named_people(n, k):
    search, counted = shortest(River(n, k)), River(n, k).certificate()
    assert (search.length, search.solutions) == (counted.length, counted.solutions)
    if search.path is None:
        assert search.states == counted.states  # both exhausted everything reachable


def test_the_papers_boat_has_no_solution_from_six_pairs_on():
    for n in range(6, 30):
        certificate = River(n, paper_boat(n)).certificate()
        assert certificate.length is None
        assert certificate.states > 0
    assert River(6, 3).certificate().states == 188
    assert shortest(River(4, 2)).states == River(4, 2).certificate().states


def test_a_boat_for_four_carries_any_number_in_2n_minus_3_moves():
    for n in (2, 3, 7, 20, 100):
        assert River(n, 4).min_moves() == 2 * n - 3
    assert River(100, 4).replay(River(100, 4).solution()).optimal


@pytest.mark.parametrize("n", range(1, 7))
def test_blocks_need_2n_minus_1_moves_on_stack_0_and_n_on_stack_2(n):
    assert shortest(Blocks(n, 0)).length == Blocks(n, 0).min_moves() == (2 * n - 1 if n > 1 else 0)
    assert shortest(Blocks(n, 2)).length == Blocks(n, 2).min_moves() == n
    assert shortest(Blocks(n, 0)).solutions == shortest(Blocks(n, 2)).solutions == 1


def test_the_goal_interleaves_both_stacks_from_their_tops():
    assert Blocks(4).goal_state() == (("D", "B", "C", "A"), (), ())
    assert Blocks(5, 2).goal_state() == ((), (), ("C", "E", "B", "D", "A"))
    assert Blocks(27).labels[:2] == ("A1", "A2")


@pytest.mark.parametrize(
    "puzzle", [*WORLDS, Hanoi(12), Checkers(40), River(30, 5), Blocks(60), Blocks(61)]
)
def test_every_solution_is_accepted_as_shortest(puzzle):
    verdict = puzzle.replay([list(move) for move in puzzle.solution()])
    assert (verdict.solved, verdict.excess, verdict.reason) == (True, 0, "")
    assert verdict.optimal


def test_blocks_of_any_layout_are_solved_by_search():
    puzzle = Blocks(3, layout=(("C",), ("A", "B"), ()), target=((), ("A",), ("B", "C")))
    assert puzzle.min_moves() == shortest(puzzle).length == 2
    assert puzzle.replay(puzzle.solution()).optimal


def test_difficulty_is_more_than_length():
    hanoi, checkers = difficulty(Hanoi(4)), difficulty(Checkers(3))
    assert hanoi.moves == checkers.moves == 15
    assert hanoi.branching > checkers.branching
    assert (hanoi.solutions, checkers.solutions) == (1, 2)
    assert difficulty(River(3, 2)).solutions == 486
    assert difficulty(River(6, 3)).moves is None
    far = difficulty(Hanoi(500))
    assert (far.moves, far.solutions, far.depth, far.branching) == (2**500 - 1, 1, None, None)


def test_the_search_stops_at_its_limit():
    with pytest.raises(InputError, match="more than 50 states"):
        shortest(Hanoi(6), limit=50)


# -- corrupted solutions ---------------------------------------------------------------------------


def slow_verdict(puzzle, moves):
    """Legal by membership in the list of all legal moves: another path than `clean` and `apply`."""
    state = puzzle.start_state()
    for index, move in enumerate(moves):
        legal = [
            tuple(sorted(m)) if puzzle.name == "river" else m for m in puzzle.moves_from(state)
        ]
        if (tuple(sorted(move)) if puzzle.name == "river" else tuple(move)) not in legal:
            return False, index
        state = puzzle.apply(state, puzzle.clean(move))
    return puzzle.is_goal(state), None


@st.composite
def corrupted(draw):
    """A solution with one move replaced, removed, doubled or swapped."""
    puzzle = draw(worlds.filter(lambda p: p.min_moves() > 0))
    moves = [list(move) for move in puzzle.solution()]
    at = draw(st.integers(0, len(moves) - 1))
    kind = draw(st.sampled_from(["replace", "remove", "double", "swap"]))
    if kind == "remove":
        moves.pop(at)
    elif kind == "double":
        moves.insert(at, moves[at])
    elif kind == "swap":
        moves[at], moves[at - 1] = moves[at - 1], moves[at]
    elif puzzle.name == "river":
        people = [f"{c}_{i}" for c in "aA" for i in range(1, puzzle.n + 1)]
        moves[at] = draw(
            st.lists(st.sampled_from(people), min_size=1, max_size=puzzle.k, unique=True)
        )
    else:
        first = {
            "hanoi": st.integers(1, puzzle.n),
            "checkers": st.sampled_from("RB"),
            "blocks": st.sampled_from(getattr(puzzle, "labels", ("A",))),
        }[puzzle.name]
        size = 2 * puzzle.n if puzzle.name == "checkers" else 2
        moves[at] = [draw(first), draw(st.integers(0, size)), draw(st.integers(0, size))]
    return puzzle, moves


@given(corrupted())
@settings(max_examples=300)
def test_a_corrupted_list_is_judged_as_by_enumerating_legal_moves(case):
    puzzle, moves = case
    verdict = puzzle.replay(moves)
    assert (verdict.solved, verdict.first_bad_move) == slow_verdict(puzzle, moves)


JUNK = (
    None, 7, "moves", [], [1], [1, 0], [1, 0, 2, 2], [True, 0, 2], [1.0, 0, 2], [1, 0.0, 2],
    [1, 0, True], [1, -3, 2], [1, 0, -1], [1, 0, 0], [1, 0, 3], [99, 0, 2], [0, 0, 2], ["1", 0, 2],
    [[1], 0, 2], [1, [0], 2], {1, 0, 2}, {"disk": 1}, "102", ["R", 1, 2], ["R", 2, 1], ["B", 3, 2],
    ["X", 0, 1], ["R", 0, 2], ["R", -5, 2], ["_", 2, 2], ["a_1", "a_1"], ["a_01"], ["a_9"], ["b_1"],
    ["A", 0, 0], ["Z", 0, 1], [None, None, None], [10**30, 0, 1], ("R", 2, 3), [float("nan"), 0, 1],
    [10**5000, 0, 1], [1, 10**5000, 0],
)  # fmt: skip


@given(worlds, st.integers(0, 30), st.integers(0, 99), st.sampled_from(JUNK), st.booleans())
@settings(max_examples=300)
def test_the_fast_replay_agrees_with_the_plain_one(puzzle, length, seed, junk, spoiled):
    moves = [list(move) for move in random_walk(puzzle, length, seed)]
    if spoiled:
        moves.insert(len(moves) // 2, junk)
    start = puzzle.start_state()
    assert puzzle.run(moves, start) == puzzle.run_plainly(moves, start)


@pytest.mark.parametrize("puzzle", [Hanoi(3), Checkers(2), River(3, 2), Blocks(4)])
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_the_fast_replay_judges_every_odd_first_move_as_the_plain_one(puzzle, junk):
    start = puzzle.start_state()
    assert puzzle.run([junk], start) == puzzle.run_plainly([junk], start)


@pytest.mark.parametrize(
    ("puzzle", "move", "reason"),
    [
        (Hanoi(3), [True, 0, 2], "not a whole number"),
        (Hanoi(3), [1.0, 0, 2], "not a whole number"),
        (Hanoi(3), [1, -3, 2], "outside 0..2"),
        (Hanoi(3), [1, 0, 0], "would stay"),
        (Hanoi(3), [2, 0, 2], "disk 1 is"),
        (Hanoi(3), [1, 1, 2], "empty"),
        (Checkers(2), ["R", 1, 1], "not the gap"),
        (Checkers(2), ["R", -4, 2], "outside 0..4"),
        (Checkers(3), ["R", 0, 3], "3 places"),
        (Checkers(2), ["R", 0, 2], "own colour"),
        (Checkers(2), ["G", 0, 2], "neither"),
        (River(2, 2), [], "0 passengers"),
        (River(2, 2), ["a_1", "a_1"], "twice"),
        (River(2, 2), ["a_1", "A_2"], "without A_2"),
        (River(2, 2), ["a_3"], "nobody"),
        (Blocks(4), ["A", 0, 1], "not on top"),
        (Blocks(4), ["B", 0, 0], "would stay"),
        (Blocks(4), ["E", 0, 1], "does not exist"),
    ],
)
def test_an_illegal_first_move_is_refused_with_its_reason(puzzle, move, reason):
    verdict = puzzle.replay([move])
    assert (verdict.solved, verdict.first_bad_move) == (False, 0)
    assert reason in verdict.reason


def test_checkers_do_not_move_backwards():
    moves = [["R", 1, 2], ["R", 2, 1]]
    assert "right only" in Checkers(2).replay(moves).reason


@pytest.mark.parametrize("puzzle", WORLDS)
def test_a_list_that_passes_the_goal_and_leaves_it_fails(puzzle):
    solution = [list(move) for move in puzzle.solution()]
    state, _, _ = puzzle.run(solution, puzzle.start_state())
    after = next(puzzle.moves_from(state), None)
    if after is None:
        assert puzzle.name == "checkers"  # nothing moves any more
        return
    verdict = puzzle.replay([*solution, list(after)])
    assert (verdict.solved, verdict.first_bad_move) == (False, None)
    assert "do not end at the goal" in verdict.reason


def test_blanks_around_names_are_forgiven():
    assert River(1, 2).replay([["a_1 ", " A_1"]]).solved
    assert Blocks(2, 2).replay([["B ", 1, 2], ["A", 0, 2]]).solved


# -- symmetries ------------------------------------------------------------------------------------


@given(worlds, st.integers(0, 25), st.integers(0, 99))
def test_every_prefix_of_a_legal_list_is_legal(puzzle, length, seed):
    moves = random_walk(puzzle, length, seed)
    state = puzzle.start_state()
    for cut in range(len(moves) + 1):
        assert puzzle.run(moves[:cut], state)[1:] == (cut, "")


@given(worlds, st.integers(0, 20), st.integers(0, 99), st.sampled_from(JUNK))
def test_the_first_bad_move_is_the_first(puzzle, length, seed, junk):
    moves = [*random_walk(puzzle, length, seed), junk, *random_walk(puzzle, 3, seed)]
    verdict = puzzle.replay(moves)
    bad = verdict.first_bad_move
    if bad is not None:
        assert puzzle.run(moves[:bad], puzzle.start_state())[1:] == (bad, "")
        assert puzzle.run(moves[: bad + 1], puzzle.start_state())[2] != ""


@given(st.permutations(range(1, 5)), corrupted())
def test_renaming_pairs_does_not_change_a_verdict(order, case):
    puzzle, moves = case
    if puzzle.name != "river" or puzzle.n > 4:
        puzzle, moves = River(4, 3), [list(m) for m in River(4, 3).solution()]
    order = [index for index in order if index <= puzzle.n]
    renamed = [[f"{name[:2]}{order[int(name[2:]) - 1]}" for name in move] for move in moves]
    one, two = puzzle.replay(moves), puzzle.replay(renamed)
    assert (one.solved, one.first_bad_move) == (two.solved, two.first_bad_move)


@given(st.permutations("ABCDEF"), st.integers(0, 30), st.integers(0, 99))
def test_renaming_blocks_commutes_with_the_simulator(names, length, seed):
    plain, other = Blocks(6), Blocks(6, labels=tuple(names))
    new = dict(zip("ABCDEF", names, strict=True))
    moves = random_walk(plain, length, seed)
    state, done, _ = plain.run(moves, plain.start_state())
    moved = [[new[block], source, target] for block, source, target in moves]
    there, also, _ = other.run(moved, other.start_state())
    assert done == also
    assert there == tuple(tuple(new[block] for block in stack) for stack in state)


@pytest.mark.parametrize("n", range(1, 8))
def test_the_mirror_image_of_a_checkers_solution_is_one(n):
    other, end = {"R": "B", "B": "R"}, 2 * n
    moves = [[other[c], end - s, end - t] for c, s, t in Checkers(n).solution()]
    assert Checkers(n).replay(moves).optimal
    assert moves != [list(move) for move in Checkers(n).solution()]


@pytest.mark.parametrize("n", range(1, 8))
def test_hanoi_backwards_in_time_leads_back(n):
    back = [[disk, target, source] for disk, source, target in reversed([*Hanoi(n).solution()])]
    assert Hanoi(n, 2, 0).replay(back).optimal


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 5) for k in range(2, 5)])
def test_the_rule_in_the_boat_follows_from_the_banks(n, k):
    """Every load that leaves both banks safe is safe itself, from every reachable state."""
    puzzle = River(n, k)
    everyone = (1 << n) - 1

    def safe(actors, agents):
        return not (agents and actors & ~agents)

    seen, frontier = {puzzle.start_state()}, [puzzle.start_state()]
    while frontier:
        side, actors, agents = state = frontier.pop()
        here = (actors, agents) if side == 0 else (everyone & ~actors, everyone & ~agents)
        people = [(0, i) for i in range(n) if here[0] >> i & 1]
        people += [(1, i) for i in range(n) if here[1] >> i & 1]
        by_banks = set()
        for size in range(1, k + 1):
            for load in itertools.combinations(people, size):
                some = sum(1 << i for who, i in load if who == 0)
                more = sum(1 << i for who, i in load if who == 1)
                a, g = actors ^ some, agents ^ more
                if safe(a, g) and safe(everyone & ~a, everyone & ~g):
                    by_banks.add(tuple(f"{'aA'[who]}_{i + 1}" for who, i in load))
        legal = set(puzzle.moves_from(state))
        assert legal == by_banks
        for move in legal:
            after = puzzle.apply(state, move)
            if after not in seen:
                seen.add(after)
                frontier.append(after)


@given(st.integers(1, 9), st.permutations(range(3)), st.data())
def test_move_t_of_hanoi_has_a_closed_form(n, pegs, data):
    puzzle = Hanoi(n, pegs[0], pegs[1])
    step = data.draw(st.integers(1, 2**n - 1))
    moves = list(itertools.islice(puzzle.solution(), step))
    state, _, _ = puzzle.run(moves, puzzle.start_state())
    assert puzzle.at(step) == (moves[-1], state)


@pytest.mark.parametrize("puzzle", [Checkers(3), Blocks(5), Blocks(4, 2), River(1, 2)])
def test_move_t_is_that_of_the_solution(puzzle):
    for step, move in enumerate(puzzle.solution(), 1):
        given, state = puzzle.at(step)
        assert given == move
        assert (
            state == puzzle.run(itertools.islice(puzzle.solution(), step), puzzle.start_state())[0]
        )
    for outside in (0, puzzle.min_moves() + 1):
        with pytest.raises(InputError, match="step="):
            puzzle.at(outside)


def test_a_tower_of_thousands_can_be_asked_about():
    puzzle = Hanoi(5_000)
    move, state = puzzle.at(2**4_999)
    assert move == (5_000, 0, 2)
    assert len(state[1]) == 4_999


# -- streams ---------------------------------------------------------------------------------------


def test_a_million_moves_stream_in_seconds_and_in_constant_memory():
    start = time.process_time()
    verdict = Hanoi(20).replay(Hanoi(20).solution())
    assert time.process_time() - start < 10
    assert verdict.optimal
    assert verdict.n_moves == 2**20 - 1
    tracemalloc.start()
    Hanoi(14).replay(Hanoi(14).solution())
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_a_stream_is_read_no_further_than_needed():
    def endless():
        yield from ([1, 0, 1], [1, 1, 0]) * 50
        raise AssertionError("read on")

    assert "more than 10 moves" in Hanoi(3).replay(endless(), limit=10).reason
    assert Hanoi(3).replay(itertools.chain([[3, 0, 2]], endless())).first_bad_move == 0
    assert Hanoi(1).replay([[1, 0, 2]], limit=1).solved


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [Hanoi, Checkers, Blocks, lambda n: River(n, 4)])
@pytest.mark.parametrize("n", [0, -1, 1.0, True, "3", LARGEST + 1])
def test_a_size_that_is_none_is_refused(world, n):
    with pytest.raises(InputError, match="n="):
        world(n)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hanoi(3, 0, 0), "both peg 0"),
        (lambda: Hanoi(3, 0, 3), "goal=3"),
        (lambda: Checkers(3, "R", "R"), "both 'R'"),
        (lambda: Checkers(3, "RR", "B"), "one letter"),
        (lambda: River(3, 0), "k=0"),
        (lambda: River(3, 13), "k=13"),
        (lambda: River(3, True), "k=True"),
        (lambda: River(3, 2, "a", "a"), "both 'a'"),
        (lambda: Blocks(3, 1), "goal_stack=1"),
        (lambda: Blocks(3, labels=("A", "A", "B")), "3 different names"),
        (lambda: Blocks(1, labels=("7",)), "reads as a number"),
        (lambda: Blocks(1, labels=("a]",)), "letters and digits"),
        (lambda: Blocks(2, layout=(("A", "B"), (), ())), "both or none"),
        (
            lambda: Blocks(2, layout=(("A", "B"), (), ()), target=(("A", "A"), (), ())),
            "not a rearrangement",
        ),
        (lambda: Blocks(2, layout=(("A",), (), ()), target=(("A",), (), ())), "layout holds"),
        (lambda: Blocks(1, layout=(("A",),), target=(("A",),)), "give three"),
        (lambda: next(Hanoi(31).solution()), "answer='kth'"),
        (lambda: check_solvable(River(6, 3)), "k=3 with n <= 5"),
        (lambda: next(River(4, 2).solution()), "no solution"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(make, match):
    with pytest.raises(InputError, match=match):
        make()


def test_a_layout_above_the_solvers_limit_is_refused():
    names = tuple("ABCDEFGH")
    puzzle = Blocks(8, layout=(names, (), ()), target=((), (), names[::-1]))
    with pytest.raises(InputError, match="search stops at n=7"):
        puzzle.min_moves()
    verdict = puzzle.replay([[name, 0, 2] for name in reversed(names)])
    assert verdict.solved
    assert verdict.excess is None
    assert not verdict.optimal


def test_an_illegal_move_is_an_error_of_this_library():
    with pytest.raises(IllegalMoveError):
        Hanoi(2).apply(Hanoi(2).start_state(), (2, 0, 1))
