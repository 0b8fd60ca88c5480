"""Closed forms of cost against real models, and efficiency figures."""

import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.cost import (
    ModelShape,
    Price,
    accuracy_per_token,
    e3,
    efficiency,
    tokens_per_correct,
)
from outlay.errors import CapabilityError, InputError
from outlay.shape import LayerShape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ROUTED = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CONFIGS = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama, grouped queries": ("LlamaConfig", {}),
    "llama, one key head, wide heads": ("LlamaConfig", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama, biases, tied": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral, sliding": ("MistralConfig", {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, upper layers sliding": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
    "smollm3": ("SmolLM3Config", {}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 5}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 5}),
    "phi3": ("Phi3Config", {"sliding_window": 6}),
    "granite": ("GraniteConfig", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral, one of three, sliding": (
        "MixtralConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 6},
    ),
    "qwen2_moe, every other layer": (
        "Qwen2MoeConfig",
        {**ROUTED, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    ),
    "qwen2_moe, one dense layer, sliding": (
        "Qwen2MoeConfig",
        {
            **ROUTED,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
        },
    ),
    "qwen3_moe": ("Qwen3MoeConfig", ROUTED),
}
SEVERAL = pytest.mark.parametrize("name", CONFIGS)
FEW = ["llama, grouped queries", "mistral, sliding", "gemma3", "mixtral"]


@cache
def model_of(name):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, options = CONFIGS[name]
    config = getattr(transformers, kind)(**{**SMALL, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if "mixtral" in name or "moe" in name:
        model.set_experts_implementation("eager")
    return model.eval(), ModelShape.from_config(model.config)


def counted(call):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def tokens(batch, length):
    return torch.randint(2, SMALL["vocab_size"], (batch, length))


@SEVERAL
def test_parameters_are_exact(name):
    model, shape = model_of(name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.num_layers == SMALL["num_hidden_layers"]
    mixture = any(layer.experts for layer, _ in shape.layers)
    assert (shape.active_parameters < shape.parameters) == mixture


@SEVERAL
@torch.no_grad()
def test_forward_flops_equal_the_flop_counter(name):
    model, shape = model_of(name)
    for batch, length in ((1, 1), (2, 9), (3, 4)):
        flops, _ = counted(lambda b=batch, n=length: model(tokens(b, n)))
        assert flops == shape.flops(length, batch=batch)


@SEVERAL
@torch.no_grad()
def test_cached_steps_and_kept_logits_equal_the_flop_counter(name):
    model, shape = model_of(name)
    past, held = 0, None
    for new, keep in ((7, 1), (1, 1), (4, 0), (3, 2), (1, 0)):
        flops, output = counted(
            lambda n=new, k=keep, c=held: model(tokens(2, n), cache=c, logits_to_keep=k)
        )
        rows = keep or None  # 0 keeps all rows in transformers
        assert flops == shape.flops(new, past, logits_rows=rows, batch=2)
        held, past = output.cache, past + new
        bytes_ = sum(
            (layer.keys.numel() + layer.values.numel()) * layer.keys.element_size()
            for layer in held.layers
        )
        assert bytes_ == shape.kv_bytes(past, 4, batch=2)


@SEVERAL
@torch.no_grad()
def test_generating_costs_what_generate_spends(name):
    model, shape = model_of(name)
    for new in (1, 6):
        flops, _ = counted(
            lambda n=new: model.generate(
                tokens(2, 9), max_new_tokens=n, min_new_tokens=n, do_sample=False
            )
        )
        assert flops == shape.flops_generate(9, new, batch=2)


@SEVERAL
def test_training_costs_three_forward_passes(name):
    model, shape = model_of(name)
    flops, _ = counted(lambda: model(tokens(2, 6)).logits.sum().backward())
    assert flops == shape.flops_train(6, batch=2) == 3 * shape.flops(6, batch=2)
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_no_logits_rows_is_the_headless_model():
    model, shape = model_of("llama, grouped queries")
    flops, _ = counted(lambda: model.model(tokens(2, 5)))
    assert flops == shape.flops(5, logits_rows=0, batch=2)


@pytest.mark.parametrize("name", FEW)
@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(1, 14), st.integers(1, 9))
@torch.no_grad()
def test_any_two_steps_equal_the_flop_counter(name, batch, first, second):
    model, shape = model_of(name)
    flops, output = counted(lambda: model(tokens(batch, first)))
    assert flops == shape.flops(first, batch=batch)
    flops, _ = counted(lambda: model(tokens(batch, second), cache=output.cache))
    assert flops == shape.flops(second, first, batch=batch)


@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from(FEW))
def test_generation_is_the_sum_of_its_steps(prompt, new, name):
    _, shape = model_of(name)
    steps = [shape.flops(prompt, logits_rows=1)]
    steps += [shape.flops(1, prompt + i) for i in range(new - 1)]
    assert shape.flops_generate(prompt, new) == sum(steps)


@given(st.integers(1, 30), st.integers(0, 30), st.sampled_from(FEW))
def test_causal_flops_equal_counting_kept_pairs_one_by_one(new, past, name):
    _, shape = model_of(name)
    pairs = 0
    for layer, count in shape.layers:
        for query in range(past, past + new):
            keys = range(past + new)
            window = layer.window or past + new
            pairs += count * sum(key <= query and query - key < window for key in keys)
    dense = shape.flops(new, past, logits_rows=0) - 4 * shape.heads * shape.head_dim * sum(
        count * new * layer.keys(past, new) for layer, count in shape.layers
    )
    exact = dense + 4 * shape.heads * shape.head_dim * pairs
    assert shape.flops(new, past, logits_rows=0, causal=True) == exact
    assert exact <= shape.flops(new, past, logits_rows=0)


@given(st.integers(0, 200), st.integers(1, 50))
def test_a_cached_prefix_saves_exactly_its_own_pass(prefix, rest):
    _, shape = model_of("llama, grouped queries")
    whole = shape.flops_generate(prefix + rest, 3, cached=prefix)
    steps = shape.flops(rest, prefix, logits_rows=1) + shape.flops(1, prefix + rest)
    assert whole == steps + shape.flops(1, prefix + rest + 1)


def test_kv_bytes_grow_linearly_until_a_window_is_full():
    _, full = model_of("llama, grouped queries")
    assert full.kv_bytes(10) == 10 * full.kv_bytes(1) == 10 * 2 * 2 * 8 * 4 * 2
    _, sliding = model_of("mistral, sliding")
    assert sliding.kv_bytes(4) == sliding.kv_bytes(400)
    assert full.kv_bytes(0) == 0


def test_a_plain_dict_and_a_composite_config_read_like_the_config_object():
    model, shape = model_of("qwen2_moe, one dense layer, sliding")
    assert ModelShape.from_config(model.config.to_dict()) == shape
    outer = {"model_type": "some_vlm", "text_config": model.config.to_dict()}
    assert ModelShape.from_config(outer) == shape


def test_smollm2_has_135_million_parameters():
    shape = ModelShape.from_config(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        }
    )
    assert shape.parameters == 134_515_008
    assert shape.kv_bytes(1, 4) == 2 * 3 * 64 * 30 * 4


def test_an_old_llama_config_without_key_heads_has_as_many_as_query_heads():
    config = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    assert ModelShape.from_config({**config, "model_type": "llama"}).kv_heads == 4
    with pytest.raises(InputError, match="num_key_value_heads=None"):
        ModelShape.from_config({**config, "model_type": "mistral"})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "mamba"}, CapabilityError, "model_type='mamba'; known: llama"),
        ({"model_type": None}, CapabilityError, "model_type=None"),
        ({"hidden_size": None}, InputError, "hidden_size=None"),
        ({"vocab_size": 0}, InputError, "vocab_size=0"),
        ({"num_attention_heads": 4.0}, InputError, "num_attention_heads=4.0"),
        ({"model_type": "qwen3"}, InputError, "head_dim=None"),
        ({"model_type": "mistral", "sliding_window": 1}, InputError, "at least 2"),
        (
            {"model_type": "gemma2", "sliding_window": 8, "head_dim": 8},
            InputError,
            "has no layer_types",
        ),
        (
            {"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"]},
            InputError,
            "1 entries for 4 layers",
        ),
        ({"model_type": "qwen2_moe", **ROUTED}, InputError, "decoder_sparse_step=None"),
        ({"model_type": "mixtral"}, InputError, "num_local_experts=None"),
    ],
)
def test_a_config_that_cannot_be_read_says_what_is_missing(change, error, words):
    with pytest.raises(error) as caught:
        ModelShape.from_config({"model_type": "llama", **SMALL, **change})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda shape: shape.flops(-1),
        lambda shape: shape.flops(1, -1),
        lambda shape: shape.flops(1.5),
        lambda shape: shape.flops(1, batch=0),
        lambda shape: shape.flops(1, logits_rows=-1),
        lambda shape: shape.kv_bytes(-1),
        lambda shape: shape.kv_bytes(1, 0),
        lambda shape: shape.flops_generate(0, 1),
        lambda shape: shape.flops_generate(5, -1),
        lambda shape: shape.flops_generate(5, 1, cached=5),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(InputError):
        call(ModelShape(8, 2, 1, 4, 11, ((LayerShape(width=16), 2),)))


# Money and efficiency


def test_a_price_is_per_million_tokens():
    price = Price(prompt=2.0, cached=0.5, generated=8.0)
    assert price.usd(1_000_000, 0, 0) == 2.0
    assert price.usd(500_000, 1_000_000, 250_000) == 1.0 + 0.5 + 2.0
    assert price.usd(0, 0, 0) == 0.0


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_price_must_be_finite_and_not_negative(bad):
    with pytest.raises(InputError, match="usd per 1M tokens"):
        Price(1.0, bad, 1.0)


def test_e3_is_the_square_of_accuracy_in_percent_over_tokens():
    assert e3(50.0, 100.0) == 25.0
    assert accuracy_per_token(50.0, 100.0) == 0.5


def test_no_accuracy_is_zero_but_no_tokens_is_undefined():
    assert e3(0.0, 100.0) == 0.0
    assert e3(50.0, 0.0) is None
    assert accuracy_per_token(50.0, 0.0) is None
    assert tokens_per_correct(500, 0) is None
    assert tokens_per_correct(0, 3) == 0.0


@given(st.floats(0, 100), st.floats(0.1, 1e6))
def test_doubling_tokens_halves_e3(accuracy, mean):
    assert e3(accuracy, 2 * mean) == pytest.approx(e3(accuracy, mean) / 2)


@pytest.mark.parametrize(("accuracy", "mean"), [(101, 5), (-1, 5), (50, -5), (50, float("nan"))])
def test_efficiency_of_impossible_numbers_is_refused(accuracy, mean):
    with pytest.raises(InputError):
        e3(accuracy, mean)


ANSWERS = st.lists(
    st.tuples(st.integers(0, 500), st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(1, 300)),
    min_size=1,
    max_size=40,
)


@given(ANSWERS)
def test_efficiency_equals_a_plain_reference(answers):
    used, scores, budgets = map(list, zip(*answers, strict=True))
    found = efficiency(used, scores, budgets)
    n = len(used)
    right = [t for t, s in zip(used, scores, strict=True) if s == 1]
    assert found.n == n
    assert found.accuracy == pytest.approx(sum(scores) / n)
    assert found.tokens_mean == pytest.approx(sum(used) / n)
    assert found.tokens_correct == (pytest.approx(sum(right) / len(right)) if right else None)
    assert found.tokens_per_correct == (pytest.approx(sum(used) / len(right)) if right else None)
    pairs = list(zip(used, budgets, strict=True))
    assert found.violation == pytest.approx(sum(t > b for t, b in pairs) / n)
    assert found.overshoot == pytest.approx(sum(max(0, t - b) / b for t, b in pairs) / n)
    assert found.utilisation == pytest.approx(sum(min(t, b) / b for t, b in pairs) / n)
    assert found.e3 == e3(100 * found.accuracy, found.tokens_mean)


@given(ANSWERS)
def test_duplicating_the_data_leaves_e3_unchanged(answers):
    used, scores, _ = map(list, zip(*answers, strict=True))
    once, twice = efficiency(used, scores), efficiency(used * 2, scores * 2)
    assert (once.e3 is None) == (twice.e3 is None)
    if once.e3 is not None:
        assert twice.e3 == pytest.approx(once.e3)


def test_efficiency_of_nothing_is_undefined_throughout():
    found = efficiency([], [])
    assert found.n == 0
    assert {getattr(found, f) for f in ("accuracy", "tokens_mean", "e3", "violation")} == {None}


@pytest.mark.parametrize(
    "arguments",
    [
        ([1, 2], [1.0]),
        ([-1], [1.0]),
        ([1], [1.5]),
        ([1], [float("nan")]),
        ([1], [1.0], [0]),
        ([1], [1.0], [1, 2]),
    ],
)
def test_efficiency_refuses_what_does_not_fit(arguments):
    with pytest.raises(InputError):
        efficiency(*arguments)


def test_the_light_core_imports_no_torch():
    code = (
        "import sys, outlay.cost, outlay.frontier, outlay.report; "
        "assert not {'torch', 'transformers', 'matplotlib', 'scipy', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
