"""The world of the in-context testbed: three families of rules that need 0, 1 or about 4 examples.

An item is a pair of symbols and its image, `ab>cd;`. A *rule* maps symbols to symbols, one by one.

- `stored`: one fixed map of the lower-case letters, the same in every sequence. It can be learnt
  by heart: no example is needed.
- `shift`: the letters A to H, moved along their circle by an offset that the sequence decides. One
  example gives it away.
- `lookup`: five signs, each with an image that the sequence decides, one of six that are the sign's
  own. An example shows two of them, so that about four random examples are needed for both signs of
  a question.

The family can be seen in a question; the offset and the images cannot. Some items begin with a
letter that means nothing, so that examples differ in length. No example shows the question's pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from outlay.errors import InputError

Family = Literal["stored", "shift", "lookup"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CIRCLE = "ABCDEFGH"
SIGNS = "!?&%$"
IMAGES = dict(zip(SIGNS, ("012345", "6789KL", "MNOPQR", "STUV@#", "^*+=<~"), strict=True))
FILLERS = "WXYZ"
ARROW, END = ">", ";"
FILLED = 1 / 3  # share of items that begin with a filler
MAX_ITEMS = 9  # of one sequence: eight examples and a question
MIX: tuple[float, ...] = (0.4, 0.2, 0.4)  # shares of the families in a workload

_STORED_SEED = 20230518
_MAX_POOL = 4096


@lru_cache(maxsize=1)
def _stored() -> tuple[tuple[str, str], ...]:
    images = list(LETTERS)
    random.Random(_STORED_SEED).shuffle(images)
    return tuple(zip(LETTERS, images, strict=True))


@dataclass(frozen=True)
class Rule:
    """One map of symbols to symbols.

    Args:
        family: which kind.
        images: (symbol, image) of every symbol of the family.
    """

    family: Family
    images: tuple[tuple[str, str], ...]

    @classmethod
    def draw(cls, rng: random.Random, family: Family) -> Rule:
        """A rule of a family.

        Raises:
            InputError: for an unknown family.
        """
        if family == "stored":
            return cls(family, _stored())
        if family == "shift":
            offset = rng.randrange(len(CIRCLE))
            return cls(family, tuple(zip(CIRCLE, CIRCLE[offset:] + CIRCLE[:offset], strict=True)))
        if family == "lookup":
            return cls(family, tuple((sign, rng.choice(own)) for sign, own in IMAGES.items()))
        raise InputError(f"family={family!r}; known are {', '.join(FAMILIES)}")

    def answer(self, pair: str) -> str:
        """The image of a pair of symbols."""
        table = dict(self.images)
        return "".join(table[symbol] for symbol in pair)

    def pair(self, rng: random.Random, without: str = "") -> str:
        """Two different symbols, other than the pair `without`."""
        symbols = [symbol for symbol, _ in self.images]
        while (pair := "".join(rng.sample(symbols, 2))) == without:
            pass
        return pair


@dataclass(frozen=True)
class Item:
    """A question and its answer.

    Args:
        question: the pair, perhaps after a filler.
        answer: its image.
    """

    question: str
    answer: str

    @property
    def text(self) -> str:
        """The item as an example: `ab>cd;`."""
        return f"{self.question}{ARROW}{self.answer}{END}"


def _item(rng: random.Random, rule: Rule, without: str = "") -> Item:
    pair = rule.pair(rng, without)
    filler = rng.choice(FILLERS) if rng.random() < FILLED else ""
    return Item(filler + pair, rule.answer(pair))


@dataclass(frozen=True)
class Instance:
    """A question with a pool of examples of the same rule.

    Args:
        family: of the rule.
        question: what is asked.
        pool: examples; none shows the question's pair.
    """

    family: Family
    question: Item
    pool: tuple[Item, ...]


def draw_instance(rng: random.Random, family: Family, pool: int) -> Instance:
    """A fresh rule, a question about it, and `pool` examples of it.

    Raises:
        InputError: unless 0 <= pool <= 4096.
    """
    if not 0 <= pool <= _MAX_POOL:
        raise InputError(f"pool={pool}; need 0 <= pool <= {_MAX_POOL}")
    rule = Rule.draw(rng, family)
    question = _item(rng, rule)
    asked = question.question[-2:]
    return Instance(family, question, tuple(_item(rng, rule, asked) for _ in range(pool)))


def families(rng: random.Random, n: int, mix: Sequence[float] = MIX) -> list[Family]:
    """Families of `n` questions, drawn by their shares.

    Raises:
        InputError: unless there is one share >= 0 per family and one is positive.
    """
    if len(mix) != len(FAMILIES) or min(mix) < 0 or not sum(mix) > 0:
        raise InputError(
            f"mix={tuple(mix)}; give {len(FAMILIES)} shares >= 0, one for each of "
            f"{', '.join(FAMILIES)}, not all 0"
        )
    return rng.choices(FAMILIES, weights=mix, k=n)
