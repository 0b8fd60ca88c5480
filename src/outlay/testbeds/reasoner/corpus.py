"""The training corpus: which problems, in which formats, with which disturbances.

Four kinds of example keep a model in distribution under budgets. What is wrong on purpose, and what
a budget would force, is shown to the model but not trained on:

- *slips*: a step with a wrong result, then `Wait` and the step again, right. The wrong result is
  not trained on; noticing it is.
- *waits*: `Wait` after a right step repeats that step. This `Wait` is not trained on (it is what a
  budget forces), what follows it is.
- *detours*: the first of two hops states a wrong entity (not trained on), and the second goes on
  from there. Without them the few two-hop questions are learnt by heart, thinking unread.
- *cuts*: the thinking stops at a random token, `</think><answer>` is forced, and the target is the
  true answer where at most one operation is missing (or where nothing was thought, as in `direct`),
  else the value reached so far. A chain inside a problem may be cut the same way, the next heading
  forced; the final sum then adds the value that the cut chain had reached.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from outlay.testbeds.reasoner.chains import MAX_CHAINS, MODULUS, ChainProblem, sample_problem
from outlay.testbeds.reasoner.facts import RELATIONS, FactWorld, RecallProblem
from outlay.testbeds.reasoner.tokenizer import ANSWER, END_THINK, EOS, render_prompt
from outlay.testbeds.reasoner.traces import AnyProblem, Atom, Format, Noise, think

NOISE = Noise(slip=0.03, wait=0.02, last_wait=0.15, more_waits=0.5)


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
        detour: share of two-hop recall that is led astray and follows.
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
    joined: float = 0.2
    detour: float = 0.4
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
    noise: Noise = NOISE

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
            problem = world.sample(rng, 2, known=True, split="train")
            astray = self.detour > 0 and rng.random() < self.detour
            return world.led_astray(problem, rng) if astray else problem
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
        astray = isinstance(problem, RecallProblem) and problem.astray
        if format == "direct" and astray:
            format = "short"  # there is no thinking to be led astray by
        if format == "direct":
            return self._direct(problem, rng)
        atoms, answer = think(problem, format, rng, self.noise, self.cut_chain)
        forced = rng.random() < self.cut and not astray
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
