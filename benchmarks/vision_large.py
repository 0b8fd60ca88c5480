"""The part of `vision.py` that needs a GPU: prefill of models as large as those that are served."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from common import Row
from outlay.vision import costs
from outlay.vision.baselines import (
    ClassTopTokens,
    MergedTokens,
    PooledTokens,
    RandomTokens,
    UniformTokens,
)
from outlay.vision.covipal.ppm import PPM, Shape
from outlay.vision.covipal.pruning import Pruning as Pruned
from outlay.vision.covipal.pruning import amount, of_modules
from outlay.vision.gsearch import GSearch
from outlay.vision.hired import HiRED
from outlay.vision.in_decoder import FastV, PyramidDrop
from vision import IMG, PATCH, RATE, SIDE, pair

READS = ("class-top", "HiRED")  # the tower's attention
CLIP_L = CLIPVisionConfig(
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    projection_dim=768,
)
LLAMA_7B = LlamaConfig(
    vocab_size=32_064,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=8192,
)
QUESTION = 32  # words beside the image
LONG_SIDE = 672


def rows(repeats: int) -> list[Row]:
    """All cases, largest models first."""
    found = _llava(repeats)
    torch.cuda.empty_cache()
    found += _llava_next(repeats)
    torch.cuda.empty_cache()
    return found + _twelve(repeats)


def _made(kind: Any, config: Any) -> Any:
    """A model with random weights, made on the GPU."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def _llava(repeats: int) -> list[Row]:
    config = LlavaConfig(
        vision_config=CLIP_L,
        text_config=LLAMA_7B,
        image_token_index=IMG,
        image_seq_length=576,
        vision_feature_layer=-2,
    )
    model = _made(LlavaForConditionalGeneration, config)
    total = 576
    tokens = round(RATE * total)
    ppm = PPM(Shape(4096, 256, 2)).to("cuda", torch.bfloat16)
    methods: dict[str, Any] = {
        "random": RandomTokens(rate=RATE),
        "uniform": UniformTokens(rate=RATE),
        "pooling": PooledTokens(rate=RATE),
        "merging": MergedTokens(rate=RATE),
        "class-top": ClassTopTokens(rate=RATE),
        "HiRED": HiRED(rate=RATE),
        "CoViPAL's module": lambda one: Pruned(
            one, amount(RATE, (), 0, None, 1), of_modules({0: ppm}), "original"
        ),
        "FastV, layer 2": FastV().within(tokens, total, 32),
        "PyramidDrop": PyramidDrop(),
        "G-Search, P-Sigmoid": GSearch(mode="budget", budget=RATE).within(tokens, total, 32),
    }
    found = []
    for batch in (1, 8):
        ids = _ids(total, batch)
        pixels = torch.randn(batch, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
        case = f"LLaVA-1.5-7B's shape, {batch} x {total} tokens"
        found += _cases(case, model, ids, {"pixel_values": pixels}, methods, repeats)
    return found


def _llava_next(repeats: int) -> list[Row]:
    """An image of 672 x 672: a thumbnail and four tiles, each of 576 patches, and newlines."""
    config = LlavaNextConfig(
        vision_config=CLIP_L,
        text_config=LLAMA_7B,
        image_token_index=IMG,
        image_seq_length=576,
        vision_feature_layer=-2,
        image_grid_pinpoints=[[LONG_SIDE, LONG_SIDE]],
    )
    model = _made(LlavaNextForConditionalGeneration, config)
    total = 576 + 48 * 48 + 48
    ids = _ids(total, 1)
    pixels = torch.randn(1, 5, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
    extra = {"pixel_values": pixels, "image_sizes": torch.tensor([[LONG_SIDE] * 2], device="cuda")}
    methods = {
        "uniform": UniformTokens(rate=RATE),
        "HiRED": HiRED(rate=RATE),
        "FastV, layer 2": FastV().within(round(RATE * total), total, 32),
        "PyramidDrop": PyramidDrop(),
    }
    case = f"LLaVA-NeXT-7B's shape, {total} tokens"
    return _cases(case, model, ids, extra, methods, repeats, partitions=5)


def _twelve(repeats: int) -> list[Row]:
    """A decoder of 12 layers, SmolLM2's width, 1024 tokens, 32 prompts."""
    vision = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
    )
    total = (SIDE // PATCH) ** 2
    model = _made(
        LlavaForConditionalGeneration,
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMG,
            image_seq_length=total,
            vision_feature_layer=-1,
        ),
    )
    tokens = round(RATE * total)
    methods = {
        "uniform": UniformTokens(rate=RATE),
        "FastV, layer 1": FastV(layer=1).within(tokens, total, 12),
        "PyramidDrop": PyramidDrop(),
        "G-Search, P-Sigmoid": GSearch(mode="budget", budget=0.4).within(410, total, 12),
    }
    batch = 32
    ids = _ids(total, batch)
    pixels = torch.randn(batch, 3, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    case = f"12 layers, {batch} x {total} tokens"
    return _cases(case, model, ids, {"pixel_values": pixels}, methods, repeats)


def _ids(total: int, batch: int) -> torch.Tensor:
    one = [1, *[IMG] * total, *range(10, 10 + QUESTION)]
    return torch.tensor([one] * batch, device="cuda")


def _cases(
    case: str,
    model: Any,
    ids: torch.Tensor,
    image: Mapping[str, torch.Tensor],
    methods: Mapping[str, Any],
    repeats: int,
    partitions: int = 1,
) -> list[Row]:
    """Every method on one model and one batch, with the tower where the method reads it."""
    with torch.inference_mode():
        ready = model.get_image_features(**image)

    def prefill(given: dict[str, Any]) -> Callable[[], None]:
        def work() -> None:
            with torch.inference_mode():
                model(input_ids=ids, logits_to_keep=1, **given)
            torch.cuda.synchronize()

        return work

    plain = prefill({"mm_encoder_outputs": {"image": ready}})
    with_tower = prefill(dict(image))
    total = int((ids[0] == IMG).sum())
    seeing = partitions * costs.tower(model.config) + costs.projector(model.config, total)
    found = []
    for name, method in methods.items():
        work = with_tower if name in READS else plain

        def opened(made: Any = method) -> Any:
            return made(model)

        for _ in range(2):  # more than the one warm-up of `turns`: kernels are chosen and loaded
            work()
            with opened():
                work()
        memory = f"; most memory {_most(work, opened):.2f} of {_most(work, None):.2f} GiB"
        found.append(
            pair(
                f"{case}: {name}",
                opened,
                work,
                model.config,
                repeats,
                seeing if name in READS else 0,
                clock="wall",
                note=memory,
            )
        )
        print(found[-1], flush=True)
    return found


def _most(work: Callable[[], None], opened: Callable[[], Any] | None) -> float:
    """GiB that a prefill takes beside the weights."""
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    if opened is None:
        work()
    else:
        with opened():
            work()
    return float((torch.cuda.max_memory_allocated() - held) / math.pow(2, 30))
