"""Training and evaluation of both tasks as functions; `outlay basir` is a thin cover of them.

Identification: fit a route on the training events, tune its threshold on the validation events,
judge it on the test events, which are touched once. Ranking: fit scorers on past events, judge them
on later ones, always beside the level of a random order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from outlay.errors import InputError
from outlay.evals.basir.card import model_card
from outlay.evals.basir.cascade import Cascade
from outlay.evals.basir.data import (
    Excerpt,
    SplitBy,
    Splits,
    check_date,
    split_rows,
    texts_and_truth,
)
from outlay.evals.basir.f1 import F1Report, f1_report
from outlay.evals.basir.identifier import NOTICE, Identifier, RouteName, make_route
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.evals.basir.llm import LLMRoute, Tagged
from outlay.evals.basir.prices import Aggregate, Price, sector_returns
from outlay.evals.basir.relevance import Relevance
from outlay.evals.basir.scorers import (
    Constant,
    Event,
    Length,
    Prior,
    Random,
    Scorer,
    events_of,
    judge,
)
from outlay.evals.basir.text_scorers import CrossEncoderRanker, EmbedRidge, LambdaRank, TfidfRidge
from outlay.evals.ranking import Gain, RankingReport, compare_rankings
from outlay.models.base import Model


@dataclass(frozen=True)
class TrainConfig:
    """How an identifier is made.

    Args:
        route: "frequent", "tfidf", "embed-zero", "embed-lr" or "embed-ft".
        threshold: "auto" tunes one on the validation split; a number is taken as it is.
        per_label: tune one threshold per label (with "auto").
        min_one: choose at least the label with the highest score.
        split: "time", "given" or "random".
        test_from: first date of the test, for split="time".
        validation, test: shares of the events.
        model: encoder of the embedding routes; None for the route's default.
        epochs: of embed-ft; None for its default.
        lr: of embed-ft; None for its default.
        seed: of everything.
    """

    route: RouteName = "embed-lr"
    threshold: float | Literal["auto"] = "auto"
    per_label: bool = False
    min_one: bool = False
    split: SplitBy = "time"
    test_from: str | None = None
    validation: float = 0.2
    test: float = 0.2
    model: str | None = None
    epochs: int | None = None
    lr: float | None = None
    seed: int = 0

    def splits(self, rows: Sequence[Excerpt]) -> Splits:
        """The rows in the splits of this configuration."""
        return split_rows(
            rows,
            self.split,
            test_from=self.test_from,
            validation=self.validation,
            test=self.test,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Trained:
    """An identifier with what was measured and what the user should know."""

    identifier: Identifier
    validation: F1Report
    test: F1Report
    warnings: tuple[str, ...]

    def card(self) -> str:
        """The model card."""
        return model_card(self.identifier, self.validation, self.test, self.warnings)


def train(
    rows: Sequence[Excerpt],
    labels: LabelSet,
    config: TrainConfig = TrainConfig(),
) -> Trained:
    """Fit, tune, judge.

    Args:
        rows: of at least three events.
        labels: all labels.
        config: see `TrainConfig`.

    Raises:
        InputError: for bad rows, an empty split, or knobs that the route does not have.
    """
    from outlay.evals.basir.threshold import fixed, tune

    if config.threshold != "auto" and not (
        isinstance(config.threshold, int | float) and math.isfinite(config.threshold)
    ):
        raise InputError(f"threshold={config.threshold!r}; give 'auto' or a finite number")
    knobs = {
        name: value
        for name, value in (
            ("model", config.model),
            ("epochs", config.epochs),
            ("lr", config.lr),
        )
        if value is not None
    }
    if config.route not in ("frequent", "embed-zero"):
        knobs["seed"] = config.seed
    route = make_route(config.route, **knobs)
    splits = config.splits(rows)
    texts, truth_NL = texts_and_truth(splits.train, labels)
    held_texts, held_NL = texts_and_truth(splits.validation, labels)
    route = route.fit(texts, truth_NL, labels)
    scores_NL = route.scores(held_texts)
    if config.threshold == "auto":
        rule = tune(scores_NL, held_NL, per_label=config.per_label, min_one=config.min_one)
    else:
        rule = fixed(config.threshold, len(labels), min_one=config.min_one)
    about = {
        "config": asdict(config),
        "rows": {name: len(part) for name, part in vars(splits).items()},
        "dates": {
            name: [min(row.date for row in part), max(row.date for row in part)]
            for name, part in vars(splits).items()
        },
    }
    identifier = Identifier(route, labels, rule, about)
    validation = f1_report(held_NL, rule.decide(scores_NL), labels)
    return Trained(
        identifier,
        validation,
        evaluate(identifier, splits.test),
        _warnings(truth_NL, labels, config),
    )


def _warnings(truth_NL: np.ndarray, labels: LabelSet, config: TrainConfig) -> tuple[str, ...]:
    never = [
        label.id for label, count in zip(labels, truth_NL.sum(axis=0), strict=True) if not count
    ]
    found = []
    if never:
        shown = ", ".join(never[:5]) + (", ..." if len(never) > 5 else "")
        found.append(
            f"{len(never)} of {len(labels)} labels have no training text ({shown}); a supervised "
            "route cannot predict them, and macro-F1 counts them"
        )
    if config.split == "random":
        found.append("events were split at random: do not rank their market reaction with it")
    return tuple(found)


def evaluate(identifier: Identifier, rows: Sequence[Excerpt]) -> F1Report:
    """F1 of a trained identifier on tagged rows.

    Raises:
        InputError: for no rows or an unknown label.
    """
    texts, truth_NL = texts_and_truth(rows, identifier.labels)
    return f1_report(truth_NL, identifier.decide(texts), identifier.labels)


@dataclass(frozen=True)
class Asked:
    """A route with a model, judged.

    Args:
        report: F1.
        tagged: decisions and what each excerpt cost.
        truth_NL: what was right.
    """

    report: F1Report
    tagged: Tagged
    truth_NL: BoolArray

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: F1, tokens per excerpt, and what could not be read."""
        total = self.tagged.ledger.totals()
        rows = self.report.rows
        return {
            **self.report.to_dict(),
            "prompt_tokens_per_excerpt": total.prompt / rows,
            "generated_tokens_per_excerpt": total.generated / rows,
            "seconds_per_excerpt": total.seconds / rows,
            "calls": total.calls,
            "skipped": self.tagged.skipped,
            "invalid_entries": self.tagged.invalid,
            "unread_replies": self.tagged.unread,
        }


def evaluate_llm(
    model: Model,
    rows: Sequence[Excerpt],
    labels: LabelSet,
    route: LLMRoute = LLMRoute(),  # noqa: B008 - frozen
) -> Asked:
    """F1 and tokens of the LLM route."""
    texts, truth_NL = texts_and_truth(rows, labels)
    tagged = route.tag(model, texts, labels)
    return Asked(f1_report(truth_NL, tagged.chosen_NL, labels), tagged, truth_NL)


def evaluate_cascade(
    model: Model | None,
    rows: Sequence[Excerpt],
    identifier: Identifier,
    cascade: Cascade = Cascade(),  # noqa: B008 - frozen
) -> Asked:
    """F1 and tokens of the cascade behind a trained identifier; without a model, of that alone."""
    texts, truth_NL = texts_and_truth(rows, identifier.labels)
    scores_NL = identifier.route.scores(texts)
    tagged = cascade.tag(model, texts, scores_NL, identifier.thresholds, identifier.labels)
    report = f1_report(truth_NL, tagged.chosen_NL, identifier.labels)
    return Asked(report, tagged, truth_NL)


SCORERS: Mapping[str, Any] = {
    "constant": Constant,
    "random": Random,
    "length": Length,
    "prior": Prior,
    "tfidf-ridge": TfidfRidge,
    "embed-ridge": EmbedRidge,
    "lambdarank": LambdaRank,
    "cross-encoder": CrossEncoderRanker,
}
LLM_SCORERS = ("llm-point", "llm-pair", "llm-list")


@dataclass(frozen=True)
class RankConfig:
    """How sectors are ranked and judged.

    Args:
        scorers: names of `SCORERS` or `LLM_SCORERS`.
        test_from: first date of the test events; None takes the latest `test` share.
        test: share of the events.
        agg, min_companies: see `sector_returns`.
        relevance, k, gain: see `relevance` and `outlay.evals.ranking`.
        seed: of scorers and intervals.
    """

    scorers: tuple[str, ...] = ("constant", "random", "length", "prior", "tfidf-ridge")
    test_from: str | None = None
    test: float = 0.3
    agg: Aggregate = "mean"
    min_companies: int = 1
    relevance: Relevance = "rank"
    k: int | None = None
    gain: Gain = "linear"
    seed: int = 0


@dataclass(frozen=True)
class Ranked:
    """Reports by scorer, and what the user should know."""

    reports: Mapping[str, RankingReport]
    train_events: int
    warnings: tuple[str, ...]
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `gap` compares the excess of a scorer with the constant one's 0."""
        found: dict[str, Any] = {}
        base = next(iter(self.reports.values()))
        for name, report in self.reports.items():
            gap = compare_rankings(report, base, seed=self.seed).to_dict()
            found[name] = {**report.to_dict(), "minus_constant": gap}
        return {
            "scorers": found,
            "train_events": self.train_events,
            "warnings": list(self.warnings),
            "notice": NOTICE,
        }


def rank(
    rows: Sequence[Excerpt],
    prices: Sequence[Price],
    labels: LabelSet,
    config: RankConfig = RankConfig(),
    *,
    model: Model | None = None,
) -> Ranked:
    """Fit scorers on past events and judge them on later ones; `constant` always runs, too.

    Args:
        rows: tagged excerpts with dates.
        prices: by event.
        labels: all labels.
        config: see `RankConfig`.
        model: for LLM scorers.

    Raises:
        InputError: for an unknown scorer, an LLM scorer without a model, or too few events.
    """
    scorers = {
        name: make_scorer(name, model, config.seed) for name in ("constant", *config.scorers)
    }
    moves = sector_returns(prices, labels, agg=config.agg, min_companies=config.min_companies)
    events = events_of(rows, moves.returns, labels)
    past, later = split_events(events, config.test_from, config.test)
    reports = {
        name: judge(scorer.fit(past), later, how=config.relevance, k=config.k, gain=config.gain)
        for name, scorer in scorers.items()
    }
    warnings = []
    if moves.suspicious:
        warnings.append(
            f"{len(moves.suspicious)} moves beyond 40 % ({moves.suspicious[0]}): are prices "
            "adjusted for splits and bonuses?"
        )
    if moves.untraded:
        warnings.append(f"{moves.untraded} companies without both prices were ignored")
    if moves.thin:
        warnings.append(f"{len(moves.thin)} sectors had fewer than min_companies and were dropped")
    if config.relevance == "price_relative":
        warnings.append("price_relative makes every order look good; read excess and Spearman only")
    return Ranked(reports, len(past), tuple(warnings), config.seed)


def make_scorer(name: str, model: Model | None = None, seed: int = 0) -> Scorer:
    """A scorer by name.

    Raises:
        InputError: for an unknown name, or an LLM scorer without a model.
    """
    if name in LLM_SCORERS:
        from outlay.evals.basir.llm_scorers import LLMList, LLMPair, LLMPoint

        if model is None:
            raise InputError(f"scorer {name!r} asks a model; give model=, for instance 'embedded'")
        if name == "llm-pair":
            return LLMPair(model, seed=seed)
        return LLMPoint(model) if name == "llm-point" else LLMList(model)
    if name not in SCORERS:
        raise InputError(
            f"scorer {name!r} is unknown; choose from {', '.join((*SCORERS, *LLM_SCORERS))}"
        )
    made: Scorer = (
        SCORERS[name](seed=seed)
        if name in ("random", "lambdarank", "cross-encoder")
        else SCORERS[name]()
    )
    return made


def split_events(
    events: Sequence[Event], test_from: str | None = None, test: float = 0.3
) -> tuple[list[Event], list[Event]]:
    """Past and later events by date; events of one day stay together.

    Raises:
        InputError: if a date is missing or bad, or either side is empty.
    """
    if undated := [event.mentions.event for event in events if not event.mentions.date]:
        raise InputError(f"event {undated[0]!r} has no date; ranking is split by time")
    if not 0 < test < 1:
        raise InputError(f"test={test}; give a share in (0, 1)")
    dates = sorted(event.mentions.date for event in events)
    if test_from is None:
        first = dates[len(dates) - max(1, round(test * len(dates)))]
    else:
        first = check_date(test_from, "test_from")
    past = [event for event in events if event.mentions.date < first]
    later = [event for event in events if event.mentions.date >= first]
    if not past or not later:
        raise InputError(
            f"{len(past)} events before {first} and {len(later)} from then on; give more events, "
            "or change test_from= or test="
        )
    return past, later
