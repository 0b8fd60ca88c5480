"""Ranking: scorers, worlds with and without a signal, and models that are asked."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError, ModelError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.labels import Label, LabelSet, load_labels
from outlay.evals.basir.llm_scorers import (
    LLMList,
    LLMPair,
    LLMPoint,
    bradley_terry,
    parse_order,
)
from outlay.evals.basir.prices import sector_returns
from outlay.evals.basir.scorers import (
    Constant,
    Event,
    Length,
    Mentions,
    Prior,
    Random,
    events_of,
    judge,
)
from outlay.evals.basir.synthetic import SPREAD, world
from outlay.evals.basir.text_scorers import CrossEncoderRanker, EmbedRidge, LambdaRank, TfidfRidge
from outlay.evals.basir.train import split_events

SECTORS = tuple(load_labels())[:8]


def events(signal: float, seed: int = 0, years: int = 40) -> list[Event]:
    rows, prices = world(SECTORS, years=years, signal=signal, seed=seed)
    return events_of(rows, sector_returns(prices, load_labels()).returns, load_labels())


LEARNERS = [TfidfRidge(), EmbedRidge(), LambdaRank()]


@pytest.mark.parametrize("scorer", LEARNERS, ids=lambda scorer: scorer.name)
def test_a_learner_finds_a_strong_signal(scorer):
    past, later = split_events(events(3.0, years=30))
    report = judge(scorer.fit(past), later)
    assert report.mean("excess") > 0.4
    assert report.mean("spearman") > 0.4


def test_without_a_signal_nothing_ranks_better_than_chance():
    scorers = (TfidfRidge(), Length(), Prior(), Random())
    for scorer in scorers:
        values = []
        for seed in range(10):
            past, later = split_events(events(0.0, seed))
            values += [e.excess for e in judge(scorer.fit(past), later).events]
        mean, error = np.mean(values), np.std(values) / np.sqrt(len(values))
        assert abs(mean) < 3.5 * error


def test_a_constant_scorer_has_no_excess_and_price_relatives_hide_everything():
    past, later = split_events(events(1.0))
    constant = judge(Constant().fit(past), later)
    assert constant.mean("excess") == pytest.approx(0.0, abs=1e-12)
    for scorer in (Constant(), Random(), TfidfRidge()):
        assert judge(scorer.fit(past), later, how="price_relative").mean("ndcg") > 0.98


def test_no_price_after_the_event_reaches_a_score():
    past, later = split_events(events(1.0))
    assert "return" not in str([f.name for f in dataclasses.fields(Mentions)])
    changed = [Event(e.mentions, e.returns_N[::-1].copy()) for e in later]
    for scorer in (Prior(), TfidfRidge(), Length()):
        fitted = scorer.fit(past)
        for before, after in zip(later, changed, strict=True):
            assert (fitted.score(before.mentions) == fitted.score(after.mentions)).all()
    assert max(e.mentions.date for e in past) < min(e.mentions.date for e in later)


def test_words_do_not_depend_on_the_signal_and_returns_keep_their_spread():
    weak, strong = events(0.0, 5), events(3.0, 5)
    assert [e.mentions for e in weak] == [e.mentions for e in strong]
    for made in (weak, strong):
        spread = np.concatenate([e.returns_N for e in made]).std()
        assert spread == pytest.approx(SPREAD, rel=0.15)


def test_events_hold_the_sectors_with_words_and_prices():
    labels = LabelSet((Label("a", "A"), Label("b", "B"), Label("c", "C")))
    rows = [
        Excerpt("e2", "2021-01-01", "3", "later", ("a",)),
        Excerpt("e1", "2020-01-01", "1", "first", ("b", "a")),
        Excerpt("e1", "2020-01-01", "2", "second", ("a",)),
    ]
    found = events_of(rows, {"e1": {"a": 0.1, "b": -0.1, "c": 0.2}, "e2": {"b": 0.1}}, labels)
    (only,) = found
    assert only.mentions.sectors == ("a", "b")
    assert only.mentions.texts == (("first", "second"), ("first",))
    assert only.mentions.joined()[0] == "first second"
    assert only.returns_N.tolist() == [0.1, -0.1]
    with pytest.raises(InputError, match="same names"):
        events_of(rows, {}, labels)
    with pytest.raises(InputError, match="unknown label"):
        events_of([Excerpt("e", "", "1", "x", ("z",))], {"e": {}}, labels)


def test_prior_is_the_past_mean_and_zero_for_a_new_sector():
    mentions = Mentions("e", "2020-01-01", ("a", "b"), (("x",), ("y z",)), ("A", "B"))
    fitted = Prior().fit([Event(mentions, np.array([0.2, 0.0])), Event(mentions, np.zeros(2))])
    asked = Mentions("f", "2021-01-01", ("b", "a", "c"), (("",),) * 3, ("B", "A", "C"))
    assert fitted.score(asked).tolist() == [0.0, 0.1, 0.0]
    assert Length().score(mentions).tolist() == [1.0, 2.0]
    assert (Random(1).score(asked) == Random(1).score(asked)).all()


def test_a_cross_encoder_trains_with_either_loss_and_repeats_itself():
    few = events(3.0, years=3)
    losses = ("lambda", "lambda", "listnet")
    scorers = [CrossEncoderRanker(loss=loss, epochs=1, batch=1) for loss in losses]
    first, again, other = (s.fit(few[:2]).score(few[2].mentions) for s in scorers)
    assert first.shape == (8,)
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TfidfRidge(alpha=0), "alpha"),
        (lambda: EmbedRidge(alpha=-1), "alpha"),
        (lambda: LambdaRank(trees=0), "trees"),
        (lambda: LambdaRank(lr=0), "lr"),
        (lambda: CrossEncoderRanker(loss="best"), "loss"),
        (lambda: CrossEncoderRanker(epochs=0), "epochs"),
        (lambda: CrossEncoderRanker(lr=0), "lr"),
        (lambda: Prior().fit([]), "past events"),
        (lambda: TfidfRidge().fit([]), "past events"),
        (lambda: Prior().score(events(1, years=1)[0].mentions), "not fitted"),
        (lambda: TfidfRidge().score(events(1, years=1)[0].mentions), "not fitted"),
        (lambda: LambdaRank().score(events(1, years=1)[0].mentions), "not fitted"),
        (lambda: world(SECTORS[:1]), "labels=1"),
        (lambda: world(SECTORS, signal=-1), "signal=-1"),
        (lambda: split_events(events(1, years=1)), "0 events before"),
        (lambda: split_events(events(1, years=3), "2050-01-01"), "from then on"),
        (lambda: split_events(events(1, years=3), "soon"), "test_from"),
        (lambda: LLMPair(None, max_pairs=0), "max_pairs"),
        (lambda: LLMPoint(None, words=0), "words"),
        (lambda: LLMList(None, answer_tokens=0), "answer_tokens"),
        (lambda: bradley_terry([[0, 1]]), "square"),
        (lambda: bradley_terry([[0, -1], [1, 0]]), ">= 0"),
        (lambda: bradley_terry([[0, 1], [1, 0]], prior=0), "prior"),
    ],
)
def test_bad_knobs_and_events_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_cross_encoder_needs_a_folder():
    with pytest.raises(ModelError, match="no folder"):
        CrossEncoderRanker(model="no/such").fit(events(1.0, years=2))


# -- models that are asked ------------------------------------------------------------------------

MENTIONS = Mentions(
    "e",
    "2020-02-01",
    ("a", "b", "c"),
    (("The levy doubles.",), ("A tax holiday is granted.",), ("No change.",)),
    ("Tea", "Ports", "Banks"),
)
WORTH = {"Tea": -2, "Ports": 2, "Banks": 0}


def oracle(request: str) -> str:
    """Answers every kind of request by `WORTH`."""
    if "Reply with one number" in request:
        return next(f"I say {value}." for name, value in WORTH.items() if name in request)
    if "A or B" in request:
        first, second = re.findall(r"^[AB]\. (\w+):", request, re.MULTILINE)
        return "A" if WORTH[first] > WORTH[second] else "B"
    names = re.findall(r"^\d+\. (\w+):", request, re.MULTILINE)
    order = sorted(range(len(names)), key=lambda i: -WORTH[names[i]])
    return f"Sure: {[i + 1 for i in order]}"


@pytest.mark.parametrize("kind", [LLMPoint, LLMPair, LLMList])
def test_an_endpoints_answers_become_an_order(serving, kind):
    with serving(oracle) as (server, model):
        scorer = kind(model).fit([])
        scores = scorer.score(MENTIONS)
        probes = len(server.prompts) - scorer.tally.ledger.totals().calls
    assert np.argsort(-scores).tolist() == [1, 2, 0]
    used = server.usage[probes:]
    assert scorer.tally.ledger.totals().prompt == sum(u["prompt_tokens"] for u in used)
    assert scorer.tally.unread == 0


@pytest.mark.parametrize("kind", [LLMPoint, LLMPair, LLMList])
def test_answers_that_cannot_be_read_are_counted_and_order_nothing(serving, kind):
    with serving(lambda request: "no idea") as (_, model):
        scorer = kind(model)
        assert len(set(np.round(scorer.score(MENTIONS), 9))) == 1
    assert scorer.tally.unread == {LLMPoint: 3, LLMPair: 6, LLMList: 1}[kind]


@pytest.mark.model
def test_a_local_model_is_read_by_its_probabilities(model):
    point, pair = LLMPoint(model), LLMPair(model, max_pairs=1)
    grades = point.score(MENTIONS)
    assert ((grades > -2) & (grades < 2)).all()
    assert len(set(grades.tolist())) == 3
    assert pair.score(MENTIONS).sum() == pytest.approx(0.0, abs=1e-9)
    assert (point.tally.unread, pair.tally.unread) == (0, 0)
    assert point.tally.ledger.totals().generated == 0
    assert pair.tally.ledger.totals().prompt > 0


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("[2, 1, 3]", (1, 0, 2)),
        ('Order: ["3", "1"]', (2, 0)),
        ("[2, 2, 9, 1]", (1, 0)),
        ("[]", None),
        ("two, one", None),
    ],
)
def test_orders_are_read(reply, order):
    assert parse_order(reply, 3) == order


def test_two_items_have_the_closed_form():
    (a, b) = bradley_terry([[0, 30], [10, 0]], prior=1e-9)
    assert a - b == pytest.approx(np.log(3), abs=1e-5)


@given(st.integers(0, 999), st.integers(2, 6))
def test_strengths_maximise_the_likelihood(seed, size):
    random = np.random.default_rng(seed)
    wins, prior = random.integers(0, 5, (size, size)).astype(float), 0.1
    np.fill_diagonal(wins, 0)
    logs = bradley_terry(wins, prior=prior)

    def likelihood(values):  # the prior's opponent has strength 1, where the scale is free
        gaps = values[:, None] - values[None, :]
        return (
            -(wins * np.log1p(np.exp(-gaps))).sum()
            - prior * (np.log1p(np.exp(-values)) + np.log1p(np.exp(values))).sum()
        )

    shifts = np.linspace(-3, 3, 601)
    best = logs + max(shifts, key=lambda shift: likelihood(logs + shift))
    for i in range(size):
        for step in (-0.05, 0.05):
            moved = best.copy()
            moved[i] += step
            assert likelihood(moved) <= likelihood(best) + 1e-4
