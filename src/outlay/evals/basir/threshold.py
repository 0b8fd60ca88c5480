"""From scores to decisions: a threshold tuned on validation data, never on the test.

One global threshold maximises micro-F1 over the midpoints of the observed scores (and one value
beyond either end); of equal ones the lowest is taken. A label may have its own, drawn towards the
global one where it has few positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.evals.basir.f1 import f1
from outlay.evals.basir.labels import BoolArray

FloatArray = npt.NDArray[np.float64]

FULL_TRUST = 10
"""Positives from which on a label's own threshold is used as it is."""


@dataclass(frozen=True)
class Thresholds:
    """A decision rule.

    Args:
        values: (L,) a label is chosen where its score is above its value.
        min_one: choose at least the label with the highest score.
    """

    values: FloatArray
    min_one: bool = False

    def decide(self, scores_NL: FloatArray) -> BoolArray:
        """(N, L) decisions.

        Raises:
            InputError: if there is not one threshold per column.
        """
        if scores_NL.ndim != 2 or scores_NL.shape[1] != len(self.values):
            raise InputError(
                f"scores of shape {scores_NL.shape} for {len(self.values)} thresholds; the route "
                "and the label file do not belong together"
            )
        return np.asarray(_raise_top(scores_NL, self.min_one) > self.values)


def _raise_top(scores_NL: FloatArray, min_one: bool) -> FloatArray:
    """With `min_one`, a copy whose highest score per row is infinite, so that it is chosen."""
    if not min_one or not scores_NL.size:
        return scores_NL
    raised_NL = scores_NL.copy()
    raised_NL[np.arange(len(raised_NL)), raised_NL.argmax(axis=1)] = np.inf
    return raised_NL


def grid(scores: npt.ArrayLike) -> FloatArray:
    """Candidates in ascending order: midpoints of the finite scores and one beyond either end."""
    flat = np.asarray(scores, dtype=float).ravel()
    values = np.unique(flat[np.isfinite(flat)])
    if not len(values):
        return np.zeros(1)
    middle = values[:-1] + (values[1:] - values[:-1]) / 2
    return np.concatenate(
        [[np.nextafter(values[0], -np.inf)], middle, [np.nextafter(values[-1], np.inf)]]
    )


def best_threshold(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """The lowest of the candidates with the highest F1 over all given (score, truth) pairs.

    Raises:
        InputError: for NaN scores or shapes that differ.
    """
    flat, true = np.asarray(scores, dtype=float).ravel(), np.asarray(truth, dtype=bool).ravel()
    if flat.shape != true.shape:
        raise InputError(f"{len(flat)} scores for {len(true)} decisions; give one per decision")
    if np.isnan(flat).any():
        raise InputError("a score is NaN; the route is broken")
    candidates_T = grid(flat)
    order = np.argsort(flat, kind="stable")
    above_T = len(flat) - np.searchsorted(flat[order], candidates_T, side="right")
    hits_from = np.concatenate([np.cumsum(true[order][::-1])[::-1], [0]])
    hits_T = hits_from[len(flat) - above_T]
    f1_T = f1(hits_T, np.full(len(candidates_T), true.sum()), above_T)
    return float(candidates_T[int(f1_T.argmax())])


def tune(
    scores_NL: FloatArray, truth_NL: BoolArray, *, per_label: bool = False, min_one: bool = False
) -> Thresholds:
    """Thresholds that maximise micro-F1 on validation data.

    Args:
        scores_NL: validation scores; -inf for labels that the route cannot predict.
        truth_NL: validation truth.
        per_label: tune every label for its own F1; with n < `FULL_TRUST` positives the value is
            `n / FULL_TRUST` of the way from the global threshold to the label's own.
        min_one: the rule will choose at least the top label; the tuning knows it.

    Raises:
        InputError: for no validation rows or shapes that differ.
    """
    if scores_NL.shape != truth_NL.shape or scores_NL.ndim != 2 or not scores_NL.size:
        raise InputError(
            f"validation scores have shape {scores_NL.shape}, the truth {truth_NL.shape}; both "
            "need (texts, labels) with at least one text"
        )
    scores_NL = _raise_top(np.asarray(scores_NL, dtype=float), min_one)
    common = best_threshold(scores_NL, truth_NL)
    values_L = np.full(scores_NL.shape[1], common)
    if per_label:
        for label in range(scores_NL.shape[1]):
            positives = int(truth_NL[:, label].sum())
            if positives and np.isfinite(scores_NL[:, label]).any():
                own = best_threshold(scores_NL[:, label], truth_NL[:, label])
                trust = min(1.0, positives / FULL_TRUST)
                values_L[label] = common + trust * (own - common)
    return Thresholds(values_L, min_one)


def fixed(value: float, labels: int | Sequence[object], *, min_one: bool = False) -> Thresholds:
    """The same given threshold for every label."""
    size = labels if isinstance(labels, int) else len(labels)
    if not np.isfinite(value):
        raise InputError(f"threshold={value}; give a finite number or 'auto'")
    return Thresholds(np.full(size, float(value)), min_one)
