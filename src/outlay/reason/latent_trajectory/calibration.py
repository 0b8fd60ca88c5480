"""What is learned from labelled traces: signs, scales, weights and the threshold of acceptance.

Everything here reads calibration traces only. A signal's value is *oriented*: multiplied by a sign,
so that right traces are higher. The score of a trace is one oriented signal, or the weighted sum of
all three in units of their spread (the paper's LT-Combined).

Shapes: S traces, Q questions, R traces of a question, T thresholds.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from outlay.errors import InputError
from outlay.reason.latent_trajectory.signals import FloatArray
from outlay.reason.latent_trajectory.traces import Trace

Signal = Literal["net", "cumulative", "aligned", "combined", "length"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
LATENT = ("net", "cumulative", "aligned")
_OF_STATES = (*LATENT, "layer_mag", "layer_ang")
PAPER_SIGNS: Mapping[str, int] = {
    "net": 1,
    "cumulative": -1,
    "aligned": 1,
    "layer_ang": -1,
    "length": -1,
}


def raw(traces: Sequence[Trace], name: str) -> FloatArray:
    """(S,) values as they are: of a signal, "length" (thinking tokens), "logprob", or an extra.

    Raises:
        InputError: if a trace has no value of that name.
    """
    if name == "length":
        return np.array([trace.tokens for trace in traces], dtype=float)
    if name == "logprob":
        return np.array([trace.logprob for trace in traces], dtype=float)
    if name in _OF_STATES:
        return np.array([getattr(trace.signals, name) for trace in traces], dtype=float)
    try:
        return np.array([trace.extra[name] for trace in traces], dtype=float)
    except KeyError as error:
        raise InputError(f"a trace has no value {name!r}; collect it with look=") from error


def rights(traces: Sequence[Trace]) -> FloatArray:
    """(S,) 1 for right traces, 0 for wrong ones."""
    return np.array([trace.right for trace in traces], dtype=float)


@dataclass(frozen=True)
class Scale:
    """How one signal becomes an oriented value in units of its spread.

    Args:
        sign: +1 where right traces have higher values, else -1.
        slope, centre: of the regression on length that is taken out; 0 and 0 for none.
        mean, std: of the oriented values.
        weight: in the combined score; weights sum to 1.
    """

    sign: int
    slope: float
    centre: float
    mean: float
    std: float
    weight: float

    def oriented(self, value_S: FloatArray, tokens_S: FloatArray) -> FloatArray:
        """(S,) values for which higher is better."""
        return self.sign * (value_S - self.slope * (tokens_S - self.centre))


@dataclass(frozen=True)
class Weights:
    """A fitted acceptance rule.

    Args:
        signal: which score.
        scales: of the signals that it uses.
        threshold: a trace is accepted if its score reaches it.
        percentile: share of calibration scores below the threshold, for `transferred`.
        about: how it was fitted (JSON-ready).
    """

    signal: str
    scales: Mapping[str, Scale]
    threshold: float
    percentile: float
    about: Mapping[str, Any]

    def scores(self, traces: Sequence[Trace]) -> FloatArray:
        """(S,) scores; NaN for traces of fewer than two segments. Labels are not read."""
        tokens_S = raw(traces, "length")
        values = {
            name: scale.oriented(raw(traces, name), tokens_S) for name, scale in self.scales.items()
        }
        if self.signal != "combined":
            return values[self.signal]
        parts = [
            scale.weight * (values[name] - scale.mean) / scale.std
            for name, scale in self.scales.items()
        ]
        return np.asarray(np.sum(parts, axis=0))


def scales(
    traces: Sequence[Trace], signal: str, *, length_control: bool, learn_sign: bool
) -> dict[str, Scale]:
    """Signs, regressions, spreads and weights of the signals behind a score."""
    names = LATENT if signal == "combined" else (signal,)
    tokens_S, right_S = raw(traces, "length"), rights(traces)
    found: dict[str, Scale] = {}
    for name in names:
        value_S = raw(traces, name)
        known_S = np.isfinite(value_S)
        slope, centre = 0.0, 0.0
        if length_control and name != "length":
            slope, centre = _slope(tokens_S[known_S], value_S[known_S])
        rest_S = (value_S - slope * (tokens_S - centre))[known_S]
        related = _correlation(rest_S, right_S[known_S])
        sign = PAPER_SIGNS.get(name, 1)
        if learn_sign and related * sign < 0:
            sign = -sign
            warnings.warn(
                f"{name}: right traces have {'higher' if sign > 0 else 'lower'} values in the "
                "calibration data, the opposite of the paper; sign='paper' keeps the paper's",
                stacklevel=2,
            )
        spread = float(rest_S.std())
        found[name] = Scale(
            sign, slope, centre, float(sign * rest_S.mean()), spread or 1.0, abs(related)
        )
    total = sum(scale.weight for scale in found.values())
    return {
        name: Scale(
            s.sign, s.slope, s.centre, s.mean, s.std, s.weight / total if total else 1 / len(found)
        )
        for name, s in found.items()
    }


def _slope(x_S: FloatArray, y_S: FloatArray) -> tuple[float, float]:
    spread = float(((x_S - x_S.mean()) ** 2).sum())
    if not spread:
        return 0.0, float(x_S.mean())
    return float(((x_S - x_S.mean()) * (y_S - y_S.mean())).sum() / spread), float(x_S.mean())


def _correlation(x_S: FloatArray, y_S: FloatArray) -> float:
    if len(x_S) < 2 or not x_S.std() or not y_S.std():
        return 0.0
    return float(np.corrcoef(x_S, y_S)[0, 1])


def partial_correlation(x_S: FloatArray, y_S: FloatArray, control_S: FloatArray) -> float:
    """Pearson correlation of x and y once a linear effect of `control` is taken out of both."""
    rests = []
    for value_S in (x_S, y_S):
        slope, centre = _slope(control_S, value_S)
        rests.append(value_S - slope * (control_S - centre))
    return _correlation(*rests)


# -- replays --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """Traces by question, in the order in which they were drawn.

    Args:
        questions: ids, sorted.
        rows: per question the places of its traces in the given sequence.
        traces: as given.
    """

    questions: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    traces: Sequence[Trace]

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> Table:
        """Group traces by question.

        Raises:
            InputError: for no traces, or two traces of one question with the same index.
        """
        places: dict[str, list[int]] = {}
        for at, trace in enumerate(traces):
            places.setdefault(trace.question, []).append(at)
        if not places:
            raise InputError("no traces; draw some with collect()")
        for name, row in places.items():
            row.sort(key=lambda at: traces[at].index)
            if len({traces[at].index for at in row}) < len(row):
                raise InputError(f"question {name!r} has two traces with one index")
        names = tuple(sorted(places))
        return cls(names, tuple(tuple(places[name]) for name in names), traces)

    def first(self, R: int) -> Table:
        """The first R traces of every question."""
        return Table(self.questions, tuple(row[:R] for row in self.rows), self.traces)

    def voted(self) -> FloatArray:
        """(Q,) whether the majority's answer is right; ties go to the answer seen first."""
        return np.array([self.traces[self._winner(row)].right for row in self.rows], dtype=float)

    def _winner(self, row: Sequence[int]) -> int:
        counts: dict[str, int] = {}
        for at in row:
            answer = self.traces[at].answer
            if answer is not None:
                counts[answer] = counts.get(answer, 0) + 1
        if not counts:
            return row[0]
        best = max(counts, key=lambda answer: counts[answer])  # the earliest of equals
        return next(at for at in row if self.traces[at].answer == best)

    def tokens(self) -> FloatArray:
        """(Q,) thinking tokens of all traces."""
        return np.array([sum(self.traces[at].tokens for at in row) for row in self.rows], float)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a method would have done on stored traces.

    Args:
        right_Q: whether each question's answer is right.
        tokens_Q: thinking tokens that were sampled for it.
    """

    right_Q: FloatArray
    tokens_Q: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right_Q.mean())

    @property
    def tokens(self) -> float:
        """Mean thinking tokens of a question."""
        return float(self.tokens_Q.mean())


@dataclass(frozen=True, eq=False)
class Replay(Outcomes):
    """What a rule of acceptance would have done.

    Args:
        right_Q, tokens_Q: as in `Outcomes`.
        accepted_Q: traces drawn until one was accepted; 0 where none was.
    """

    accepted_Q: FloatArray


def replay(table: Table, score_S: FloatArray, threshold: float, wave: int = 1) -> Replay:
    """Sequential sampling on stored traces: the first that reaches the threshold, else a vote.

    A trace without an answer, or with a score of NaN, is never accepted. With `wave` > 1, whole
    waves are drawn and paid for.
    """
    return _replays(table, score_S, [threshold], wave)[0]


def _replays(
    table: Table, score_S: FloatArray, thresholds: Sequence[float], wave: int
) -> list[Replay]:
    widest = max(map(len, table.rows))
    shape = (len(table.rows), widest)
    score_QR, right_QR, tokens_QR = np.full(shape, np.nan), np.zeros(shape), np.zeros(shape)
    for q, row in enumerate(table.rows):
        for r, at in enumerate(row):
            trace = table.traces[at]
            right_QR[q, r], tokens_QR[q, r] = trace.right, trace.tokens
            if trace.answer is not None:
                score_QR[q, r] = score_S[at]
    voted_Q, spent_QR = table.voted(), tokens_QR.cumsum(axis=1)
    every = np.arange(len(table.rows))
    made = []
    for threshold in thresholds:
        pass_QR = score_QR >= threshold  # False for NaN
        any_Q, first_Q = pass_QR.any(axis=1), pass_QR.argmax(axis=1)
        last_Q = np.where(any_Q, np.minimum(first_Q // wave * wave + wave, widest) - 1, widest - 1)
        made.append(
            Replay(
                np.where(any_Q, right_QR[every, first_Q], voted_Q),
                spent_QR[every, last_Q],
                np.where(any_Q, first_Q + 1, 0),
            )
        )
    return made


# -- fitting --------------------------------------------------------------------------------------


def fit(
    traces: Sequence[Trace],
    signal: str,
    *,
    R: int,
    grid: tuple[float, float, float],
    top_k: int,
    min_incorrect: int,
    length_control: bool,
    learn_sign: bool,
) -> Weights:
    """Learn a score and its threshold from calibration traces.

    Args:
        traces: labelled, of calibration questions.
        signal: "combined", or whatever `raw` knows; so baselines go through the same procedure.
        R: traces of a question that count.
        grid: lowest and highest quantile of wrong traces' scores, and the step.
        top_k: best thresholds whose median is taken.
        min_incorrect: with fewer wrong traces the median score is taken.
        length_control: take the linear effect of length out of every signal.
        learn_sign: whether signs are learned.

    Raises:
        InputError: for traces of one class, or none with two segments.
    """
    table = Table.of(traces).first(R)
    # Sorted, so that the order in which questions were collected changes nothing.
    ordered = [traces[at] for row in table.rows for at in row]
    table = Table.of(ordered)
    right_S = rights(ordered)
    if right_S.min() == right_S.max():
        raise InputError(
            f"all {len(ordered)} calibration traces are {'right' if right_S[0] else 'wrong'}; a "
            "threshold needs both kinds: give more questions, or harder and easier ones"
        )
    names = LATENT if signal == "combined" else (signal,)
    if not all(np.isfinite(raw(ordered, name)).any() for name in names):
        longest = max(trace.tokens for trace in ordered)
        raise InputError(
            f"no calibration trace has two segments (the longest has {longest} tokens); lower k"
        )
    made = scales(ordered, signal, length_control=length_control, learn_sign=learn_sign)
    score_S = Weights(signal, made, math.nan, math.nan, {}).scores(ordered)
    known_S = np.isfinite(score_S)
    wrong_S = known_S & (right_S == 0)
    about: dict[str, Any] = {
        "questions": len(table.questions),
        "traces": len(ordered),
        "wrong": int(wrong_S.sum()),
    }
    if wrong_S.sum() < min_incorrect:
        threshold = float(np.median(score_S[known_S]))
        about["rule"] = f"median: fewer than {min_incorrect} wrong traces"
    else:
        cuts = np.quantile(score_S[wrong_S], quantiles(grid))
        tried = _replays(table, score_S, list(cuts), 1)
        # Of equally accurate thresholds, those that cost less.
        best = sorted(range(len(cuts)), key=lambda t: (-tried[t].accuracy, tried[t].tokens, t))
        threshold = float(np.median(cuts[best[:top_k]]))
        about["rule"] = f"median of the best {min(top_k, len(cuts))} of {len(cuts)}"
    below = float((score_S[known_S] < threshold).mean())
    return Weights(signal, made, threshold, below, about)


def quantiles(grid: tuple[float, float, float]) -> FloatArray:
    """The quantiles from grid[0] to grid[1] (both included) in steps of grid[2]."""
    low, high, step = grid
    # Counted in whole steps: sums of 0.01 would miss or repeat an end.
    return np.minimum(low + step * np.arange(round((high - low) / step) + 1), high)


def check_grid(grid: tuple[float, float, float]) -> None:
    """Raise `InputError` unless 0 <= low <= high <= 1 and 0.001 <= step."""
    low, high, step = grid
    if not (0 <= low <= high <= 1 and 0.001 <= step <= 1):
        raise InputError(f"grid={grid}; need 0 <= low <= high <= 1 and a step from 0.001 to 1")


def transferred(weights: Weights, traces: Sequence[Trace]) -> Weights:
    """The rule with its threshold at the same percentile of other data's scores; no labels needed.

    Raises:
        InputError: if no trace has a score.
    """
    score_S = weights.scores(traces)
    known_S = score_S[np.isfinite(score_S)]
    if not len(known_S):
        raise InputError("no trace of the target data has two segments; lower k")
    moved = float(np.quantile(known_S, weights.percentile))
    about = {**weights.about, "rule": f"percentile {weights.percentile:.4f} of other data"}
    return Weights(weights.signal, weights.scales, moved, weights.percentile, about)


def split(
    traces: Sequence[Trace], calib_fraction: float = 0.3, seed: int = 42
) -> tuple[list[Trace], list[Trace]]:
    """Calibration and evaluation traces; a question's traces stay together.

    Args:
        traces: of many questions.
        calib_fraction: share of the questions that calibrates.
        seed: of the shuffle.

    Raises:
        InputError: if either side would have no question.
    """
    names = sorted({trace.question for trace in traces})
    random.Random(seed).shuffle(names)
    count = round(len(names) * calib_fraction)
    if not 0 < count < len(names):
        raise InputError(
            f"calib_fraction={calib_fraction} of {len(names)} questions leaves one side empty"
        )
    chosen = {*names[:count]}
    one = [trace for trace in traces if trace.question in chosen]
    return one, [trace for trace in traces if trace.question not in chosen]


def check_apart(calibration: Sequence[Trace], evaluation: Sequence[Trace]) -> None:
    """Raise `InputError` if a question calibrates and is evaluated."""
    shared = {trace.question for trace in calibration} & {trace.question for trace in evaluation}
    if shared:
        raise InputError(
            f"{len(shared)} questions calibrate and are evaluated ({min(shared)!r}, ...); "
            "split by question, as split() does"
        )
