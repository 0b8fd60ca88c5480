"""The reasoner's world: solutions with exact step labels, and a teacher made of templates.

Solutions are sampled from a model on ChainArith chains; every step's label is exact. The teacher is
not a model: it writes the critique that a careful judge would write, and then is wrong on purpose,
in the ways and shares of `TeacherNoise`. It stands in for a large model where none can be run, and
shows what the filters do to known faults.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from outlay.errors import InputError
from outlay.reason.think_prm.data import Chain, Source
from outlay.reason.think_prm.format import COMPACT, Label
from outlay.testbeds.reasoner.chains import (
    INVERSE,
    MODULUS,
    ChainProblem,
    apply,
    label_steps,
    parse_question,
    sample_problem,
)

_ANSWER = "</think><answer>"
_SLIPS = ("result",) * 4 + ("left", "skip")
_TYPICAL = 4  # judged steps of a chain, for the share of facts that the teacher has wrong


def split(completion: str) -> tuple[str, ...]:
    """A completion of the reasoner cut after every ";", as a question with that delimiter does."""
    parts = completion.removesuffix("<eos>").split(";")
    return tuple(step for step in [*(f"{part};" for part in parts[:-1]), parts[-1]] if step)


def label_solution(problem: ChainProblem, steps: Sequence[str]) -> tuple[Label, ...] | None:
    """Exact labels of a solution in the format "short" or "long", its answer as the last step.

    A step is good while it and all before it are right: right result, and the left side that the
    chain asks for. The answer is good if it is right and at most one operation was left out.

    Returns:
        None for what has no such reading: several chains, another format, steps taken back with
        "Wait", or no answer.
    """
    text = "".join(steps)
    if len(problem.chains) > 1 or "Wait" in text or _ANSWER not in steps[-1]:
        return None
    if len(steps) > 1 and steps[-1].startswith(_ANSWER):
        body = list(steps[:-1])
    else:
        return None
    marked = label_steps(problem, "".join(body))
    if len(marked) != len(body):
        return None
    right = True
    labels: list[Label] = []
    for label in marked:
        right = right and label.right
        labels.append("good" if right else "bad")
    done = sum(label.kind == "step" for label in marked)
    missing = len(problem.chains[0].operations) - done
    answer = steps[-1].removeprefix(_ANSWER).strip()
    labels.append("good" if right and 0 <= missing <= 1 and answer == problem.answer else "bad")
    return tuple(labels)


def expected(problem: ChainProblem, steps: Sequence[str]) -> list[tuple[str, int]]:
    """What every step of a solution should say: (left side with "=", result).

    Each follows from the *stated* value before it; after the last operation it is "=" and the
    value.
    """
    chain = problem.chains[0]
    checked = "".join(steps).startswith("<long>")
    wanted: list[tuple[str, int]] = []
    value, done = chain.start, 0
    undo: tuple[str, int] | None = None  # sign and operand of a step that is to be checked
    for step in steps:
        if undo is not None and not step.startswith(_ANSWER):
            sign, operand = undo
            back = apply(INVERSE[sign], value, operand, chain.modulus)
            wanted.append((f"{value}{INVERSE[sign]}{operand}=", back))
            undo = None
            continue
        if done == len(chain.operations):
            wanted.append(("=", value))
            continue
        sign, operand = chain.operations[done]
        wanted.append((f"{value}{sign}{operand}=", apply(sign, value, operand, chain.modulus)))
        undo = (sign, operand) if checked else None
        value, done = _stated(step, value), done + 1
    return wanted


def _line(number: int, left: str, result: int, step: str, mark: str = "") -> str:
    """One step of a critique: what it should say, less the stated result, and the verdict."""
    stated = _stated(step, -1)
    shown = "" if stated < 0 else f"{stated}={(result - stated) % MODULUS}"
    return f"{number}:{left}{result}-{COMPACT.mark(number)}{shown}{mark};"


def _stated(step: str, default: int) -> int:
    number = step.rstrip(";").rpartition("=" if "=" in step else ">")[2].strip()
    return int(number) if number.isdigit() else default


@dataclass(frozen=True)
class TeacherNoise:
    """Shares of chains that the teacher spoils.

    Args:
        recompute: a recomputation goes wrong. The facts that it has wrong are always the same,
            with the same wrong results, as those of a model are.
        verdict: one verdict is flipped, at a random step.
        format: verdicts are left out.
        ramble: the critique repeats itself and does not end.

    Raises:
        InputError: for a share outside [0, 1].
    """

    recompute: float = 0.15
    verdict: float = 0.10
    format: float = 0.10
    ramble: float = 0.10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value}; a share lies in [0, 1]")

    def mistaken(self, left: str, result: int, modulus: int) -> int:
        """The result that the teacher believes in."""
        share = 1 - (1 - self.recompute) ** (1 / _TYPICAL)
        draw = zlib.crc32(f"fact:{left}".encode())
        if left == "=" or draw % 10_000 >= share * 10_000:
            return result
        return (result + 1 + draw // 10_000 % (modulus - 1)) % modulus


@dataclass(frozen=True)
class TemplatedTeacher:
    """Critiques by template in the compact layout, with known faults.

    Args:
        noise: the faults; `TeacherNoise(0, 0, 0, 0)` has none.
        seed: of the faults.
    """

    noise: TeacherNoise = field(default_factory=TeacherNoise)
    seed: int = 0

    def critique(self, sources: Sequence[Source], n: int) -> list[list[Chain]]:
        """`n` chains for every source, each with its own faults."""
        return [[self._one(source, k) for k in range(n)] for source in sources]

    def _one(self, source: Source, index: int) -> Chain:
        noise = self.noise
        rng = random.Random(f"teacher:{self.seed}:{index}:{source.question}:{source.steps}")
        problem = parse_question(source.question)
        flip, broken, rambles = (
            rng.random() < share for share in (noise.verdict, noise.format, noise.ramble)
        )
        wanted = expected(problem, source.steps)
        flipped = rng.randrange(len(source.judged)) if flip else -1
        lines: list[str] = []
        for at, (step, (left, result)) in enumerate(zip(source.steps, wanted, strict=True)):
            believed = noise.mistaken(left, result, problem.modulus)
            stated = _stated(step, -1)
            wrong = source.judged[at] == "bad" if at < len(source.judged) else False
            # It sees a wrong left side as well as a wrong result.
            good = stated == believed and not (wrong and stated == result)
            if at == flipped:
                good = not good
            mark = "" if broken and rng.random() < 0.5 else "yn"[not good]
            lines.append(_line(at + 1, left, believed, step, mark))
            if not good:
                break
        if rambles:
            loops = rng.randint(2, 4)
            return Chain(source, "".join(lines * loops) + lines[0][:-2], finished=False)
        return Chain(source, "".join(lines))


def practice(n: int, operations: tuple[int, int], *, seed: int = 0) -> list[Chain]:
    """Reading practice for a model that has never read a solution: no verdicts, no labels used.

    Proposed solutions with random slips, and a text that works every step out from the stated value
    before it and the distance of that to the stated result: what a large model can do before it
    learns to verify.
    """
    low, high = operations
    if n < 1 or not 1 <= low <= high:
        raise InputError(f"n={n}, operations={operations}; need n >= 1 and 1 <= low <= high")
    rng = random.Random(f"practice:{seed}")
    chains = []
    for index in range(n):
        problem = sample_problem(rng, [low + index % (high - low + 1)], split="train")
        steps = _slipping(problem, rng)
        wanted = expected(problem, steps)
        lines = [
            _line(at, left, result, step)
            for at, (step, (left, result)) in enumerate(zip(steps, wanted, strict=True), start=1)
        ]
        labels: list[Label] = ["good"] * len(steps)  # not used: there is no verdict
        source = Source(problem.question, steps, tuple(labels))
        chains.append(Chain(source, "".join(lines)))
    return chains


def _slipping(problem: ChainProblem, rng: random.Random, share: float = 0.5) -> tuple[str, ...]:
    """A short solution whose steps slip now and then, in result, left side, or by being left out.

    Every slip is carried on. Results slip most: where repeating a stated result is mostly right,
    nobody learns to work it out.
    """
    chain = problem.chains[0]
    value = chain.start
    steps: list[str] = []
    for sign, operand in chain.operations:
        kind = rng.choice(_SLIPS) if rng.random() < share else ""
        if kind == "skip" and steps:
            continue
        left = rng.randrange(chain.modulus) if kind == "left" else value
        result = apply(sign, left, operand, chain.modulus)
        if kind == "result":
            result = (result + rng.randrange(1, chain.modulus)) % chain.modulus
        steps.append(f"{left}{sign}{operand}={result};")
        value = result
    return (*steps, f"{_ANSWER}{value}")
