"""The OpenAI wire format: request bodies out, answers in, whichever dialect the server speaks.

One `Reply` gathers an answer, whole or streamed, from chat or completions. It understands the
log-probabilities of OpenAI's both APIs, of vLLM and of llama.cpp, and takes nothing on trust: a
field that is absent or of the wrong type is absent, and the caller finds out by looking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from outlay.errors import EndpointError
from outlay.models.base import Finish, SamplingParams

Api = Literal["chat", "completions"]
PATHS: dict[str, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Usage:
    """The server's own count, in tokens. `generated` includes `reasoning`; `prompt` is all of the
    prompt, `cached` the part of it whose KV was reused."""

    prompt: int
    cached: int
    generated: int
    reasoning: int = 0
    note: str = ""


@dataclass
class Choice:
    """One continuation as received so far."""

    text: str = ""
    reasoning: str = ""
    finish: str | None = None
    stop_reason: str | int | None = None
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None


def body(
    api: Api,
    *,
    model: str,
    prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
    sampling: SamplingParams,
    limit: int,
    n: int = 1,
    seed: int | None = None,
    limit_field: str = "max_tokens",
) -> dict[str, Any]:
    """A request body; knobs at their neutral value are left out, as servers may refuse them."""
    fields: dict[str, Any] = {
        "model": model,
        "messages" if api == "chat" else "prompt": prompt if isinstance(prompt, str) else [*prompt],
        limit_field if api == "chat" else "max_tokens": limit,
        "temperature": sampling.temperature,
    }
    if n > 1:
        fields["n"] = n
    if sampling.temperature > 0:
        if seed is not None:
            fields["seed"] = seed
        if sampling.top_p < 1:
            fields["top_p"] = sampling.top_p
        if sampling.top_k > 0:
            fields["top_k"] = sampling.top_k
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.min_tokens:
        fields["min_tokens"] = sampling.min_tokens
    if sampling.ignore_eos:
        fields["ignore_eos"] = True
    if sampling.logprobs:
        fields["logprobs"] = True if api == "chat" else 1
    return fields


@dataclass
class Reply:
    """Everything received in answer to one request."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None

    def add(self, payload: Mapping[str, Any]) -> str:
        """Take in one JSON object (a whole answer or a streamed piece); new text of choice 0.

        Raises:
            EndpointError: if `choices` is not a list of objects.
        """
        if payload.get("usage") is not None:
            self.usage = parse_usage(payload["usage"])
        rows = payload.get("choices")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise EndpointError(f"the answer's choices are {rows!r:.100}, not a list of objects")
        fresh = ""
        for position, row in enumerate(rows):
            index = row.get("index", position)
            index = index if isinstance(index, int) else position
            text = self._add_choice(self.choices.setdefault(index, Choice()), row)
            if index == 0:
                fresh += text
        return fresh

    def _add_choice(self, choice: Choice, row: Mapping[str, Any]) -> str:
        part = row.get("delta") or row.get("message") or row
        text = next((part[k] for k in ("content", "text") if isinstance(part.get(k), str)), "")
        choice.text += text
        for name in ("reasoning_content", "reasoning"):
            if isinstance(part.get(name), str):
                choice.reasoning += part[name]
                break
        if isinstance(row.get("finish_reason"), str):
            choice.finish = row["finish_reason"]
        if isinstance(row.get("stop_reason"), str | int):
            choice.stop_reason = row["stop_reason"]
        if isinstance(row.get("token_ids"), list):
            choice.token_ids += row["token_ids"]
        if isinstance(row.get("prompt_logprobs"), list):
            choice.prompt_logprobs = row["prompt_logprobs"]
        tokens, logprobs, offsets = parse_logprobs(row.get("logprobs"))
        choice.tokens += tokens
        choice.logprobs += logprobs
        choice.offsets += offsets
        return text

    def ordered(self) -> list[Choice]:
        """Choices by index."""
        return [self.choices[index] for index in sorted(self.choices)]

    @property
    def finished(self) -> bool:
        """True where every choice says why it ended."""
        return bool(self.choices) and all(c.finish for c in self.choices.values())


def parse_logprobs(value: Any) -> tuple[list[str], list[float], list[int]]:
    """Tokens, their log-probabilities (NaN where unknown) and, where given, their first
    characters; empty lists where there is nothing usable."""
    if not isinstance(value, dict):
        return [], [], []
    if isinstance(rows := value.get("content"), list):
        rows = [row for row in rows if isinstance(row, dict)]
        return (
            [str(row.get("token", "")) for row in rows],
            [_number(row.get("logprob")) for row in rows],
            [],
        )
    tokens, logprobs = value.get("tokens"), value.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list):
        return [], [], []
    if len(tokens) != len(logprobs):
        return [], [], []
    offsets = value.get("text_offset")
    whole = isinstance(offsets, list) and len(offsets) == len(tokens)
    return (
        [str(token) for token in tokens],
        [_number(logprob) for logprob in logprobs],
        [int(offset) for offset in offsets] if whole and offsets else [],
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def parse_usage(value: Any) -> Usage | None:
    """The usage block, None where it has no usable counts; `note` says what does not add up."""
    if not isinstance(value, dict):
        return None
    prompt, generated = _tokens(value.get("prompt_tokens")), _tokens(value.get("completion_tokens"))
    if prompt is None or generated is None:
        return None
    details = value.get("prompt_tokens_details")
    cached = _tokens(details.get("cached_tokens")) if isinstance(details, dict) else None
    details = value.get("completion_tokens_details")
    reasoning = _tokens(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    notes = []
    if (cached or 0) > prompt:
        notes.append(f"usage says {cached} cached of {prompt} prompt tokens")
    total = _tokens(value.get("total_tokens"))
    if total is not None and total != prompt + generated:
        notes.append(f"usage says {total} tokens in total, its parts sum to {prompt + generated}")
    return Usage(prompt, min(cached or 0, prompt), generated, reasoning or 0, "; ".join(notes))


def _tokens(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


def settle_text(
    choice: Choice, sampling: SamplingParams, *, cut: bool, truncated: bool
) -> tuple[str, Finish, str]:
    """A choice's text, why it ended in our terms, and a note on what the server did wrong.

    Args:
        choice: the choice as received.
        sampling: what was asked for.
        cut: True where we stopped reading because time ran out.
        truncated: True where the budget granted fewer tokens than were asked for.
    """
    text = choice.text
    if cut and choice.finish is None:
        return text, "budget", ""
    if choice.finish == "length":
        # Ended by length although a stop string came long before: the server ignored `stop`.
        ends = [text.find(stop) + len(stop) for stop in sampling.stop if stop in text]
        if ends and min(ends) < len(text):
            return text[: min(ends)], "stop", "server ignored stop; text cut after it"
        return text, "budget" if truncated else "length", ""
    note = "" if choice.finish in ("stop", None) else f"finish_reason {choice.finish!r}"
    if isinstance(choice.stop_reason, str) and choice.stop_reason in sampling.stop:
        if not text.endswith(choice.stop_reason):
            text += choice.stop_reason  # vLLM takes it off and says which one it was
        return text, "stop", note
    stopped = bool(sampling.stop or sampling.stop_token_ids)
    return text, "stop" if stopped else "eos", note
