"""LongCodeZip: pick whole functions by their relevance to the question, then blocks inside them.

"LongCodeZip: Compress Long Context for Code Language Models", arXiv 2510.00446 (ASE 2025).
Training-free. A small causal language model ranks functions by how much more predictable each makes
the question; the best ones are kept up to a coarse budget. Inside them, lines are grouped into
blocks at spikes of perplexity, and a knapsack keeps the most relevant blocks within each function's
share of the budget.

Differs from the paper and its package:

- The budget is a promise. Markers count, the final text is counted as a whole, and what is left
  over is filled with single lines, best functions first.
- All line losses of a function come from one pass, relevance passes are batched, and only functions
  that must shrink are cut into blocks: linear in the length of the context.
- A coarse pick that does not fit is skipped (`overshoot=True`: kept, then the stage stops).
- Line counts alone say whether a function is small; a function of one block that must shrink is
  handed to single-line blocks.
- Rates are rescaled until they meet the budget (`alloc="paper"`: once); blocks are joined with the
  source's own line breaks (`join="paper"`: a blank line); functions are found by parsers.
- The relevance is a difference of log-likelihoods (`score="ppl"`: of perplexities, eq. 1).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from outlay.budget import Budget
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.models.base import Account, Scorer
from outlay.prompt.base import Compressed, CountTokens, check_text, prompt_limit
from outlay.prompt.blocks import AlphaRule, SpikeStat, cut_blocks, spike_threshold
from outlay.prompt.chunking import (
    Chunk,
    comment_prefix,
    is_definition,
    resolve_language,
    split_chunks,
)
from outlay.prompt.knapsack import knapsack
from outlay.prompt.markers import Assembly, Source, drop_until_fit, keep_ranked, marker_text
from outlay.prompt.rates import Alloc, adaptive_rates, minmax
from outlay.prompt.relevance import Relevance, Score, line_bits

Value = Literal["normalised", "raw"]
Join = Literal["source", "paper"]

_ROUNDS = 8  # times that the fine budget is lowered by what markers cost, before blocks are dropped


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


@dataclass(frozen=True)
class LongCodeZip:
    """Coarse-to-fine compression of code (arXiv 2510.00446).

    Args:
        scorer: language model that judges relevance.
        chunker_scorer: language model for line losses; the default is `scorer`.
        rate: also keep at most this share of the source's tokens, in (0, 1].
        r_fine: R_fine in (0, 1]: the coarse stage may keep budget / r_fine tokens. 1 is rank-only.
        beta: how strongly relevance changes a function's rate, in [0, 1].
        alpha: spike threshold in units of spread (k of the package: 0.2 with its rule).
        alpha_rule: "std_only" (paper) or "package" (adds the mean).
        spike_stat: location and spread of the threshold.
        min_lines: functions with fewer lines are kept whole.
        value: block values min-max normalised within a function (paper), or raw (package), where
            blocks with a negative value are never taken.
        score: relevance as difference of mean log-likelihoods or of perplexities (paper). The
            ranking is the same; rates and block values are not.
        overshoot: the coarse stage keeps the first function that does not fit, and stops.
        slack: tokens that the coarse stage may go over.
        rank_only: whole functions only, no fine stage.
        preserve: "package" keeps blocks that begin with a definition or a comment or hold a
            `return`; "none" keeps only pins.
        pins: ranges (first, last) of line numbers, from 1, that are kept whatever happens.
        alloc: rates rescaled until they meet the budget, or once ("paper").
        join: blocks joined as in the source, or with a blank line ("paper").
        marker: comment for omitted lines; "" is `# ...` or the language's own comment.
        fill: spend what is left over on single lines.
        separator: line that separates files in the context; "" for none.
        fallback: cut code without parser at lines that look like definitions.

    Raises:
        InputError: for knobs out of range.
        CapabilityError: for a scorer without losses.
    """

    scorer: Scorer
    chunker_scorer: Scorer | None = None
    rate: float | None = None
    r_fine: float = 0.8
    beta: float = 0.5
    alpha: float = 1.0
    alpha_rule: AlphaRule = "std_only"
    spike_stat: SpikeStat = "std"
    min_lines: int = 5
    value: Value = "normalised"
    score: Score = "nll"
    overshoot: bool = False
    slack: int = 0
    rank_only: bool = False
    preserve: Literal["package", "none"] = "package"
    pins: tuple[tuple[int, int], ...] = ()
    alloc: Alloc = "exact"
    join: Join = "source"
    marker: str = ""
    fill: bool = True
    separator: str = ""
    fallback: bool = True

    def __post_init__(self) -> None:
        for scorer in (self.scorer, self.chunker_scorer or self.scorer):
            if not isinstance(scorer, Scorer):
                raise CapabilityError(
                    f"scorer {type(scorer).__name__} cannot give losses; "
                    "pass a causal language model such as outlay.models.LocalModel"
                )
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"rate={self.rate} is outside (0, 1]")
        if not 0 < self.r_fine <= 1:
            raise InputError(f"r_fine={self.r_fine} is outside (0, 1]")
        if not 0 <= self.beta <= 1:
            raise InputError(f"beta={self.beta} is outside [0, 1]")
        if not self.alpha >= 0:
            raise InputError(f"alpha={self.alpha} is negative; give a number >= 0")
        if self.min_lines < 0 or self.slack < 0:
            raise InputError(f"min_lines={self.min_lines}, slack={self.slack}; both must be >= 0")
        for name, kind in (
            ("alpha_rule", AlphaRule),
            ("spike_stat", SpikeStat),
            ("value", Value),
            ("score", Score),
            ("alloc", Alloc),
            ("join", Join),
            ("preserve", Literal["package", "none"]),
        ):
            if (given := getattr(self, name)) not in get_args(kind):
                raise InputError(f"{name}={given!r}; choose one of {', '.join(get_args(kind))}")
        if "\n" in self.marker:
            raise InputError(f"marker={self.marker!r} holds a line break; give one line")

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """Shorten `prompt` to at most `budget.tokens`, keeping what `question` needs.

        With a blank question nothing can be ranked: whole functions are kept in original order, and
        the scorer is not called.

        Raises:
            BudgetError: without a prompt limit, or below what pins (or one marker) take.
            InputError: for empty or binary text, pins out of range, a query beyond the window.
            ModelError: for scores that are not numbers.
        """
        limit = prompt_limit(budget)
        text = check_text(prompt)
        original = count(prompt)
        if self.rate is not None:
            limit = min(limit, max(1, math.floor(self.rate * original)))
        # Line ends alone may decide whether the source fits: CRLF can take more tokens.
        for whole, size in ((prompt, original), (text, count(text))):
            if size <= limit:
                report = {"method": "longcodezip", "stage": "unchanged", "limit": limit}
                return Compressed(whole, size, original, ((0, len(prompt)),), report=report)
        account = Account(meter=budget.meter(), stage="prompt", role="scorer", method="longcodezip")
        run = _Run(self, prompt, text, question, limit, count, language, account)
        run.go()
        return Compressed(
            text=run.assembly.text(),
            tokens=run.assembly.tokens,
            original_tokens=original,
            kept=run.assembly.spans(),
            ledger=account.ledger,
            report=run.report(),
            warnings=tuple(dict.fromkeys(run.warnings)),
        )


class _Run:
    """One compression: the state that the stages pass on."""

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
        self.source = Source.read(prompt, count)
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
        for first, last in self.method.pins:
            if not 1 <= first <= last <= len(self.source):
                raise InputError(
                    f"pin ({first}, {last}) is out of range; pins are (first, last) line numbers "
                    f"from 1 to {len(self.source)}"
                )
            lines.update(range(first - 1, last))
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
        for _ in range(_ROUNDS):
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
            over = self.assembly.replace(kept) - self.limit
            if over <= 0:
                return
            self.fine_budget -= over

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
        assert self.relevance is not None
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
        for function in [f for f in ranked if f.selected] + [f for f in ranked if not f.selected]:
            if function.blocks:
                for block in sorted(function.blocks, key=lambda b: -b.value):
                    order += block.lines
            else:
                order += function.lines
        return order

    def report(self) -> dict[str, Any]:
        """Everything that was decided, JSON-ready. Lines are (first, last), from 1."""
        relevance = self.relevance
        kept = set(self.assembly.kept)

        def entry(function: Function) -> dict[str, Any]:
            return {
                "name": function.chunk.name,
                "lines": [function.chunk.first + 1, function.chunk.stop],
                "tokens": function.tokens,
                "ami": function.ami,
                "rank": function.rank,
                "selected": function.selected,
                "rate": function.rate,
                "small": function.small,
                "kept_tokens": self.source.cost(i for i in function.lines if i in kept),
                "blocks": [
                    {
                        "lines": [b.first + 1, b.stop],
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
