"""pass@k and the majority vote over subsets, against their definitions."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.evals import passk
from outlay.evals.passk import majority_at_k, pass_at_k, vote

answers = st.lists(st.sampled_from(["a", "b", "c", "", None]), min_size=1, max_size=8)


def slow_majority(given, correct, k):
    """Every subset in order; the most frequent answer, ties to the first seen."""
    hits = []
    for subset in combinations(range(len(given)), k):
        votes = [index for index in subset if given[index]]
        best = None
        for index in votes:
            count = sum(given[other] == given[index] for other in votes)
            if best is None or count > best[0]:
                best = (count, index)
        hits.append(best is not None and correct[best[1]])
    return sum(hits) / len(hits)


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [True] * c + [False] * (n - c)
    subsets = list(combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.integers(1, 60), st.data())
def test_pass_at_k_grows_with_k_from_the_mean_to_the_maximum(n, data):
    c = data.draw(st.integers(0, n))
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert values[0] == pytest.approx(c / n)
    assert values == sorted(values)
    assert values[-1] == float(c > 0)


@given(answers, st.data())
def test_majority_equals_the_slow_vote_over_all_subsets(given, data):
    k = data.draw(st.integers(1, len(given)))
    correct = [answer == "a" for answer in given]
    assert majority_at_k(given, correct, k, seed=0) == pytest.approx(
        slow_majority(given, correct, k)
    )


def test_random_subsets_come_close_to_all_of_them(monkeypatch):
    given = list("aabbbcacab") * 2
    correct = [answer == "a" for answer in given]
    exact = majority_at_k(given, correct, 5, seed=0)
    monkeypatch.setattr(passk, "_EXACT", 10)
    sampled = majority_at_k(given, correct, 5, seed=1)
    assert sampled == pytest.approx(exact, abs=0.02)
    assert sampled == majority_at_k(given, correct, 5, seed=1)
    assert sampled != majority_at_k(given, correct, 5, seed=2)


def test_one_vote_is_the_mean_and_all_votes_are_one_vote():
    given, correct = ["a", "b", "b", ""], [True, False, False, False]
    assert majority_at_k(given, correct, 1, seed=0) == 0.25
    assert majority_at_k(given, correct, 4, seed=0) == 0.0
    assert vote(given) == 1


def test_ties_go_to_the_answer_seen_first_and_empty_answers_do_not_vote():
    assert vote(["", None, "b", "a", "a", "b"]) == 2
    assert vote(["", None, "  "]) is None
    assert vote([]) is None
    assert majority_at_k(["", ""], [True, True], 2, seed=0) == 0.0


@pytest.mark.parametrize("k", [0, 4, True, 1.0])
def test_k_outside_the_samples_is_refused(k):
    with pytest.raises(InputError, match="k="):
        majority_at_k(["a", "b", "c"], [True] * 3, k, seed=0)
    if not isinstance(k, float | bool):
        with pytest.raises(InputError, match="k="):
            pass_at_k(3, 1, k)


def test_every_answer_needs_a_verdict():
    with pytest.raises(InputError, match="one verdict per answer"):
        majority_at_k(["a"], [], 1, seed=0)
