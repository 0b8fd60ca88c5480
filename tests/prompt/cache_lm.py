"""A cache language model in closed form: a deterministic scorer for tests of selection logic.

Tokens are words, runs of spaces, line breaks and single signs. A token that occurred before costs
0.5 nats, a new one between 3 and 5, by its spelling. The first token is not scored, as with a
tokenizer without a beginning-of-text token.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from outlay.errors import InputError
from outlay.models.base import Account, TokenLosses

TOKEN = re.compile(r"\n|[^\S\n]*\w+|[^\S\n]*[^\w\s]|[^\S\n]+")


class CacheLM:
    """Implements the `Scorer` protocol; `texts` records what was scored."""

    def __init__(self, context_length: int = 100_000) -> None:
        self.name = "cache-lm"
        self.context_length = context_length
        self.calls = 0
        self.texts: list[str] = []

    def count(self, text: str) -> int:
        return len(TOKEN.findall(text))

    def losses(
        self,
        texts: Sequence[str],
        *,
        keep_from: Sequence[int] | None = None,
        account: Account | None = None,
    ) -> list[TokenLosses]:
        self.calls += 1
        self.texts += texts
        result = []
        for i, text in enumerate(texts):
            start = keep_from[i] if keep_from is not None else 0
            matches = list(TOKEN.finditer(text))
            if len(matches) > self.context_length:
                raise InputError(f"text {i} has {len(matches)} tokens")
            seen: set[str] = set()
            nll, ids = [], []
            for k, match in enumerate(matches):
                word = match.group().strip() or match.group()
                code = zlib.crc32(word.encode())
                loss = 0.5 if word in seen else 3 + code % 1000 / 500
                nll.append(loss if k and match.end() > start else np.nan)
                ids.append(code)
                seen.add(word)
            result.append(
                TokenLosses(
                    np.array(ids, np.int64),
                    np.array([m.start() for m in matches], np.int64),
                    np.array([m.end() for m in matches], np.int64),
                    np.array(nll, float),
                )
            )
            if account is not None:
                account.ledger.record(
                    account.stage, account.role, prompt_new=len(ids), method=account.method
                )
        return result
