"""Recursive rejection sampling, checked by enumerating every draw and every decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.decode.rsd.trees import Tree
from outlay.decode.rsd.verify import Draw, accept, choose, rounds, walk
from outlay.models.base import FloatArray

Laws = dict[tuple[int, ...], FloatArray]


def laws(vocabulary: int, depth: int, seed: int, zeros: float = 0.0) -> Laws:
    """Random tables over all histories shorter than `depth`; some tokens are impossible."""
    rng = np.random.default_rng(seed)
    found = {}
    for size in range(depth):
        for history in product(range(vocabulary), repeat=size):
            law_V = rng.dirichlet(np.full(vocabulary, 0.7))
            law_V[rng.random(vocabulary) < zeros] = 0.0
            law_V[int(rng.integers(vocabulary))] += 0.1
            found[history] = law_V / law_V.sum()
    return found


def draws(law_V: FloatArray, k: int, draw: Draw) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every ordered sample of k children and its probability, the slow way."""
    support = [int(token) for token in np.flatnonzero(law_V)]
    if draw == "independent":
        for sample in product(support, repeat=k):
            yield sample, float(np.prod(law_V[list(sample)]))
        return
    for sample in permutations(support, min(k, len(support))):
        chance, left = 1.0, 1.0
        for token in sample:
            chance *= law_V[token] / left
            left -= law_V[token]
        yield sample, float(chance)


def emitted(target_V: FloatArray, draft_V: FloatArray, k: int, draw: Draw) -> FloatArray:
    """The exact law of the token that one node emits."""
    out_V = np.zeros_like(target_V)
    for children, chance in draws(draft_V, k, draw):
        reached, left_V = chance, target_V
        for token, (accepted, after_V) in zip(
            children, rounds(target_V, draft_V, children, draw), strict=True
        ):
            out_V[token] += reached * accepted
            reached, left_V = reached * (1 - accepted), after_V
        out_V += reached * left_V
    return out_V


def hit(target_V: FloatArray, draft_V: FloatArray, k: int, draw: Draw) -> float:
    """The probability that some child is accepted."""
    total = 0.0
    for children, chance in draws(draft_V, k, draw):
        missed = 1.0
        for accepted, _ in rounds(target_V, draft_V, children, draw):
            missed *= 1 - accepted
        total += chance * (1 - missed)
    return total


def trees(
    draft: Laws, branching: Sequence[int], draw: Draw, history: tuple[int, ...] = ()
) -> Iterator[tuple[dict[tuple[int, ...], tuple[int, ...]], float]]:
    """Every tree as {history: children}, and its probability."""
    if not branching:
        yield {}, 1.0
        return
    for children, chance in draws(draft[history], branching[0], draw):
        below = [
            list(trees(draft, branching[1:], draw, (*history, token)))
            for token in dict.fromkeys(children)
        ]
        for parts in product(*below):
            whole = {history: children}
            total = chance
            for part, part_chance in parts:
                whole |= part
                total *= part_chance
            yield whole, total


def written(
    target: Laws,
    draft: Laws,
    tree: dict[tuple[int, ...], tuple[int, ...]],
    draw: Draw,
    length: int,
) -> dict[tuple[int, ...], float]:
    """The exact law of the first `length` tokens after one tree; beyond it the target goes on."""
    out: dict[tuple[int, ...], float] = {}

    def finish(said: tuple[int, ...], chance: float) -> None:
        if len(said) == length:
            out[said] = out.get(said, 0.0) + chance
            return
        for token in np.flatnonzero(target[said]):
            finish((*said, int(token)), chance * float(target[said][token]))

    def descend(said: tuple[int, ...], chance: float) -> None:
        if len(said) == length:
            finish(said, chance)
            return
        children = tree.get(said, ())
        left_V = target[said]
        for token, (accepted, after_V) in zip(
            children, rounds(target[said], draft.get(said), children, draw), strict=True
        ):
            if accepted:
                descend((*said, token), chance * accepted)
            chance, left_V = chance * (1 - accepted), after_V
        for token in np.flatnonzero(left_V):
            finish((*said, int(token)), chance * float(left_V[token]))

    descend((), 1.0)
    return out


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.integers(2, 5),
    k=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    draw=st.sampled_from(["distinct", "independent"]),
)
def test_a_node_emits_the_targets_law(vocabulary: int, k: int, seed: int, draw: Draw) -> None:
    target_V = laws(vocabulary, 1, seed, 0.2)[()]
    draft_V = laws(vocabulary, 1, seed + 1, 0.2)[()]
    k = min(k, vocabulary, 3 if draw == "independent" else 5)
    np.testing.assert_allclose(emitted(target_V, draft_V, k, draw), target_V, atol=1e-12)


@pytest.mark.parametrize("branching", [(2, 2), (3, 1), (2, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("draw", ["distinct", "independent"])
def test_whole_trees_write_the_targets_law(branching: tuple[int, ...], draw: Draw) -> None:
    vocabulary, length = 3, len(branching) + 1
    target, draft = laws(vocabulary, length, 5), laws(vocabulary, length, 6)
    if draw == "independent":
        branching = tuple(min(b, 2) for b in branching)
    total: dict[tuple[int, ...], float] = {}
    for tree, chance in trees(draft, branching, draw):
        for word, part in written(target, draft, tree, draw, length).items():
            total[word] = total.get(word, 0.0) + chance * part
    for word in product(range(vocabulary), repeat=length):
        exact = np.prod([target[word[:i]][token] for i, token in enumerate(word)])
        assert total.get(word, 0.0) == pytest.approx(float(exact), abs=1e-12)


def test_children_in_the_order_of_their_ids_bias_the_text() -> None:
    target_V, draft_V = np.array([0.1, 0.3, 0.6]), np.array([0.6, 0.3, 0.1])
    out_V = np.zeros(3)
    for children, chance in draws(draft_V, 2, "distinct"):
        reached, left_V = chance, target_V
        for token, (accepted, after_V) in zip(
            sorted(children), rounds(target_V, draft_V, sorted(children), "distinct"), strict=True
        ):
            out_V[token] += reached * accepted
            reached, left_V = reached * (1 - accepted), after_V
        out_V += reached * left_V
    assert abs(out_V - target_V).max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(vocabulary=st.integers(2, 5), seed=st.integers(0, 10_000))
def test_acceptance_by_the_number_of_children(vocabulary: int, seed: int) -> None:
    target_V, draft_V = laws(vocabulary, 1, seed)[()], laws(vocabulary, 1, seed + 1)[()]
    chances = [hit(target_V, draft_V, k, "distinct") for k in range(1, vocabulary + 1)]
    assert chances[0] == pytest.approx(np.minimum(target_V, draft_V).sum())
    assert chances[-1] == pytest.approx(1.0)
    assert all(a <= b + 1e-12 for a, b in pairwise(chances))
    twice = hit(target_V, draft_V, 2, "independent")
    assert chances[1] >= twice - 1e-12  # no draw is wasted on a token drawn before


def test_equal_laws_accept_the_first_child() -> None:
    law_V = np.array([0.2, 0.5, 0.3])
    for token in range(3):
        place, _ = accept(law_V, law_V, [token, (token + 1) % 3], lambda: 0.999999)
        assert place == 0


def test_a_chosen_child_is_accepted_as_often_as_the_target_says_it() -> None:
    target_V = np.array([0.2, 0.5, 0.3])
    (first, after_V), (second, last_V) = rounds(target_V, None, [1, 0], "chosen")
    assert first == pytest.approx(0.5)
    assert second == pytest.approx(0.2 / 0.5)
    np.testing.assert_allclose(after_V, [0.4, 0.0, 0.6])
    np.testing.assert_allclose(last_V, [0.0, 0.0, 1.0])


def test_a_residual_of_nothing_leaves_the_law() -> None:
    law_V = np.array([1.0, 0.0])
    [(chance, after_V)] = rounds(law_V, law_V, [0], "distinct")
    assert chance == 1.0
    assert np.isfinite(after_V).all()
    np.testing.assert_array_equal(after_V, law_V)


def test_an_impossible_token_is_never_chosen() -> None:
    law_V = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    for u in (0.0, 0.2499999, 0.25, 0.5, np.nextafter(1.0, 0.0)):
        assert law_V[choose(law_V, float(u))] > 0


def test_a_walk_ends_with_a_token_of_the_target() -> None:
    tree = Tree([7])
    left = tree.add(0, 1)
    tree.add(left, 2)
    tree.logps = {}
    certain = {0: 1, left: 2, 2: 0}

    def law(node: int) -> FloatArray:
        law_V = np.zeros(3)
        law_V[certain[node]] = 1.0
        return law_V

    path, last = walk(tree, law, lambda: 0.5, "chosen")
    assert [tree.tokens[node] for node in path] == [1, 2]
    assert last == 0
