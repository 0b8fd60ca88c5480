"""Choosing tokens: each branch's own random stream, generate's filters, stop strings.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from outlay.models.base import Branch, SamplingParams


def stream(seed: int, parent: Branch, child: int, length: int) -> np.ndarray:
    """`length` uniforms in [0, 1) for one child of `parent`.

    The stream depends on the seed, the parent's tokens and the child's index alone (a counter-based
    generator keyed by their hash), so a branch's text does not depend on its batch mates, nor on
    how many branches were made before it.
    """
    name = hashlib.blake2b(digest_size=16)
    name.update(np.asarray([seed, child], dtype=np.int64).tobytes())
    for branch in parent.lineage():
        name.update(np.asarray(branch.token_ids, dtype=np.int64).tobytes())
        name.update(b"/")
    key = np.frombuffer(name.digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def filters(sampling: SamplingParams) -> LogitsProcessorList:
    """transformers' own warpers, in `generate`'s order."""
    chain = LogitsProcessorList()
    if sampling.temperature not in (0.0, 1.0):
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(sampling.top_p))
    return chain


def pick(
    logits_BV: torch.Tensor, sampling: SamplingParams, uniforms_B: Sequence[float]
) -> torch.Tensor:
    """One token per row: the argmax at temperature 0, else the inverse CDF at `uniforms_B`."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    filtered_BV = filters(sampling)(logits_BV.new_empty((0,), dtype=torch.long), logits_BV)
    cdf_BV = filtered_BV.double().softmax(-1).cumsum(-1)
    u_B1 = torch.tensor(uniforms_B, dtype=torch.float64, device=logits_BV.device)[:, None]
    # Scaled by the total, which rounding leaves a hair away from 1; right=True skips tokens of
    # zero probability.
    token_B = torch.searchsorted(cdf_BV, u_B1 * cdf_BV[:, -1:], right=True).squeeze(-1)
    return token_B.clamp_(max=logits_BV.shape[-1] - 1)


class StopMatcher:
    """Finds stop strings at the end of sampled tokens by decoding only their tail."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._decode = tokenizer.decode
        self._stops = tuple(stops)
        # A character spans up to four byte tokens; one more for the token that completes it.
        self._tail = 4 * max((len(stop.encode()) for stop in stops), default=0) + 4

    def completes(self, tokens: Sequence[int]) -> bool:
        """True if the last of `tokens` completes a stop string."""
        if not self._stops or not tokens:
            return False
        tail = list(tokens[-self._tail :])
        text = self._decode(tail, skip_special_tokens=False)
        before = self._decode(tail[:-1], skip_special_tokens=False) if len(tail) > 1 else ""
        return any(text.count(stop) > before.count(stop) for stop in self._stops)

    def overlap(self, tokens: Sequence[int]) -> int:
        """How many of the last tokens overlap the stop string that `tokens` end in."""
        for width in range(1, len(tokens) + 1):
            text = self._decode(list(tokens[-width:]), skip_special_tokens=False)
            if any(stop in text for stop in self._stops):
                return width
        return 0
