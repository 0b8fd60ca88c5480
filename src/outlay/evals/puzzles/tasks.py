"""The puzzles of "The Illusion of Thinking" (arXiv 2506.06941) as one task with a complexity knob.

Four worlds (Tower of Hanoi, checker jumping, river crossing, blocks world), exact simulators, and
five forms of answer: the whole list of moves, a program that prints it, one move or state of the
shortest solution (`kth`), some moves a turn (`stepwise`), or calls of a tool. Problems run through
the levels in turns, so that every sample covers them evenly; quality must be read level by level
(`outlay.evals.puzzles.curves`), as small sizes would dominate an average.

Differences from the paper: the wording of the prompts is ours, unsolvable river crossings are
refused (the paper asked n >= 6 with k = 3), and `vary` changes pegs, letters and labels, so that
neither a memorised list nor a program written for the usual names passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from outlay.errors import InputError
from outlay.evals.base import Episode, Kind, Mark, Problem
from outlay.evals.checks import check_sample, check_whole, choose
from outlay.evals.puzzles.answers import (
    Judgement,
    ProgramLimits,
    judge_kth,
    judge_moves,
    judge_program,
)
from outlay.evals.puzzles.base import Puzzle, check_solvable
from outlay.evals.puzzles.blocks import Blocks
from outlay.evals.puzzles.checkers import Checkers
from outlay.evals.puzzles.hanoi import Hanoi
from outlay.evals.puzzles.parsing import Moves, Parser, print_moves
from outlay.evals.puzzles.play import Speaker, play_stepwise, play_tool
from outlay.evals.puzzles.prompts import (
    Aim,
    Answer,
    Ask,
    example_moves,
    system_prompt,
    user_prompt,
)
from outlay.evals.puzzles.river import River, paper_boat
from outlay.evals.puzzles.trace import find_candidates

if TYPE_CHECKING:
    from outlay.budget import Budget
    from outlay.decode.base import Decoder
    from outlay.models.base import Account, Model, SamplingParams

World = Literal["hanoi", "checkers", "river", "blocks"]

_LETTERS = "ABCDEFGHJKMNPQRSTUVWXYZ"  # without those that look alike
_SHOWN = 300  # moves of a reference answer; longer ones would fill reports
_TURNS = 1_000


@dataclass(frozen=True)
class Puzzles:
    """Solve a puzzle of growing complexity.

    Args:
        puzzle: "hanoi", "checkers", "river" or "blocks".
        levels: complexities N, asked in turns.
        answer: "list" (all moves), "program" (that prints them; runs in the sandbox), "kth" (one
            move of the shortest solution, or the state after it), "stepwise" (some moves a turn),
            or "tool" (calls of `move`). The last two are episodes.
        k: places in the boat of the river crossing; None for the paper's 2 (N <= 3) and 3.
        goal_stack: of the blocks world: 0 or 2. Never mix them: their solutions differ in length.
        optimal_required: a solution that is longer than necessary is wrong.
        goal: "any" asks for a solution, "optimal" for the shortest.
        parser: "lenient" or "strict".
        algorithm: give the recursive algorithm in the prompt (hanoi only).
        vary: other pegs, letters or labels for each sample of a level.
        allow_unsolvable: ask unsolvable instances, too; "impossible" is then the right answer.
        ask: what "kth" asks for: "move" or "state".
        moves_per_turn: of "stepwise".
        max_turns: of an episode; None for twice what the shortest solution takes, plus 5.
        sandbox_limits: of programs.

    Raises:
        InputError: for knobs out of range, unsolvable levels without `allow_unsolvable`, or "kth"
            where several shortest solutions exist.
    """

    puzzle: World = "hanoi"
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    answer: Answer = "list"
    k: int | None = None
    goal_stack: int = 0
    optimal_required: bool = False
    goal: Aim = "any"
    parser: Parser = "lenient"
    algorithm: bool = False
    vary: bool = False
    allow_unsolvable: bool = False
    ask: Ask = "move"
    moves_per_turn: int = 1
    max_turns: int | None = None
    sandbox_limits: ProgramLimits = field(default_factory=ProgramLimits)

    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose("puzzle", self.puzzle, get_args(World))
        choose("answer", self.answer, get_args(Answer))
        choose("goal", self.goal, get_args(Aim))
        choose("parser", self.parser, get_args(Parser))
        choose("ask", self.ask, get_args(Ask))
        check_whole("moves_per_turn", self.moves_per_turn, least=1)
        if self.max_turns is not None:
            check_whole("max_turns", self.max_turns, least=1)
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise InputError("levels is empty; give at least one complexity, as levels=[1,2,3]")
        if len(set(self.levels)) != len(self.levels):
            raise InputError(f"levels={self.levels} names a level twice; name each once")
        if self.k is not None and self.puzzle != "river":
            raise InputError(f"k={self.k} is the boat of puzzle='river'; leave it out")
        if self.goal_stack != 0 and self.puzzle != "blocks":
            raise InputError(f"goal_stack={self.goal_stack} belongs to puzzle='blocks'")
        for level in self.levels:
            self._check_level(self.instance(level))

    def _check_level(self, puzzle: Puzzle) -> None:
        if not self.allow_unsolvable:
            check_solvable(puzzle)
        system_prompt(puzzle, self.answer, algorithm=self.algorithm)
        if self.answer == "kth":
            if not puzzle.solvable() or not puzzle.unique():
                raise InputError(
                    f"answer='kth' needs one shortest solution, and {puzzle.key} has "
                    f"{'several' if puzzle.solvable() else 'none'}; use hanoi, checkers, or blocks "
                    "with goal_stack=2"
                )
            if puzzle.min_moves() == 0:
                raise InputError(f"{puzzle.key} needs no move; leave this level out for 'kth'")
        if self.answer in ("stepwise", "tool") and self._turns(puzzle) > _TURNS:
            raise InputError(
                f"{puzzle.key} takes up to {self._turns(puzzle)} turns, {_TURNS} are the limit; "
                "lower the level, raise moves_per_turn, or set max_turns"
            )

    @property
    def name(self) -> str:
        """The world and the form of answer."""
        return f"puzzles/{self.puzzle}/{self.answer}"

    @property
    def kind(self) -> Kind:
        """ "episode" for "stepwise" and "tool", else "generation"."""
        return "episode" if self.answer in ("stepwise", "tool") else "generation"

    def instance(self, level: int, variant: int = 0) -> Puzzle:
        """The puzzle of one level; with `vary`, variants differ in pegs, letters or labels.

        Raises:
            InputError: for a level outside the puzzle's range.
        """
        random = Random(f"{self.puzzle}:{level}:{variant}") if self.vary else None
        if self.puzzle == "hanoi":
            start, goal = (0, 2) if random is None else random.sample(range(3), 2)
            return Hanoi(level, start, goal)
        if self.puzzle == "checkers":
            right, left = ("R", "B") if random is None else random.sample(_LETTERS, 2)
            return Checkers(level, right, left)
        if self.puzzle == "river":
            letter = "A" if random is None else random.choice(_LETTERS)
            boat = paper_boat(level) if self.k is None else self.k
            return River(level, boat, letter.lower(), letter)
        labels: tuple[str, ...] = ()
        if random is not None:
            check_whole("levels", level, least=1)
            pool = [a + b for a in _LETTERS for b in ("", *"123456789")]
            pool += [f"{a}{b}" for a in _LETTERS for b in range(10, 100)]
            if level > len(pool):
                raise InputError(f"level {level} has more blocks than vary=True has labels")
            labels = tuple(random.sample(pool, level))
        return Blocks(level, self.goal_stack, labels)

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` problems: level after level, in turns."""
        check_sample(seed, n)
        return [self._problem(seed, index) for index in range(n)]

    def _problem(self, seed: int, index: int) -> Problem:
        level, turn = self.levels[index % len(self.levels)], index // len(self.levels)
        variant = seed * 1_000_003 + turn if self.vary else 0
        puzzle = self.instance(level, variant)
        step = 0
        if self.answer == "kth":
            # Late moves are as likely as early ones; the first ones need no method.
            total = puzzle.min_moves() or 1
            step = Random(f"{puzzle.key}:{seed}:{turn}").randint(min(2, total), total)
        return Problem(
            id=f"{puzzle.key}:{self.answer}{f':{self.ask}{step}' if step else ''}:{seed}:{turn}",
            question=self._user(puzzle, step),
            answer=self._reference(puzzle, step),
            meta={
                "puzzle": self.puzzle,
                "n": level,
                "variant": variant,
                "step": step,
                "moves": _bounded(puzzle.known_optimum()),
                "instance": f"{puzzle.key}:{step}" if step else puzzle.key,
            },
        )

    def _user(self, puzzle: Puzzle, step: int) -> str:
        return user_prompt(
            puzzle,
            self.answer,
            goal="optimal" if self.optimal_required else self.goal,
            step=step,
            ask=self.ask,
            may_be_impossible=self.allow_unsolvable,
            state=puzzle.describe(puzzle.start_state()),
            moves_per_turn=self.moves_per_turn,
        )

    def _reference(self, puzzle: Puzzle, step: int) -> str:
        if not puzzle.solvable():
            return "impossible"
        if step:
            move, state = puzzle.at(step)
            if self.ask == "move":
                return "move = " + print_moves([move]).removeprefix("moves = [").removesuffix("]")
            return "state = " + (
                f'"{state}"' if isinstance(state, str) else print_moves(_rows(state))[8:]
            )
        total = puzzle.min_moves()
        if total is None or total > _SHOWN:
            return f"(a list of {_bounded(total)} moves)"
        return print_moves(list(puzzle.solution()))

    def prompt(self, problem: Problem, context: str) -> str:
        """The paper's system part, the context where there is one, and the instance."""
        puzzle = self._puzzle(problem)
        system = system_prompt(puzzle, self.answer, algorithm=self.algorithm)
        return "\n\n".join(part for part in (system, context, problem.question) if part)

    def judge(self, problem: Problem, answer: str) -> Judgement:
        """The whole judgement on an answer; for episodes, on the list of moves that were made.

        Raises:
            InputError: for a problem of another task.
            CapabilityError: where a program cannot be isolated.
        """
        puzzle = self._puzzle(problem)
        if self.answer == "kth":
            return judge_kth(puzzle, answer, problem.meta["step"], ask=self.ask, parser=self.parser)
        if self.answer == "program":
            return _programs(puzzle, answer, self.optimal_required, self.sandbox_limits)
        return judge_moves(
            puzzle,
            answer,
            parser=self.parser,
            optimal_required=self.optimal_required,
            exclude=self._echoes(puzzle),
        )

    def verify(self, problem: Problem, answer: str) -> float:
        """1.0 for a right answer, else 0.0."""
        return float(self.judge(problem, answer).correct)

    def explain(self, problem: Problem, answer: str) -> Mapping[str, str]:
        """Outcome, reason, first bad move, the state there, and lengths."""
        made = self.judge(problem, answer)
        texts: dict[str, str] = {"outcome": made.outcome}
        if made.reason:
            texts["reason"] = made.reason
        if (verdict := made.verdict) is not None:
            if verdict.first_bad_move is not None:
                texts["first bad move"] = str(verdict.first_bad_move)
            texts["state"] = verdict.state
            texts["moves"] = str(verdict.n_moves)
            if verdict.min_moves is not None:
                texts["fewest moves"] = str(_bounded(verdict.min_moves))
        if made.hard_coded:
            texts["hard-coded"] = "the program holds at least half of the moves as a list"
        return texts

    def marks(self, problem: Problem, text: str) -> Sequence[Mark]:
        """Every list of moves in a text, right or wrong; repeated ones too."""
        puzzle = self._puzzle(problem)
        return [
            Mark(start, end, _label(correct, verdict.first_bad_move, verdict.reason), correct)
            for start, end, _, verdict, correct in find_candidates(
                text, puzzle, dedup=False, optimal_required=self.optimal_required
            )
        ]

    def play(
        self,
        model: Model,
        problem: Problem,
        budget: Budget,
        sampling: SamplingParams,
        *,
        decode: Decoder | None,
        account: Account,
    ) -> Episode:
        """Play a "stepwise" or "tool" problem.

        Raises:
            InputError: for other forms of answer.
        """
        puzzle = self._puzzle(problem)
        speaker = Speaker(model, budget, sampling, decode, account)
        if self.answer == "stepwise":
            return play_stepwise(
                puzzle,
                speaker,
                moves_per_turn=self.moves_per_turn,
                turns=self._turns(puzzle),
                parser=self.parser,
                optimal_required=self.optimal_required,
                may_be_impossible=self.allow_unsolvable,
            )
        if self.answer == "tool":
            return play_tool(
                puzzle,
                speaker,
                turns=self._turns(puzzle),
                optimal_required=self.optimal_required,
                may_be_impossible=self.allow_unsolvable,
            )
        raise InputError(f"answer={self.answer!r} is no episode; use 'stepwise' or 'tool'")

    def _echoes(self, puzzle: Puzzle) -> list[Moves]:
        """Lists that only repeat the prompt. Some moves of an episode may well equal the example: a
        tower of two is part of a tower of three."""
        return [] if self.kind == "episode" else [example_moves(puzzle)]

    def _turns(self, puzzle: Puzzle) -> int:
        if self.max_turns is not None:
            return self.max_turns
        moves = puzzle.known_optimum() or 0
        per_turn = self.moves_per_turn if self.answer == "stepwise" else 1
        return 2 * -(-moves // per_turn) + 5

    def _puzzle(self, problem: Problem) -> Puzzle:
        meta: Mapping[str, Any] = problem.meta
        if meta.get("puzzle") != self.puzzle or meta.get("n") not in self.levels:
            raise InputError(f"problem {problem.id!r} is not of {self.name} with {self.levels}")
        return self.instance(meta["n"], meta["variant"])


@lru_cache(maxsize=256)
def _programs(
    puzzle: Puzzle, answer: str, optimal_required: bool, limits: ProgramLimits
) -> Judgement:
    """A program runs once for its verdict and its explanation."""
    return judge_program(puzzle, answer, optimal_required=optimal_required, limits=limits)


def _label(correct: bool, first_bad_move: int | None, reason: str) -> str:
    if correct:
        return "solves it"
    if first_bad_move is None:
        return reason or "solves it, but not with the fewest moves"
    return f"move {first_bad_move}: {reason}"


def _bounded(moves: int | None) -> int | str | None:
    """Numbers of moves with more than 18 digits as text: JSON readers would round them."""
    return moves if moves is None or moves < 10**18 else f"about 2^{moves.bit_length()}"


def _rows(state: Any) -> list[list[Any]]:
    rows: Callable[[Any], list[Any]] = list
    return [rows(row) for row in state]
