"""Early path selection: start R traces, look at K segments of each, finish only the best one.

"Tracing the Traces: Latent Temporal Signals for Efficient and Accurate Reasoning", arXiv 2510.10494
(section 6). Net and cumulative change after K segments are the features of a small classifier that
was trained on labelled traces of other questions.

Differences from the paper:
- After K segments there are K - 1 steps; the paper's net(K) compares segment K + 1 with the first,
  which needs another k tokens of every trace. Here nothing beyond K * k tokens is read.
- The classifier is stored as its training features and fitted again when it is loaded, with a fixed
  seed: no pickle. Another version of scikit-learn may grow other trees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from outlay.errors import BudgetError, InputError, ModelError
from outlay.models.base import Trail
from outlay.reason.base import Open, Session, Strategy
from outlay.reason.latent_trajectory.calibration import Outcomes, Table, check_apart, rights
from outlay.reason.latent_trajectory.signals import FloatArray, Normalise, Signals, normalised
from outlay.reason.latent_trajectory.store import Store
from outlay.reason.latent_trajectory.traces import (
    Drawn,
    Layers,
    Trace,
    closing,
    draw,
    finish,
    go_on,
    latent,
    read,
    read_signals,
)
from outlay.reason.voting import Solving, answer_of
from outlay.stats import auc

ClassifierName = Literal["rf", "logistic", "svm", "tree"]
_STORE = Store("early", ("k", "layers", "K", "classifier", "seed", "normalise", "think_close"))


def features(signals: Signals, K: int) -> tuple[float, float]:
    """Net and cumulative change within the first K segments; NaN for fewer than two."""
    at = min(K - 1, len(signals.net_K)) - 1
    if at < 0:
        return math.nan, math.nan
    return signals.net_K[at], signals.cumulative_K[at]


@dataclass(frozen=True, eq=False)
class Selector:
    """A classifier of traces, given by what it is trained on.

    Args:
        classifier: which one.
        seed: of the forest and the trees.
        features_S2: (S, 2) net and cumulative change of calibration traces.
        right_S: (S,) their labels.
        about: how it was made (JSON-ready).
    """

    classifier: ClassifierName
    seed: int
    features_S2: FloatArray
    right_S: FloatArray
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _model(self) -> Any:
        return trained(self.classifier, self.seed, self.features_S2, self.right_S)

    def chances(self, features_S2: FloatArray) -> FloatArray:
        """(S,) predicted chances of being right; -inf for traces of fewer than two segments."""
        known_S = np.isfinite(features_S2).all(axis=1)
        chance_S = np.full(len(features_S2), -np.inf)
        if known_S.any():
            chance_S[known_S] = self._model.predict_proba(features_S2[known_S])[:, 1]
        return chance_S


def trained(name: ClassifierName, seed: int, features_S2: FloatArray, right_S: FloatArray) -> Any:
    """A scikit-learn classifier trained on these traces."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    if name == "rf":
        model = RandomForestClassifier(n_estimators=200, random_state=seed)
    elif name == "tree":
        model = DecisionTreeClassifier(max_depth=4, random_state=seed)
    elif name == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression())
    else:
        model = _Margin(make_pipeline(StandardScaler(), SVC()))
    return model.fit(features_S2, right_S)


class _Margin:
    """An SVM whose chance is a fixed squashing of its margin: only the order matters here."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine

    def fit(self, x_S2: FloatArray, y_S: FloatArray) -> _Margin:
        self.machine.fit(x_S2, y_S)
        return self

    def predict_proba(self, x_S2: FloatArray) -> FloatArray:
        right_S = 0.5 * (1 + np.tanh(self.machine.decision_function(x_S2) / 2))
        return np.stack([1 - right_S, right_S], axis=1)


@dataclass(frozen=True, eq=False)
class Selection(Outcomes):
    """What early selection would have done.

    Args:
        right_Q: whether the chosen trace is right.
        tokens_Q: thinking tokens sampled: the chosen trace whole, the others up to the cut.
        total_Q: thinking tokens of all traces.
        chosen_Q: place of the chosen trace among its question's.
    """

    total_Q: FloatArray
    chosen_Q: FloatArray

    @property
    def saved(self) -> float:
        """Share of all traces' tokens that were not sampled."""
        return float(1 - self.tokens_Q.sum() / self.total_Q.sum())


def choose(table: Table, score_S: FloatArray, cut: int) -> Selection:
    """Finish each question's trace of the highest score; the others end after `cut` tokens."""
    right, tokens, total, chosen = [], [], [], []
    for row in table.rows:
        best = max(range(len(row)), key=lambda r: (score_S[row[r]], -r))
        lengths = [table.traces[at].tokens for at in row]
        others = sum(min(n, cut) for r, n in enumerate(lengths) if r != best)
        right.append(table.traces[row[best]].right)
        tokens.append(lengths[best] + others)
        total.append(sum(lengths))
        chosen.append(best)
    return Selection(*(np.array(column, dtype=float) for column in (right, tokens, total, chosen)))


@dataclass(frozen=True)
class LTEarly(Solving):
    """Starts R traces, and finishes the one that looks best after K segments.

    Args:
        k: tokens of a segment.
        layers: numbers of the decoder layers that are read, or "all", or "last_third".
        K: segments after which is chosen.
        R: traces started.
        classifier: "rf" (200 trees), "logistic", "svm" or "tree".
        folds: of the cross-validation by question that `fit` reports.
        seed: of the classifier.
        normalise: "unit_rms" divides every layer by the RMS of its first segment.
        think_close: end-of-think marker; None detects it, "" takes all for thinking.
        saved: folder of a fitted method; all knobs but R and folds come from it.
        selector: a fit; made by `fit`.

    Raises:
        InputError: for knobs out of range.
        ModelError: for a folder without a fitted method.
    """

    k: int = 500
    layers: Layers = "all"
    K: int = 4
    R: int = 5
    classifier: ClassifierName = "rf"
    folds: int = 3
    seed: int = 42
    normalise: Normalise = "none"
    think_close: str | None = None
    saved: str = ""
    selector: Selector | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.saved and self.selector is None:
            self._load()
        Trail(self.k, self.layers)
        normalised(np.zeros((1, 1, 1)), self.normalise)
        if self.K < 2:
            raise InputError(f"K={self.K}; movement shows after 2 segments at the earliest")
        if self.R < 2:
            raise InputError(f"R={self.R}; selection needs at least 2 traces")
        if self.folds < 2:
            raise InputError(f"folds={self.folds}; at least 2")
        if self.classifier not in get_args(ClassifierName):
            raise InputError(f"classifier={self.classifier!r}; choose rf, logistic, svm or tree")

    # -- fitting ----------------------------------------------------------------------------------

    def features(self, traces: Sequence[Trace]) -> FloatArray:
        """(S, 2) features; only the first K segments count, and labels are not read."""
        return np.array([features(trace.signals, self.K) for trace in traces]).reshape(-1, 2)

    def fit(self, traces: Sequence[Trace]) -> LTEarly:
        """This method with a classifier trained on labelled traces (see `collect`).

        Raises:
            InputError: for traces of one class or of fewer than two segments, or fewer questions
                than folds.
        """
        from sklearn.model_selection import GroupKFold

        table = Table.of(traces)
        ordered = [traces[at] for row in table.rows for at in row]
        feature_S2 = self.features(ordered)
        known_S = np.isfinite(feature_S2).all(axis=1)
        if not known_S.any():
            raise InputError("no calibration trace has two segments; lower k")
        x_S2, y_S = feature_S2[known_S], rights(ordered)[known_S]
        groups = [ordered[at].question for at in np.flatnonzero(known_S)]
        if y_S.min() == y_S.max():
            raise InputError(
                f"all {len(y_S)} calibration traces are {'right' if y_S[0] else 'wrong'}; a "
                "classifier needs both kinds"
            )
        if len({*groups}) < self.folds:
            raise InputError(
                f"{len({*groups})} calibration questions for folds={self.folds}; give more "
                "questions, or fewer folds"
            )
        held_S = np.full(len(y_S), np.nan)
        for train, test in GroupKFold(self.folds).split(x_S2, y_S, groups):
            if y_S[train].min() < y_S[train].max():
                part = Selector(self.classifier, self.seed, x_S2[train], y_S[train])
                held_S[test] = part.chances(x_S2[test])
        found = auc(held_S, y_S), auc(held_S, y_S, groups)
        shown = [None if math.isnan(value) else value for value in found]
        about = {
            "questions": len({*groups}),
            "traces": len(y_S),
            "cross_validated_auc": shown[0],
            "cross_validated_auc_within": shown[1],
        }
        return replace(self, selector=Selector(self.classifier, self.seed, x_S2, y_S, about))

    def fitted(self) -> Selector:
        """The fit.

        Raises:
            InputError: if there is none.
        """
        if self.selector is None:
            raise InputError(
                "latent-trajectory/early is not fitted; call fit(traces) with labelled traces, or "
                "give saved=, a folder that save() wrote"
            )
        return self.selector

    def replay(self, traces: Sequence[Trace], calibration: Sequence[Trace] = ()) -> Selection:
        """What this method would have done on stored traces.

        Args:
            traces: of evaluation questions.
            calibration: what it was fitted on, to check that no question is in both.

        Raises:
            InputError: if a question is in both.
        """
        check_apart(calibration, traces)
        chance_S = self.fitted().chances(self.features(traces))
        return choose(Table.of(traces).first(self.R), chance_S, self.K * self.k)

    def save(self, folder: str | Path) -> Path:
        """Write the fitted method (safetensors and JSON); returns the folder."""
        fitted = self.fitted()
        numbers = {"features": fitted.features_S2, "right": fitted.right_S}
        return _STORE.write(folder, self, {"about": dict(fitted.about)}, numbers)

    def _load(self) -> None:
        record, numbers = _STORE.restore(self)
        x_S2, y_S = numbers.get("features"), numbers.get("right")
        usable = (
            x_S2 is not None
            and y_S is not None
            and x_S2.shape == (len(y_S), 2)
            and np.isfinite(x_S2).all()
            and {*np.unique(y_S)} == {0.0, 1.0}
        )
        if not usable or x_S2 is None or y_S is None:
            raise ModelError(f"saved={self.saved!r} holds no usable features; fit again")
        found = Selector(self.classifier, self.seed, x_S2, y_S, record.get("about", {}))
        object.__setattr__(self, "selector", found)

    # -- answering --------------------------------------------------------------------------------

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        selector = self.fitted()
        latent(session.model)
        close = closing(session.model, self.think_close)
        root = yield Open()
        trail = Trail(self.k, self.layers)
        try:
            drawn = yield from draw(session, root, range(self.R), trail, close, self.K * self.k)
        except BudgetError:
            return answer_of(session, None, (), status="budget")
        drawn = read(session, drawn)
        found = [features(read_signals(each, self.normalise), self.K) for each in drawn]
        chance_R = selector.chances(np.array(found))
        best = max(range(self.R), key=lambda r: (chance_R[r], -r))
        chosen: Drawn = drawn[best]
        try:
            [chosen] = yield from go_on(session, [chosen], close)
            [chosen] = yield from finish(session, [chosen], close)
        except BudgetError:
            pass  # its answer is what it has
        end = chosen.end or chosen.thought
        ends = [end if r == best else each.thought for r, each in enumerate(drawn)]
        known = [float(c) if np.isfinite(c) else None for c in chance_R]
        detail = {"chosen": best, "chances": known, "started": [each.tokens for each in drawn]}
        return answer_of(session, end, ends, status="selected", detail=detail)


def leave_one_out(
    method: LTEarly, sets: Mapping[str, Sequence[Trace]]
) -> dict[str, tuple[LTEarly, Selection]]:
    """Per data set: the method fitted on all the others, and what it does on this one.

    Raises:
        InputError: for fewer than two data sets, or question ids that two of them share.
    """
    if len(sets) < 2:
        raise InputError("leaving one data set out needs at least 2")
    made = {}
    for name, held in sets.items():
        rest = [trace for other, traces in sets.items() if other != name for trace in traces]
        fitted = method.fit(rest)
        made[name] = (fitted, fitted.replay(held, rest))
    return made
