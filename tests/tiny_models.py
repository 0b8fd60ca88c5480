"""Small real networks with random or chosen weights, and a byte-level tokenizer made in code."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from outlay.models.local import LocalModel

SPECIAL = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>")
MERGES = ("x \n", "\n \n", "a b", "b c", "ab c", "t h", "th e", "Ġ a", "Ġ the", "i n", "e r", "o n")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, a dozen merges, five special tokens; with a chat template."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(m.replace("\n", "Ċ").split(" ")) for m in MERGES]
    words = [*SPECIAL, *pieces, *("".join(pair) for pair in pairs)]
    core = Tokenizer(token_models.BPE({w: i for i, w in enumerate(words)}, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


# kind -> settings beside the common ones
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Qwen2": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 8.0},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {"alibi": False, "multi_query": True},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
    },
    "Mamba": {"state_size": 4},
}


def tiny_network(kind: str = "Llama", seed: int = 0, **knobs: Any) -> Any:
    """A random network of two layers in fp32."""
    tokenizer = tiny_tokenizer()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **KINDS[kind], **knobs})
    names = (f"{kind}ForCausalLM", f"{kind}LMHeadModel")
    cls = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    network = cls(config).eval()
    network.requires_grad_(False)
    return network


def tiny_model(kind: str = "Llama", seed: int = 0, **knobs: Any) -> LocalModel:
    """`tiny_network` behind the protocol."""
    return LocalModel(tiny_network(kind, seed, **knobs), tiny_tokenizer(), f"tiny-{kind}")


def chain_model(text: str, *, then: str = "<eos>") -> LocalModel:
    """A Llama that, after a token of `text`, always says the next one, and `then` at the end.

    Its attention and MLPs add nothing, embeddings are one-hot, and the head is the successor
    function; so the tokens of `text` must differ from each other.
    """
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text + then, add_special_tokens=False)
    assert len(set(ids)) == len(ids), "a chain needs distinct tokens"
    size = len(tokenizer)
    width = size + size % 2
    network = tiny_network(
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    layer = network.model.layers[0]
    for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
        part.weight.zero_()
    network.model.embed_tokens.weight.copy_(torch.eye(size, width))
    network.lm_head.weight.zero_()
    for token, following in pairwise(ids):
        network.lm_head.weight[following, token] = 1.0
    return LocalModel(network, tokenizer, "chain")


@torch.inference_mode()
def plain_logprobs(model: LocalModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities after every position, by one plain pass without a cache, (T, V)."""
    logits_BTV = model.model(torch.tensor([list(ids)]), use_cache=False).logits
    return logits_BTV[0].float().log_softmax(-1)
