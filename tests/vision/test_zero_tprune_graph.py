"""PageRank on attention: conserved, converging to the stationary distribution, blind to order."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from outlay.errors import InputError
from outlay.vision.zero_tprune.graph import (
    PUBLISHED,
    aggregate,
    checked,
    cut,
    page_rank,
    passing,
    start,
)

seeds = st.integers(0, 10_000)
sizes = st.integers(2, 12)


def attention(seed: int, tokens: int, heads: int = 2, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, heads, tokens, tokens, generator=generator, dtype=torch.float64)
    return (2 * logits).softmax(-1)


def voted(matrix: np.ndarray, scores: np.ndarray, steps: int) -> np.ndarray:
    """The obvious way: every token gives its score away along its row."""
    for _ in range(steps):
        new = np.zeros_like(scores)
        for voter in range(len(scores)):
            for receiver in range(len(scores)):
                new[receiver] += matrix[voter, receiver] * scores[voter]
        scores = new
    return scores


@given(seeds, sizes, st.integers(1, 4), st.integers(0, 1))
def test_votes_are_what_the_obvious_loop_gives(seed, tokens, steps, boosted) -> None:
    graph = attention(seed, tokens)
    first = start(tokens, boosted, graph)
    found = page_rank(graph, first, steps)
    wanted = voted(graph[1, 0].numpy(), first.numpy(), steps)
    np.testing.assert_allclose(found[1, 0].numpy(), wanted, rtol=1e-10)


@given(seeds, sizes, st.integers(1, 60), st.integers(0, 1))
def test_scores_sum_to_n_after_every_step(seed, tokens, steps, boosted) -> None:
    graph = attention(seed, tokens)
    found = page_rank(graph, start(tokens, boosted, graph), steps)
    torch.testing.assert_close(found.sum(-1), torch.full((2, 2), float(tokens)).double())


@pytest.mark.parametrize("boosted", [0, 1])
def test_many_votes_give_the_left_perron_vector_whatever_the_start(boosted) -> None:
    graph = attention(3, 9)
    found = page_rank(graph, start(9, boosted, graph), 400)[0, 1].numpy()
    values, left = scipy.linalg.eig(graph[0, 1].numpy(), left=True, right=False)
    vector = np.real(left[:, np.argmax(values.real)])
    np.testing.assert_allclose(found, 9 * vector / vector.sum(), rtol=1e-8)


def test_many_votes_are_networkx_pagerank_without_jumps() -> None:
    graph = attention(5, 8)
    found = page_rank(graph, start(8, 0, graph), 400)[0, 0].numpy()
    directed = nx.from_numpy_array(graph[0, 0].numpy(), create_using=nx.DiGraph)
    wanted = nx.pagerank(directed, alpha=1.0, tol=1e-13, max_iter=5000)
    np.testing.assert_allclose(found / 8, [wanted[i] for i in range(8)], atol=1e-9)


def test_one_vote_from_a_uniform_start_is_mean_attention_received() -> None:
    graph = attention(7, 6)
    found = page_rank(graph, start(6, 0, graph), 1)
    torch.testing.assert_close(found, graph.mean(2) * 6)


@given(sizes, st.integers(1, 50))
def test_uniform_attention_gives_uniform_scores(tokens, steps) -> None:
    graph = torch.full((1, 1, tokens, tokens), 1 / tokens, dtype=torch.float64)
    boosted = page_rank(graph, start(tokens, 1, graph), steps)
    torch.testing.assert_close(boosted, torch.ones(1, 1, tokens).double())


@given(seeds, st.integers(2, 8), st.integers(1, 20))
def test_doubly_stochastic_attention_keeps_uniform_scores(seed, tokens, steps) -> None:
    generator = torch.Generator().manual_seed(seed)
    graph = torch.zeros(tokens, tokens, dtype=torch.float64)
    for weight in (0.5, 0.3, 0.2):  # a mixture of permutations
        graph[torch.arange(tokens), torch.randperm(tokens, generator=generator)] += weight
    found = page_rank(graph[None, None], start(tokens, 0, graph), steps)
    torch.testing.assert_close(found, torch.ones(1, 1, tokens).double())


def test_multiplying_from_the_other_side_would_keep_all_tokens_equal() -> None:
    graph = attention(1, 7)[0, 0]
    assert torch.allclose(graph @ torch.ones(7).double(), torch.ones(7).double())
    assert page_rank(graph[None, None], start(7, 0, graph), 1).std() > 0.05


@given(seeds, st.integers(3, 9), st.integers(1, 10))
def test_permuted_tokens_have_permuted_scores(seed, tokens, steps) -> None:
    graph = attention(seed, tokens)
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed + 1))
    first = start(tokens, 0, graph)
    plain = page_rank(graph, first, steps)
    turned = page_rank(graph[:, :, order][..., order], first, steps)
    torch.testing.assert_close(turned, plain[..., order])


def test_a_class_token_starts_sqrt_n_times_higher_and_matters_less_with_every_vote() -> None:
    first = start(16, 1)
    assert float(first.sum()) == pytest.approx(16)
    assert float(first[0] / first[1]) == pytest.approx(4)
    graph = attention(2, 16)
    gaps = [
        float(
            (page_rank(graph, start(16, 1, graph), t) - page_rank(graph, start(16, 0, graph), t))
            .abs()
            .max()
        )
        for t in (1, 3, 10, 100)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6


def test_votes_stop_at_the_tolerance() -> None:
    graph = attention(4, 6)
    first = start(6, 0, graph)
    early = page_rank(graph, first, 1000, tolerance=1e-3)
    assert float((early - page_rank(graph, first, 1000)).abs().max()) < 1e-2
    assert not torch.equal(early, page_rank(graph, first, 1000))


def test_fifty_votes_do_not_underflow_where_the_printed_equation_does() -> None:
    graph = checked(attention(0, 197, images=1).half())
    found = page_rank(graph, start(197, 1, graph), 50)
    assert float(found.sum(-1).min()) == pytest.approx(197, rel=1e-4)
    shrunk = found[0, 0].half()
    for _ in range(3):  # three votes more, each divided by N
        shrunk = (shrunk @ graph[0, 0].half()) / 197
    assert float(shrunk.max()) < 1e-6


def test_half_precision_rows_are_renormalised() -> None:
    graph = attention(6, 50).half() * 0.999
    torch.testing.assert_close(checked(graph).sum(-1), torch.ones(2, 2, 50))


@given(seeds, st.integers(3, 9))
def test_attention_among_survivors_sums_to_one_again(seed, tokens) -> None:
    graph = attention(seed, tokens)
    keep = torch.tensor([[0, 2], [1, 2]])
    small = cut(graph, keep)
    torch.testing.assert_close(small.sum(-1), torch.ones(2, 2, 2).double())
    wanted = graph[1, 0][[1, 2]][:, [1, 2]]
    torch.testing.assert_close(small[1, 0], wanted / wanted.sum(-1, keepdim=True))


def test_without_renormalising_mass_would_leak() -> None:
    graph = attention(9, 20, images=1)
    small = graph[:, :, :10, :10]
    leaked = start(10, 0, graph).expand(1, 2, 1, -1)
    for _ in range(5):
        leaked = leaked @ small
    assert float(leaked.sum(-1).max()) < 5
    kept = page_rank(cut(graph, torch.arange(10)[None]), start(10, 0, graph), 5)
    torch.testing.assert_close(kept.sum(-1), torch.full((1, 2), 10.0).double())


def test_a_token_that_saw_only_dropped_ones_votes_for_all_alike() -> None:
    graph = torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5]]).double()
    small = cut(graph[None, None], torch.tensor([[0, 1]]))
    torch.testing.assert_close(small[0, 0, 0], torch.tensor([0.5, 0.5]).double())


# -- heads ----------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 9), st.integers(1, 5))
def test_identical_heads_aggregate_to_that_head(seed, patches, heads) -> None:
    one = torch.rand(1, 1, patches, generator=torch.Generator().manual_seed(seed)).double()
    scores = one.expand(2, heads, -1)
    for how in ("eir", "mean", "max"):
        found = aggregate(scores, torch.ones(2, heads, dtype=torch.bool), how)
        torch.testing.assert_close(found, one[0].expand(2, -1))


@given(seeds)
def test_informative_regions_are_at_least_the_mean_and_at_most_the_largest(seed) -> None:
    scores = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(seed)).double()
    every = torch.ones(2, 4, dtype=torch.bool)
    eir, mean, most = (aggregate(scores, every, how) for how in ("eir", "mean", "max"))
    assert bool((eir >= mean - 1e-12).all())
    assert bool((eir <= most + 1e-12).all())


def test_heads_outside_the_bounds_do_not_count() -> None:
    flat = torch.ones(8)
    fair = torch.tensor([1.5, 0.5] * 4)  # variance .25
    peaked = torch.tensor([8.0] + [0.0] * 7)  # variance 7
    scores = torch.stack([flat, fair, peaked])[None].double()
    heads = passing(scores, PUBLISHED)
    assert heads.tolist() == [[False, True, False]]
    for how in ("eir", "mean", "max"):
        torch.testing.assert_close(aggregate(scores, heads, how)[0], fair.double())


def test_without_bounds_or_where_no_head_passes_all_count() -> None:
    scores = torch.ones(1, 3, 5).double()
    assert bool(passing(scores, None).all())
    assert bool(passing(scores, PUBLISHED).all())


def test_a_head_is_judged_by_scores_of_mean_one_whatever_their_scale() -> None:
    scores = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(0)).double() + 0.5
    assert torch.equal(passing(scores, PUBLISHED), passing(scores / 197**2, PUBLISHED))


@given(st.integers(2, 300))
def test_scores_of_sum_one_could_never_reach_the_published_range(tokens) -> None:
    most_varied = np.zeros(tokens)
    most_varied[0] = 1.0
    assert most_varied.var() <= (tokens - 1) / tokens**2 + 1e-12
    assert tokens < 197 or most_varied.var() < PUBLISHED[0]


# -- bad input ------------------------------------------------------------------------------------


def test_attention_that_is_no_graph_is_refused() -> None:
    good = attention(0, 5)
    with pytest.raises(InputError, match="row-stochastic"):
        checked(good * 1.05)
    with pytest.raises(InputError, match="row-stochastic"):
        checked(torch.cat([good[..., :1] - 2, good[..., 1:2] + 2, good[..., 2:]], -1))
    with pytest.raises(InputError, match="cross-attention"):
        checked(good[:, :, :3])
    with pytest.raises(InputError, match="NaN"):
        checked(good.clone().fill_(float("nan")))
    with pytest.raises(InputError, match="T=0"):
        page_rank(good, start(5), 0)
