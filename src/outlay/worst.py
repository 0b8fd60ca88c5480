"""What a method can cost at most, before it runs: how a server reserves for it.

Tokens as a provider bills them: every call pays for its whole prompt again, whatever is cached.
A local model that keeps its KV spends less. Methods that say nothing cannot run where the worst
case has to be set aside first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from outlay.budget import Budget


@dataclass(frozen=True)
class Worst:
    """Most tokens read and sampled, over all calls."""

    prompt: int = 0
    output: int = 0
    calls: int = 0

    def __add__(self, other: Worst) -> Worst:
        return Worst(
            self.prompt + other.prompt, self.output + other.output, self.calls + other.calls
        )

    def __mul__(self, times: int) -> Worst:
        return Worst(self.prompt * times, self.output * times, self.calls * times)

    @property
    def tokens(self) -> int:
        """Read and sampled."""
        return self.prompt + self.output


@dataclass(frozen=True)
class Shape:
    """One request, as far as its cost goes.

    Args:
        prompt: most tokens of its prompt.
        answer: most tokens of an answer.
        count: the target's token counter.
        decoded: worst case of one answer under a decode method; None decodes plainly.
    """

    prompt: int
    answer: int
    count: Callable[[str], int]
    decoded: Worst | None = None

    @property
    def sample(self) -> Worst:
        """Worst case of one answer."""
        return self.decoded or Worst(self.prompt, self.answer, 1)


@runtime_checkable
class Bounded(Protocol):
    """A decode or reason method that knows its needs and its worst case."""

    def needs(self) -> tuple[str, ...]:
        """What the model must offer: names of `Capabilities`."""
        ...

    def worst(self, shape: Shape) -> Worst:
        """The most that one request can cost."""
        ...


@runtime_checkable
class BoundedDecoder(Bounded, Protocol):
    """A decode method that says how it splits what one answer may cost."""

    def room(self, shape: Shape) -> Budget:
        """The budget of one answer, which `worst` covers."""
        ...


def growing(prompt: int, parts: list[int]) -> Worst:
    """Worst case of calls that each read the prompt and all that was written before.

    Args:
        prompt: of the first call.
        parts: most tokens that each call adds, sampled or forced.
    """
    read, behind = 0, prompt
    for part in parts:
        read += behind
        behind += part
    return Worst(read, sum(parts), len(parts))
