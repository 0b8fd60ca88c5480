"""Verification: which path of a tree is accepted, so that the text is distributed as the target's.

Recursive rejection sampling (paper, section 3.1 and algorithm 1). A node's children come in the
order in which they were drawn; with probabilities q of the target and p of the draft, child x is
accepted with probability min(1, q(x)/p(x)), else q becomes the normalised [q - p]+, and p the law
of the next draw: p without the tokens drawn (without replacement) or p itself (with replacement).

Shapes: V vocabulary. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from outlay.models.base import FloatArray

if TYPE_CHECKING:
    from outlay.decode.rsd.trees import Tree

Draw = Literal["distinct", "independent", "chosen"]
"""How children were made: drawn without replacement, with it, or chosen and not drawn at all."""
Uniform = Callable[[], float]
"""Fresh numbers in [0, 1), independent of the drafting."""


def rounds(
    target_V: FloatArray, draft_V: FloatArray | None, children: Sequence[int], draw: Draw
) -> Iterator[tuple[float, FloatArray]]:
    """For each child of a node, in turn, if all before it were rejected.

    Args:
        target_V: probabilities of the target.
        draft_V: probabilities that the children were drawn from; unused for "chosen".
        children: tokens in the order in which they were drawn.
        draw: how the children were made.

    Yields:
        The child's acceptance probability, and the target's law once it is rejected, too.
    """
    left_V, next_V = target_V, draft_V
    for token in children:
        if next_V is None or draw == "chosen":
            drawn_V = np.zeros_like(left_V)
            drawn_V[token] = 1.0
        else:
            drawn_V = next_V
        mine, theirs = float(left_V[token]), float(drawn_V[token])
        chance = min(1.0, mine / theirs) if theirs > 0 else float(mine > 0)
        rest_V = np.maximum(left_V - drawn_V, 0.0)
        total = float(rest_V.sum())
        # Nothing left means that the acceptance was 1 but for rounding: the law stays.
        left_V = rest_V / total if total > 0 else left_V
        if draw == "distinct" and next_V is not None:
            next_V = next_V.copy()
            next_V[token] = 0.0
            mass = float(next_V.sum())
            next_V = next_V / mass if mass > 0 else next_V
        yield chance, left_V


def accept(
    target_V: FloatArray,
    draft_V: FloatArray | None,
    children: Sequence[int],
    uniform: Uniform,
    draw: Draw = "distinct",
) -> tuple[int | None, FloatArray]:
    """The place of the accepted child, or None; and then the law of the token to emit instead.

    Args:
        target_V, draft_V, children, draw: as in `rounds`.
        uniform: fresh random numbers.
    """
    left_V = target_V
    for place, (chance, after_V) in enumerate(rounds(target_V, draft_V, children, draw)):
        if uniform() < chance:
            return place, left_V
        left_V = after_V
    return None, left_V


def walk(
    tree: Tree, law: Callable[[int], FloatArray], uniform: Uniform, draw: Draw
) -> tuple[list[int], int]:
    """Descend from the root until all children of a node are rejected, or it has none.

    Args:
        tree: the drafts.
        law: what the target says after a node, probabilities of V tokens.
        uniform: fresh random numbers.
        draw: how children were made.

    Returns:
        The accepted nodes, and the token of the target that follows them.
    """
    node = 0
    path: list[int] = []
    while True:
        children = tree.children[node]
        tokens = [tree.tokens[child] for child in children]
        place, left_V = accept(law(node), tree.law(node), tokens, uniform, draw)
        if place is None:
            return path, choose(left_V, uniform())
        node = children[place]
        path.append(node)


def choose(law_V: FloatArray, u: float) -> int:
    """The token at which the distribution function passes `u`; one of zero probability never."""
    cdf_V = law_V.cumsum()
    at = int(np.searchsorted(cdf_V, u * cdf_V[-1], side="right"))
    return at if at < len(law_V) else int(law_V.nonzero()[0][-1])
