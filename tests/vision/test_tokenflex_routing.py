"""Few visual tokens first, many where the answer is unsure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.vision.test_tokenflex_models import SIZES, tiled_inputs
from tests.vision.tiny_vlms import IMAGE, llava, llava_inputs, llava_next, pixels

from outlay.errors import CapabilityError, InputError
from outlay.vision.tokenflex import Grid, ProjectorConfig, Router, convert, prepare, using
from outlay.vision.tokenflex.models import tiled_tokens

COUNTS = (1, 4, 16)


@pytest.fixture(scope="module")
def model() -> Any:
    return convert(llava(), ProjectorConfig(counts=COUNTS))


@torch.no_grad()
def slowly(model: Any, inputs: dict[str, Any], n: int, steps: int) -> tuple[list[int], list[float]]:
    """Greedy words and their probabilities, one full forward pass a word."""
    ready = prepare(model, inputs, n)
    ids, words, probs = ready["input_ids"], [], []
    for _ in range(steps):
        with using(model, n):
            logits_V = model(input_ids=ids, pixel_values=ready["pixel_values"]).logits[0, -1]
        probs.append(float(logits_V.softmax(-1).max()))
        words.append(int(logits_V.argmax()))
        if words[-1] == model.generation_config.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[words[-1]]])], 1)
    return words, probs


@pytest.mark.parametrize("measure", ["least", "mean"])
def test_a_row_goes_on_exactly_while_it_is_unsure(model: Any, measure: Any) -> None:
    inputs, rows = llava_inputs(4), 4
    alone = [{k: v[row : row + 1] for k, v in inputs.items()} for row in range(rows)]
    tries = [[slowly(model, one, n, 3) for n in COUNTS] for one in alone]

    def sure(probs: list[float]) -> float:
        product = float(torch.tensor(probs).double().prod())
        return min(probs) if measure == "least" else product ** (1 / len(probs))

    values = sorted(sure(probs) for row in tries for _, probs in row[:2])
    limit = (values[3] + values[4]) / 2  # so that some rows go on, and some do not
    found = Router(COUNTS, limit, measure).answer(model, inputs, max_new_tokens=3)
    assert len(set(found.counts)) > 1
    for row in range(rows):
        passed = [i for i, (_, probs) in enumerate(tries[row]) if sure(probs) >= limit]
        last = passed[0] if passed else 2
        words, probs = tries[row][last]
        assert found.counts[row] == COUNTS[last]
        assert found.answers[row].tolist() == words
        assert found.sureness[row] == pytest.approx(sure(probs), abs=1e-5)
        assert found.visual_tokens[row] == sum(COUNTS[: last + 1])


def test_pictures_are_encoded_once(model: Any) -> None:
    calls: list[int] = []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    found = Router(COUNTS, 1.5).answer(model, llava_inputs(3), max_new_tokens=2)
    handle.remove()
    assert found.counts == [16] * 3
    assert found.encoded == 3
    assert calls == [3]


def test_zero_never_escalates(model: Any) -> None:
    found = Router(COUNTS, 0.0).answer(model, llava_inputs(2), max_new_tokens=2)
    assert found.counts == [1, 1]
    assert found.visual_tokens == [1, 1]


def test_rows_may_have_several_images(model: Any) -> None:
    ids = torch.tensor([[1, IMAGE, 8, IMAGE, 9], [0, 0, 1, IMAGE, 7]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels(3)}
    found = Router(COUNTS, 1.5).answer(model, inputs, max_new_tokens=2)
    assert found.visual_tokens == [2 * 21, 21]
    second = {"input_ids": ids[1:, 2:], "pixel_values": pixels(3)[2:]}
    words, _ = slowly(model, second, 16, 2)
    assert found.answers[1].tolist() == words


def test_tiles_are_packed_again_from_their_patches() -> None:
    model = convert(llava_next(), ProjectorConfig(counts=COUNTS))
    inputs = tiled_inputs(model, SIZES[:2], Grid(4, 4))
    found = Router((1, 4), 1.5).answer(model, inputs, max_new_tokens=3)
    with torch.no_grad(), using(model, 4):
        exact = prepare(model, inputs, 4)
        made = model.generate(**exact, max_new_tokens=3, do_sample=False)
    new = made[:, exact["input_ids"].shape[1] :]
    for row, size in enumerate(SIZES[:2]):
        length = len(found.answers[row])
        assert found.answers[row].tolist() == new[row, :length].tolist()
        tokens = [tiled_tokens(model.config, size, Grid(side, side)) for side in (1, 2)]
        assert found.visual_tokens[row] == sum(tokens)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"counts": (64, 16)}, "from few to many"),
        ({"counts": ()}, "counts is empty"),
        ({"escalate_below": -0.1}, "escalate_below=-0.1"),
        ({"escalate_below": float("nan")}, "escalate_below=nan"),
        ({"measure": "entropy"}, "use 'least' or 'mean'"),
    ],
)
def test_bad_knobs_of_a_router_are_refused(knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Router(**knobs)


def test_bad_calls_of_a_router_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="max_new_tokens=0"):
        Router(COUNTS).answer(model, llava_inputs(), max_new_tokens=0)
    with pytest.raises(CapabilityError, match="no flexible projector"):
        Router(COUNTS).answer(llava(), llava_inputs())
    with pytest.raises(InputError, match="4 x 4 = 16"):
        Router((4, 25), 1.5).answer(model, llava_inputs(), max_new_tokens=1)
