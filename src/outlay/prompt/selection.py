"""The two stages of LongCodeZip at work: rank, select functions, cut and choose blocks, fill.

Section and equation numbers are those of arXiv 2510.00446; the knobs and what differs from the
paper are described in `longcodezip`.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlay.errors import BudgetError, InputError
from outlay.models.base import Account
from outlay.prompt.base import CountTokens, check_text
from outlay.prompt.blocks import cut_blocks, spike_threshold
from outlay.prompt.chunking import (
    Chunk,
    comment_prefix,
    is_definition,
    resolve_language,
    split_chunks,
)
from outlay.prompt.knapsack import knapsack
from outlay.prompt.markers import Assembly, Source, drop_until_fit, keep_ranked, marker_text
from outlay.prompt.rates import adaptive_rates, minmax
from outlay.prompt.relevance import Relevance, line_bits

if TYPE_CHECKING:
    from outlay.prompt.longcodezip import LongCodeZip

_ROUNDS = 8  # times that the fine budget is lowered by what markers cost, before blocks are dropped
_PARTIAL = 0.05  # share of the budget that must be left over for a function to be kept in part


@dataclass
class Block:
    """Lines `first` to `stop - 1` of the source, within one function."""

    first: int
    stop: int
    weight: int
    value: float
    ami: float
    preserved: bool
    kept: bool = False

    @property
    def lines(self) -> range:
        """Line numbers, from 0."""
        return range(self.first, self.stop)


@dataclass
class Function:
    """One chunk with everything that is decided about it."""

    chunk: Chunk
    tokens: int
    small: bool
    ami: float = 0.0
    rank: int = 0
    selected: bool = False
    partial: bool = False
    rate: float = 0.0
    bits: list[float] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @property
    def lines(self) -> range:
        """Line numbers, from 0."""
        return range(self.chunk.first, self.chunk.stop)

    @property
    def title(self) -> str:
        """A name for messages."""
        where = f"lines {self.chunk.first + 1}-{self.chunk.stop}"
        return f"chunk {self.chunk.name!r} ({where})" if self.chunk.name else f"chunk ({where})"


class Selection:
    """One compression: the state that the stages of `LongCodeZip` pass on.

    Args:
        method: the knobs.
        prompt: the source as it came.
        text: the source with plain line ends.
        question: the query; blank for none.
        limit: tokens of the result.
        count: token counter of the target model.
        language: of the source, "" to detect.
        account: where the scorers' work is booked.
    """

    def __init__(
        self,
        method: LongCodeZip,
        prompt: str,
        text: str,
        question: str,
        limit: int,
        count: CountTokens,
        language: str,
        account: Account,
    ) -> None:
        self.method, self.limit, self.account, self.count = method, limit, account, count
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.clock = time.perf_counter()
        self.language = resolve_language(language, text)
        self.source = Source.read(prompt, count, self.language)
        chunks, notes = split_chunks(
            self.source.lines,
            self.language,
            separator=method.separator,
            fallback=method.fallback,
        )
        self.warnings += notes
        self.functions = [
            Function(
                chunk,
                tokens=self.source.cost(range(chunk.first, chunk.stop)),
                small=len(self.source.text(chunk).split("\n")) < method.min_lines,
            )
            for chunk in chunks
        ]
        self.pinned = self._pinned()
        self.assembly = Assembly(
            self.source,
            count,
            limit,
            marker=method.marker or marker_text(self.language),
            kept=self.pinned,
        )
        self.assembly.require_fit(
            f"{len(self.pinned)} pinned lines" if self.pinned else "an omission marker"
        )
        self.pinned_tokens = self.assembly.tokens if self.pinned else 0
        self.fine_budget = float(limit)
        self.stage = "rank-only"
        question = check_text(question, "question") if question.strip() else ""
        self.relevance = (
            Relevance(method.scorer, question, method.score, account, self.warnings)
            if question
            else None
        )
        self._lap("chunk")

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.clock
        self.clock = now

    def _pinned(self) -> set[int]:
        lines: set[int] = set()
        rows = self.source.rows
        for first, last in self.method.pins:
            if not 1 <= first <= last <= rows[-1] + 1:
                raise InputError(
                    f"pin ({first}, {last}) is out of range; pins are (first, last) line numbers "
                    f"from 1 to {rows[-1] + 1}"
                )
            lines.update(range(bisect_left(rows, first - 1), bisect_left(rows, last)))
        return lines

    def go(self) -> None:
        """All stages in turn."""
        self._rank()
        ranked = sorted(self.functions, key=lambda f: f.rank)
        whole = self.method.rank_only or self.method.r_fine == 1 or self.relevance is None
        if whole:
            keep_ranked(self.assembly, [f.lines for f in ranked], fill=False)
            for function in ranked:
                function.selected = all(line in self.assembly for line in function.lines)
        else:
            self.stage = "fine"
            self._coarse(ranked)
            self._lap("coarse")
            self._fine([f for f in ranked if f.selected])
            self._drop([f for f in ranked if f.selected])
        self._lap("select")
        if self.method.fill:
            self.assembly.fill(self._fill_order([f for f in ranked if f.selected]))
            self._lap("fill")
            self._partial(ranked)
            self._lap("select")
            self.assembly.fill(self._fill_order(ranked))
        if self.assembly.recount() > self.limit:
            raise BudgetError(
                f"the pinned lines alone take {self.assembly.tokens} tokens, the budget is "
                f"{self.limit}; raise the budget or pin fewer lines"
            )
        self._lap("fill")

    def _rank(self) -> None:
        if self.relevance is not None:
            amis = self.relevance.ami(
                [self.source.text(f.chunk) for f in self.functions],
                [f.title for f in self.functions],
            )
            for function, ami in zip(self.functions, amis, strict=True):
                function.ami = ami
        order = sorted(self.functions, key=lambda f: -f.ami)  # stable: ties in original order
        for rank, function in enumerate(order):
            function.rank = rank
        self._lap("rank")

    def _coarse(self, ranked: Sequence[Function]) -> None:
        """Select functions down the ranking until budget / r_fine is used."""
        room = self.limit / self.method.r_fine + self.method.slack
        if sum(f.tokens for f in ranked) <= room:
            for function in ranked:
                function.selected = True
            return
        for function in ranked:
            if self.method.overshoot:
                function.selected = True
                room -= function.tokens
                if room < 0:
                    return
            elif function.tokens <= room:
                function.selected = True
                room -= function.tokens
        if not any(f.selected for f in ranked):  # the fine stage can shrink the best one
            ranked[0].selected = True

    def _fine(self, selected: Sequence[Function]) -> None:
        """Choose blocks; lower the budget by what markers cost until the text fits."""
        small = [f for f in selected if f.small]
        large = [f for f in selected if not f.small]
        for function in small:
            function.rate = 1.0
        before = math.inf
        for turn in range(_ROUNDS):
            rates = adaptive_rates(
                [f.tokens for f in large],
                [f.ami for f in large],
                self.fine_budget - sum(f.tokens for f in small),
                beta=self.method.beta,
                alloc=self.method.alloc,
            )
            for function, rate in zip(large, rates, strict=True):
                function.rate = rate
            self._cut([f for f in large if f.rate < 1 and not f.blocks])
            kept = set(self.pinned)
            for function in selected:
                if function.rate >= 1:
                    kept.update(function.lines)
                else:
                    self._choose(function)
                    kept.update(i for b in function.blocks if b.kept for i in b.lines)
            tokens = self.assembly.replace(kept)
            # Preserved blocks do not shrink with the budget: without progress, stop.
            if tokens <= self.limit or tokens >= before or turn == _ROUNDS - 1:
                return
            before = tokens
            self.fine_budget -= tokens - self.limit

    def _partial(self, ranked: Sequence[Function]) -> None:
        """Spend much left-over room on the best blocks of the best function that did not fit."""
        room = self.assembly.slack - 2 * self.assembly.marker_cost
        left = [f for f in ranked if not f.selected and not f.small]
        if self.stage != "fine" or room < _PARTIAL * self.limit or not left:
            return
        function = left[0]
        function.partial = True
        function.rate = min(1.0, room / max(1, function.tokens))
        self._cut([function])
        self._choose(function)
        kept = [b for b in function.blocks if b.kept]
        for block in sorted(kept, key=lambda b: -b.value):
            block.kept = self.assembly.add_if_fits(block.lines)

    def _cut(self, functions: Sequence[Function]) -> None:
        """Find blocks of `functions` and their relevance: two batched calls for all of them."""
        if not functions:
            return
        method = self.method
        self._lap("select")
        bits = line_bits(
            method.chunker_scorer or method.scorer,
            [self.source.text(f.chunk) for f in functions],
            account=self.account,
            warnings=self.warnings,
        )
        self._lap("line losses")
        cuts: list[tuple[Function, int, int]] = []
        for function, h in zip(functions, bits, strict=True):
            function.bits = h
            threshold = spike_threshold(h, method.alpha, method.alpha_rule, method.spike_stat)
            spans = cut_blocks(h, threshold)
            if len(spans) == 1:
                spans = [(j, j + 1) for j in range(len(h))]
            first = function.chunk.first
            tail = function.chunk.stop - first  # trailing blank lines go with the last block
            spans[-1] = (spans[-1][0], tail)
            cuts += [(function, first + a, first + b) for a, b in spans]
        assert self.relevance is not None  # without a query there is no fine stage
        amis = self.relevance.ami(
            [self.source.text(Chunk(a, b)) for _, a, b in cuts],
            [f"block of {f.title}, lines {a + 1}-{b}" for f, a, b in cuts],
        )
        for (function, a, b), ami in zip(cuts, amis, strict=True):
            function.blocks.append(
                Block(
                    a,
                    b,
                    weight=self.source.cost(i for i in range(a, b) if i not in self.pinned),
                    value=ami,
                    ami=ami,
                    preserved=self._preserved(a, b),
                )
            )
        if method.join == "paper":
            self.assembly.breaks |= {a for _, a, _ in cuts}
            self.assembly.recount()
        for function in functions:
            if method.value == "normalised":
                scaled = minmax([b.ami for b in function.blocks]) or [0.0] * len(function.blocks)
                for block, value in zip(function.blocks, scaled, strict=True):
                    block.value = value + 1e-6  # so that the least relevant fill free space
        self._lap("block values")

    def _preserved(self, first: int, stop: int) -> bool:
        if self.method.preserve == "none":
            return False
        lines = [line for line in self.source.lines[first:stop] if line.strip()]
        comment = comment_prefix(self.language)
        return bool(lines) and (
            is_definition(lines[0], self.language)
            or bool(comment and lines[0].lstrip().startswith(comment))
            or any("return " in line for line in lines)
        )

    def _choose(self, function: Function) -> None:
        """Knapsack within one function's share, preserved blocks first."""
        free = [b for b in function.blocks if not b.preserved]
        capacity = int(function.tokens * function.rate)
        capacity -= sum(b.weight for b in function.blocks if b.preserved)
        chosen = set(knapsack([b.weight for b in free], [b.value for b in free], capacity))
        if capacity < 0:
            chosen = set()
        for block in function.blocks:
            block.kept = block.preserved
        for i in chosen:
            free[i].kept = True

    def _drop(self, selected: Sequence[Function]) -> None:
        """Still too long: drop blocks, the least relevant function's first, preserved ones last."""
        units: list[tuple[bool, int, float, list[int]]] = []
        for function in selected:
            if function.rate < 1:
                units += [
                    (b.preserved, -function.rank, b.value, self._loose(b.lines))
                    for b in function.blocks
                    if b.kept
                ]
            else:
                units.append((False, -function.rank, 0.0, self._loose(function.lines)))
        units.sort(key=lambda u: u[:3])
        dropped = drop_until_fit(self.assembly, [unit[3] for unit in units])
        if dropped:
            self.warnings.append(
                f"small functions and preserved blocks did not fit the budget of {self.limit} "
                f"tokens: {dropped} of them were dropped; raise the budget or set preserve='none'"
            )

    def _loose(self, lines: range) -> list[int]:
        return [i for i in lines if i not in self.pinned]

    def _fill_order(self, ranked: Sequence[Function]) -> list[int]:
        """Lines in the order in which they are worth keeping: selected functions first."""
        order: list[int] = []
        for function in sorted(ranked, key=lambda f: (not f.selected, not f.partial)):
            if function.blocks:
                for block in sorted(function.blocks, key=lambda b: -b.value):
                    order += block.lines
            else:
                order += function.lines
        return order

    def _rows(self, first: int, stop: int) -> list[int]:
        """First and last line number, from 1, in the original."""
        return [self.source.rows[first] + 1, self.source.rows[stop - 1] + 1]

    def report(self) -> dict[str, Any]:
        """Everything that was decided, JSON-ready. Lines are (first, last), from 1."""
        relevance = self.relevance
        kept = set(self.assembly.kept)

        def entry(function: Function) -> dict[str, Any]:
            return {
                "name": function.chunk.name,
                "lines": self._rows(function.chunk.first, function.chunk.stop),
                "tokens": function.tokens,
                "ami": function.ami,
                "rank": function.rank,
                "selected": function.selected,
                "partial": function.partial,
                "rate": function.rate,
                "small": function.small,
                "kept_tokens": self.source.cost(i for i in function.lines if i in kept),
                "blocks": [
                    {
                        "lines": self._rows(b.first, b.stop),
                        "tokens": b.weight,
                        "ami": b.ami,
                        "preserved": b.preserved,
                        "chosen": b.kept,
                    }
                    for b in function.blocks
                ],
            }

        preserved = [b for f in self.functions if f.selected for b in f.blocks if b.preserved]
        return {
            "method": "longcodezip",
            "stage": self.stage,
            "language": self.language,
            "limit": self.limit,
            "fine_budget": self.fine_budget,
            "tokens": self.assembly.tokens,
            "pinned_tokens": self.pinned_tokens,
            "preserved_tokens": sum(b.weight for b in preserved),
            "query_perplexity": relevance.perplexity if relevance else None,
            "passes": {
                "relevance": relevance.passes if relevance else 0,
                "lines": sum(bool(f.bits) for f in self.functions),
            },
            "chunks": [entry(f) for f in self.functions],
            "seconds": self.seconds,
        }
