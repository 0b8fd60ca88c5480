"""ToMe: nothing merged is the model, duplicates merge for free, weights are sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.vision.tiny_vits import FusedViT, clip, deit, pictures, siglip, vit
from tests.vision.tiny_vlms import llava
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from outlay.errors import CapabilityError, InputError
from outlay.vision.tome import ToMe, match, merge, mergeable, tome_for
from outlay.vision.zero_tprune import ZeroTPrune
from outlay.vision.zero_tprune.cost import Shape, macs

seeds = st.integers(0, 10_000)


def said(model, images):
    with torch.no_grad():
        output = model(pixel_values=images)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def cloud(seed: int, tokens: int, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, tokens, 5, generator=generator, dtype=torch.float64)


def slowly(keys: Tensor, r: int, special: int) -> dict[int, int]:
    """One image: which token goes into which, the obvious way."""
    tokens = len(keys)
    first = [i for i in range(0, tokens, 2) if i >= special]
    second = [j for j in range(1, tokens, 2) if j >= special]

    def cosine(i: int, j: int) -> float:
        a, b = keys[i].float(), keys[j].float()
        return float(a @ b / a.norm() / b.norm())

    best = {i: max(second, key=lambda j: cosine(i, j)) for i in first}
    order = sorted(first, key=lambda i: -cosine(i, best[i]))
    return {i: best[i] for i in order[:r]}


@given(seeds, st.integers(6, 14), st.integers(0, 2), st.data())
def test_the_matching_is_that_of_the_obvious_loop(seed, tokens, special, data) -> None:
    keys = cloud(seed, tokens)
    r = data.draw(st.integers(0, mergeable(tokens, special)))
    target, stay = match(keys, r, special)
    assert stay.shape == (2, tokens - r)
    for row in range(2):
        gone = {i: int(target[row, i]) for i in range(tokens) if int(target[row, i]) != i}
        assert gone == slowly(keys[row], r, special)
        assert stay[row].tolist() == [i for i in range(tokens) if i not in gone]
        assert all(i >= special and j >= special for i, j in gone.items())


@given(seeds, st.integers(6, 12), st.data())
def test_merging_keeps_the_sum_over_patches(seed, tokens, data) -> None:
    hidden = cloud(seed, tokens)
    sizes = torch.randint(1, 5, (2, tokens), generator=torch.Generator().manual_seed(seed)).double()
    r = data.draw(st.integers(0, mergeable(tokens, 1)))
    merged, new = merge(hidden, sizes, *match(hidden, r, 1))
    torch.testing.assert_close(new.sum(1), sizes.sum(1))
    torch.testing.assert_close((merged * new[..., None]).sum(1), (hidden * sizes[..., None]).sum(1))


@pytest.mark.parametrize("make", [vit, deit, clip, siglip])
def test_nothing_merged_is_the_model_bit_for_bit(make) -> None:
    tower = make()
    before = said(tower, pictures())
    with ToMe(r=0)(tower):
        assert torch.equal(said(tower, pictures()), before)
    assert torch.equal(said(tower, pictures()), before)


@pytest.mark.parametrize("make", [vit, deit, clip, siglip])
def test_every_block_merges_r_tokens(make) -> None:
    tower = make()
    with ToMe(r=3)(tower) as merged:
        said(tower, pictures())
    special = {vit: 1, deit: 2, clip: 1, siglip: 0}[make]
    assert merged.seen == [16 + special - 3 * block for block in range(4)]
    assert merged.sizes_BK.shape == (3, 16 + special - 12)
    assert merged.sizes_BK.sum(1).tolist() == [16.0 + special] * 3
    for row in range(3):
        sizes = torch.bincount(merged.owner_BP[row], minlength=4 + special)
        assert torch.equal(sizes[special:].float(), merged.sizes_BK[row, special:])
    assert bool((merged.sizes_BK[:, :special] == 1).all())


def test_proportional_attention_makes_merging_duplicates_free() -> None:
    """Tokens that are equal everywhere merge without a trace, if their size counts."""
    tower = vit(seed=2).double()
    places = tower.vit.embeddings.position_embeddings.data
    places[:, 1:] = places[:, 1:2]  # no positions
    square = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    other = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    grid = [square if i % 5 else other for i in range(16)]
    rows = [torch.cat(grid[start : start + 4], -1) for start in range(0, 16, 4)]
    images = torch.cat(rows, -2)
    full = said(tower, images)
    with ToMe(r=2)(tower):
        torch.testing.assert_close(said(tower, images), full)
    with ToMe(r=2, proportional=False)(tower):
        assert not torch.allclose(said(tower, images), full, atol=1e-6)


def test_eager_and_sdpa_merge_alike_and_a_batch_is_its_images() -> None:
    images = pictures().double()
    results = []
    for attention in ("eager", "sdpa"):
        tower = vit(attention=attention).double()
        with ToMe(r=3)(tower):
            results.append(said(tower, images))
            for row in range(3):
                torch.testing.assert_close(said(tower, images[row : row + 1])[0], results[-1][row])
    torch.testing.assert_close(*results)


def test_the_ledger_is_what_flop_counter_mode_counts() -> None:
    for tower in (vit(), deit()):
        tower.set_attn_implementation("eager")
        for method in (ToMe(r=0), ToMe(r=3), ToMe(r=(0, 8, 0, 2))):
            with FlopCounterMode(display=False) as counter, method(tower), torch.no_grad():
                tower(pixel_values=pictures(1))
            assert counter.get_total_flops() == 2 * method.macs(Shape.of(tower))


def test_the_smallest_r_within_a_budget_is_found() -> None:
    shape = Shape.of(vit())
    found = tome_for(shape, int(0.7 * macs(shape)))
    assert isinstance(found.r, int)
    assert found.macs(shape) <= 0.7 * macs(shape) < ToMe(found.r - 1).macs(shape)
    with pytest.raises(InputError, match="no r merges"):
        tome_for(shape, 1)


def test_never_more_than_half_goes_at_once() -> None:
    assert ToMe(r=100).merges(16, 1, 4) == [8, 4, 2, 1]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_neither_forgets_tokens_nor_overflows(kind) -> None:
    hidden = torch.full((1, 2, 3), 300.0, dtype=kind)
    sizes = torch.tensor([[256.0, 1.0]])
    target, stay = torch.tensor([[1, 1]]), torch.tensor([[1]])
    merged, together = merge(hidden, sizes, target, stay)
    assert together.tolist() == [[257.0]]
    assert merged.dtype == kind
    assert torch.equal(merged, hidden[:, :1])


def test_bad_input_is_refused() -> None:
    for r in (-1, 10**6, True, 1.5, (1, -2), "3", None):
        with pytest.raises(InputError, match="r="):
            ToMe(r=r)
    tower = vit()
    with pytest.raises(InputError, match="2 numbers for 4 blocks"), ToMe(r=(1, 2))(tower):
        said(tower, pictures())
    with pytest.raises(CapabilityError, match="no place in a prompt"):
        ToMe()(llava())
    with pytest.raises(CapabilityError, match="no block of a ViT"):
        ToMe(proportional=False)(FusedViT())
    with pytest.raises(InputError, match="can merge"):
        match(cloud(0, 6), 4, 1)
    with pytest.raises(InputError, match="NaN"):
        match(cloud(0, 6) * float("nan"), 1, 1)
    for other in (ToMe(r=1), ZeroTPrune(preset="last")):
        with other(tower), pytest.raises(CapabilityError, match="already"), ToMe(r=1)(tower):
            pass
    mask = torch.ones(3, 17)
    mask[:, 4] = 0
    with ToMe(r=1)(tower), pytest.raises(CapabilityError, match="mask"):
        tower.vit(pixel_values=pictures(), attention_mask=mask)
