"""How many tokens a prompt may think: one number from the knob, the budgets and the window."""

from __future__ import annotations

import math

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.models.base import Account, Model


def thinking_limit(
    model: Model,
    account: Account,
    budget: Budget | None,
    *,
    prompt: int,
    forced: int,
    max_think: int | None,
    max_answer: int,
) -> int:
    """B: the least of the knob, what the budgets leave after the answer, and the window.

    A budget's stages "think" and "answer" are honoured. Of an unsplit budget of generated tokens,
    and of the window, a quarter (at most `max_answer`) is kept for the answer.

    Args:
        model: its window counts.
        account: its meter counts.
        budget: counts, too, where it differs from the meter's.
        prompt: tokens of the prompt, already spent on the account's meter.
        forced: most tokens of the forced close.
        max_think, max_answer: the knobs.

    Raises:
        InputError: if the prompt leaves no room in the window.
        BudgetError: if a budget leaves nothing for an answer.
    """
    room = model.context_length - prompt - forced
    if room < 1:
        raise InputError(
            f"the prompt of {prompt} tokens and {forced} forced ones leave nothing of "
            f"{model.name}'s window of {model.context_length}; shorten the prompt"
        )
    limits = [room - _reserve(room, max_answer)]
    if max_think is not None:
        limits.append(max_think)
    meters = [] if account.meter is None else [account.meter]
    if budget is not None and account.meter is not None and account.meter.budget != budget:
        meters.append(budget.meter())
    for meter in meters:
        counts, stages = meter.budget.counts, meter.budget.stages or {}
        think, total = meter.remaining("think"), meter.remaining()
        if think is None or total is None or meter.budget.shapes_prompt:
            continue
        if counts != "think":
            if counts == "all":
                total -= forced + (0 if meter is account.meter else prompt)
            if total < 1:
                raise BudgetError(
                    f"{meter.budget.label()}: nothing is left for an answer after a prompt of "
                    f"{prompt} and {forced} forced tokens; the least is tokens="
                    f"{(meter.budget.tokens or 0) + 1 - total}"
                )
            if "answer" in stages:
                total -= min(total, stages["answer"])
            elif "think" not in stages:
                total -= _reserve(total, max_answer)
        limits.append(min(think, total))
    return max(0, min(limits))


def _reserve(tokens: int, max_answer: int) -> int:
    return min(max_answer, math.ceil(tokens / 4))
