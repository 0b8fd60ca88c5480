"""A model in pure Python for tests of what runs models: it answers by a hash and keeps a log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Generation,
    Prompt,
    SamplingParams,
)


class RecordingModel:
    """Answers with digits that depend on prompt and seed alone.

    Args:
        log: file that gets one line per call, written before the answer.
        seconds: time that an answer takes.
        fails_on: prompts with this text raise.
    """

    def __init__(self, log: Path | None = None, seconds: float = 0.0, fails_on: str = "") -> None:
        self.log, self.seconds, self.fails_on = log, seconds, fails_on
        self.name = "recording"
        self.context_length = 4096
        self.capabilities = Capabilities(seed=True)
        self.takes_chat = False
        self.prompts: list[str] = []

    def count(self, text: str) -> int:
        return len(text.split())

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        account: Account | None = None,
    ) -> Generation:
        text = str(prompt)
        account = account or Account.open(budget)
        self.prompts.append(text)
        if self.log is not None:
            with self.log.open("a") as out:
                out.write(f"{sampling.seed} {sampling.max_tokens} {text!r}\n")
        time.sleep(self.seconds)
        if self.fails_on and self.fails_on in text:
            raise InputError(f"the prompt holds {self.fails_on!r}; choose another one")
        hold = account.hold([sampling.max_tokens])
        size = hold.limits[0]
        digest = hashlib.blake2b(f"{sampling.seed}{text}".encode()).hexdigest()
        answer = str(int(digest, 16) % 10)
        account.settle(hold, size)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=self.count(text),
            generated=size,
            branch=digest,
            method=account.method,
        )
        account.ledger.deliver([digest])
        return Generation(answer, (int(answer),) * size, "length", account.ledger)

    def stream(self, prompt: Prompt, *args: Any, **knobs: Any) -> Iterator[Chunk]:
        made = self.generate(prompt, *args, **knobs)
        yield Chunk(made.text)
        yield Chunk("", made)

    def open(self, prompt: Prompt, assistant_prefix: str = "", **knobs: Any) -> Branch:
        raise NotImplementedError

    def extend(self, branches: Sequence[Branch], *args: Any, **knobs: Any) -> list[list[Branch]]:
        raise NotImplementedError

    def append(self, branch: Branch, tokens: Any, **knobs: Any) -> Branch:
        raise NotImplementedError

    def score(self, branch: Branch, continuations: Any, **knobs: Any) -> list[tuple[float, ...]]:
        raise NotImplementedError

    def release(self, branch: Branch) -> None:
        raise NotImplementedError
