"""Segments and masks against slow loops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.rl.segments import answer_mask, fill, find, thinking_length, thinking_mask

cuts = st.lists(st.integers(0, 30), min_size=2, max_size=8).map(sorted)
rows = st.lists(st.tuples(cuts, st.integers(0, 20)), min_size=1, max_size=5)


@given(rows, st.randoms(use_true_random=False))
def test_a_row_sums_to_advantage_times_length_inside_the_mask(rows: list, rng) -> None:  # type: ignore[no-untyped-def,type-arg]
    width = 24
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    segments = []
    for row, (at, length) in enumerate(rows):
        mask[row, :length] = 1
        mask[row, rng.randrange(width)] = 0
        segments.append([(a, b, rng.uniform(-2, 2)) for a, b in pairwise(at)])
    dense = fill(segments, mask, torch.float64)
    for row, parts in enumerate(segments):
        expected = sum(a * int(mask[row, start:end].sum()) for start, end, a in parts)
        assert float(dense[row].sum()) == pytest.approx(expected, abs=1e-9)
        for start, end, a in parts:
            for t in range(min(start, width), min(end, width)):
                assert dense[row, t] == (a if mask[row, t] else 0)
    assert (dense[mask == 0] == 0).all()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([(3, 1, 1.0)], "not a range"),
        ([(-1, 2, 1.0)], "not a range"),
        ([(0, 3, 1.0), (2, 5, 1.0)], "overlap at token 2"),
        ([(0, 2, float("nan"))], "advantage nan"),
    ],
)
def test_bad_segments_are_refused(parts: list, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InputError, match=says):
        fill([parts], torch.ones(1, 6))


def test_one_list_a_row_is_needed() -> None:
    with pytest.raises(InputError, match="1 rows for a batch of 2"):
        fill([[]], torch.ones(2, 3))


@given(
    st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=3)
)
def test_thinking_and_answer_share_a_row_between_them(ids: list[int], marker: list[int]) -> None:
    slow = next((i for i in range(len(ids)) if ids[i : i + len(marker)] == marker), None)
    assert find(ids, marker) == slow
    assert thinking_length(ids, marker) == (len(ids) if slow is None else slow)
    thinking, answer = thinking_mask([ids], marker, 15)[0], answer_mask([ids], marker, 15)[0]
    assert not (thinking & answer).any()
    assert (thinking | answer).tolist() == [i < len(ids) for i in range(15)]
    assert int(thinking.sum()) == thinking_length(ids, marker)


def test_a_marker_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        find([1, 2], [])
