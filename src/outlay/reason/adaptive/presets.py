"""Formats of models: the paper's, the reasoner testbed's, and those any chat model is asked for."""

from __future__ import annotations

import re
from dataclasses import replace

from outlay.errors import InputError
from outlay.reason.adaptive.formats import Block, Format, Formats

ARM = Formats(
    (
        Format("direct"),
        Format("cot", (Block("<COT>", "</COT>"),)),
        Format("code", (Block("<CODE>", "</CODE>"), Block("<OUTPUT>", "</OUTPUT>"))),
        Format("long_cot", (Block("<LONG_COT>", "</LONG_COT>"),)),
    ),
    answer=Block("<ANSWER>", "</ANSWER>"),
    pad="\n",
    code="code",
)
"""Tags of the published models; a direct answer is an answer block alone."""

_ANSWER = "<ANSWER> and </ANSWER>"
_ASKS = {
    "direct": f"Answer at once: write nothing but the answer between {_ANSWER}.",
    "cot": f"Write one or two short steps between <COT> and </COT>, then the answer between "
    f"{_ANSWER}.",
    "code": "Write a Python function that returns a dict with the key 'answer', and its call, "
    "between <CODE> and </CODE>; then what it would print between <OUTPUT> and </OUTPUT>, then "
    f"the answer between {_ANSWER}.",
    "long_cot": "Think at length between <LONG_COT> and </LONG_COT>: take several approaches, "
    f"check every step and correct mistakes; then write the answer between {_ANSWER}.",
}

PROMPTED = replace(
    ARM,
    formats=tuple(replace(each, ask=_ASKS[each.name]) for each in ARM.formats),
    detector="strip",
    ask="Use exactly this format:",
    choose="Choose the cheapest of these formats that is enough for this question, and use it "
    "exactly:",
)
"""The paper's tags, explained in the prompt."""

_POSTFIX = re.compile(r"(\d+)((?:,\d+[+\-*])+):")


def _postfix_to_python(block: str) -> str:
    from outlay.testbeds.reasoner.chains import MODULUS

    match = _POSTFIX.match(block)
    if match is None:
        raise InputError(f"{block[:60]!r} is no postfix program such as '3,4+,5*:'")
    items = match[2][1:].split(",")
    steps = [f"value = (value {item[-1]} {item[:-1]}) % {MODULUS}" for item in items]
    return "\n".join([f"value = {match[1]}", *steps, "{'answer': value}"])


REASONER = Formats(
    tuple(
        Format(name, (Block(f"<{name}>", "</think>"),))
        for name in ("direct", "short", "code", "long")
    ),
    answer=Block("<answer>", "<eos>"),
    open_end=True,
    code="code",
    program=_postfix_to_python,
)
"""Tags of `outlay.testbeds.reasoner`; its programs are postfix, `3,4+,5*:`, modulo 20."""

PRESETS = {"arm": ARM, "reasoner": REASONER, "prompted": PROMPTED}
