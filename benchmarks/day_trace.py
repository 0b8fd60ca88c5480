"""The requests of a day: questions about real modules, with answers that the code proves.

Fifty requests of an agent with long code in them, cut from the Python standard library: questions
about a file, further questions about a file that stands earlier in the conversation, and functions
to go on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from outlay.errors import InputError
from outlay.evals.base import Problem
from outlay.evals.code import CodeCompletion
from outlay.evals.code_qa import CodeQA
from outlay.evals.metrics import answer_contains, edit_similarity

Kind = Literal["ask", "follow up", "complete"]
SIZES: dict[str, Any] = {"min_chars": 4_500, "max_chars": 6_500}  # 1,000 to 2,300 tokens
MIX: tuple[tuple[Kind, int], ...] = (("ask", 25), ("follow up", 15), ("complete", 10))
SEED = 8
LONGEST = {"ask": 24, "follow up": 24, "complete": 32}  # tokens of an answer
SYSTEM = "You are a coding assistant. You answer questions about the files that you are given."
_BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """One request, and what a right answer is.

    Args:
        id: of the request.
        kind: what it asks.
        messages: of the chat.
        gold: the right answer.
    """

    id: str
    kind: Kind
    messages: list[dict[str, Any]]
    gold: str

    def quality(self, text: str) -> float:
        """Whether the answer holds the right name or value; or how close written code comes."""
        if self.kind != "complete":
            return answer_contains(self.gold, text)
        block = _BLOCK.search(text)
        return edit_similarity(self.gold, block[1] if block else text)


def requests() -> list[Request]:
    """The day, in its order: kinds spread evenly."""
    counts = dict(MIX)
    asked = CodeQA(**SIZES).sample(SEED, counts["ask"])
    streams = {
        "ask": [_ask(problem) for problem in asked],
        "follow up": list(_follow_ups(counts["follow up"], {p.meta["path"] for p in asked})),
        "complete": [
            _complete(problem)
            for problem in CodeCompletion(metric="edit similarity", **SIZES).sample(
                SEED, counts["complete"]
            )
        ],
    }
    places = [
        ((at + 0.5) / len(stream), kind, at)
        for kind, stream in streams.items()
        for at in range(len(stream))
    ]
    return [streams[kind][at] for _, kind, at in sorted(places)]


def _file(problem: Problem, code: str) -> str:
    return f"{problem.meta['path']}:\n\n```python\n{code}\n```\n\n"


def _question(problem: Problem) -> str:
    return f"{problem.question}\nAnswer with the name or value only."


def _chat(*turns: str) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": SYSTEM}]
    for at, text in enumerate(turns):
        messages.append({"role": "assistant" if at % 2 else "user", "content": text})
    return messages


def _ask(problem: Problem) -> Request:
    asked = _file(problem, problem.context) + _question(problem)
    return Request(f"ask {problem.id}", "ask", _chat(asked), problem.answer)


def _follow_ups(n: int, taken: set[str]) -> Iterator[Request]:
    """A question about a file that an earlier question, answered rightly, was about."""
    tree = CodeQA(**SIZES).tree()
    files = [file for file in tree.files if file.path not in taken]
    Random(SEED).shuffle(files)
    made = 0
    for file in files:
        try:
            first, second = CodeQA(path=tree.root / file.path, **SIZES).sample(SEED, 2)
        except InputError:
            continue  # fewer than two questions
        begun = _file(first, first.context) + _question(first)
        messages = _chat(begun, first.answer, _question(second))
        yield Request(f"follow up {second.id}", "follow up", messages, second.answer)
        made += 1
        if made == n:
            return
    raise RuntimeError(f"{made} modules of {tree.root} have two questions; {n} are needed")


def _complete(problem: Problem) -> Request:
    asked = (
        _file(problem, problem.context)
        + "Go on with this function of the file. Write the next three lines only.\n\n"
        + problem.question
    )
    return Request(f"complete {problem.id}", "complete", _chat(asked), problem.answer)
