"""Thinking budgets that a server enforces itself: one request with its own parameter.

vLLM takes `thinking_token_budget` per request (the server is started with a reasoning parser or
`--reasoning-config`); llama.cpp's server takes `thinking_budget_tokens` in chats. Both close the
thinking at the limit; neither can lengthen it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from outlay.budget import Budget
from outlay.decode.base import ThinkResult
from outlay.decode.delimiters import Delimiters
from outlay.decode.limits import thinking_limit
from outlay.errors import CapabilityError
from outlay.models.base import Account, Model, Prompt, SamplingParams

Server = Literal["client", "vllm", "llama.cpp"]
_FIELDS = {"vllm": "thinking_token_budget", "llama.cpp": "thinking_budget_tokens"}


def served(
    model: Model,
    prompt: Prompt,
    budget: Budget | None,
    sampling: SamplingParams,
    account: Account,
    *,
    server: Server,
    delimiters: Delimiters,
    max_think: int | None,
    max_answer: int,
) -> ThinkResult:
    """Answer `prompt` in one request whose thinking the server bounds.

    Everything is booked in stage "answer", as one request has one bill. Chats come back without
    their thinking: its tokens are then part of the answer's count, as the server bills them.

    Raises:
        CapabilityError: if the model is no endpoint, or its server does not take the parameter.
    """
    name = _FIELDS[server]
    endpoint: Any = model
    if not hasattr(model, "with_thinking_budget"):
        raise CapabilityError(
            f"server={server!r} needs an endpoint whose server takes {name!r}; {model.name} is "
            "none: use server='client'"
        )
    ending = model.count(delimiters.close)
    limit = thinking_limit(
        model,
        account,
        budget,
        prompt=_size(model, prompt),
        forced=ending,
        max_think=max_think,
        max_answer=max_answer,
    )
    view = endpoint.with_thinking_budget(limit)
    if name not in view.extra_body:
        raise CapabilityError(
            f"server={server!r} sends {name!r}, which the server of {model.name} does not take; "
            "choose the server= that it is, or server='client'"
        )
    most = limit + ending + max_answer
    before = len(account.ledger)
    made = view.generate(prompt, None, replace(sampling, max_tokens=most), account=account)
    head, marker, rest = made.text.partition(delimiters.close)
    total = sum(entry.generated for entry in account.ledger.entries[before:])
    thought = min(total, model.count(head + marker)) if marker else 0
    return ThinkResult(
        text=rest if marker else made.text,
        token_ids=made.token_ids,
        finish_reason=made.finish_reason,
        ledger=made.ledger,
        logprobs=made.logprobs,
        thinking=head.removeprefix(delimiters.open) if marker else "",
        think_finish="length" if thought >= limit else "stop",
        tokens={"thinking": thought, "forced": 0, "answer": total - thought},
    )


def _size(model: Model, prompt: Prompt) -> int:
    """About how many tokens a prompt has, before the server renders it."""
    if isinstance(prompt, str):
        return model.count(prompt)
    return sum(1 if isinstance(part, int) else model.count(part["content"]) for part in prompt)
