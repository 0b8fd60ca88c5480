"""The baselines of thinking budgets: hard truncation, and no thinking at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outlay.budget import Budget
from outlay.decode.base import ThinkResult
from outlay.decode.batching import sample
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import InputError
from outlay.models.base import Account, Generation, Model, Prompt, SamplingParams
from outlay.worst import Shape, Worst

_GREEDY = SamplingParams()


@dataclass(frozen=True)
class PlainDecoder:
    """Generate until the model stops or the budget is spent: hard truncation, nothing forced.

    Args:
        max_tokens: at most this many tokens; None takes the budget's, else the sampling's.

    Raises:
        InputError: if max_tokens is not >= 1.
    """

    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(
                f"max_tokens={self.max_tokens}; must be >= 1, or None for the budget's"
            )

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Continue `prompt` within `budget`; see `Model.generate`."""
        return model.generate(prompt, budget, self._limited(budget, sampling), account=account)

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
    ) -> list[Generation]:
        """`generate` for every prompt in one batched call, each with its own ledger."""
        accounts = [Account.open(budget, method="plain") for _ in prompts]
        roots = [
            model.open(prompt, account=account)
            for prompt, account in zip(prompts, accounts, strict=True)
        ]
        wants = [self._limited(budget, sampling)] * len(roots)
        made = []
        grown = sample(model, roots, wants, accounts, "answer")
        for root, child, account in zip(roots, grown, accounts, strict=True):
            branch = root if child is None else child[0]
            account.ledger.deliver(branch.ids())
            made.append(
                Generation(
                    "" if child is None else branch.text,
                    () if child is None else branch.token_ids,
                    "budget" if child is None else branch.finish,
                    account.ledger,
                    branch.logprobs,
                )
            )
        return made

    def needs(self) -> tuple[str, ...]:
        """Nothing beyond generating."""
        return ()

    def worst(self, shape: Shape) -> Worst:
        """One call."""
        return Worst(shape.prompt, self.room(shape).tokens or 0, 1)

    def room(self, shape: Shape) -> Budget:
        """The answer's."""
        most = shape.answer if self.max_tokens is None else min(self.max_tokens, shape.answer)
        return Budget(tokens=most)

    def _limited(self, budget: Budget | None, sampling: SamplingParams) -> SamplingParams:
        limit = self.max_tokens
        if limit is None and budget is not None and not budget.shapes_prompt:
            limit = budget.tokens
        return sampling if limit is None else replace(sampling, max_tokens=limit)


@dataclass(frozen=True)
class NoThinking:
    """Close the thinking before it begins and answer at once.

    Args:
        think_open, think_close, answer_open, overthink_prefix, newline, max_answer: as in
            `ThinkingBudget`.

    Raises:
        InputError: as `ThinkingBudget` does.
    """

    think_open: str | None = None
    think_close: str | None = None
    answer_open: str | None = None
    overthink_prefix: str | None = None
    newline: str = "\n"
    max_answer: int = 1024

    def __post_init__(self) -> None:
        self.decoder()

    def decoder(self) -> ThinkingBudget:
        """The thinking budget of 0 that this is."""
        return ThinkingBudget(
            max_think=0,
            think_open=self.think_open,
            think_close=self.think_close,
            answer_open=self.answer_open,
            overthink_prefix=self.overthink_prefix,
            newline=self.newline,
            max_answer=self.max_answer,
        )

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> ThinkResult:
        """Answer `prompt` directly, within `budget`."""
        return self.decoder().generate(model, prompt, budget, sampling, account=account)

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
    ) -> list[ThinkResult]:
        """`generate` for every prompt in one batched call, each with its own ledger."""
        return self.decoder().generate_many(model, prompts, budget, sampling)

    def needs(self) -> tuple[str, ...]:
        """As the thinking budget of 0 that this is."""
        return self.decoder().needs()

    def worst(self, shape: Shape) -> Worst:
        """One call, with the closed thinking as forced text."""
        return self.decoder().worst(shape)

    def room(self, shape: Shape) -> Budget:
        """The answer's."""
        return self.decoder().room(shape)
