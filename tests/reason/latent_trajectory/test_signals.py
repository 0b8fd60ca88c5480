"""Signals of a trace: what the formulas say of lines, loops, rotations and short traces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.reason.latent_trajectory import Stream, nearest_to_centroid, signals
from outlay.reason.latent_trajectory.signals import cross_layer, layer_signals, step_signals
from outlay.stats import auc


def walk(seed: int, n: int = 6, layers: int = 3, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, layers, width))


def rotation(seed: int, width: int = 5) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


SEEDS = st.integers(0, 10**6)
SIZES = st.integers(2, 9)


@given(SEEDS, st.integers(3, 9), st.floats(0.1, 10))
def test_a_straight_line_is_aligned_and_as_long_as_its_parts(
    seed: int, n: int, step: float
) -> None:
    start, way = walk(seed, 1)[0], walk(seed + 1, 1)[0] * step
    line = np.stack([start + i * way for i in range(n)])
    net_L, cumulative_L, aligned_L = layer_signals(line)
    np.testing.assert_allclose(aligned_L, 1)
    np.testing.assert_allclose(net_L, np.linalg.norm(way, axis=1))
    np.testing.assert_allclose(cumulative_L, (n - 1) * net_L)


@given(SEEDS, SIZES)
def test_the_drift_is_never_longer_than_the_way(seed: int, n: int) -> None:
    net_L, cumulative_L, aligned_L = layer_signals(walk(seed, n))
    assert (net_L * (n - 1) <= cumulative_L + 1e-9).all()
    assert (np.abs(aligned_L) <= 1 + 1e-9).all()


@given(SEEDS, SIZES)
def test_a_closed_loop_has_no_net_and_no_aligned_change(seed: int, n: int) -> None:
    path = walk(seed, n)
    found = signals(np.concatenate([path, path[:1]]))
    assert found.net == 0
    assert found.aligned == 0
    assert found.cumulative > 0


@given(SEEDS, SIZES, st.floats(0.01, 100))
def test_scaling_moves_and_rotations_change_what_they_should(
    seed: int, n: int, factor: float
) -> None:
    path = walk(seed, n)
    plain = signals(path)
    scaled, moved = signals(path * factor), signals(path + walk(seed + 1, 1))
    turned = signals(path @ rotation(seed))
    assert scaled.aligned == pytest.approx(plain.aligned, abs=1e-9)
    assert scaled.net == pytest.approx(factor * plain.net)
    assert scaled.cumulative == pytest.approx(factor * plain.cumulative)
    for other in (moved, turned):
        assert other.net == pytest.approx(plain.net)
        assert other.cumulative == pytest.approx(plain.cumulative)
        assert other.aligned == pytest.approx(plain.aligned, abs=1e-9)


def test_one_segment_says_nothing_and_two_are_aligned() -> None:
    one = signals(walk(0, 1))
    assert all(math.isnan(v) for v in (one.net, one.cumulative, one.aligned))
    assert one.net_K == ()
    assert signals(walk(0, 2)).aligned == pytest.approx(1)


def test_a_step_of_zero_counts_as_not_aligned() -> None:
    a, b = walk(0, 2)
    assert signals(np.stack([a, b, b])).aligned == pytest.approx(0.5)


@given(SEEDS, SIZES)
def test_aligned_change_is_the_mean_of_torchs_cosines(seed: int, n: int) -> None:
    path_NLC = torch.tensor(walk(seed, n))
    updates_KLC = path_NLC.diff(dim=0)
    drift_LC = path_NLC[-1] - path_NLC[0]
    cosines_KL = torch.cosine_similarity(updates_KLC, drift_LC[None].expand_as(updates_KLC), -1)
    assert signals(path_NLC.numpy()).aligned == pytest.approx(float(cosines_KL.mean()), abs=1e-7)


@given(SEEDS, SIZES)
def test_the_last_step_is_the_whole_trace(seed: int, n: int) -> None:
    found = signals(walk(seed, n))
    assert found.net_K[-1] == pytest.approx(found.net)
    assert found.cumulative_K[-1] == pytest.approx(found.cumulative)
    assert len(found.net_K) == n - 1


@given(SEEDS, SIZES, st.integers(1, 9))
def test_early_steps_do_not_depend_on_later_segments(seed: int, n: int, more: int) -> None:
    path, rest = walk(seed, n), walk(seed + 1, more)
    for rule in ("none", "unit_rms"):
        short, long = signals(path, rule), signals(np.concatenate([path, rest]), rule)
        assert long.net_K[: n - 1] == pytest.approx(short.net_K)
        assert long.cumulative_K[: n - 1] == pytest.approx(short.cumulative_K)


def test_steps_equal_a_loop() -> None:
    path = walk(3, 5)
    net_K, cumulative_K = step_signals(path)
    total = 0.0
    for k in range(1, 5):
        total += np.mean(
            [np.linalg.norm(path[k, layer] - path[k - 1, layer]) for layer in range(3)]
        )
        away = np.mean([np.linalg.norm(path[k, layer] - path[0, layer]) for layer in range(3)])
        assert net_K[k - 1] == pytest.approx(away / k)
        assert cumulative_K[k - 1] == pytest.approx(total)


@given(SEEDS, SIZES)
def test_a_stream_of_segments_equals_the_whole(seed: int, n: int) -> None:
    path, stream = walk(seed, n), Stream()
    for mean_LC in path:
        stream.add(mean_LC)
    whole = signals(path)
    assert stream.values() == pytest.approx((whole.net, whole.cumulative, whole.aligned), abs=1e-9)


def test_a_stream_says_nothing_before_its_second_segment() -> None:
    stream = Stream()
    assert all(map(math.isnan, stream.values()))
    stream.add(walk(0, 1)[0])
    assert all(map(math.isnan, stream.values()))


def test_cross_layer_signals_equal_a_loop() -> None:
    path = walk(4, 4)
    mags, angs = [], []
    for states in path:

        def angle(a: np.ndarray, b: np.ndarray) -> float:
            return math.acos(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

        pairs = [(states[0], states[1]), (states[1], states[2])]
        whole = np.linalg.norm(states[2] - states[0])
        mags.append(np.mean([np.linalg.norm(b - a) / whole for a, b in pairs]))
        angs.append(np.mean([angle(a, b) for a, b in pairs]) / angle(states[0], states[2]))
    assert cross_layer(path) == pytest.approx((np.mean(mags), np.mean(angs)), rel=1e-6)


def test_one_layer_has_no_cross_layer_signals() -> None:
    found = signals(walk(0, 4, layers=1))
    assert math.isnan(found.layer_mag)
    assert math.isfinite(found.net)


def test_unit_rms_gives_every_layer_the_same_say() -> None:
    path = walk(5)
    loud = path * np.array([1.0, 1e4, 1.0])[:, None]
    assert signals(loud, "unit_rms").net == pytest.approx(signals(path, "unit_rms").net)
    assert signals(loud).net > 1000 * signals(path).net


def test_the_centroid_chooses_the_trace_that_is_like_the_others() -> None:
    same = walk(1, 3)
    assert nearest_to_centroid([walk(9, 3), same, same * 1.01, same]) in (1, 2, 3)


@settings(max_examples=30)
@given(SEEDS, st.integers(4, 40))
def test_auc_equals_sklearns(seed: int, n: int) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    values, right = rng.integers(0, 6, n).astype(float), rng.integers(0, 2, n)
    right[:2] = 0, 1
    assert auc(values, right) == pytest.approx(roc_auc_score(right, values))
    values[2] = np.nan
    known = np.isfinite(values)
    assert auc(values, right) == pytest.approx(roc_auc_score(right[known], values[known]))


def test_auc_within_groups_does_not_reward_telling_groups_apart() -> None:
    values, right = [9, 9, 1, 1], [True, True, False, False]
    assert auc(values, right) == 1
    assert math.isnan(auc(values, right, ["a", "a", "b", "b"]))
    assert auc([9, 8, 2, 1], [False, True, False, True], ["a", "a", "b", "b"]) == 0


@pytest.mark.parametrize(
    ("means", "rule", "word"),
    [
        (np.zeros((3, 4)), "none", "shape"),
        (np.zeros((0, 1, 2)), "none", "shape"),
        (np.full((2, 1, 2), np.nan), "none", "finite"),
        (np.zeros((2, 1, 2)), "zscore", "unit_rms"),
    ],
)
def test_unusable_states_are_refused(means: np.ndarray, rule: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        signals(means, rule)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        nearest_to_centroid([])
