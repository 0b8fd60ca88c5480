"""The objects of a question, without a model.

Shares the rules for what an entity may look like with the reader of replies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from outlay.errors import InputError

LONGEST_QUESTION = 20_000
MOST_ENTITIES = 16
LONGEST_ENTITY = 60

_NAME_NOTHING = """
a about above after all an and any are as at be been before behind below beside between both but by
can color colour could did do does during each every few first for from had has have he her here him
his how i if in inside into is it its last less many may me more most much must near next no none
not of off often on once one only or other our out outside over she should show shown shows so some
than that the their them then there these they this those through time times to too under until up
was we were what when where which while who whom whose why will with without would yes you your
answer appear appears begin begins clip come comes count end ends event film frame frames get gets
give gives go goes happen happened happens hold holds image kind look looks make makes mood move
moves movie name number order part picture plot purpose put puts reason run runs scene see seen
stand stands start starts story take takes tell theme thing things topic type use used uses video
wear wears
"""
_BREAKS = frozenset(_NAME_NOTHING.split())


def templated(question: str) -> tuple[str, ...]:
    """The objects of a question: what is left between words that name none.

    It knows no grammar. It is for tests, and where no text model is at hand.

    Raises:
        InputError: for a question that is empty or too long.

    >>> templated("Where does the woman put the blue umbrella?")
    ('woman', 'blue umbrella')
    """
    check_question(question)
    asked = question.strip().split("\n", 1)[0].lower()
    found: dict[str, None] = {}
    for part in re.split(r"[^\w\s'-]+", asked):
        run: list[str] = []
        for word in [*re.findall(r"[^\W_][\w'-]*", part), ""]:
            if not word or word in _BREAKS or (word.endswith("ing") and len(word) > 5):
                if run:
                    found.setdefault(" ".join(run))
                run = []
            else:
                run.append(word)
    return cleaned(list(found))


def cleaned(items: Sequence[Any]) -> tuple[str, ...]:
    """Names of a list as entities: strings, once each, trimmed, not too many or too long."""
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item, str):
            name = " ".join(item.split()).strip(" .,:;*_\"'`")[:LONGEST_ENTITY].strip()
            if name and name not in ("null", "none"):
                found.setdefault(name)
    return tuple(found)[:MOST_ENTITIES]


def check_question(question: str) -> None:
    """Refuse a question that says nothing, or too much.

    Raises:
        InputError: says which.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError("the question is empty; give the text that the user asked")
    if len(question) > LONGEST_QUESTION:
        raise InputError(
            f"the question has {len(question)} characters, more than {LONGEST_QUESTION}; shorten it"
        )
