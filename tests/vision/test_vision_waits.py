"""A prefill that loses tokens does not stop the device: what a host must wait for is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.vision.tiny_vlms import llava, llava_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from outlay.errors import InputError
from outlay.vision.base import Choice, Seen, best, last_place, top, true_places
from outlay.vision.baselines import MergedTokens, PooledTokens, alike
from outlay.vision.dropper import Dropper
from outlay.vision.gsearch.scoring import AttentionScore
from outlay.vision.in_decoder import last_row
from outlay.vision.tome import merge_all, merge_to

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.unique")


class Waits(TorchDispatchMode):
    """Counts operations whose result the host needs before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rsplit(".", 1)[0]
        if name in WAITS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def waits(model: Any, inputs: dict[str, Any], **knobs: Any) -> int:
    with torch.no_grad(), Dropper(model, **knobs), Waits() as counted:
        model(**inputs)
    return sum(counted.seen.values())


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


@pytest.mark.parametrize("score", [last_row, AttentionScore("last", False)])
def test_more_drops_do_not_mean_more_waiting(model: Any, score: Any) -> None:
    inputs = llava_inputs(3)
    once = waits(model, inputs, rates=(1.0, 0.5, 0.5, 0.5), score=score)
    often = waits(model, inputs, rates=(1.0, 0.75, 0.5, 0.25), score=score)
    assert once == often

    def looks(seen: Any) -> torch.Tensor:
        values = score(seen)
        assert bool(values.isfinite().all())
        return values

    looked = waits(model, inputs, rates=(1.0, 0.75, 0.5, 0.25), score=looks)
    assert looked == often + 3  # the count sees what it should


def test_reading_what_lived_is_what_costs(model: Any) -> None:
    """Lists are made when they are read, once."""
    with torch.no_grad(), Dropper(model, rates=(1.0, 0.5, 0.5, 0.25), score=last_row) as kept:
        model(**llava_inputs(2))
    with Waits() as counted:
        assert kept.counts() == [[16, 16], [8, 8], [8, 8], [4, 4]]
    assert not counted.seen
    assert [len(row) for row in kept.layers[-1]] == [4, 4]
    assert kept.layers[1][0] is kept.alive[1].rows[0]
    assert kept.layers[1][0] is kept.layers[2][0]  # one list for layers with the same tokens
    assert kept.entered is kept.entered
    assert [len(one) for one in kept.entered] == [16, 16]


def test_scores_that_are_no_numbers_are_refused_at_the_end_of_the_prompt(model: Any) -> None:
    def broken(seen: Any) -> torch.Tensor:
        values = last_row(seen).clone()
        if seen.layer == 2:
            values[1, 3] = torch.nan
        return values

    rates = (1.0, 0.75, 0.5, 0.25)
    with (
        torch.no_grad(),
        Dropper(model, rates=rates, score=broken),
        pytest.raises(InputError, match="row 1 has scores that are no numbers"),
    ):
        model(**llava_inputs(2))
    with torch.no_grad(), Dropper(model, rates=rates, score=last_row):
        model(**llava_inputs(2))  # the model is as it was


def test_choices_of_the_host_and_of_the_device_are_one(model: Any) -> None:
    wanted = [torch.tensor([3, 1, 15]), torch.tensor([0])]
    seen: list[Seen] = []

    def look(found: Seen) -> Choice:
        seen.append(found)
        return Choice.of(found, wanted)

    with torch.no_grad(), Dropper(model, choose=look) as kept:
        model(**llava_inputs(2))
    assert [one.tolist() for one in kept.entered] == [[1, 3, 15], [0]]
    slow = ~seen[0].visual_BT
    for picture, index in zip(seen[0].pictures, wanted, strict=True):
        assert torch.equal(picture.at_K.cpu(), picture.host_K)
        slow[picture.row, picture.at_K[index]] = True
    assert torch.equal(Choice.of(seen[0], wanted).keep_BT, slow)


def test_places_of_true_are_what_nonzero_says() -> None:
    mask = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)).argsort(1) < 7
    assert torch.equal(true_places(mask, 7), mask.nonzero()[:, 1].view(5, 7))
    assert torch.equal(last_place(mask)[:, 0], mask.nonzero()[:, 1].view(5, 7)[:, -1])


def test_the_best_are_the_top() -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    assert torch.equal(best(scores, 9), top(scores, 9))


def test_merging_a_batch_is_merging_each() -> None:
    features = torch.randn(3, 17, 6, generator=torch.Generator().manual_seed(2))
    merged, sizes, at = merge_all(features, 5)
    for row in range(3):
        alone = merge_to(features[row], 5)
        assert torch.allclose(merged[row], alone[0], atol=1e-6)
        assert torch.equal(sizes[row], alone[1])
        assert torch.equal(at[row], alone[2])


@pytest.mark.parametrize("method", [PooledTokens(rate=0.25), MergedTokens(rate=0.25)])
def test_a_batch_is_treated_as_its_images_are(model: Any, method: Any) -> None:
    inputs = llava_inputs(3)
    with torch.no_grad(), method(model) as kept:
        together = model(**inputs).logits[:, -1]
    assert kept.counts()[0] == [4, 4, 4]
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        with torch.no_grad(), method(model):
            alone = model(**one).logits[:, -1]
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_images_are_grouped_by_their_number_of_tokens() -> None:
    from outlay.vision.placeholders import split

    visual = torch.zeros(2, 14, dtype=torch.bool)
    visual[0, 1:5] = visual[0, 6:10] = visual[1, 2:11] = True
    pictures = split(visual, None)
    embeds = torch.arange(28.0).view(2, 14, 1)
    seen = Seen(embeds, visual, torch.ones_like(visual), pictures)
    groups = alike(seen)
    assert [group.numbers for group in groups] == [[0, 1], [2]]
    assert groups[0].features(seen)[:, :, 0].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert groups[1].features(seen)[0, :, 0].tolist() == [16 + k for k in range(9)]
