"""Which texts of a request may be shortened, and what is asked about them.

Only user messages: system, assistant and tool messages are never touched. The last user text asks.
What it asks about is, in this order: its fenced blocks (```), or what stands between its first and
its last paragraph; and every earlier user text as a whole. The rest of the last text is the
question, and is kept word for word. A request can name its question itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlay.gateway.config import Endpoint

Path = tuple[str | int, ...]
_FENCE = re.compile(r"^```[^\n]*\n(?P<inside>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_LONGEST_QUESTION = 4_000  # characters of a paragraph that is taken for a question
_TEXTS = frozenset({"text", "input_text"})


@dataclass(frozen=True)
class Piece:
    """A part of a text: characters `start` to `end` of what is at `path` in the body."""

    path: Path
    start: int
    end: int
    text: str


def find(
    endpoint: Endpoint, fields: Mapping[str, Any], question: str = ""
) -> tuple[str, list[Piece]]:
    """The question and the pieces that may be shortened."""
    texts = list(_texts(endpoint, fields))
    if not texts:
        return question, []
    *earlier, (path, asking) = texts
    asked, spans = _split(asking)
    pieces = [Piece(where, 0, len(text), text) for where, text in earlier if text.strip()]
    pieces += [Piece(path, start, end, asking[start:end]) for start, end in spans]
    return question or asked, pieces


def _texts(endpoint: Endpoint, fields: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    if endpoint == "chat":
        yield from _messages("messages", fields["messages"])
    elif endpoint == "responses":
        given = fields["input"]
        if isinstance(given, str):
            yield ("input",), given
        else:
            yield from _messages("input", given)
    elif endpoint == "completions" and isinstance(fields.get("prompt"), str):
        yield ("prompt",), fields["prompt"]


def _messages(name: str, messages: Sequence[Any]) -> Iterator[tuple[Path, str]]:
    for at, message in enumerate(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield (name, at, "content"), content
        elif isinstance(content, list):
            for index, part in enumerate(content):
                kind = part.get("type") if isinstance(part, dict) else None
                if kind in _TEXTS and isinstance(part.get("text"), str):
                    yield (name, at, "content", index, "text"), part["text"]


def _split(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The question in a text, and the spans that it is about."""
    fences = list(_FENCE.finditer(text))
    if fences:
        # Splitting gives what is outside and, in between, the one group: what is inside.
        outside = "".join(_FENCE.split(text)[::2])
        return outside.strip(), [match.span("inside") for match in fences]
    first, last = text.find("\n\n"), text.rfind("\n\n")
    if first < 0:
        return text, []
    start = first + 2 if first <= _LONGEST_QUESTION and first != last else 0
    end = last if len(text) - last - 2 <= _LONGEST_QUESTION else len(text)
    asked = (text[:start] + text[end:]).strip()
    if not asked or end <= start:
        return text, []
    return asked, [(start, end)]


def replaced(fields: Mapping[str, Any], changes: Sequence[tuple[Piece, str]]) -> dict[str, Any]:
    """A copy of the body with pieces replaced; everything else is the same."""
    made: Any = dict(fields)
    for piece, text in sorted(changes, key=lambda change: change[0].start, reverse=True):
        made = _with(made, piece.path, piece, text)
    body: dict[str, Any] = made
    return body


def _with(value: Any, path: Path, piece: Piece, text: str) -> Any:
    if not path:
        return value[: piece.start] + text + value[piece.end :]
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copy[path[0]] = _with(copy[path[0]], path[1:], piece, text)
    return copy
