"""The two prompts of fs1 (arXiv 2505.11140): closed book (rt), and grounded in graph paths (fs1).

The grounded prompt holds one `subject, relation, object` per line. Paths that lead to a gold answer
tell the answer: they are made for a teacher, or as an upper reference, never for a student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from outlay.errors import InputError

Paths = Literal["closed", "path"]

BOXED = "Put the final answer in \\boxed{}."
INSPIRE = (
    "The facts of a knowledge graph below should inspire your reasoning. They are not the only "
    "possible way to the answer."
)
MAX_LINES = 1_000


def closed_book(question: str, instruction: str = BOXED) -> str:
    """The question and how to give the answer.

    Raises:
        InputError: for an empty question.
    """
    return "\n\n".join(part for part in (_asked(question), instruction.strip()) if part)


def path_grounded(question: str, lines: Sequence[str], instruction: str = BOXED) -> str:
    """The question, a sentence about the graph, its facts line by line, and the instruction.

    Raises:
        InputError: for an empty question, no facts or too many: a question without a path has no
            grounded prompt.
    """
    asked = _asked(question)
    if not lines:
        raise InputError(
            f"no fact leads from {asked!r} to its answer; use the closed-book prompt, or raise "
            "max_hops"
        )
    if len(lines) > MAX_LINES:
        raise InputError(f"{len(lines)} facts, at most {MAX_LINES} fit a prompt; lower max_paths")
    facts = "\n".join(lines)
    parts = (asked, f"{INSPIRE}\n{facts}", instruction.strip())
    return "\n\n".join(part for part in parts if part)


def _asked(question: str) -> str:
    if not question.strip():
        raise InputError("the question is empty; give a text")
    return question.strip()
