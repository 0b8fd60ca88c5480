"""Arithmetic, logic and other puzzles from reasoning-gym, generated and scored by that library.

Problem i of a seed comes from a data set of fixed size that is made for its chunk alone, so a
larger sample extends a smaller one, and the stream of one seed is no shifted copy of another's.
Some of the library's generators and scorers use Python's or NumPy's global random state: they run
under one lock, with that state set before and put back after. An answer is right when it scores 1
(some scorers pay a little for wrong ones).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from outlay.errors import DependencyError, InputError
from outlay.evals.answers import after_answer, extract_number, final_answer
from outlay.evals.base import Kind, Problem
from outlay.evals.checks import check_sample

RIGHT = 1.0 - 1e-6
"""Scores from here on count as right."""

_CHUNK = 32
_TRUTHS = frozenset({"true", "false"})
_LOCK = threading.RLock()


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one reasoning-gym data set.

    Args:
        dataset: its name in the library ("chain_sum", "basic_arithmetic",
            "propositional_logic", ...).
        options: settings of the data set; `seed` and `size` are this task's business.
        instruction: what follows the question.

    Raises:
        InputError: for an unknown data set or unusable options.
        DependencyError: without reasoning-gym.
    """

    dataset: str = "chain_sum"
    options: Mapping[str, Any] = field(default_factory=dict)
    instruction: str = 'End with a line "Answer:" followed by the answer only.'

    kind: ClassVar[Kind] = "generation"
    metric: ClassVar[str] = "accuracy"
    chat: ClassVar[bool] = True  # the prompt is a question
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = datasets()
        if self.dataset not in names:
            near = difflib.get_close_matches(str(self.dataset), names, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"choose one of {', '.join(names)}"
            )
            raise InputError(f"dataset={self.dataset!r} is not in reasoning-gym; {hint}")
        if not isinstance(self.options, Mapping):
            raise InputError(f"options={self.options!r}; give a mapping of settings")
        if not isinstance(self.instruction, str):
            raise InputError(f"instruction={self.instruction!r}; give a string")
        object.__setattr__(self, "options", MappingProxyType(dict(sorted(self.options.items()))))
        self._make(0, 1)

    def __hash__(self) -> int:
        return hash((self.dataset, self.instruction, repr(sorted(self.options.items()))))

    def __reduce__(self) -> tuple[object, ...]:
        return ReasoningGym, (self.dataset, dict(self.options), self.instruction)

    @property
    def name(self) -> str:
        """ "reasoning-gym/" and the data set."""
        return f"reasoning-gym/{self.dataset}"

    def sample(self, seed: int, n: int) -> list[Problem]:
        """`n` problems."""
        check_sample(seed, n)
        problems = []
        for index in range(n):
            entry = _entry(self, seed, index)
            question, answer = str(entry["question"]), entry["answer"]
            if answer is None:  # several answers are right; some entries show one of them
                shown = entry["metadata"]
                answer = shown.get("example_answer", shown.get("possible_answer", ""))
            text = hashlib.sha256(question.encode()).hexdigest()[:10]
            problems.append(
                Problem(
                    id=f"{self.dataset}:{seed}:{index}:{text}",
                    question=question,
                    answer=answer if isinstance(answer, str) else json.dumps(answer, default=str),
                    meta={"dataset": self.dataset, "seed": seed, "index": index},
                )
            )
        return problems

    def prompt(self, problem: Problem, context: str) -> str:
        """The question, the instruction, and the context before them where there is one."""
        return "\n\n".join(part for part in (context, problem.question, self.instruction) if part)

    def verify(self, problem: Problem, answer: str) -> float:
        """1.0 if the library's scorer gives full marks to the final answer, else 0.0.

        Where the reference is a plain number, the last number of the final answer counts, so that
        "The sum is 1,024." is right for 1024.

        Raises:
            InputError: for a problem of another task.
        """
        meta = problem.meta
        if meta.get("dataset") != self.dataset:
            raise InputError(f"problem {problem.id!r} is not of the data set {self.dataset!r}")
        entry = _entry(self, meta["seed"], meta["index"])
        if str(entry["question"]) != problem.question:
            raise InputError(
                f"problem {problem.id!r} was made with other options or another version of "
                "reasoning-gym; sample it again"
            )
        # The whole rest first: white space and blank lines matter in grids.
        given = [after_answer(answer).strip("\n"), final_answer(answer)]
        if extract_number(problem.answer) == problem.answer:
            given = [extract_number(answer) or ""]
        elif problem.answer.casefold() in _TRUTHS:
            # One scorer takes anything but "True" for "False".
            given = [text for text in given if text.casefold().rstrip(".") in _TRUTHS]
        return float(any(self._score(entry, text) >= RIGHT for text in given if text.strip()))

    @property
    def delimiter(self) -> str:
        """A blank line ends a step."""
        return "\n\n"

    def read(self, problem: Problem, completion: str) -> str | None:
        """The final answer, canonical if it is a number, else without case and outer spaces."""
        answer = final_answer(completion)
        whole = extract_number(answer) if len(answer.split()) == 1 else None
        return whole or answer.casefold().strip() or None

    def _score(self, entry: dict[str, Any], answer: str) -> float:
        with _own_random_state(0):
            try:
                return float(self._make(0, 1).score_answer(answer=answer, entry=entry))
            except Exception:  # scorers parse the answer and fail in many ways on nonsense
                return 0.0

    def _make(self, start: int, size: int) -> Any:
        import reasoning_gym

        with _LOCK:
            try:
                return reasoning_gym.create_dataset(
                    self.dataset, seed=start, size=size, **self.options
                )
            except (AssertionError, TypeError, ValueError, KeyError, AttributeError) as error:
                raise InputError(
                    f"options {dict(self.options)!r} do not suit {self.dataset!r}: "
                    f"{str(error) or type(error).__name__}; "
                    f"it knows {', '.join(_knobs(self.dataset))}"
                ) from error


@lru_cache(maxsize=4096)
def _entry(task: ReasoningGym, seed: int, index: int) -> dict[str, Any]:
    """The library's entry of one problem; made again where needed, so only ids need to travel."""
    chunk, place = divmod(index, _CHUNK)
    start = _mixed(task.dataset, seed, chunk)
    with _own_random_state(start + place):
        entry: dict[str, Any] = _dataset(task, start)[place]
    return entry


@lru_cache(maxsize=64)
def _dataset(task: ReasoningGym, start: int) -> Any:
    with _own_random_state(start):
        return task._make(start, _CHUNK)


def datasets() -> tuple[str, ...]:
    """Names of the library's data sets, sorted.

    Raises:
        DependencyError: without reasoning-gym.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DependencyError(
            "reasoning problems need reasoning-gym; pip install 'outlay[eval]'"
        ) from error
    return tuple(sorted(DATASETS))


def _knobs(dataset: str) -> list[str]:
    from reasoning_gym.factory import DATASETS

    return sorted(f.name for f in fields(DATASETS[dataset][1]) if f.name not in ("seed", "size"))


def _mixed(dataset: str, seed: int, chunk: int) -> int:
    text = f"{dataset}:{seed}:{chunk}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") % (2**31 - _CHUNK)


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Global random states set to `seed` inside, and put back after; one thread at a time."""
    with _LOCK:
        kept, kept_numpy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
