"""What k samples of one problem are worth: pass@k and the majority vote.

`pass_at_k` is the unbiased estimator of "The HumanEval paper" (Chen et al., arXiv 2107.03374,
equation 1); `majority_at_k` is self-consistency (Wang et al., arXiv 2203.11171), averaged over the
subsets of k samples, so that n drawn samples serve every k <= n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt

from outlay.errors import InputError
from outlay.stats import pass_at_k

__all__ = ["majority_at_k", "pass_at_k", "vote"]

_EXACT = 20_000  # subsets up to which all are enumerated
_DRAWS = 20_000  # random subsets above that
_BLOCK = 2_000_000  # cells held at once


def vote(answers: Sequence[str | None]) -> int | None:
    """Index of the first sample that gave the most frequent answer; None if nobody voted.

    Empty answers (None, "" or blanks) do not vote; ties go to the answer seen first.
    """
    codes_N = _codes(answers)
    if not len(codes_N) or codes_N.max() < 0:
        return None
    winner = int(_winners(codes_N, np.arange(len(codes_N))[None, :])[0])
    return winner if winner >= 0 else None


def majority_at_k(
    answers: Sequence[str | None], correct: Sequence[bool], k: int, *, seed: int
) -> float:
    """Expected correctness of the majority vote over k of n samples, drawn without replacement.

    Exact over all subsets where there are at most 20,000 of them, else over 20,000 random ones. A
    subset keeps the order of the samples: ties go to the answer seen first in it. Empty answers
    (None, "" or blanks) do not vote; a subset in which nobody votes is wrong.

    Args:
        answers: one normalised answer per sample: equal texts are one candidate.
        correct: whether each sample's answer is right; the winner is judged by the first sample of
            the subset that gave it.
        k: samples that vote, at most n.
        seed: of the random subsets.

    Raises:
        InputError: for lists of unequal length, none at all, or k outside 1..n.
    """
    n = len(answers)
    if n != len(correct):
        raise InputError(f"{n} answers, {len(correct)} verdicts; give one verdict per answer")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise InputError(f"k={k!r} with n={n} samples; need an int, 1 <= k <= n: draw more samples")
    codes_N = _codes(answers)
    right_N = np.asarray(correct, dtype=bool)
    hits = subsets = 0
    for rows_RK in _subsets(n, k, seed):
        winner_R = _winners(codes_N, rows_RK)
        hits += int((right_N[winner_R] & (winner_R >= 0)).sum())
        subsets += len(rows_RK)
    return hits / subsets


def _codes(answers: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """(N,) small numbers for distinct answers, -1 for an empty one."""
    known: dict[str, int] = {}
    return np.array(
        [
            known.setdefault(text.strip(), len(known)) if text and text.strip() else -1
            for text in answers
        ],
        dtype=np.int64,
    )


def _subsets(n: int, k: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks of (R, K) ascending sample indices."""
    step = max(1, _BLOCK // max(n, k * k))
    if math.comb(n, k) <= _EXACT:
        every = combinations(range(n), k)
        while block := list(islice(every, step)):
            yield np.array(block, dtype=np.int64)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, _DRAWS, step):
        shuffled_RN = rng.random((min(step, _DRAWS - start), n)).argpartition(k - 1, axis=1)
        yield np.sort(shuffled_RN[:, :k], axis=1)


def _winners(
    codes_N: npt.NDArray[np.int64], rows_RK: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(R,) sample index of the first voter for each row's winner; -1 where nobody voted."""
    codes_RK = codes_N[rows_RK]
    same_RKK = codes_RK[:, :, None] == codes_RK[:, None, :]
    votes_RK = np.where(codes_RK >= 0, same_RKK.sum(axis=2), 0)
    first_R = votes_RK.argmax(axis=1)  # the first of the largest: ties go to the first seen
    index_R = np.arange(len(rows_RK))
    return np.where(votes_RK[index_R, first_R] > 0, rows_RK[index_R, first_R], -1)
