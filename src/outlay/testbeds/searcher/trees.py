"""Hidden leaves: which of some leaves hangs below a given root? And a search that finds out.

The question is a forest of two trees, its edges in random order, the root of one of them, and some
leaves of which exactly one hangs below that root. The thinking is a search: walks from the root
down to a leaf, every child drawn evenly from those that still lead to a leaf not seen before, until
a leaf is one of those asked for. No walk can know which child is right, so the tokens that choose
one are uncertain and all others are not; how many walks are needed is chance. Names are random, so
nothing can be remembered.

No torch.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from outlay.errors import InputError

NAMES = string.ascii_lowercase + string.ascii_uppercase
HELD_OUT = 8  # one question in eight is never trained on
CHOICES = 4
LEAVES = (4, 12)  # fewest and most leaves below the root that is asked about
MAX_LEAVES = 18  # names must suffice
DECOYS = 4  # leaves of the other tree
DEAD, FOUND = "\n", "</think>"

Split = Literal["train", "heldout"]


def split_of(question: str) -> Split:
    """The split that a question belongs to, decided by its own text."""
    return "heldout" if zlib.crc32(question.encode()) % HELD_OUT == 0 else "train"


@dataclass(frozen=True)
class Puzzle:
    """One question about a forest.

    Args:
        edges: (parent, child), in the order in which they are written.
        root: of the tree that matters.
        candidates: leaves; exactly one hangs below `root`.

    Raises:
        InputError: unless the edges are a forest and exactly one candidate hangs below the root.
    """

    edges: tuple[tuple[str, str], ...]
    root: str
    candidates: tuple[str, ...]

    def __post_init__(self) -> None:
        below = [child for _, child in self.edges]
        if len(set(below)) != len(below) or self.root in below:
            raise InputError("the edges are no forest with this root: a node has two parents")
        found = [leaf for leaf in self.leaves if leaf in self.candidates]
        if len(found) != 1 or len(set(self.candidates)) != len(self.candidates):
            raise InputError(
                f"{len(found)} of the candidates {''.join(self.candidates)} hang below "
                f"{self.root}; exactly one must"
            )

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """The children of every inner node."""
        found: dict[str, list[str]] = {}
        for parent, child in self.edges:
            found.setdefault(parent, []).append(child)
        return {parent: tuple(below) for parent, below in found.items()}

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The leaves below the root."""
        return tuple(self._leaves(self.root))

    @property
    def answer(self) -> str:
        """The candidate that hangs below the root."""
        return next(leaf for leaf in self.leaves if leaf in self.candidates)

    @property
    def question(self) -> str:
        """The text of the question: `ab,ac,bd,...?a:dxyz`."""
        written = ",".join(parent + child for parent, child in self.edges)
        return f"{written}?{self.root}:{''.join(self.candidates)}"

    def below(self, node: str) -> frozenset[str]:
        """The leaves at or below a node."""
        return frozenset(self._leaves(node))

    def _leaves(self, node: str) -> Iterator[str]:
        if node not in self.children:
            yield node
        for child in self.children.get(node, ()):
            yield from self._leaves(child)


def parse_question(text: str) -> Puzzle:
    """The puzzle behind a question.

    Raises:
        InputError: for text that is no question.
    """
    forest, mark, asked = text.partition("?")
    root, colon, candidates = asked.partition(":")
    edges = forest.split(",")
    whole = mark and colon and len(root) == 1 and candidates
    names = set(forest.replace(",", "") + root + candidates)
    if not whole or any(len(edge) != 2 for edge in edges) or not names <= set(NAMES):
        raise InputError(f"{text!r} is no question about a forest; write ab,ac?a:bxyz")
    return Puzzle(tuple((edge[0], edge[1]) for edge in edges), root, tuple(candidates))


def sample_puzzle(rng: random.Random, leaves: int, split: Split | None = None) -> Puzzle:
    """A random puzzle; all leaves lie three edges below their roots.

    Args:
        rng: of all choices.
        leaves: below the root that is asked about.
        split: draw until the question belongs to it; None takes any.

    Raises:
        InputError: for a number of leaves out of range.
    """
    if not CHOICES <= leaves <= MAX_LEAVES:
        raise InputError(f"leaves={leaves}; must be between {CHOICES} and {MAX_LEAVES}")
    while True:
        names = rng.sample(NAMES, len(NAMES))
        trees = [_tree(rng, size, names) for size in (leaves, DECOYS)]
        edges = [edge for tree in trees for edge in tree]
        inner = {parent for parent, _ in edges}
        ends = [[child for _, child in tree if child not in inner] for tree in trees]
        candidates = [rng.choice(ends[0]), *rng.sample(ends[1], CHOICES - 1)]
        rng.shuffle(edges)
        rng.shuffle(candidates)
        puzzle = Puzzle(tuple(edges), trees[0][0][0], tuple(candidates))
        if split is None or split_of(puzzle.question) == split:
            return puzzle


def _tree(rng: random.Random, leaves: int, names: list[str]) -> list[tuple[str, str]]:
    """Edges of a tree of depth 3, the root's first; takes its names off `names`."""
    middle = rng.randint(-(-leaves // 3), max(2, leaves // 2))
    sizes = (1, min(middle, rng.randint(2, 3)), middle, leaves)
    levels = [[names.pop() for _ in range(size)] for size in sizes]
    edges = []
    for above, below in pairwise(levels):
        # Every parent gets one child, the others go anywhere.
        parents = above + [rng.choice(above) for _ in range(len(below) - len(above))]
        edges += list(zip(parents, below, strict=True))
    return edges


def walks(rng: random.Random, puzzle: Puzzle) -> list[str]:
    """The tokens of a search: walks that end in `DEAD`, the last one in `FOUND`."""
    seen: set[str] = set()
    tokens: list[str] = []
    while True:
        node = puzzle.root
        tokens.append(node)
        while node in puzzle.children:
            open_ = [c for c in puzzle.children[node] if not puzzle.below(c) <= seen]
            node = rng.choice(open_)
            tokens.append(node)
        seen.add(node)
        if node in puzzle.candidates:
            return [*tokens, FOUND]
        tokens.append(DEAD)


@dataclass(frozen=True)
class Steps:
    """What was written while thinking.

    Args:
        walks: walks that were begun.
        right: moves along an edge, and walks that began at the root.
        moves: all of both.
        repeated: walks that ended in a leaf that had been seen.
    """

    walks: int
    right: int
    moves: int
    repeated: int


def read_steps(puzzle: Puzzle, thinking: str) -> Steps:
    """Judge a written search, move by move."""
    right = moves = repeated = begun = 0
    seen: set[str] = set()
    for walk in thinking.split(FOUND)[0].split(DEAD):
        if not walk:
            continue
        begun += 1
        right += walk[0] == puzzle.root
        moves += len(walk)
        right += sum(b in puzzle.children.get(a, ()) for a, b in pairwise(walk))
        repeated += walk[-1] in seen
        seen.add(walk[-1])
    return Steps(begun, right, moves, repeated)
