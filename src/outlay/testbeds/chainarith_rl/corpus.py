"""The corpus that the starting policy is trained on.

Every example is one chain, thought about in a style that does not depend on its difficulty: the
policy thinks too long on easy problems and too short on hard ones, which is what training under a
budget should mend. Of n operations, `direct` writes nothing, `short` one equation per operation,
`code` a postfix program and then the equation of each instruction, and `long` every equation with
its check by the inverse operation.

- *Budget tags*: before the style, most examples show `<b1>` ... `<b4>`. A tag doubles the weight of
  one style, so it moves length weakly. The tag is shown, not trained on: the policy never
  writes one unasked.
- *Cuts*: the thinking stops at a random token, `FORCED_END` is shown (not trained on), and the
  target is the true answer. Where too much is missing, the policy learns to be unsure.

The 210 questions of one operation are the table of arithmetic, and are all trained on; of longer
chains, only those of the split "train" are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from outlay.errors import InputError
from outlay.testbeds.reasoner.chains import SIGNS, ChainProblem, Split, sample_problem
from outlay.testbeds.reasoner.corpus import Example
from outlay.testbeds.reasoner.tokenizer import (
    ANSWER,
    BUDGET_TAGS,
    END_THINK,
    EOS,
    render_prompt,
)
from outlay.testbeds.reasoner.traces import Atom, Format, think

MODULUS = 10
MAX_OPS = 8
FORCED_TEXT = "..\n"
"""What a budget writes into the thinking before it closes it."""
FORCED_END = FORCED_TEXT + END_THINK + ANSWER
"""What a budget writes to end the thinking and open the answer; five tokens."""
STYLE_OF: dict[str, Format] = dict(
    zip(BUDGET_TAGS, ("direct", "short", "code", "long"), strict=True)
)
"""The style whose weight a budget tag doubles; ordered by length."""


def think_in(problem: ChainProblem, style: Format) -> list[Atom]:
    """The thinking after its style tag, one atom per token."""
    if style != "code":
        return think(problem, style)[0]
    chain = problem.chains[0]
    program = [str(chain.start)]
    for sign, operand in chain.operations:
        program += [",", str(operand), sign]
    return [Atom(text) for text in [*program, ":"]] + think(problem, "short")[0]


def render_trace(problem: ChainProblem, style: Format) -> str:
    """The exact completion in one style: from its tag to the end-of-text tag."""
    thinking = "".join(atom.text for atom in think_in(problem, style))
    return f"<{style}>{thinking}{END_THINK}{ANSWER}{problem.answer}{EOS}"


@dataclass(frozen=True)
class Mix:
    """What the starting policy is trained on, in which shares.

    Args:
        modulus: of all chains.
        signs: which operations occur.
        ops: weight of each number of operations, from 1 on.
        styles: weight of each style, whatever the difficulty.
        tagged: share of examples that show a budget tag.
        tag_bias: factor on the weight of the style that the tag names.
        cut: share of thinking cut short and answered.
        primer: examples before all others: short thinking about at most `primer_ops` operations,
            and direct answers to one. The table of arithmetic is learnt here.
        primer_ops: longest chain of the primer.
        primer_direct: share of direct answers in the primer.
        ramp: examples after them over which the longest chain grows to its full length.

    Raises:
        InputError: for shares outside [0, 1], or weights that are negative or all zero.
    """

    modulus: int = MODULUS
    signs: str = SIGNS
    ops: tuple[float, ...] = (4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    styles: tuple[tuple[Format, float], ...] = (
        ("direct", 0.2),
        ("short", 0.3),
        ("long", 0.35),
        ("code", 0.15),
    )
    tagged: float = 0.7
    tag_bias: float = 2.0
    cut: float = 0.1
    primer: int = 80000
    primer_ops: int = 3
    primer_direct: float = 0.6
    ramp: int = 8000

    def __post_init__(self) -> None:
        for name in ("tagged", "cut", "primer_direct"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InputError(f"{name}={share}; must be a share in [0, 1]")
        weights = {"ops": self.ops, "styles": tuple(weight for _, weight in self.styles)}
        for name, values in weights.items():
            if not values or min(values) < 0 or not sum(values) > 0:
                raise InputError(f"{name}={values}; give weights >= 0, one of them above 0")
        if not self.tag_bias > 0:
            raise InputError(f"tag_bias={self.tag_bias}; must be positive")
        if not 1 <= self.primer_ops <= len(self.ops):
            raise InputError(f"primer_ops={self.primer_ops}; must be in 1..{len(self.ops)}")

    def example(self, rng: random.Random, index: int) -> Example:
        """The random training example `index` of a stream."""
        if index < self.primer:
            return self._first(rng)
        grown = min(1.0, (index - self.primer) / self.ramp) if self.ramp else 1.0
        longest = round(self.primer_ops + (len(self.ops) - self.primer_ops) * grown)
        ops = rng.choices(range(1, longest + 1), self.ops[:longest])[0]
        tag = rng.choice(BUDGET_TAGS) if rng.random() < self.tagged else None
        weights = [
            weight * (self.tag_bias if tag is not None and STYLE_OF[tag] == style else 1)
            for style, weight in self.styles
        ]
        style = rng.choices([style for style, _ in self.styles], weights)[0]
        return self._write(rng, ops, style, tag, self.cut)

    def _first(self, rng: random.Random) -> Example:
        if rng.random() < self.primer_direct:
            return self._write(rng, 1, "direct", None, 0.0)
        return self._write(rng, rng.randint(1, self.primer_ops), "short", None, 0.0)

    def _write(
        self, rng: random.Random, ops: int, style: Format, tag: str | None, cut: float
    ) -> Example:
        split: Split | None = None if ops == 1 else "train"  # the table is known entirely
        problem = sample_problem(rng, [ops], self.modulus, self.signs, split)
        atoms, answer = think_in(problem, style), problem.answer
        forced = bool(atoms) and rng.random() < cut
        if forced:
            shown = [Atom(text, trained=False) for text in FORCED_TEXT]
            atoms = atoms[: rng.randrange(len(atoms))] + shown
        opened = [Atom(tag, trained=False)] if tag else []
        closed = [Atom(END_THINK, trained=not forced), Atom(ANSWER, trained=not forced)]
        parts = (*opened, Atom(f"<{style}>"), *atoms, *closed, Atom(answer), Atom(EOS))
        return Example(render_prompt(problem.question), parts)


def examples(mix: Mix, seed: int) -> Iterator[Example]:
    """An endless, reproducible stream of training examples."""
    rng = random.Random(f"chainarith-rl:{seed}")
    for index in count():
        yield mix.example(rng, index)
