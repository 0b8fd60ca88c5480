"""Which count a training step draws."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from outlay.errors import InputError
from outlay.vision.tokenflex import CountDraw


def series(draw: CountDraw, steps: int, images: int = 1) -> list[list[object]]:
    return [draw.at(step, images) for step in range(steps)]


@pytest.mark.parametrize("probs", [(0.5, 0.3, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.5)])
@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_draws_follow_the_probabilities(probs: tuple[float, ...], granularity: str) -> None:
    draw = CountDraw(probs=probs, draw=granularity, seed=3)  # type: ignore[arg-type]
    steps, images = (4000, 2) if granularity == "batch" else (40, 100)
    drawn = [count for counts in series(draw, steps, images) for count in counts]
    drawn = drawn[::2] if granularity == "batch" else drawn
    seen = Counter(drawn)
    expected = [p * len(drawn) for p in probs]
    assert chisquare([seen[n] for n in draw.counts], expected).pvalue > 1e-3


def test_draws_of_a_step_and_of_the_next_are_independent() -> None:
    drawn = [counts[0] for counts in series(CountDraw(probs=(0.3, 0.3, 0.4)), 4000)]
    pairs = Counter(pairwise(drawn))
    share = {64: 0.3, 144: 0.3, 256: 0.4}
    expected = [share[a] * share[b] * (len(drawn) - 1) for a in share for b in share]
    assert chisquare([pairs[a, b] for a in share for b in share], expected, 4).pvalue > 1e-3


def test_a_batch_shares_its_count_and_samples_do_not() -> None:
    assert all(len(set(counts)) == 1 for counts in series(CountDraw(), 30, 8))
    mixed = series(CountDraw(draw="sample"), 30, 8)
    assert all(len(counts) == 8 for counts in mixed)
    assert any(len(set(counts)) > 1 for counts in mixed)


def test_two_processes_draw_the_same_series() -> None:
    """Whatever each has done with its own global generators."""
    first = series(CountDraw(seed=7, draw="sample"), 50, 4)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    torch.rand(10)
    assert series(CountDraw(seed=7, draw="sample"), 50, 4) == first
    assert series(CountDraw(seed=8, draw="sample"), 50, 4) != first


def test_a_draw_moves_no_global_generator() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    series(CountDraw(), 20)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_a_resumed_training_draws_on() -> None:
    whole = series(CountDraw(seed=1), 40)
    fresh = CountDraw(seed=1)
    assert [fresh.at(step) for step in range(25, 40)] == whole[25:]


def test_batches_of_one_step_draw_for_themselves() -> None:
    draw = CountDraw()
    assert len({tuple(draw.at(0, micro=micro)) for micro in range(20)}) > 1


def test_a_probability_of_one_is_a_fixed_count() -> None:
    for index, count in enumerate((64, 144, 256)):
        probs = tuple(float(i == index) for i in range(3))
        assert {c for counts in series(CountDraw(probs=probs), 50) for c in counts} == {count}
    assert CountDraw.fixed(36).at(5, 3) == [36, 36, 36]


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_a_count_of_probability_zero_is_never_drawn(weights: list[int], seed: int) -> None:
    counts = tuple((i + 1) ** 2 for i in range(len(weights)))
    probs = tuple(w / sum(weights) for w in weights)
    drawn = {c for one in series(CountDraw(counts, probs, seed=seed), 60) for c in one}
    assert drawn <= {count for count, weight in zip(counts, weights, strict=True) if weight}


def test_the_papers_mixture_costs_184_tokens_an_image() -> None:
    assert CountDraw().expected() == pytest.approx(184)
    assert CountDraw().expected() / 256 == pytest.approx(0.72, abs=0.005)  # 28 % fewer
    drawn = [count for (count,) in series(CountDraw(), 4000)]
    assert np.mean(drawn) == pytest.approx(184, rel=0.03)  # type: ignore[arg-type]


def test_a_stage_without_random_counts_takes_the_largest() -> None:
    draw = CountDraw(stage_on=(2, 3))
    assert {draw.at(step, stage=1)[0] for step in range(40)} == {256}
    assert len({draw.at(step, stage=2)[0] for step in range(40)}) == 3
    assert draw.expected(stage=1) == 256


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"probs": (0.5, 0.5)}, "2 probs for 3 counts"),
        ({"probs": (0.2, 0.3, 0.4)}, r"sum to 0.9; they must sum to 1"),
        ({"probs": (-0.2, 0.6, 0.6)}, "numbers of at least 0"),
        ({"probs": (float("nan"), 0.5, 0.5)}, "numbers of at least 0"),
        ({"counts": (144, 64, 256)}, "from few to many"),
        ({"counts": (64, 64, 256)}, "give every count once"),
        ({"counts": (64, 145, 256)}, "counts=145 is not a square"),
        ({"counts": (), "probs": ()}, "counts is empty"),
        ({"draw": "step"}, "use 'batch' or 'sample'"),
        ({"stage_on": (0,)}, "stages are 1, 2 and 3"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_draw_that_cannot_be_is_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        CountDraw(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{"step": -1}, {"step": 0, "images": 0}, {"step": 0, "micro": -1}]
)
def test_a_step_that_cannot_be_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(InputError, match="need step and micro of at least 0"):
        CountDraw().at(**given)
    with pytest.raises(InputError, match="stages are 1, 2 and 3"):
        CountDraw().at(0, stage=4)
