"""G-Search on real model classes: schedules are kept to, nothing else changes, fits are fair."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vision.tiny_vlms import (
    IMAGE,
    llama,
    llava,
    llava_inputs,
    llava_next,
    onevision,
    pixels,
    prompt,
    qwen,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from outlay.errors import CapabilityError, InputError
from outlay.vision.base import Budgeted, Pruner, Ranking
from outlay.vision.costs import projector, tower
from outlay.vision.dropper import Dropper
from outlay.vision.gsearch import Batch, GSearch, KeepSchedule, accuracy
from outlay.vision.gsearch.schedule import QUERIES, Query, Rates, mean_rate

RATES = (1.0, 1.0, 0.5, 0.13)


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


def schedule(*rates: float, **more: Any) -> KeepSchedule:
    return KeepSchedule("tiny", len(rates), rates, **more)


# Applying a schedule.


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_schedule_of_ones_changes_nothing_in_prefill_and_decoding(attention: str) -> None:
    model, inputs = llava(attention), llava_inputs(2)
    with torch.no_grad():
        plain = model(**inputs).logits
        written = model.generate(**inputs, max_new_tokens=4, output_logits=True, **DICT)
        with GSearch(schedule=schedule(1, 1, 1, 1))(model) as kept:
            same = model(**inputs).logits
            again = model.generate(**inputs, max_new_tokens=4, output_logits=True, **DICT)
    assert torch.equal(plain, same)
    assert torch.equal(written.sequences, again.sequences)
    for ours, theirs in zip(again.logits, written.logits, strict=True):
        assert torch.equal(ours, theirs)
    assert kept.mean_rate() == 1.0


DICT: dict[str, Any] = {"return_dict_in_generate": True, "do_sample": False}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("normalise", [False, True])
def test_counts_are_the_schedules_and_the_caches(model: Any, query: Query, normalise: bool) -> None:
    method = GSearch(score_query=query, rank_normalise=normalise).with_rates(RATES)
    inputs, cache = llava_inputs(2), DynamicCache(config=model.config.text_config)
    with torch.no_grad(), method(model) as kept:
        model(**inputs, cache=cache, use_cache=True)
    assert method.schedule is not None
    assert kept.counts() == [[n, n] for n in method.schedule.counts(16)]
    assert method.schedule.counts(16) == [16, 16, 8, 2]  # 2.08 rounds half up to 2
    text = inputs["input_ids"].shape[1] - 16
    assert [layer.keys.shape[2] - text for layer in cache.layers] == [16, 16, 8, 2]
    assert kept.mean_rate() == pytest.approx((16 + 16 + 8 + 2) / 64)


@pytest.mark.parametrize("make", [llava_next, onevision, qwen])
def test_it_works_on_other_model_classes(make: Any) -> None:
    model = make()
    if make is qwen:
        ids = prompt(1)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(64, 3 * 2 * 64),
            "image_grid_thw": torch.tensor([[1, 8, 8]]),
        }
    else:
        size = torch.tensor([[64, 64]])
        images = pixels(5)[None]
        image = model.get_image_features(pixel_values=images, image_sizes=size)
        ids = prompt(1, tokens=len(image.pooler_output[0]))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs |= {"pixel_values": images, "image_sizes": size}
    n = int((inputs["input_ids"] == IMAGE).sum())
    method = GSearch().with_rates(RATES)
    with method(model) as kept:
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert method.schedule is not None
    assert kept.counts() == [[count] for count in method.schedule.counts(n)]
    assert written.shape[1] > inputs["input_ids"].shape[1]


@given(st.integers(1, 12), st.integers(0, 50))
@settings(max_examples=12, deadline=None)
def test_counts_do_not_depend_on_how_long_the_question_is(words: int, seed: int) -> None:
    model = _shared()
    ids = prompt(1, question=words, seed=seed)
    inputs = {"input_ids": ids, "pixel_values": pixels(1, seed=seed)}
    with torch.no_grad(), GSearch().with_rates(RATES)(model) as kept:
        model(**inputs)
    assert kept.counts() == [[16], [16], [8], [2]]


_models: list[Any] = []


def _shared() -> Any:
    if not _models:
        _models.append(llava())
    return _models[0]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_dropping_before_a_layer_changes_nothing_in_shallower_layers(
    model: Any, layer: int
) -> None:
    inputs = llava_inputs(2)
    found: list[list[Tensor]] = []
    rates = (1.0,) * layer + (0.25,) * (4 - layer)
    for context in (Dropper(model), GSearch(first_drop=1).with_rates(rates)(model)):
        seen: list[Tensor] = []
        with torch.no_grad(), context:
            handles = [
                part.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
                for part in model.model.language_model.layers
            ]
            model(**inputs)
        for handle in handles:
            handle.remove()
        found.append(seen)
    plain, ours = found
    for shallow in range(layer):
        assert torch.equal(ours[shallow], plain[shallow])
    assert ours[layer].shape[1] == plain[layer].shape[1] - 12


def test_a_random_ranking_that_keeps_everything_is_the_full_model(model: Any) -> None:
    def at_random(seen: Ranking) -> Tensor:
        return torch.rand(seen.visual_BN.shape)

    inputs = llava_inputs(2)
    with torch.no_grad():
        plain = model(**inputs).logits
        with Dropper(model, rates=(1.0,) * 4, score=at_random):
            assert torch.equal(model(**inputs).logits, plain)


def test_the_schedules_own_scoring_decides_what_is_kept(model: Any) -> None:
    inputs = llava_inputs(1, seed=3)

    def alive(method: GSearch) -> list[int]:
        with torch.no_grad(), method(model) as kept:
            model(**inputs)
        return kept.layers[-1][0].tolist()

    made = schedule(*RATES, scoring="all_mean")
    as_made = alive(GSearch(schedule=made))
    assert as_made == alive(GSearch(score_query="all_mean").with_rates(RATES))
    assert as_made == alive(GSearch(score_query="last", schedule=made))


def test_it_is_a_method_of_the_room() -> None:
    assert isinstance(GSearch(), Pruner)
    assert isinstance(GSearch(), Budgeted)


def test_ledger_and_flop_counter_agree_to_the_flop() -> None:
    model, inputs = llava("eager"), llava_inputs(1)
    text = inputs["input_ids"].shape[1] - 16
    whole = tower(model.config) + projector(model.config, 16)
    for query, asking in (("last", 1), ("text_mean", 4), ("all_mean", 0)):
        for rates in ((1.0,) * 4, RATES, (1, 0.5, 0.25, 0), (1, 0.5, 0.49, 0.48)):
            method = GSearch(score_query=query).with_rates(rates)  # type: ignore[arg-type]
            with torch.no_grad(), FlopCounterMode(display=False) as counter, method(model):
                model(**inputs, logits_to_keep=1, use_cache=False)
            ours = method.prefill(model.config, text, 16, asking=asking).flops
            assert counter.get_total_flops() == ours + whole


@given(st.integers(1, 300), st.integers(3, 40), st.data())
@settings(deadline=None)
def test_a_budget_without_a_search_is_kept_to_in_whole_tokens(
    total: int, layers: int, data: st.DataObject
) -> None:
    least = math.ceil(2 * total / layers)
    tokens = data.draw(st.integers(least, total))
    found = GSearch().within(tokens, total, layers).schedule
    assert found is not None
    counts = found.counts(total)
    assert sum(counts) <= tokens * layers
    assert sum(counts) > (tokens - 1) * layers or sum(counts) < 2 * total + layers
    assert counts[:2] == [total, total]


def test_a_budget_uses_the_steepness_that_was_tuned(model: Any) -> None:
    tuned = GSearch(mode="budget", budget=0.7, sampler="tpe", trials=4).fit(model, reading)
    assert tuned.schedule is not None
    moved = tuned.within(80, 100, 4).schedule
    plain = GSearch().within(80, 100, 4).schedule
    assert moved is not None
    assert plain is not None
    assert moved.k == tuned.schedule.k
    assert plain.k == 1.0
    assert GSearch().within(100, 100, 4).schedule.rates == (1,) * 4  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"smallest budget is 0\.5"):
        GSearch().within(40, 100, 4)


# Fitting.


def reading(rates: Rates) -> float:
    """A synthetic need: half of the tokens in layer 2, none in layer 3."""
    return float(rates[2] >= 0.5)


def test_fit_returns_the_same_frozen_method_with_a_schedule(model: Any) -> None:
    method = GSearch(margin=0.0)
    fitted = method.fit(model, reading, check=reading)
    assert method.schedule is None
    assert fitted == replace(method, schedule=fitted.schedule)
    found = fitted.schedule
    assert found is not None
    assert found.rates == (1, 1, 0.5, 0)
    assert (found.perf_full, found.perf_kept) == (1.0, 1.0)
    assert (found.check_full, found.check_kept, found.held) == (1.0, 1.0, True)
    assert found.calls <= 4 * method.trials
    assert found.n_layers == 4
    assert found.model_id == "LlavaForConditionalGeneration"


def test_a_schedule_that_fails_the_second_split_is_marked_and_warned_about(model: Any) -> None:
    with pytest.warns(UserWarning, match="does not hold on the second split: 0 against 1"):
        fitted = GSearch().fit(model, reading, check=lambda rates: float(rates[3] > 0.4))
    assert fitted.schedule is not None
    assert fitted.schedule.held is False


def test_a_budget_is_met_and_promises_nothing(model: Any) -> None:
    method = GSearch(mode="budget", budget=0.7, sampler="tpe", trials=6)
    found = method.fit(model, reading, check=reading).schedule
    assert found is not None
    assert abs(found.mean_rate - 0.7) < 1e-6
    assert found.budget == 0.7
    assert found.held is None
    assert found.check_kept is not None


def batches(count: int = 4, rows: int = 2) -> list[Batch]:
    """Prompts with the model's own answers: it is always right with nothing dropped."""
    model, made = _shared(), []
    for number in range(count):
        inputs = llava_inputs(rows, seed=number)
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1]
        made.append(Batch(inputs, logits.argmax(-1, keepdim=True).tolist()))
    return made


def test_a_fit_on_batches_finds_rates_that_lose_nothing_on_them() -> None:
    model, data = _shared(), batches(6)
    method = GSearch(margin=0.0, grid=4, check_share=0.0)
    found = method.fit(model, data).schedule
    assert found is not None
    assert found.perf_full == 1.0
    assert found.perf_kept == 1.0
    assert found.check_kept is None
    with GSearch(schedule=found)(model):
        right = [value for batch in data for value in accuracy(model, batch)]
    assert right == [1.0] * 12


def test_the_order_of_calibration_batches_does_not_matter() -> None:
    model, data = _shared(), batches(6)
    method = GSearch(eps=0.3, grid=4, calib_size=8)
    ours = method.fit(model, data).schedule
    theirs = method.fit(model, data[::-1]).schedule
    assert ours == theirs
    assert ours is not None
    assert ours.calib_hash == theirs.calib_hash != ""
    other = method.fit(model, batches(7)).schedule
    assert other is not None
    assert other.calib_hash != ours.calib_hash


def test_every_part_of_a_batch_counts_in_its_hash() -> None:
    inputs = llava_inputs(2)
    base = Batch(inputs, [[1], [2]]).digest()
    assert base == Batch(dict(reversed(inputs.items())), [(1,), (2,)]).digest()
    features = [torch.zeros(16, 32), torch.zeros(16, 32)]
    other = {**inputs, "nested": {"image": features}}
    changed = {**inputs, "nested": {"image": [features[0], features[1] + 1e-6]}}
    digests = {
        base,
        Batch(inputs, [[1], [3]]).digest(),
        Batch(inputs, [[1], [2]]).digest(seed=1),
        Batch({**inputs, "pixel_values": pixels(2, seed=9)}, [[1], [2]]).digest(),
        Batch(other, [[1], [2]]).digest(),
        Batch(changed, [[1], [2]]).digest(),
    }
    assert len(digests) == 6


def test_the_order_of_rows_does_not_matter_either() -> None:
    model, data = _shared(), batches(3, rows=4)
    turned = [
        Batch({name: value.flip(0) for name, value in batch.inputs.items()}, batch.answers[::-1])
        for batch in data
    ]
    method = GSearch(eps=0.2, grid=4, check_share=0.0)
    ours, theirs = (method.fit(model, one).schedule for one in (data, turned))
    assert ours is not None
    assert theirs is not None
    assert ours.rates == theirs.rates


def test_calibration_is_limited_and_a_share_is_held_back_for_the_check() -> None:
    model, data, asked = _shared(), batches(8, rows=2), []

    def metric(model: Any, batch: Batch) -> Sequence[float]:
        asked.append(batch.digest())
        return [1.0] * len(batch)

    GSearch(metric=metric, calib_size=6, check_share=0.25, grid=2).fit(model, data)
    used = list(dict.fromkeys(asked))
    assert len(used) == 3 + 2  # 6 rows to search on, a quarter of 8 batches to check on
    assert asked[-1] in used[3:]


def test_answers_of_several_tokens_are_compared_whole() -> None:
    model, inputs = _shared(), llava_inputs(3, seed=9)
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    answers = written[:, inputs["input_ids"].shape[1] :].tolist()
    answers = [row if len(row) == 3 else row + [0] * (3 - len(row)) for row in answers]
    assert list(accuracy(model, Batch(inputs, answers))) == [1.0, 1.0, 1.0]
    wrong = [*answers[0][:-1], answers[0][-1] + 1]
    assert list(accuracy(model, Batch(inputs, [wrong, *answers[1:]]))) == [0.0, 1.0, 1.0]
    ragged = [answers[0][:1], answers[1][:2], answers[2]]
    assert list(accuracy(model, Batch(inputs, ragged))) == [1.0, 1.0, 1.0]


def test_flops_can_be_what_the_weighted_form_pays_for() -> None:
    model = _shared()
    knobs: dict[str, Any] = {"lam": 0.5, "sampler": "grid", "grid": 4, "check_share": 0.0}
    found = GSearch(cost="flops", **knobs).fit(model, batches(3)).schedule
    assert found is not None
    assert found.held is None
    with pytest.raises(InputError, match="cost='flops' needs to know"):
        GSearch(cost="flops", **knobs).fit(model, reading)


def test_a_progress_line_a_layer_is_given(model: Any) -> None:
    lines: list[str] = []
    GSearch().fit(model, reading, progress=lines.append)
    assert [line.split()[1] for line in lines] == ["2", "3"]


# The file.


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.sampled_from(QUERIES),
    st.booleans(),
    st.none() | st.floats(0, 1),
)
def test_a_saved_schedule_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    rates: list[float],
    scoring: Query,
    normalise: bool,
    perf: float | None,
) -> None:
    made = KeepSchedule(
        "müller/vlm",
        len(rates) + 1,
        (1.0, *sorted(rates, reverse=True)),
        scoring,
        normalise,
        "ab12",
        perf_full=perf,
        held=None if perf is None else True,
        calls=7,
    )
    path = made.save(tmp_path_factory.mktemp("s") / "schedule.json")
    assert KeepSchedule.load(path) == made
    assert len(json.loads(path.read_text())["rates"]) == made.n_layers


def test_a_schedule_says_where_it_first_drops_and_what_it_keeps() -> None:
    assert schedule(*RATES).first_drop == 2
    assert schedule(1, 1).first_drop == 2
    assert schedule(*RATES).mean_rate == pytest.approx(sum(RATES) / 4)
    assert schedule(1, 0).counts(7) == [7, 0]
    assert mean_rate((1.0, 0.5)) == 0.75


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("not json", "no JSON"),
        ("[1, 2]", "holds a list"),
        ('{"model_id": "m", "n_layers": 2}', "lacks rates"),
        ('{"model_id": "m", "n_layers": 1, "rates": [1], "layers": 3}', "unknown fields: layers"),
        ('{"model_id": "m", "n_layers": 1, "rates": "1"}', "need a list"),
        ('{"model_id": 5, "n_layers": 1, "rates": [1]}', "model_id=5"),
        ('{"model_id": "m", "n_layers": 1, "rates": [true]}', "rate True"),
        ('{"model_id": "m", "n_layers": 1, "rates": [NaN]}', "outside"),
        ('{"model_id": "m", "n_layers": 2.0, "rates": [1, 1]}', "n_layers"),
        ('{"model_id": "m", "n_layers": 1, "rates": [1], "perf_full": NaN}', "perf_full"),
        ('{"model_id": "m", "n_layers": 1, "rates": [1], "scoring": "all"}', "scoring"),
        ('{"model_id": "m", "n_layers": 1, "rates": [1], "rank_normalise": 1}', "rank_normalise"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        KeepSchedule.load(path)


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        KeepSchedule.load(tmp_path / "none.json")
    (tmp_path / "big.json").write_text(" " * 1_000_001)
    with pytest.raises(InputError, match="max_bytes"):
        KeepSchedule.load(tmp_path / "big.json")


# What is refused.


@pytest.mark.parametrize(
    ("rates", "match"),
    [
        ((1.0, 1.0, 0.5), "3 rates for a decoder of 4 layers"),
        ((1.0, 1.0, 0.5, 0.6), "rates grow"),
        ((0.5, 0.5, 0.5, 0.5), "before layer 0"),
        ((1.0, 1.0, 1.1, 1.0), "outside"),
        ((1.0, 1.0, math.nan, 0.0), "outside"),
        ((1.0, 1.0, "half", 0.0), "not a number"),
    ],
)
def test_a_schedule_that_cannot_be_applied_is_refused(rates: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        GSearch(schedule=KeepSchedule("m", 4, rates))


def test_a_schedule_for_another_depth_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="5 rates for a decoder of 4 layers"):
        GSearch(schedule=schedule(1, 1, 1, 0.5, 0.5))(model)


def test_a_method_without_a_schedule_says_how_to_get_one(model: Any) -> None:
    with pytest.raises(InputError, match=r"call fit.*KeepSchedule\.load"):
        GSearch()(model)
    with pytest.raises(InputError, match="call fit"):
        GSearch().prefill(model.config, 5, 16)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"mode": "both"}, "mode='both'"),
        ({"mode": "budget"}, "needs budget"),
        ({"mode": "budget", "budget": 0.0}, r"budget=0\.0"),
        ({"mode": "budget", "budget": 1.5}, r"budget=1\.5"),
        ({"mode": "budget", "budget": 0.5, "lam": 1.0}, "lam is a knob of mode='search'"),
        ({"mode": "budget", "budget": 0.5, "sampler": "bisect"}, "steepness"),
        ({"budget": 0.5}, "knob of mode='budget'"),
        ({"first_drop": 0}, "first_drop=0"),
        ({"eps": -1.0}, "eps"),
        ({"margin": math.nan}, "margin"),
        ({"lam": 1.0, "sampler": "bisect"}, "highest gain"),
        ({"cost": "money"}, "cost='money'"),
        ({"score_query": "middle"}, "score_query='middle'"),
        ({"sampler": "cma"}, "sampler='cma'"),
        ({"sampler": "grid", "trials": 3}, "trials=21"),
        ({"trials": 0}, "trials"),
        ({"grid": 0}, "grid"),
        ({"stride": -1}, "stride"),
        ({"min_rate": 2.0}, "min_rate"),
        ({"calib_size": 0}, "calib_size"),
        ({"check_share": 1.0}, "check_share"),
        ({"metric": "bleu"}, "metric='bleu'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_knobs_out_of_range_are_named(knobs: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        GSearch(**knobs)


def test_an_infeasible_budget_says_the_minimum(model: Any) -> None:
    with pytest.raises(InputError, match=r"smallest budget is 0\.5"):
        GSearch(mode="budget", budget=0.3).fit(model, reading)
    with pytest.raises(InputError, match="leaves no layer"):
        GSearch(first_drop=4).fit(model, reading)


def test_calibration_without_data_or_images_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="calibration is empty"):
        GSearch().fit(model, [])
    words = torch.full((2, 5), 9)
    with pytest.raises(InputError, match=r"row 0 of calibration\[0\] has no image"):
        GSearch().fit(model, [Batch({"input_ids": words}, [[1], [1]])])
    with pytest.raises(InputError, match=r"row 0 of check\[0\] has no image"):
        GSearch().fit(model, reading, check=[Batch({"input_ids": words}, [[1], [1]])])
    with pytest.raises(InputError, match="give Batch"):
        GSearch().fit(model, [llava_inputs(1)])  # type: ignore[list-item]


def test_batches_that_do_not_fit_their_answers_are_refused() -> None:
    inputs = llava_inputs(2)
    with pytest.raises(InputError, match="1 answers for 2 rows"):
        Batch(inputs, [[1]])
    with pytest.raises(InputError, match="empty answer"):
        Batch(inputs, [[1], []])
    with pytest.raises(InputError, match="needs input_ids"):
        Batch({"pixel_values": pixels(2)}, [[1], [1]])


def test_rows_with_other_numbers_of_images_are_refused(model: Any) -> None:
    ids = torch.full((2, 38), 9)
    ids[0, 1:33], ids[1, 1:17] = IMAGE, IMAGE
    inputs = {"input_ids": ids, "pixel_values": pixels(3)}
    with pytest.raises(InputError, match=r"rows have \[16, 32\] visual tokens.*one by one"):
        GSearch(eps=1.0).fit(model, [Batch(inputs, [[1], [1]])])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_refused(model: Any, value: float) -> None:
    method = GSearch(metric=lambda model, batch: [value] * len(batch))
    with pytest.raises(InputError, match="the metric gave"):
        method.fit(model, batches(2))


def test_a_metric_with_too_few_figures_is_refused(model: Any) -> None:
    method = GSearch(metric=lambda model, batch: [1.0])
    with pytest.raises(InputError, match="1 figures for a batch of 2 rows"):
        method.fit(model, batches(2))


def test_models_without_a_decoder_or_images_are_refused() -> None:
    method = GSearch().with_rates(RATES)
    with pytest.raises(CapabilityError, match="decoder layers"):
        method(torch.nn.Linear(2, 2))
    with pytest.raises(CapabilityError, match="decoder layers"):
        GSearch().fit(torch.nn.Linear(2, 2), reading)
    with pytest.raises(CapabilityError, match="no vision tower"):
        method(llama())
