"""Plans: ordered sub-questions with levels and credits, and a file that keeps them.

A plan is made once per question and can be used with any model and schedule, so it is stored as
JSON: `question_hash`, `steps[]`, `credits[]`, `levels[]`, `level`, `planner_id`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from outlay.errors import InputError, ResultsError
from outlay.reason.plan_and_budget.allocation import check_credits

NEUTRAL = "directly solve the problem"
LEVELS = range(1, 6)
HARDEST = 5
MOST_STEPS = 64


def question_hash(text: str) -> str:
    """A short name of a question's text."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def check_level(level: int, what: str = "level") -> int:
    """The level, if it is one.

    Raises:
        InputError: if it is not in 1..5.
    """
    if isinstance(level, bool) or not isinstance(level, int) or level not in LEVELS:
        raise InputError(f"{what}={level!r}; levels are 1 (easy) to {HARDEST} (hard)")
    return level


@dataclass(frozen=True)
class Plan:
    """How a question is taken apart.

    Args:
        steps: sub-questions, in order.
        credits: w_j, one per step.
        levels: difficulty 1..5, one per step.
        level: difficulty of the whole question.
        hints: one per step, or none.
        headings: what opens each step in enforced mode, in the model's own notation; none takes
            the method's.
        opening: what the model's turn begins with in enforced mode, before the first heading.
        closing: what opens the answer there; "" takes the method's.
        question_hash: of the question's text.
        planner_id: who made it.
        note: why it is only a fallback, "" where it is not.

    Raises:
        InputError: for no steps, lists of unequal length, or values out of range.
    """

    steps: tuple[str, ...]
    credits: tuple[float, ...]
    levels: tuple[int, ...] = ()
    level: int = HARDEST
    hints: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    opening: str = ""
    closing: str = ""
    question_hash: str = ""
    planner_id: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= MOST_STEPS:
            raise InputError(f"{len(self.steps)} steps; a plan has 1 to {MOST_STEPS}")
        check_credits(self.credits)
        check_level(self.level)
        if not self.levels:
            object.__setattr__(self, "levels", (self.level,) * len(self.steps))
        for level in self.levels:
            check_level(level, "levels")
        for name in ("credits", "levels", "hints", "headings"):
            given = getattr(self, name)
            optional = name in ("hints", "headings") and not given
            if len(given) != len(self.steps) and not optional:
                raise InputError(f"{len(given)} {name} for {len(self.steps)} steps; give one each")

    def merged(self, most: int) -> Plan:
        """The plan with at most `most` steps: neighbours with the smallest credits are joined.

        Raises:
            InputError: for `most` < 1.
        """
        if most < 1:
            raise InputError(f"cannot merge into {most} steps; keep at least 1")
        plan = self
        while len(plan.steps) > most:
            pairs = range(len(plan.steps) - 1)
            at = min(pairs, key=lambda i: (plan.credits[i] + plan.credits[i + 1], i))
            plan = replace(
                plan,
                steps=_joined(plan.steps, at, "; then "),
                hints=_joined(plan.hints, at, " ") if plan.hints else (),
                headings=plan.headings[: at + 1] + plan.headings[at + 2 :],
                credits=(
                    *plan.credits[:at],
                    plan.credits[at] + plan.credits[at + 1],
                    *plan.credits[at + 2 :],
                ),
                levels=(
                    *plan.levels[:at],
                    max(plan.levels[at : at + 2]),
                    *plan.levels[at + 2 :],
                ),
            )
        return plan

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`.

        Raises:
            ResultsError: if the data is no stored plan.
        """
        try:
            given: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in data.items()
            }
            return cls(**given)
        except (TypeError, InputError) as error:
            raise ResultsError(f"not a stored plan ({error}); delete it and plan again") from error


def _joined(texts: Sequence[str], at: int, by: str) -> tuple[str, ...]:
    pair = [text for text in texts[at : at + 2] if text]
    return (*texts[:at], by.join(pair), *texts[at + 2 :])


def neutral(
    question: str, *, level: int = HARDEST, planner_id: str = "none", note: str = ""
) -> Plan:
    """The plan of one step, "directly solve the problem"; its step has no heading."""
    return Plan(
        steps=(NEUTRAL,),
        credits=(1.0,),
        level=level,
        headings=("",),
        question_hash=question_hash(question),
        planner_id=planner_id,
        note=note,
    )


class PlanCache:
    """Plans by question and planner, kept in a file of JSON lines; safe to share by threads.

    Args:
        path: of the file; None keeps plans in memory only.

    Raises:
        ResultsError: for a file that cannot be read or holds anything but plans.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._plans: dict[tuple[str, str], Plan] = {}
        self._lock = threading.Lock()
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(
                f"cannot read plans from {path} ({error}); give another plan_cache"
            ) from error
        for number, line in enumerate(lines, 1):
            try:
                plan = Plan.from_dict(json.loads(line))
            except (ValueError, TypeError, AttributeError, ResultsError) as error:
                raise ResultsError(
                    f"{path}:{number} is not a stored plan ({error}); delete that line"
                ) from error
            self._plans[plan.question_hash, plan.planner_id] = plan

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, question: str, planner_id: str) -> Plan | None:
        """The plan that `planner_id` made for a question's text, None if there is none."""
        with self._lock:
            return self._plans.get((question_hash(question), planner_id))

    def put(self, plan: Plan) -> None:
        """Keep a plan; a line of the file is written whole.

        Raises:
            ResultsError: if the file cannot be written.
        """
        key = plan.question_hash, plan.planner_id
        with self._lock:
            if self._plans.get(key) == plan:
                return
            self._plans[key] = plan
            if self.path is None:
                return
            line = (json.dumps(plan.to_dict(), ensure_ascii=True) + "\n").encode()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(handle, line)
                finally:
                    os.close(handle)
            except OSError as error:
                raise ResultsError(
                    f"cannot write plans to {self.path} ({error}); give another plan_cache"
                ) from error


@cache
def open_cache(path: str) -> PlanCache:
    """The one cache of a file within this process."""
    return PlanCache(path)
