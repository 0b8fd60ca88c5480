"""From knobs to rules: a method and a tokenizer give what a controller obeys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from outlay.decode.swireasoning import markers as marks
from outlay.decode.swireasoning.controller import Anchor, Rules
from outlay.decode.swireasoning.method import SwiReasoning
from outlay.errors import BudgetError


def rules_of(
    method: SwiReasoning, tokenizer: Any, name: str, found: marks.Markers
) -> tuple[Rules, dict[Anchor, int]]:
    """The rules of every sequence (`steps` is each one's own), and the anchors' tokens.

    Raises:
        InputError: for text that the tokenizer cannot write.
        BudgetError: if `answer_budget` does not hold the text that opens the answer.
    """
    newline = marks.newline_id(tokenizer, method.newline_token, name)
    anchors: dict[Anchor, int] = {"think": found.think_id, "end_think": found.end_think_id}
    if newline is not None:
        anchors["newline"] = newline
    if method.math_tokens == "auto":
        discrete = marks.formula_ids(tokenizer)
    else:
        texts = () if method.math_tokens == "none" else method.math_tokens
        discrete = marks.text_ids(tokenizer, texts)
    rules = Rules(
        steps=1,
        end_think_id=found.end_think_id,
        alpha0=method.alpha0,
        beta0=method.beta0,
        window=method.window,
        c_max=method.limit,
        discrete_ids=discrete,
        start_mode=method.start_mode,
        lock_on_injected=method.lock_on_injected,
        start_mix=newline is not None,
    )
    if method.limit is not None:
        opening = signal(method, "termination", tokenizer, found.end_think_id, name)
        rules = replace(
            rules,
            convergence_ids=signal(method, "convergence", tokenizer, found.end_think_id, name),
            termination_ids=opening,
            answer_budget=_answer_limit(method, len(opening)),
        )
    return rules, anchors


def signal(
    method: SwiReasoning,
    which: Literal["convergence", "termination"],
    tokenizer: Any,
    end_think_id: int,
    name: str,
) -> tuple[int, ...]:
    """The tokens that a signal injects."""
    knob = f"{which}_text"
    ids = marks.signal_ids(tokenizer, knob, getattr(method, knob), end_think_id, name)
    return tuple(ids)


def _answer_limit(method: SwiReasoning, prefix: int) -> int:
    """Steps that the termination signal leaves; that of the trigger counts, as published."""
    if not method.budget_includes_prefix:
        return method.answer_budget + prefix + 1
    if method.answer_budget <= prefix + 1:
        raise BudgetError(
            f"answer_budget={method.answer_budget} does not hold the {prefix} tokens of "
            f"termination_text and an answer; raise it to at least {prefix + 2}"
        )
    return method.answer_budget
