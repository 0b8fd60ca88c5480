"""A scorer that remembers gives what the scorer gives, and is billed for what is new."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.models.base import Account, Scorer
from outlay.models.memo import MemoScorer
from tiny_models import tiny_model

MODEL = tiny_model()
TEXTS = ("the cat", "ab", "x\ny", "é", "")


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(TEXTS), st.integers(0, 3)), max_size=5), max_size=4
    ),
    st.integers(0, 12),
)
def test_results_are_the_scorers_own_at_any_memory(
    calls: list[list[tuple[str, int]]], size: int
) -> None:
    memo = MemoScorer(MODEL, max_tokens=size)
    for call in calls:
        texts, starts = [text for text, _ in call], [start for _, start in call]
        account = Account(role="scorer")
        found = memo.losses(texts, keep_from=starts, account=account)
        for losses, want in zip(found, MODEL.losses(texts, keep_from=starts), strict=True):
            np.testing.assert_array_equal(losses.token_ids, want.token_ids)
            np.testing.assert_allclose(losses.nll, want.nll, atol=1e-5)
        total = account.ledger.totals()
        assert total.prompt == sum(MODEL.count(text) for text in texts)


def test_the_second_time_is_free_and_booked_as_cached() -> None:
    memo = MemoScorer(MODEL)
    account = Account(role="scorer", method="m")
    memo.losses(["the cat", "ab"], account=account)
    before = MODEL.computed_tokens
    memo.losses(["ab", "the cat", "ab"], account=account)
    assert MODEL.computed_tokens == before
    second = account.ledger.entries[-1]
    assert (second.prompt_new, second.prompt_cached) == (
        0,
        2 * MODEL.count("ab") + MODEL.count("the cat"),
    )
    assert (second.role, second.method) == ("scorer", "m")


def test_the_least_recently_used_is_dropped_first() -> None:
    memo = MemoScorer(MODEL, max_tokens=6)
    for text in ("zzz", "yyy", "zzz", "www"):  # three tokens each
        memo.losses([text])
    for text, cached in (("zzz", 3), ("www", 3), ("yyy", 0)):
        account = Account()
        memo.losses([text], account=account)
        assert account.ledger.totals().prompt_cached == cached


def test_many_threads_get_the_same_results() -> None:
    memo = MemoScorer(MODEL, max_tokens=20)
    want = {text: MODEL.losses([text])[0].nll for text in TEXTS}
    with ThreadPoolExecutor(4) as pool:
        for text, found in zip(
            TEXTS * 10, pool.map(lambda t: memo.losses([t])[0], TEXTS * 10), strict=True
        ):
            np.testing.assert_allclose(found.nll, want[text], atol=1e-5)


def test_it_is_a_scorer_and_says_what_is_wrong() -> None:
    memo = MemoScorer(MODEL)
    assert isinstance(memo, Scorer)
    assert memo.count("the cat") == MODEL.count("the cat")
    with pytest.raises(InputError, match="keep_from has 1 entries for 2 texts"):
        memo.losses(["a", "b"], keep_from=[0])
