"""Runs of the BASIR proof: routes on tagged texts, scorers on synthetic worlds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlay.evals.basir.base import FloatArray, Route
from outlay.evals.basir.data import Excerpt, texts_and_truth
from outlay.evals.basir.f1 import F1Report, f1, f1_report
from outlay.evals.basir.labels import BoolArray, Label, LabelSet
from outlay.evals.basir.prices import sector_returns
from outlay.evals.basir.relevance import relevance
from outlay.evals.basir.scorers import Event, Scorer, events_of
from outlay.evals.basir.synthetic import SAMPLE_LABELS, world
from outlay.evals.basir.threshold import Thresholds, tune
from outlay.evals.basir.train import split_events
from outlay.evals.ranking import RankedEvent, RankingReport, ndcg_rows, rank_report
from outlay.stats import draw_counts, percentiles

Parts = tuple[Sequence[Excerpt], Sequence[Excerpt], Sequence[Excerpt]]


@dataclass(frozen=True)
class RouteRun:
    """A route, fitted, tuned on validation and judged on test."""

    route: Route
    rule: Thresholds
    report: F1Report
    said_NL: BoolArray
    truth_NL: BoolArray
    train_rows: int
    fit_seconds: float
    ms_per_text: float

    def row(self) -> dict[str, Any]:
        """The JSON form of a table row."""
        return {
            **self.report.to_dict(labels=False),
            "train_rows": self.train_rows,
            "fit_seconds": round(self.fit_seconds, 2),
            "ms_per_text": round(self.ms_per_text, 3),
            "prompt_tokens_per_text": 0,
        }


def run_route(route: Route, parts: Parts, labels: LabelSet) -> RouteRun:
    """Fit on the first part, tune on the second, judge on the third."""
    (texts, truth), (held, held_truth), (asked, asked_truth) = (
        texts_and_truth(part, labels) for part in parts
    )
    start = time.perf_counter()
    fitted = route.fit(texts, truth, labels)
    seconds = time.perf_counter() - start
    rule = tune(fitted.scores(held), held_truth)
    start = time.perf_counter()
    said = rule.decide(fitted.scores(asked))
    ms = (time.perf_counter() - start) / len(asked) * 1000
    report = f1_report(asked_truth, said, labels)
    return RouteRun(fitted, rule, report, said, asked_truth, len(texts), seconds, ms)


@dataclass(frozen=True)
class Gap:
    """A difference in F1 with its 95 % interval over texts."""

    mean: float
    lo: float
    hi: float


def gap(ours: RouteRun, theirs: RouteRun, average: str, *, seed: int, resamples: int = 400) -> Gap:
    """Micro- or macro-F1 of `ours` minus `theirs`, by a paired bootstrap over test texts."""
    ours_R, theirs_R = (
        _resampled(run.truth_NL, run.said_NL, average, seed, resamples) for run in (ours, theirs)
    )
    mean = getattr(ours.report, average) - getattr(theirs.report, average)
    return Gap(mean, *percentiles(ours_R - theirs_R, 0.95))


def _resampled(
    truth_NL: BoolArray, said_NL: BoolArray, average: str, seed: int, resamples: int
) -> FloatArray:
    values = []
    tables = [(m.astype(float)) for m in (truth_NL & said_NL, truth_NL, said_NL)]
    for counts_RN in draw_counts(len(truth_NL), resamples, seed):
        hit_RL, true_RL, said_RL = (counts_RN @ table_NL for table_NL in tables)
        if average == "micro":
            values.append(f1(hit_RL.sum(axis=1), true_RL.sum(axis=1), said_RL.sum(axis=1)))
        else:
            values.append(f1(hit_RL, true_RL, said_RL).mean(axis=1))
    return np.concatenate(values)


def sectors(count: int) -> list[Label]:
    """The first labels of the sample."""
    from outlay.evals.basir.labels import load_labels

    known = {label.id: label for label in load_labels()}
    return [known[name] for name in SAMPLE_LABELS[:count]]


def world_events(signal: float, seed: int, *, years: int = 40, count: int = 12) -> list[Event]:
    """Events of one synthetic world, whose excerpts do not depend on the signal."""
    from outlay.evals.basir.labels import load_labels

    labels = load_labels()
    rows, prices = world(sectors(count), years=years, signal=signal, seed=seed)
    return events_of(rows, sector_returns(prices, labels).returns, labels)


@dataclass(frozen=True)
class Cell:
    """A scorer at one strength of the signal, over worlds.

    Args:
        report: by rank relevance.
        trap: mean NDCG of the same scores with price relatives as relevance.
        trap_random: the level of a random order there.
    """

    report: RankingReport
    trap: float
    trap_random: float


def run_scorers(
    scorers: Mapping[str, Scorer],
    signal: float,
    worlds: Sequence[int],
    *,
    tested: int | None = None,
) -> dict[str, Cell]:
    """Every scorer in every world, split by time; `tested` limits the test events of a world."""
    ranked: dict[str, list[RankedEvent]] = {name: [] for name in scorers}
    moves: list[FloatArray] = []
    for seed in worlds:
        past, later = split_events(world_events(signal, seed))
        later = later[:tested]
        moves += [event.returns_N for event in later]
        for name, scorer in scorers.items():
            fitted = scorer.fit(past)
            ranked[name] += [
                RankedEvent(
                    f"{seed}:{event.mentions.event}",
                    relevance(event.returns_N),
                    fitted.score(event.mentions),
                )
                for event in later
            ]
    relatives_EN = np.stack([relevance(returns_N, "price_relative") for returns_N in moves])
    chance = ndcg_rows(relatives_EN, np.zeros_like(relatives_EN))
    return {
        name: Cell(
            rank_report(events),
            float(ndcg_rows(relatives_EN, np.stack([e.scores for e in events])).mean()),
            float(chance.mean()),
        )
        for name, events in ranked.items()
    }
