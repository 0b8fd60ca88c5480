"""One-vs-rest logistic regression as plain arrays, so that it is saved without pickle."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outlay.errors import InputError
from outlay.evals.basir.base import FloatArray, missing
from outlay.evals.basir.labels import BoolArray

FILE = "head.safetensors"
_SURE = 20.0  # the logit of a label that every training text has


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A logistic regression per label.

    Args:
        weights_LD: coefficients.
        bias_L: intercepts; -inf for labels that had no positive text.
    """

    weights_LD: FloatArray
    bias_L: FloatArray

    def scores(self, features_ND: Any) -> FloatArray:
        """(N, L) logits of dense or sparse features.

        Raises:
            InputError: if the features have another dimension than the weights.
        """
        if features_ND.shape[1] != self.weights_LD.shape[1]:
            raise InputError(
                f"features of dimension {features_ND.shape[1]} for weights of dimension "
                f"{self.weights_LD.shape[1]}; the head belongs to another encoder"
            )
        return np.asarray(features_ND @ self.weights_LD.T) + self.bias_L

    def save(self, folder: Path, **more: FloatArray) -> None:
        """Write the arrays (and `more` beside them) to `folder`."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights_LD, "bias": self.bias_L, **more}, folder / FILE)


def load_arrays(folder: Path) -> dict[str, FloatArray]:
    """What `LinearHead.save` wrote.

    Raises:
        InputError: if the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, FloatArray] = load_file(folder / FILE)
        if {"weights", "bias"} <= set(arrays):
            return arrays
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / FILE} cannot be read ({error}); train again") from error
    raise InputError(f"{folder / FILE} holds no linear head; train again")


def fit_head(
    features_ND: Any,
    truth_NL: BoolArray,
    *,
    c: float,
    solver: Literal["liblinear", "lbfgs"],
    seed: int,
) -> LinearHead:
    """Balanced logistic regressions through scikit-learn's `OneVsRestClassifier`.

    Raises:
        DependencyError: if scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
    except ImportError as error:
        raise missing("scikit-learn", error) from error
    count_L = truth_NL.sum(axis=0)
    learnt = np.flatnonzero((count_L > 0) & (count_L < len(truth_NL)))
    weights_LD = np.zeros((truth_NL.shape[1], features_ND.shape[1]))
    bias_L = np.where(count_L == 0, -np.inf, _SURE)
    if len(learnt):
        model = LogisticRegression(
            C=c, class_weight="balanced", solver=solver, max_iter=300, random_state=seed
        )
        with warnings.catch_warnings():  # a head that has not quite converged is still a head
            warnings.simplefilter("ignore")
            fitted = OneVsRestClassifier(model).fit(features_ND, truth_NL[:, learnt].astype(int))
        for label, one in zip(learnt, fitted.estimators_, strict=True):
            weights_LD[label], bias_L[label] = one.coef_[0], one.intercept_[0]
    return LinearHead(weights_LD, bias_L)
