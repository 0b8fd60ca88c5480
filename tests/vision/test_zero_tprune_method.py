"""Patches leave real transformers towers: identity, counts, batches, special tokens, decoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.vision.tiny_vits import FusedViT, clip, deit, pictures, siglip, vit
from tests.vision.tiny_vlms import llava, llava_inputs, llava_next, onevision, pixels, prompt, qwen
from transformers import SwinConfig, SwinForImageClassification

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Pruner, top
from outlay.vision.t2t_vit.configuration import T2TViTConfig
from outlay.vision.t2t_vit.model import T2TViTForImageClassification
from outlay.vision.tome import ToMe
from outlay.vision.towers import Reader, find_tower
from outlay.vision.zero_tprune import PatchRanking, Stage, ZeroTPrune
from outlay.vision.zero_tprune.graph import checked, page_rank, start
from outlay.vision.zero_tprune.pruning import Alive

SCHEDULE = [(1, 0.8, 3, 5), (3, 0.5, 1, 2)]
SEEN = [16, 10, 10, 4]  # floor(.8 * 13), then floor(.5 * 9)


@pytest.fixture(scope="module")
def model():
    return vit()


@pytest.fixture(scope="module")
def images():
    return pictures()


def said(model, images):
    with torch.no_grad():
        output = model(pixel_values=images)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


# -- what runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["i-s-i", "s-i", "i-s"])
def test_rate_one_without_copies_is_the_model_bit_for_bit(model, images, order) -> None:
    idle = ZeroTPrune(schedule=[(1, 1.0), (2, 1.0, 0, 30)], order=order)
    with idle(model) as kept:
        assert torch.equal(said(model, images), said(vit(), images))
    assert kept.seen() == [16] * 4


def test_after_the_context_the_model_is_itself(model, images) -> None:
    before = said(model, images)
    with ZeroTPrune(schedule=SCHEDULE)(model):
        assert not torch.equal(said(model, images), before)
    assert torch.equal(said(model, images), before)


@pytest.mark.parametrize("make", [vit, deit, clip, siglip])
def test_blocks_see_what_the_schedule_says(make, images) -> None:
    tower = make()
    with ZeroTPrune(schedule=SCHEDULE)(tower) as kept, torch.no_grad():
        hidden = tower(pixel_values=images, output_hidden_states=True).hidden_states
    assert kept.seen() == SEEN
    special = find_tower(tower).special
    assert [h.shape[1] - special for h in hidden[1:]] == SEEN
    assert kept.indices.shape == (3, 4)
    assert bool((kept.indices.diff(dim=1) > 0).all())
    assert kept.total == [16] * 3


def test_special_tokens_are_counted() -> None:
    towers = {1: (vit(), clip()), 2: (deit(),), 0: (siglip(),)}
    for special, found in towers.items():
        for tower in found:
            assert find_tower(tower).special == special


def test_kept_patches_carry_their_own_hidden_states(model, images) -> None:
    """Pruning is a gather of what the block gave: the first stage leaves the states untouched."""
    with ZeroTPrune(schedule=[(2, 0.5, 2, 3)])(model) as kept, torch.no_grad():
        short = model(pixel_values=images, output_hidden_states=True).hidden_states
    with torch.no_grad():
        full = model(pixel_values=images, output_hidden_states=True).hidden_states
    assert torch.equal(short[2], full[2])
    with torch.no_grad():
        cut = full[2][
            torch.arange(3)[:, None], torch.cat([torch.zeros(3, 1).long(), kept.indices + 1], 1)
        ]
        again = model.vit.layers[2](cut)
    torch.testing.assert_close(short[3], again)


def test_a_distillation_token_survives_to_its_head(images) -> None:
    tower = deit(teacher=True)
    with ZeroTPrune(schedule=[(1, 0.1, 5, 3)])(tower) as kept, torch.no_grad():
        output = tower(pixel_values=images)
    assert kept.seen()[-1] == 1
    assert bool(output.distillation_logits.isfinite().all())
    with torch.no_grad():
        assert not torch.allclose(
            output.distillation_logits, tower(pixel_values=images).distillation_logits
        )


def test_protected_patches_stay(model, images) -> None:
    method = ZeroTPrune(schedule=[(1, 0.2, 4, 2), (2, 0.5, 0, 1)], protect=(4, 9))
    with method(model) as kept:
        said(model, images)
    for row in kept.indices.tolist():
        assert {3, 8} <= set(row)  # token 4 is patch 3
    assert kept.seen() == [16, 2 + 2, 2 + 1, 2 + 1]


def test_a_batch_is_its_images_one_by_one(images) -> None:
    tower = vit(seed=3).double()
    wide = images.double()
    for method in (
        ZeroTPrune(schedule=SCHEDULE),
        ZeroTPrune(schedule=SCHEDULE, s_partition="random", vhf=(0.01, 0.7)),
        ZeroTPrune(schedule=SCHEDULE, order="i-s", head_agg="max"),
        ZeroTPrune(schedule=[(1, 0.5, 0, 50)], wpr_tol=0.2),
        PatchRanking(SCHEDULE, "cls"),
        PatchRanking(SCHEDULE, "grid"),
    ):
        with method(tower) as kept:
            together = said(tower, wide)
            where = kept.indices
        for row in range(3):
            with method(tower) as kept:
                alone = said(tower, wide[row : row + 1])
            assert torch.equal(kept.indices[0], where[row])
            torch.testing.assert_close(alone[0], together[row])


def test_eager_and_sdpa_keep_the_same_patches(images) -> None:
    kept = {}
    for attention in ("eager", "sdpa"):
        tower = vit(attention=attention)
        with ZeroTPrune(schedule=SCHEDULE)(tower) as found:
            said(tower, images)
        kept[attention] = found.indices
    assert torch.equal(kept["eager"], kept["sdpa"])


def test_read_attention_is_what_eager_returns(images) -> None:
    for tower, blocks in ((vit(attention="eager"), "vit"), (deit(), "deit")):
        tower.set_attn_implementation("eager")
        reader = Reader(getattr(tower, blocks).layers[1], "block 2")
        reader.open()
        with torch.no_grad():
            wanted = tower(pixel_values=images, output_attentions=True).attentions[1]
        torch.testing.assert_close(reader.rows(), wanted)
        torch.testing.assert_close(reader.class_row(), wanted[:, :, 0])
        reader.close()


def test_permuted_patches_are_kept_alike(images) -> None:
    """Positions swapped together with patches: the same patches stay."""
    tower = vit(seed=1).double()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    turned = vit(seed=1).double()
    places = tower.vit.embeddings.position_embeddings.data
    turned.vit.embeddings.position_embeddings.data = torch.cat(
        [places[:, :1], places[:, 1:][:, order]], 1
    )
    squares = images.double().unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 3, 16, 8, 8)
    shuffled = squares[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5)
    shuffled = shuffled.reshape(3, 3, 32, 32)
    method = ZeroTPrune(schedule=SCHEDULE)
    with method(tower) as kept:
        plain = said(tower, images.double())
        where = kept.indices
    with method(turned) as kept:
        torch.testing.assert_close(said(turned, shuffled), plain)
    for row in range(3):
        assert set(order[kept.indices[row]].tolist()) == set(where[row].tolist())


def test_towers_with_a_fused_projection_are_read_too() -> None:
    torch.manual_seed(0)
    tower = FusedViT().eval()
    with ZeroTPrune(schedule=[(1, 0.5, 2, 3)], s_feature="value")(tower) as kept, torch.no_grad():
        assert tower(pictures()).shape == (3, 8, 32)
    assert kept.seen() == [16, 7, 7]


def test_a_t2t_vit_is_pruned_and_merged_like_any_other() -> None:
    config = T2TViTConfig(
        image_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    tower = T2TViTForImageClassification(config).eval()
    large = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with ZeroTPrune(schedule=[(1, 0.5, 2, 3)])(tower) as kept:
        assert said(tower, large).shape == (2, 2)
    assert kept.seen() == [16, 7, 7]
    with ToMe(r=2)(tower) as merged:
        said(tower, large)
    assert merged.seen == [17, 15, 13]


def test_gradients_flow_through_what_stays(images) -> None:
    tower = vit()
    with ZeroTPrune(schedule=SCHEDULE)(tower):
        tower(pixel_values=images, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert float(tower.vit.embeddings.patch_embeddings.projection.weight.grad.abs().sum()) > 0


# -- rankings -------------------------------------------------------------------------------------


def test_one_uniform_vote_and_a_mean_over_heads_is_the_column_mean(model, images) -> None:
    plain = ZeroTPrune(schedule=[(1, 0.6), (2, 0.5)], cls_boost=False, head_agg="mean", vhf=None)
    with plain(model) as kept:
        first = said(model, images)
        one = kept.indices
    with PatchRanking([(1, 0.6), (2, 0.5)], "column")(model) as kept:
        assert torch.equal(said(model, images), first)
    assert torch.equal(kept.indices, one)


def test_without_copies_the_best_by_pagerank_stay(model, images) -> None:
    method = ZeroTPrune(schedule=[(2, 0.5, 0, 4)], cls_boost=False, head_agg="mean")
    reader = Reader(model.vit.layers[1], "block 2")
    reader.open()
    said(model, images)
    graph = checked(reader.rows())
    reader.close()
    scores = page_rank(graph, start(17, 0, graph), 4).mean(1)[:, 1:]
    with method(model) as kept:
        said(model, images)
    assert torch.equal(kept.indices, top(scores, 8))


def test_the_class_boost_matters_for_few_votes_only(model, images) -> None:
    gaps = []
    for votes in (1, 60):
        found = []
        for boost in (True, False):
            with ZeroTPrune(schedule=[(2, 0.5, 0, votes)], cls_boost=boost)(model) as kept:
                said(model, images)
            found.append(kept.stage_scores[0])
        gaps.append(float((found[0] - found[1]).abs().max()))
    assert gaps[0] > 0.05
    assert gaps[1] < 1e-3


def test_a_tower_without_class_token_starts_uniform(images) -> None:
    tower = siglip()
    found = []
    for boost in (True, False):
        with ZeroTPrune(schedule=SCHEDULE, cls_boost=boost)(tower) as kept:
            said(tower, images)
        found.append(kept.indices)
    assert torch.equal(*found)
    with (
        pytest.raises(CapabilityError, match="no class token"),
        PatchRanking(SCHEDULE, "cls")(tower),
    ):
        said(tower, images)


@pytest.mark.parametrize(
    "knobs",
    [
        {"s_partition": "seq_i"},
        {"s_partition": "alt"},
        {"s_partition": "random"},
        {"s_partition": "full"},
        {"s_feature": "x"},
        {"s_feature": "query"},
        {"s_feature": "value"},
        {"s_metric": "dot"},
        {"s_metric": "l1"},
        {"s_metric": "l2"},
        {"key_reduce": "mean"},
        {"order": "s-i"},
        {"order": "i-s"},
        {"head_agg": "mean"},
        {"head_agg": "max"},
        {"vhf": (0.01, 0.7)},
        {"wpr_tol": 5.0},
    ],
    ids=str,
)
def test_every_knob_changes_what_stays_and_nothing_else(knobs) -> None:
    many, seen = pictures(12, seed=4), SEEN
    tower = vit(seed=2)
    if knobs.get("order") == "i-s":
        seen = [16, 9, 9, 3]  # floor(.8 * 16) - 3, then floor(.5 * 9) - 1
    found = []
    for method in (ZeroTPrune(schedule=SCHEDULE), ZeroTPrune(schedule=SCHEDULE, **knobs)):
        with method(tower) as kept:
            said(tower, many)
        found.append(kept)
    assert found[1].seen() == seen
    if knobs.get("order") == "i-s":
        assert found[1].indices.shape[1] < found[0].indices.shape[1]
    else:
        assert not torch.equal(found[0].indices, found[1].indices)


def test_random_ranking_follows_its_seed_and_an_oracle_its_scores(model, images) -> None:
    rows = []
    for seed in (0, 0, 1):
        with PatchRanking(SCHEDULE, "random", seed=seed)(model) as kept:
            said(model, images)
        rows.append(kept.indices)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    given_BP = torch.arange(16.0).expand(3, -1)
    with PatchRanking(SCHEDULE, "given", given_BP=given_BP)(model) as kept:
        said(model, images)
    assert kept.indices.tolist() == [[12, 13, 14, 15]] * 3


def test_a_grid_is_even(model, images) -> None:
    with PatchRanking([(1, 0.5), (3, 0.5)], "grid")(model) as kept:
        said(model, images)
    half, quarter = kept.blocks[1][0].tolist(), kept.indices[0].tolist()
    assert half == [i for i in range(16) if (i // 4 + i % 4) % 2 == 0]
    assert quarter == [0, 2, 8, 10]


def test_fit_decides_the_filter_by_agreement_and_only_helps(images) -> None:
    tower, many = vit(seed=5), pictures(40, seed=9)
    from outlay.vision.zero_tprune.search import agreement, predictions

    method = ZeroTPrune(schedule=SCHEDULE)
    fitted = method.fit(tower, many)
    wanted = predictions(tower, many)

    def agreed(ranges) -> float:
        return agreement(replace(method, ranges=ranges), tower, many, wanted)

    published, best = (0.01, 0.7), [None, None]
    for stage in range(2):  # stage by stage, and only where it helps
        tried = [*best[:stage], published, *best[stage + 1 :]]
        best = tried if agreed(tuple(tried)) > agreed(tuple(best)) else best
    assert fitted.ranges == tuple(best)


def test_fit_takes_the_published_range_where_it_agrees_more(monkeypatch, images) -> None:
    from outlay.vision.zero_tprune import search

    def agreement(method, *args) -> float:
        return float(method.ranges[1] is not None) - float(method.ranges[0] is not None)

    monkeypatch.setattr(search, "agreement", agreement)
    fitted = ZeroTPrune(schedule=SCHEDULE).fit(vit(seed=5), pictures(4))
    assert fitted.ranges == (None, (0.01, 0.7))


def test_the_published_range_goes_with_published_schedules_only() -> None:
    stage = Stage(1, 0.9)
    assert ZeroTPrune().bounds(stage) == (0.01, 0.7)
    assert ZeroTPrune(schedule=[stage]).bounds(stage) is None
    assert ZeroTPrune(schedule=[stage], vhf=(0.1, 0.2)).bounds(stage) == (0.1, 0.2)
    assert ZeroTPrune(vhf=None).bounds(stage) is None


# -- into a decoder -------------------------------------------------------------------------------


def test_a_decoder_sees_only_the_patches_that_left_the_tower() -> None:
    model, inputs = llava(), llava_inputs(2)
    method = ZeroTPrune(schedule=[(1, 0.5, 2, 3)])
    assert isinstance(method, Pruner)
    with method(model) as kept, torch.no_grad():
        logits = model(**inputs).logits
    assert kept.seen() == [16, 7]
    assert [one.tolist() for one in kept.entered] == kept.indices.tolist()
    assert kept.counts() == [[7, 7]] * 4
    assert bool(logits[:, -5:].isfinite().all())
    # The same features, at the same places, by hand: one row at a time.
    for row in range(2):
        with torch.no_grad():
            with method(model.model.vision_tower) as tower_kept:
                hidden = model.model.vision_tower(
                    pixel_values=inputs["pixel_values"][row : row + 1], output_hidden_states=True
                ).hidden_states[-1]
            features = model.model.multi_modal_projector(hidden[:, 1:])[0]
            ids = inputs["input_ids"][row]
            embeds = model.get_input_embeddings()(ids).clone()
        # The tower alone counts its class token, the decoder's does not: compare places first.
        if not torch.equal(tower_kept.indices[0], kept.indices[row]):
            continue
        places = (ids == 2).nonzero()[:, 0][kept.indices[row]]
        embeds[places] = features
        stay = torch.cat([(ids != 2).nonzero()[:, 0], places]).sort().values
        with torch.no_grad():
            wanted = model(inputs_embeds=embeds[stay][None], position_ids=stay[None]).logits[0, -4:]
        torch.testing.assert_close(logits[row, -4:], wanted, rtol=1e-4, atol=1e-4)


def test_the_class_token_that_a_decoder_never_sees_is_not_boosted() -> None:
    model = llava()
    tower = find_tower(model)
    assert (tower.special, tower.classified, tower.last) == (1, False, 1)
    found = []
    for boost in (True, False):
        with ZeroTPrune(schedule=[(1, 0.5)], cls_boost=boost)(model) as kept, torch.no_grad():
            model(**llava_inputs())
        found.append(kept.stage_scores[0])
    assert torch.equal(*found)


def test_generation_goes_on_over_the_shorter_cache() -> None:
    model, inputs = llava(), llava_inputs(2)
    with ZeroTPrune(schedule=[(1, 0.25)])(model) as kept:
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert ids.shape == (2, 21 + 5)
    assert kept.counts() == [[4, 4]] * 4
    assert kept.prefills == 1


def test_everything_kept_is_the_vision_language_model_itself() -> None:
    model, inputs = llava(), llava_inputs(2)
    with torch.no_grad():
        wanted = model(**inputs).logits
    with ZeroTPrune(schedule=[(1, 1.0)])(model), torch.no_grad():
        assert torch.equal(model(**inputs).logits, wanted)


def test_tiles_newlines_and_padding_keep_their_places() -> None:
    model = llava_next()
    # One image of 64 x 64: an overview and 2 x 2 tiles of 16 patches, a newline for each row.
    tokens = 16 + 8 * 8 + 8
    ids = prompt(1, tokens)
    inputs = {
        "input_ids": ids,
        "pixel_values": pixels(5).unsqueeze(0),
        "image_sizes": torch.tensor([[64, 64]]),
    }
    with ZeroTPrune(schedule=[(1, 0.5)])(model) as kept, torch.no_grad():
        logits = model(**inputs).logits
    assert kept.indices.shape == (5, 8)
    assert len(kept.entered[0]) == 5 * 8 + 8
    assert bool(logits[0, -5:].isfinite().all())
    assert kept.entered[0][:8].tolist() == kept.indices[0].tolist()


def test_a_tower_without_class_token_prunes_for_its_decoder() -> None:
    model = onevision()
    tokens = 16 + 8 * 8 + 8
    inputs = {
        "input_ids": prompt(1, tokens),
        "pixel_values": pixels(5).unsqueeze(0),
        "image_sizes": torch.tensor([[64, 64]]),
    }
    with ZeroTPrune(schedule=[(1, 0.5)])(model) as kept, torch.no_grad():
        logits = model(**inputs).logits
    assert len(kept.entered[0]) == 5 * 8 + 8
    assert bool(logits[0, -5:].isfinite().all())


# -- bad input ------------------------------------------------------------------------------------


def test_windowed_packed_and_unreadable_towers_are_refused() -> None:
    swin = SwinForImageClassification(
        SwinConfig(
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        )
    )
    with pytest.raises(CapabilityError, match="windowed or hierarchical"):
        ZeroTPrune(schedule=[(1, 0.5)])(swin)
    with pytest.raises(CapabilityError, match="windows"):
        ZeroTPrune(schedule=[(1, 0.5)])(qwen())

    class Blank(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    with pytest.raises(CapabilityError, match="queries and keys"):
        ZeroTPrune(schedule=[(1, 0.5)])(Blank())
    with pytest.raises(CapabilityError, match="no list of encoder layers"):
        ZeroTPrune(schedule=[(1, 0.5)])(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("block", [4, 5, 99])
def test_a_stage_behind_the_last_block_is_refused(model, block) -> None:
    with pytest.raises(InputError, match="the last place is after block 3"):
        ZeroTPrune(schedule=[(block, 0.5)])(model)


def test_two_contexts_on_one_tower_are_refused(model, images) -> None:
    for other in (ZeroTPrune(schedule=SCHEDULE), PatchRanking(SCHEDULE), ToMe(r=2)):
        with (
            other(model),
            pytest.raises(CapabilityError, match="already"),
            ZeroTPrune(schedule=SCHEDULE)(model),
        ):
            pass
    before = said(model, images)
    assert bool(before.isfinite().all())


def test_masks_no_images_and_wrong_protection_are_refused(model, images) -> None:
    with ZeroTPrune(schedule=SCHEDULE)(model), pytest.raises(InputError, match="no images"):
        said(model, images[:0])
    with (
        ZeroTPrune(schedule=SCHEDULE, protect=(99,))(model),
        pytest.raises(InputError, match="protect"),
    ):
        said(model, images)
    mask = torch.ones(3, 17)
    mask[:, 5] = 0
    with ZeroTPrune(schedule=SCHEDULE)(model), pytest.raises(CapabilityError, match="mask"):
        model.vit(pixel_values=images, attention_mask=mask)


def test_nan_is_refused(images) -> None:
    broken = vit()
    broken.vit.layers[0].attention.q_proj.weight.data.fill_(float("nan"))
    with ZeroTPrune(schedule=SCHEDULE)(broken), pytest.raises(InputError, match="NaN"):
        said(broken, images)


def test_nothing_is_known_before_the_first_image(model) -> None:
    with ZeroTPrune(schedule=SCHEDULE)(model) as kept, pytest.raises(InputError, match="no image"):
        _ = kept.indices


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"vhf": (0.7, 0.01)}, "v_min < v_max"),
        ({"vhf": (0.5, 0.5)}, "v_min < v_max"),
        ({"vhf": "on"}, "vhf='on'"),
        ({"head_agg": "sum"}, "head_agg"),
        ({"s_partition": "half"}, "s_partition"),
        ({"s_feature": "keys"}, "s_feature"),
        ({"s_metric": "linf"}, "s_metric"),
        ({"key_reduce": "sum"}, "key_reduce"),
        ({"order": "i"}, "order"),
        ({"preset": "deit_b"}, "preset"),
        ({"positions": "none"}, "positions"),
        ({"wpr_tol": -1.0}, "wpr_tol"),
        ({"ranges": (None,)}, "call fit again"),
    ],
    ids=str,
)
def test_bad_knobs_are_named(knobs, words) -> None:
    with pytest.raises(InputError, match=words):
        ZeroTPrune(schedule=SCHEDULE, **knobs)


def test_rankings_and_choices_are_checked(model, images) -> None:
    with pytest.raises(InputError, match="ranking"):
        PatchRanking(SCHEDULE, "best")
    with pytest.raises(InputError, match="given_BP"):
        PatchRanking(SCHEDULE, "given")
    with (
        PatchRanking(SCHEDULE, "given", given_BP=torch.zeros(3, 9))(model),
        pytest.raises(InputError, match="given_BP has shape"),
    ):
        said(model, images)


def test_a_chooser_that_keeps_the_wrong_number_is_refused(model, images) -> None:
    from outlay.vision.zero_tprune import Pruning

    def one(stage: Stage, alive: Alive):
        scores = torch.zeros(alive.patches_BP.shape)
        return torch.zeros(len(scores), 1, dtype=torch.long), scores

    with Pruning(model, [Stage(1, 0.5)], one), pytest.raises(InputError, match="need 8"):
        said(model, images)
