"""Facts hidden early in real text, and questions about them at its end.

What a recency window cannot answer: the code of a name, said once near the beginning. Names and
forms of the sentence that are measured are never trained on.

Shapes: N rows, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from outlay.errors import InputError

Split = Literal["train", "heldout"]
DIGITS = 4
_COLOURS = (
    "amber azure black blue bronze copper coral crimson golden green grey indigo ivory jade "
    "lilac maroon olive orange pearl pink purple red scarlet silver teal violet white yellow "
)
COLOURS = tuple(_COLOURS.split())
_ANIMALS = (
    "badger beaver bison camel crane deer dolphin eagle falcon ferret fox gecko heron horse "
    "ibex jackal koala lemur lion lynx marten moose otter owl panda parrot raven salmon seal "
    "swan tiger turtle walrus whale wolf zebra "
)
ANIMALS = tuple(_ANIMALS.split())
FORMS: dict[Split, tuple[str, ...]] = {
    "train": (
        "The code of the {name} is {code}",
        "Access number for {name}: {code}",
        "Note that the {name} has the number {code}",
        "{name} = {code}",
    ),
    "heldout": ("The secret key of the {name} is {code}", "The {name} was given locker {code}"),
}


@dataclass(frozen=True)
class Needle:
    """One fact: what is said of it, and with what the question ends before its code."""

    name: str
    code: str
    form: str

    @property
    def said(self) -> str:
        """The sentence that is hidden."""
        return self.form.format(name=self.name, code=self.code)

    @property
    def asked(self) -> str:
        """The sentence up to its code."""
        return self.form.format(name=self.name, code="").rstrip()


def draw(rng: random.Random, split: Split, count: int, form: str | None = None) -> list[Needle]:
    """`count` facts with different names and codes, all in one form."""
    pairs = [
        f"{colour} {animal}"
        for i, colour in enumerate(COLOURS)
        for j, animal in enumerate(ANIMALS)
        if ((i + j) % 5 == 0) == (split == "heldout")
    ]
    chosen = form or rng.choice(FORMS[split])
    codes = rng.sample(range(10 ** (DIGITS - 1), 10**DIGITS), count)
    return [Needle(n, str(c), chosen) for n, c in zip(rng.sample(pairs, count), codes, strict=True)]


@dataclass(frozen=True)
class Prompt:
    """A prompt of T tokens that ends with a question, and the answer's tokens."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]
    depth: float


def prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[torch.Tensor],
    *,
    length: int,
    seed: int,
    split: Split = "heldout",
    deepest: float = 1 / 3,
) -> Iterator[Prompt]:
    """One prompt a text, of `length` tokens: a fact before the share `deepest` of it, then text,
    then the question.

    Raises:
        InputError: for texts shorter than that.
    """
    rng = random.Random(f"needles:{seed}:{split}")
    for text_T in texts:
        needle = draw(rng, split, 1)[0]
        said = _ids(tokenizer, f"\n{needle.said}.\n")
        asked = _ids(tokenizer, f"\n{needle.asked}")
        answer = _ids(tokenizer, f" {needle.code}")
        room = length - len(said) - len(asked)
        if room < 1 or len(text_T) < room:
            raise InputError(
                f"length={length} with a text of {len(text_T)} tokens; give texts that are as long"
            )
        at = rng.randrange(max(1, int(deepest * length) - len(said)))
        body = text_T[:room].tolist()
        yield Prompt((*body[:at], *said, *body[at:], *asked), tuple(answer), at / length)


def row(
    tokenizer: PreTrainedTokenizerBase, text_T: torch.Tensor, rng: random.Random, facts: int = 4
) -> torch.Tensor:
    """A training row as long as the text: facts in its first half, all asked at its end."""
    needles = draw(rng, "train", facts)
    said = [_ids(tokenizer, f"\n{needle.said}.\n") for needle in needles]
    order = rng.sample(needles, facts)
    asked = [t for n in order for t in _ids(tokenizer, f"\n{n.asked} {n.code}.")]
    room = len(text_T) - sum(map(len, said)) - len(asked)
    if room < facts:
        raise InputError(f"rows of {len(text_T)} tokens are too short for {facts} facts")
    body = text_T[:room].tolist()
    cuts = sorted(rng.randrange(max(1, room // 2)) for _ in said)
    ids: list[int] = []
    for start, end, sentence in zip([0, *cuts], [*cuts, room], [*said, []], strict=True):
        ids += [*body[start:end], *sentence]
    return torch.tensor([*ids, *asked], dtype=torch.long)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found
