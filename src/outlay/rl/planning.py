"""From a planner's rows to what generation needs: checked budgets, prefixes and caps. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.errors import BudgetError, InputError
from outlay.rl.base import MAX_BUDGET, Prefix, Row


@dataclass(frozen=True)
class Plan:
    """How this process's rows are generated.

    Args:
        prefixes: forced tokens of each row.
        caps: most *sampled* tokens of each row.
        prefix: where forced tokens go.
        limit: the largest cap of all processes; None if no row of any process has a cap or a
            prefix, so that generation is TRL's own.
    """

    prefixes: list[list[int]]
    caps: list[int]
    prefix: Prefix
    limit: int | None

    @property
    def inside(self) -> list[int]:
        """Forced tokens at the start of each completion."""
        return [0 if self.prefix == "prompt" else len(ids) for ids in self.prefixes]


def with_members(rows: Sequence[Row], first: int, group: int) -> list[Row]:
    """Copies of rows that know which rollout of their question they are.

    Args:
        rows: of this process.
        first: index of its first row among all processes' rows.
        group: G.
    """
    return [{**row, "member": (first + index) % group} for index, row in enumerate(rows)]


def check_rows(given: Sequence[Row], planned: Sequence[Row], context: int | None) -> list[Row]:
    """What a planner returned, made uniform: every row has the keys of a plan.

    Args:
        given: what it was given.
        planned: what it returned.
        context: most tokens that the model can read, None where unknown.

    Raises:
        InputError: for another number of rows, or a key of a wrong type.
        BudgetError: for a budget or cap that is not positive, or a budget beyond the context.
    """
    if len(planned) != len(given):
        raise InputError(
            f"assign() returned {len(planned)} rows for {len(given)}; return one a row, in order"
        )
    rows = []
    for index, row in enumerate(planned):
        if not isinstance(row, dict) or "prompt" not in row:
            raise InputError(f"assign() returned a row {index} without a prompt; keep its columns")
        budget, cap = row.get("budget"), row.get("hard_cap")
        if budget is not None:
            _check_budget(index, budget, context)
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            raise BudgetError(
                f"row {index}: hard_cap={cap!r}; must be a whole number >= 1, or None"
            )
        prefix = [int(token) for token in row.get("prefix_ids") or ()]
        rows.append({**row, "budget": budget, "hard_cap": cap, "prefix_ids": prefix})
    return rows


def _check_budget(index: int, budget: Any, context: int | None) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not math.isfinite(budget):
        raise BudgetError(f"row {index}: budget={budget!r}; must be a number of tokens, or None")
    if budget <= 0:
        raise BudgetError(f"row {index}: budget={budget:g}; must be positive")
    if budget > min(context or MAX_BUDGET, MAX_BUDGET):
        raise BudgetError(
            f"row {index}: budget={budget:g} exceeds the model's context of {context or MAX_BUDGET}"
            " tokens; lower the budgets of the method"
        )


def make_plan(rows: Sequence[Row], prefix: Prefix, longest: int) -> Plan:
    """Prefixes and caps of checked rows; `limit` is of this process only.

    Args:
        rows: from `check_rows`.
        prefix: where forced tokens go.
        longest: `max_completion_length`; forced tokens in the completion count.

    Raises:
        BudgetError: if a prefix leaves no token to be sampled.
    """
    prefixes = [row["prefix_ids"] for row in rows]
    caps = []
    for index, row in enumerate(rows):
        most = longest if row["hard_cap"] is None else min(row["hard_cap"], longest)
        forced = 0 if prefix == "prompt" else len(prefixes[index])
        if most - forced < 1:
            raise BudgetError(
                f"row {index}: a prefix of {forced} tokens leaves none of its {most}; shorten "
                "prefix_ids, or raise hard_cap or max_completion_length"
            )
        caps.append(most - forced)
    special = any(prefixes) or any(row["hard_cap"] is not None for row in rows)
    return Plan(prefixes, caps, prefix, max(caps) if special else None)
