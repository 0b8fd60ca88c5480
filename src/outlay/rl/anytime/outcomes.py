"""What a method and a sampler of answers say to each other. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlay.rl.anytime.cuts import Branch
from outlay.rl.base import Judgement

KEY = "anytime"
"""Column of the rows in which a rollout's `Outcome` stands."""
TREES = "anytime_trees"
"""Column that says whether training rows are trees."""


@dataclass(frozen=True)
class Outcome:
    """One thinking, its cuts, and what was answered there.

    Args:
        thinking: tokens, an end tag included.
        ended: it ended by itself.
        cuts: see `branches`.
        suffixes: the template's tokens after each cut.
        summaries: answers of each cut, A for every budget that shares it.
        rewards: (S, A): of each budget's answers.
        last: the judgement of an answer at the largest budget.
    """

    thinking: tuple[int, ...]
    ended: bool
    cuts: tuple[Branch, ...]
    suffixes: tuple[tuple[int, ...], ...]
    summaries: tuple[tuple[tuple[int, ...], ...], ...]
    rewards: tuple[tuple[float, ...], ...]
    last: Judgement

    @property
    def means(self) -> list[float]:
        """r_s: mean reward at each budget."""
        return [sum(row) / len(row) for row in self.rewards]


@dataclass(frozen=True)
class Fork:
    """Answers that are asked for: at which cut, after which template, how many."""

    row: int
    cut: int
    suffix: tuple[int, ...]
    copies: int


class ForkSampler:
    """A `Sampler` that can also answer from the middle of the last rollouts (see `AnytimeTrainer`).

    Args of `fork`: prompts, thinkings, forks, most new tokens; returns answers of each fork.
    """

    def __call__(self, prompts: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
        """Sample one completion a prompt."""
        raise NotImplementedError

    @property
    def trees(self) -> bool:
        """Training rows may be trees."""
        raise NotImplementedError

    def fork(
        self,
        prompts: Sequence[Sequence[int]],
        thinkings: Sequence[Sequence[int]],
        forks: Sequence[Fork],
        most: int,
    ) -> list[list[list[int]]]:
        """Sample the copies of every fork."""
        raise NotImplementedError
