"""Putting kept lines together under a token budget, with a comment wherever lines are missing.

An `Assembly` holds which lines of a source are kept. It renders them with one omission marker for
every run of missing lines (`# ...` in Python), at the indentation of the first missing line, and
knows the exact price of adding or dropping lines. Token counts of pieces do not add up to the count
of the whole, so prices are differences between two counts of a small window around the change, and
the final text is always counted as a whole.

Differs from the LongCodeZip package (arXiv 2510.00446): markers count against the budget, a run of
blank lines needs no marker, and blocks are joined with the source's own line breaks
(`breaks=` reproduces the package's blank line between blocks).
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from outlay.errors import BudgetError
from outlay.prompt.base import CountTokens
from outlay.prompt.chunking import Chunk, comment_prefix

_LINE_END = re.compile(r"\r\n|\r|\n")
_LONG_LINE = 200  # characters; a longer line of prose is cut into sentences
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_REACH = 2  # non-blank kept lines on either side of a change that its price is counted with


def marker_text(language: str) -> str:
    """The omission marker of `language`: a comment, or plain dots in prose."""
    prefix = comment_prefix(language)
    return f"{prefix} ..." if prefix else "..."


def _sentences(text: str, at: int, end: int) -> list[int]:
    """Borders that cut text[at:end] after sentences, and overlong sentences between words."""
    borders = [at, *(m.end() for m in _SENTENCE_END.finditer(text, at, end)), end]
    cut = [at]
    for border in borders[1:]:
        while border - cut[-1] > 2 * _LONG_LINE:
            space = text.rfind(" ", cut[-1] + 1, cut[-1] + _LONG_LINE)
            cut.append(space + 1 if space > 0 else cut[-1] + _LONG_LINE)
        if border > cut[-1]:
            cut.append(border)
    return cut


@dataclass(frozen=True)
class Source:
    """A text as lines, without trailing blank lines, with the place of each in the original.

    Prose has its long lines cut further, into sentences; a "line" below is one of those pieces.

    Args:
        lines: (n,) lines without line ends, as `lines[first:stop]`.
        starts: (n,) first character of each line in the original text.
        ends: (n,) character after each line's last, its line end excluded.
        costs: (n,) tokens of each line together with the line break before it; an estimate of
            what the line adds to a text.
        rows: (n,) the original line number, from 0, that each is on.
        following: (n + 1,) the first line at or after each that is not blank.
    """

    lines: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    costs: tuple[int, ...]
    rows: tuple[int, ...]
    following: tuple[int, ...] = field(repr=False)

    @classmethod
    def read(cls, text: str, count: CountTokens, language: str = "python") -> Source:
        """Split `text` (any line ends) and count every line once."""
        lines, starts, ends, rows = [], [], [], []
        at = 0
        for row, match in enumerate([*_LINE_END.finditer(text), None]):
            end = len(text) if match is None else match.start()
            borders = [at, end]
            if language == "text" and end - at > _LONG_LINE:
                borders = _sentences(text, at, end)
            for first, stop in pairwise(borders):
                lines.append(text[first:stop])
                starts.append(first)
                ends.append(stop)
                rows.append(row)
            at = end if match is None else match.end()
        while lines and not lines[-1].strip():
            lines.pop()
        n = len(lines)
        costs = [
            0
            if not line.strip()
            else count(f"\n{line}" if i == 0 or rows[i] > rows[i - 1] else line)
            for i, line in enumerate(lines)
        ]
        following = [n] * (n + 1)
        for i in range(n - 1, -1, -1):
            following[i] = i if lines[i].strip() else following[i + 1]
        return cls(
            lines=tuple(lines),
            starts=tuple(starts[:n]),
            ends=tuple(ends[:n]),
            costs=tuple(costs),
            rows=tuple(rows[:n]),
            following=tuple(following),
        )

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, chunk: Chunk) -> str:
        """The lines of `chunk`, joined, without trailing blank lines."""
        return "\n".join(self.lines[chunk.first : chunk.stop]).rstrip()

    def cost(self, lines: Iterable[int]) -> int:
        """Estimated tokens of `lines`."""
        return sum(self.costs[i] for i in lines)

    def blank(self, line: int) -> bool:
        """Is there nothing on `line`?"""
        return self.following[line] != line


class Assembly:
    """The kept lines of a source, their text, and what changes cost.

    Args:
        source: the lines to choose from.
        count: token counter of the target model.
        limit: tokens that the text may have.
        marker: comment for missing lines; "" for none.
        kept: lines that are kept from the beginning.
        breaks: lines that get a blank line before them (or before their marker).
    """

    def __init__(
        self,
        source: Source,
        count: CountTokens,
        limit: int,
        *,
        marker: str,
        kept: Iterable[int] = (),
        breaks: Collection[int] = (),
    ) -> None:
        self.source = source
        self.count = count
        self.limit = limit
        self.marker = marker
        self.breaks = frozenset(breaks)
        self.marker_cost = count(f"\n    {marker}") if marker else 0
        self._kept = sorted(set(kept))
        self._set = set(self._kept)
        self.tokens = self.recount()

    def __contains__(self, line: int) -> bool:
        return line in self._set

    @property
    def kept(self) -> tuple[int, ...]:
        """Kept lines, in order."""
        return tuple(self._kept)

    @property
    def slack(self) -> int:
        """Tokens left."""
        return self.limit - self.tokens

    def recount(self) -> int:
        """Count the whole text, which is the truth, and remember it."""
        self.tokens = self.count(self.text())
        return self.tokens

    def text(self) -> str:
        """All kept lines, with markers."""
        return self._render(self._kept, -1, len(self.source))

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Characters of the original that are kept: one (start, end) a run of lines."""
        spans: list[tuple[int, int]] = []
        previous = -2
        for line in self._kept:
            if line == previous + 1 and spans:
                spans[-1] = (spans[-1][0], self.source.ends[line])
            else:
                spans.append((self.source.starts[line], self.source.ends[line]))
            previous = line
        return tuple(spans)

    def _render(self, kept: Sequence[int], before: int, stop: int) -> str:
        """Text of `kept`, lines strictly between `before` and `stop` being known to be missing."""
        out: list[str] = []
        rows = self.source.rows
        previous = before
        for line in [*kept, stop]:
            if line > previous + 1 and self.marker:
                gap = self.source.following[previous + 1]
                if gap < line:
                    if out and previous + 1 in self.breaks:
                        out.append("")
                    missing = self.source.lines[gap]
                    out.append(missing[: len(missing) - len(missing.lstrip())] + self.marker)
            if line < stop:
                if out and line in self.breaks:
                    out.append("")
                piece = self.source.lines[line]
                if out and line == previous + 1 and rows[line] == rows[previous]:
                    out[-1] += piece  # the next sentence of the same line of prose
                else:
                    out.append(piece)
            previous = line
        return "\n".join(out)

    def price(self, add: Iterable[int] = (), drop: Iterable[int] = ()) -> int:
        """Tokens by which the text grows when lines are added and dropped (a local count)."""
        add, drop = set(add) - self._set, set(drop) & self._set
        if not add and not drop:
            return 0
        changed = add | drop
        low = self._reach(bisect_left(self._kept, min(changed)), -1)
        high = self._reach(bisect_left(self._kept, max(changed) + 1), 1)
        window = self._kept[low:high]
        before = self._kept[low - 1] if low else -1
        stop = self._kept[high] if high < len(self._kept) else len(self.source)
        after = sorted((set(window) | add) - drop)
        if low:  # the border lines are present in both texts
            window, after = [before, *window], [before, *after]
        if high < len(self._kept):
            window, after = [*window, stop], [*after, stop]
            stop += 1
        start = before - 1 if low else -1
        return self.count(self._render(after, start, stop)) - self.count(
            self._render(window, start, stop)
        )

    def _reach(self, at: int, step: int) -> int:
        """Walk from position `at` of the kept lines over `_REACH` non-blank ones."""
        solid = 0
        while solid < _REACH:
            line = at - 1 if step < 0 else at
            if not 0 <= line < len(self._kept):
                break
            solid += not self.source.blank(self._kept[line])
            at += step
        return at

    def change(self, add: Iterable[int] = (), drop: Iterable[int] = (), price: int = 0) -> None:
        """Add and drop lines; `price` is what `price()` said."""
        for line in set(add) - self._set:
            insort(self._kept, line)
            self._set.add(line)
        for line in set(drop) & self._set:
            del self._kept[bisect_left(self._kept, line)]
            self._set.remove(line)
        self.tokens += price

    def replace(self, kept: Iterable[int]) -> int:
        """Keep exactly these lines; returns the recounted tokens."""
        self._set = set(kept)
        self._kept = sorted(self._set)
        return self.recount()

    def add_if_fits(self, lines: Iterable[int]) -> bool:
        """Add `lines` if the text stays within the limit."""
        wanted = set(lines) - self._set
        # A line can at best save one marker and merge two tokens: cheaper to rule out than count.
        if self.source.cost(wanted) - self.marker_cost - 2 > self.slack:
            return False
        price = self.price(add=wanted)
        if price > self.slack:
            return False
        self.change(add=wanted, price=price)
        return True

    def fill(self, order: Sequence[int]) -> None:
        """Add single lines of `order`, first come first served, until no line fits any more.

        Afterwards the slack is smaller than the cheapest missing line with its marker, and the
        text's count is exact and within the limit (if it was before).
        """
        added: list[int] = []
        grew = True
        while grew:
            grew = False
            for line in order:
                if line in self._set or self._hopeless(line):
                    continue
                # Blank lines just above come along: they keep the layout and cost next to nothing.
                lines = [line]
                while (above := lines[-1] - 1) >= 0 and self.source.blank(above):
                    lines.append(above)
                if self.add_if_fits(lines) or (len(lines) > 1 and self.add_if_fits([line])):
                    added.append(line)
                    grew = True
            self.recount()
            while self.tokens > self.limit and added:  # local prices were too low: rare
                self.change(drop=[added.pop()])
                self.recount()
                grew = False

    def _hopeless(self, line: int) -> bool:
        """Can `line` not fit for certain? Judged without counting."""
        source = self.source
        if source.blank(line):
            return True
        lonely = not (
            self._near(line, -1) in self._set
            or self._near(line, 1) in self._set
            or line in (0, len(source) - 1)
        )
        # Alone in a gap, a line splits one marker in two; at an edge, it may replace one.
        extra = self.marker_cost if lonely else -self.marker_cost
        return source.costs[line] + extra - 2 > self.slack

    def _near(self, line: int, step: int) -> int:
        line += step
        while 0 <= line < len(self.source) and self.source.blank(line) and line not in self._set:
            line += step
        return line

    def require_fit(self, what: str) -> None:
        """Raise `BudgetError` if the present text alone is over the limit."""
        if self.tokens > self.limit:
            raise BudgetError(
                f"{what} alone take{'s' if what.startswith('a') else ''} {self.tokens} tokens, the "
                f"budget is {self.limit}; raise the budget to at least {self.tokens}"
            )


def keep_ranked(assembly: Assembly, units: Sequence[Sequence[int]], *, fill: bool = True) -> None:
    """Keep whole units in order of rank where they fit, then single lines of the rest.

    Args:
        assembly: may already hold pinned lines.
        units: line numbers of every unit, best first; units may overlap.
        fill: add single lines after the last unit that fits.
    """
    for unit in units:
        assembly.add_if_fits(unit)
    drop_until_fit(assembly, units[::-1])
    if fill:
        assembly.fill([line for unit in units for line in unit])


def drop_until_fit(assembly: Assembly, units: Sequence[Sequence[int]]) -> int:
    """Drop whole units, in order, until the counted text fits; returns how many were dropped."""
    dropped = 0
    assembly.recount()
    for unit in units:
        if assembly.tokens <= assembly.limit:
            break
        if any(line in assembly for line in unit):
            assembly.change(drop=unit, price=assembly.price(drop=unit))
            dropped += 1
            if assembly.tokens <= assembly.limit:
                assembly.recount()
    return dropped
