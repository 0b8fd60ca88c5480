"""Thinking in four formats, written exactly or with slips.

Formats: `direct` thinks nothing; `short` writes one equation per operation; `long` checks every
equation by the inverse operation (`3+4=7;7-4=3;`); `code` writes the chain as a postfix program and
then emulates it, each instruction with the value after it (`3,4+,5*:4+7,5*15;`). Of recall
problems, `long` states every hop twice and `code` does not exist. Problems of several chains open
each with a heading: `[1]`, `[2]`, ..., then `[+]` for the final sum.

A trace is a list of atoms (one token each). An atom may be shown without being trained on, as
wrong results and forced text are: see `outlay.testbeds.reasoner.corpus`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from outlay.errors import InputError
from outlay.testbeds.reasoner.chains import (
    INVERSE,
    Chain,
    ChainProblem,
    apply,
)
from outlay.testbeds.reasoner.facts import LINK, RecallProblem
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, WAIT

Format = Literal["direct", "short", "long", "code"]
AnyProblem = ChainProblem | RecallProblem


@dataclass(frozen=True)
class Atom:
    """One token of a trace.

    Args:
        text: of the token.
        trained: whether the loss covers it.
        done: operations completed once this atom stands, None where it completes none.
        value: the value reached with it, None where it reaches none.
    """

    text: str
    trained: bool = True
    done: int | None = None
    value: str | None = None


@dataclass(frozen=True)
class Noise:
    """Shares of the examples that keep a model in distribution under budgets.

    Args:
        slip: probability per step of a wrong result, noticed at once.
        wait: probability per step of a forced `Wait` after it.
        last_wait: probability of forced `Wait`s after the last step.
        more_waits: probability of another `Wait` after such a `Wait`.
    """

    slip: float = 0.0
    wait: float = 0.0
    last_wait: float = 0.0
    more_waits: float = 0.0


CLEAN = Noise()


def _equation(left: int, sign: str, right: int, result: int) -> list[Atom]:
    return [Atom(text) for text in (str(left), sign, str(right), "=", str(result), ";")]


def _step(
    left: int, sign: str, right: int, result: int, modulus: int, done: int, checked: bool
) -> list[Atom]:
    atoms = _equation(left, sign, right, result)
    atoms[4] = replace(atoms[4], done=done, value=str(result))
    if checked:
        undone = apply(INVERSE[sign], result, right, modulus)
        atoms += _equation(result, INVERSE[sign], right, undone)
    return atoms


def _waits(rng: random.Random, noise: Noise, last: bool) -> int:
    waits = int(rng.random() < (noise.last_wait if last else noise.wait))
    while waits and last and rng.random() < noise.more_waits:
        waits += 1
    return waits


def _chain_atoms(
    chain: Chain, checked: bool, rng: random.Random, noise: Noise, before: int, end: bool
) -> list[Atom]:
    """Steps of one chain; `before` operations are already done, `end` closes the thinking."""
    atoms: list[Atom] = []
    modulus = chain.modulus
    for index, (sign, operand) in enumerate(chain.operations):
        left, result = chain.values[index], chain.values[index + 1]
        step = _step(left, sign, operand, result, modulus, before + index + 1, checked)
        if rng.random() < noise.slip:
            wrong = (result + rng.randrange(1, modulus)) % modulus
            slip = _step(left, sign, operand, wrong, modulus, before + index, checked)
            slip[4] = Atom(str(wrong), trained=False)
            atoms += [*slip, Atom(WAIT)]
        atoms += step
        last = end and index == len(chain.operations) - 1
        for _ in range(_waits(rng, noise, last)):
            atoms += [Atom(WAIT, trained=False), *step]
    return atoms


def _cut_chain(atoms: list[Atom], start: int, rng: random.Random) -> tuple[list[Atom], int]:
    """A prefix of a chain's atoms, and the value that it has reached."""
    kept = atoms[: rng.randrange(len(atoms))]
    values = [atom.value for atom in kept if atom.value is not None]
    return kept, int(values[-1]) if values else start


def _problem_atoms(
    problem: ChainProblem, checked: bool, rng: random.Random, noise: Noise, cut: float
) -> tuple[list[Atom], str]:
    if len(problem.chains) == 1:
        chain = problem.chains[0]
        return _chain_atoms(chain, checked, rng, noise, 0, end=True), problem.answer
    atoms: list[Atom] = []
    stated: list[int] = []
    done = 0
    forced = False
    for number, chain in enumerate(problem.chains, start=1):
        atoms.append(Atom(f"[{number}]", trained=not forced))
        part = _chain_atoms(chain, checked, rng, noise, done, end=False)
        done += len(chain.operations)
        value = chain.value
        forced = rng.random() < cut
        if forced:
            part, value = _cut_chain(part, chain.start, rng)
        atoms += part
        stated.append(value)
    atoms.append(Atom("[+]", trained=not forced))
    join = problem.join(stated)
    atoms += _chain_atoms(join, checked, rng, noise, done, end=True)
    return atoms, str(join.value)


def _code_atoms(chain: Chain) -> list[Atom]:
    program = [str(chain.start)]
    for sign, operand in chain.operations:
        program += [",", str(operand), sign]
    atoms = [Atom(text) for text in [*program, ":"]]
    results = zip(chain.operations, map(str, chain.values[1:]), strict=True)
    for index, ((sign, operand), value) in enumerate(results, start=1):
        atoms += [Atom(str(operand)), Atom(sign), Atom(value, done=index, value=value)]
        atoms.append(Atom(";" if index == len(chain.operations) else ","))
    return atoms


def _recall_atoms(
    problem: RecallProblem, twice: bool, rng: random.Random, noise: Noise
) -> list[Atom]:
    atoms: list[Atom] = []
    for index, (entity, relation, value) in enumerate(problem.hops, start=1):
        texts = [entity[0], entity[1:], ".", relation, "="]
        texts += [value[0], value[1:]] if relation == LINK else [value]
        trusted = index == len(problem.hops) or not problem.astray
        hop = [Atom(text, trained=trusted or at < 5) for at, text in enumerate(texts)]
        hop[-1] = replace(hop[-1], done=index, value=value)
        hop.append(Atom(";"))
        atoms += hop * (2 if twice else 1)
        for _ in range(_waits(rng, noise, last=index == len(problem.hops))):
            atoms += [Atom(WAIT, trained=False), *hop]
    return atoms


def think(
    problem: AnyProblem,
    format: Format,
    rng: random.Random | None = None,
    noise: Noise = CLEAN,
    cut: float = 0.0,
) -> tuple[list[Atom], str]:
    """The thinking of a problem after its format tag, and the answer that it leads to.

    Args:
        problem: to think about.
        format: of the thinking; "direct" thinks nothing.
        rng: source of the noise; needed only where there is noise or `cut`.
        noise: slips and waits.
        cut: probability that a chain of several is cut short.

    Raises:
        InputError: for "code" on a problem that is not a single chain.
    """
    rng = rng if rng is not None else random.Random(0)
    if format == "direct":
        return [], problem.answer
    if format == "code":
        if isinstance(problem, RecallProblem) or len(problem.chains) > 1:
            raise InputError("format 'code' is for single chains; choose direct, short or long")
        return _code_atoms(problem.chains[0]), problem.answer
    if isinstance(problem, RecallProblem):
        return _recall_atoms(problem, format == "long", rng, noise), problem.answer
    return _problem_atoms(problem, format == "long", rng, noise, cut)


def render_trace(problem: AnyProblem, format: Format) -> str:
    """The exact completion in one format: from the format tag to the end-of-text tag."""
    atoms, answer = think(problem, format)
    thinking = "".join(atom.text for atom in atoms)
    return f"<{format}>{thinking}{END_THINK}{ANSWER}{answer}{EOS}"
