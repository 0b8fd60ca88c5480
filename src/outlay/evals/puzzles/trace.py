"""Candidate solutions inside a thinking trace: where they are, and which are right.

Every list of moves in the thinking counts, with or without a name; a repeated one counts where it
first appears. Its position is the number of thinking tokens up to its end (or its start), over all
thinking tokens, counted by a tokenizer: characters would move it. A summary of hidden thinking is
no trace and is refused.

The paper's figures that follow: the share of correct candidates, mean and spread of the positions
of correct and of incorrect ones, accuracy per position bin, the first correct position (thinking on
after it is "overthinking"), and where candidates fail, in moves and relative to what is
required.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from outlay.errors import InputError
from outlay.evals.puzzles.base import Puzzle, Verdict
from outlay.evals.puzzles.parsing import Moves, nested_lists

Position = Literal["end", "start"]
Count = Callable[[str], int]


@dataclass(frozen=True)
class Candidate:
    """One list of moves in a trace.

    Args:
        start, end: its characters.
        moves: as written.
        verdict: of its replay.
        correct: it solves the puzzle (with the fewest moves, where that is required).
        position: in [0, 1].
    """

    start: int
    end: int
    moves: Moves
    verdict: Verdict
    correct: bool
    position: float


@dataclass(frozen=True)
class Trace:
    """One analysed trace.

    Args:
        n: complexity of its puzzle.
        tokens: of the thinking.
        candidates: in order of appearance.
    """

    n: int
    tokens: int
    candidates: tuple[Candidate, ...]

    @property
    def first_correct(self) -> float | None:
        """Position of the first correct candidate, None without one."""
        return next((each.position for each in self.candidates if each.correct), None)

    @property
    def overthinking(self) -> float | None:
        """Share of the thinking that follows the first correct candidate."""
        first = self.first_correct
        return None if first is None else 1.0 - first


def find_candidates(
    thinking: str,
    puzzle: Puzzle,
    *,
    dedup: bool = True,
    exclude: Sequence[Moves] = (),
    optimal_required: bool = False,
) -> list[tuple[int, int, Moves, Verdict, bool]]:
    """Lists of moves with their characters, verdict and correctness, in order.

    Args:
        thinking: the text.
        puzzle: the instance that it is about.
        dedup: a list that was written before is left out.
        exclude: lists that are echoes of the prompt.
        optimal_required: as in `judge_moves`.
    """
    seen: set[str] = set()
    found = []
    for item in nested_lists(thinking):
        if item.moves in exclude:
            continue
        key = json.dumps(item.moves)
        if dedup and key in seen:
            continue
        seen.add(key)
        verdict = puzzle.replay(item.moves)
        correct = verdict.solved and (verdict.optimal or not optimal_required)
        found.append((item.start, item.end, item.moves, verdict, correct))
    return found


def analyse(
    thinking: str,
    puzzle: Puzzle,
    count: Count | None,
    *,
    position: Position = "end",
    dedup: bool = True,
    exclude: Sequence[Moves] = (),
    optimal_required: bool = False,
    summary: bool = False,
) -> Trace:
    """Analyse one trace: the thinking alone, without the answer.

    Args:
        thinking: the whole text between the thinking tags.
        puzzle: the instance.
        count: tokens of a text, usually `model.count`.
        position: "end" or "start" of a candidate.
        dedup, exclude, optimal_required: as in `find_candidates`.
        summary: the text is a provider's summary of hidden thinking.

    Raises:
        InputError: without a token count, for a summary, or an unknown position.
    """
    if summary:
        raise InputError(
            "a summary of hidden thinking is no trace: positions in it mean nothing; use a model "
            "that returns its thinking, or report the answers only"
        )
    if count is None:
        raise InputError("a trace needs a token count; give count=model.count or a tokenizer's")
    if position not in ("end", "start"):
        raise InputError(f"position={position!r}; choose 'end' or 'start'")
    total = count(thinking)
    if thinking.strip() and total < 1:
        raise InputError(f"count gives {total} tokens for a text of {len(thinking)} characters")
    candidates = []
    for start, end, moves, verdict, correct in find_candidates(
        thinking, puzzle, dedup=dedup, exclude=exclude, optimal_required=optimal_required
    ):
        at = count(thinking[: end if position == "end" else start]) / total
        candidates.append(Candidate(start, end, moves, verdict, correct, min(1.0, at)))
    return Trace(puzzle.n, total, tuple(candidates))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (None below two values) of n positions."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class TraceSummary:
    """All traces of one level.

    Args:
        n: the level.
        traces: how many.
        candidates: per trace, on average.
        correct_share: of candidates, None without any.
        correct, incorrect: their positions.
        first_correct: over traces that have one.
        bins: accuracy of the candidates whose position falls into each of the equal bins, None for
            an empty bin.
        first_failures: index of the first bad move: how many candidates.
        failure_share: index of the first bad move over the moves required, averaged.
    """

    n: int
    traces: int
    candidates: float
    correct_share: float | None
    correct: Spread | None
    incorrect: Spread | None
    first_correct: Spread | None
    bins: tuple[float | None, ...]
    first_failures: dict[int, int]
    failure_share: float | None


def summarise(traces: Iterable[Trace], *, bins: int = 10) -> list[TraceSummary]:
    """Per level, the figures of the module's text; never averaged over levels.

    Raises:
        InputError: for no traces or fewer than one bin.
    """
    if bins < 1:
        raise InputError(f"bins={bins}; give at least 1")
    levels: dict[int, list[Trace]] = {}
    for trace in traces:
        levels.setdefault(trace.n, []).append(trace)
    if not levels:
        raise InputError("no traces to summarise; give at least one")
    return [_level(n, levels[n], bins) for n in sorted(levels)]


def _level(n: int, traces: Sequence[Trace], bins: int) -> TraceSummary:
    every = [each for trace in traces for each in trace.candidates]
    cells: list[list[bool]] = [[] for _ in range(bins)]
    for each in every:
        cells[min(bins - 1, int(each.position * bins))].append(each.correct)
    failed = [each.verdict for each in every if each.verdict.first_bad_move is not None]
    firsts = [trace.first_correct for trace in traces if trace.first_correct is not None]
    shares = [
        (verdict.first_bad_move or 0) / verdict.min_moves for verdict in failed if verdict.min_moves
    ]
    return TraceSummary(
        n=n,
        traces=len(traces),
        candidates=len(every) / len(traces),
        correct_share=fmean(each.correct for each in every) if every else None,
        correct=Spread.of([each.position for each in every if each.correct]),
        incorrect=Spread.of([each.position for each in every if not each.correct]),
        first_correct=Spread.of(firsts),
        bins=tuple(fmean(cell) if cell else None for cell in cells),
        first_failures=dict(sorted(Counter(v.first_bad_move or 0 for v in failed).items())),
        failure_share=fmean(shares) if shares else None,
    )
