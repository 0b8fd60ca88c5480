"""Tiny networks and pairs of them for the tests of predicted caches."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from outlay.cache.kv_prediction.model import KVPredictionModel
from tiny_models import tiny_network, tiny_tokenizer

LAYERS = 4


def network(kind: str = "Llama", seed: int = 0, **knobs: Any) -> Any:
    """A random network of four layers; norms of keys, where there are any, are not trivial."""
    if kind in ("Qwen3", "Olmo2", "Phi"):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {
            "vocab_size": len(tiny_tokenizer()),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        if kind == "Qwen3":
            sizes["head_dim"] = 8
        config = getattr(transformers, f"{kind}Config")(**{**sizes, **knobs})
        made = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    else:
        made = tiny_network(kind, seed, **{"num_hidden_layers": LAYERS, **knobs})
    for name, parameter in made.named_parameters():
        if "k_norm" in name:
            parameter.copy_(0.5 + torch.rand_like(parameter))
    return made


def uneven() -> Any:
    """A Llama whose second layer has four key/value heads instead of two."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    made = network()
    config = network(num_key_value_heads=4).config
    torch.manual_seed(9)
    made.model.layers[1].self_attn = LlamaAttention(config, 1).eval().requires_grad_(False)
    return made


def copied(base: Any) -> KVPredictionModel:
    """The auxiliary is the whole base and every map the identity, so that nothing may change."""
    pair = KVPredictionModel.pruned(base, range(LAYERS))
    pair.predictor.become_identity()
    return pair


def ids(rows: int = 2, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Random tokens, ids_BT."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, len(tiny_tokenizer()), (rows, width), generator=generator)
