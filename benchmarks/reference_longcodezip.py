"""LongCodeZip's selection, slow and obvious: one pass per line and per block, as published.

The yardstick for `outlay.prompt.LongCodeZip`, which must select the same and be faster. It shares
the chunks and the definition of a line's tokens with it, and nothing else: losses, spikes, rates
and knapsack are written out again, one text at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from outlay.models.base import Scorer
from outlay.prompt.base import CountTokens
from outlay.prompt.chunking import comment_prefix, is_definition, split_chunks


@dataclass
class Choice:
    """What the reference decides about one chunk; lines count from 1, last included."""

    name: str
    lines: tuple[int, int]
    tokens: int
    ami: float
    selected: bool = False
    rate: float = 0.0
    bits: list[float] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)


def mean_nll(scorer: Scorer, text: str, start: int) -> float:
    """Mean loss of the tokens of `text` that end after character `start`; NaN if there is none."""
    loss = scorer.losses([text])[0]
    scored = [
        float(nll)
        for nll, end in zip(loss.nll, loss.ends, strict=True)
        if end > start and not math.isnan(nll)
    ]
    return sum(scored) / len(scored) if scored else math.nan


def ami(scorer: Scorer, context: str, query: str, *, score: str = "ppl") -> float:
    """Equation 1 for one context, two passes; the query's unscorable first token left out."""
    if not context.strip():
        return 0.0
    alone = scorer.losses([query])[0]
    skip = int(alone.ends[0]) if math.isnan(alone.nll[0]) else 0
    head = context.rstrip() + "\n\n"
    before = mean_nll(scorer, query, skip)
    after = mean_nll(scorer, head + query, len(head) + skip)
    return before - after if score == "nll" else math.exp(before) - math.exp(after)


def line_bits(scorer: Scorer, lines: Sequence[str]) -> list[float]:
    """h_j, one pass for every line over the function up to it: quadratic."""
    bits = []
    for j, line in enumerate(lines):
        if not line.strip():
            bits.append(0.0)
            continue
        before = "\n".join(lines[:j])
        nll = mean_nll(scorer, "\n".join(lines[: j + 1]), len(before))
        bits.append(math.inf if math.isnan(nll) else nll / math.log(2))
    return bits


def blocks(bits: Sequence[float], alpha: float) -> list[tuple[int, int]]:
    """Blocks [first, stop), cut after lines that stand out by alpha standard deviations."""
    values = [h for h in bits if math.isfinite(h) and h > 0]
    threshold = 0.5
    if len(values) >= 3:
        mean = sum(values) / len(values)
        threshold = alpha * math.sqrt(sum((h - mean) ** 2 for h in values) / len(values))
    found, first = [], 0
    for j in range(1, len(bits) - 1):
        if math.isfinite(bits[j]):
            left = bits[j] - bits[j - 1] if math.isfinite(bits[j - 1]) else 0.0
            right = bits[j] - bits[j + 1] if math.isfinite(bits[j + 1]) else 0.0
            stands_out = left >= threshold or right >= threshold
            if stands_out and left >= 0 and right >= 0 and left + right > 0:
                found.append((first, j + 1))
                first = j + 1
    found.append((first, len(bits)))
    return [(j, j + 1) for j in range(len(bits))] if len(found) == 1 else found


def best_subset(weights: Sequence[int], values: Sequence[float], capacity: int) -> list[int]:
    """0/1 knapsack as a dictionary from weight to (value, items), item by item."""
    table: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for i, (weight, value) in enumerate(zip(weights, values, strict=True)):
        for used, (total, items) in list(table.items()):
            new = used + weight
            if new <= capacity and (new not in table or total + value > table[new][0]):
                table[new] = (total + value, [*items, i])
    return max(table.values(), key=lambda entry: entry[0])[1]


def select(
    scorer: Scorer,
    source: str,
    query: str,
    budget: int,
    *,
    count: CountTokens,
    language: str = "python",
    fine_budget: float | None = None,
    r_fine: float = 0.8,
    beta: float = 0.5,
    alpha: float = 1.0,
    min_lines: int = 5,
    score: str = "ppl",
    overshoot: bool = True,
) -> list[Choice]:
    """Every decision of both stages, with one rescale of the rates (`alloc="paper"`).

    Args:
        scorer: the language model, called with one text at a time.
        source: code with "\\n" line ends, without trailing blank lines.
        query: without blank lines around it.
        budget: B of the coarse stage, B / r_fine.
        count: token counter.
        language: canonical name.
        fine_budget: B of the fine stage where it differs (room for markers).
        r_fine, beta, alpha, min_lines, score, overshoot: as in `LongCodeZip`.
    """
    lines = source.split("\n")
    tokens = [count(f"\n{line}") if line.strip() else 0 for line in lines]
    chunks, _ = split_chunks(lines, language)
    texts = ["\n".join(lines[c.first : c.stop]).rstrip() for c in chunks]
    choices = [
        Choice(c.name, (c.first + 1, c.stop), sum(tokens[c.first : c.stop]), 0.0) for c in chunks
    ]
    for choice, text in zip(choices, texts, strict=True):
        choice.ami = ami(scorer, text, query, score=score)
    room = budget / r_fine
    everything = sum(c.tokens for c in choices) <= room
    for choice in sorted(choices, key=lambda c: -c.ami):
        if everything or overshoot or choice.tokens <= room:
            choice.selected = True
            room -= choice.tokens
        if not everything and overshoot and room < 0:
            break
    picked = [i for i, c in enumerate(choices) if c.selected]
    large = [i for i in picked if texts[i].count("\n") + 1 >= min_lines]
    for i in set(picked) - set(large):
        choices[i].rate = 1.0
    total = sum(choices[i].tokens for i in large)
    left = (budget if fine_budget is None else fine_budget) - sum(
        choices[i].tokens for i in picked if i not in large
    )
    base = min(1.0, max(0.0, left / total))
    low, high = (f(choices[i].ami for i in large) for f in (min, max))
    for i in large:
        part = (choices[i].ami - low) / (high - low) if high > low else 0.5
        choices[i].rate = min(1.0, base * (1 + beta * (2 * part - 1)))
    spent = sum(choices[i].rate * choices[i].tokens for i in large)
    for i in large:
        factor = base * total / spent if spent and high > low else 1.0
        choices[i].rate = min(1.0, choices[i].rate * factor)
        if choices[i].rate < 1:
            _fine(choices[i], scorer, texts[i], query, lines, tokens, language, alpha, score)
    return choices


def _fine(
    choice: Choice,
    scorer: Scorer,
    text: str,
    query: str,
    lines: Sequence[str],
    tokens: Sequence[int],
    language: str,
    alpha: float,
    score: str,
) -> None:
    first, stop = choice.lines[0] - 1, choice.lines[1]
    choice.bits = line_bits(scorer, text.split("\n"))
    spans = blocks(choice.bits, alpha)
    spans[-1] = (spans[-1][0], stop - first)
    spans = [(first + a, first + b) for a, b in spans]
    worth = [ami(scorer, "\n".join(lines[a:b]), query, score=score) for a, b in spans]
    low, high = min(worth), max(worth)
    worth = [((w - low) / (high - low) if high > low else 0.0) + 1e-6 for w in worth]
    weights = [sum(tokens[a:b]) for a, b in spans]
    kept = []
    for a, b in spans:
        full = [line for line in lines[a:b] if line.strip()]
        kept.append(
            bool(full)
            and (
                is_definition(full[0], language)
                or full[0].lstrip().startswith(comment_prefix(language))
                or any("return " in line for line in full)
            )
        )
    capacity = int(choice.tokens * choice.rate) - sum(
        w for w, keep in zip(weights, kept, strict=True) if keep
    )
    free = [i for i, keep in enumerate(kept) if not keep]
    if capacity >= 0:
        for i in best_subset([weights[i] for i in free], [worth[i] for i in free], capacity):
            kept[free[i]] = True
    choice.blocks = [(a + 1, b) for a, b in spans]
    choice.chosen = kept
