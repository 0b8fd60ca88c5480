"""Thinking budgets inside `model.generate`, as a transformers `LogitsProcessor`.

The method of `outlay.decode.thinking_budget` (m1, arXiv 2504.00869) where one call has to do all
phases: batches, beams and streamers work, since everything is derived from the ids of a row alone.
At B tokens of thinking the close and the answer prefix are forced, token by token; before
`min_think` every token that would complete the end marker is masked; an end becomes a wait by
giving the score of the end marker to the first token of `wait`.

What differs from the phases on a session: a "Wait" that the model wrote itself counts as one of
`n_wait` (ids do not tell them apart), a marker of several tokens is swapped at its first one, and
end-of-text while thinking is turned into the close, so that every row gets an answer.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import LogitsProcessor

from outlay.decode import delimiters as tags
from outlay.errors import BudgetError, InputError


class ThinkingBudgetProcessor(LogitsProcessor):
    """Keeps the thinking of every row within a budget; pass it in `logits_processor=[...]`.

    Thinking begins after the last opening tag of a row, which the prompt may or may not contain;
    rows without one are left alone, and a section that is opened after an answer has a budget of
    its own. The answer's length is `generate`'s business: give
    `max_new_tokens` of at least `max_think`, the forced tokens and the answer.

    Args:
        tokenizer: of the model.
        max_think: B, most tokens of thinking, waits and a natural end marker included.
        min_think: least tokens of thinking.
        n_wait: how many ends of thinking become `wait`.
        wait: text written instead of an end.
        think_open, think_close: the delimiters; None detects them.
        answer_open: forced after a forced close; None takes what the chat template writes there.
        overthink_prefix: forced after that; None is "Final Answer:" unless a tag opens the answer.
        newline: forced before close and prefix, unless one is there.
        prompt_length: thinking begins after this many ids in every row, whatever they are; None
            looks for the opening tag. Give it where the tag takes several tokens.
        eos_token_id: what ends the text; None takes the tokenizer's.

    Raises:
        InputError: for values out of range, or delimiters that do not survive the tokenizer.
        BudgetError: if waits do not fit `max_think`.

    Example:
        >>> processor = ThinkingBudgetProcessor(tokenizer, max_think=512)
        >>> model.generate(**inputs, logits_processor=[processor], max_new_tokens=1024)
    """

    def __init__(
        self,
        tokenizer: Any,
        max_think: int,
        *,
        min_think: int = 0,
        n_wait: float = 0,
        wait: str = "Wait",
        think_open: str | None = None,
        think_close: str | None = None,
        answer_open: str | None = None,
        overthink_prefix: str | None = None,
        newline: str = "\n",
        prompt_length: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        if not 0 <= min_think <= max_think:
            raise InputError(f"min_think={min_think}, max_think={max_think}; need 0 <= min <= max")
        if not n_wait >= 0 or (n_wait != math.inf and n_wait != int(n_wait)):
            raise InputError(f"n_wait={n_wait}; must be a whole number >= 0, or math.inf")
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        found = tags.resolve(
            tokenizer, think_open, think_close, answer_open, overthink_prefix, name=name
        )
        tags.check(tokenizer, "newline", newline, name)
        self._tokenizer = tokenizer
        self._max, self._min, self._waits = max_think, min_think, n_wait
        self._open = tags.encode(tokenizer, found.open)
        self._close, self._close_ids = found.close, list(found.close_ids)
        self._wait = tags.check(tokenizer, "wait", wait, name)
        if n_wait and not 0 < len(self._wait) < max_think:
            raise BudgetError(
                f"max_think={max_think} leaves no room for wait={wait!r} of {len(self._wait)} "
                "tokens; raise it, or set n_wait=0"
            )
        tail = found.close + found.answer
        if found.prefix:
            tail += ("" if tail.endswith(newline) else newline) + found.prefix
        self._newline = newline
        self._ending = {  # by whether the thinking lacks the newline
            lacks: tags.encode(tokenizer, (newline if lacks else "") + tail)
            for lacks in (True, False)
        }
        self._start = prompt_length
        eos = getattr(tokenizer, "eos_token_id", None) if eos_token_id is None else eos_token_id
        self._eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    def forced_tokens(self) -> int:
        """The most tokens that a forced close takes."""
        return max(map(len, self._ending.values()))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with the budget's will done; input_ids_BT, scores_BV."""
        scores_BV = scores.clone()
        for row, ids in enumerate(input_ids.tolist()):
            at = self._begin(ids)
            if at is not None:
                self._steer(ids[at:], scores_BV[row])
        return scores_BV  # type: ignore[return-value]

    def _begin(self, ids: list[int]) -> int | None:
        """Where thinking begins in a row, None where it does not."""
        if self._start is not None:
            return self._start
        size = len(self._open)
        for at in range(len(ids) - size, -1, -1):
            if ids[at : at + size] == self._open:
                return at + size
        return None

    def _steer(self, thought: list[int], scores_V: torch.Tensor) -> None:
        head = thought[: self._max]
        if self._closed(head):
            return
        if len(thought) >= self._max:
            written = tags.decode(self._tokenizer, head[-4:]) if head else ""
            ending = self._ending[not written.endswith(self._newline)]
            if (at := len(thought) - self._max) < len(ending):
                _force(scores_V, ending[at])
            return
        tail = thought[len(thought) - len(self._open) + 1 :] if len(self._open) > 1 else []
        if tail == self._open[:-1]:
            scores_V[self._open[-1]] = -torch.inf  # a second opening tag would start the count anew
        used = len(thought)
        done = _occurrences(thought, self._wait) if self._waits else 0
        if done < self._waits:
            for size in range(len(self._wait) - 1, 0, -1):
                if thought[-size:] == self._wait[:size]:
                    if used + len(self._wait) - size < self._max:
                        _force(scores_V, self._wait[size])
                    return
        ends = self._completing(thought)
        if used < self._min:
            scores_V[ends + self._eos] = -torch.inf
        elif done < self._waits and used + len(self._wait) < self._max:
            sources = [*self._eos, self._close_ids[0]]
            _swap(scores_V, sources, self._wait[0])
            scores_V[ends] = -torch.inf
        elif self._eos:
            _swap(scores_V, self._eos, self._close_ids[0])

    def _closed(self, head: list[int]) -> bool:
        """Whether the thinking holds its end marker."""
        if len(self._close_ids) == 1:
            return self._close_ids[0] in head
        return self._close in tags.decode(self._tokenizer, head)

    def _completing(self, thought: list[int]) -> list[int]:
        """Ids of all tokens that would complete the end marker now."""
        if len(self._close_ids) == 1:
            return self._close_ids
        # A character takes at most four byte tokens.
        tail = tags.decode(self._tokenizer, thought[-4 * len(self._close) :]) if thought else ""
        found: list[int] = list(self._completions[0])
        for size in range(1, len(self._close)):
            if tail.endswith(self._close[:size]):
                found += self._completions[size]
        return found

    @cached_property
    def _completions(self) -> list[list[int]]:
        """By how many characters of the marker stand: ids whose text completes it."""
        texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
        table = [[i for i, text in enumerate(texts) if self._close in text]]
        for size in range(1, len(self._close)):
            rest = self._close[size:]
            table.append([i for i, text in enumerate(texts) if text.startswith(rest)])
        return table


def _force(scores_V: torch.Tensor, token: int) -> None:
    scores_V.fill_(-torch.inf)
    scores_V[token] = 0


def _swap(scores_V: torch.Tensor, sources: list[int], target: int) -> None:
    """Give `target` the best score of `sources`, which become impossible."""
    best = torch.maximum(scores_V[sources].max(), scores_V[target])
    scores_V[[source for source in sources if source != target]] = -torch.inf
    scores_V[target] = best


def _occurrences(ids: list[int], pattern: list[int]) -> int:
    size = len(pattern)
    return sum(ids[at : at + size] == pattern for at in range(len(ids) - size + 1))
