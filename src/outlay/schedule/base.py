"""Many requests at once: the room's one protocol, in plain Python.

A scheduler looks at the `State` of a server and plans one iteration: which requests decode one
token, which prompt tokens are read, and in which layers. An executor (the engine on a real model,
or the simulator) runs the plan; the state books what came of it. Nothing here needs a model.

Words: a *job* is a request in the server; a *cohort* is the set of prompts (or pieces of prompts)
that are read together; its *stage* is the index of the layer group that it enters next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from outlay.errors import InputError

if TYPE_CHECKING:
    from outlay.schedule.state import State

Status = Literal["waiting", "prefilling", "decoding", "finished"]
End = Literal["eos", "length", "limit", "timeout", "cancelled"]

MAX_PROMPT = 1_000_000
"""Longest prompt of a request, in tokens."""


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Args:
        id: unique within a server.
        prompt: token ids.
        max_new: most tokens to generate.
        arrival: seconds after the start of the trace.
        eos: token ids that end it; empty to ignore the end of text.
        timeout: seconds after its arrival when it is given up, None for never.
        limit: most tokens of prompt and output together, None for no such limit.

    Raises:
        InputError: for an empty or too long prompt, or numbers out of range.
    """

    id: int
    prompt: tuple[int, ...]
    max_new: int
    arrival: float = 0.0
    eos: frozenset[int] = frozenset()
    timeout: float | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        where = f"request {self.id}"
        if not self.prompt:
            raise InputError(f"{where} has an empty prompt; give at least one token")
        if len(self.prompt) > MAX_PROMPT:
            raise InputError(
                f"{where} has {len(self.prompt)} prompt tokens, more than {MAX_PROMPT}; cut it"
            )
        if min(self.prompt) < 0:
            raise InputError(f"{where} has a negative token id; give ids of the vocabulary")
        if self.max_new < 1:
            raise InputError(f"{where}: max_new={self.max_new}; must be at least 1")
        if not (math.isfinite(self.arrival) and self.arrival >= 0):
            raise InputError(f"{where}: arrival={self.arrival}; give seconds >= 0")
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"{where}: timeout={self.timeout}; give seconds > 0, or None")
        if self.limit is not None and self.limit <= len(self.prompt):
            raise InputError(
                f"{where}: limit={self.limit} leaves no room behind {len(self.prompt)} prompt "
                "tokens; raise it or shorten the prompt"
            )


@dataclass(eq=False)
class Job:
    """A request in a server, and how far it has come.

    Args:
        request: what was asked.
        status: which list it is in.
        generated: tokens so far.
        done: tokens whose keys and values are in the cache of every layer.
        passed: how many cohorts a later request got into before it.
        limit: most tokens of prompt and output; starts as the request's, may be lowered.
        end: why it finished.
    """

    request: Request
    status: Status = "waiting"
    generated: list[int] = field(default_factory=list)
    done: int = 0
    passed: int = 0
    limit: int | None = None
    end: End | None = None

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens known: prompt and generated ones."""
        return len(self.request.prompt) + len(self.generated)

    def tokens(self, start: int, count: int) -> list[int]:
        """Known tokens from `start` on."""
        if start + count <= len(self.request.prompt):
            return list(self.request.prompt[start : start + count])
        return [*self.request.prompt, *self.generated][start : start + count]


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens [start, start + count) of a job, to be read together."""

    id: int
    start: int
    count: int


@dataclass(frozen=True)
class Cohort:
    """Prompts that cross the layers together.

    Args:
        chunks: what is read, in order.
        sizes: number of layers of every group, from the first layer up.
        stage: index of the group that is next.
    """

    chunks: tuple[Chunk, ...]
    sizes: tuple[int, ...]
    stage: int = 0

    @property
    def tokens(self) -> int:
        """Prompt tokens of all chunks."""
        return sum(chunk.count for chunk in self.chunks)


@dataclass(frozen=True)
class Plan:
    """What one iteration does.

    Args:
        decode: ids of the jobs that each get one token, through all layers.
        prefill: chunks of the cohort in flight.
        sizes: layers of each group of that cohort.
        stage: index of its first group that runs now.
        span: how many of its groups run now; more than one only where nobody decodes.
        preempt: ids of decoding jobs that give up their blocks, in the order of giving up.
    """

    decode: tuple[int, ...] = ()
    prefill: tuple[Chunk, ...] = ()
    sizes: tuple[int, ...] = ()
    stage: int = 0
    span: int = 1
    preempt: tuple[int, ...] = ()

    @property
    def group(self) -> tuple[int, int]:
        """First layer of the active groups and the layer behind their last; (0, 0) for none."""
        if not self.prefill:
            return (0, 0)
        low = sum(self.sizes[: self.stage])
        return (low, low + sum(self.sizes[self.stage : self.stage + self.span]))

    @property
    def final(self) -> bool:
        """True if the cohort leaves the last layer in this iteration."""
        return self.stage + self.span >= len(self.sizes)

    @property
    def empty(self) -> bool:
        """True if nothing runs."""
        return not (self.decode or self.prefill)


@runtime_checkable
class Scheduler(Protocol):
    """A policy: pure, so that it can be tested without a model."""

    def check(self, layers: int) -> None:
        """Raise `InputError` if the knobs do not fit a model of so many layers."""
        ...

    def plan(self, state: State) -> Plan:
        """The next iteration; `state` is read, never changed."""
        ...


def positive(**knobs: int) -> None:
    """Raise `InputError` naming the first knob that is below 1."""
    for name, value in knobs.items():
        if value < 1:
            raise InputError(f"{name}={value}; must be at least 1")


def even_groups(layers: int, groups: int) -> tuple[int, ...]:
    """Sizes of contiguous groups that differ by at most one, larger groups first.

    Raises:
        InputError: unless 1 <= groups <= layers.
    """
    if not 1 <= groups <= layers:
        raise InputError(f"{groups} groups of {layers} layers; need 1 to {layers} groups")
    size, rest = divmod(layers, groups)
    return tuple(size + (index < rest) for index in range(groups))


def check_sizes(sizes: Sequence[int], layers: int) -> None:
    """Raise `InputError` unless every group has a layer and they sum to `layers`."""
    if not sizes or min(sizes) < 1 or sum(sizes) != layers:
        raise InputError(
            f"group_split={list(sizes)} sums to {sum(sizes)}; give sizes of at least 1 that sum to "
            f"the model's {layers} layers"
        )
