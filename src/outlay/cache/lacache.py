"""LaCache: layers that remember different old tokens, in a cache of fixed size.

"LaCache: Ladder-Shaped KV Caching for Efficient Long-Context Modeling of Large Language Models",
arXiv 2507.14204, ICML 2025. Every layer keeps the same number of rows, but of old tokens different
ones, by a ladder that is cut again whenever the cache is full. No attention scores are needed, and
memory and time per token do not grow with the text.

Where this differs from the paper: the query's position is always the number of rows before it (the
published perplexity script leaves it up to R positions further); "staircase" is our reading of the
paper's figures, "modulo" is the published code, "shuffled" is ours; see also `ladder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outlay.cache.compacted import CompactedCache, Retention
from outlay.cache.ladder import LadderPolicy, Order, check_order, whole


class LadderCache(CompactedCache):
    """A cache compacted by a `LadderPolicy`; `state` is its cursor and whether it overflowed."""

    policy: LadderPolicy


@dataclass(frozen=True)
class LaCache(Retention):
    """The ladder as a cache method.

    Args:
        capacity: C, rows per layer.
        budget: the same as a share of the prompt's tokens, in (0, 1]; at most one of the two. With
            neither, 512 rows.
        start: the first rows, never dropped; None for 4, and with the prompt read at once for what
            the paper takes on LongBench: up to 128.
        protect_last: the newest rows, never dropped; None for one per layer.
        rotate: "reindex" turns moved keys to rows numbered anew; "absolute" leaves them, and the
            window of the model ends the text.
        mode: "stream" reads the prompt in chunks and compacts after each; "prefill_once" reads it
            at once and compacts once; "both" reads it at once and compacts ever after.
        chunk: tokens per forward pass of a prompt in "stream".
        span: S, layers that keep a token; None for L times `budget`, and with a `capacity` for
            L / 4, the paper's choices for understanding and for language modelling.
        overlap: O, layers that two neighbouring ladders share; the paper takes 0 for local
            questions, S // 2 where all of the text matters.
        ladder: "modulo", "staircase" or "shuffled"; see `LadderPolicy`.
        compensate: let the length swing around the capacity, not below it.

    Raises:
        InputError: for knobs out of range.

    Example:
        >>> from outlay.cache.lacache import LaCache
        >>> method = LaCache(budget=0.5, overlap=7, mode="prefill_once")
        >>> model.generate(**inputs, custom_generate=method.custom_generate)  # transformers
    """

    span: int | None = None
    overlap: int = 0
    ladder: Order = "modulo"
    compensate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.span is not None:
            whole("span", self.span, 1)
        whole("overlap", self.overlap, 0)
        check_order(self.ladder)

    def policy(self, layers: int, tokens: int) -> LadderPolicy:
        """The ladder for a model of `layers` layers and a prompt of `tokens` tokens."""
        span = self.span
        if span is None:
            share = 0.25 if self.budget is None else self.budget
            span = max(1, min(layers - 1, round(layers * share)))
        tail = layers if self.protect_last is None else self.protect_last
        shape = LadderPolicy(layers, 2 * tail + 4 * layers, span, self.overlap, 0, tail)
        return LadderPolicy(
            layers,
            self.rows(tokens),
            span,
            self.overlap,
            self.first(tokens, shape.least, tail),
            tail,
            self.ladder,
            self.compensate,
        )

    def open(self, network: Any, tokens: int) -> LadderCache:
        """An empty cache for a prompt of `tokens` tokens."""
        layers = int(network.config.get_text_config().num_hidden_layers)
        return LadderCache(network, self.policy(layers, tokens), rotate=self.rotate)
