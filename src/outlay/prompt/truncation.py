"""Compressors that do not read the question: head, tail, random functions, random lines.

The plain baselines of LongCodeZip (arXiv 2510.00446, tables 1-4), at exactly the same budget. They
call no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.prompt.base import Compressed, CountTokens, check_text, prompt_limit
from outlay.prompt.chunking import resolve_language, split_chunks
from outlay.prompt.markers import Assembly, Source, drop_until_fit, keep_ranked, marker_text


def unchanged(prompt: str, text: str, limit: int, count: CountTokens) -> Compressed | None:
    """The source itself where it fits (`text` is `prompt` with plain line ends), else None."""
    original = count(prompt)
    for whole, size in ((prompt, original), (text, count(text))):
        if size <= limit:
            return Compressed(whole, size, original, ((0, len(prompt)),), report={"limit": limit})
    return None


def compressed(
    assembly: Assembly, original: int, report: dict[str, Any], warnings: tuple[str, ...] = ()
) -> Compressed:
    """The result that an assembly holds."""
    return Compressed(
        text=assembly.text(),
        tokens=assembly.recount(),
        original_tokens=original,
        kept=assembly.spans(),
        report={"limit": assembly.limit, **report},
        warnings=warnings,
    )


@dataclass(frozen=True)
class HeadTruncation:
    """Keeps the beginning: as many whole characters as fit, cut at a word where possible."""

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`; `question` and `language` are not used."""
        return _cut(prompt, budget, count, lambda text, size: (0, size), "head")


@dataclass(frozen=True)
class TailTruncation:
    """Keeps the end: as many whole characters as fit, cut at a word where possible."""

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`; `question` and `language` are not used."""
        return _cut(prompt, budget, count, lambda text, size: (len(text) - size, len(text)), "tail")


def _cut(
    prompt: str,
    budget: Budget,
    count: CountTokens,
    span: Callable[[str, int], tuple[int, int]],
    end: str,
) -> Compressed:
    limit = prompt_limit(budget)
    check_text(prompt)
    original = count(prompt)
    if original <= limit:
        return Compressed(prompt, original, original, ((0, len(prompt)),), report={"limit": limit})

    def size(characters: int) -> int:
        first, stop = span(prompt, characters)
        return count(prompt[first:stop])

    # Secant steps on the almost linear map from characters to tokens, then bisection.
    low, high = 0, len(prompt)
    guess = min(high - 1, int(len(prompt) * limit / original))
    while high - low > 1:
        tokens = size(guess)
        if tokens <= limit:
            low = guess
            step = int((limit - tokens + 1) * len(prompt) / original)
        else:
            high = guess
            step = -int((tokens - limit + 1) * len(prompt) / original)
        near = guess + step
        guess = near if low < near < high and abs(step) > 2 else (low + high) // 2
    first, stop = span(prompt, low)
    border = _word(prompt, first, stop, end)
    kept = (first, border) if end == "head" else (border, stop)
    text = prompt[kept[0] : kept[1]]
    tokens = count(text)
    if tokens > limit:  # a cut elsewhere can only cost a token where the tokenizer looks ahead
        kept, text = (first, stop), prompt[first:stop]
        tokens = count(text)
    return Compressed(text, tokens, original, (kept,), report={"limit": limit, "end": end})


def _word(text: str, first: int, stop: int, end: str) -> int:
    """The cut moved to a border between words, if one is within the last 40 characters."""
    step = -1 if end == "head" else 1
    at = stop if end == "head" else first
    for moved in range(min(40, (stop - first) // 2)):
        here = at + step * moved
        if 0 < here < len(text) and not (text[here - 1].isalnum() and text[here].isalnum()):
            return here
    return at


@dataclass(frozen=True)
class RandomFunctions:
    """Keeps whole functions, and the code between them, drawn without looking at the question.

    Args:
        seed: of the draw.
        fill: spend what is left over on single lines of the next functions drawn.
        separator: line that separates files in the context; "" for none.
    """

    seed: int = 0
    fill: bool = True
    separator: str = ""

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`; `question` is not used."""
        limit, text = prompt_limit(budget), check_text(prompt)
        if (whole := unchanged(prompt, text, limit, count)) is not None:
            return whole
        language = resolve_language(language, text)
        source = Source.read(prompt, count, language)
        chunks, notes = split_chunks(source.lines, language, separator=self.separator)
        order = list(range(len(chunks)))
        random.Random(self.seed).shuffle(order)
        assembly = Assembly(source, count, limit, marker=marker_text(language))
        assembly.require_fit("an omission marker")
        keep_ranked(
            assembly, [range(chunks[i].first, chunks[i].stop) for i in order], fill=self.fill
        )
        return compressed(
            assembly, count(prompt), {"order": order, "language": language}, tuple(notes)
        )


@dataclass(frozen=True)
class RandomLines:
    """Keeps lines drawn at random, in order and without markers, which would eat the budget.

    Args:
        seed: of the draw.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """See `Compressor.compress`; `question` is not used."""
        limit, text = prompt_limit(budget), check_text(prompt)
        if (whole := unchanged(prompt, text, limit, count)) is not None:
            return whole
        source = Source.read(prompt, count, resolve_language(language, text))
        order = [i for i in range(len(source)) if not source.blank(i)]
        random.Random(self.seed).shuffle(order)
        # Start from the lines that should fit by their own counts, then correct by real ones.
        used, start = 0, []
        for line in order:
            if used + source.costs[line] <= limit:
                used += source.costs[line]
                start.append(line)
        assembly = Assembly(source, count, limit, marker="", kept=start)
        drop_until_fit(assembly, [[line] for line in reversed(start)])
        assembly.fill(order)
        return compressed(assembly, count(prompt), {"seed": self.seed})


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed={seed!r} is not a whole number")
