"""Tiny real networks with known habits."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(tokenizer: Any, seed: int = 0, **knobs: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **knobs})).eval()


def always(tokenizer: Any, text: str) -> LlamaForCausalLM:
    """A Llama whose last layer has a bias so large that it writes the token `text` for ever."""
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    network = tiny_llama(tokenizer)
    head = torch.nn.Linear(32, len(tokenizer))
    with torch.no_grad():
        head.weight.copy_(network.lm_head.weight)
        head.bias.zero_()
        head.bias[token] = 1e6
    network.lm_head = head
    return network
