"""A model whose response to every forced tag is known, and which keeps what it was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay.models.base import Account, Branch, Capabilities, Prompt, SamplingParams


class Scripted:
    """Continues the text after the prompt: the longest known ending decides; a word is a token.

    Args:
        replies: continuation by what the text so far ends with ("" always matches); the n-th sample
            of a branch gets the n-th of several.
        append: whether forced text is possible.
    """

    takes_chat = True

    def __init__(self, replies: Mapping[str, str | Sequence[str]], append: bool = True) -> None:
        self.name, self.context_length = "scripted", 10_000
        self.capabilities = Capabilities(append=append, stop=True)
        self.replies = replies
        self.prompts: list[Any] = []
        self.sampled: list[SamplingParams] = []
        self.texts: dict[str, str] = {}
        self.asked: dict[str, int] = {}

    def count(self, text: str) -> int:
        return len(text.split())

    def _branch(self, parent: Branch | None, text: str, finish: Any) -> Branch:
        depth = 0 if parent is None else parent.depth + 1
        return Branch(f"s{id(self)}-{len(self.texts)}", parent, (), text, finish, depth=depth)

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        self.prompts.append(prompt)
        root = self._branch(None, "", "open")
        self.texts[root.id] = f"{prompt if isinstance(prompt, str) else prompt[-1]}\n"
        (account or Account()).ledger.record("think", "target", prompt_new=1, branch=root.id)
        return root

    def append(self, branch: Branch, tokens: Any, *, account: Account | None = None) -> Branch:
        child = self._branch(branch, tokens, "forced")
        self.texts[child.id] = self.texts[branch.id] + tokens
        ledger = (account or Account()).ledger
        ledger.record("think", "target", forced=self.count(tokens), branch=child.id)
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
        self.sampled += each
        hold = account.hold([want.max_tokens for want in each])
        made, total = [], 0
        for branch, room in zip(branches, hold.limits, strict=True):
            text = self.texts[branch.id]
            key = max((k for k in self.replies if k in text[-40:]), key=len)
            reply = self.replies[key]
            if not isinstance(reply, str):
                reply = reply[self.asked.setdefault(branch.id, 0) % len(reply)]
                self.asked[branch.id] += 1
            words = reply.split(" ")
            cut = len(words) > room
            child = self._branch(branch, " ".join(words[:room]), "budget" if cut else "eos")
            self.texts[child.id] = text + child.text
            spent = min(room, len(words))
            account.ledger.record("think", "target", generated=spent, branch=child.id)
            total += spent
            made.append([child])
        account.settle(hold, total)
        return made

    def release(self, branch: Branch) -> None:
        self.texts.pop(branch.id)
