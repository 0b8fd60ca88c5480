"""Draft trees: Gumbel-top-k, stochastic beam search, their limits and their sizes."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from outlay.decode.rsd.structure import choose_shape
from outlay.decode.rsd.trees import Beam, Shape, Tree, grow
from outlay.errors import InputError
from outlay.proofs.rsd_runs import Tables, chi_square

V = 4


def log_laws(seed: int = 0) -> dict[tuple[int, ...], torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        history: torch.from_numpy(np.log(rng.dirichlet(np.ones(V))))
        for size in range(3)
        for history in product(range(V), repeat=size)
    }


def grown(
    shape: Shape,
    generator: torch.Generator | None,
    table: dict[tuple[int, ...], torch.Tensor] | None = None,
) -> tuple[Tree, list[list[Beam]]]:
    table = log_laws() if table is None else table
    tree, frontier, levels = Tree([0]), [Beam()], []
    for level in range(shape.levels):
        logp_NV = torch.stack([table[tuple(tree.words(beam.node))] for beam in frontier])
        frontier = grow(tree, frontier, logp_NV, shape, level, generator)
        levels.append(frontier)
    return tree, levels


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [Shape("rsd_c", (3, 2)), Shape("rsd_s", beam=3, depth=2)])
def test_siblings_are_different(shape: Shape) -> None:
    for seed in range(50):
        tree, _ = grown(shape, noise(seed))
        for children in tree.children:
            tokens = [tree.tokens[child] for child in children]
            assert len(set(tokens)) == len(tokens)
        assert len(tree.tokens) - 1 <= shape.nodes
        assert all(parent < node for node, parent in enumerate(tree.parents))


def test_siblings_are_an_ordered_sample_without_replacement() -> None:
    law_V = log_laws()[()].exp().numpy()
    generator = noise(1)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(4000):
        tree, _ = grown(Shape("rsd_c", (2,)), generator)
        seen[tuple(tree.words(child)[0] for child in tree.children[0])] += 1
    pairs = [(a, b) for a in range(V) for b in range(V) if a != b]
    exact = np.array([law_V[a] * law_V[b] / (1 - law_V[a]) for a, b in pairs])
    assert chi_square(np.array([float(seen[pair]) for pair in pairs]), exact) > 1e-3


def test_beams_are_an_ordered_sample_of_sequences() -> None:
    table, generator = log_laws(), noise(2)
    words = list(product(range(V), repeat=2))
    law = {word: float((table[()][word[0]] + table[word[:1]][word[1]]).exp()) for word in words}
    firsts: Counter[tuple[int, ...]] = Counter()
    pairs: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for _ in range(4000):
        tree, levels = grown(Shape("rsd_s", beam=V, depth=2), generator, table)
        best = [tuple(tree.words(beam.node)) for beam in levels[-1]]
        assert len(set(best)) == V
        firsts[best[0]] += 1
        pairs[tuple(best[:2])] += 1
    exact = np.array([law[word] for word in words])
    assert chi_square(np.array([float(firsts[word]) for word in words]), exact) > 1e-3
    both = [(a, b) for a in words for b in words if a != b]
    exact_pairs = np.array([law[a] * law[b] / (1 - law[a]) for a, b in both])
    assert chi_square(np.array([float(pairs[pair]) for pair in both]), exact_pairs) > 1e-3


def test_the_best_child_inherits_its_parents_perturbed_value() -> None:
    for seed in range(30):
        tree, levels = grown(Shape("rsd_s", beam=V * V, depth=2), noise(seed))
        psis = {beam.node: beam.psi for level in levels for beam in level}
        psis[0] = 0.0
        for node, children in enumerate(tree.children):
            if children:
                assert psis[children[0]] == pytest.approx(psis[node])
                values = [psis[child] for child in children]
                assert values == sorted(values, reverse=True)
                assert max(values) <= psis[node] + 1e-12


def test_wide_beams_enumerate_the_whole_tree() -> None:
    tree, levels = grown(Shape("rsd_s", beam=V * V, depth=2), noise(0))
    assert len(levels[0]) == V
    assert {tuple(tree.words(beam.node)) for beam in levels[1]} == {*product(range(V), repeat=2)}


def test_impossible_tokens_are_never_drawn() -> None:
    table = log_laws()
    for logp_V in table.values():
        logp_V[[0, 2]] = -torch.inf
    for shape in (Shape("rsd_c", (4, 4)), Shape("rsd_s", beam=6, depth=2)):
        for seed in range(20):
            tree, _ = grown(shape, noise(seed), table)
            assert not {0, 2} & set(tree.tokens[1:])
            assert len(tree.children[0]) == 2


def test_without_noise_trees_hold_the_most_likely_tokens() -> None:
    table = log_laws()
    tree, _ = grown(Shape("rsd_c", (2, 1)), None, table)
    assert [tree.tokens[child] for child in tree.children[0]] == table[()].topk(2).indices.tolist()
    tree, levels = grown(Shape("rsd_s", beam=3, depth=2), None, table)
    first = table[()].topk(3).indices.tolist()
    scores = {(a, b): float(table[()][a] + table[(a,)][b]) for a in first for b in range(V)}
    best = sorted(scores, key=lambda word: -scores[word])[:3]
    assert [tuple(tree.words(beam.node)) for beam in levels[-1]] == best
    chain, _ = grown(Shape("iid_tree", (3, 2)), None, table)
    assert len(chain.tokens) == 3


def test_equal_independent_draws_share_a_node() -> None:
    table = {history: torch.full((V,), -torch.inf) for history in log_laws()}
    for logp_V in table.values():
        logp_V[1] = 0.0
    tree, levels = grown(Shape("iid_tree", (3, 2)), noise(0), table)
    assert tree.tokens == [0, 1, 1]
    assert tree.children[0] == [1, 1, 1]
    assert levels[0] == [Beam(1, count=3)]
    assert tree.children[1] == [2] * 6


@pytest.mark.parametrize(
    "shape",
    [
        Shape("rsd_s", beam=3, depth=2),
        Shape("rsd_c", (2, 2)),
        Shape("iid_tree", (2, 1)),
        Shape("greedy_tree", (2, 2)),
        Shape("rsd_s", beam=1, depth=2),
    ],
)
def test_drafting_and_walking_write_the_targets_law(shape: Shape) -> None:
    tables = Tables(vocabulary=4, seed=3)
    counts = tables.sample(shape, 3000, 5)
    assert chi_square(counts, tables.exact()) > 1e-3


def test_a_wrong_order_is_caught() -> None:
    tables = Tables(vocabulary=4, seed=3)
    counts = tables.sample(Shape("rsd_s", beam=3, depth=2), 3000, 5, by_id=True)
    assert chi_square(counts, tables.exact()) < 1e-6


def test_sizes_of_trees() -> None:
    assert Shape("rsd_c", (2, 2, 2)).nodes == 14
    assert Shape("rsd_s", beam=4, depth=3).nodes == 12
    assert Shape("chain", depth=5).nodes == 5
    assert Shape("rsd_c", (3, 2)).within(2, 9) == 2
    assert Shape("rsd_c", (3, 2)).within(2, 8) == 1
    assert Shape("rsd_c", (3, 2)).within(1, 99) == 1
    assert Shape("rsd_c", (3, 2)).within(2, 2) == 0


@pytest.mark.parametrize("budget", [1, 2, 6, 14, 30])
@pytest.mark.parametrize("mode", ["chain", "rsd_c", "rsd_s", "iid_tree", "greedy_tree"])
def test_a_chosen_shape_keeps_its_budget(budget: int, mode: str) -> None:
    shape = choose_shape(Shape(mode), budget, (0.5, 0.7, 0.8))  # type: ignore[arg-type]
    assert 1 <= shape.nodes <= budget


def test_sure_drafts_get_chains_and_poor_ones_get_width() -> None:
    sure = choose_shape(Shape("rsd_c"), 6, (0.99, 0.995, 0.999))
    poor = choose_shape(Shape("rsd_c"), 6, (0.2, 0.39, 0.55, 0.7, 0.8, 0.9))
    assert sure.branching == (1,) * 6
    assert poor.branching[0] > 2


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"branching": ()}, "branching"),
        ({"branching": (2, 0)}, "branching"),
        ({"beam": 0}, "beam"),
        ({"depth": 0}, "depth"),
        ({"mode": "tree"}, "mode"),
        ({"mode": "rsd_c", "branching": (9, 9, 9, 9)}, "too large"),
        ({"mode": "chain", "depth": 65}, "too large"),
    ],
)
def test_bad_shapes_are_refused_by_name(knobs: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Shape(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", [(), (0.5, 0.4), (1.2,), (-0.1, 0.2)])
def test_bad_profiles_are_refused(profile: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="profile"):
        choose_shape(Shape("rsd_c"), 6, profile)


def test_a_budget_without_a_node_is_refused() -> None:
    with pytest.raises(InputError, match="budget=0"):
        choose_shape(Shape("rsd_c"), 0, (0.5,))
