"""The text side of QuoTA's proof: can a small real model say which objects a question needs?

Twenty questions, for each the objects that a person would look for, or none. The embedded model
(SmolLM2-135M-Instruct) answers in two ways: as a chat, and continuing the text after "Step 1:".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.models import load
from outlay.proofs.base import Check, Progress
from outlay.vision.quota import Asked, asker, decouple

QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Where does the woman put the red handbag?", ("woman", "handbag")),
    ("How many boats are on the river in the second half?", ("boat", "river")),
    ("Which animal jumps over the fence?", ("animal", "fence")),
    ("What colour is the car that is parked beside the church?", ("car", "church")),
    ("Does the boy close the door before he sits on the chair?", ("boy", "door", "chair")),
    ("What does the cook add to the soup after the onions?", ("cook", "soup", "onion")),
    ("How often does the clock on the tower appear?", ("clock", "tower")),
    ("What is written on the blue sign at the station?", ("sign", "station")),
    ("Who gives the ball to the goalkeeper?", ("ball", "goalkeeper")),
    ("Which tool does the man use to open the box?", ("tool", "man", "box")),
    ("How many windows does the yellow house have?", ("window", "house")),
    ("What lies under the table when the cat leaves the room?", ("table", "cat")),
    ("Is the bicycle left of the tree or right of it?", ("bicycle", "tree")),
    ("Which flag is on the ship?", ("flag", "ship")),
    ("What does the girl draw on the wall?", ("girl", "wall")),
    ("How many candles are on the cake?", ("candle", "cake")),
    ("What is the mood of the whole film?", ()),
    ("What is the main theme of this video?", ()),
    ("How does the story end?", ()),
    ("What would be a good title for the video?", ()),
)
MAX_TOKENS = 96


@dataclass(frozen=True)
class Read:
    """What came of the replies to all questions.

    Args:
        parsed: share that could be read.
        recall: share of the wanted objects that were named, over questions that want some.
        useful: share of those questions for which at least one wanted object was named.
        silent: share of the questions without objects for which none was named.
    """

    parsed: float
    recall: float
    useful: float
    silent: float


def judge(found: Sequence[Asked], wanted: Sequence[Sequence[str]]) -> Read:
    """Compare entities with what a person would look for, by the word in the name."""
    hits = [
        [any(word in name for name in asked.entities) for word in words]
        for asked, words in zip(found, wanted, strict=True)
    ]
    asking = [row for row in hits if row]
    idle = [not asked.entities for asked, words in zip(found, wanted, strict=True) if not words]
    named = [hit for row in asking for hit in row]
    return Read(
        parsed=sum(asked.parsed for asked in found) / len(found),
        recall=sum(named) / max(1, len(named)),
        useful=sum(any(row) for row in asking) / max(1, len(asking)),
        silent=sum(idle) / max(1, len(idle)),
    )


def real(progress: Progress) -> tuple[list[Check], dict[str, Any]]:
    """Both ways of asking the embedded model, and the template beside them."""
    model = load("embedded")
    wanted = [words for _, words in QUESTIONS]
    checks: list[Check] = []
    data: dict[str, Any] = {}
    ways = {
        "continuing after 'Step 1:'": asker(model, max_tokens=MAX_TOKENS, chat=False),
        "as a chat": asker(model, max_tokens=MAX_TOKENS, chat=True),
        "template, no model": None,
    }
    for name, ask in ways.items():
        found = []
        for at, (question, _) in enumerate(QUESTIONS):
            progress(f"decoupling {name}: {at + 1} of {len(QUESTIONS)}")
            found.append(decouple(question, ask))
        read = judge(found, wanted)
        data[name] = [
            {"question": one.question, "entities": list(one.entities), "parsed": one.parsed}
            for one in found
        ]
        checks.append(
            Check(
                f"decoupling of 20 questions, {'SmolLM2-135M ' if ask else ''}{name}",
                "a 7B model; no rate is given",
                read.parsed,
                None,
                None,
                f"share of replies that could be read; names {read.recall:.0%} of the wanted "
                f"objects and at least one for {read.useful:.0%} of the questions that have some; "
                f"names none for {read.silent:.0%} of those that have none",
            )
        )
    return checks, data
