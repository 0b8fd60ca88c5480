"""ChainArith: chains of + - * modulo m, their exact solution, and exact labels of written steps.

A chain is read strictly from left to right: `3+4*5` means (3+4)*5. A problem is one chain, or up to
nine chains in parentheses joined by a final sum, `(3+4*5)+(7-2)`. Difficulty is the number of
operations. Multipliers are units modulo m, so every operation has an inverse and the answer is
uniform over the m values: guessing is right with probability 1/m, at any length.

World of the foundation sheets for test-time search and for RL; no torch.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from outlay.errors import InputError

MODULUS = 20
SIGNS = "+-*"
INVERSE = {"+": "-", "-": "+", "*": "/"}
MAX_CHAINS = 5
HELD_OUT = 8  # one question in eight is never trained on

Split = Literal["train", "heldout"]
Operation = tuple[str, int]


def apply(sign: str, left: int, right: int, modulus: int) -> int:
    """`left sign right` modulo `modulus`; "/" multiplies by the inverse of `right`.

    Raises:
        InputError: for an unknown sign, or a division by a number without an inverse.
    """
    if sign == "+":
        return (left + right) % modulus
    if sign == "-":
        return (left - right) % modulus
    if sign == "*":
        return (left * right) % modulus
    if sign != "/":
        raise InputError(f"operation {sign!r}; known are + - * /")
    if math.gcd(right, modulus) != 1:
        raise InputError(f"{right} has no inverse modulo {modulus}; divide by a unit")
    return (left * pow(right, -1, modulus)) % modulus


def split_of(question: str) -> Split:
    """The split that a question belongs to, decided by its own text."""
    return "heldout" if zlib.crc32(question.encode()) % HELD_OUT == 0 else "train"


def multipliers(modulus: int) -> list[int]:
    """Units modulo `modulus` other than 1 (1 alone when there is no other)."""
    return [b for b in range(2, modulus) if math.gcd(b, modulus) == 1] or [1]


@dataclass(frozen=True)
class Chain:
    """One chain: `start`, then operations applied from left to right modulo `modulus`."""

    start: int
    operations: tuple[Operation, ...]
    modulus: int = MODULUS

    @cached_property
    def values(self) -> tuple[int, ...]:
        """Values after 0, 1, ... n operations (n + 1 numbers)."""
        values = [self.start]
        for sign, operand in self.operations:
            values.append(apply(sign, values[-1], operand, self.modulus))
        return tuple(values)

    @property
    def value(self) -> int:
        """Value of the whole chain."""
        return self.values[-1]

    @property
    def text(self) -> str:
        """The chain as it stands in a question."""
        return str(self.start) + "".join(f"{sign}{operand}" for sign, operand in self.operations)


@dataclass(frozen=True)
class ChainProblem:
    """One chain, or several whose values are added.

    Raises:
        InputError: for no chains, more than `MAX_CHAINS`, or chains of unequal modulus.
    """

    chains: tuple[Chain, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.chains) <= MAX_CHAINS:
            raise InputError(f"{len(self.chains)} chains; a problem has 1 to {MAX_CHAINS}")
        if len({chain.modulus for chain in self.chains}) > 1:
            raise InputError("chains of one problem must share a modulus")

    @property
    def modulus(self) -> int:
        """The modulus of all its chains."""
        return self.chains[0].modulus

    @property
    def operations(self) -> int:
        """Operations to do: those in the chains, and one less than chains for the final sum."""
        return sum(len(chain.operations) for chain in self.chains) + len(self.chains) - 1

    @property
    def question(self) -> str:
        """What the model reads, such as `3+4*5=?`."""
        if len(self.chains) == 1:
            return f"{self.chains[0].text}=?"
        return "+".join(f"({chain.text})" for chain in self.chains) + "=?"

    @property
    def answer(self) -> str:
        """The exact result."""
        return str(sum(chain.value for chain in self.chains) % self.modulus)

    def join(self, values: Sequence[int]) -> Chain:
        """The final sum over the chains' `values`, as a chain of its own."""
        return Chain(values[0], tuple(("+", value) for value in values[1:]), self.modulus)


def sample_chain(
    rng: random.Random, operations: int, modulus: int = MODULUS, signs: str = SIGNS
) -> Chain:
    """A random chain; addends lie in 1..m-1, multipliers are units.

    Raises:
        InputError: for operations < 1, modulus outside 3..100, or signs other than + - *.
    """
    if operations < 1:
        raise InputError(f"operations={operations}; a chain has at least 1")
    if not 3 <= modulus <= 100:
        raise InputError(f"modulus={modulus}; must be in 3..100 (one token per number)")
    if not signs or set(signs) - set(SIGNS):
        raise InputError(f"signs={signs!r}; choose among {SIGNS!r}")
    units = multipliers(modulus)
    steps = []
    for _ in range(operations):
        sign = rng.choice(signs)
        steps.append((sign, rng.choice(units) if sign == "*" else rng.randrange(1, modulus)))
    return Chain(rng.randrange(modulus), tuple(steps), modulus)


def sample_problem(
    rng: random.Random,
    operations: Sequence[int],
    modulus: int = MODULUS,
    signs: str = SIGNS,
    split: Split | None = None,
) -> ChainProblem:
    """A random problem with one chain per entry of `operations`, from one split (None: either)."""
    while True:
        chains = tuple(sample_chain(rng, count, modulus, signs) for count in operations)
        problem = ChainProblem(chains)
        if split is None or split_of(problem.question) == split:
            return problem


_CHAIN = re.compile(r"(\d+)((?:[+\-*]\d+)+)")


def parse_question(question: str, modulus: int = MODULUS) -> ChainProblem:
    """The problem behind a question text.

    Raises:
        InputError: if it is not a ChainArith question.
    """
    body = question.removesuffix("=?")
    parts = body[1:-1].split(")+(") if body.startswith("(") else [body]
    chains = []
    for part in parts:
        match = _CHAIN.fullmatch(part)
        if match is None:
            raise InputError(f"{question!r} is not a chain; write such as '3+4*5=?'")
        steps = tuple((s, int(b)) for s, b in re.findall(r"([+\-*])(\d+)", match[2]))
        chains.append(Chain(int(match[1]), steps, modulus))
    return ChainProblem(tuple(chains))


StepKind = Literal["step", "check", "recheck"]


@dataclass(frozen=True)
class StepLabel:
    """The verdict on one written step.

    Args:
        text: the step without its ";".
        kind: "step" continues the chain, "check" undoes it, "recheck" repeats it after "Wait".
        result_right: the result is right for the left side.
        continues: the left side is what the chain asks for, given the values *stated* so far.
        on_path: the stated value is the true value of the chain after as many operations.
    """

    text: str
    kind: StepKind
    result_right: bool
    continues: bool
    on_path: bool

    @property
    def right(self) -> bool:
        """Right iff the result is right for its left side and the left side continues the chain."""
        return self.result_right and self.continues


_PIECE = re.compile(r"\[([1-9+])\]|(Wait)|<[a-z]+>|([^;\[<W]*);")
_EQUATION = re.compile(r"(\d+)([+\-*/])(\d+)=(\d+)")
_CODE = re.compile(r"(\d+)((?:,\d+[+\-*])+):((?:(?:\d+[+\-*])?\d+[,;])*)")


def label_steps(problem: ChainProblem, thinking: str) -> list[StepLabel]:
    """Exact labels of all finished steps of a thinking text (with or without its format tag).

    A `<long>` text is read as step, check, step, check; `<code>` as a postfix program whose
    emulated results, each after its instruction or alone, are the steps; anything else as plain
    steps. An unfinished last step gets no label.
    """
    if thinking.startswith("<code>"):
        return _label_code(problem, thinking.removeprefix("<code>"))
    reader = _Reader(problem, checked=thinking.startswith("<long>"))
    for piece in _PIECE.finditer(thinking):
        heading, wait, step = piece.groups()
        if heading:
            reader.open(heading)
        elif wait:
            reader.waiting = reader.last is not None
        elif step is not None:
            reader.read(step.strip())
    return reader.labels


class _Reader:
    """Follows the state of a chain through the steps written."""

    def __init__(self, problem: ChainProblem, checked: bool) -> None:
        self.problem = problem
        self.checked = checked
        self.labels: list[StepLabel] = []
        self.stated = [chain.start for chain in problem.chains]
        self.block = 0
        self._enter(problem.chains[0], problem.chains[0])

    def _enter(self, chain: Chain, truth: Chain) -> None:
        self.chain, self.truth = chain, truth
        self.value, self.done = chain.start, 0
        self.last: tuple[int, str, int] | None = None
        self.waiting = self.check_due = False

    def open(self, heading: str) -> None:
        """Enter a block, or the final sum over what the blocks have stated."""
        problem = self.problem
        if heading == "+":
            self.block = len(problem.chains)
            truth = problem.join([chain.value for chain in problem.chains])
            self._enter(problem.join(self.stated), truth)
        elif int(heading) <= len(problem.chains):
            self.block = int(heading) - 1
            self._enter(problem.chains[self.block], problem.chains[self.block])

    def read(self, text: str) -> None:
        """Label one step and move on to the value that it states."""
        match = _EQUATION.fullmatch(text)
        if match is None:
            self.labels.append(StepLabel(text, "step", False, False, False))
            return
        left, sign, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        modulus = self.problem.modulus
        unit = sign != "/" or math.gcd(right, modulus) == 1
        result_right = unit and apply(sign, left, right, modulus) == result
        if self.check_due and self.last is not None:
            before, done_sign, operand = self.last
            if (left, sign, right) == (self.value, INVERSE[done_sign], operand):
                self.check_due = False
                agrees = result == before
                self.labels.append(StepLabel(text, "check", result_right, True, agrees))
                return
        kind: StepKind = "recheck" if self.waiting else "step"
        if self.waiting:
            continues = (left, sign, right) == self.last
        else:
            ahead = self.chain.operations[self.done : self.done + 1]
            continues = left == self.value and ahead == ((sign, right),)
            self.done += 1
        true = self.truth.values[min(self.done, len(self.truth.operations))]
        on_path = self.done <= len(self.truth.operations) and result == true
        self.labels.append(StepLabel(text, kind, result_right, continues, on_path))
        self.last = (left, sign, right) if sign in INVERSE else None
        self.value = result
        self.check_due = self.checked
        self.waiting = False
        if self.block < len(self.stated):
            self.stated[self.block] = result


def _label_code(problem: ChainProblem, text: str) -> list[StepLabel]:
    chain = problem.chains[0]
    match = _CODE.match(text)
    if match is None:
        return []
    program = [(item[-1], int(item[:-1])) for item in match[2][1:].split(",")]
    value = int(match[1])
    copied = value == chain.start
    labels = []
    for index, step in enumerate(re.findall(r"[^,;]+", match[3])):
        *named, stated = re.split(r"(?<=[+\-*])", step)
        if index >= min(len(program), len(chain.operations)):
            labels.append(StepLabel(stated, "step", False, False, False))
            continue
        sign, operand = program[index]
        copied = copied and program[index] == chain.operations[index]
        copied = copied and named in ([], [f"{operand}{sign}"])
        result = int(stated)
        right = apply(sign, value, operand, chain.modulus) == result
        on_path = result == chain.values[index + 1]
        labels.append(StepLabel(stated, "step", right, copied, on_path))
        value = result
    return labels
