"""A trained identifier: a route, its labels and its thresholds, in one folder without pickle."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from outlay.errors import InputError, ResultsError
from outlay.evals.basir.base import Route
from outlay.evals.basir.embedding import EmbedFT, EmbedLR, EmbedZero
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.evals.basir.tfidf import Frequent, Tfidf
from outlay.evals.basir.threshold import Thresholds

RouteName = Literal["frequent", "tfidf", "embed-zero", "embed-lr", "embed-ft"]
ROUTES: Mapping[str, type] = {
    "frequent": Frequent,
    "tfidf": Tfidf,
    "embed-zero": EmbedZero,
    "embed-lr": EmbedLR,
    "embed-ft": EmbedFT,
}

STATE = "identifier.json"
CARD = "README.md"
FORMAT = 1
NOTICE = "Research output, not investment advice."


def make_route(name: str, **knobs: Any) -> Route:
    """A route by name, not yet fitted; knobs that it does not have are refused.

    Raises:
        InputError: for an unknown route or knob.
    """
    if name not in ROUTES:
        raise InputError(f"route={name!r}; choose one of {', '.join(get_args(RouteName))}")
    known = {f.name for f in dataclasses.fields(ROUTES[name])} & set(_KNOBS)
    if unknown := sorted(set(knobs) - known):
        raise InputError(f"route {name!r} has no knob {unknown[0]!r}; it has {sorted(known)}")
    return cast(Route, ROUTES[name](**knobs))


_KNOBS = ("model", "epochs", "lr", "batch", "temperature", "c", "ngrams", "max_features", "seed")


def knobs_of(route: Route) -> dict[str, Any]:
    """The public knobs of a route."""
    return {name: getattr(route, name) for name in _KNOBS if hasattr(route, name)}


@dataclass(frozen=True)
class Identifier:
    """A fitted route with its decision rule.

    Args:
        route: fitted.
        labels: in the order of its scores.
        thresholds: tuned on validation data.
        about: how it was made, for the card: JSON-ready.
    """

    route: Route
    labels: LabelSet
    thresholds: Thresholds
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def decide(self, texts: Sequence[str]) -> BoolArray:
        """(N, L) decisions.

        Raises:
            InputError: for no texts or an empty one, with its place.
        """
        if not len(texts):
            raise InputError("no text to tag; give at least one")
        for number, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"text {number} is empty; remove it")
        return self.thresholds.decide(self.route.scores(texts))

    def sectors(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Label ids of every text."""
        return [self.labels.chosen(row_L) for row_L in self.decide(texts)]

    def save(self, folder: str | os.PathLike[str], card: str) -> Path:
        """Write weights, JSON and the model card; the folder is made, or must hold an identifier.

        Raises:
            InputError: if the folder holds other files.
        """
        place = Path(folder)
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; name a folder")
        if place.is_dir() and any(place.iterdir()) and not (place / STATE).exists():
            raise InputError(f"{place} holds other files; name an empty or new folder")
        place.mkdir(parents=True, exist_ok=True)
        state = {
            "format": FORMAT,
            "route": self.route.name,
            "knobs": knobs_of(self.route),
            "labels": self.labels.to_dict(),
            "thresholds": self.thresholds.values.tolist(),
            "min_one": self.thresholds.min_one,
            "about": dict(self.about),
            "state": self.route.save(place),
        }
        text = json.dumps(state, ensure_ascii=False, indent=1, allow_nan=False)
        (place / STATE).write_text(text + "\n", encoding="utf-8")
        (place / CARD).write_text(card, encoding="utf-8")
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Identifier:
        """The inverse of `save`.

        Raises:
            ResultsError: if the folder holds no identifier, or one of another format.
        """
        place = Path(folder)
        try:
            state = json.loads((place / STATE).read_text(encoding="utf-8"))
            if state["format"] != FORMAT:
                raise ResultsError(f"{place} has format {state['format']}, not {FORMAT}")
            labels = LabelSet.from_dicts(state["labels"], str(place))
            values = np.asarray(state["thresholds"], dtype=float)
            route = make_route(state["route"], **state["knobs"]).load(place, state["state"])
            if len(values) != len(labels):
                raise ResultsError(f"{place} has {len(values)} thresholds, {len(labels)} labels")
            return cls(route, labels, Thresholds(values, bool(state["min_one"])), state["about"])
        except FileNotFoundError as error:
            raise ResultsError(
                f"{place} holds no trained identifier ({error.filename} is missing); make one with "
                "`outlay basir train`"
            ) from error
        except (OSError, json.JSONDecodeError, KeyError, TypeError, InputError) as error:
            raise ResultsError(f"{place} holds a damaged identifier ({error}); train again") from (
                error
            )
