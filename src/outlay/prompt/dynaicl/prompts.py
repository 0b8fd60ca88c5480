"""Examples, and the prompts made of them: `P(x, k)` = instruction + k demonstrations + x."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlay.errors import InputError
from outlay.prompt.base import CountTokens

MAX_EXAMPLES = 100_000
MAX_CHARACTERS = 1_000_000  # of one input or answer
_SLOT = re.compile(r"\{(input|answer)\}")


@dataclass(frozen=True)
class Example:
    """An input with its answer.

    Args:
        id: unique among all examples.
        input: the text x; all that a controller sees of it.
        answer: the gold y.
        task: names the pool that its demonstrations come from.
        instruction: of its task, where a batch mixes tasks; it follows the method's own.

    Raises:
        InputError: for an empty id, or a text that is too long.
    """

    id: str
    input: str
    answer: str = ""
    task: str = ""
    instruction: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise InputError("an example has no id; give every example a name of its own")
        texts = (self.input, self.answer, self.instruction)
        if max(map(len, texts)) > MAX_CHARACTERS:
            raise InputError(f"example {self.id!r} is longer than {MAX_CHARACTERS} characters")

    @property
    def read(self) -> str:
        """What a controller sees: instruction and input, never the answer."""
        return f"{self.instruction}\n{self.input}" if self.instruction else self.input


Pools = Mapping[str, Sequence[Example]]  # by task


@dataclass(frozen=True)
class Template:
    """How prompts are written.

    Args:
        instruction: opens the prompt; "" for none.
        demo: one demonstration, with `{input}` and `{answer}`.
        query: the input that is asked about, with `{input}`.
        separator: between instruction, demonstrations and query.
        cache_friendly: more demonstrations are appended, so that prompts share a prefix; else they
            are put in front, so that the best one stays next to the query.

    Raises:
        InputError: for a demonstration or query without its slots.
    """

    instruction: str = ""
    demo: str = "Input: {input}\nOutput: {answer}"
    query: str = "Input: {input}\nOutput:"
    separator: str = "\n\n"
    cache_friendly: bool = False

    def __post_init__(self) -> None:
        if "{input}" not in self.demo or "{answer}" not in self.demo:
            raise InputError(f"demo={self.demo!r}; it must hold {{input}} and {{answer}}")
        if "{input}" not in self.query:
            raise InputError(f"query={self.query!r}; it must hold {{input}}")

    def written(self, example: Example) -> str:
        """One demonstration."""
        return _fill(self.demo, example)

    def prompt(self, x: Example, demos: Sequence[Example]) -> str:
        """The whole prompt; `demos` are in order of rank, the best first."""
        shown = [self.written(demo) for demo in demos]
        if not self.cache_friendly:
            shown.reverse()
        parts = [part for part in (self.instruction, x.instruction) if part]
        return self.separator.join([*parts, *shown, _fill(self.query, x)])


def _fill(pattern: str, example: Example) -> str:
    values = {"input": example.input, "answer": example.answer}
    return _SLOT.sub(lambda match: values[match[1]], pattern)


@dataclass(frozen=True)
class Ladder:
    """The prompts of one input with 0..K demonstrations.

    Args:
        prompts: (K+1,) texts; past the model's window a prompt repeats the longest that fits.
        tokens: (K+1,) their tokens, never falling.
        fits: largest k whose prompt fits the window.
    """

    prompts: tuple[str, ...]
    tokens: tuple[int, ...]
    fits: int


def ladder(
    template: Template,
    x: Example,
    demos: Sequence[Example],
    count: CountTokens,
    max_context: int | None = None,
) -> Ladder:
    """Prompts of `x` with the first 0..K of `demos`.

    Raises:
        InputError: if the prompt without demonstrations is longer than `max_context`.
    """
    prompts = [template.prompt(x, demos[:k]) for k in range(len(demos) + 1)]
    tokens = [count(prompt) for prompt in prompts]
    fits = len(demos)
    if max_context is not None:
        while fits >= 0 and tokens[fits] > max_context:
            fits -= 1
        if fits < 0:
            raise InputError(
                f"input {x.id!r} needs {tokens[0]} tokens without any demonstration, "
                f"max_context={max_context}; shorten it, or raise max_context"
            )
    for k in range(fits + 1, len(demos) + 1):
        prompts[k], tokens[k] = prompts[fits], tokens[fits]
    for k in range(1, len(tokens)):  # a tokenizer that merges across a seam must not earn tokens
        tokens[k] = max(tokens[k], tokens[k - 1])
    return Ladder(tuple(prompts), tuple(tokens), fits)


def check_examples(inputs: Sequence[Example], pools: Pools, K: int) -> None:
    """Refuse what cannot be used.

    Raises:
        InputError: for no inputs, repeated ids, ids that pools and inputs share, a task without
            pool, or a pool with fewer than K examples besides those that repeat an input's text.
    """
    if not inputs:
        raise InputError("the batch is empty; give at least one input")
    size = len(inputs) + sum(map(len, pools.values()))
    if size > MAX_EXAMPLES:
        raise InputError(f"{size} examples; at most {MAX_EXAMPLES} fit, split the workload")
    ids: set[str] = set()
    for x in inputs:
        if x.id in ids:
            raise InputError(f"two inputs have the id {x.id!r}; give each its own")
        ids.add(x.id)
    for pool in pools.values():
        for demo in pool:
            if demo.id in ids:
                raise InputError(
                    f"{demo.id!r} is an input and in its pool, so its answer would leak; "
                    "take it out of one of them"
                )
    texts = {task: Counter(map(same_text, pool)) for task, pool in pools.items()}
    for x in inputs:
        if x.task not in pools:
            raise InputError(f"input {x.id!r} is of task {x.task!r}, which has no pool")
        usable = len(pools[x.task]) - texts[x.task][same_text(x)]
        if usable < K:
            raise InputError(
                f"the pool of task {x.task!r} has {usable} examples that differ from input "
                f"{x.id!r}, K={K}; lower K or add examples"
            )


def same_text(example: Example) -> str:
    """The input without what does not tell near-duplicates apart: case and spaces."""
    return "".join(example.input.split()).casefold()
