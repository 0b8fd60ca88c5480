"""Reading what a planner wrote: numbered sub-questions with hints, and JSON that may be broken.

The published reader takes an item only together with the `Hint:` line after it, so an item without
one is swallowed by the next, and sub-questions no longer match their credits. Here items and hints
are read apart, and every credit is looked up by its number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 20_000  # characters of a reply that are looked at
_ITEM = re.compile(
    r"^\s*[*#_>\s]*(?:step|sub-?question|question)?\s*(\d{1,2})\s*[.):]\s*(.*)$", re.I
)
_HINT = re.compile(r"^\s*[*_>\s-]*hint\s*\d*[*_\s]*:[*_\s]*(.*)$", re.I)
_CREDIT = ("credit", "credits", "points", "score", "weight")
_LEVEL = ("level", "evaluated_level", "difficulty")


def read_steps(text: str) -> list[tuple[str, str]]:
    """Sub-questions with their hints ("" where there is none), in the order of the list.

    Numbers must rise from 1; a line that repeats or skips one belongs to the item before.
    """
    items: list[list[str]] = []
    hinting = False
    for line in _answer(text).splitlines():
        hint, item = _HINT.match(line), _ITEM.match(line)
        if hint and items:
            items[-1][1] = f"{items[-1][1]} {hint[1]}".strip()
            hinting = True
        elif item and int(item[1]) == len(items) + 1:
            items.append([item[2].strip(" *_"), ""])
            hinting = False
        elif items and line.strip():
            part = 1 if hinting else 0
            items[-1][part] = f"{items[-1][part]} {line.strip()}".strip()
    return [(step, hint) for step, hint in items if step]


def read_json(text: str) -> Any:
    """The first JSON object or list in a reply, repaired where it is nearly one; None without.

    Repaired are: text around it, missing and trailing commas, single quotes, an end cut off.
    """
    text = _answer(text)
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return None
    body = _balanced(text[min(starts) :])
    for candidate in (body, _repaired(body), _repaired(body.replace("'", '"'))):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
        except RecursionError:
            return None
    return None


def _answer(text: str) -> str:
    return text[:LONGEST].rsplit("</think>", 1)[-1]


def _balanced(text: str) -> str:
    """`text` up to the bracket that closes its first one, with brackets that are missing added."""
    closing: list[str] = []
    quoted = escaped = False
    for at, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "{[":
            closing.append("}" if char == "{" else "]")
        elif char in "}]" and closing:
            closing.pop()
            if not closing:
                return text[: at + 1]
    return text.rstrip().rstrip(",") + '"' * quoted + "".join(reversed(closing))


def _repaired(text: str) -> str:
    text = re.sub(r",\s*([}\]])", r"\1", text)
    return re.sub(r'(["\d}\]])(\s*\n\s*|\s+)(["{])', r"\1,\2\3", text)


def read_level(text: str) -> int | None:
    """`evaluated_level` (or `level`) of a reply, None where there is no level 1..5."""
    found = read_json(text)
    return _level(found) if isinstance(found, Mapping) else None


@dataclass(frozen=True)
class Weight:
    """What a planner thinks of one sub-question."""

    credit: float
    level: int | None


def read_weights(text: str, steps: int) -> list[Weight] | None:
    """Credits and levels of sub-questions 1..m; None unless each has a credit and one is positive.

    Entries with other keys, such as the problem itself, are ignored.
    """
    found = read_json(text)
    if isinstance(found, Mapping) and not any(str(n) in found for n in range(1, steps + 1)):
        lists = [value for value in found.values() if isinstance(value, list | Mapping)]
        found = lists[0] if len(lists) == 1 else found
    if isinstance(found, list):
        found = {str(number): entry for number, entry in enumerate(found, 1)}
    if not isinstance(found, Mapping):
        return None
    weights = []
    for number in range(1, steps + 1):
        entry = found.get(str(number))
        credit = entry if isinstance(entry, int | float) else None
        if isinstance(entry, Mapping):
            credit = next((entry[name] for name in _CREDIT if name in entry), None)
        value = _number(credit)
        if value is None or value < 0:
            return None
        weights.append(Weight(value, _level(entry) if isinstance(entry, Mapping) else None))
    return weights if any(weight.credit for weight in weights) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value).strip().rstrip("%"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _level(entry: Mapping[str, Any]) -> int | None:
    value = next((_number(entry[name]) for name in _LEVEL if name in entry), None)
    return int(value) if value is not None and value in (1, 2, 3, 4, 5) else None
