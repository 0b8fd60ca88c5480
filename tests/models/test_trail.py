"""Trails of hidden states: segment means equal a slow loop, however the tokens were computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account, Branch, LatentModel, SamplingParams, Trail
from outlay.models.kv import segment
from outlay.models.local import LocalModel
from tiny_models import tiny_model

MODEL = tiny_model(seed=2, num_hidden_layers=3)
FREE = SamplingParams(max_tokens=13, temperature=1.0, ignore_eos=True, seed=5)
PROMPT = "the cat in the hat"
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # states are of size 10, in fp32


def states(model: LocalModel, branch: Branch) -> np.ndarray:
    """(T, L, C) states of everything after the root, from one plain pass."""
    ids = torch.tensor([branch.path()])
    skip = len(branch.lineage()[0].token_ids)
    with torch.inference_mode():
        out = model.model(ids, output_hidden_states=True, use_cache=False)
    return torch.stack(out.hidden_states[1:], 2)[0, skip:].float().numpy()


def slow_means(states_TLC: np.ndarray, k: int) -> np.ndarray:
    """Segment by segment, token by token."""
    rows = []
    for start in range(0, len(states_TLC), k):
        total, count = 0, 0
        for state_LC in states_TLC[start : start + k]:
            total, count = total + state_LC, count + 1
        rows.append(total / count)
    return np.stack(rows)


def grown(sampling: SamplingParams = FREE, trail: Trail | None = None, n: int = 1) -> list[Branch]:
    return MODEL.extend([MODEL.open(PROMPT)], sampling, n, trail=trail)[0]


@pytest.mark.parametrize("k", [1, 4, 5, 13, 50])
def test_means_equal_a_loop_over_the_states_of_a_plain_pass(k: int) -> None:
    for branch in grown(trail=Trail(k), n=3):
        (found_NLC,) = MODEL.hidden([branch])
        np.testing.assert_allclose(found_NLC, slow_means(states(MODEL, branch), k), **CLOSE)
        assert found_NLC.shape == (-(-13 // k), 3, 32)
        assert found_NLC.dtype == np.float32


@settings(max_examples=15)
@given(
    st.integers(1, 9), st.lists(st.tuples(st.booleans(), st.integers(1, 7)), min_size=1, max_size=5)
)
def test_segments_run_on_across_extends_and_forced_text(
    k: int, parts: list[tuple[bool, int]]
) -> None:
    trail = Trail(k)
    branch = MODEL.open(PROMPT)
    for forced, size in parts:
        if forced:
            branch = MODEL.append(branch, list(range(20, 20 + size)), trail=trail)
        else:
            sampling = SamplingParams(max_tokens=size, temperature=1.0, ignore_eos=True)
            branch = MODEL.extend([branch], sampling, trail=trail)[0][0]
    (found_NLC,) = MODEL.hidden([branch])
    np.testing.assert_allclose(found_NLC, slow_means(states(MODEL, branch), k), **CLOSE)


def test_forced_text_goes_on_with_its_parents_trail() -> None:
    (parent,) = grown(trail=Trail(4))
    child = MODEL.append(parent, "the the")
    (found_NLC,) = MODEL.hidden([child])
    np.testing.assert_allclose(found_NLC, slow_means(states(MODEL, child), 4), **CLOSE)


def test_siblings_do_not_disturb_their_parent() -> None:
    (parent,) = grown(trail=Trail(4))
    (before_NLC,) = MODEL.hidden([parent])
    MODEL.extend([parent, parent], FREE, 2, trail=Trail(4))
    MODEL.hidden([MODEL.append(parent, "abc")])
    (after_NLC,) = MODEL.hidden([parent])
    np.testing.assert_array_equal(before_NLC, after_NLC)


def test_a_batch_equals_one_by_one() -> None:
    roots = [MODEL.open(text) for text in (PROMPT, "a", "in the end there was a very long hat")]
    wants = [
        SamplingParams(max_tokens=size, temperature=1.0, ignore_eos=True, seed=size)
        for size in (3, 21, 9)
    ]
    together = [row[0] for row in MODEL.extend(roots, wants, trail=Trail(4))]
    batch = MODEL.hidden(together)
    for root, want, mean_NLC in zip(roots, wants, batch, strict=True):
        (alone,) = MODEL.extend([root], want, trail=Trail(4))[0]
        np.testing.assert_allclose(mean_NLC, MODEL.hidden([alone])[0], **CLOSE)


def test_tokens_and_logprobs_are_the_same_with_and_without_a_trail() -> None:
    sampling = SamplingParams(max_tokens=13, temperature=1.0, logprobs=True, seed=3)
    plain, kept = grown(sampling, n=3), grown(sampling, Trail(4), n=3)
    assert [b.token_ids for b in plain] == [b.token_ids for b in kept]
    assert [b.logprobs for b in plain] == [b.logprobs for b in kept]


def test_the_prompt_is_not_part_of_a_trail() -> None:
    (child,) = grown(trail=Trail(100))
    (found_NLC,) = MODEL.hidden([child])
    np.testing.assert_allclose(found_NLC[0], states(MODEL, child).mean(0), **CLOSE)


def test_a_trail_begins_with_the_first_branch_that_asks_for_it() -> None:
    (untracked,) = grown()
    (child,) = MODEL.extend([untracked], FREE, trail=Trail(5))[0]
    (found_NLC,) = MODEL.hidden([child])
    np.testing.assert_allclose(found_NLC, slow_means(states(MODEL, child)[13:], 5), **CLOSE)


def test_chosen_layers_are_those_of_all_layers() -> None:
    every = MODEL.hidden(grown(trail=Trail(4)))[0]
    some = MODEL.hidden(grown(trail=Trail(4, (0, 2))))[0]
    last = MODEL.hidden(grown(trail=Trail(4, "last_third")))[0]
    np.testing.assert_array_equal(some, every[:, [0, 2]])
    np.testing.assert_array_equal(last, every[:, [2]])


def test_trails_of_different_kinds_share_a_batch() -> None:
    root = MODEL.open(PROMPT)
    one = MODEL.append(root, "the cat", trail=Trail(2, (0,)))
    other = MODEL.append(root, "a hat in", trail=Trail(3, (1, 2)))
    found = MODEL.hidden([one, other])
    np.testing.assert_allclose(found[0], slow_means(states(MODEL, one)[:, [0]], 2), **CLOSE)
    np.testing.assert_allclose(found[1], slow_means(states(MODEL, other)[:, [1, 2]], 3), **CLOSE)


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2", "Gemma2", "Mixtral", "Falcon", "Granite"])
def test_families_show_the_states_that_transformers_names(kind: str) -> None:
    model = tiny_model(kind)
    assert model.capabilities.hidden_states
    (child,) = model.extend([model.open(PROMPT)], FREE, trail=Trail(5))[0]
    (found_NLC,) = model.hidden([child])
    np.testing.assert_allclose(found_NLC, slow_means(states(model, child), 5), **CLOSE)


def test_no_stack_over_time_is_kept() -> None:
    (child,) = grown(SamplingParams(max_tokens=64, ignore_eos=True), Trail(16))
    walk = segment(child).walk
    assert walk is not None
    kept = [*walk.closed_LC, walk.sum_LC]
    assert sum(t.numel() for t in kept if t is not None) <= 5 * 3 * 32


def test_reading_a_trail_spends_what_the_next_call_would_have() -> None:
    account = Account.open(Budget(tokens=40))
    (child,) = MODEL.extend([MODEL.open(PROMPT)], FREE, account=account, trail=Trail(4))[0]
    fed = MODEL.computed_tokens
    MODEL.hidden([child], account=account)
    assert MODEL.computed_tokens == fed + 1  # the last token, which was pending
    MODEL.hidden([child], account=account)
    MODEL.extend([child], SamplingParams(max_tokens=1, ignore_eos=True), account=account)
    assert MODEL.computed_tokens == fed + 1
    assert account.ledger.entries[-2].flops > 0
    assert account.ledger.entries[-2].generated == 0


def test_an_abandoned_run_leaves_a_trail_that_can_be_completed() -> None:
    from outlay.models.decoding import Run

    run = Run(MODEL, [MODEL.open(PROMPT)], FREE, 1, Account(), trail=Trail(4))
    steps = iter(run)
    for _ in range(7):
        next(steps)
    steps.close()
    (child,) = run.children[0]
    (found_NLC,) = MODEL.hidden([child])
    np.testing.assert_allclose(found_NLC, slow_means(states(MODEL, child), 4), **CLOSE)


def test_hooks_are_gone_after_every_call() -> None:
    model = tiny_model(seed=2)
    root = model.open(PROMPT)

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.model.modules())

    before = hooks()
    model.hidden(model.extend([root], FREE, trail=Trail(4))[0])
    with pytest.raises(InputError):
        model.extend([root], FREE, trail=Trail(4, (7,)))
    assert hooks() == before


def test_half_precision_states_are_summed_in_full() -> None:
    model = tiny_model(seed=2)
    model = LocalModel(model.model.to(torch.bfloat16), model.tokenizer, "half")
    # 300 states of size 8 sum to 2400, where neighbours in bf16 are 16 apart.
    child = model.append(model.open(PROMPT), [20] * 300, trail=Trail(300))
    (found_NLC,) = model.hidden([child])
    np.testing.assert_allclose(found_NLC, slow_means(states(model, child), 300), atol=5e-3)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Trail(0), "k=0"),
        (lambda: Trail(4, ()), "layers"),
        (lambda: Trail(4, (2, 1)), "ascending"),
        (lambda: Trail(4, "first"), "last_third"),
        (lambda: grown(trail=Trail(4, (3,))), "layers 0 to 2"),
        (lambda: MODEL.hidden(grown()), "trail="),
        (lambda: MODEL.extend(grown(trail=Trail(4)), FREE, trail=Trail(5)), "same one"),
        (
            lambda: grown(SamplingParams(stop=("x",), include_stop=False), Trail(4)),
            "include_stop=True",
        ),
    ],
)
def test_bad_trails_are_refused(build: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        build()


def test_released_branches_show_nothing() -> None:
    (child,) = grown(trail=Trail(4))
    MODEL.release(child)
    with pytest.raises(InputError, match="released"):
        MODEL.hidden([child])


def test_a_model_without_known_layers_says_so() -> None:
    model = tiny_model()
    model.capabilities = type(model.capabilities)()
    with pytest.raises(CapabilityError, match="hidden_states"):
        model.extend([model.open(PROMPT)], FREE, trail=Trail(4))
    assert isinstance(model, LatentModel)
