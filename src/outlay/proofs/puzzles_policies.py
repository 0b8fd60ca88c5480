"""Scripted reasoners for the proof of the puzzles: policies with known errors, no models.

A policy knows the shortest solution and spoils it on purpose, so that every figure of the harness
has a true value to be compared with. It speaks through the `Model` protocol, is cut at its token
limit like a model, and counts tokens as words and signs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.evals.puzzles.base import Puzzle
from outlay.evals.puzzles.parsing import print_moves
from outlay.evals.puzzles.tasks import Puzzles
from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Chunk,
    Finish,
    Generation,
    Prompt,
    SamplingParams,
)

_TOKEN = re.compile(r"\w+|[^\w\s]")
Policy = Callable[[Puzzle, Random], tuple[str, str]]
"""From an instance, thinking and answer."""


def count(text: str) -> int:
    """Words and signs."""
    return sum(1 for _ in _TOKEN.finditer(text))


def cut(text: str, tokens: int) -> str:
    """The first `tokens` tokens."""
    for index, match in enumerate(_TOKEN.finditer(text)):
        if index == tokens:
            return text[: match.start()]
    return text


class ScriptedReasoner:
    """A policy behind the `Model` protocol; it answers the prompts of one task.

    Args:
        policy: what it says.
        task: whose prompts it knows.
        seed, samples: as given to `collect`.
    """

    def __init__(self, policy: Policy, task: Puzzles, *, seed: int, samples: int) -> None:
        self.policy = policy
        self.name = "scripted"
        self.context_length = 1 << 30
        self.capabilities = Capabilities(seed=True)
        self.takes_chat = False
        self._known = {
            task.prompt(problem, ""): task.instance(problem.meta["n"], problem.meta["variant"])
            for problem in task.sample(seed, samples * len(task.levels))
        }

    def count(self, text: str) -> int:
        """Words and signs."""
        return count(text)

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        account: Account | None = None,
    ) -> Generation:
        """Say what the policy says, up to the limit.

        Raises:
            InputError: for a prompt of another task.
        """
        if not isinstance(prompt, str) or prompt not in self._known:
            raise InputError("a scripted reasoner knows the prompts of its own task only")
        account = account or Account.open(budget)
        thinking, answer = self.policy(self._known[prompt], Random(sampling.seed))
        whole = f"<think>{thinking}</think>\n{answer}" if thinking else answer
        hold = account.hold([sampling.max_tokens])
        text = cut(whole, hold.limits[0])
        finish: Finish = "eos" if text == whole else "length"
        size = count(text)
        account.settle(hold, size)
        branch = f"{sampling.seed}:{len(account.ledger)}"
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=count(prompt),
            generated=size,
            branch=branch,
            method=account.method,
        )
        account.ledger.deliver([branch])
        return Generation(text, (0,) * size, finish, account.ledger)

    def stream(self, prompt: Prompt, *args: Any, **knobs: Any) -> Iterator[Chunk]:
        """In one piece."""
        made = self.generate(prompt, *args, **knobs)
        yield Chunk(made.text, made)

    def open(self, prompt: Prompt, assistant_prefix: str = "", **knobs: Any) -> Branch:
        """Not offered."""
        raise CapabilityError("a scripted reasoner has no branches; use generate")

    def extend(self, branches: Sequence[Branch], *args: Any, **knobs: Any) -> list[list[Branch]]:
        """Not offered."""
        raise CapabilityError("a scripted reasoner has no branches; use generate")

    def append(self, branch: Branch, tokens: Any, **knobs: Any) -> Branch:
        """Not offered."""
        raise CapabilityError("a scripted reasoner has no branches; use generate")

    def score(self, branch: Branch, continuations: Any, **knobs: Any) -> list[tuple[float, ...]]:
        """Not offered."""
        raise CapabilityError("a scripted reasoner cannot score; use generate")

    def release(self, branch: Branch) -> None:
        """Nothing to drop."""


def spoil(puzzle: Puzzle, error: float, random: Random) -> list[list[Any]]:
    """The shortest solution; each move is replaced, with chance `error`, by an illegal one."""
    moves: list[list[Any]] = [list(move) for move in puzzle.solution()]
    for move in moves:
        if random.random() < error:
            move[-1] = move[-2]  # from == to
    return moves


def slips(error: float) -> Policy:
    """Prints the whole list, each move wrong with chance `error`; no thinking."""

    def say(puzzle: Puzzle, random: Random) -> tuple[str, str]:
        return "", print_moves(spoil(puzzle, error, random))

    return say


def by_level(rates: dict[int, float], thinking: int) -> Policy:
    """Right with the chance of its level, after `thinking` words."""

    def say(puzzle: Puzzle, random: Random) -> tuple[str, str]:
        right = random.random() < rates[puzzle.n]
        moves = spoil(puzzle, 0.0 if right else 1.0, random)
        return " ".join(["hm"] * thinking), print_moves(moves)

    return say


def effortful(words: dict[int, int], gives_up: dict[int, float]) -> Policy:
    """Thinks a level's number of words, give or take a fifth; or gives up after a tenth."""

    def say(puzzle: Puzzle, random: Random) -> tuple[str, str]:
        size = round(words[puzzle.n] * random.uniform(0.8, 1.2))
        if random.random() < gives_up[puzzle.n]:
            return " ".join(["no"] * max(1, size // 10)), "I give up."
        return " ".join(["hm"] * size), print_moves(spoil(puzzle, 0.0, random))

    return say


@dataclass(frozen=True)
class Placed:
    """A candidate in a planned trace.

    Args:
        words: words of filler before it.
        right: whether it solves the puzzle.
        repeated: it repeats the one before.
    """

    words: int
    right: bool
    repeated: bool = False


def planned(puzzle: Puzzle, plan: Sequence[Placed], tail: int) -> tuple[str, list[float]]:
    """A trace with candidates at known places, and the positions of their ends.

    Repeated ones have no position. Wrong ones differ from each other: the k-th one has its last k
    moves spoiled.
    """
    parts: list[str] = []
    ends: list[int] = []
    at, wrong, last = 0, 0, ""
    for item in plan:
        filler = " ".join(["then"] * item.words)
        if not item.repeated:
            moves: list[list[Any]] = [list(move) for move in puzzle.solution()]
            if not item.right:
                wrong += 1
                for move in moves[-wrong:]:
                    move[-1] = move[-2]
            last = print_moves(moves)
        parts += [filler, last]
        at += item.words + count(last)
        if not item.repeated:
            ends.append(at)
    parts.append(" ".join(["so"] * tail))
    return " ".join(parts), [end / (at + tail) for end in ends]
