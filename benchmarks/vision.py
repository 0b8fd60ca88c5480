"""What dropping visual tokens buys in time: prefill at a quarter of them, beside the FLOPs.

Two decoders, both on SDPA, fp32, one thread, batch 1: the seer's shape with a tower that gives 1024
tokens (random weights; time does not depend on them), and SmolLM2-135M with a span of 576 tokens
taken as the image. Methods at the decoder's input keep a quarter; those inside it keep a quarter
from layer 1 on (FastV) or halve three times (PyramidDrop) on the four layers, and have a mean of a
quarter on SmolLM2's thirty. Sides take turns. For each method: the ratio of prefill time full /
dropped, the ratio of FLOPs, their quotient (target: at least 0.7), and the method's own work as a
share of the time that it saves. Features are ready before the clock starts, except for methods
that read the tower's attention: there the tower runs on both sides and counts on both.

On a GPU (wall clock, bfloat16, random weights) the models are as large as those that are served:
LLaVA-1.5-7B with 576 visual tokens, alone and eight prompts at once, LLaVA-NeXT-7B with 2,880 and
their newlines, and a decoder of 12 layers with 1024 tokens and 32 prompts.

    python benchmarks/vision.py [--repeats 9] [--out DIR] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import common
from common import Row, turns, warn_if_busy, write
from outlay.models import embedded
from outlay.shape import ModelShape
from outlay.vision import costs
from outlay.vision.base import Choice, Seen
from outlay.vision.baselines import (
    ClassTopTokens,
    MergedTokens,
    PooledTokens,
    RandomTokens,
    UniformTokens,
    even,
)
from outlay.vision.counts import staircase
from outlay.vision.dropper import Dropper
from outlay.vision.hired import HiRED
from outlay.vision.in_decoder import FastV, PyramidDrop, last_row, quarters

SIDE, PATCH, IMG, TEXT = 256, 8, 2, 6  # 1024 patches
SPAN = 576  # of the SmolLM2 prompt
RATE = 0.25
TARGET = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.out is not None:
        common.RESULTS = options.out
    warn_if_busy()
    torch.set_num_threads(1)
    if options.device == "cuda":
        import vision_large

        write("vision_cuda", vision_large.rows(options.repeats))
        return
    write("vision", [*seer_shape(options.repeats), *smollm2(options.repeats)])


def seer_shape(repeats: int) -> list[Row]:
    """A LLaVA of the seer's shape, 1024 visual tokens."""
    width, layers = 96, 4
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=96,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMG,
            image_seq_length=(SIDE // PATCH) ** 2,
            vision_feature_layer=-1,
        )
    ).eval()
    total = (SIDE // PATCH) ** 2
    ids = torch.tensor([[1, *[IMG] * total, *range(10, 10 + TEXT - 1)]])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        ready = model.get_image_features(pixel_values=pixels)
    methods: dict[str, Any] = {
        "random": RandomTokens(rate=RATE),
        "uniform": UniformTokens(rate=RATE),
        "pooling": PooledTokens(rate=RATE),
        "merging": MergedTokens(rate=RATE),
        "class-top": ClassTopTokens(rate=RATE),
        "HiRED": HiRED(rate=RATE),
        "FastV, layer 1": FastV(rate=RATE, layer=1),
        "PyramidDrop": PyramidDrop(),
    }

    def prefill() -> None:
        with torch.no_grad():
            model(input_ids=ids, mm_encoder_outputs={"image": ready}, logits_to_keep=1)

    def with_tower() -> None:
        with torch.no_grad():
            model(input_ids=ids, pixel_values=pixels, logits_to_keep=1)

    seeing = costs.tower(model.config) + costs.projector(model.config, total)
    rows = []
    for name, method in methods.items():
        reads = name in ("class-top", "HiRED")

        def opened(made: Any = method) -> Any:
            return made(model)

        rows.append(
            pair(
                f"seer's shape, {total} tokens: {name}",
                opened,
                with_tower if reads else prefill,
                model.config,
                repeats,
                seeing if reads else 0,
            )
        )
    return rows


def smollm2(repeats: int) -> list[Row]:
    """SmolLM2-135M with a span of its prompt as the image."""
    lm: Any = embedded.load().model
    config = lm.config
    layers = config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (1, SPAN + TEXT), generator=generator)
    visual = torch.zeros(1, SPAN + TEXT, dtype=torch.bool)
    visual[:, 1 : 1 + SPAN] = True
    tokens = round(RATE * SPAN)

    def choose(seen: Seen) -> Choice:
        return Choice.of(seen, [even(SPAN, tokens)])

    fastv = FastV().within(tokens, SPAN, layers)
    pyramid = PyramidDrop().within(tokens, SPAN, layers)
    once = staircase({fastv.layer: fastv.rate}, layers)
    stairs = staircase(quarters(pyramid.ratio, layers), layers)
    sides: dict[str, Callable[[], Any]] = {
        "uniform": lambda: Dropper(lm, choose=choose, visual=visual),
        "FastV, layer 2": lambda: Dropper(lm, rates=once, score=last_row, visual=visual),
        "PyramidDrop": lambda: Dropper(lm, rates=stairs, score=last_row, visual=visual),
    }

    def prefill() -> None:
        with torch.no_grad():
            lm(input_ids=ids, logits_to_keep=1)

    rows = []
    for name, opened in sides.items():
        case = f"SmolLM2-135M, {SPAN} tokens: {name}"
        rows.append(pair(case, opened, prefill, config, max(3, repeats // 3)))
    return rows


def pair(
    case: str,
    opened: Callable[[], Any],
    work: Callable[[], None],
    config: Any,
    repeats: int,
    shared: int = 0,
    *,
    clock: str = "cpu",
    note: str = "",
) -> Row:
    """Full and dropped in turns: time, FLOPs (`shared` on both sides), the method's work.

    Args:
        case: names the row.
        opened: the method on its model.
        work: a prefill; with `clock="wall"` it waits for the device.
        config: of the model.
        repeats: timed rounds.
        shared: FLOPs of a prompt that both sides spend beside the decoder.
        clock: "cpu" or "wall".
        note: ends the row's.
    """
    seen: list[Any] = []

    def dropped() -> None:
        with opened() as kept:
            work()
        seen.append(kept)

    seconds = turns({"dropped": dropped, "full": work}, repeats, clock=clock)
    ratios = [b / a for a, b in zip(seconds["dropped"], seconds["full"], strict=True)]
    kept = seen[-1]
    visual = [layer[0] for layer in kept.counts()]
    text = kept.text[0]
    less = costs.prefill(config, text, visual, ranked=kept.ranked).flops + shared
    more = costs.prefill(config, text, [kept.total[0]] * len(visual)).flops + shared
    flops, gain = more / less, statistics.median(ratios)
    causal = _causal(config, text, kept.total[0], visual, shared)
    saved = statistics.median(seconds["full"]) - statistics.median(seconds["dropped"])
    own = statistics.median([one.seconds for one in seen])
    verdict = "met" if gain / flops >= TARGET else "missed"
    share = f"{own / saved:.1%} of what it saves" if saved > 0 else "nothing is saved"
    return Row(
        case,
        "seconds a prefill",
        statistics.median(seconds["dropped"]),
        statistics.median(seconds["full"]),
        "all tokens",
        gain,
        (min(ratios), max(ratios)),
        f"FLOPs {flops:.2f}x, time / FLOPs {gain / flops:.2f} (target {TARGET}: {verdict}); "
        f"counting only scores under the causal mask {causal:.2f}x, {gain / causal:.2f}; own work "
        f"{1e3 * own:.2f} ms, {share}; visual tokens by layer {visual[0]} to {visual[-1]}{note}",
    )


def _causal(config: Any, text: int, total: int, visual: list[int], shared: int) -> float:
    """The ratio of FLOPs where scores above the diagonal are not computed, as SDPA has it."""
    shape = ModelShape.from_config(config)
    layers = len(visual)

    def flops(count: int) -> float:
        return shape.flops(text + count, logits_rows=0, causal=True) / layers

    head = 2 * shape.hidden * shape.vocab + shared
    return (layers * flops(total) + head) / (sum(map(flops, visual)) + head)


if __name__ == "__main__":
    main()
