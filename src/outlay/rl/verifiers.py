"""Verifiers: completions in, judgements out. A verifier never stops a run.

All read token ids and keep special tokens, so that tags registered as special are seen. A truncated
completion is judged by what it holds: an answer that was finished before the cut counts, a thought
that was cut does not. Foreign graders (math-verify, reasoning-gym) run in helper processes with a
time limit; what raises or hangs there counts as wrong, and is counted as failed.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlay.errors import DependencyError, InputError
from outlay.evals.answers import after_answer
from outlay.evals.base import Problem
from outlay.rl.base import Judgement, Row, Verifier
from outlay.rl.grading import RIGHT
from outlay.rl.guard import Guard
from outlay.testbeds.chainarith_rl.verify import verify

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from outlay.evals.base import Task

_LOG = logging.getLogger(__name__)
_LONGEST = 20_000  # characters of an answer that are looked at, from the end


class ChainArithVerifier(Verifier):
    """Exact, for the reasoner's notation (`outlay.testbeds.reasoner`, `.chainarith_rl`).

    `format_ok` is the grammar of `chainarith_rl`: style tag, thinking, end tag, answer, end.

    Args:
        answer: column with the right answer.
    """

    def __init__(self, answer: str = "answer") -> None:
        self._answer = answer

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """One judgement a row.

        Raises:
            InputError: if a row has no answer.
        """
        judgements = []
        for row, ids in zip(rows, completion_ids, strict=True):
            answer = str(need(row, self._answer))
            try:
                one = verify(ids, answer)
            except InputError as error:  # a token beyond the vocabulary, or too long a text
                _LOG.warning("a completion could not be read: %s", error)
                n = len(ids)
                judgements.append(Judgement(False, 0.0, False, n, n, 0, True, failed=True))
                continue
            judgements.append(
                Judgement(
                    correct=one.right,
                    score=float(one.right),
                    format_ok=one.well_formed,
                    tokens=one.tokens,
                    thinking_tokens=one.thinking_tokens,
                    answer_tokens=one.answer_tokens,
                    truncated=one.truncated,
                    given=one.given,
                    style=one.style,
                )
            )
        return judgements


@dataclass(frozen=True)
class Reading:
    """How completions are read: which tokens think, which answer.

    Args:
        tokenizer: of the model.
        end_of_thinking: text that ends the thinking; "" for models that do not think, whose whole
            completion is the answer.
        forced_open: the prompt has opened the thinking, so a completion without an end of thinking
            is an unfinished thought and has no answer.

    Raises:
        InputError: if `end_of_thinking` does not come back from the tokenizer as it was given.
    """

    tokenizer: PreTrainedTokenizerBase
    end_of_thinking: str = "</think>"
    forced_open: bool = True

    def __post_init__(self) -> None:
        if self.end_of_thinking and self.decode(self.marker) != self.end_of_thinking:
            raise InputError(
                f"end_of_thinking={self.end_of_thinking!r} comes back from the tokenizer as "
                f"{self.decode(self.marker)!r}; add it to the vocabulary or name another one"
            )

    @property
    def marker(self) -> list[int]:
        """Tokens of the end of thinking."""
        found: list[int] = self.tokenizer(self.end_of_thinking, add_special_tokens=False)[
            "input_ids"
        ]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text with special tokens."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def split(self, ids: Sequence[int]) -> Parts:
        """Lengths of the parts of a completion, and the text of its answer."""
        ends = {self.tokenizer.eos_token_id}
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        whole = list(ids) if stop is None else list(ids[: stop + 1])
        if stop is None:
            while whole and whole[-1] == self.tokenizer.pad_token_id:
                whole.pop()
        body = whole if stop is None else whole[:stop]
        if not self.end_of_thinking:
            return Parts(0, len(whole), stop is None, True, self.decode(body))
        text = self.decode(body)
        once = text.count(self.end_of_thinking) == 1
        if self.end_of_thinking not in text:
            answer = "" if self.forced_open else text
            return Parts(len(body), len(whole) - len(body), stop is None, False, answer)
        thinking = self._first(body)
        answer = text.rsplit(self.end_of_thinking, 1)[1]
        return Parts(thinking, len(whole) - thinking, stop is None, once, answer)

    def _first(self, ids: list[int]) -> int:
        """Tokens before the first end of thinking, also where it is spelt in other tokens."""
        marker = self.marker
        for start in range(len(ids) - len(marker) + 1):
            if ids[start : start + len(marker)] == marker:
                return start
        low, high = 0, len(ids)
        while low < high:  # the shortest start whose text holds the marker
            middle = (low + high) // 2
            if self.end_of_thinking in self.decode(ids[:middle]):
                high = middle
            else:
                low = middle + 1
        return max(0, low - 1)


@dataclass(frozen=True)
class Parts:
    """Lengths of the parts of a completion, and the text of its answer."""

    thinking_tokens: int
    answer_tokens: int
    truncated: bool
    format_ok: bool
    answer: str

    def judged(self, score: float, given: str | None, failed: bool, answered: bool) -> Judgement:
        """The judgement: a score of 1 is right."""
        return Judgement(
            correct=score >= RIGHT,
            score=min(1.0, max(0.0, score)),
            format_ok=self.format_ok and answered,
            tokens=self.thinking_tokens + self.answer_tokens,
            thinking_tokens=self.thinking_tokens,
            answer_tokens=self.answer_tokens,
            truncated=self.truncated,
            given=given,
            failed=failed,
        )


class MathVerifier(Verifier):
    """math-verify on the answer part (a box, an answer tag, or what follows "the answer is").

    Args:
        reading: how completions are read.
        answer: column with the right answer.
        workers: helper processes.
        seconds: time limit of one comparison.

    Raises:
        DependencyError: without math-verify.
    """

    def __init__(
        self, reading: Reading, answer: str = "answer", workers: int = 2, seconds: float = 5.0
    ) -> None:
        _require("math_verify", "math-verify")
        self._reading, self._answer = reading, answer
        self.guard = Guard("outlay.rl.grading:math_equal", workers, seconds)

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """One judgement a row; format_ok is one end of thinking and something to grade."""
        parts = [self._reading.split(ids) for ids in completion_ids]
        given = [after_answer(part.answer)[-_LONGEST:].strip() for part in parts]
        calls = [
            (str(need(row, self._answer)), text) for row, text in zip(rows, given, strict=True)
        ]
        return _graded(self.guard, calls, parts, given)


class GymVerifier(Verifier):
    """reasoning-gym: full marks are right, anything less is partial credit only.

    Args:
        reading: how completions are read.
        task: name of the data set.
        config: its settings.
        entry: column with the problem as reasoning-gym made it, as JSON (see `gym_dataset`).
        workers: helper processes.
        seconds: time limit of one score.

    Raises:
        DependencyError: without reasoning-gym.
    """

    def __init__(
        self,
        reading: Reading,
        task: str,
        config: Mapping[str, Any] | None = None,
        entry: str = "entry",
        workers: int = 2,
        seconds: float = 5.0,
    ) -> None:
        _require("reasoning_gym", "reasoning-gym")
        self._reading, self._task, self._entry = reading, task, entry
        self._config = json.dumps(dict(config or {}), sort_keys=True)
        self.guard = Guard("outlay.rl.grading:gym_score", workers, seconds)

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """One judgement a row."""
        parts = [self._reading.split(ids) for ids in completion_ids]
        given = [after_answer(part.answer)[-_LONGEST:].strip() for part in parts]
        calls = [
            (self._task, self._config, str(need(row, self._entry)), text)
            for row, text in zip(rows, given, strict=True)
        ]
        return _graded(self.guard, calls, parts, given)


class TaskVerifier(Verifier):
    """Any generation task of `outlay.evals`, puzzles among them: its own exact verifier.

    Args:
        reading: how completions are read.
        task: with `verify`.
        problems: those of the data set.
        id: column with the problem's id.

    Raises:
        InputError: for a task that is no generation task, or two problems of one id.
    """

    def __init__(
        self, reading: Reading, task: Task, problems: Sequence[Problem], id: str = "id"
    ) -> None:
        if task.kind != "generation":
            raise InputError(f"task {task.name} is of kind {task.kind!r}; RL needs 'generation'")
        self._reading, self._task, self._id = reading, task, id
        self._problems = {problem.id: problem for problem in problems}
        if len(self._problems) != len(problems):
            raise InputError("two problems have one id; give each its own")
        self.failures = 0

    def judge(
        self, rows: Sequence[Row], completion_ids: Sequence[Sequence[int]]
    ) -> list[Judgement]:
        """One judgement a row; an answer on which the task raises is wrong and counted."""
        judgements = []
        for row, ids in zip(rows, completion_ids, strict=True):
            problem = self._problems.get(need(row, self._id))
            if problem is None:
                raise InputError(f"no problem has the id {row[self._id]!r}; give all of them")
            part = self._reading.split(ids)
            score, failed = 0.0, False
            if part.answer.strip():
                try:
                    score = float(self._task.verify(problem, part.answer))
                except Exception as error:  # a third party's verifier may raise anything
                    failed = True
                    self.failures += 1
                    _LOG.warning("%s raised on an answer: %s", self._task.name, error)
            answered = bool(part.answer.strip())
            judgements.append(part.judged(score, part.answer or None, failed, answered))
        return judgements


def gym_dataset(task: str, size: int, seed: int = 0, **config: Any) -> Dataset:
    """Problems of reasoning-gym as a data set: `prompt` (a chat), `entry` (JSON), `difficulty`.

    Args:
        task: name of the data set.
        size: rows.
        seed: of the sample.
        config: further settings of the data set.

    Raises:
        DependencyError: without reasoning-gym or datasets.
        InputError: for a size out of range or an unknown task.
    """
    _require("reasoning_gym", "reasoning-gym")
    _require("datasets", "datasets")
    if not 1 <= size <= 1_000_000:
        raise InputError(f"size={size}; must be in 1..1,000,000")
    import reasoning_gym
    from datasets import Dataset as HfDataset

    try:
        problems = reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
    except ValueError as error:
        raise InputError(f"reasoning-gym refuses task={task!r}: {error}") from error
    rows = [
        {
            "prompt": [{"role": "user", "content": problem["question"]}],
            "entry": json.dumps(problem, default=str),
        }
        for problem in problems
    ]
    return HfDataset.from_list(rows)


def need(row: Row, column: str) -> Any:
    """A value of a row.

    Raises:
        InputError: if the row lacks it.
    """
    if column not in row:
        raise InputError(f"the data set has no column {column!r}; it has: {', '.join(row)}")
    return row[column]


def _graded(
    guard: Guard, calls: Sequence[Sequence[str]], parts: Sequence[Parts], given: Sequence[str]
) -> list[Judgement]:
    """Grade what was answered; nothing to grade is wrong without a call."""
    asked = [call for call, text in zip(calls, given, strict=True) if text]
    results = iter(guard.map(asked))
    judgements = []
    for part, text in zip(parts, given, strict=True):
        fine, score = next(results) if text else (True, 0.0)
        judgements.append(part.judged(float(score or 0.0), text or None, not fine, bool(text)))
    if any(one.failed for one in judgements):
        _LOG.warning("%d verifications failed, the last: %s", guard.failures, guard.last_failure)
    return judgements


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise DependencyError(f"this verifier needs {package}: pip install 'outlay[train,eval]'")
