"""A route from a text to a score per sector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from outlay.errors import DependencyError, InputError
from outlay.evals.basir.labels import BoolArray, LabelSet

FloatArray = npt.NDArray[np.float64]
Self = TypeVar("Self", bound="Route")

EXTRA = "install it with: pip install 'outlay[eval,local,train]'"


@runtime_checkable
class Route(Protocol):
    """A frozen dataclass of knobs; `fit` gives the same with weights."""

    @property
    def name(self) -> str:
        """How the command line and reports call it."""
        ...

    def fit(self: Self, texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> Self:
        """The same route with weights.

        Labels without a positive text are left out of the training; their scores are -inf (or
        their similarity, where the route can tell it), and macro-F1 still counts them.
        """
        ...

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """(N, L) scores, higher is more likely.

        Raises:
            InputError: if the route was not fitted.
        """
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights into `folder`, if there are any; returns what `load` needs, as JSON."""
        ...

    def load(self: Self, folder: Path, state: Mapping[str, Any]) -> Self:
        """The inverse of `save`: the same route with the stored weights."""
        ...


def check_training(texts: Sequence[str], truth_NL: BoolArray, labels: LabelSet) -> None:
    """Raise `InputError` unless there are texts, one row of truth each, and some positive."""
    if not len(texts) or truth_NL.shape != (len(texts), len(labels)):
        raise InputError(
            f"{len(texts)} training texts, truth of shape {truth_NL.shape} and {len(labels)} "
            "labels do not fit together"
        )
    if not truth_NL.any():
        raise InputError("no training text has any sector; nothing can be learnt")


def unfitted(name: str) -> InputError:
    """The error of a route that is used before `fit`."""
    return InputError(f"route {name!r} has no weights; call fit, or load a trained folder")


def missing(package: str, error: ImportError) -> DependencyError:
    """The error of a route whose library is absent."""
    return DependencyError(f"this route needs {package}; {EXTRA} ({error})")
