"""The texts of Plan-and-Budget: level, plan and credits for the planner, and the one-call prompt.

Written from the description of the prompts in the paper's appendix; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlay.evals.answers import AnswerKind

EXAMPLES = (
    "A shop sells pens at 2 coins each. What do 6 pens cost?",
    "A train leaves at 9:40 and needs 2 hours and 35 minutes. When does it arrive?",
    "Two taps fill a tub in 12 and 20 minutes. How long do they need together?",
    "How many three-digit numbers have digits that add up to 7 and are divisible by 4?",
    "In how many ways can 8 people sit around a round table so that no two of 3 given people are "
    "neighbours, and what is the chance of that by random seating?",
)

_LEVEL = """You grade how hard questions are, from 1 (easy) to 5 (hard). One example per level:

{examples}

Question:
{question}

Compare the question with the examples. Reply with JSON only:
{{"reason": "<one sentence>", "evaluated_level": <1 to 5>}}"""

_PLAN = """You are an expert in the field and design exams. Break the question into a \
few high-level sub-questions that lead to its answer. Each builds on the one before. Write 2 to \
{most}; fewer where the question is easy. Do not solve anything and do not give the solution away.

Example question:
A hall has 24 rows of 18 seats, 5/6 of them sold at 12 coins. What was earned?
Example reply:
1. How many seats does the hall have?
Hint: rows and seats per row.
2. How many seats were sold?
Hint: a fraction of all seats.
3. What was earned in all?
Hint: price per seat.

Question (level {level} of 5):
{question}

Reply with the numbered sub-questions, each followed by a line that begins with "Hint:"."""

_WEIGHTS = """An exam question is worth 100 points. Share them over its sub-questions by how much \
work each needs. Levels run from 1 (easy) to 5 (hard); one example per level:

{examples}

Question:
{question}

Sub-questions:
{steps}

Reply with JSON only, one entry per sub-question; the credits add up to 100:
{{{entries}}}"""

_ANSWER_AS: dict[AnswerKind, str] = {
    "math": "End with the final answer in \\boxed{}.",
    "choice": 'End with "Answer: " and the letter of the option.',
    "number": 'End with "Answer: " and the number.',
}


def _levels() -> str:
    return "\n".join(f"Level {level}: {text}" for level, text in enumerate(EXAMPLES, 1))


def level_prompt(question: str) -> str:
    """Asks how hard a question is."""
    return _LEVEL.format(examples=_levels(), question=question)


def plan_prompt(question: str, level: int, most: int) -> str:
    """Asks for sub-questions."""
    return _PLAN.format(question=question, level=level, most=most)


def weights_prompt(question: str, steps: Sequence[str]) -> str:
    """Asks for a level and a credit per sub-question."""
    listed = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    entry = '"{}": {{"reason": "<at most 50 words>", "level": <1 to 5>, "credit": <points>}}'
    entries = ",\n ".join(entry.format(number) for number in range(1, len(steps) + 1))
    return _WEIGHTS.format(examples=_levels(), question=question, steps=listed, entries=entries)


def answer_format(kind: AnswerKind) -> str:
    """How the answer is to be given, so that it can be found."""
    return _ANSWER_AS.get(kind, 'End with "Answer: " and the final answer.')


def answer_prompt(
    question: str,
    kind: AnswerKind,
    *,
    level: int | None = None,
    steps: Sequence[str] = (),
    local: Sequence[int] = (),
    total: int | None = None,
    unit: str = "words",
) -> str:
    """The one call of mode "prompt", for every rung of the ladder.

    Args:
        question: to answer.
        kind: of its answer.
        level: of difficulty; None does not say.
        steps: sub-questions; none for the rungs without a plan.
        local: budget of each sub-question; none for the rungs without local budgets.
        total: budget of the whole answer; None for the rungs without it.
        unit: of the budgets, "words" or "tokens".
    """
    parts = ["Solve this problem. It is worth 100 points."]
    if steps:
        parts[0] += " Work through its sub-questions in order."
    if total is not None:
        parts[0] += f" Use less than {total} {unit} in all."
    level_note = "" if level is None else f" (level {level} of 5)"
    parts.append(f"Problem{level_note}:\n{question}")
    if steps:
        lines = []
        for number, step in enumerate(steps, 1):
            line = f"{number}. {step}"
            if local:
                line += f" Solve it thinking only a little, within {local[number - 1]} {unit}."
            lines.append(line)
        parts.append("Sub-questions:\n" + "\n".join(lines))
    parts.append(answer_format(kind))
    return "\n\n".join(parts)


def longest_prompt(steps: int) -> str:
    """A text that is at least as long as what any prompt here adds to question and plan."""
    blank = [""] * steps
    answering = answer_prompt("", "math", level=5, steps=blank, local=[10**6] * steps, total=10**6)
    asked = (level_prompt(""), plan_prompt("", 5, steps), weights_prompt("", blank), answering)
    return max(asked, key=len)
