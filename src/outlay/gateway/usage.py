"""What was used: the upstream's own report, and a count of what it sent.

The larger of the two is charged. Without a tokenizer every non-empty piece of a stream counts as
one token, which no server undercuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outlay.gateway.bounds import Counter
from outlay.gateway.config import Endpoint


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `cached` is part of `prompt`, `reasoning` of `output`."""

    prompt: int
    cached: int
    output: int
    reasoning: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.output + other.output,
            self.reasoning + other.reasoning,
        )


def read_usage(payload: Any) -> Usage | None:
    """OpenAI's usage object of either API; None if there is none that can be believed."""
    if not isinstance(payload, dict):
        return None
    prompt = _whole(payload, "prompt_tokens", "input_tokens")
    output = _whole(payload, "completion_tokens", "output_tokens")
    if prompt is None:
        return None
    total = _whole(payload, "total_tokens")
    if output is None:
        output = 0 if total is None else max(0, total - prompt)
    elif total is not None and total > prompt + output:
        output = total - prompt
    inputs = payload.get("prompt_tokens_details") or payload.get("input_tokens_details")
    outputs = payload.get("completion_tokens_details") or payload.get("output_tokens_details")
    cached = _whole(inputs, "cached_tokens") or 0
    reasoning = _whole(outputs, "reasoning_tokens") or 0
    return Usage(prompt, min(cached, prompt), output, min(reasoning, output))


def _whole(payload: Any, *names: str) -> int | None:
    if not isinstance(payload, dict):
        return None
    for name in names:
        value = payload.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
            return value
    return None


@dataclass
class Tally:
    """Follows an answer, whole or in pieces.

    Args:
        endpoint: whose format it has.
        count: the model's tokenizer, None without one.
    """

    endpoint: Endpoint
    count: Counter | None
    usage: Usage | None = None
    pieces: int = 0
    ended: bool = False
    _texts: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    def whole(self, payload: Mapping[str, Any]) -> None:
        """Take in a whole answer."""
        self.usage = read_usage(payload.get("usage"))
        self.ended = True
        if self.endpoint == "responses":
            self._take(0, "output", payload.get("output"))
            return
        for index, choice in enumerate(_objects(payload.get("choices"))):
            self._take(index, "text", choice.get("text"))
            self._take(index, "message", choice.get("message"))

    def piece(self, payload: Mapping[str, Any]) -> str:
        """Take in one event of a stream; the text that it adds to the first choice."""
        if self.endpoint == "responses":
            return self._event(payload)
        usage = read_usage(payload.get("usage"))
        self.usage = usage or self.usage
        first = ""
        for position, choice in enumerate(_objects(payload.get("choices"))):
            index = choice.get("index")
            index = index if isinstance(index, int) else position
            delta = choice.get("delta") if self.endpoint == "chat" else choice
            text = "".join(self._take(index, "delta", delta))
            self.pieces += bool(text)
            if index == 0:
                first += text
            if choice.get("finish_reason") is not None:
                self.ended = True
        return first

    def _event(self, payload: Mapping[str, Any]) -> str:
        kind = payload.get("type")
        response = payload.get("response")
        if isinstance(response, dict) and response.get("usage") is not None:
            self.usage = read_usage(response["usage"]) or self.usage
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.ended = True
        delta = payload.get("delta")
        if isinstance(kind, str) and kind.endswith(".delta") and isinstance(delta, str) and delta:
            self.pieces += 1
            place = payload.get("output_index")
            self._texts.setdefault((place if isinstance(place, int) else 0, kind), []).append(delta)
            return delta
        return ""

    def _take(self, index: int, name: str, value: Any) -> list[str]:
        """Keep the generated strings inside `value`; those that were new."""
        found: list[str] = []
        open_: list[tuple[str, Any]] = [(name, value)]
        while open_:
            where, each = open_.pop()
            if isinstance(each, str):
                if each:
                    found.append(each)
                    self._texts.setdefault((index, where), []).append(each)
            elif isinstance(each, dict):
                open_ += [(key, each[key]) for key in _GENERATED if key in each]
            elif isinstance(each, list):
                open_ += [(f"{where}{i}", inner) for i, inner in enumerate(each)]
        return found

    def said(self) -> dict[str, str]:
        """What the first choice says so far, by field."""
        return {field: "".join(texts) for (index, field), texts in self._texts.items() if not index}

    def output(self) -> int:
        """Generated tokens by our own count: at least this many were sent."""
        if self.count is None:
            return self.pieces
        return sum(self.count("".join(texts)) for texts in self._texts.values())


_GENERATED = (
    "content",
    "text",
    "refusal",
    "reasoning_content",
    "reasoning",
    "summary",
    "tool_calls",
    "function_call",
    "function",
    "name",
    "arguments",
    "input",
)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
