"""The pruning module reads what it should, and nothing else; tokens know where they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vision.covipal_cases import FAMILIES, mosaic, tiles
from tests.vision.tiny_vlms import llava, llava_inputs

from outlay.errors import InputError
from outlay.vision.covipal.losses import stage_one, top_mask
from outlay.vision.covipal.places import square, tiled
from outlay.vision.covipal.ppm import PPM, Shape
from outlay.vision.covipal.tokens import Tokens, Watch


def module(seed: int = 0, **knobs) -> PPM:
    torch.manual_seed(seed)
    return PPM(Shape(**{"hidden": 20, "d_p": 24, "layers": 2} | knobs)).double().eval()


def streams(rows: int = 2, visual: int = 9, text: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    at = square(visual).double().expand(rows, -1, -1)
    return (
        torch.randn(rows, visual, 20, generator=generator, dtype=torch.double),
        at,
        torch.randn(rows, text, 20, generator=generator, dtype=torch.double),
    )


@pytest.mark.parametrize("variant", ["joint", "cross"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_moving_visual_tokens_with_their_places_moves_scores(variant: str, seed: int) -> None:
    ppm = module(variant=variant)
    visual, at, text = streams(seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    plain = ppm(visual, at, text)
    moved = ppm(visual[:, order], at[:, order], text)
    assert torch.allclose(moved, plain[:, order], atol=1e-12)
    stayed = ppm(visual[:, order], at, text)
    assert not torch.allclose(stayed, plain[:, order], atol=1e-3)  # places matter


@pytest.mark.parametrize("variant", ["joint", "cross"])
def test_padding_changes_no_score(variant: str) -> None:
    ppm = module(variant=variant)
    visual, at, text = streams(rows=1)
    plain = ppm(visual, at, text)
    junk = 50 * torch.ones(1, 3, 20, dtype=torch.double)
    long_visual = torch.cat([visual, junk], 1)
    long_at = torch.cat([at, 7 * torch.ones(1, 3, 3, dtype=torch.double)], 1)
    real = torch.tensor([[True] * 9 + [False] * 3])
    words = torch.tensor([[True] * 4 + [False] * 3])
    padded = ppm(long_visual, long_at, torch.cat([text, junk], 1), real, words)
    assert torch.allclose(padded[:, :9], plain, atol=1e-12)


def test_a_row_scores_the_same_alone_and_in_a_batch() -> None:
    ppm = module()
    visual, at, text = streams(rows=5)
    together = ppm(visual, at, text)
    alone = torch.cat([ppm(visual[i : i + 1], at[:1], text[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-12)


def test_only_a_module_with_text_reads_the_question() -> None:
    visual, at, text = streams()
    for knobs, reads in (
        ({}, True),
        ({"variant": "cross"}, True),
        ({"text_context": False}, False),
    ):
        ppm = module(**knobs)
        changed = not torch.allclose(
            ppm(visual, at, text), ppm(visual, at, text.flip(0)), atol=1e-9
        )
        assert changed is reads, knobs


def test_cross_attention_lets_visual_tokens_ignore_each_other() -> None:
    visual, at, text = streams(rows=1)
    other = visual.clone()
    other[:, 0] = visual[:, 0].flip(-1)
    cross, joint = module(variant="cross"), module()
    assert torch.allclose(cross(visual, at, text)[:, 1:], cross(other, at, text)[:, 1:], atol=1e-12)
    assert not torch.allclose(joint(visual, at, text)[:, 1:], joint(other, at, text)[:, 1:])


def test_the_default_module_has_two_million_weights_at_seven_billion() -> None:
    count = sum(weight.numel() for weight in PPM(Shape(hidden=3584)).parameters())
    assert 1.8e6 < count < 2.2e6


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"d_p": 25}, "multiple of heads"),
        ({"d_p": 4, "heads": 1}, "at least 6"),
        ({"d_p": 0}, "d_p=0"),
        ({"layers": 0}, "layers=0"),
        ({"layers": 99}, "layers=99"),
        ({"hidden": True}, "hidden=True"),
        ({"variant": "both"}, "variant='both'"),
        ({"variant": "cross", "text_context": False}, "variant='cross'"),
    ],
)
def test_shapes_that_cannot_be_built_name_the_knob(knobs, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Shape(**{"hidden": 20, "d_p": 24} | knobs)


def test_a_module_of_another_width_is_refused() -> None:
    visual, at, text = streams()
    with pytest.raises(InputError, match=r"20 wide.*made for 32"):
        module(hidden=32)(visual, at, text)


def test_scores_that_are_no_numbers_name_the_row() -> None:
    visual, at, text = streams(rows=3)
    visual[1, 2] = float("nan")
    real = torch.ones(3, 9, dtype=torch.bool)
    found = Tokens(visual, at, real, text, torch.ones(3, 4, dtype=torch.bool), real.long())
    with pytest.raises(InputError, match="row 1 of the batch"):
        found.scores(module())


def _toy(generator: torch.Generator, rows: int = 48):
    """24 tokens, four of each of six colours; the question names one."""
    colours = torch.stack(
        [torch.arange(24)[torch.randperm(24, generator=generator)] % 6 for _ in range(rows)]
    )
    asked = torch.randint(0, 6, (rows,), generator=generator)
    looks = torch.eye(6, 20) * 3
    words = torch.eye(20)[6:12] * 3  # another language than that of the features
    visual = looks[colours] + 0.3 * torch.randn(rows, 24, 20, generator=generator)
    return visual, square(24).expand(rows, -1, -1), words[asked][:, None], colours == asked[:, None]


def _recall(text_context: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    ppm = PPM(Shape(hidden=20, d_p=24, layers=2, text_context=text_context))
    optimizer = torch.optim.AdamW(ppm.parameters(), lr=3e-3)
    every = torch.ones(48, 24, dtype=torch.bool)
    for _ in range(220):
        visual, at, text, wanted = _toy(generator)
        loss = stage_one(ppm(visual, at, text), wanted.float(), every, ratio=4 / 24)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    visual, at, text, wanted = _toy(generator)
    with torch.no_grad():
        best = top_mask(ppm(visual, at, text), every, torch.full((48,), 4))
    return float((best & wanted).sum() / wanted.sum())


def test_the_module_learns_to_match_the_question_and_cannot_without_it() -> None:
    assert _recall(text_context=True) > 0.95
    assert _recall(text_context=False) < 1 / 6 + 0.1  # four of 24 tokens, whatever is asked


def test_a_square_image_is_numbered_in_raster_order() -> None:
    assert square(9)[:, :2].tolist() == [[r, c] for r in range(3) for c in range(3)]
    assert square(7)[:, 1].tolist() == list(range(7))  # no square: one line


def test_a_mosaic_follows_its_overview_and_rows_end_in_newlines() -> None:
    # An overview of 2 x 2, then three rows of four patches, each with its newline.
    at = tiled(4 + 3 * 5, [4 + 4, 4 + 9, 4 + 14], side=2)
    assert at[:4, 2].tolist() == [0, 0, 0, 0]
    assert at[:4, :2].tolist() == [[0, 0], [0, 2], [1.5, 0], [1.5, 2]]  # the same picture
    assert (at[4:, 2] == 0.5).all()
    assert at[4:, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert at[4:, 1].tolist() == list(range(5)) * 3


def test_frames_that_share_a_newline_are_numbered() -> None:
    at = tiled(3 * 4 + 1, [12], side=3)  # three frames, pooled from 3 x 3 to 2 x 2
    assert at[:12, 2].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    one = tiled(9 + 1, [9], side=3)  # a single tile with a newline
    assert one[:9, :2].tolist() == square(9)[:, :2].tolist()
    assert len(one) == 10


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_says_where_its_tokens_are(family: str) -> None:
    case = FAMILIES[family]()
    with torch.no_grad(), Watch(case.model, entering=[0]) as watch:
        case.model(**case.inputs)
    found = watch.tokens(0)
    assert found.places_BN3.shape == (len(case.inputs["input_ids"]), case.visual, 3)
    assert len({tuple(at) for at in found.places_BN3[0].tolist()}) == case.visual  # all differ
    rows, columns = (found.places_BN3[0, :, axis].max() for axis in (0, 1))
    assert rows > 1
    assert columns > 1


@pytest.mark.parametrize("make", [tiles, mosaic])
def test_generation_and_forward_see_the_same_places(make) -> None:
    case = make()  # generate encodes images before the model is called
    seen = []
    for run in (case.model, lambda **given: case.model.generate(**given, max_new_tokens=1)):
        with torch.no_grad(), Watch(case.model, entering=[0]) as watch:
            run(**case.inputs)
        seen.append(watch.places)
    assert torch.equal(seen[0], seen[1])


def test_images_of_a_row_are_numbered() -> None:
    model, one = llava(), llava_inputs(1)
    ids = torch.cat([one["input_ids"], one["input_ids"]], 1)
    pictures = torch.cat([one["pixel_values"], one["pixel_values"]])
    with torch.no_grad(), Watch(model, entering=[0]) as watch:
        model(input_ids=ids, pixel_values=pictures)
    assert watch.tokens(0).places_BN3[0, :, 2].tolist() == [0] * 16 + [1] * 16


@pytest.mark.parametrize(
    "knobs", [{}, {"variant": "cross"}, {"text_context": False}, {"layers": 3, "mlp": 4}]
)
def test_the_closed_form_of_flops_is_what_runs(knobs) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    ppm, (visual, at, text) = module(**knobs), streams(rows=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ppm(visual, at, text)
    assert counter.get_total_flops() == ppm.flops(9, 4)
