"""Batching of texts by length, and the losses of one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outlay.models.scoring import batch_losses, batches, padding_waste, position_losses
from tiny_models import tiny_model

LENGTHS = st.lists(st.integers(1, 3000), max_size=60)


@given(LENGTHS, st.sampled_from([1, 100, 4096]))
def test_padding_wastes_less_than_a_tenth_and_batches_keep_their_size(
    lengths: list[int], max_tokens: int
) -> None:
    groups = list(batches(lengths, max_tokens=max_tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert padding_waste(lengths, groups) <= 0.1
    for group in groups:
        widest = max(lengths[i] for i in group)
        assert len(group) * widest <= max_tokens or len(group) == 1
        assert sum(lengths[i] for i in group) >= 0.9 * len(group) * widest - 1e-6


@given(st.integers(1, 400), st.integers(1, 40))
def test_equal_lengths_fill_batches_to_the_brim(length: int, count: int) -> None:
    groups = list(batches([length] * count, max_tokens=4096))
    each = max(1, 4096 // length)
    assert [len(group) for group in groups] == [each] * (count // each) + [count % each] * (
        count % each > 0
    )


def test_waste_of_nothing_is_nothing() -> None:
    assert padding_waste([], []) == 0
    assert padding_waste([10, 5], [[0, 1]]) == pytest.approx(0.25)


@given(st.integers(0, 300), st.sampled_from([1, 7, 128]))
def test_slices_do_not_change_losses(n: int, slice_size: int) -> None:
    torch.manual_seed(n)
    hidden_NC, head = torch.randn(n, 8), torch.nn.Linear(8, 20)
    targets_N = torch.randint(0, 20, (n,))
    with torch.no_grad():
        found_N = position_losses(hidden_NC, targets_N, head, slice_size=slice_size)
        want_N = torch.nn.functional.cross_entropy(head(hidden_NC), targets_N, reduction="none")
    assert found_N.shape == (n,)
    torch.testing.assert_close(found_N, want_N)


def test_the_head_sees_only_the_positions_asked_for() -> None:
    model = tiny_model()
    seen = 0

    def head(hidden_NC: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(hidden_NC)
        return model.network.head(hidden_NC)

    rows = [[5, 6, 7, 8, 9], [5, 6], [7]]
    with torch.inference_mode():
        found = batch_losses(
            model.network.body, head, rows, [3, 0, 0], pad=0, device=torch.device("cpu")
        )
    assert seen == 2 + 1
    assert [np.isfinite(f).tolist() for f in found] == [
        [False, False, False, True, True],
        [False, True],
        [False],
    ]


def test_results_keep_the_order_of_the_texts() -> None:
    model = tiny_model()
    model.max_score_tokens = 20
    texts = ["z" * (1 + 7 * i % 23) for i in range(20)]
    assert [len(losses) for losses in model.losses(texts)] == [len(text) for text in texts]
