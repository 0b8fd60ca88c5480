import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.prompt.blocks import cut_blocks, spike_threshold, spikes

floats = st.floats(0, 20) | st.sampled_from([math.inf, math.nan])


@given(st.lists(floats, max_size=30), st.floats(0, 3))
def test_blocks_cover_all_lines_in_order(bits: list[float], threshold: float) -> None:
    blocks = cut_blocks(bits, threshold)
    assert [i for a, b in blocks for i in range(a, b)] == list(range(len(bits)))


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30, unique=True))
def test_monotone_losses_have_no_spikes(bits: list[float]) -> None:
    assert spikes(sorted(bits), 0.0) == []
    assert spikes(sorted(bits, reverse=True), 0.0) == []


@given(st.lists(floats, max_size=30), st.sampled_from(["std_only", "package"]))
def test_infinite_alpha_gives_one_block(bits: list[float], rule) -> None:
    threshold = spike_threshold(bits, math.inf, rule)
    finite = [h for h in bits if math.isfinite(h) and h > 0]
    if len(finite) >= 3:
        assert len(cut_blocks(bits, threshold)) <= 1


def test_lines_without_a_loss_are_no_spikes_and_count_as_equal_neighbours() -> None:
    assert spikes([1, math.inf, 1], 0.5) == []
    assert spikes([1, math.nan, 1], 0.5) == []
    assert spikes([math.inf, 3, 1], 0.5) == [1]
    assert spikes([math.nan, 3, 5], 0.5) == []
    assert spikes([1, 3, 1], 0.5) == spikes([math.inf, 3, 1], 0.5)


def test_flat_losses_have_no_spikes_even_at_threshold_zero() -> None:
    assert spikes([2.0] * 6, spike_threshold([2.0] * 6, 1.0)) == []


def test_thresholds_follow_their_formulas() -> None:
    h = [0.0, 1.0, 2.0, 4.0, 9.0, math.inf]
    v = np.array([1.0, 2.0, 4.0, 9.0])
    mad = float(np.median(abs(v - 3)))
    q25, q75 = np.percentile(v, [25, 75])
    assert spike_threshold(h, 2) == pytest.approx(2 * v.std())
    assert spike_threshold(h, 0.2, "package") == pytest.approx(v.mean() + 0.2 * v.std())
    assert spike_threshold(h, 2, "package", "robust_std") == pytest.approx(3 + 2 * 1.4826 * mad)
    assert spike_threshold(h, 2, "package", "iqr") == pytest.approx(q75 + 2 * (q75 - q25))
    assert spike_threshold(h, 2, "package", "mad") == pytest.approx(3 + 2 * mad)
    assert spike_threshold([1.0, 2.0], 1) == 0.5
