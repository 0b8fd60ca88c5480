"""What the in-context model can do: accuracy by family and number of examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outlay.testbeds.icl.world import ARROW, FAMILIES, MAX_ITEMS, draw_instance


@dataclass(frozen=True)
class Row:
    """Accuracy of one family with k examples."""

    family: str
    k: int
    n: int
    accuracy: float


def table(ask: Callable[[Sequence[str]], Sequence[str]], n: int = 500, seed: int = 1) -> list[Row]:
    """Accuracies of every family with 0..8 examples, on `n` rules each."""
    rows = []
    for family in FAMILIES:
        rng = random.Random(f"evaluate:{seed}:{family}")
        made = [draw_instance(rng, family, MAX_ITEMS - 1) for _ in range(n)]
        for k in range(MAX_ITEMS):
            prompts = [
                "".join(item.text for item in one.pool[:k]) + one.question.question + ARROW
                for one in made
            ]
            answers = ask(prompts)
            right = sum(a == one.question.answer for a, one in zip(answers, made, strict=True))
            rows.append(Row(family, k, n, right / n))
    return rows


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON-ready dictionaries."""
    return [asdict(row) for row in rows]
