"""What a vision-language prefill costs when visual tokens leave on the way.

A multiply-add is 2 FLOPs, as `torch.utils.flop_counter` counts under eager attention; norms,
activations, rotary embeddings and softmax are not counted, as in that tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outlay.errors import CapabilityError, InputError
from outlay.shape import LayerShape, ModelShape
from outlay.vision.base import Kept
from outlay.vision.counts import counts_of


@dataclass(frozen=True)
class Cost:
    """Of one row's prefill.

    Args:
        flops: of the decoder, its ranking rows included.
        kv_bytes: of the cache after it.
        tokens: visual tokens, mean over layers.
        tower_flops: of encoder and projector, where they were asked for.
    """

    flops: int
    kv_bytes: int
    tokens: float
    tower_flops: int = 0


def prefill(
    config: Any,
    text: int,
    visual: Sequence[int],
    *,
    logits_rows: int = 1,
    ranked: Sequence[int] = (),
    itemsize: int = 2,
) -> Cost:
    """Cost of one prompt.

    Args:
        config: of the model or its decoder.
        text: tokens that are not visual.
        visual: visual tokens of every layer.
        logits_rows: rows that pass the vocabulary projection.
        ranked: tokens (all kinds) at each ranking of one query row.
        itemsize: bytes of a cached number.

    Raises:
        InputError: for another number of layers.
    """
    shape = ModelShape.from_config(config)
    if len(visual) != shape.num_layers:
        raise InputError(f"{len(visual)} counts for a decoder of {shape.num_layers} layers")
    flops = _head(shape, logits_rows)
    for layer, count in zip(_each(shape), visual, strict=True):
        one = replace(shape, layers=((layer, 1),))
        flops += one.flops(text + count, logits_rows=0)
    flops += sum(2 * shape.heads * shape.head_dim * n for n in ranked)
    cached = sum(text + count for count in visual)
    return Cost(
        flops,
        2 * shape.kv_heads * shape.head_dim * cached * itemsize,
        sum(visual) / len(visual),
    )


def decode_flops(config: Any, text: int, visual: Sequence[int], step: int) -> int:
    """FLOPs of the `step`-th token after a prompt (the first is 0): it attends to each layer's
    cache.

    Args:
        config: of the model or its decoder.
        text: prompt tokens that are not visual.
        visual: visual tokens of every layer.
        step: tokens fed since the prompt.
    """
    shape = ModelShape.from_config(config)
    flops = _head(shape, 1)
    for layer, count in zip(_each(shape), visual, strict=True):
        flops += replace(shape, layers=((layer, 1),)).flops(1, text + count + step, logits_rows=0)
    return flops


def tower(config: Any, *, images: int = 1, layers: int | None = None) -> int:
    """FLOPs of a CLIP-like tower over `images` square images: patches, layers, nothing else.

    Args:
        config: of the tower, or of a model that has a `vision_config`.
        images: encoded.
        layers: that run; None for all.
    """
    config = getattr(config, "vision_config", config)
    try:
        d, f, p = config.hidden_size, config.intermediate_size, config.patch_size
        side = config.image_size // p
        depth = config.num_hidden_layers if layers is None else layers
    except AttributeError as error:
        raise CapabilityError(
            f"no closed form for a tower without these fields: {error}"
        ) from error
    patches = side * side
    n = patches + 1
    per_layer = 2 * n * (4 * d * d + 2 * d * f) + 4 * n * n * d
    return int(images * (2 * patches * 3 * p * p * d + depth * per_layer))


def projector(config: Any, tokens: int) -> int:
    """FLOPs of LLaVA's two-layer projector over `tokens` features."""
    v, d = config.vision_config.hidden_size, config.text_config.hidden_size
    return int(2 * tokens * (v * d + d * d))


def seeing(config: Any, squares: int, kept: Kept) -> int:
    """FLOPs of tower and projector in a prefill that a method watched.

    Args:
        config: of the model.
        squares: pictures that the tower encoded: images, tiles or frames.
        kept: what the method says.

    Raises:
        CapabilityError: for a tower without a closed form.
    """
    whole = tower(config, images=squares)
    vision = config.vision_config
    less = None if kept.tower_flops is None else kept.tower_flops()
    if less is None:
        return whole + projector(config, squares * (vision.image_size // vision.patch_size) ** 2)
    return squares * less + projector(config, sum(map(len, kept.entered)))


def match_budget(
    cost_of: Callable[[float], float], target: float, *, lo: float = 0.0, hi: float = 1.0
) -> float:
    """The rate at which a method costs `target`, so that methods are compared at equal cost.

    Args:
        cost_of: rate -> cost, not falling.
        target: cost to meet from below.
        lo, hi: of the rate.

    Raises:
        InputError: if even the lowest rate costs more.
    """
    if cost_of(lo) > target:
        raise InputError(
            f"the cheapest setting costs {cost_of(lo):.4g}, above the budget of {target:.4g}"
        )
    if cost_of(hi) <= target:
        return hi
    for _ in range(60):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if cost_of(middle) <= target else (lo, middle)
    return lo


def scheduled(config: Any, text: int, total: int, rates: Sequence[float], **knobs: Any) -> Cost:
    """`prefill` under a schedule of keep rates.

    Args:
        config: of the model or its decoder.
        text: tokens that are not visual.
        total: visual tokens before any is dropped.
        rates: of every layer.
        knobs: of `prefill`.
    """
    return prefill(config, text, counts_of(rates, total), **knobs)


def _each(shape: ModelShape) -> list[LayerShape]:
    """Layer shapes one by one."""
    if len(shape.layers) > 1:
        raise CapabilityError(
            "layers of this decoder differ (windows or experts), and a shape does not say in which "
            "order; the cost of a schedule is not known"
        )
    return [layer for layer, count in shape.layers for _ in range(count)]


def _head(shape: ModelShape, rows: int) -> int:
    return 2 * shape.hidden * shape.vocab * rows
