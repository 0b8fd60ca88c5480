"""What a model is asked: the paper's system and user text, for every form of answer.

The wording is ours. As in the paper, the system part gives role, rules, a small worked example, the
format, and asks for complete lists also while thinking; the user part gives the instance and
repeats the rules. The example is another instance than the one asked, never its solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outlay.errors import InputError
from outlay.evals.puzzles.base import Puzzle
from outlay.evals.puzzles.blocks import Blocks
from outlay.evals.puzzles.checkers import Checkers
from outlay.evals.puzzles.hanoi import Hanoi
from outlay.evals.puzzles.parsing import Moves, print_moves
from outlay.evals.puzzles.river import River

Answer = Literal["list", "program", "kth", "stepwise", "tool"]
Aim = Literal["any", "optimal"]
Ask = Literal["move", "state"]

_ROLE = "You are a helpful assistant. Solve this puzzle for me."
_THINK = (
    "While you think, write every solution that you consider as a complete list in the same format."
)
_HANOI_ALGORITHM = """Here is an algorithm that solves the puzzle:
ALGORITHM Solve(n, source, target, auxiliary, moves)
    // n: number of disks, moves: list of moves so far
    IF n equals 1 THEN
        append [1, source, target] to moves
        RETURN
    END IF
    Solve(n - 1, source, auxiliary, target, moves)
    append [n, source, target] to moves
    Solve(n - 1, auxiliary, target, source, moves)
END ALGORITHM
Call Solve(n, start peg, goal peg, third peg, []) and return moves."""


@dataclass(frozen=True)
class World:
    """Words for one world.

    Args:
        rules: what is allowed, how a move is written, how positions count.
        form: a move, as a pattern.
        instance: the size and both ends of the asked instance.
        example: another instance, whose solution is shown.
    """

    rules: str
    form: str
    instance: str
    example: Puzzle


def world(puzzle: Puzzle) -> World:
    """The words for an instance.

    Raises:
        InputError: for a puzzle that this module has no words for.
    """
    start, ask = puzzle.start_state(), puzzle.describe
    if isinstance(puzzle, Hanoi):
        return World(
            "There are three pegs, numbered 0, 1 and 2, and disks of different sizes, numbered "
            "from 1 (the smallest) upwards.\n"
            "1. One disk moves at a time.\n"
            "2. Only the top disk of a peg can move.\n"
            "3. A larger disk may not be placed on a smaller one.",
            "[disk, from_peg, to_peg]",
            f"There are {puzzle.n} disks. Start, from bottom to top: {ask(start)}. "
            f"Goal: all disks on peg {puzzle.goal}.",
            Hanoi(2 if puzzle.n != 2 else 1, puzzle.start, puzzle.spare),
        )
    if isinstance(puzzle, Checkers):
        goal = puzzle.left * puzzle.n + "_" + puzzle.right * puzzle.n
        return World(
            f"Checkers '{puzzle.right}' and '{puzzle.left}' stand in a row with one empty place "
            "'_'. Places are numbered from 0 at the left end.\n"
            "1. A checker may slide into an adjacent empty place.\n"
            "2. A checker may jump over exactly one checker of the other colour into an empty "
            "place.\n"
            f"3. '{puzzle.right}' moves to the right only, '{puzzle.left}' to the left only.",
            "[colour, from_place, to_place]",
            f"There are {puzzle.n} checkers of each colour. Start: {ask(start)}. "
            f"Goal: {ask(goal)}.",
            Checkers(1 if puzzle.n != 1 else 2, puzzle.right, puzzle.left),
        )
    if isinstance(puzzle, River):
        actor, agent = puzzle.actor, puzzle.agent
        return World(
            f"Actors {actor}_1, {actor}_2, ... and their agents {agent}_1, {agent}_2, ... want to "
            "cross a river with one boat.\n"
            f"1. The boat carries 1 to {puzzle.k} people and cannot cross empty.\n"
            "2. An actor may not be with another actor's agent, on a bank or in the boat, unless "
            "the actor's own agent is there, too.\n"
            "3. The boat begins on the left bank.",
            "[person, ...] (everyone in the boat, one list for each crossing, in turns to the "
            "right and to the left)",
            f"There are {puzzle.n} actors and {puzzle.n} agents, and the boat holds {puzzle.k}. "
            f"Start: {ask(start)}. Goal: everyone on the right bank.",
            River(
                1 if puzzle.n != 1 else 2, max(puzzle.k, 2 if puzzle.n != 1 else 3), actor, agent
            ),
        )
    if isinstance(puzzle, Blocks):
        return World(
            "Blocks lie in three stacks, numbered 0, 1 and 2.\n"
            "1. One block moves at a time.\n"
            "2. Only the top block of a stack can move.\n"
            "3. It may be put on any other stack, also on an empty one.",
            "[block, from_stack, to_stack]",
            f"There are {puzzle.n} blocks. Start, from bottom to top: {ask(start)}. "
            f"Goal: {ask(puzzle.goal_state())}.",
            Blocks(2 if puzzle.n != 2 else 3, puzzle.goal_stack),
        )
    raise InputError(f"there is no prompt for a puzzle of type {type(puzzle).__name__}")


def example_moves(puzzle: Puzzle) -> Moves:
    """The list of moves that the prompt shows: an answer that repeats it is an echo."""
    return [list(move) for move in world(puzzle).example.solution()]


def system_prompt(puzzle: Puzzle, answer: Answer, *, algorithm: bool = False) -> str:
    """Role, rules, worked example, and the request about thinking."""
    words = world(puzzle)
    parts = [f"{_ROLE}\n{words.rules}"]
    if answer != "kth":
        shown = words.example
        begin = shown.describe(shown.start_state())
        moves = print_moves(list(shown.solution()))
        what = f"An example with another size. Start: {begin}. A solution: {moves}"
        parts.append(f"A move is written {words.form}.\n{what}")
    else:
        parts.append(f"A move is written {words.form}.")
    if algorithm:
        if not isinstance(puzzle, Hanoi):
            raise InputError(
                f"algorithm=True with {puzzle.name}; an algorithm is given for hanoi only, as in "
                "the paper"
            )
        parts.append(_HANOI_ALGORITHM)
    if answer == "list":
        parts.append(_THINK)
    return "\n\n".join(parts)


def user_prompt(
    puzzle: Puzzle,
    answer: Answer,
    *,
    goal: Aim = "any",
    step: int = 1,
    ask: Ask = "move",
    may_be_impossible: bool = False,
    state: str = "",
    made: int = 0,
    moves_per_turn: int = 1,
) -> str:
    """The instance, the rules again, and how to answer."""
    words = world(puzzle)
    few = " The whole solution must be a shortest one." if goal == "optimal" else ""
    what = "the shortest sequence of moves" if goal == "optimal" else "a sequence of moves"
    parts = [words.instance, words.rules]
    if answer == "list":
        parts.append(
            f"Find {what} from the start to the goal. End with the complete list, in the format "
            f"moves = [{words.form.split(' (')[0]}, ...]."
        )
    elif answer == "program":
        parts.append(
            f"Write a Python program that finds {what} from the start to the goal and prints one "
            f"move a line, each as a list {words.form.split(' (')[0]} with names in double quotes. "
            "It may instead define a generator solve() that yields the moves. It runs without "
            "input, files, network or imports. Give it in one ```python block. Do not write the "
            "moves out."
        )
    elif answer == "kth":
        asked = (
            f"Which move is number {step} (the first is number 1)? End with move = "
            f"{words.form.split(' (')[0]}."
            if ask == "move"
            else f"What is the state right after move number {step} (the first is number 1)? End "
            f"with {_state_form(puzzle)}."
        )
        parts.append(
            f"Consider the shortest solution. {puzzle.canonical} {asked}".replace("  ", " ")
        )
    elif answer == "stepwise":
        many = "the next move" if moves_per_turn == 1 else f"the next 1 to {moves_per_turn} moves"
        parts.append(
            f"{made} moves were made. The state is now: {state}. Give {many} towards the goal, in "
            f"the format moves = [{words.form.split(' (')[0]}, ...].{few}"
        )
    else:
        parts.append(
            "You play through a tool: write one line move(MOVE) with MOVE written "
            f"{words.form.split(' (')[0]}, and you are told the new state, or why the move is "
            f"refused. One move a turn.{few} The state is now: {state}."
        )
    if may_be_impossible:
        parts.append('If there is no solution, answer "impossible" and say why.')
    return "\n\n".join(parts)


def _state_form(puzzle: Puzzle) -> str:
    if isinstance(puzzle, Checkers):
        return 'state = "..." (the row as one word)'
    return "state = [[...], [...], [...]] (each from bottom to top)"
