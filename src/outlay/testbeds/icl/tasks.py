"""The in-context testbed as a task of `outlay compare`, and as a workload for DynaICL. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from outlay.errors import InputError
from outlay.evals.base import Kind, Problem
from outlay.prompt.dynaicl.prompts import Example
from outlay.testbeds.icl.world import (
    ARROW,
    END,
    FAMILIES,
    MAX_ITEMS,
    MIX,
    Family,
    Instance,
    draw_instance,
    families,
)

DEMO = "{input}" + ARROW + "{answer}" + END
QUERY = "{input}" + ARROW


@dataclass(frozen=True)
class InContext:
    """Questions about rules that are hidden in their examples; the context holds the examples.

    A third-party model can be asked as well: it sees the same lines.

    Args:
        demonstrations: examples in the context, one after the other.
        mix: shares of the families: stored, shift, lookup.

    Raises:
        InputError: for values out of range.
    """

    demonstrations: int = MAX_ITEMS - 1
    mix: tuple[float, float, float] = (MIX[0], MIX[1], MIX[2])
    name: str = field(default="icl", init=False)
    kind: Kind = field(default="generation", init=False)
    metric: str = field(default="accuracy", init=False)
    higher_is_better: bool = field(default=True, init=False)
    chat: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.demonstrations < MAX_ITEMS:
            raise InputError(
                f"demonstrations={self.demonstrations}; need 1 to {MAX_ITEMS - 1}, which is what "
                "the model was trained on"
            )
        families(random.Random(0), 1, self.mix)

    def sample(self, seed: int, n: int) -> Sequence[Problem]:
        """`n` problems, each about a rule of its own."""
        problems = []
        for index in range(n):
            rng = random.Random(f"icl:{seed}:{index}")
            (family,) = families(rng, 1, self.mix)
            made = draw_instance(rng, family, self.demonstrations)
            problems.append(
                Problem(
                    id=f"icl-{seed}-{index}",
                    question=made.question.question,
                    context="".join(item.text for item in made.pool),
                    answer=made.question.answer,
                    meta={"family": family},
                )
            )
        return problems

    def prompt(self, problem: Problem, context: str) -> str:
        """Examples, then the question and its arrow."""
        return context + problem.question + ARROW

    def verify(self, problem: Problem, answer: str) -> float:
        """1 if what stands before the end of the item is the answer."""
        return float(answer.split(END)[0].strip() == problem.answer)


@dataclass(frozen=True)
class Batch:
    """Inputs with a pool each, as DynaICL takes them.

    Args:
        inputs: (N,) with gold answers; each is of a task of its own.
        pools: by task.
        families: (N,) which family each is of.
    """

    inputs: tuple[Example, ...]
    pools: dict[str, tuple[Example, ...]]
    families: tuple[Family, ...]


def workload(
    seed: int, n: int, *, mix: Sequence[float] = MIX, pool: int = 16, name: str = "icl"
) -> Batch:
    """`n` inputs about rules of their own, each with a pool of `pool` examples.

    Raises:
        InputError: unless 1 <= n <= 20000, or for shares that are none.
    """
    if not 1 <= n <= 20_000:
        raise InputError(f"n={n}; need 1 <= n <= 20000")
    inputs, pools, kinds = [], {}, []
    for index in range(n):
        rng = random.Random(f"{name}:{seed}:{index}:{pool}")
        (family,) = families(rng, 1, mix)
        made = draw_instance(rng, family, pool)
        key = f"{name}-{seed}-{index}"
        inputs.append(Example(key, made.question.question, made.question.answer, key))
        pools[key] = _pool(key, made)
        kinds.append(family)
    return Batch(tuple(inputs), pools, tuple(kinds))


def _pool(key: str, made: Instance) -> tuple[Example, ...]:
    return tuple(
        Example(f"{key}-demo-{j}", item.question, item.answer, key)
        for j, item in enumerate(made.pool)
    )


__all__ = ["DEMO", "FAMILIES", "QUERY", "Batch", "InContext", "workload"]
