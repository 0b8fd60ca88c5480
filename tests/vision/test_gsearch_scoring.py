"""Ranking by attention agrees with eager attention, averages what it says, and can level recency.

Shapes: B rows, T tokens, N visual tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vision.tiny_vlms import IMAGE, llava, llava_inputs
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.base import Ranking
from outlay.vision.dropper import Dropper
from outlay.vision.gsearch.schedule import QUERIES, Query
from outlay.vision.gsearch.scoring import AttentionScore


@dataclass
class Watched:
    """A score that notes what it gave."""

    score: AttentionScore
    given: list[Tensor]

    def __call__(self, seen: Ranking) -> Tensor:
        self.given.append(self.score(seen))
        return self.given[-1]


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


def scores(
    model: Any, inputs: dict[str, Tensor], query: Query, rates: tuple[float, ...]
) -> list[Tensor]:
    watched = Watched(AttentionScore(query), [])
    with torch.no_grad(), Dropper(model, rates=rates, score=watched):
        model(**inputs)
    return watched.given


def eager_rows(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")


def padded(seed: int = 0) -> dict[str, Tensor]:
    """Two rows; the second lacks two question words and is padded on the left."""
    inputs = llava_inputs(2, seed)
    ids, mask = inputs["input_ids"].clone(), inputs["attention_mask"].clone()
    ids[1, 2:] = inputs["input_ids"][1, :-2]
    ids[1, :2], mask[1, :2] = 0, 0
    return {**inputs, "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("make", [lambda: llava_inputs(2), padded])
def test_scores_are_eager_attention_of_the_layer_before_averaged_over_query_heads(
    model: Any, query: Query, make: Callable[[], dict[str, Tensor]]
) -> None:
    inputs = make()
    (found,) = scores(model, inputs, query, (1, 1, 0.5, 0.5))
    attention_BHTT = eager_rows(model, inputs)[1]
    assert attention_BHTT.shape[1] == 4  # query heads, of two key heads
    for row, ids in enumerate(inputs["input_ids"]):
        visual = (ids == IMAGE).nonzero()[:, 0]
        valid = inputs["attention_mask"][row].nonzero()[:, 0]
        asks = {
            "last": valid[-1:],
            "text_mean": valid[valid > visual[-1]],
            "all_mean": valid,
        }[query]
        expected = attention_BHTT[row][:, asks][:, :, visual].mean((0, 1))
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-5)


def test_the_softmax_of_a_later_drop_runs_over_the_tokens_that_are_left(model: Any) -> None:
    inputs = llava_inputs(1)
    first, second = scores(model, inputs, "last", (1, 0.5, 0.5, 0.25))
    assert first.shape == (1, 16)
    assert second.shape == (1, 8)
    # With 8 of 16 tokens gone the rest share all attention: text and visual tokens sum to 1.
    seen: list[Tensor] = []

    def whole(ranking: Ranking) -> Tensor:
        last = torch.tensor([[ranking.valid_BM.shape[1] - 1]])
        seen.append(ranking.attention(last)[:, :, 0])
        return AttentionScore("last")(ranking)

    with torch.no_grad(), Dropper(model, rates=(1, 0.5, 0.5, 0.25), score=whole):
        model(**inputs)
    assert [rows.shape[-1] for rows in seen] == [21, 13]
    for rows in seen:
        torch.testing.assert_close(rows.sum(-1), torch.ones(1, 4))


def test_many_queries_are_read_in_blocks_with_the_same_result(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = padded()
    (whole,) = scores(model, inputs, "all_mean", (1, 1, 0.5, 0.5))
    monkeypatch.setattr("outlay.vision.gsearch.scoring._BLOCK", 4)
    (parts,) = scores(model, inputs, "all_mean", (1, 1, 0.5, 0.5))
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


def test_right_padding_asks_the_last_real_token(model: Any) -> None:
    plain = llava_inputs(1)
    ids = torch.cat([plain["input_ids"], torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = torch.cat([plain["attention_mask"], torch.zeros(1, 3, dtype=torch.long)], 1)
    inputs = {**plain, "input_ids": ids, "attention_mask": mask}
    for query in QUERIES:
        (found,) = scores(model, inputs, query, (1, 1, 0.5, 0.5))
        (expected,) = scores(model, plain, query, (1, 1, 0.5, 0.5))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_text_mean_needs_text_after_the_image(model: Any) -> None:
    inputs = llava_inputs(2)
    ids = inputs["input_ids"][:, :17]
    short = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(InputError, match="row 0 has no text after its images"):
        scores(model, short, "text_mean", (1, 1, 0.5, 0.5))
    assert scores(model, short, "last", (1, 1, 0.5, 0.5))


def test_an_unknown_query_is_refused() -> None:
    with pytest.raises(InputError, match="score_query='first'"):
        AttentionScore("first")  # type: ignore[arg-type]


def ranking(attention_BHN: Tensor) -> Ranking:
    """N visual tokens, then one of text that asks."""
    size, heads, n = attention_BHN.shape
    rest_BH1 = torch.ones(size, heads, 1)
    rows = torch.cat([attention_BHN, rest_BH1], -1)
    numbers = torch.arange(n).expand(size, -1)
    return Ranking(
        layer=2,
        hidden_BMD=torch.zeros(size, n + 1, 4),
        visual_BN=numbers,
        valid_BM=torch.ones(size, n + 1, dtype=torch.bool),
        text_BM=(torch.arange(n + 1) == n).expand(size, -1),
        attention=lambda rows_BQ: rows[:, :, None].expand(-1, -1, rows_BQ.shape[1], -1),
        alive_BN=numbers,
        total=n,
    )


@given(st.integers(0, 10_000), st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
@settings(max_examples=40)
def test_normalised_ranks_do_not_change_with_recency_or_the_weight_of_a_head(
    seed: int, slopes: list[float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base_BHN = torch.rand(2, 3, 12, generator=generator, dtype=torch.double) + 0.1
    tilt_HN = (torch.tensor(slopes, dtype=torch.double)[:, None] * torch.arange(12)).exp()
    weight_H1 = torch.rand(3, 1, generator=generator, dtype=torch.double) + 0.01
    score = AttentionScore("last", rank_normalise=True)
    torch.testing.assert_close(
        score(ranking(base_BHN)), score(ranking(base_BHN * tilt_HN * weight_H1))
    )


def test_without_normalising_one_heavy_head_decides_and_with_it_none_does() -> None:
    heavy = torch.tensor([0.9, 0.5, 0.1, 0.1])
    light = torch.tensor([0.001, 0.004, 0.002, 0.001])
    attention = torch.stack([heavy, light, light.clone()])[None]
    plain = AttentionScore("last")(ranking(attention))[0]
    ranks = AttentionScore("last", rank_normalise=True)(ranking(attention))[0]
    assert plain.argmax() == 0
    assert ranks.argmax() == 1
    assert bool(((ranks > 0) & (ranks <= 1)).all())


def test_attention_that_underflows_to_zero_still_ranks() -> None:
    attention = torch.tensor([[[0.0, 0.3, 0.0, 0.7]]])
    for normalise in (False, True):
        found = AttentionScore("last", normalise)(ranking(attention))
        assert bool(found.isfinite().all())
        assert set(found[0].topk(2).indices.tolist()) == {1, 3}
