"""The compacted cache inside real networks: positions, equality with a rebuilt cache, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from outlay.budget import Budget
from outlay.cache.base import CacheMethod, Compacting
from outlay.cache.baselines import RandomRetention, SlidingWindow, StreamingLLM, UniformStride
from outlay.cache.compacted import CompactedCache
from outlay.cache.lacache import LaCache, LadderCache
from outlay.cache.ladder import LadderPolicy
from outlay.cache.loop import CachedDecoder, FullCache, forward, kv_bytes
from outlay.cache.rotary import angles, frequencies, turn
from outlay.errors import (
    BudgetError,
    CapabilityError,
    EndpointError,
    InputError,
    OutlayError,
    ResultsError,
)
from outlay.models.base import Account, SamplingParams
from tiny_models import tiny_model, tiny_network

SMALL = LaCache(capacity=24, span=3, overlap=1, start=2)
METHODS = {
    "modulo": SMALL,
    "staircase": replace(SMALL, ladder="staircase"),
    "shuffled": replace(SMALL, ladder="shuffled"),
    "StreamingLLM": StreamingLLM(capacity=24, start=2),
    "window": SlidingWindow(capacity=24),
    "random per layer": RandomRetention(capacity=24, start=2),
    "random shared": RandomRetention(capacity=24, start=2, per_layer=False),
    "uniform": UniformStride(capacity=24, start=2),
}


@pytest.fixture(scope="module")
def deep() -> Any:
    """Six layers, four query heads on two key heads."""
    return tiny_model(num_hidden_layers=6)


def ids(count: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 260, (batch, count), generator=generator)


class Recorder:
    """Keys before rotation and values of every token fed, per layer, as (B, H, N, D)."""

    def __init__(self, network: Any) -> None:
        heads = network.config.num_key_value_heads
        self.raw: dict[tuple[int, str], torch.Tensor] = {}
        self.handles = []
        for index, layer in enumerate(network.model.layers):
            for name in ("k_proj", "v_proj"):

                def keep(_m: Any, _i: Any, out: torch.Tensor, key: Any = (index, name)) -> None:
                    new = out.view(*out.shape[:2], heads, -1).transpose(1, 2)
                    old = self.raw.get(key)
                    self.raw[key] = new if old is None else torch.cat([old, new], dim=2)

                module = getattr(layer.self_attn, name)
                self.handles.append(module.register_forward_hook(keep))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def rebuilt(
    network: Any, recorder: Recorder, held: list[list[int]], positions: list[int] | None
) -> DynamicCache:
    """A cache made from raw keys and index sets; rows are numbered anew unless told otherwise."""
    cache = DynamicCache()
    for layer, kept in enumerate(held):
        keys = recorder.raw[layer, "k_proj"][:, :, kept]
        values = recorder.raw[layer, "v_proj"][:, :, kept]
        places = torch.tensor([list(range(len(kept))) if positions is None else kept])
        cos, sin = network.model.rotary_emb(keys, places)
        _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
        cache.update(keys, values, layer)
    return cache


@pytest.mark.parametrize("rotate", ["reindex", "absolute"])
@pytest.mark.parametrize("name", ["modulo", "staircase", "shuffled", "uniform"])
@torch.inference_mode()
def test_logits_equal_those_of_a_cache_rebuilt_from_raw_keys(deep, name, rotate):
    network = deep.model
    method = replace(METHODS[name], rotate=rotate)
    cache = method.open(network, 1)
    policy, state = cache.policy, cache.policy.begin()
    held: list[list[int]] = [[] for _ in range(6)]
    recorder = Recorder(network)
    seen = 0
    text = ids(90, batch=2)
    for step in [1] * 40 + [5] * 6 + [20]:
        forward(deep, text[:, seen : seen + step], cache)
        # The same policy on integers: row indices of what is left, never token numbers.
        held = [each + list(range(seen, seen + step)) for each in held]
        seen += step
        kept_LN, state = policy.keep(len(held[0]), state)
        if kept_LN is not None:
            held = [[each[i] for i in kept] for each, kept in zip(held, kept_LN, strict=True)]
        assert cache.rows == len(held[0])
        assert cache.state == state
        assert cache.dropped == seen - len(held[0])
    recorder.close()
    assert seen == 90
    assert seen - len(held[0]) > 60
    other = rebuilt(network, recorder, held, None if rotate == "reindex" else held[0])
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        assert torch.allclose(mine.keys, theirs.keys, atol=1e-5)
        assert torch.equal(mine.values, theirs.values)
    token = ids(1, seed=1, batch=2)
    place = cache.get_seq_length()
    assert place == (len(held[0]) if rotate == "reindex" else seen)
    ours = forward(deep, token, cache)
    theirs = network(
        token, cache=other, position_ids=torch.full((2, 1), place), use_cache=True
    ).logits[:, -1]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_below_the_capacity_nothing_differs_from_the_full_cache(deep, name):
    text = ids(24)
    ours = replace(METHODS[name], chunk=64).prefill(deep, text)
    full = FullCache().prefill(deep, text)
    assert torch.equal(ours.logits_BV, full.logits_BV)
    for mine, theirs in zip(ours.cache.layers, full.cache.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


def test_turning_a_key_is_rotating_the_raw_key_at_its_new_place(deep):
    network = deep.model
    raw = torch.randn(2, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    old = torch.arange(100, 140)
    new = torch.arange(40) * 2

    def at(places: torch.Tensor) -> torch.Tensor:
        cos, sin = network.model.rotary_emb(raw, places[None])
        return apply_rotary_pos_emb(raw, raw, cos, sin)[1]

    turned = turn(at(old), *angles(new - old, frequencies(network)))
    assert torch.allclose(turned, at(new), atol=1e-5)
    assert not torch.allclose(at(old), at(new), atol=0.1)


@torch.inference_mode()
def test_memory_is_constant_and_logits_finite_over_ten_thousand_steps():
    model = tiny_model(num_hidden_layers=2, hidden_size=16, max_position_embeddings=64)
    cache = LaCache(capacity=20, span=1, overlap=0, start=2).open(model.model, 1)
    text, sizes = ids(10_000), set()
    for at in range(0, 10_000, 8):
        logits = forward(model, text[:, at : at + 8], cache)
        if at >= 100:
            sizes.add(kv_bytes(cache))
    assert cache.dropped + cache.rows == 10_000
    row = 2 * 2 * 4 * 4 * 2  # keys and values, heads, width, bytes, layers
    assert max(sizes) == cache.policy.ceiling * row
    assert max(sizes) - min(sizes) < cache.policy.freed * row + row
    assert cache.peak_rows <= cache.policy.ceiling + 8
    assert torch.isfinite(logits).all()


def test_a_saved_stream_goes_on_where_it_was(deep, tmp_path):
    text, more = ids(60), ids(40, seed=3)
    cache = SMALL.prefill(deep, text).cache
    cache.save(tmp_path / "cache.safetensors")
    other = SMALL.open(deep.model, 60)
    other.restore(tmp_path / "cache.safetensors")
    assert (other.state, other.dropped, other.peak_rows) == (
        cache.state,
        cache.dropped,
        cache.peak_rows,
    )
    for at in range(40):
        token = more[:, at : at + 1]
        assert torch.equal(forward(deep, token, cache), forward(deep, token, other))
    assert other.state == cache.state


def test_a_saved_stream_of_another_method_or_a_broken_file_is_refused(deep, tmp_path):
    path = tmp_path / "cache.safetensors"
    SMALL.prefill(deep, ids(60)).cache.save(path)
    with pytest.raises(ResultsError, match="policy"):
        replace(SMALL, capacity=30).open(deep.model, 60).restore(path)
    with pytest.raises(ResultsError, match="rotate"):
        replace(SMALL, rotate="absolute").open(deep.model, 60).restore(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResultsError, match="cannot read"):
        SMALL.open(deep.model, 60).restore(path)
    with pytest.raises(ResultsError, match="cannot read"):
        SMALL.open(deep.model, 60).restore(tmp_path / "missing")


def test_reset_forgets_rows_and_state(deep):
    cache = SMALL.prefill(deep, ids(60)).cache
    cache.reset()
    assert (cache.rows, cache.dropped, cache.state) == (0, 0, cache.policy.begin())
    again = forward(deep, ids(10), cache)
    assert torch.equal(again, FullCache().prefill(deep, ids(10)).logits_BV)


@pytest.mark.parametrize("name", METHODS)
def test_modes_hold_what_they_promise(deep, name):
    method, text = METHODS[name], ids(70)
    most = {"stream": 0, "prefill_once": 20, "both": 0}
    for mode, more in most.items():
        chosen = replace(method, mode=mode, chunk=8)
        cache = chosen.prefill(deep, text).cache
        before = cache.rows
        policy: Any = cache.policy
        ceiling = getattr(policy, "ceiling", 24)
        assert before <= ceiling
        assert cache.peak_rows == (70 if mode != "stream" else min(ceiling + 8, cache.peak_rows))
        for at in range(20):
            forward(deep, text[:, at : at + 1], cache)
        assert cache.rows == before + 20 if more else cache.rows <= ceiling


def test_a_budget_is_a_share_of_the_prompt(deep):
    method = LaCache(budget=0.5, mode="prefill_once")
    cache = method.prefill(deep, ids(100)).cache
    assert isinstance(cache, LadderCache)
    assert cache.policy.capacity == 50
    assert cache.policy.span == 3  # half of six layers
    assert cache.policy.start == 50 - LadderPolicy(6, 90, 3, 0, 0).least
    assert replace(method, budget=1.0).prefill(deep, ids(100)).cache.rows == 100
    assert LaCache().policy(30, 1000).capacity == 512
    assert LaCache().policy(32, 1000).span == 8
    assert LaCache(budget=0.5, mode="both").policy(30, 4000).start == 128


def test_after_one_pass_baselines_hold_the_capacity_and_ladders_no_more(deep):
    text = ids(80)
    rows = {
        name: replace(method, mode="prefill_once").prefill(deep, text).cache.rows
        for name, method in METHODS.items()
    }
    assert rows.pop("modulo") <= 24
    assert rows.pop("staircase") <= 24
    assert rows.pop("shuffled") <= 24
    assert set(rows.values()) == {24}


def test_methods_follow_the_protocol_and_book_their_prompt(deep):
    account = Account.open(Budget(tokens=500, counts="all"))
    read = SMALL.prefill(deep, ids(60, batch=2), account=account)
    assert isinstance(SMALL, CacheMethod)
    assert isinstance(read.cache, Compacting)
    total = account.ledger.totals()
    assert total.prompt_new == 120
    assert 0 < total.flops < deep.flops(60, batch=2)
    with pytest.raises(BudgetError):
        SMALL.prefill(deep, ids(60), account=Account.open(Budget(tokens=50, counts="all")))


def test_the_rooms_decoder_and_generate_say_the_same(deep):
    text = ids(50)
    said = CachedDecoder(SMALL).generate(
        deep, text[0].tolist(), sampling=SamplingParams(max_tokens=30, ignore_eos=True)
    )
    made = deep.model.generate(
        text,
        custom_generate=SMALL.custom_generate,
        max_new_tokens=30,
        min_new_tokens=30,
        do_sample=False,
    )
    assert made[0, 50:].tolist() == list(said.token_ids)
    plain = deep.model.generate(text, max_new_tokens=30, min_new_tokens=30, do_sample=False)
    assert plain.tolist() != made.tolist()  # rows were dropped, and it matters


def test_with_room_for_all_generate_says_what_it_says_without(deep):
    roomy = LaCache(capacity=400, span=3, chunk=7)
    text = ids(30, batch=3)
    settings: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    ours = deep.model.generate(text, custom_generate=roomy.custom_generate, **settings)
    assert torch.equal(ours, deep.model.generate(text, **settings))


def test_a_batch_says_what_its_rows_say_alone(deep):
    text = ids(50, batch=3)
    settings: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    settings["custom_generate"] = SMALL.custom_generate
    together = deep.model.generate(text, **settings)
    for row in range(3):
        assert torch.equal(together[row], deep.model.generate(text[row : row + 1], **settings)[0])


def test_generate_gives_its_dictionary_and_samples_by_the_seed(deep):
    settings: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": True}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    settings["custom_generate"] = SMALL.custom_generate
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(deep.model.generate(ids(40), temperature=2.0, **settings))
    assert torch.equal(made[0].sequences, made[1].sequences)
    assert not torch.equal(made[0].sequences, made[2].sequences)
    assert len(made[0].scores) == 12
    assert isinstance(made[0].cache, LadderCache)
    assert made[0].cache.dropped + made[0].cache.rows == 40 + 11


def test_an_ended_row_is_padded_while_others_go_on(deep):
    text = ids(40, batch=2)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    settings["custom_generate"] = SMALL.custom_generate
    free = deep.model.generate(text, min_new_tokens=20, **settings)
    end = next(int(t) for t in free[0, 40:] if int(t) not in free[1, 40:].tolist())
    made = deep.model.generate(text, eos_token_id=end, **settings)
    at = free[0, 40:].tolist().index(end)
    assert made[0, 40 + at] == end
    assert (made[0, 40 + at + 1 :] == 0).all()
    assert made.shape[1] == 60


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num_beams": 2}, CapabilityError, "num_beams=2"),
        ({"attention_mask": torch.tensor([[0] + [1] * 29])}, InputError, "padded"),
    ],
)
def test_generate_refuses_beams_and_padding(deep, settings, error, words):
    with pytest.raises(error, match=words):
        deep.model.generate(
            ids(30), custom_generate=SMALL.custom_generate, max_new_tokens=4, **settings
        )


def test_generate_refuses_a_cache_that_holds_something(deep):
    full = FullCache().prefill(deep, ids(10)).cache
    with pytest.raises(InputError, match="already holds 10 rows"):
        deep.model.generate(
            ids(30), cache=full, custom_generate=SMALL.custom_generate, max_new_tokens=4
        )


@pytest.mark.parametrize(
    ("kind", "knobs", "words"),
    [
        ("Mistral", {}, "DynamicSlidingWindowLayer"),
        ("Gemma2", {}, "DynamicSlidingWindowLayer"),
        ("Mamba", {}, "LinearAttentionLayer"),
        ("GPT2", {}, "no rotary table"),
        ("Bloom", {}, "no rotary table"),
        ("Cohere", {}, "do not turn"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic'",
        ),
    ],
)
def test_models_whose_rows_cannot_be_dropped_or_moved_are_refused_by_name(kind, knobs, words):
    with pytest.raises(CapabilityError, match=words):
        LaCache(capacity=24, span=1).open(tiny_network(kind, **knobs), 1)


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("Qwen2", {}),
        ("Mixtral", {}),
        ("Granite", {}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
        (
            "Llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
    ],
)
def test_models_with_fixed_frequencies_work(kind, knobs):
    model = tiny_model(kind, **knobs)
    cache = LaCache(capacity=16, span=1, start=2).prefill(model, ids(50)).cache
    assert cache.rows <= cache.policy.ceiling
    assert torch.isfinite(forward(model, ids(1), cache)).all()


def test_a_model_without_rotary_positions_works_in_absolute_ones_up_to_its_window():
    model = tiny_model("GPT2", n_positions=64, max_position_embeddings=64)
    method = LaCache(capacity=16, span=1, start=2, rotate="absolute", chunk=8)
    cache = method.prefill(model, ids(60)).cache
    assert cache.get_seq_length() == 60
    assert cache.rows <= 16
    model = tiny_model(max_position_embeddings=64)
    with pytest.raises(InputError, match=r"window of 64 positions.*reindex"):
        method.prefill(model, ids(70))
    assert replace(method, rotate="reindex").prefill(model, ids(70)).cache.rows <= 16


def test_layers_of_unequal_length_are_refused(deep):
    cache = SMALL.prefill(deep, ids(30)).cache
    cache.layers[3].crop(-2)
    with pytest.raises(CapabilityError, match="equal numbers"):
        cache.compact()


def test_a_decoder_that_takes_rows_back_leaves_the_ladder_in_step(deep):
    text = ids(60)
    cache, other = (SMALL.prefill(deep, text).cache for _ in range(2))
    for at in range(0, 30, 2):
        tried = ids(3, seed=at)
        position = cache.get_seq_length() + torch.arange(3)[None]
        deep.model(tried, cache=cache, position_ids=position, use_cache=True)
        cache.crop(-3)
        for each in (cache, other):
            forward(deep, text[:, at : at + 2], each)
    assert cache.state == other.state
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"capacity": 100, "budget": 0.5}, "not both"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 1.5}, "budget=1.5"),
        ({"budget": True}, "budget=True"),
        ({"budget": "half"}, "budget='half'"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"capacity": 10.0}, "capacity=10.0"),
        ({"capacity": 0}, "capacity=0"),
        ({"start": -1}, "start=-1"),
        ({"protect_last": 0}, "protect_last=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"span": 0}, "span=0"),
        ({"overlap": -1}, "overlap=-1"),
        ({"rotate": "none"}, "reindex or absolute"),
        ({"mode": "once"}, "stream, prefill_once or both"),
        ({"ladder": "spiral"}, "modulo, staircase or shuffled"),
    ],
)
def test_bad_knobs_are_refused_by_name(knobs, words):
    with pytest.raises(InputError, match=words):
        LaCache(**knobs)


@pytest.mark.parametrize("cls", [LaCache, StreamingLLM, RandomRetention, UniformStride])
def test_a_capacity_below_sinks_and_recent_rows_is_refused(deep, cls):
    with pytest.raises(BudgetError, match="capacity=8"):
        cls(capacity=8, start=8).prefill(deep, ids(30))


def test_more_overlap_than_span_or_more_span_than_layers_is_refused(deep):
    with pytest.raises(InputError, match="6 layers"):
        LaCache(span=7).prefill(deep, ids(30))
    with pytest.raises(InputError, match="below span=2"):
        LaCache(span=2, overlap=2).prefill(deep, ids(30))


def test_an_empty_prompt_is_refused(deep):
    with pytest.raises(InputError, match="T >= 1"):
        SMALL.prefill(deep, torch.empty((1, 0), dtype=torch.long))
    with pytest.raises(InputError, match="give ids"):
        SMALL.prefill(deep, torch.arange(5))


def test_every_refusal_is_an_outlay_error():
    assert all(
        issubclass(error, OutlayError)
        for error in (BudgetError, CapabilityError, InputError, ResultsError, EndpointError)
    )


@pytest.mark.parametrize("name", METHODS)
def test_baselines_keep_increasing_rows_and_both_ends(name):
    method = METHODS[name]
    policy = method.policy(6, 100)
    rows, state = 0, policy.begin()
    start = 0 if name == "window" else 2
    for step in [1] * 60 + [30, 1, 400, 3]:
        rows += step
        kept_LN, state = policy.keep(rows, state)
        if kept_LN is None:
            continue
        assert (np.diff(kept_LN, axis=1) > 0).all()
        assert (kept_LN[:, :start] == np.arange(start)).all()
        assert (kept_LN[:, -6:] == np.arange(rows - 6, rows)).all()
        rows = kept_LN.shape[1]
        assert rows <= 25


def test_random_retention_differs_between_layers_only_where_told():
    for per_layer, sets in ((True, 6), (False, 1)):
        policy = RandomRetention(capacity=40, per_layer=per_layer).policy(6, 100)
        kept_LN, state = policy.keep(100, policy.begin())
        assert len({tuple(row) for row in kept_LN.tolist()}) == sets
        other_LN, _ = policy.keep(100, state)
        assert other_LN.tolist() != kept_LN.tolist()


def test_uniform_retention_drops_every_other_row_of_the_middle_at_half():
    policy = UniformStride(capacity=20, start=4, protect_last=6).policy(2, 100)
    kept_LN, _ = policy.keep(30, policy.begin())
    assert kept_LN[0].tolist() == [0, 1, 2, 3, *range(4, 24, 2), *range(24, 30)]


def test_a_window_is_streaming_without_sinks():
    window = SlidingWindow(capacity=10).policy(2, 1)
    sinks = StreamingLLM(capacity=10, start=3).policy(2, 1)
    assert window.keep(30, ())[0][0].tolist() == list(range(20, 30))
    assert sinks.keep(30, ())[0][0].tolist() == [0, 1, 2, *range(23, 30)]


def test_a_compacted_cache_is_a_dynamic_cache(deep):
    cache = SMALL.open(deep.model, 10)
    assert isinstance(cache, DynamicCache)
    assert isinstance(cache, CompactedCache)
    assert len(cache.layers) == 6


@torch.inference_mode()
def test_in_half_precision_keys_that_move_often_stay_as_exact_as_keys_that_never_moved():
    model, half = tiny_model(), tiny_model()
    text, method = ids(450), LaCache(capacity=120, span=1, start=2)
    half.model.to(torch.bfloat16)
    half.model.model.rotary_emb.inv_freq = model.model.model.rotary_emb.inv_freq
    caches = []
    for each in (model, half):
        cache = method.open(each.model, 1)
        for at in range(450):
            forward(each, text[:, at : at + 1], cache)
        caches.append(cache)
    exact, cache = caches
    assert cache.state == exact.state
    # The first layer's keys depend on the token and its place alone.
    mine, theirs = cache.layers[0], exact.layers[0]
    assert int(mine.shift_N.min()) < -80
    read, _ = mine.update(mine.keys[..., :0, :], mine.values[..., :0, :])
    assert read.dtype == torch.bfloat16
    gap_N = (read.float() - theirs.keys).norm(dim=-1) / theirs.keys.norm(dim=-1)
    assert float(gap_N.max()) < 0.02  # turned in place a hundred times: 0.05 and more


def test_a_saved_stream_in_half_precision_goes_on_where_it_was(tmp_path):
    model = tiny_model(num_hidden_layers=6)
    model.model.to(torch.bfloat16)
    cache = SMALL.prefill(model, ids(60)).cache
    cache.save(tmp_path / "cache.safetensors")
    other = SMALL.open(model.model, 60)
    other.restore(tmp_path / "cache.safetensors")
    for at in range(20):
        token = ids(1, seed=at)
        cache_says, other_says = (forward(model, token, each) for each in (cache, other))
        assert torch.equal(cache_says, other_says)
    cache.crop(-3)
    cache.reset()
    assert torch.equal(
        forward(model, ids(10), cache), FullCache().prefill(model, ids(10)).logits_BV
    )
