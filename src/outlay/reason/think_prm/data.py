"""Where verification chains come from: labelled solutions, and a teacher that critiques them.

A `Source` is a problem, the steps of a (partial) solution and a label per step. Labels are fixed as
in the official code: a "bad" before the last "good" was repaired later, so it becomes "good", and
labels read good ... good bad ... bad.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from outlay.errors import InputError
from outlay.models.base import Account, Message, Model, Prompt, SamplingParams
from outlay.reason.think_prm.format import BOXED, Label, Layout

MAX_STEPS = 500


def fix_labels(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Every "bad" before the last "good" becomes "good"."""
    last = max((i for i, label in enumerate(labels) if label == "good"), default=-1)
    return tuple("good" if i <= last else label for i, label in enumerate(labels))


@dataclass(frozen=True)
class Source:
    """A labelled solution.

    Args:
        question: the problem.
        steps: of a solution, or of its beginning.
        labels: one per step; they are fixed, see `fix_labels`.

    Raises:
        InputError: for no steps, more than `MAX_STEPS`, an empty step, unknown labels, or another
            number of labels than steps.
    """

    question: str
    steps: tuple[str, ...]
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise InputError(f"{len(self.steps)} steps; a solution has 1 to {MAX_STEPS}")
        if not all(step.strip() for step in self.steps):
            raise InputError("a step is empty; drop it or join it with the next one")
        unknown = sorted(set(self.labels) - {"good", "bad"})
        if unknown:
            raise InputError(f"labels {unknown} are unknown; every label is 'good' or 'bad'")
        if len(self.labels) != len(self.steps):
            raise InputError(
                f"{len(self.labels)} labels for {len(self.steps)} steps; give one each"
            )
        object.__setattr__(self, "labels", fix_labels(self.labels))

    @cached_property
    def judged(self) -> tuple[Label, ...]:
        """Labels up to and including the first "bad"."""
        return self.labels[: self.labels.index("bad") + 1] if self.bad else self.labels

    @property
    def bad(self) -> bool:
        """Whether a step is wrong."""
        return "bad" in self.labels

    @property
    def first_error(self) -> int | None:
        """Index of the first wrong step."""
        return self.labels.index("bad") if self.bad else None


@dataclass(frozen=True)
class Chain:
    """One verification chain of a teacher.

    Args:
        source: what it judges.
        text: as the teacher wrote it.
        finished: the teacher ended it; False where a limit cut it.
    """

    source: Source
    text: str
    finished: bool = True


class Teacher(Protocol):
    """What writes verification chains."""

    def critique(self, sources: Sequence[Source], n: int) -> list[list[Chain]]:
        """`n` chains for every source."""
        ...


@dataclass(frozen=True)
class ModelTeacher:
    """A reasoning model that is asked for critiques.

    Args:
        model: the teacher.
        layout: of the request; the paper's boxes by default.
        temperature: of sampling; 0.1 in the paper.
        max_tokens: longest chain.
        seed: of sampling.
        account: its books, in the role "judge"; None keeps none.

    Raises:
        InputError: for values out of range.
    """

    model: Model
    layout: Layout = BOXED
    temperature: float = 0.1
    max_tokens: int = 8192
    seed: int = 0
    account: Account | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0:
            raise InputError(
                f"max_tokens={self.max_tokens}, temperature={self.temperature}; need at least 1 "
                "token and a temperature >= 0"
            )

    def critique(self, sources: Sequence[Source], n: int) -> list[list[Chain]]:
        """`n` chains for every source; a chain may stop at the first wrong step."""
        account = (self.account or Account()).at("train", "judge")
        roots = []
        for source in sources:
            text = self.layout.render(source.question, source.steps)
            text += "\nYou may stop at the first incorrect step."
            messages: Prompt = [Message(role="user", content=text)]
            roots.append(self.model.open(messages, account=account))
        sampling = SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed
        )
        rows = self.model.extend(roots, sampling, n, account=account)
        for root in roots:
            self.model.release(root)
        return [
            [Chain(source, branch.text, branch.finish in ("stop", "eos")) for branch in row]
            for source, row in zip(sources, rows, strict=True)
        ]


def sample(
    sources: Sequence[Source], teacher: Teacher, n: int = 4, *, batch: int = 64
) -> list[Chain]:
    """`n` chains of the teacher for every source.

    Raises:
        InputError: for no sources, or n < 1.
    """
    if not sources:
        raise InputError("no labelled solutions to critique; give at least one")
    if n < 1:
        raise InputError(f"n={n} chains per solution; at least 1")
    chains: list[Chain] = []
    for at in range(0, len(sources), batch):
        for row in teacher.critique(sources[at : at + batch], n):
            chains += row
    return chains


def cut_prefixes(
    chains: Sequence[Chain], share: float, layout: Layout, *, seed: int = 0, least: int = 4
) -> list[Chain]:
    """Chains of which a share judges a partial solution.

    A chain of at least `least` steps is cut, with probability `share`, at a random step k that it
    decides: steps and labels up to k, text up to the k-th decision. The problem stays.

    Raises:
        InputError: for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"partial_prefix={share}; a share lies in [0, 1]")
    rng = random.Random(f"prefixes:{seed}")
    result = []
    for chain in chains:
        source, found = chain.source, layout.decisions(chain.text)
        most = min(len(found), len(source.steps) - 1)
        if len(source.steps) < least or rng.random() >= share or most < 1:
            result.append(chain)
            continue
        k = rng.randint(1, most)
        part = Source(source.question, source.steps[:k], source.labels[:k])
        result.append(replace(chain, source=part, text=chain.text[: found[k - 1].close]))
    return result
