"""The problems of the RL testbed: chains of 1 to 8 one-digit operations, modulo 10.

Difficulty is the number of operations. The split of a question is decided by a hash of its text,
so training and evaluation are disjoint whatever the seeds. No torch.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from outlay.errors import DependencyError, InputError
from outlay.testbeds.chainarith_rl.corpus import MAX_OPS, MODULUS
from outlay.testbeds.reasoner.chains import ChainProblem, Split, sample_problem
from outlay.testbeds.reasoner.tokenizer import render_prompt

if TYPE_CHECKING:
    from datasets import Dataset

MAX_PROBLEMS = 1_000_000


def problems(
    n: int, seed: int = 0, ops: tuple[int, int] = (1, MAX_OPS), split: Split = "train"
) -> list[ChainProblem]:
    """`n` problems; the operations cycle through the range, so every prefix is balanced.

    Problem `i` of a seed is the same whatever `n` is. There are only 210 questions of one
    operation, so large samples repeat some of them.

    Args:
        n: how many.
        seed: of the sample.
        ops: fewest and most operations.
        split: "train" (the starting policy was trained on these, and RL trains on these) or
            "heldout" (never trained on).

    Raises:
        InputError: for n outside 1..1,000,000, a range outside 1..8, or an unknown split.
    """
    if not 1 <= n <= MAX_PROBLEMS:
        raise InputError(f"n={n}; must be in 1..{MAX_PROBLEMS:,}")
    low, high = ops
    if not 1 <= low <= high <= MAX_OPS:
        raise InputError(f"ops={ops}; must be a range (low, high) within 1..{MAX_OPS}")
    if split not in ("train", "heldout"):
        raise InputError(f"split={split!r}; known are 'train' and 'heldout'")
    found = []
    for index in range(n):
        rng = random.Random(f"chainarith-rl:{split}:{seed}:{index}")
        count = low + index % (high - low + 1)
        found.append(sample_problem(rng, [count], MODULUS, split=split))
    return found


def dataset(
    n: int, seed: int = 0, ops: tuple[int, int] = (1, MAX_OPS), split: Split = "train"
) -> Dataset:
    """Problems as a dataset that `trl.GRPOTrainer` takes.

    Columns: `prompt` (text up to the open think tag, without a budget), `answer` (text), `ops`
    (number of operations).

    Args:
        n: rows.
        seed: of the sample.
        ops: fewest and most operations.
        split: see `problems`.

    Raises:
        InputError: as `problems` does.
        DependencyError: without the package datasets.
    """
    chains = problems(n, seed, ops, split)
    try:
        from datasets import Dataset
    except ImportError as error:
        raise DependencyError("RL needs datasets: pip install 'outlay[train]'") from error
    return Dataset.from_dict(
        {
            "prompt": [render_prompt(chain.question) for chain in chains],
            "answer": [chain.answer for chain in chains],
            "ops": [chain.operations for chain in chains],
        }
    )
