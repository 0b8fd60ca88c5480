"""Reading plans out of replies: strict, and always with a reason that the model can act on.

The official code takes the first `{...}` of a reply, wants exact spaces, and drops malformed
actions without a word. Here a reply holds one plan, a JSON object of strings; keys may differ in
white space; anything else is an error text for the next prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.evals.robots.base import World

MAX_REPLY = 20_000
MAX_BRACES = 200  # places in a reply at which a plan is looked for
_EXECUTE = re.compile(r"^[ \t]*EXECUTE[ \t]*:?[ \t]*$", re.MULTILINE)
_AGREE = re.compile(r"\bI agree\b", re.IGNORECASE)
_BUT = re.compile(r"\b(but|however|except|although|unless|though|only if)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Read:
    """What a reply holds.

    Args:
        plan: None where there is no usable plan.
        errors: why, one text a reason; () where the plan can be taken.
    """

    plan: dict[str, str] | None
    errors: tuple[str, ...] = ()


class _DuplicateError(ValueError):
    pass


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _DuplicateError(key)
        seen[key] = value
    return seen


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _objects(text: str) -> list[dict[str, Any]]:
    """Top-level JSON objects in `text`, in order, each once."""
    found: list[dict[str, Any]] = []
    start = text.find("{")
    for _ in range(MAX_BRACES):
        if start < 0:
            break
        end = start + 1
        try:
            value, end = _DECODER.raw_decode(text, start)
        except _DuplicateError:
            raise
        except (ValueError, RecursionError):
            pass
        else:
            if value not in found:
                found.append(value)
        start = text.find("{", end)
    return found


def extract(reply: str) -> Read:
    """The one plan of `reply`, in prose or a fenced block, keys as written."""
    if len(reply) > MAX_REPLY:
        return Read(None, (f"the reply has {len(reply)} characters; keep it short",))
    try:
        found = _objects(reply)
    except _DuplicateError as error:
        return Read(None, (f"the key {str(error)!r} appears twice in the plan; use it once",))
    if not found:
        return Read(None, ("the reply holds no plan; write it as a JSON object, {} for none",))
    if len(found) > 1:
        return Read(None, (f"the reply holds {len(found)} different plans; write one",))
    (plan,) = found
    if bad := [key for key, value in plan.items() if not isinstance(value, str)]:
        return Read(None, tuple(f"{key}: its action is not a text in quotes" for key in bad))
    return Read(plan)


def read_plan(world: World[Any, Any], state: Any, reply: str, *, collisions: bool = False) -> Read:
    """The plan of `reply` if `world` would take it in `state`, else every reason against it.

    Args:
        world: judges.
        state: before the step.
        reply: text with one JSON object.
        collisions: refuse plans that lead to a collision as well (a checker without a model).
    """
    read = extract(reply)
    if read.plan is None:
        return read
    plan: dict[str, str] = {}
    for key, action in read.plan.items():
        name = world.canonical(key)
        if name in plan:
            return Read(None, (f"{name} appears twice in the plan; use it once",))
        plan[name] = action
    step = world.step(state, plan)
    errors = tuple(refusal.text() for refusal in step.refusals)
    if collisions:
        errors += tuple(f"the plan leads to a {collision.text()}" for collision in step.collisions)
    return Read(plan, errors)


def final_plan(speech: str) -> str | None:
    """What follows the last line EXECUTE of a speech; None for a speech that goes on."""
    found = list(_EXECUTE.finditer(speech))
    return speech[found[-1].end() :] if found else None


def agrees(reply: str, rule: str) -> bool:
    """True if a reviewer's reply is agreement.

    Args:
        reply: the reviewer's.
        rule: "exact": nothing but "I Agree". "contains": the words occur, and no "but" follows
            them.
    """
    if rule == "exact":
        return reply.strip() == "I Agree"
    found = _AGREE.search(reply)
    return found is not None and _BUT.search(reply, found.end()) is None


def plan_text(plan: dict[str, str]) -> str:
    """The plan as JSON on one line."""
    return json.dumps(plan, ensure_ascii=False)
