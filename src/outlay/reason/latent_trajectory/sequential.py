"""Sequential sampling by latent-trajectory signals: stop as soon as a trace looks right.

"Tracing the Traces: Latent Temporal Signals for Efficient and Accurate Reasoning", arXiv 2510.10494
(section 5). A trace is drawn, and the movement of its hidden states is scored; if the score reaches
a threshold, its answer is the answer, else the next trace is drawn. After R traces without
acceptance they vote. Score and threshold are learned from labelled traces of other questions.

Differences from the paper:
- The fallback is a vote by answers. The published notebooks count a question as right where more
  than half of the traces are right, which is a weaker baseline.
- Signs, z-scores, weights and threshold come from calibration questions alone; the notebooks fit
  some of them on all rows.
- All signals are oriented first (right traces high), so the grid of thresholds is equally strict
  for each; the paper takes the same quantiles for the cumulative change, whose sign is negative.
- Of equally accurate thresholds the cheaper are taken; a trace without an answer is never accepted.
- Drawing in waves, length control, `unit_rms` and learned signs are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from outlay.errors import BudgetError, InputError, ModelError
from outlay.models.base import Branch, Trail
from outlay.reason.base import Open, Session, Strategy
from outlay.reason.latent_trajectory.calibration import (
    SIGNALS,
    Replay,
    Scale,
    Signal,
    Table,
    Weights,
    check_apart,
    check_grid,
    fit,
    replay,
    transferred,
)
from outlay.reason.latent_trajectory.signals import Normalise, normalised
from outlay.reason.latent_trajectory.store import Store
from outlay.reason.latent_trajectory.traces import (
    Drawn,
    Layers,
    Trace,
    closing,
    draw,
    finish,
    latent,
    read,
    read_signals,
    voted,
)
from outlay.reason.voting import Solving, answer_of
from outlay.worst import Shape, Worst

_STORE = Store("sequential", ("k", "layers", "signal", "normalise", "think_close"))
_SCALE = ("sign", "slope", "centre", "mean", "std", "weight")


@dataclass(frozen=True)
class LTSequential(Solving):
    """Draws traces one after the other until one looks right; a vote where none does.

    Args:
        k: tokens of a segment; a trace needs two segments to be accepted.
        layers: numbers of the decoder layers that are read, or "all", or "last_third".
        signal: "net", "cumulative", "aligned", "combined"; "length" is the baseline that accepts
            by the number of thinking tokens.
        R: most traces.
        wave: traces drawn at a time; more is faster and may draw some in vain.
        grid: lowest and highest quantile of wrong traces' scores tried as threshold, and the step.
        top_k: the threshold is the median of this many best ones.
        min_incorrect: with fewer wrong traces the threshold is the median score.
        sign: "learned" on calibration data, with a warning where it differs from the paper's;
            "paper" takes the paper's.
        length_control: take the linear effect of length out of every signal.
        normalise: "unit_rms" divides every layer by the RMS of its first segment.
        think_close: end-of-think marker; None detects it, "" takes all for thinking.
        saved: folder of a fitted method; k, layers, signal, normalise and think_close come from it.
        weights: a fit; made by `fit`.

    Raises:
        InputError: for knobs out of range.
        ModelError: for a folder without a fitted method.
    """

    k: int = 500
    layers: Layers = "all"
    signal: Signal = "combined"
    R: int = 5
    wave: int = 1
    grid: tuple[float, float, float] = (0.2, 0.99, 0.01)
    top_k: int = 2
    min_incorrect: int = 15
    sign: Literal["learned", "paper"] = "learned"
    length_control: bool = False
    normalise: Normalise = "none"
    think_close: str | None = None
    saved: str = ""
    weights: Weights | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.saved and self.weights is None:
            self._load()
        Trail(self.k, self.layers)
        normalised(np.zeros((1, 1, 1)), self.normalise)
        if self.signal not in SIGNALS:
            raise InputError(f"signal={self.signal!r}; choose one of {', '.join(SIGNALS)}")
        if self.R < 2:
            raise InputError(f"R={self.R}; sequential sampling needs at least 2 traces")
        if self.wave < 1 or self.top_k < 1 or self.min_incorrect < 1:
            raise InputError(
                f"wave={self.wave}, top_k={self.top_k}, min_incorrect={self.min_incorrect}; "
                "all must be at least 1"
            )
        if self.sign not in ("learned", "paper"):
            raise InputError(f"sign={self.sign!r}; choose learned or paper")
        check_grid(self.grid)

    # -- what it can cost -------------------------------------------------------------------------

    def needs(self) -> tuple[str, ...]:
        """Hidden states: a model in this process."""
        return ("hidden_states",)

    def worst(self, shape: Shape) -> Worst:
        """All R traces."""
        return Worst(shape.prompt, shape.answer, 1) * self.R

    # -- fitting ----------------------------------------------------------------------------------

    def fit(self, traces: Sequence[Trace]) -> LTSequential:
        """This method with score and threshold learned from labelled traces (see `collect`).

        Raises:
            InputError: for traces of one class, or of fewer than two segments.
        """
        weights = fit(
            traces,
            self.signal,
            R=self.R,
            grid=self.grid,
            top_k=self.top_k,
            min_incorrect=self.min_incorrect,
            length_control=self.length_control,
            learn_sign=self.sign == "learned",
        )
        return replace(self, weights=weights)

    def transfer(self, traces: Sequence[Trace]) -> LTSequential:
        """The threshold moved to the same percentile on other data, whose labels are not read."""
        return replace(self, weights=transferred(self.fitted(), traces))

    def replay(self, traces: Sequence[Trace], calibration: Sequence[Trace] = ()) -> Replay:
        """What this method would have done on stored traces.

        Args:
            traces: of evaluation questions.
            calibration: what it was fitted on, to check that no question is in both.

        Raises:
            InputError: if a question is in both.
        """
        check_apart(calibration, traces)
        weights = self.fitted()
        table = Table.of(traces).first(self.R)
        return replay(table, weights.scores(traces), weights.threshold, self.wave)

    def fitted(self) -> Weights:
        """The fit.

        Raises:
            InputError: if there is none.
        """
        if self.weights is None:
            raise InputError(
                "latent-trajectory is not fitted; call fit(traces) with labelled traces, or give "
                "saved=, a folder that save() wrote"
            )
        return self.weights

    def save(self, folder: str | Path) -> Path:
        """Write the fitted method (safetensors and JSON); returns the folder."""
        weights = self.fitted()
        names = list(weights.scales)  # in order: sums of floats depend on it
        table = [[float(asdict(weights.scales[n])[part]) for part in _SCALE] for n in names]
        record = {"scales": names, "about": dict(weights.about)}
        numbers = {
            "scales": np.array(table, dtype=np.float64),
            "rule": np.array([weights.threshold, weights.percentile], dtype=np.float64),
        }
        return _STORE.write(folder, self, record, numbers)

    def _load(self) -> None:
        record, numbers = _STORE.restore(self)
        try:
            rows = zip(record["scales"], numbers["scales"].tolist(), strict=True)
            made = {
                name: Scale(int(row[0]), *row[1:])
                for name, row in rows
                if len(row) == len(_SCALE) and np.isfinite(row).all()
            }
            if set(made) != set(record["scales"]):
                raise ValueError("scales are not finite")
            threshold, percentile = numbers["rule"].tolist()
            found = Weights(self.signal, made, threshold, percentile, record["about"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"saved={self.saved!r} cannot be read ({error}); fit again") from error
        object.__setattr__(self, "weights", found)

    # -- answering --------------------------------------------------------------------------------

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        weights = self.fitted()
        latent(session.model)
        close = closing(session.model, self.think_close)
        trail = Trail(self.k, self.layers)
        root = yield Open()
        drawn: list[Drawn] = []
        scores: list[float] = []
        try:
            while len(drawn) < self.R:
                numbers = range(len(drawn), min(self.R, len(drawn) + self.wave))
                fresh = yield from draw(session, root, numbers, trail, close)
                fresh = read(session, fresh)
                made = weights.scores([_unlabelled(each, self.normalise) for each in fresh])
                scores += map(float, made)
                for at, score in enumerate(made):
                    if score >= weights.threshold:  # False for NaN
                        [fresh[at]] = yield from finish(session, [fresh[at]], close)
                        end = fresh[at].end
                        if end is not None and session.question.answer(end.completion()):
                            whole = drawn + fresh
                            return answer_of(
                                session,
                                end,
                                _ends(whole),
                                status="accepted",
                                detail=_detail(whole, scores, len(drawn) + at + 1),
                            )
                drawn += fresh
            drawn = yield from finish(session, drawn, close)
        except BudgetError:
            if not drawn:
                return answer_of(session, None, (), status="budget")
        return voted(session, drawn, _detail(drawn, scores, 0))


def _ends(drawn: Sequence[Drawn]) -> list[Branch]:
    return [each.end or each.thought for each in drawn]


def _detail(drawn: Sequence[Drawn], scores: Sequence[float], accepted: int) -> dict[str, object]:
    shown = [score if np.isfinite(score) else None for score in scores]
    return {
        "accepted": accepted,
        "latent_scores": shown,
        "thinking": [each.tokens for each in drawn],
    }


def _unlabelled(drawn: Drawn, normalise: Normalise) -> Trace:
    return Trace("", 0, False, None, drawn.tokens, read_signals(drawn, normalise))
