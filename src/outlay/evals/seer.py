"""Questions about drawn scenes, for the seer: which methods keep the tokens that answers need?

Scenes are drawn from pictures that the seer's training did not show; a larger `n` extends a smaller
one, and kinds of question take turns. Needs the Debian package `dataset-fashion-mnist`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem

if TYPE_CHECKING:
    from outlay.testbeds.seer.scenes import Scenes

SINGLE = ("S", "M", "HR")
MAX_PROBLEMS = 100_000


@dataclass(frozen=True)
class SeerScenes:
    """Exact answers to questions about scenes of 1 to 6 coloured digits and garments.

    Args:
        size: of the seer whose pictures are drawn: S, M or HR; use the model "seer/SIZE".
        kinds: of questions, joined by "+"; "" takes all whose answer is one word.
        objects: most objects of a scene; None takes what the seer was trained on.

    Raises:
        InputError: for an unknown size or kind.
    """

    size: str = "S"
    kinds: str = ""
    objects: int | None = None

    kind: ClassVar[Kind] = "vision"
    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = False  # the seer continues its question
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size not in SINGLE:
            raise InputError(f"size={self.size!r}; choose one of {', '.join(SINGLE)}")
        from outlay.testbeds.seer.questions import SCENE_KINDS

        if unknown := [kind for kind in self._kinds() if kind not in SCENE_KINDS]:
            raise InputError(f"kinds has {unknown}; choose from {'+'.join(SCENE_KINDS)}")

    @property
    def name(self) -> str:
        """Of the task."""
        return "seer" if self.size == "S" else f"seer-{self.size}"

    def _kinds(self) -> tuple[str, ...]:
        from outlay.testbeds.seer.questions import ONE_TOKEN

        return tuple(self.kinds.split("+")) if self.kinds else ONE_TOKEN

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """See `outlay.evals.base.Task`."""
        if not 1 <= n <= MAX_PROBLEMS:
            raise InputError(f"n={n}; need 1 to {MAX_PROBLEMS:,} problems")
        kinds = self._kinds()
        drawing: dict[str, Any] = {}
        if self.objects is not None:
            drawing["max_objects"] = self.objects
        problems: list[Problem] = []
        for index in range(n):
            kind = kinds[index % len(kinds)]
            problems.append(self._one(kind, seed, index, drawing))
        return problems

    def _one(self, kind: str, seed: int, index: int, drawing: dict[str, Any]) -> Problem:
        from outlay.testbeds.seer.evaluate import held_out

        for attempt in range(64):  # not every scene fits every kind of question
            drawn = (seed * 64 + attempt) * MAX_PROBLEMS + index
            part = held_out(self.size, 8, [kind], seed=drawn, **drawing)
            if kind in part and len(part[kind]):
                asked = part[kind].questions[0]
                image = cast("Scenes", part[kind].seen).images[0]
                return Problem(
                    id=f"{self.name}-{kind}-{seed}-{index}",
                    question=" ".join(asked.words),
                    answer=" ".join(asked.answer),
                    images=(image,),
                    meta={"kind": kind},
                )
        raise InputError(f"no scene of size {self.size} fits questions of kind {kind!r}")

    def prompt(self, problem: Problem, context: str) -> str:
        """The question, in the seer's words."""
        return problem.question

    def verify(self, problem: Problem, answer: str) -> float:
        """1 for exactly the right words."""
        return float(answer.split()[: len(problem.answer.split())] == problem.answer.split())
