"""A*-decoding on a real small model that judges its own steps: SmolLM2-135M and `SelfEvaluation`.

Sums of three one-digit numbers after two examples, one line a step. Verdicts of a model of this
size are expected to be near chance, so accuracy has no target: what is shown is that the search
runs on a model of words, and what it costs beside a greedy answer and best-of-N with as many
tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from outlay.budget import Budget
from outlay.models.base import Message, Model, SamplingParams
from outlay.proofs.base import Check
from outlay.reason import BestOfN, Greedy, Question, Reasoner, solve
from outlay.reason.astar import AStarDecoding
from outlay.reason.base import Answer
from outlay.reason.verifiers import SelfEvaluation
from outlay.stats import FloatArray, mean_interval

SHOWN = ((2, 3, 4), (8, 5, 6))  # worked out before the question
TOKENS = 160  # of one question
LONGEST = 64  # tokens of a solution; a right one takes 25


def sums(n: int, seed: int) -> list[tuple[Question, str]]:
    """Questions with their answers; all different, and none of those that are shown."""
    rng = random.Random(f"sums:{seed}")
    digits = range(1, 10)
    numbers = [triple for triple in product(digits, digits, digits) if triple not in SHOWN]
    shown: list[Message] = []
    for a, b, c in SHOWN:
        text = f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}\nAnswer: {a + b + c}"
        shown += [_asked(a, b, c), Message(role="assistant", content=text)]
    found = []
    for a, b, c in rng.sample(numbers, n):
        asked = _asked(a, b, c)
        question = Question([*shown, asked], asked["content"], "number", delimiter="\n")
        found.append((question, str(a + b + c)))
    return found


def _asked(a: int, b: int, c: int) -> Message:
    return Message(role="user", content=f"{a} + {b} + {c} = ?")


def self_evaluated(model: Model, n: int, seed: int) -> tuple[list[Check], dict[str, Any]]:
    """Run the search and its rivals on `n` questions.

    Args:
        model: the policy, and the judge of its own steps.
        n: questions.
        seed: of questions and samples.
    """
    judge = SelfEvaluation(model)
    search = AStarDecoding(
        judge, k=2, step_tokens=24, max_steps=6, max_expansions=8, answer_reserve=32
    )
    asked = sums(n, seed)
    sampling = SamplingParams(temperature=0.8, max_tokens=LONGEST, seed=seed)

    def ask(method: Reasoner, budget: Budget | None = None) -> list[Answer]:
        return [solve(method, model, question, budget, sampling) for question, _ in asked]

    answers = {"A*": ask(search, Budget(tokens=TOKENS)), "greedy": ask(Greedy())}
    ours_made, greedy_made = (sum(map(_made, answers[name])) for name in ("A*", "greedy"))
    count = max(1, round(ours_made / greedy_made))  # as many samples as its tokens allow
    answers["best-of-N"] = ask(BestOfN(judge, n=count))
    right = {
        name: np.array(
            [float(one.value == gold) for one, (_, gold) in zip(found, asked, strict=True)]
        )
        for name, found in answers.items()
    }
    rows = {name: _row(answers[name], right[name]) for name in answers}
    ours = rows["A*"]
    checks = [
        Check(
            "SmolLM2-135M judges itself: A*'s accuracy",
            "-",
            ours["accuracy"],
            None,
            _interval(right["A*"]),
            f"{n} sums of three digits; {ours['generated']} tokens sampled and {ours['read']} read "
            f"by the verifier in {ours['calls']} calls a question; {ours['statuses']}",
        )
    ]
    for name in ("greedy", "best-of-N"):
        gap_N = right["A*"] - right[name]
        row = rows[name]
        checks.append(
            Check(
                f"SmolLM2-135M judges itself: A*'s accuracy over {name}'s",
                "-",
                float(gap_N.mean()),
                None,
                _interval(gap_N),
                f"{ours['accuracy']:.3f} against {row['accuracy']:.3f}; {row['generated']} tokens "
                f"sampled a question, {row['read']} read by the verifier; {n} questions"
                + (f"; N={count}" if name == "best-of-N" else ""),
            )
        )
    return checks, {"questions": n, "budget": TOKENS, "N": count, "rows": rows}


def _made(answer: Answer) -> int:
    total = answer.ledger.totals(role="target")
    return total.generated + total.forced


def _row(answers: Sequence[Answer], right_N: FloatArray) -> dict[str, Any]:
    read = [answer.ledger.totals(role="verifier") for answer in answers]
    statuses = [answer.status for answer in answers]
    return {
        "accuracy": round(float(right_N.mean()), 4),
        "generated": round(float(np.mean([_made(answer) for answer in answers])), 1),
        "most generated": max(_made(answer) for answer in answers),
        "read": round(float(np.mean([total.prompt for total in read])), 1),
        "calls": round(float(np.mean([total.calls for total in read])), 1),
        "statuses": ", ".join(f"{name} {statuses.count(name)}" for name in sorted(set(statuses))),
    }


def _interval(values_N: FloatArray) -> tuple[float, float] | None:
    found = mean_interval(values_N)
    return None if found.lo is None or found.hi is None else (found.lo, found.hi)
