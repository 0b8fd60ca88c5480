"""How a verification looks: the request, the critique of every step, and the verdict.

Two layouts. "boxed" is the paper's, for real models: steps are numbered, every critique ends with
`\\boxed{correct}` or `\\boxed{incorrect}`, and the text ends with `Is the solution correct? Yes`.
"compact" says the same in a few tokens, for the reasoner's tokenizer. In the request a letter marks
every result, `3+4=A7;7*7=B8`; the critique `2:7*7=9-B8=1n;` reads "step 2 should say 7*7=9, less
its result B, 8, is 1, wrong", and the verdict is `?n`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.errors import InputError

Label = Literal["good", "bad"]
LayoutName = Literal["boxed", "compact"]

_TAGS = re.compile(r"</?think>")
_TEXT = re.compile(r"\\boxed\{\s*\\text\{\s*(correct|incorrect)\s*\}\s*\}")
_RESULT = re.compile(r"=(\d+)$")
_MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORMATS = re.compile(r"^(?:<think>)?(?:<(?:direct|short|long|code)>)?")


@dataclass(frozen=True)
class Decision:
    """One verdict on a step.

    Args:
        label: "good" or "bad".
        start, end: characters of the deciding word in the text.
        close: character after the whole decision, its bracket or delimiter included.
    """

    label: Label
    start: int
    end: int
    close: int


@dataclass(frozen=True)
class Layout:
    """The words of a verification.

    Args:
        name: "boxed" or "compact".
        request: the user's turn, with {question} and {solution}.
        between: joins steps.
        opening: begins the assistant's turn.
        think_open, think_close: around the critiques.
        ask: what is forced before the verdict, and what stops a critique that gets there.
        labels: verdicts for right and wrong solutions, with the space that precedes them.
        box: pattern of a decision; its groups hold the word.
        words: the words for a right and a wrong step.
        next_step: begins the critique of step {number}.
        triggers: ask for another round of checking, each in other words.
    """

    name: LayoutName
    request: str
    between: str
    opening: str
    think_open: str
    think_close: str
    ask: str
    labels: tuple[str, str]
    box: str
    words: tuple[str, str]
    next_step: str
    triggers: tuple[str, ...]

    def render(self, question: str, steps: Sequence[str], number_steps: bool = True) -> str:
        """The request for one solution.

        Raises:
            InputError: without steps, or for a step without text.
        """
        if not steps:
            raise InputError("the solution has no steps; give at least one step to verify")
        clean = [self.strip(step) for step in steps]
        empty = next((i for i, step in enumerate(clean) if not step), None)
        if empty is not None:
            raise InputError(f"step {empty + 1} of the solution is empty; drop it or join it")
        if number_steps:
            clean = [self.numbered(i, text) for i, text in enumerate(clean, start=1)]
        return self.request.format(question=question, solution=self.between.join(clean))

    def numbered(self, number: int, text: str) -> str:
        """A step with its number, or in "compact" its letter.

        Raises:
            InputError: where the letters are used up.
        """
        if self.name == "boxed":
            return f"Step {number}: {text}"
        mark = self.mark(number)
        marked, found = _RESULT.subn(rf"={mark}\1", text)
        return marked if found else mark + text

    def mark(self, number: int) -> str:
        """The letter of a step in "compact"."""
        if number > len(_MARKS):
            raise InputError(
                f"{number} steps; the compact layout has letters for {len(_MARKS)}: use "
                "number_steps=False or layout='boxed'"
            )
        return _MARKS[number - 1]

    def strip(self, step: str) -> str:
        """A step without outer spaces; in "compact" also without tags and delimiter: "=9"."""
        if self.name == "boxed":
            return step.strip()
        bare = _FORMATS.sub("", step.strip()).removesuffix("<eos>").removesuffix(";")
        return bare.replace("</think><answer>", "=") or step.strip()

    def prefix(self, rendered: str) -> str:
        """What opens the assistant's turn after a rendered chat, which may open <think> itself."""
        opened = rendered.rstrip().endswith(self.think_open.strip())
        return ("" if opened else self.think_open) + self.opening

    def decisions(self, text: str) -> list[Decision]:
        """All decisions on steps, in order; boxes that hold anything else are no decisions."""
        found = []
        for match in re.finditer(self.box, text):
            group = match.lastindex or 0
            label: Label = "good" if match[group] == self.words[0] else "bad"
            found.append(Decision(label, match.start(group), match.end(group), match.end()))
        return found

    def clean(self, text: str) -> str:
        """A chain without think tags and without what follows its last decision.

        Tags are taken out where they stand, so that a chain that has them is not emptied.
        """
        text = _TEXT.sub(r"\\boxed{\1}", _TAGS.sub("", text))
        found = self.decisions(text)
        return (text[: found[-1].close] if found else text).strip()

    def completion(self, chain: str, good: bool, rendered: str = "") -> str:
        """What a verifier is trained to write after `rendered`: critiques, then the verdict."""
        gap = "\n" if self.name == "boxed" else ""
        verdict = self.labels[0] if good else self.labels[1]
        return f"{self.prefix(rendered)}{gap}{chain}{self.think_close}{self.ask}{verdict}"


BOXED = Layout(
    name="boxed",
    request=(
        "Below are a math problem and a proposed step-by-step solution.\n\n"
        "[Problem]\n{question}\n\n[Proposed solution]\n{solution}\n\n"
        "Review and critique each step of the proposed solution. If the solution is incomplete, "
        "judge only the steps that are there. End the critique of every step with 'The step is "
        "\\boxed{{correct}}' or 'The step is \\boxed{{incorrect}}'."
    ),
    between="\n",
    opening="Let's verify step by step:",
    think_open="<think>\n",
    think_close="\n</think>",
    ask="\nIs the solution correct?",
    labels=(" Yes", " No"),
    box=(
        r"\\boxed\{\s*(?:\\text\{\s*(correct|incorrect)\s*\}|(correct|incorrect))\s*\}"
        r"(?:[.!](?=\s|$))?"
    ),
    words=("correct", "incorrect"),
    next_step="Step {number}:",
    triggers=("Let me double check.", "Let's verify again.", "Did I miss something?"),
)

COMPACT = Layout(
    name="compact",
    request="{question}\n{solution}",
    between=";",
    opening="",
    think_open="<think>",
    think_close="</think>",
    ask="?",
    labels=("y", "n"),
    box=r"([yn]);",
    words=("y", "n"),
    next_step="{number}:",
    triggers=("Wait", "\nWait", "\n\nWait"),
)

LAYOUTS: dict[LayoutName, Layout] = {"boxed": BOXED, "compact": COMPACT}


def layout_of(name: str) -> Layout:
    """The layout of that name.

    Raises:
        InputError: for an unknown one.
    """
    if name == "boxed":
        return BOXED
    if name == "compact":
        return COMPACT
    raise InputError(f"layout={name!r}; choose boxed or compact")
