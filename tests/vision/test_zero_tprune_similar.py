"""Near copies: looked for across the groups only, among the less important half, in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.zero_tprune.similar import groups, likeness, near_copies

seeds = st.integers(0, 10_000)
PARTITIONS = ("seq_u", "seq_i", "alt", "random", "full")


def cloud(seed: int, patches: int, images: int = 2, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, patches, width, generator=generator, dtype=torch.float64)


def importance(seed: int, patches: int, images: int = 2) -> Tensor:
    return torch.rand(images, patches, generator=torch.Generator().manual_seed(seed)).double()


def slowly(features: Tensor, ranks: Tensor, count: int) -> list[int]:
    """One image, the obvious way: sort, split, compare every pair, take the closest."""
    order = sorted(range(len(ranks)), key=lambda i: (float(ranks[i]), i))
    low, high = order[: len(order) // 2], order[len(order) // 2 :]

    def cosine(i: int, j: int) -> float:
        a, b = features[i].float(), features[j].float()
        return float(a @ b / a.norm() / b.norm())

    best = {i: max(cosine(i, j) for j in high) for i in low}
    return sorted(sorted(low, key=lambda i: (-best[i], i))[:count])


@given(seeds, st.integers(2, 14), st.data())
def test_the_copies_are_those_of_the_obvious_loop(seed, patches, data) -> None:
    features, ranks = cloud(seed, patches), importance(seed + 1, patches)
    count = data.draw(st.integers(0, patches // 2))
    found = near_copies(features, ranks, count)
    for row in range(2):
        assert found[row].tolist() == slowly(features[row], ranks[row], count)


@given(seeds, st.integers(2, 15), st.sampled_from(PARTITIONS))
def test_groups_are_a_partition_or_everything(seed, patches, partition) -> None:
    one, other = groups(importance(seed, patches), partition)
    everything = list(range(patches))
    for row in range(2):
        if partition == "full":
            assert one[row].tolist() == other[row].tolist() == everything
        else:
            assert sorted(one[row].tolist() + other[row].tolist()) == everything
            assert one.shape[1] == patches // 2


def test_the_paper_drops_from_the_less_important_half() -> None:
    ranks = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.5]])
    assert sorted(groups(ranks, "seq_u")[0][0].tolist()) == [1, 3]
    assert sorted(groups(ranks, "seq_i")[0][0].tolist()) == [0, 2]


def test_of_duplicates_on_both_sides_the_less_important_copy_goes_first() -> None:
    features = cloud(0, 8, images=1)
    features[0, 6] = features[0, 1]  # 1 is unimportant, 6 important
    ranks = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]])
    assert near_copies(features, ranks, 1).tolist() == [[1]]


def test_duplicates_within_a_group_are_never_matched() -> None:
    features = torch.eye(8).double()[None].clone()
    features[0, 1] = features[0, 0]  # both unimportant
    features[0, 3] = features[0, 7] + 0.5 * features[0, 3]
    ranks = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]])
    assert near_copies(features, ranks, 1).tolist() == [[3]]


def test_without_a_partition_both_copies_may_go() -> None:
    features = torch.eye(6).double()[None].clone()
    features[0, 4] = features[0, 0]
    assert near_copies(features, importance(0, 6, 1), 2, partition="full").tolist() == [[0, 4]]


@given(seeds, st.integers(4, 12))
def test_permuted_patches_lose_the_same_ones(seed, patches) -> None:
    features, ranks = cloud(seed, patches, 1), importance(seed + 1, patches, 1)
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(seed))
    plain = set(near_copies(features, ranks, patches // 2 - 1)[0].tolist())
    turned = near_copies(features[:, order], ranks[:, order], patches // 2 - 1)[0]
    assert {int(order[i]) for i in turned} == plain


def test_equal_likeness_goes_to_the_first() -> None:
    features = torch.ones(1, 7, 3).double()
    assert near_copies(features, torch.ones(1, 7), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("metric", ["cos", "dot", "l1", "l2"])
def test_metrics_are_what_they_are_called(metric) -> None:
    one, other = cloud(1, 3)[:1], cloud(2, 4)[:1]
    a, b = one[0, 1], other[0, 2]
    wanted = {
        "cos": a @ b / a.norm() / b.norm(),
        "dot": a @ b,
        "l1": -(a - b).abs().sum(),
        "l2": -(a - b).square().sum().sqrt(),
    }[metric]
    assert float(likeness(one, other, metric)[0, 1, 2]) == pytest.approx(float(wanted), rel=1e-9)


def test_nan_and_too_many_copies_are_refused() -> None:
    features, ranks = cloud(0, 6), importance(0, 6)
    with pytest.raises(InputError, match="group of 3"):
        near_copies(features, ranks, 4)
    with pytest.raises(InputError, match="NaN"):
        near_copies(features * float("nan"), ranks, 1)
    with pytest.raises(InputError, match="NaN"):
        near_copies(features, ranks * float("nan"), 1)
