"""What an endpoint's answer is booked at: the server's usage, checked against what arrived.

The books hold what the server bills. Where that cannot be squared with the text received, the
entry's note gives both numbers; where there is no usage, a local count is booked as estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outlay.budget import split_weighted
from outlay.models.base import SamplingParams
from outlay.models.tokens import ClientTokenizer, Count
from outlay.models.wire import Choice, Reply

_NAMES = {
    "ids": "the server's token ids",
    "logprobs": "its log-probabilities",
    "tokenizer": "the local tokenizer",
    "bytes": "the text's bytes",
}


@dataclass(frozen=True)
class Charge:
    """One choice's part of the bill, in tokens.

    `enforced` is what a budget is charged: `generated`, or more where the server reports fewer
    tokens than it demonstrably sent.
    """

    prompt_new: int
    prompt_cached: int
    generated: int
    enforced: int
    estimated: bool
    note: str


def count_choice(choice: Choice, tokenizer: ClientTokenizer) -> Count:
    """Tokens of a choice by the best evidence at hand; hidden reasoning is not in it."""
    if choice.token_ids:
        return Count(len(choice.token_ids), "ids")
    if choice.logprobs:
        return Count(len(choice.logprobs), "logprobs")
    return tokenizer.count(choice.text + choice.reasoning)


def charges(
    reply: Reply,
    sampling: SamplingParams,
    tokenizer: ClientTokenizer,
    *,
    prompt: Count,
    limit: int,
    rendered: bool,
    echo: bool = False,
) -> list[Charge]:
    """The bill of every choice of `reply`, in order; the prompt is on the first one's.

    Args:
        reply: the answer, at least one choice.
        sampling: what was asked for; stop strings that a server takes off are billed all the same.
        tokenizer: the local tokenizer.
        prompt: our own count of the prompt.
        limit: max_tokens that was asked for, per choice.
        rendered: True where we know the prompt to the token, so that its count can be checked.
        echo: True where the answer repeats the prompt, so that its tokens cannot be counted apart.
    """
    choices = reply.ordered()
    counts = [
        Count(limit, "logprobs") if echo else count_choice(choice, tokenizer) for choice in choices
    ]
    counted = sum(count.tokens for count in counts)
    usage = reply.usage
    if usage is None:
        note = f"server sent no usage; counted from {_NAMES[counts[0].source]}"
        return [
            Charge(prompt.tokens if i == 0 else 0, 0, c.tokens, c.tokens, True, note)
            for i, c in enumerate(counts)
        ]
    notes = [usage.note] if usage.note else []
    low, high = _bounds(choices, counts, sampling, tokenizer)
    seen = usage.generated - usage.reasoning
    if not low <= seen <= high:
        hidden = f" and {usage.reasoning} reasoning" if usage.reasoning else ""
        notes.append(
            f"usage says {seen}{hidden} generated tokens, {counted} counted from "
            f"{_NAMES[counts[0].source]}"
        )
    if usage.generated > limit * len(choices):
        notes.append(f"server generated {usage.generated} tokens, {limit * len(choices)} asked for")
    if rendered and prompt.source == "tokenizer" and abs(usage.prompt - prompt.tokens) > 2:
        notes.append(
            f"usage says {usage.prompt} prompt tokens, {prompt.tokens} counted from "
            f"{_NAMES[prompt.source]}"
        )
    weights = [float(count.tokens) for count in counts]
    parts = split_weighted(usage.generated, weights if any(weights) else [1.0] * len(weights))
    guessed = len(choices) > 1 and parts != [count.tokens for count in counts]
    short = seen < low and counts[0].source != "bytes"
    floors = [count.tokens if short else 0 for count in counts]
    note = "; ".join(notes)
    return [
        Charge(
            prompt_new=usage.prompt - usage.cached if i == 0 else 0,
            prompt_cached=usage.cached if i == 0 else 0,
            generated=part,
            enforced=max(part, floors[i]),
            estimated=guessed,
            note=note,
        )
        for i, part in enumerate(parts)
    ]


def _bounds(
    choices: Sequence[Choice],
    counts: Sequence[Count],
    sampling: SamplingParams,
    tokenizer: ClientTokenizer,
) -> tuple[int, int]:
    """The least and the most generated tokens that an honest server may report.

    Each choice may hold one unseen end-of-text token and an unseen stop string. Encoding text anew
    may take a few tokens more or fewer than were sampled. A token of text has at least one byte.
    """
    low = high = 0
    stop = max((tokenizer.count(text).tokens for text in sampling.stop), default=0)
    for choice, count in zip(choices, counts, strict=True):
        unseen = 0 if choice.finish == "length" else 1 + stop
        if count.source in ("ids", "logprobs"):
            low += count.tokens
            high += count.tokens + unseen
        elif count.source == "tokenizer":
            slack = 1 + math.ceil(0.05 * count.tokens)
            low += max(0, count.tokens - slack)
            high += count.tokens + slack + unseen
        else:
            size = len((choice.text + choice.reasoning).encode())
            low += min(1, size)
            high += size + 1 + unseen + 4 * stop
    return low, high
