"""Vision-language models of transformers, tiny and with random weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE, VOCAB = 2, 60


def clip(side: int = 32, layers: int = 2) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        image_size=side,
        patch_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )


def text(layers: int = 4, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
        **more,
    )


def ready(model: Any, seed: int = 0, attention: str = "sdpa") -> Any:
    """Evaluation mode, livelier weights than the usual .02."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
    model.set_attn_implementation(attention)
    return model.eval()


def llava(attention: str = "sdpa", layers: int = 4, seed: int = 0) -> Any:
    """16 visual tokens an image."""
    config = LlavaConfig(
        vision_config=clip(),
        text_config=text(layers),
        image_token_index=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return ready(LlavaForConditionalGeneration(config), seed, attention)


def llava_next(attention: str = "sdpa", seed: int = 0) -> Any:
    """Partitions of 4 x 4 patches."""
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=text(),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return ready(LlavaNextForConditionalGeneration(config), seed, attention)


def onevision(seed: int = 0) -> Any:
    """Partitions of 4 x 4 patches, a SigLIP tower, a Qwen2 decoder."""
    vision = SiglipVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vision_use_head=False,
    )
    decoder = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=decoder,
        image_token_index=IMAGE,
        video_token_index=4,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_9",
    )
    return ready(LlavaOnevisionForConditionalGeneration(config), seed)


def qwen(seed: int = 0) -> Any:
    """Tokens of 2 x 2 patches."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    return ready(Qwen2_5_VLForConditionalGeneration(config), seed)


def llama(layers: int = 4, attention: str = "sdpa", seed: int = 0) -> Any:
    return ready(LlamaForCausalLM(text(layers)), seed, attention)


def pixels(batch: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def prompt(batch: int = 1, tokens: int = 16, question: int = 4, seed: int = 0) -> torch.Tensor:
    """(B, 1 + tokens + question): <bos>, placeholders, question."""
    generator = torch.Generator().manual_seed(100 + seed)
    words = torch.randint(7, VOCAB, (batch, question), generator=generator)
    start = torch.ones(batch, 1, dtype=torch.long)
    return torch.cat([start, torch.full((batch, tokens), IMAGE), words], dim=1)


def llava_inputs(batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = prompt(batch, seed=seed)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(batch, seed=seed),
    }
