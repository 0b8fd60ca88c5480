"""Thresholds, scores and selections learned from stored traces, honestly."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError, ModelError
from outlay.reason.latent_trajectory import (
    LTEarly,
    LTSequential,
    Table,
    Trace,
    leave_one_out,
    partial_correlation,
    replay,
    signals,
    split,
)
from outlay.reason.latent_trajectory.calibration import quantiles, raw, rights

R = 5
PAPER = LTSequential(k=16, sign="paper")
QUICK = LTEarly(k=16, K=3, classifier="logistic")


def traces(seed: int, n: int = 40, strength: float = 1.0, prefix: str = "q") -> list[Trace]:
    """Random walks whose drift is longer where the trace is right."""
    rng = np.random.default_rng(seed)
    made = []
    for q in range(n):
        for index in range(R):
            right = bool(rng.random() < 0.5)
            steps = int(rng.integers(2, 8))
            path = rng.normal(size=(steps, 2, 4)).cumsum(axis=0)
            path += strength * right * np.arange(steps)[:, None, None]
            answer = "7" if right else str(rng.integers(0, 3))
            tokens = 16 * steps - int(rng.integers(0, 16))
            made.append(Trace(f"{prefix}{q}", index, right, answer, tokens, signals(path)))
    return made


POOL = traces(0)


def fitted(**knobs: Any) -> LTSequential:
    return replace(PAPER, **knobs).fit(POOL)


def score_of(method: LTSequential, some: list[Trace]) -> np.ndarray:
    return method.fitted().scores(some)


# -- the rule -------------------------------------------------------------------------------------


def test_the_lowest_threshold_takes_every_first_trace() -> None:
    table = Table.of(POOL)
    played = replay(table, score_of(fitted(), POOL), -np.inf)
    firsts = [POOL[row[0]] for row in table.rows]
    assert played.right_Q.tolist() == [t.right for t in firsts]
    assert played.tokens_Q.tolist() == [t.tokens for t in firsts]
    assert set(played.accepted_Q) == {1}


def test_the_highest_threshold_is_the_majority_at_full_price() -> None:
    table = Table.of(POOL)
    played = replay(table, score_of(fitted(), POOL), np.inf)
    assert played.right_Q.tolist() == table.voted().tolist()
    assert played.tokens_Q.tolist() == table.tokens().tolist()
    assert set(played.accepted_Q) == {0}


@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(1, 5))
def test_a_higher_threshold_never_costs_less(one: float, other: float, wave: int) -> None:
    table, score_S = Table.of(POOL), score_of(fitted(), POOL)
    low, high = (replay(table, score_S, t, wave) for t in sorted((one, other)))
    assert (low.tokens_Q <= high.tokens_Q).all()


def slow_replay(some: list[Trace], score_S: np.ndarray, threshold: float) -> list[tuple[bool, int]]:
    """Question by question, trace by trace."""
    outcomes = []
    for name in sorted({t.question for t in some}):
        own = sorted((t.index, at) for at, t in enumerate(some) if t.question == name)
        spent, done = 0, False
        for _, at in own:
            spent += some[at].tokens
            if some[at].answer is not None and score_S[at] >= threshold:
                outcomes.append((some[at].right, spent))
                done = True
                break
        if not done:
            given = [some[at].answer for _, at in own if some[at].answer is not None]
            best = max(given, key=given.count) if given else None
            right = next((some[at].right for _, at in own if some[at].answer == best), False)
            outcomes.append((right, spent))
    return outcomes


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-2, 2))
def test_a_replay_equals_a_loop(seed: int, threshold: float) -> None:
    rng = random.Random(seed)
    some = [replace(t, answer=None, right=False) if rng.random() < 0.2 else t for t in POOL]
    score_S = score_of(fitted(), some)
    score_S[rng.randrange(len(some))] = np.nan
    played = replay(Table.of(some), score_S, threshold)
    want = slow_replay(some, score_S, threshold)
    assert list(zip(played.right_Q.tolist(), played.tokens_Q.tolist(), strict=True)) == want


def test_two_right_answers_beat_three_different_wrong_ones() -> None:
    answers = ["1", "7", "2", "7", "3"]
    five = [
        replace(t, question="a", index=i, answer=answers[i], right=answers[i] == "7")
        for i, t in enumerate(POOL[:R])
    ]
    assert Table.of(five).voted().tolist() == [1]


def test_traces_without_a_score_or_an_answer_are_never_accepted() -> None:
    short = [replace(t, signals=signals(np.zeros((1, 2, 4)))) for t in POOL]
    score_S = score_of(fitted(), short)
    assert np.isnan(score_S).all()
    assert set(replay(Table.of(short), score_S, -np.inf).accepted_Q) == {0}
    silent = [replace(t, answer=None, right=False) for t in POOL]
    assert set(replay(Table.of(silent), score_of(fitted(), silent), -np.inf).accepted_Q) == {0}


def test_waves_pay_for_whole_waves_and_accept_the_same() -> None:
    table, score_S = Table.of(POOL), score_of(fitted(), POOL)
    one, two = (replay(table, score_S, 0.5, wave) for wave in (1, 2))
    assert one.right_Q.tolist() == two.right_Q.tolist()
    assert one.accepted_Q.tolist() == two.accepted_Q.tolist()
    assert two.tokens > one.tokens


# -- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["net", "cumulative", "aligned", "combined", "length"])
def test_the_order_of_calibration_questions_changes_nothing(signal: Any) -> None:
    mixed = POOL[:]
    random.Random(1).shuffle(mixed)
    method = replace(PAPER, signal=signal)
    assert method.fit(mixed).fitted() == method.fit(POOL).fitted()


def test_evaluation_labels_are_never_read() -> None:
    calibration, evaluation = split(POOL)
    method = PAPER.fit(calibration)
    early = QUICK.fit(calibration)
    poisoned = [replace(t, right=not t.right) for t in evaluation]
    one, other = method.replay(evaluation), method.replay(poisoned)
    assert one.accepted_Q.tolist() == other.accepted_Q.tolist()
    assert one.tokens_Q.tolist() == other.tokens_Q.tolist()
    assert method.transfer(evaluation).weights == method.transfer(poisoned).weights
    picks = [early.replay(some).chosen_Q.tolist() for some in (evaluation, poisoned)]
    assert picks[0] == picks[1]


def test_the_threshold_is_the_median_of_the_best_on_the_grid() -> None:
    method = fitted(signal="net", top_k=1)
    score_S = score_of(method, POOL)
    cuts = np.quantile(score_S[rights(POOL) == 0], quantiles((0.2, 0.99, 0.01)))
    tried = [replay(Table.of(POOL), score_S, cut) for cut in cuts]
    best = min(range(len(cuts)), key=lambda t: (-tried[t].accuracy, tried[t].tokens))
    assert method.fitted().threshold == pytest.approx(cuts[best])


def test_few_wrong_traces_give_the_median_of_the_signal() -> None:
    method = fitted(signal="net", min_incorrect=1000)
    assert method.fitted().threshold == pytest.approx(np.median(raw(POOL, "net")))
    assert "median" in method.fitted().about["rule"]


def test_the_grid_holds_both_ends_and_no_fractions_of_a_step() -> None:
    found = quantiles((0.2, 0.99, 0.01))
    assert len(found) == 80
    np.testing.assert_allclose(found * 100, np.arange(20, 100))


def test_combined_weights_are_correlations_and_sum_to_one() -> None:
    method = fitted()
    used = method.fitted().scales
    strength = {name: abs(np.corrcoef(raw(POOL, name), rights(POOL))[0, 1]) for name in used}
    total = sum(strength.values())
    for name, scale in used.items():
        assert scale.weight == pytest.approx(strength[name] / total)
    z = [used[n].sign * raw(POOL, n) for n in used]
    z = [
        w * (v - v.mean()) / v.std()
        for v, w in zip(z, (s.weight for s in used.values()), strict=True)
    ]
    np.testing.assert_allclose(score_of(method, POOL), np.sum(z, axis=0))


def test_a_sign_against_the_paper_is_learned_with_a_warning() -> None:
    turned = [replace(t, right=not t.right) for t in POOL]
    with pytest.warns(UserWarning, match="net: right traces have lower"):
        method = LTSequential(k=16, signal="net").fit(turned)
    assert method.fitted().scales["net"].sign == -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(PAPER, signal="net").fit(turned).fitted().scales["net"].sign == 1


def test_length_control_takes_length_out() -> None:
    method = fitted(signal="cumulative", length_control=True)
    tokens = raw(POOL, "length")
    assert abs(np.corrcoef(score_of(fitted(signal="cumulative"), POOL), tokens)[0, 1]) > 0.5
    assert abs(np.corrcoef(score_of(method, POOL), tokens)[0, 1]) < 1e-9
    assert partial_correlation(tokens, rights(POOL), tokens) == pytest.approx(0, abs=1e-9)


def test_a_transferred_threshold_keeps_its_percentile() -> None:
    method = fitted(signal="net")
    louder = [replace(t, signals=replace(t.signals, net=3 * t.signals.net + 1)) for t in traces(5)]
    moved = method.transfer(louder).fitted()
    share = (raw(louder, "net") < moved.threshold).mean()
    assert share == pytest.approx(method.fitted().percentile, abs=0.01)
    assert method.transfer(POOL).fitted().threshold == pytest.approx(
        method.fitted().threshold, abs=0.05
    )


def test_a_split_keeps_questions_together_and_is_repeatable() -> None:
    one, other = split(POOL, 0.3, 42)
    assert not {t.question for t in one} & {t.question for t in other}
    assert len(one) == 12 * R
    assert split(list(reversed(POOL)), 0.3, 42)[0] == list(reversed(one))


# -- early selection ------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["rf", "logistic", "svm", "tree"])
def test_a_classifier_finds_the_traces_that_move_on(classifier: Any) -> None:
    method = LTEarly(k=16, K=3, classifier=classifier).fit(traces(1, 80, 3.0))
    held = traces(2, 80, 3.0)
    chosen = method.replay(held)
    assert chosen.accuracy > rights(held).mean() + 0.1
    assert 0 < chosen.saved < 1
    assert method.fitted().about["cross_validated_auc"] > 0.6


def test_selection_after_all_segments_costs_all_tokens() -> None:
    method = replace(QUICK, K=100).fit(POOL)
    chosen = method.replay(traces(3))
    assert chosen.saved == 0
    assert chosen.tokens_Q.tolist() == chosen.total_Q.tolist()


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_the_saved_share_is_the_papers_formula(seed: int, K: int) -> None:
    held = traces(seed, 6)
    chosen = replace(QUICK, K=K).fit(POOL).replay(held)
    total = kept = 0
    for q, row in enumerate(Table.of(held).rows):
        best = row[int(chosen.chosen_Q[q])]
        total += sum(held[at].tokens for at in row)
        kept += held[best].tokens + sum(min(held[at].tokens, 16 * K) for at in row if at != best)
    assert chosen.saved == pytest.approx((total - kept) / total)
    assert 0 <= chosen.saved < 1


def test_a_trace_too_short_to_judge_is_chosen_last() -> None:
    short = signals(np.zeros((1, 2, 4)))
    five = [replace(t, signals=short) for t in POOL[:4]] + [POOL[4]]
    assert QUICK.fit(POOL).replay(five).chosen_Q.tolist() == [4]


def test_each_data_set_is_judged_by_the_others() -> None:
    sets = {name: traces(i, 20, 3.0, prefix=name) for i, name in enumerate("abc")}
    found = leave_one_out(QUICK, sets)
    for name, (method, chosen) in found.items():
        assert method.fitted().about["questions"] == 40
        assert len(chosen.right_Q) == 20
        poisoned = {**sets, name: [replace(t, right=not t.right) for t in sets[name]]}
        again = leave_one_out(QUICK, poisoned)[name][1]
        assert again.chosen_Q.tolist() == chosen.chosen_Q.tolist()


# -- saving ---------------------------------------------------------------------------------------


def test_a_saved_method_scores_alike(tmp_path: Path) -> None:
    method = fitted(length_control=True)
    method.save(tmp_path)
    again = LTSequential(saved=str(tmp_path))
    np.testing.assert_array_equal(score_of(again, POOL), score_of(method, POOL))
    assert again.fitted().threshold == method.fitted().threshold
    assert (again.k, again.signal) == (16, "combined")
    early = LTEarly(k=16, K=3, layers=(0, 1)).fit(POOL)  # a forest
    early.save(tmp_path / "early")
    back = LTEarly(saved=str(tmp_path / "early"))
    assert back.layers == (0, 1)
    held = traces(4)
    assert back.replay(held).chosen_Q.tolist() == early.replay(held).chosen_Q.tolist()
    files = sorted(p.suffix for p in tmp_path.rglob("*") if p.is_file())
    assert files == [".json", ".json", ".safetensors", ".safetensors"]


def test_a_saved_method_refuses_other_knobs_and_other_kinds(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    with pytest.raises(InputError, match="k=8"):
        LTSequential(k=8, saved=str(tmp_path))
    with pytest.raises(ModelError, match="early"):
        LTEarly(saved=str(tmp_path))
    with pytest.raises(ModelError, match="fit one"):
        LTSequential(saved=str(tmp_path / "nowhere"))
    (tmp_path / "latent_trajectory.json").write_text("{}")
    with pytest.raises(ModelError):
        LTSequential(saved=str(tmp_path))


# -- bad input ------------------------------------------------------------------------------------

RIGHT = [replace(t, right=True) for t in POOL]
SHORT = [replace(t, signals=signals(np.zeros((1, 2, 4)))) for t in POOL]


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: LTSequential(k=0), "k=0"),
        (lambda: LTSequential(R=1), "R=1"),
        (lambda: LTSequential(signal="entropy"), "signal"),
        (lambda: LTSequential(layers=(-1,)), "layers"),
        (lambda: LTSequential(grid=(0.5, 0.2, 0.1)), "grid"),
        (lambda: LTSequential(grid=(0.2, 0.9, 0.0)), "grid"),
        (lambda: LTSequential(wave=0), "wave"),
        (lambda: LTSequential(sign="both"), "sign"),
        (lambda: LTSequential(normalise="zscore"), "normalise"),
        (lambda: LTSequential().fitted(), "not fitted"),
        (lambda: LTEarly().fitted(), "not fitted"),
        (lambda: LTEarly(K=1), "K=1"),
        (lambda: LTEarly(R=1), "R=1"),
        (lambda: LTEarly(folds=1), "folds"),
        (lambda: LTEarly(classifier="knn"), "classifier"),
        (lambda: PAPER.fit(RIGHT), "all 200 calibration traces are right"),
        (lambda: QUICK.fit(RIGHT), "both kinds"),
        (lambda: PAPER.fit(SHORT), "lower k"),
        (lambda: QUICK.fit(SHORT), "lower k"),
        (lambda: PAPER.fit([]), "collect"),
        (lambda: PAPER.fit([POOL[0], POOL[0]]), "one index"),
        (lambda: QUICK.fit(POOL[:10]), "folds=3"),
        (lambda: fitted().replay(POOL, POOL), "split by question"),
        (lambda: QUICK.fit(POOL).replay(POOL, POOL), "split by question"),
        (lambda: split(POOL, 0.0), "calib_fraction"),
        (lambda: fitted().transfer(SHORT), "lower k"),
        (lambda: leave_one_out(LTEarly(), {"a": POOL}), "at least 2"),
        (lambda: raw(POOL, "entropy"), "look="),
    ],
)
def test_bad_input_is_named(build: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        build()
