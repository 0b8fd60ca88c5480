"""A reasoner over a decoder: every sample that a reasoner draws is decoded a given way.

Only for reasoners that sample whole answers of the prompt (`Solving.whole_samples`): voting, best
of n, the shortest. Those that grow partial solutions decode by themselves.

The samples of one wave share what the budget has left evenly. Behind an endpoint they are decoded
side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from outlay.budget import Budget
from outlay.decode.base import Decoder
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.ledger import Ledger
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Generation,
    Model,
    Prompt,
    SamplingParams,
)
from outlay.models.tree import RemoteTree

_GREEDY = SamplingParams()
_NUMBER = itertools.count()
_TOGETHER = 8  # samples in flight behind an endpoint


class Decoded:
    """A model whose samples of a prompt are a decoder's answers.

    Args:
        model: that the decoder runs on.
        decoder: makes each sample.
        budget: of each sample; None shares what the account's budget has left.
    """

    def __init__(self, model: Model, decoder: Decoder, budget: Budget | None = None) -> None:
        self.model, self.decoder, self.budget = model, decoder, budget
        self.name = model.name
        self.context_length = model.context_length
        # Samples are whole: nothing of a branch can be continued.
        self.capabilities = Capabilities(seed=model.capabilities.seed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def takes_chat(self) -> bool:
        """As the model."""
        return self.model.takes_chat

    def count(self, text: str) -> int:
        """As the model."""
        return self.model.count(text)

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Generation:
        """The decoder's answer."""
        room = budget or self.budget or Budget()
        return self.decoder.generate(self.model, prompt, room, sampling, account=account)

    def stream(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """The decoder's answer, in one piece."""
        made = self.generate(prompt, budget, sampling, account=account)
        yield Chunk(made.text, made)

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        """The root of samples; the decoder itself reads the prompt, once a sample.

        Raises:
            CapabilityError: for an answer that is begun already.
        """
        if assistant_prefix:
            raise CapabilityError("a decode method begins answers itself; drop the prefix")
        return Branch(f"d{next(_NUMBER)}", None, (), "", "open", handle=prompt)

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
    ) -> list[list[Branch]]:
        """n decoded answers of every root, each with a seed of its own.

        Raises:
            CapabilityError: for a branch that is no root.
            BudgetError: where the account has nothing left for any of them.
        """
        each = [sampling] * len(branches) if isinstance(sampling, SamplingParams) else [*sampling]
        if len(each) != len(branches):
            raise InputError(f"{len(each)} sampling params for {len(branches)} branches")
        if any(branch.depth for branch in branches):
            raise CapabilityError(
                "a reason method that continues partial solutions decodes by itself; drop the "
                "decode method, or vote over whole answers (self-consistency)"
            )
        account = account or Account()
        wants = [
            (branch, replace(params, seed=params.seed + child))
            for branch, params in zip(branches, each, strict=True)
            for child in range(n)
        ]
        share = self._share(account, len(wants))
        with ThreadPoolExecutor(_TOGETHER if isinstance(self.model, RemoteTree) else 1) as pool:
            jobs = [pool.submit(self._sample, *want, share, account) for want in wants]
        made = [job.result() for job in jobs]
        failed = next((each for each in made if isinstance(each, BudgetError)), None)
        if failed is not None and all(isinstance(each, BudgetError) for each in made):
            raise failed
        children = [
            _cut(branch) if isinstance(each, BudgetError) else each
            for (branch, _), each in zip(wants, made, strict=True)
        ]
        return [children[at * n : (at + 1) * n] for at in range(len(branches))]

    def _share(self, account: Account, samples: int) -> Budget:
        """An even part of what is left, for one sample."""
        room = None if account.meter is None else account.meter.remaining()
        if self.budget is not None or room is None:
            return self.budget or Budget()
        return Budget(tokens=max(1, room // samples))

    def _sample(
        self, root: Branch, params: SamplingParams, budget: Budget, account: Account
    ) -> Branch | BudgetError:
        name, books = f"d{next(_NUMBER)}", Ledger()
        try:
            made = self.decoder.generate(
                self.model, root.handle, budget, params, account=replace(account, ledger=books)
            )
        except BudgetError as error:
            return error
        finally:
            # What the decoder delivers is this sample, and not yet the answer.
            kept = books.delivered
            account.ledger.extend(
                Ledger(replace(e, branch=name) if e.branch in kept else e for e in books)
            )
        return replace(
            _cut(root),
            id=name,
            token_ids=made.token_ids,
            text=made.text,
            finish=made.finish_reason,
            logprobs=made.logprobs,
            handle=made,
        )

    def append(
        self, branch: Branch, tokens: str | Sequence[int], *, account: Account | None = None
    ) -> Branch:
        """Never: samples are whole."""
        raise CapabilityError("a decoded answer is whole and cannot be continued")

    def score(
        self,
        branch: Branch,
        continuations: Sequence[str | Sequence[int]],
        *,
        account: Account | None = None,
    ) -> list[tuple[float, ...]]:
        """Never: there is no state to score from."""
        raise CapabilityError("a decoded answer keeps no state to score from")

    def release(self, branch: Branch) -> None:
        """Nothing is kept."""


def _cut(root: Branch) -> Branch:
    """A sample for which nothing was left."""
    return Branch(f"d{next(_NUMBER)}", root, (), "", "budget", depth=1)
