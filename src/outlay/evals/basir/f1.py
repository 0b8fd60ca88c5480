"""F1 of several labels per text, as scikit-learn defines it with `zero_division=0`.

Micro-F1 hides labels that are never found, so a report also says macro-F1 over all labels and how
many labels were never predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.evals.basir.labels import BoolArray, LabelSet

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelScore:
    """One label: precision, recall, F1, and how often it is true and predicted."""

    id: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class F1Report:
    """The headline is `micro`; never read it without `macro` and `never_predicted`.

    Args:
        micro, macro, weighted, samples: averages of F1.
        never_predicted: labels that are true somewhere and predicted nowhere.
        per_label: in label order.
        rows: texts judged.
    """

    micro: float
    macro: float
    weighted: float
    samples: float
    never_predicted: int
    per_label: tuple[LabelScore, ...]
    rows: int

    def to_dict(self, *, labels: bool = True) -> dict[str, Any]:
        """A JSON-ready form, with or without the table of labels."""
        data: dict[str, Any] = {
            "micro": self.micro,
            "macro": self.macro,
            "weighted": self.weighted,
            "samples": self.samples,
            "never_predicted": self.never_predicted,
            "rows": self.rows,
        }
        if labels:
            data["per_label"] = [vars(score) for score in self.per_label]
        return data


def f1(hits: npt.ArrayLike, true: npt.ArrayLike, predicted: npt.ArrayLike) -> FloatArray:
    """`2 hits / (true + predicted)` elementwise, 0 where nothing is true or predicted."""
    both = np.asarray(true, dtype=float) + np.asarray(predicted, dtype=float)
    return 2.0 * np.asarray(hits, dtype=float) / np.where(both > 0, both, 1.0)


def f1_report(
    truth_NL: BoolArray, predicted_NL: BoolArray, labels: LabelSet | Sequence[str]
) -> F1Report:
    """All averages of F1 over N texts and L labels.

    Raises:
        InputError: for shapes that differ or no text.
    """
    truth, predicted = np.asarray(truth_NL, dtype=bool), np.asarray(predicted_NL, dtype=bool)
    ids = labels.ids if isinstance(labels, LabelSet) else tuple(labels)
    if truth.shape != predicted.shape or truth.ndim != 2 or truth.shape[1] != len(ids):
        raise InputError(
            f"truth has shape {truth.shape}, predictions {predicted.shape}, for {len(ids)} labels; "
            "all must be (texts, labels)"
        )
    if not len(truth):
        raise InputError("no text to judge; give at least one")
    hits = truth & predicted
    hit_L, true_L, said_L = (m.sum(axis=0) for m in (hits, truth, predicted))
    f1_L = f1(hit_L, true_L, said_L)
    support = int(true_L.sum())
    table = tuple(
        LabelScore(
            name,
            float(hit_L[i] / said_L[i]) if said_L[i] else 0.0,
            float(hit_L[i] / true_L[i]) if true_L[i] else 0.0,
            float(f1_L[i]),
            int(true_L[i]),
            int(said_L[i]),
        )
        for i, name in enumerate(ids)
    )
    return F1Report(
        micro=float(f1(hit_L.sum(), true_L.sum(), said_L.sum())),
        macro=float(f1_L.mean()),
        weighted=float(f1_L @ true_L / support) if support else 0.0,
        samples=float(samples_f1(truth, predicted).mean()),
        never_predicted=int(((said_L == 0) & (true_L > 0)).sum()),
        per_label=table,
        rows=len(truth),
    )


def samples_f1(truth_NL: BoolArray, predicted_NL: BoolArray) -> FloatArray:
    """F1 of every text."""
    return f1((truth_NL & predicted_NL).sum(axis=1), truth_NL.sum(axis=1), predicted_NL.sum(axis=1))
