"""A model that gives prepared replies, in order, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlay.budget import Budget
from outlay.ledger import Ledger
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Generation,
    Prompt,
    SamplingParams,
)


class Scripted:
    """Replies cost one token a word; when they run out, the last one is repeated."""

    def __init__(self, *replies: str, name: str = "scripted") -> None:
        self.name = name
        self.context_length = 100_000
        self.capabilities = Capabilities(append=True, stop=True)
        self.takes_chat = False
        self.replies = list(replies)
        self.asked: list[str] = []
        self.sampling: list[SamplingParams] = []

    def count(self, text: str) -> int:
        return len(text.split())

    def _name(self) -> str:
        return f"s{id(self)}-{len(self.asked)}-{len(self.sampling)}"

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        text = str(prompt) + assistant_prefix
        self.asked.append(text)
        account = account or Account()
        account.ledger.record(account.stage, account.role, prompt_new=self.count(text))
        return Branch(self._name(), None, (), "", "open")

    def append(self, branch: Branch, tokens: Any, *, account: Account | None = None) -> Branch:
        child = Branch(self._name(), branch, (), tokens, "forced", depth=branch.depth + 1)
        account = account or Account()
        forced = self.count(tokens)
        account.ledger.record(account.stage, account.role, forced=forced, branch=child.id)
        return child

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
    ) -> list[list[Branch]]:
        account = account or Account()
        each = [sampling] * len(branches) if isinstance(sampling, SamplingParams) else sampling
        made = []
        for branch, want in zip(branches, each, strict=True):
            self.sampling.append(want)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            words = reply.split(" ")[: want.max_tokens]
            hold = account.hold([len(words)])
            child = Branch(self._name(), branch, (), " ".join(words), "eos", depth=1)
            account.settle(hold, len(words))
            account.ledger.record(
                account.stage, account.role, generated=len(words), branch=child.id
            )
            made.append([child])
        return made

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        account: Account | None = None,
    ) -> Generation:
        root = self.open(prompt, account=account)
        [[child]] = self.extend([root], sampling, account=account)
        ledger = Ledger() if account is None else account.ledger
        return Generation(child.text, (), "eos", ledger)

    def release(self, branch: Branch) -> None:
        pass
