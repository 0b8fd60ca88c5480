"""What helper processes compute: whether an answer is right. No torch."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

RIGHT = 1 - 1e-6
"""reasoning-gym pays a little for some wrong answers: only full marks count as right."""


def math_equal(gold: str, answer: str) -> bool:
    """math-verify's judgement, gold first: the comparison is not symmetric."""
    from math_verify import parse, verify

    def read(text: str) -> Any:
        # A bare expression needs an anchor, or only its last number would be seen.
        if "$" not in text and "\\boxed" not in text:
            escaped = text.replace("\\%", "%").replace("%", "\\%")
            found = parse(f"${escaped}$", parsing_timeout=None)
            if found:
                return found
        return parse(text, parsing_timeout=None)

    expected, given = read(gold), read(answer)
    return bool(expected and given and verify(expected, given, timeout_seconds=None))


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
