"""What helper processes compute: whether an answer is right. No torch."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

RIGHT = 1 - 1e-6
"""reasoning-gym pays a little for some wrong answers: only full marks count as right."""


def math_equal(gold: str, answer: str) -> bool:
    """math-verify's judgement, without a limit of time."""
    from outlay.evals.mathguard import equal

    return equal(gold, answer)


def gym_score(task: str, config: str, entry: str, answer: str) -> float:
    """reasoning-gym's score of an answer.

    Args:
        task: name of the data set.
        config: its settings, as JSON.
        entry: the problem as reasoning-gym made it, as JSON.
        answer: what was answered.
    """
    return float(_gym(task, config).score_answer(answer=answer, entry=json.loads(entry)))


@lru_cache(maxsize=8)
def _gym(task: str, config: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **{"size": 1, **json.loads(config)})
