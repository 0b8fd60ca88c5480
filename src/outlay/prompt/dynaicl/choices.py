"""A generalist that chooses between given answers by their likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outlay.errors import InputError
from outlay.ledger import Ledger

if TYPE_CHECKING:
    from outlay.models.local import LocalModel

MAX_OPTIONS = 1000
_BLOCK = 64  # prompts whose keys and values are held at a time


@dataclass
class Chooser:
    """A local model as a black box that answers with one of the options of each prompt.

    The option with the highest mean log-probability of its tokens is the answer; the first one on
    ties. Prompts go through the model in batches, what all prompts of a batch begin with is
    computed once, and the options of a prompt share the prompt.

    Args:
        model: a local model.
        options: gives the options of a prompt.
        lead: between a prompt and an option.
        ledger: what was spent so far.
    """

    model: LocalModel
    options: Callable[[str], Sequence[str]]
    lead: str = " "
    ledger: Ledger = field(default_factory=Ledger)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """An option for each prompt, in order.

        Raises:
            InputError: for options that are missing, empty, repeated or more than 1000, or a prompt
                that does not fit the model's window with its options.
        """
        pairs = zip(self._options(prompts), self.scores(prompts), strict=True)
        return [_best(options, scores) for options, scores in pairs]

    def scores(self, prompts: Sequence[str]) -> list[list[float]]:
        """Mean log-probability of every option of every prompt."""
        options = self._options(prompts)
        ids = [self.model.prompt_ids(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(ids[i]), i))
        found: list[list[float]] = [[] for _ in prompts]
        for at in range(0, len(order), _BLOCK):
            block = order[at : at + _BLOCK]
            written = [[f"{self.lead}{option}" for option in options[i]] for i in block]
            rows = self._scored([ids[i] for i in block], written)
            for i, row in zip(block, rows, strict=True):
                found[i] = row
        return found

    def _scored(
        self, rows: Sequence[list[int]], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Scores of one block: what all prompts begin with, then their rests, then the options."""
        from outlay.models.base import Account

        model, account, started = self.model, Account(), time.perf_counter()
        shared = _shared(rows)
        root, flops = None, 0.0
        if shared and len(rows) > 1:
            root = model.open(rows[0][:shared], account=account)
            branches = [model.append(root, row[shared:]) for row in rows]
            flops = model.materialise(branches)
        else:
            shared = 0
            branches = [model.open(row, account=account) for row in rows]
        found, read = [], sum(map(len, rows)) - shared * (len(rows) - 1)
        for branch, each in zip(branches, options, strict=True):
            scores = model.score(branch, each, account=account)
            found.append([sum(row) / len(row) for row in scores])
            read += sum(map(len, scores))
            model.release(branch)
        if root is not None:
            model.release(root)
        self.ledger.record(
            "answer",
            "target",
            prompt_new=read,
            prompt_cached=shared * (len(rows) - 1),
            method="choices",
            seconds=time.perf_counter() - started,
            flops=flops + sum(entry.flops for entry in account.ledger),
        )
        return found

    def _options(self, prompts: Sequence[str]) -> list[Sequence[str]]:
        made = [self.options(prompt) for prompt in prompts]
        for prompt, options in zip(prompts, made, strict=True):
            known = set(options)
            if not 1 <= len(options) <= MAX_OPTIONS or len(known) < len(options) or "" in known:
                raise InputError(
                    f"options {list(options)[:8]} of the prompt {prompt[-40:]!r}; give 1 to "
                    f"{MAX_OPTIONS} different ones, none empty"
                )
        return made


def _best(options: Sequence[str], scores: Sequence[float]) -> str:
    return options[max(range(len(options)), key=lambda i: (scores[i], -i))]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; at least one of each is left."""
    least = min(map(len, rows)) - 1
    return next((i for i in range(least) if len({row[i] for row in rows}) > 1), least)
