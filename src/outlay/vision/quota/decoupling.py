"""What a question needs to be seen: its objects, or its key event (paper, section 3.2).

A long question confuses a small scorer. So a text model is asked first, in three steps, which
objects must be seen; every frame is then asked only whether it shows one of them. `event` makes one
simple question about what happens instead. A reply that cannot be read falls back to the question
itself.

The prompts are our own words for the paper's three steps. The release evaluates the reply as Python
code; here it is only read.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.models.base import Account, Message, SamplingParams
from outlay.vision.quota.checks import one_of, whole
from outlay.vision.quota.templated import check_question, cleaned, templated

Mode = Literal["entity", "event", "none"]
Ask = Callable[[str], str]
"""A text model: a prompt, and what it says."""
LONGEST_REPLY = 20_000

ENTITY_PROMPT = """\
Before a video is searched, work out which things have to be found in its frames to answer a \
question about it. Go in three steps and write nothing else.
Step 1: does the answer depend on seeing particular physical things? Write yes or no.
Step 2: list the things to look for, as a list of strings.
Step 3: keep only what can be seen and pointed at (no actions, no feelings, no times), as a list \
of strings, or null if nothing is left.

Question: Where does the woman put the blue umbrella?
Step 1: yes
Step 2: ["woman", "blue umbrella", "place"]
Step 3: ["woman", "blue umbrella"]

Question: What is the mood of the whole film?
Step 1: no
Step 2: []
Step 3: null

Question: How many dogs run across the bridge at night?
Step 1: yes
Step 2: ["dogs", "bridge", "running", "night"]
Step 3: ["dogs", "bridge"]

Question: {question}
"""
EVENT_PROMPT = """\
Turn a question about a video into one short question, to be answered by yes or no, that tells \
whether a single frame shows the moment that matters. Write only that question.

Question: Why does the boy drop his cup?
Frame question: Is a boy dropping a cup?

Question: What happens after the car stops at the gate?
Frame question: Is a car standing at a gate?

Question: {question}
Frame question:"""
ENTITY_CHOICE = """\
Does the image contain any of these: {entities}?
A. yes
B. no
Answer with the letter of the right choice."""
QUESTION_CHOICE = """\
{question}
Does the image hold enough information to answer this question?
A. yes
B. no
Answer with the letter of the right choice."""
EVENT_CHOICE = """\
{event}
A. yes
B. no
Answer with the letter of the right choice."""

_STEP1 = re.compile(r"step[\s_*]*1[^a-z]*?(yes|no)\b")
_STEP3 = re.compile(r"step[\s_*]*3\b")
_STEP = re.compile(r"step[\s_*]*\d\b")
_NOTHING = re.compile(r"^[\s:*_=\-.\"'`]*(null|none|nothing|n/a|\[\s*\])")
_QUOTED = re.compile(r'"([^"\n]{1,200})"|\'([^\'\n]{1,200})\'')


@dataclass(frozen=True)
class Asked:
    """What every frame is asked.

    Args:
        text: the whole prompt, with choices A and B.
        question: as the user asked it.
        entities: that a frame should show; empty where the question itself is put.
        event: the simple question about an event, or "".
        parsed: False where a reply could not be read and the question itself is put instead.
        reply: of the text model; "" without one.
    """

    text: str
    question: str
    entities: tuple[str, ...] = ()
    event: str = ""
    parsed: bool = True
    reply: str = ""


Frames = Sequence[Any]
"""Of one video: arrays (H, W, 3), pictures of Pillow, tensors; whatever a scorer takes."""


class Scorer(Protocol):
    """What scores frames."""

    def __call__(self, frames: Frames, asked: Asked) -> Sequence[float]:
        """One score >= 0 a frame."""
        ...


def decouple(question: str, ask: Ask | None = None, mode: Mode = "entity") -> Asked:
    """What to ask of every frame.

    Args:
        question: of the user, with its options if it has any.
        ask: a text model; None takes `templated`, which needs none (mode "entity" only).
        mode: "entity", "event", or "none".

    Raises:
        InputError: for a question that is empty or too long, an unknown mode, or mode "event"
            without a model.
    """
    one_of("decouple", mode, get_args(Mode))
    check_question(question)
    itself = QUESTION_CHOICE.format(question=question.strip())
    if mode == "none":
        return Asked(itself, question)
    if mode == "event":
        if ask is None:
            raise InputError("decouple='event' needs a text model; give ask, or use 'entity'")
        reply = ask(EVENT_PROMPT.format(question=question.strip()))
        event = parse_event(reply)
        if event is None:
            return Asked(itself, question, parsed=False, reply=reply)
        return Asked(EVENT_CHOICE.format(event=event), question, event=event, reply=reply)
    if ask is None:
        entities: tuple[str, ...] | None = templated(question)
        reply = ""
    else:
        reply = ask(ENTITY_PROMPT.format(question=question.strip()))
        entities = parse_entities(reply)
    if not entities:
        return Asked(itself, question, parsed=entities is not None, reply=reply)
    text = ENTITY_CHOICE.format(entities=", ".join(entities))
    return Asked(text, question, entities, reply=reply)


def parse_entities(reply: str) -> tuple[str, ...] | None:
    """The objects of a three-step reply; empty where it says that none matters; None where it
    cannot be read.

    The list after step 3 counts, as JSON or as Python writes it, also if it is cut off, and also
    after a "no" in step 1, where small models contradict themselves. Markdown, another case and
    text around the steps do not matter.
    """
    text = reply[:LONGEST_REPLY].rsplit("</think>", 1)[-1].lower()
    first, third = _STEP1.search(text), _STEP3.search(text)
    nothing = () if first is not None and first[1] == "no" else None
    if third is None:
        return nothing
    rest = text[third.end() :]
    following = _STEP.search(rest)
    rest = rest[: following.start()] if following is not None else rest
    if _NOTHING.match(rest):
        return ()
    start = rest.find("[")
    if start < 0:
        return nothing
    found = _items(rest[start : rest.find("]", start) + 1 or None])
    return nothing if found is None else cleaned(found)


def parse_event(reply: str) -> str | None:
    """The first question in a reply, None without one."""
    text = reply[:LONGEST_REPLY].rsplit("</think>", 1)[-1]
    for line in text.splitlines():
        line = re.sub(r"(?i)^[\s*_>#-]*(frame )?question[\s*_]*:", "", line).strip(" *_\"'`\t")
        if line.endswith("?") and 3 <= len(line) <= 500:
            return line
    return None


def _items(text: str) -> list[Any] | None:
    """A list that was written as JSON, as Python does, or with its end cut off."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    quoted = [a or b for a, b in _QUOTED.findall(text)]
    if quoted:
        return list(quoted)
    bare = [part.strip() for part in text.strip("[] \n").split(",")]
    return [part for part in bare if part] or None


def asker(
    model: Any, *, max_tokens: int = 256, chat: bool | None = None, account: Account | None = None
) -> Ask:
    """A model of `outlay.models` as a text model that answers greedily.

    Args:
        model: local or behind an endpoint.
        max_tokens: of a reply.
        chat: put the prompt as a chat message; False has the model continue it, after "Step 1:",
            as suits small models. None does what the model takes.
        account: where tokens are booked.
    """
    whole("max_tokens", max_tokens, 1, 1_000_000)
    as_chat = bool(getattr(model, "takes_chat", False)) if chat is None else chat
    sampling = SamplingParams(max_tokens=max_tokens, stop=() if as_chat else ("\n\n",))
    booked = account or Account(stage="vision", role="planner", method="quota")

    def ask(prompt: str) -> str:
        budget = Budget(tokens=max_tokens)
        if as_chat:
            said = model.generate(
                [Message(role="user", content=prompt)], budget, sampling, account=booked
            )
            return str(said.text)
        lead = "" if prompt.rstrip().endswith(":") else "Step 1:"
        said = model.generate(prompt + lead, budget, sampling, account=booked)
        return lead + str(said.text)

    return ask
