"""Thinking in four formats, and the training examples made from it.

Formats: `direct` thinks nothing; `short` writes one equation per operation; `long` checks every
equation by the inverse operation (`3+4=7;7-4=3;`); `code` writes the chain as a postfix program and
then emulates it (`3,4+,5*:7,15;`). Of recall problems, `long` states every hop twice and `code`
does not exist. Problems of several chains open each with a heading (`[1]`, `[2]`, ..., `[+]`).

A trace is a tuple of atoms (one token each). An atom may be shown without being trained on: wrong
results written on purpose, and text that a budget forces. Three kinds of example keep a model in
distribution under budgets:

- *slips*: a step with a wrong result, then `Wait` and the step again, right. The wrong result is
  not trained on; noticing it is.
- *waits*: `Wait` after a right step repeats that step. This `Wait` is not trained on (it is what a
  budget forces), what follows it is.
- *cuts*: the thinking stops at a random token, `</think><answer>` is forced, and the target is the
  true answer where at most one operation is missing (or where nothing was thought, as in `direct`),
  else the value reached so far. A chain inside a problem may be cut the same way, the next heading
  forced; the final sum then adds the value that the cut chain had reached.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from outlay.errors import InputError
from outlay.testbeds.reasoner.chains import (
    INVERSE,
    MAX_CHAINS,
    MODULUS,
    Chain,
    ChainProblem,
    apply,
    sample_problem,
)
from outlay.testbeds.reasoner.facts import LINK, RELATIONS, FactWorld, RecallProblem
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, WAIT, render_prompt

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
    for index, value in enumerate(chain.values[1:], start=1):
        atoms.append(Atom(str(value), done=index, value=str(value)))
        atoms.append(Atom(";" if index == len(chain.operations) else ","))
    return atoms


def _recall_atoms(
    problem: RecallProblem, twice: bool, rng: random.Random, noise: Noise
) -> list[Atom]:
    atoms: list[Atom] = []
    for index, (entity, relation, value) in enumerate(problem.hops, start=1):
        texts = [entity[0], entity[1:], ".", relation, "="]
        texts += [value[0], value[1:]] if relation == LINK else [value]
        hop = [Atom(text) for text in texts]
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


@dataclass(frozen=True)
class Example:
    """One training example: a prompt, and the completion as atoms."""

    prompt: str
    atoms: tuple[Atom, ...]

    @property
    def text(self) -> str:
        """Prompt and completion."""
        return self.prompt + "".join(atom.text for atom in self.atoms)


@dataclass(frozen=True)
class Mix:
    """What is trained on, in which shares.

    Args:
        modulus: of all chains.
        max_operations: longest single chain.
        max_joined: most operations of a problem of several chains.
        recall: share of recall problems.
        joined: share of problems of several chains.
        formats: weight of each format; independent of difficulty, so thinking is longer than needed
            on easy problems.
        untagged: share of direct answers without their tag (what a budget of zero forces).
        cut: share of thinking cut short and answered.
        cut_chain: probability that a chain of several is cut short.
        newline: share of cuts closed by a line break before the end tag.
        primer: examples before all others that are clean and short: tables of arithmetic and facts
            are learnt from these in a fraction of the time that the whole mix takes.
        primer_operations: longest chain of the primer.
        primer_recall: share of recall problems in the primer.
        primer_direct: share of direct answers to a single operation in the primer.
        ramp: examples after them over which the longest problem grows to its full length;
            copying from the question is learnt much sooner on short chains.
        noise: slips and waits.
    """

    modulus: int = MODULUS
    max_operations: int = 12
    max_joined: int = 18
    recall: float = 0.3
    joined: float = 0.15
    formats: tuple[tuple[Format, float], ...] = (
        ("direct", 0.15),
        ("short", 0.3),
        ("long", 0.4),
        ("code", 0.15),
    )
    untagged: float = 0.5
    cut: float = 0.15
    cut_chain: float = 0.15
    newline: float = 0.2
    primer: int = 24000
    primer_operations: int = 4
    primer_recall: float = 0.4
    primer_direct: float = 0.1
    ramp: int = 12000
    noise: Noise = Noise(slip=0.03, wait=0.02, last_wait=0.15, more_waits=0.5)

    def problem(self, rng: random.Random, world: FactWorld, index: int) -> AnyProblem:
        """The random training problem of example `index`; never a held-out one."""
        grown = min(1.0, (index - self.primer) / self.ramp) if self.ramp else 1.0
        start = self.primer_operations
        longest = round(start + (self.max_operations - start) * grown)
        joined_longest = round(3 + (self.max_joined - 3) * grown)
        draw = rng.random()
        if draw < self.recall:
            return self._recall(rng, world)
        if draw < self.recall + self.joined:
            chains = rng.randint(2, min(MAX_CHAINS, (joined_longest + 1) // 2))
            room = (joined_longest - chains + 1) // chains
            counts = [rng.randint(1, max(1, 2 * room - 1)) for _ in range(chains)]
            while sum(counts) + chains - 1 > joined_longest:
                counts[counts.index(max(counts))] -= 1
            return sample_problem(rng, counts, self.modulus, split="train")
        operations = rng.randint(1, longest)
        return sample_problem(rng, [operations], self.modulus, split="train")

    def _first(self, rng: random.Random, world: FactWorld) -> Example:
        """A primer example: clean, short format, or the direct answer of a single operation."""
        draw = rng.random()
        problem: AnyProblem
        if draw < self.primer_recall:
            problem = self._recall(rng, world)
        elif draw < self.primer_recall + self.primer_direct:
            problem = sample_problem(rng, [1], self.modulus, split="train")
            return self._direct(problem, rng)
        else:
            operations = rng.randint(1, self.primer_operations)
            problem = sample_problem(rng, [operations], self.modulus, split="train")
        atoms, answer = think(problem, "short")
        return _example(problem, "short", atoms, answer)

    def _direct(self, problem: AnyProblem, rng: random.Random) -> Example:
        forced = rng.random() < self.untagged
        return _example(problem, None if forced else "direct", [], problem.answer, forced)

    def _recall(self, rng: random.Random, world: FactWorld) -> RecallProblem:
        if rng.random() < 0.5:
            return world.sample(rng, 2, known=True, split="train")
        while True:
            problem = world.problem(rng.choice(world.names), rng.choice(RELATIONS))
            if problem.known:
                return problem

    def example(self, rng: random.Random, world: FactWorld, index: int) -> Example:
        """The random training example `index` of a stream."""
        if index < self.primer:
            return self._first(rng, world)
        problem = self.problem(rng, world, index)
        names = [name for name, _ in self.formats]
        weights = [weight for _, weight in self.formats]
        format = rng.choices(names, weights)[0]
        single = isinstance(problem, ChainProblem) and len(problem.chains) == 1
        if format == "code" and not single:
            format = "short"
        if format == "direct":
            return self._direct(problem, rng)
        atoms, answer = think(problem, format, rng, self.noise, self.cut_chain)
        forced = rng.random() < self.cut
        if forced:
            atoms = atoms[: rng.randrange(len(atoms))]
            answer = _reached(atoms, problem, answer)
            if rng.random() < self.newline:
                atoms.append(Atom("\n", trained=False))
        return _example(problem, format, atoms, answer, forced)


def _example(
    problem: AnyProblem,
    format: Format | None,
    atoms: Sequence[Atom],
    answer: str,
    forced: bool = False,
) -> Example:
    """Prompt, format tag, thinking, end (`forced` ends are not trained on) and answer."""
    tag = [Atom(f"<{format}>")] if format else []
    end = [Atom(END_THINK, trained=not forced), Atom(ANSWER, trained=not forced)]
    parts = (*tag, *atoms, *end, *_answer_atoms(answer), Atom(EOS))
    return Example(render_prompt(problem.question), parts)


def _answer_atoms(answer: str) -> list[Atom]:
    """An entity is two tokens, a number one."""
    parts = [answer] if answer.isdigit() else [answer[0], answer[1:]]
    return [Atom(part) for part in parts]


def _reached(atoms: Sequence[Atom], problem: AnyProblem, full_answer: str) -> str:
    """Target of a cut: see the module's docstring."""
    steps = [(atom.done, atom.value) for atom in atoms if atom.value is not None]
    if not steps:
        return full_answer
    done, value = steps[-1]
    if done is None or value is None or problem.operations - done <= 1:
        return full_answer
    return value


def examples(mix: Mix, world: FactWorld, seed: int) -> Iterator[Example]:
    """An endless, reproducible stream of training examples."""
    rng = random.Random(f"examples:{seed}")
    for index in count():
        yield mix.example(rng, world, index)
