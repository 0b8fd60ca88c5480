"""A scorer that remembers: the same text is not scored twice.

A comparison asks about one context at several budgets; most of its texts come back. What is
answered from memory is booked as cached prompt tokens, so ledgers still show what was asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from outlay.models.base import Account, Scorer, TokenLosses, first_characters


class MemoScorer:
    """A `Scorer` around another one, with a bounded memory of its results.

    Args:
        scorer: the model that scores.
        max_tokens: tokens of results to keep; the least recently used are dropped.
    """

    def __init__(self, scorer: Scorer, max_tokens: int = 4_000_000) -> None:
        self._scorer = scorer
        self._max = max_tokens
        self._held = 0
        self._memory: OrderedDict[tuple[str, int], TokenLosses] = OrderedDict()
        self._lock = threading.Lock()
        self.name = scorer.name
        self.context_length = scorer.context_length

    def count(self, text: str) -> int:
        """Tokens of `text`, without added special tokens."""
        return self._scorer.count(text)

    def losses(
        self,
        texts: Sequence[str],
        *,
        keep_from: Sequence[int] | None = None,
        account: Account | None = None,
    ) -> list[TokenLosses]:
        """As `Scorer.losses`; texts seen before cost nothing."""
        account = account or Account(role="scorer")
        keys = list(zip(texts, first_characters(texts, keep_from), strict=True))
        with self._lock:
            known = {key: self._memory[key] for key in keys if key in self._memory}
            for key in known:
                self._memory.move_to_end(key)
        fresh = list(dict.fromkeys(key for key in keys if key not in known))
        if fresh:
            answers = self._scorer.losses(
                [text for text, _ in fresh],
                keep_from=[start for _, start in fresh],
                account=account,
            )
            made = dict(zip(fresh, answers, strict=True))
            self._keep(made)
        else:
            made = {}
        asked = sum(len(known.get(key, made.get(key, ()))) for key in keys)
        if cached := asked - sum(map(len, made.values())):
            account.ledger.record(
                account.stage, account.role, prompt_cached=cached, method=account.method
            )
        return [known[key] if key in known else made[key] for key in keys]

    def _keep(self, made: dict[tuple[str, int], TokenLosses]) -> None:
        with self._lock:
            for key, losses in made.items():
                if key not in self._memory:
                    self._held += len(losses)
                self._memory[key] = losses
            while self._held > self._max and self._memory:
                _, dropped = self._memory.popitem(last=False)
                self._held -= len(dropped)
