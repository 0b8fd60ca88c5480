"""Task 2: what orders the sectors of an event, and the scorers that read no text.

A scorer sees `Mentions`: the excerpts tagged with each sector, and no price. Returns are handed to
`fit` alone, of past events; so no price after an event can reach its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.labels import LabelSet
from outlay.evals.basir.relevance import Relevance, relevance
from outlay.evals.ranking import Gain, RankedEvent, RankingReport, rank_report

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mentions:
    """An event as a scorer sees it.

    Args:
        event: its name.
        date: ISO 8601, "" where unknown.
        sectors: N label ids.
        texts: per sector, the excerpts tagged with it, in order.
        names: per sector, its name for people.
    """

    event: str
    date: str
    sectors: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]

    def joined(self) -> list[str]:
        """Per sector, its excerpts as one text."""
        return [" ".join(texts) for texts in self.texts]


@dataclass(frozen=True)
class Event:
    """An event with what happened.

    Args:
        mentions: what was said.
        returns_N: of the sectors, in the order of `mentions.sectors`.
    """

    mentions: Mentions
    returns_N: FloatArray


class Scorer(Protocol):
    """A frozen dataclass of knobs; `fit` gives the same with weights."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def fit(self, events: Sequence[Event]) -> Self:
        """The same scorer, having seen past events."""
        ...

    def score(self, mentions: Mentions) -> FloatArray:
        """(N,) scores of the sectors, highest is best."""
        ...


def events_of(
    rows: Sequence[Excerpt],
    returns: Mapping[str, Mapping[str, float]],
    labels: LabelSet,
) -> list[Event]:
    """Events in order of date: the sectors that were mentioned and have a return.

    Raises:
        InputError: if no event has a sector with a return.
    """
    known = labels.names()
    found: dict[str, dict[int, list[str]]] = {}
    dates = {row.event: row.date for row in rows}
    for row in rows:
        for name in dict.fromkeys(row.sectors):
            index = known.get(" ".join(name.casefold().split()))
            if index is None:
                raise InputError(f"excerpt {row.excerpt_id!r} has the unknown label {name!r}")
            found.setdefault(row.event, {}).setdefault(index, []).append(row.text)
    events = []
    for event in sorted(found, key=lambda name: (dates[name], name)):
        moved = returns.get(event, {})
        indices = [i for i in sorted(found[event]) if labels[i].id in moved]
        if indices:
            mentions = Mentions(
                event,
                dates[event],
                tuple(labels[i].id for i in indices),
                tuple(tuple(found[event][i]) for i in indices),
                tuple(labels[i].name for i in indices),
            )
            values = np.array([moved[labels[i].id] for i in indices], dtype=float)
            events.append(Event(mentions, values))
    if not events:
        raise InputError(
            "no event has a tagged sector with a return; do the events of prices and excerpts "
            "have the same names?"
        )
    return events


def judge(
    scorer: Scorer,
    events: Sequence[Event],
    *,
    how: Relevance = "rank",
    k: int | None = None,
    gain: Gain = "linear",
) -> RankingReport:
    """Score events and report; see `outlay.evals.ranking`.

    Raises:
        InputError: if no event can be ranked.
    """
    return rank_report(
        [
            RankedEvent(
                event.mentions.event,
                relevance(event.returns_N, how),
                scorer.score(event.mentions),
            )
            for event in events
        ],
        k=k,
        gain=gain,
    )


def check_past(events: Sequence[Event], scorer: str) -> None:
    """Raise `InputError` where a scorer that learns has nothing to learn from."""
    if not events:
        raise InputError(f"scorer {scorer!r} needs past events to learn from; give at least one")


class Untrained:
    """A scorer that learns nothing."""

    def fit(self, events: Sequence[Event]) -> Self:
        """The same scorer."""
        return self


@dataclass(frozen=True)
class Constant(Untrained):
    """Says the same of every sector: exactly the random level."""

    name: ClassVar[str] = "constant"

    def score(self, mentions: Mentions) -> FloatArray:
        """Zeros."""
        return np.zeros(len(mentions.sectors))


@dataclass(frozen=True)
class Random(Untrained):
    """A random order, the same for the same event.

    Args:
        seed: of the order.
    """

    seed: int = 0

    name: ClassVar[str] = "random"

    def score(self, mentions: Mentions) -> FloatArray:
        """Uniform numbers drawn by seed and event name."""
        words = np.frombuffer(f"{self.seed}:{mentions.event}".encode(), dtype=np.uint8)
        return np.random.default_rng(words.tolist()).random(len(mentions.sectors))


@dataclass(frozen=True)
class Length(Untrained):
    """Ranks by the words spoken about a sector."""

    name: ClassVar[str] = "length"

    def score(self, mentions: Mentions) -> FloatArray:
        """Numbers of words."""
        return np.array([len(text.split()) for text in mentions.joined()], dtype=float)


@dataclass(frozen=True)
class Prior:
    """The mean of a sector's past returns; 0 for a sector without a past.

    Args:
        means: set by `fit`.
    """

    means: Mapping[str, float] | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "prior"

    def fit(self, events: Sequence[Event]) -> Prior:
        """Means over past events."""
        check_past(events, self.name)
        found: dict[str, list[float]] = {}
        for event in events:
            for sector, value in zip(event.mentions.sectors, event.returns_N, strict=True):
                found.setdefault(sector, []).append(float(value))
        return replace(self, means={sector: float(np.mean(v)) for sector, v in found.items()})

    def score(self, mentions: Mentions) -> FloatArray:
        """Past means."""
        if self.means is None:
            raise InputError("scorer 'prior' was not fitted; call fit with past events")
        return np.array([self.means.get(sector, 0.0) for sector in mentions.sectors])
