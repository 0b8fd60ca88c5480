"""Controllable puzzle worlds: where reasoning breaks, and what a failure may be blamed on.

"The Illusion of Thinking" (arXiv 2506.06941) with the repairs that its critics asked for
(arXiv 2506.09250, 2507.01231, 2507.17699).
"""

from outlay.evals.puzzles.base import IllegalMoveError, Puzzle, Verdict, check_solvable
from outlay.evals.puzzles.blocks import Blocks
from outlay.evals.puzzles.checkers import Checkers
from outlay.evals.puzzles.hanoi import Hanoi
from outlay.evals.puzzles.parsing import Failure, Parsed, parse_moves, print_moves
from outlay.evals.puzzles.river import River
from outlay.evals.puzzles.solver import Difficulty, Search, difficulty, shortest
from outlay.evals.puzzles.tasks import Puzzles

__all__ = [
    "Blocks",
    "Checkers",
    "Difficulty",
    "Failure",
    "Hanoi",
    "IllegalMoveError",
    "Parsed",
    "Puzzle",
    "Puzzles",
    "River",
    "Search",
    "Verdict",
    "check_solvable",
    "difficulty",
    "parse_moves",
    "print_moves",
    "shortest",
]
