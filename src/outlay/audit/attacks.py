"""Ways to inflate a bill, against which audits are measured.

An attack adds `round(ir * m)` tokens to a reasoning of m. The numbering of the paper's adaptive
inflations is not mapped onto these. Whole blocks of padding go to block boundaries, so that the own
blocks stay as they were: what suits the attacker best.

Shapes: F foreign blocks, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from outlay.audit.fingerprints import Vectors
from outlay.errors import InputError

Place = Literal["end", "uniform", "interleaved"]
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Hidden:
    """A reasoning and what is visible around it, as token texts."""

    tokens: Texts
    answer: Texts
    prompt: Texts = ()


@dataclass(frozen=True)
class World:
    """What an attacker has.

    Args:
        block: S.
        vocabulary: texts of all tokens.
        foreign: whole blocks of other reasonings.
        foreign_FD: their embeddings.
        fill: a small language model that continues a reasoning by n tokens; None for none.
    """

    block: int
    vocabulary: Sequence[str] = field(default=(), repr=False)
    foreign: Sequence[Texts] = field(default=(), repr=False)
    foreign_FD: Vectors | None = field(default=None, repr=False)
    fill: Callable[[Hidden, int], Sequence[str]] | None = None


@dataclass(frozen=True)
class Padded:
    """What the provider commits to.

    Args:
        tokens: own and injected, in order.
        injected: which are.
        billed: tokens on the bill.
        swapped: whether injected blocks state the answer's embedding as theirs.
    """

    tokens: Texts
    injected: tuple[bool, ...]
    billed: int
    swapped: bool = False

    def false_blocks(self, block: int) -> list[bool]:
        """Whether each block has only injected tokens."""
        starts = range(0, len(self.tokens), block)
        return [all(self.injected[at : at + block]) for at in starts]


def pad(
    attack: str,
    hidden: Hidden,
    ir: float,
    world: World,
    seed: int,
    *,
    place: Place = "end",
    answer_D: Vectors | None = None,
) -> Padded:
    """A reasoning inflated by one attack; at IR 0 it is the reasoning itself.

    Args:
        attack: a name of `ATTACKS`.
        hidden: the reasoning.
        ir: injected over true tokens.
        world: what the attacker has.
        seed: of its choices.
        place: where the padding goes.
        answer_D: the answer's embedding, for "nearest_text".

    Raises:
        InputError: for an unknown attack or place, a negative rate, an empty reasoning, or a world
            that lacks what the attack needs.
    """
    if attack not in ATTACKS:
        raise InputError(f"attack {attack!r}; choose {', '.join(ATTACKS)}")
    if place not in get_args(Place):
        raise InputError(f"place={place!r}; choose {', '.join(get_args(Place))}")
    if not 0 <= ir <= 100:
        raise InputError(f"ir={ir}; between 0 and 100")
    total = len(hidden.tokens)
    if not total:
        raise InputError("a reasoning without tokens cannot be inflated")
    n = round(ir * total)
    if attack == "naive_count" or n == 0:
        return Padded(hidden.tokens, (False,) * total, total + n)
    rng = np.random.default_rng(seed)
    extra = tuple(_MADE[attack](hidden, n, world, rng, answer_D))
    tokens, injected = _insert(hidden.tokens, extra, world.block, place, rng)
    return Padded(tokens, injected, total + n, attack == "embed_swap")


def _insert(
    own: Texts, extra: Texts, block: int, place: Place, rng: np.random.Generator
) -> tuple[Texts, tuple[bool, ...]]:
    """Whole blocks of padding among the own ones; remainders come last."""
    mine = [own[at : at + block] for at in range(0, len(own), block)]
    theirs = [extra[at : at + block] for at in range(0, len(extra), block)]
    rest = [(mine.pop(), False)] if len(mine[-1]) < block else []
    rest += [(theirs.pop(), True)] if len(theirs[-1]) < block else []
    kinds = np.array([False] * len(mine) + [True] * len(theirs))
    if place == "uniform":
        rng.shuffle(kinds)
    elif place == "interleaved":
        own_at = (np.arange(len(mine)) + 0.5) / max(1, len(mine))
        their_at = (np.arange(len(theirs)) + 0.5) / max(1, len(theirs))
        kinds = kinds[np.argsort(np.concatenate([own_at, their_at]), kind="stable")]
    left, right = iter(mine), iter(theirs)
    order = [(next(right), True) if kind else (next(left), False) for kind in kinds] + rest
    tokens = tuple(text for piece, _ in order for text in piece)
    return tokens, tuple(kind for piece, kind in order for _ in piece)


def _random_vocab(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    _needs(world.vocabulary, "random_vocab", "a vocabulary")
    return [world.vocabulary[i] for i in rng.integers(len(world.vocabulary), size=n)]


def _repeat_last(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    return [hidden.tokens[-1]] * n


def _shuffle_own(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    pool = hidden.tokens + hidden.answer + hidden.prompt
    return [pool[i] for i in rng.integers(len(pool), size=n)]


def _duplicate_blocks(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    whole = len(hidden.tokens) // world.block * world.block or len(hidden.tokens)
    return [hidden.tokens[i % whole] for i in range(n)]


def _foreign_text(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    _needs(world.foreign, "foreign_text", "foreign blocks")
    order = rng.permutation(len(world.foreign))
    return _fill_from([world.foreign[i] for i in order], n)


def _nearest_text(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    _needs(world.foreign, "nearest_text", "foreign blocks")
    if world.foreign_FD is None or answer_D is None:
        raise InputError("nearest_text needs embeddings of foreign blocks and of the answer")
    order = np.argsort(-(world.foreign_FD @ answer_D), kind="stable")
    return _fill_from([world.foreign[i] for i in order], n)


def _lm_filler(
    hidden: Hidden, n: int, world: World, rng: np.random.Generator, answer_D: Vectors | None
) -> Sequence[str]:
    if world.fill is None:
        raise InputError("lm_filler needs a model that continues the reasoning")
    made = tuple(world.fill(hidden, n))
    if len(made) != n:
        raise InputError(f"the filler made {len(made)} tokens of {n}")
    return made


def _fill_from(blocks: Sequence[Texts], n: int) -> list[str]:
    found: list[str] = []
    while len(found) < n:
        for block in blocks:
            found.extend(block)
            if len(found) >= n:
                break
    return found[:n]


def _needs(held: Sequence[object], attack: str, what: str) -> None:
    if not held:
        raise InputError(f"{attack} needs {what}")


_Made = Callable[[Hidden, int, World, np.random.Generator, "Vectors | None"], Sequence[str]]
_MADE: dict[str, _Made] = {
    "random_vocab": _random_vocab,
    "repeat_last": _repeat_last,
    "shuffle_own": _shuffle_own,
    "duplicate_blocks": _duplicate_blocks,
    "foreign_text": _foreign_text,
    "nearest_text": _nearest_text,
    "lm_filler": _lm_filler,
    "embed_swap": _shuffle_own,
}
ATTACKS = ("naive_count", *_MADE)
