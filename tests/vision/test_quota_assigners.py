"""QuoTA: from a map to the tokens of a quota."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.quota.allocation import ASSIGNERS, FLAT
from outlay.vision.quota.assigners import assign, with_newlines
from outlay.vision.quota.merging import merge

SIDES = st.integers(1, 6)


def a_map(h: int, w: int, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(h, w, d, generator=torch.Generator().manual_seed(seed)).double()


def merged_slowly(tokens: list[Tensor], n: int) -> list[Tensor]:
    """Rounds of matching, one pair at a time, token by token."""
    held = [(x.clone(), 1) for x in tokens]
    while len(held) > n:
        seekers = {}
        for i in range(0, len(held), 2):
            alike = {
                j: float(torch.cosine_similarity(held[i][0], held[j][0], dim=0))
                for j in range(1, len(held), 2)
            }
            seekers[i] = max(alike.items(), key=lambda pair: pair[1])
        order = sorted(seekers, key=lambda i: -seekers[i][1])
        gone = order[: min(len(held) - n, (len(held) + 1) // 2)]
        into: dict[int, list[int]] = {}
        for i in gone:
            into.setdefault(seekers[i][0], []).append(i)
        after = []
        for j, (x, size) in enumerate(held):
            if j in gone:
                continue
            group = [(x, size), *(held[i] for i in into.get(j, []))]
            total = sum(s for _, s in group)
            after.append((sum((y * s for y, s in group), torch.zeros_like(x)) / total, total))
        held = after
    return [x for x, _ in held]


@given(SIDES, SIDES)
def test_resizing_to_the_native_size_is_the_identity(h: int, w: int) -> None:
    given_ = a_map(h, w)
    for assigner in ASSIGNERS:
        size = (1, h * w) if assigner in FLAT else (h, w)
        made = assign(given_, size, assigner)  # type: ignore[arg-type]
        tolerance = 0 if assigner not in ("merge", "lines") else 1e-6  # these work in float32
        torch.testing.assert_close(
            made.reshape(h * w, -1), given_.reshape(h * w, -1), atol=max(tolerance, 1e-12), rtol=0
        )


@given(SIDES, SIDES)
def test_averaging_to_one_token_is_the_mean(h: int, w: int) -> None:
    given_ = a_map(h, w)
    made = assign(given_, (1, 1), "avgpool")
    torch.testing.assert_close(made[0, 0], given_.mean((0, 1)))


@given(SIDES, SIDES)
def test_merging_to_one_token_is_the_mean_since_sizes_are_carried(h: int, w: int) -> None:
    given_ = a_map(h, w)
    for assigner in ("merge", "lines"):
        made = assign(given_, (1, 1), assigner)  # type: ignore[arg-type]
        torch.testing.assert_close(made[0, 0], given_.mean((0, 1)), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 20), st.data())
def test_merging_equals_a_slow_reference(count: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, count))
    tokens = a_map(1, count, seed=count)[0]
    made, sizes = merge(tokens, n)
    torch.testing.assert_close(
        made, torch.stack(merged_slowly(list(tokens), n)), atol=1e-5, rtol=1e-5
    )
    assert int(sizes.sum()) == count


def test_merging_takes_the_most_alike_and_keeps_the_order_of_the_image() -> None:
    tokens = torch.eye(6, dtype=torch.float64)
    tokens[2] = tokens[5] + 0.01 * tokens[0]  # 2 and 5 are alike, nothing else is
    made, sizes = merge(tokens, 5)
    assert sizes.tolist() == [1, 1, 1, 1, 2]
    torch.testing.assert_close(made[:4], tokens[[0, 1, 3, 4]], atol=1e-6, rtol=0)
    torch.testing.assert_close(made[4], (tokens[2] + tokens[5]) / 2, atol=1e-6, rtol=0)


def test_lines_merge_rows_that_are_alike() -> None:
    given_ = a_map(4, 3)
    given_[1] = given_[2]
    made = assign(given_, (3, 3), "lines")
    torch.testing.assert_close(made, given_[[0, 2, 3]], atol=1e-6, rtol=0)


def test_linspace_takes_tokens_at_even_distances_in_raster_order() -> None:
    given_ = torch.arange(9.0).reshape(3, 3, 1)
    assert assign(given_, (1, 3), "linspace").flatten().tolist() == [0, 4, 8]
    assert assign(given_, (1, 1), "linspace").flatten().tolist() == [0]


def test_bilinear_may_grow_and_keeps_a_constant() -> None:
    given_ = torch.full((2, 3, 4), 2.5)
    made = assign(given_, (7, 5), "bilinear")
    assert made.shape == (7, 5, 4)
    torch.testing.assert_close(made, torch.full((7, 5, 4), 2.5))


def test_bilinear_halves_by_the_mean_of_neighbours() -> None:
    given_ = a_map(4, 4)
    made = assign(given_, (2, 2), "bilinear")
    torch.testing.assert_close(made, assign(given_, (2, 2), "avgpool"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_the_type_of_features_is_kept(assigner: Any, dtype: torch.dtype) -> None:
    size = (1, 4) if assigner in FLAT else (2, 2)
    made = assign(a_map(4, 4).to(dtype), size, assigner)
    assert made.dtype == dtype
    assert made.numel() == 4 * 5


def test_a_newline_ends_every_row() -> None:
    grid = torch.arange(12.0).reshape(2, 3, 2)
    made = with_newlines(grid, torch.tensor([-1.0, -2.0]))
    assert made.shape == (8, 2)
    assert made[[3, 7]].tolist() == [[-1.0, -2.0]] * 2
    torch.testing.assert_close(made[[0, 1, 2, 4, 5, 6]], grid.reshape(6, 2))


@pytest.mark.parametrize(
    ("assigner", "size", "said"),
    [
        ("merge", (1, 17), "merging cannot make 17 tokens of 16"),
        ("linspace", (1, 17), "cannot take 17 of 16"),
        ("avgpool", (5, 4), "cannot make 5 x 4 of 4 x 4"),
        ("lines", (5, 4), "merging cannot make 5 tokens of 4"),
        ("bilinear", (0, 4), "leave the frame out"),
        ("nearest", (2, 2), "assigner='nearest'"),
    ],
)
def test_what_an_assigner_cannot_do_is_refused(assigner: Any, size: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        assign(a_map(4, 4), size, assigner)


def test_a_map_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="a map of shape"):
        assign(torch.zeros(0, 4, 3), (1, 1))
    with pytest.raises(InputError, match="a map of shape"):
        assign(torch.zeros(4, 3), (1, 1))
