"""What a model's shape says about cost: parameters, KV bytes and FLOPs in closed form.

`ModelShape` covers decoder-only transformers with gated MLPs, grouped-query attention, sliding
windows and mixtures of experts. Its FLOPs equal `torch.utils.flop_counter` on the transformers
implementation with eager attention and eager experts, which computes scores over the full key
length; `causal=True` counts the useful half only. A multiply-add is 2 FLOPs; norms, activations,
rotary embeddings and softmax are not counted, as in that tool. Only attributes of a config are
read: neither torch nor transformers is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from outlay.errors import CapabilityError, InputError


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer's shape.

    Args:
        window: sliding attention window in tokens, None for full attention.
        width: hidden width of the gated MLP that every token passes (the dense MLP, or a mixture's
            shared expert); 0 where there is none.
        experts: number of routed experts, 0 for a dense layer.
        top_k: experts per token.
        expert_width: hidden width of one routed expert.
        shared_gate: whether the shared expert's output is gated by a learned scalar.
    """

    window: int | None = None
    width: int = 0
    experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    shared_gate: bool = False

    def keys(self, past: int, new: int) -> int:
        """Key length of one forward pass: a sliding cache keeps `window - 1` past tokens."""
        return new + (past if self.window is None else min(past, self.window - 1))


@dataclass(frozen=True)
class _Family:
    """What the configuration of one model type does not say."""

    qkv_bias: bool | str = "attention_bias"  # a constant, or the config field that says it
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    layer_norms: int = 2  # norm vectors of hidden size per layer
    head_norms: bool = False  # one norm vector of head size each for queries and keys
    tied: bool = False  # the default of tie_word_embeddings
    moe: Literal["", "mixtral", "qwen"] = ""
    sliding: Literal["", "field", "switch"] = ""  # "switch": only with use_sliding_window
    typed: bool = False  # layer_types says which layers slide
    head_default: bool = False  # head_dim may be absent: hidden_size / num_attention_heads


_FAMILIES = {
    "llama": _Family(out_bias="attention_bias", mlp_bias="mlp_bias", head_default=True),
    "mistral": _Family(qkv_bias=False, sliding="field", head_default=True),
    "qwen2": _Family(qkv_bias=True, sliding="switch", typed=True, head_default=True),
    "qwen3": _Family(out_bias="attention_bias", head_norms=True, sliding="switch", typed=True),
    "smollm3": _Family(
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        tied=True,
        sliding="switch",
        typed=True,
        head_default=True,
    ),
    "gemma": _Family(out_bias="attention_bias", tied=True),
    "gemma2": _Family(
        out_bias="attention_bias", layer_norms=4, tied=True, sliding="field", typed=True
    ),
    "gemma3_text": _Family(
        out_bias="attention_bias",
        layer_norms=4,
        head_norms=True,
        tied=True,
        sliding="field",
        typed=True,
    ),
    "phi3": _Family(qkv_bias=False, sliding="field", head_default=True),
    "granite": _Family(out_bias="attention_bias", mlp_bias="mlp_bias", head_default=True),
    "mixtral": _Family(qkv_bias=False, moe="mixtral", sliding="field", head_default=True),
    "qwen2_moe": _Family(
        qkv_bias="qkv_bias", moe="qwen", sliding="switch", typed=True, head_default=True
    ),
    "qwen3_moe": _Family(
        out_bias="attention_bias", head_norms=True, moe="qwen", sliding="switch", head_default=True
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide what its tokens cost.

    Args:
        hidden: width of the residual stream.
        heads: query heads per layer.
        kv_heads: key/value heads per layer.
        head_dim: width of one head.
        vocab: rows of the vocabulary projection.
        layers: distinct layer shapes with their multiplicities.
        tied: whether the vocabulary projection shares the embedding's weights.
        qkv_bias, out_bias, mlp_bias: which projections carry biases (parameters only).
        layer_norms: norm vectors of size `hidden` per layer.
        head_norms: whether queries and keys have a norm vector each.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    layers: tuple[tuple[LayerShape, int], ...]
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    layer_norms: int = 2
    head_norms: bool = False

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape described by a transformers config object or dict.

        A composite config (a vision-language model's) gives its text part.

        Raises:
            CapabilityError: for a model type whose closed forms are not known.
            InputError: for a config without the fields of its type.
        """

        def read(name: str, default: Any = None) -> Any:
            if isinstance(config, Mapping):
                return config.get(name, default)
            return getattr(config, name, default)

        kind = read("model_type")
        if kind not in _FAMILIES and read("text_config") is not None:
            return cls.from_config(read("text_config"))
        family = _FAMILIES.get(kind)
        if family is None:
            raise CapabilityError(
                f"no closed-form cost for model_type={kind!r}; known: {', '.join(_FAMILIES)}"
            )

        def need(name: str) -> int:
            value = read(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"config of type {kind!r} has {name}={value!r}; need an int >= 1")
            return value

        def flag(value: bool | str) -> bool:
            return value if isinstance(value, bool) else bool(read(value, False))

        hidden, heads, count = (
            need("hidden_size"),
            need("num_attention_heads"),
            need("num_hidden_layers"),
        )
        groups: dict[LayerShape, int] = {}
        windows = _windows(read, family, count)
        for index in range(count):
            layer = _layer(read, need, family, index, windows[index])
            groups[layer] = groups.get(layer, 0) + 1
        tied = read("tie_word_embeddings")
        return cls(
            hidden=hidden,
            heads=heads,
            # Configs older than grouped-query attention have no num_key_value_heads.
            kv_heads=heads
            if kind == "llama" and read("num_key_value_heads") is None
            else need("num_key_value_heads"),
            head_dim=hidden // heads
            if family.head_default and read("head_dim") is None
            else need("head_dim"),
            vocab=need("vocab_size"),
            layers=tuple(groups.items()),
            tied=family.tied if tied is None else bool(tied),
            qkv_bias=flag(family.qkv_bias),
            out_bias=flag(family.out_bias),
            mlp_bias=flag(family.mlp_bias),
            layer_norms=family.layer_norms,
            head_norms=family.head_norms,
        )

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return sum(count for _, count in self.layers)

    @property
    def parameters(self) -> int:
        """All parameters; tied weights count once."""
        return self._parameters(lambda layer: layer.experts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: of a mixture, the router and `top_k` experts."""
        return self._parameters(lambda layer: layer.top_k)

    def _parameters(self, experts_of: Callable[[LayerShape], int]) -> int:
        d, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = d * (2 * q + 2 * kv) + self.qkv_bias * (q + 2 * kv) + self.out_bias * d
        attention += self.layer_norms * d + self.head_norms * 2 * self.head_dim
        total = (1 if self.tied else 2) * self.vocab * d + d  # embedding, head, final norm
        for layer, count in self.layers:
            mlp = 3 * d * layer.width + self.mlp_bias * (2 * layer.width + d)
            mlp += layer.shared_gate * d + layer.experts * d  # gate of the shared expert, router
            mlp += experts_of(layer) * 3 * d * layer.expert_width
            total += count * (attention + mlp)
        return total

    def kv_bytes(self, tokens: int, itemsize: int = 2, *, batch: int = 1) -> int:
        """Bytes of keys and values cached for `tokens` tokens, `itemsize` bytes per number.

        Sliding layers keep `window - 1` tokens.
        """
        _at_least(0, tokens=tokens)
        _at_least(1, itemsize=itemsize, batch=batch)
        cached = sum(count * layer.keys(tokens, 0) for layer, count in self.layers)
        return 2 * self.kv_heads * self.head_dim * cached * itemsize * batch

    def flops(
        self,
        new_tokens: int,
        past_tokens: int = 0,
        *,
        logits_rows: int | None = None,
        batch: int = 1,
        causal: bool = False,
    ) -> int:
        """Forward FLOPs of `new_tokens` tokens after `past_tokens` cached ones.

        Args:
            new_tokens: tokens fed, per sequence.
            past_tokens: tokens whose keys and values are cached.
            logits_rows: positions per sequence that pass the vocabulary projection (transformers'
                `logits_to_keep`); None for all, 0 for none.
            batch: sequences of this length.
            causal: count only scores that the causal mask (and window) keeps.
        """
        _at_least(0, new_tokens=new_tokens, past_tokens=past_tokens)
        _at_least(1, batch=batch)
        rows = new_tokens if logits_rows is None else min(logits_rows, new_tokens)
        _at_least(0, logits_rows=rows)
        pairs = 0
        for layer, count in self.layers:
            if causal:
                pairs += count * _window_sum(layer.window, past_tokens + 1, new_tokens)
            else:
                pairs += count * new_tokens * layer.keys(past_tokens, new_tokens)
        return batch * (
            new_tokens * self._linear_flops()
            + rows * self._head_flops()
            + pairs * self._pair_flops()
        )

    def flops_generate(
        self, prompt_tokens: int, new_tokens: int, *, cached: int = 0, batch: int = 1
    ) -> int:
        """FLOPs of sampling `new_tokens` tokens after a prompt, with a KV cache.

        The prompt is one pass (without its first `cached` tokens) that projects its last row;
        then `new_tokens - 1` single-token passes: the last sampled token is never fed.
        """
        _at_least(1, prompt_tokens=prompt_tokens, batch=batch)
        _at_least(0, new_tokens=new_tokens, cached=cached)
        if cached >= prompt_tokens:
            raise InputError(
                f"cached={cached} of {prompt_tokens} prompt tokens; at least one must be computed"
            )
        total = self.flops(prompt_tokens - cached, cached, logits_rows=1, batch=batch)
        if new_tokens < 2:
            return total
        steps = new_tokens - 1
        pairs = sum(
            count * _window_sum(layer.window, prompt_tokens + 1, steps)
            for layer, count in self.layers
        )
        return total + batch * (
            steps * (self._linear_flops() + self._head_flops()) + pairs * self._pair_flops()
        )

    def flops_train(self, tokens: int, *, batch: int = 1) -> int:
        """FLOPs of one forward and backward pass with all weights trained: 3x the forward pass."""
        return 3 * self.flops(tokens, batch=batch)

    def _linear_flops(self) -> int:
        """Per token: projections, MLPs, routers; all layers."""
        d, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        weights = sum(
            count
            * (
                d * (2 * q + 2 * kv)
                + 3 * d * (layer.width + layer.top_k * layer.expert_width)
                + d * (layer.experts + layer.shared_gate)
            )
            for layer, count in self.layers
        )
        return 2 * weights

    def _head_flops(self) -> int:
        return 2 * self.hidden * self.vocab

    def _pair_flops(self) -> int:
        """Per (query, key) pair: one score and one weighted value, all heads."""
        return 4 * self.heads * self.head_dim


def _windows(read: Any, family: _Family, count: int) -> list[int | None]:
    """Each layer's sliding window, as transformers' own cache reads it from a config."""
    window = read("sliding_window")
    if family.sliding == "switch" and not read("use_sliding_window", False):
        window = None
    if not family.sliding or not window:
        return [None] * count
    if window < 2:
        raise InputError(f"sliding_window={window}; need at least 2")
    types = read("layer_types")
    if types is None:
        if family.typed:
            raise InputError(
                f"a {read('model_type')} config with sliding_window={window} has no layer_types; "
                "give the config object, which fills them in"
            )
        return [window] * count
    if len(types) != count:
        raise InputError(f"layer_types has {len(types)} entries for {count} layers")
    return [window if kind == "sliding_attention" else None for kind in types]


def _layer(read: Any, need: Any, family: _Family, index: int, window: int | None) -> LayerShape:
    if family.moe == "mixtral":
        return LayerShape(
            window=window,
            experts=need("num_local_experts"),
            top_k=need("num_experts_per_tok"),
            expert_width=need("intermediate_size"),
        )
    sparse = (
        family.moe == "qwen"
        and index not in (read("mlp_only_layers") or ())
        and (read("num_experts") or 0) > 0
        and (index + 1) % need("decoder_sparse_step") == 0
    )
    if not sparse:
        return LayerShape(window=window, width=need("intermediate_size"))
    shared = read("shared_expert_intermediate_size") or 0
    return LayerShape(
        window=window,
        width=shared,
        experts=need("num_experts"),
        top_k=need("num_experts_per_tok"),
        expert_width=need("moe_intermediate_size"),
        shared_gate=shared > 0,
    )


def _window_sum(window: int | None, first: int, count: int) -> int:
    """Sum of `min(k, window)` for k = first .. first + count - 1."""
    full = count if window is None else max(0, min(count, window - first))
    rising = full * first + full * (full - 1) // 2
    return rising + (0 if window is None else (count - full) * window)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}; need an int >= {least}")
