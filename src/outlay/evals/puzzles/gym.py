"""The puzzles as reasoning-gym data sets: outlay_hanoi, outlay_checkers, outlay_river,
outlay_blocks.

Importing this module registers them through the library's own API, so that
`reasoning_gym.create_dataset("outlay_river", max_n=5)` works, with `score_answer`, curricula and
everything that the library builds on data sets. It needs reasoning-gym; nothing else imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.errors import DependencyError, InputError
from outlay.evals.base import Problem
from outlay.evals.puzzles.prompts import Answer
from outlay.evals.puzzles.solver import difficulty
from outlay.evals.puzzles.tasks import Puzzles, World

try:
    from reasoning_gym.coaching import BaseCurriculum, RangeAttributeDefinition
    from reasoning_gym.factory import DATASETS, ProceduralDataset, register_dataset
except ImportError as error:
    raise DependencyError(
        "the puzzles as reasoning-gym data sets need reasoning-gym; pip install 'outlay[eval]'"
    ) from error

NAMES: dict[World, str] = {
    "hanoi": "outlay_hanoi",
    "checkers": "outlay_checkers",
    "river": "outlay_river",
    "blocks": "outlay_blocks",
}


@dataclass
class PuzzleConfig:
    """Settings of a data set.

    Args:
        min_n, max_n: complexities, in turns.
        answer: "list", "kth" or "program".
        k: boat of the river crossing.
        goal_stack: of the blocks world.
        optimal_required: a longer solution scores 0.
        vary: other pegs, letters and labels in every entry.
        size: entries.
        seed: of the entries; None for a random one.
    """

    min_n: int = 2
    max_n: int = 5
    answer: Answer = "list"
    k: int | None = None
    goal_stack: int = 0
    optimal_required: bool = False
    vary: bool = True
    size: int = 500
    seed: int | None = None

    def task(self, puzzle: World) -> Puzzles:
        """The task that these settings describe.

        Raises:
            InputError: for settings out of range.
        """
        if not 1 <= self.min_n <= self.max_n:
            raise InputError(f"min_n={self.min_n}, max_n={self.max_n}; need 1 <= min_n <= max_n")
        if self.answer in ("stepwise", "tool"):
            raise InputError(f"answer={self.answer!r} takes turns; use 'list', 'kth' or 'program'")
        return Puzzles(
            puzzle,
            tuple(range(self.min_n, self.max_n + 1)),
            self.answer,
            k=self.k,
            goal_stack=self.goal_stack,
            optimal_required=self.optimal_required,
            vary=self.vary,
        )


@dataclass
class HanoiConfig(PuzzleConfig):
    """Settings of `outlay_hanoi`."""

    def validate(self) -> None:
        """Refuse settings out of range."""
        self.task("hanoi")


@dataclass
class CheckersConfig(PuzzleConfig):
    """Settings of `outlay_checkers`."""

    max_n: int = 4

    def validate(self) -> None:
        """Refuse settings out of range."""
        self.task("checkers")


@dataclass
class RiverConfig(PuzzleConfig):
    """Settings of `outlay_river`; the boat takes 3 unless k says otherwise."""

    k: int | None = 3

    def validate(self) -> None:
        """Refuse settings out of range, and unsolvable crossings."""
        self.task("river")


@dataclass
class BlocksConfig(PuzzleConfig):
    """Settings of `outlay_blocks`."""

    max_n: int = 8

    def validate(self) -> None:
        """Refuse settings out of range."""
        self.task("blocks")


class PuzzleDataset(ProceduralDataset):
    """Entries of one puzzle: `question`, `answer`, `metadata`."""

    puzzle: World

    def __init__(self, config: PuzzleConfig) -> None:
        super().__init__(config=config, seed=config.seed, size=config.size)
        self._task = config.task(self.puzzle)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Entry `idx`.

        Raises:
            IndexError: outside 0..size-1.
        """
        if not 0 <= idx < self.size:
            raise IndexError(f"entry {idx} of {self.size}")
        problem = self._task.sample(self.seed, idx + 1)[idx]
        puzzle = self._task.instance(problem.meta["n"], problem.meta["variant"])
        hard = difficulty(puzzle, limit=2_000)
        return {
            "question": self._task.prompt(problem, ""),
            "answer": problem.answer,
            "metadata": {
                "source_dataset": NAMES[self.puzzle],
                "source_index": idx,
                "id": problem.id,
                **problem.meta,
                "difficulty": {
                    "n": (self.config.min_n, self.config.max_n),
                    "moves": hard.moves,
                    "branching": hard.branching,
                    "solutions": hard.solutions,
                },
            },
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1.0 for a right answer, 0.0 for any other."""
        if not isinstance(answer, str):
            return 0.0
        meta = entry["metadata"]
        return self._task.verify(Problem(meta["id"], entry["question"], meta=meta), answer)


class HanoiDataset(PuzzleDataset):
    """Tower of Hanoi."""

    puzzle: World = "hanoi"


class CheckersDataset(PuzzleDataset):
    """Checker jumping."""

    puzzle: World = "checkers"


class RiverDataset(PuzzleDataset):
    """River crossing."""

    puzzle: World = "river"


class BlocksDataset(PuzzleDataset):
    """Blocks world."""

    puzzle: World = "blocks"


class _Curriculum(BaseCurriculum):
    levels: Sequence[int] = (2, 4, 6, 8)
    config: type[PuzzleConfig] = PuzzleConfig

    def __init__(self) -> None:
        super().__init__(type(self).__name__, self.config)
        self._define_attributes(
            RangeAttributeDefinition(
                name="n",
                levels=list(self.levels),
                lower_field_name="min_n",
                upper_field_name="max_n",
                description="complexity of the puzzle",
            )
        )


class HanoiCurriculum(_Curriculum):
    """More disks."""

    config = HanoiConfig


class CheckersCurriculum(_Curriculum):
    """More checkers."""

    levels = (1, 2, 3, 4)
    config = CheckersConfig


class RiverCurriculum(_Curriculum):
    """More pairs, as far as a boat for three carries them."""

    levels = (2, 3, 4, 5)
    config = RiverConfig


class BlocksCurriculum(_Curriculum):
    """More blocks."""

    levels = (2, 4, 8, 12)
    config = BlocksConfig


for _name, _dataset, _config, _curriculum in (
    ("outlay_hanoi", HanoiDataset, HanoiConfig, HanoiCurriculum),
    ("outlay_checkers", CheckersDataset, CheckersConfig, CheckersCurriculum),
    ("outlay_river", RiverDataset, RiverConfig, RiverCurriculum),
    ("outlay_blocks", BlocksDataset, BlocksConfig, BlocksCurriculum),
):
    if _name not in DATASETS:
        register_dataset(_name, _dataset, _config, _curriculum)
