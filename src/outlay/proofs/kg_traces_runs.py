"""The runs behind the kg-traces proof: prompts, worked examples, replies and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outlay.budget import Budget
from outlay.decode.plain import PlainDecoder
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.evals.base import Problem
from outlay.evals.factuality.prompts import INSPIRE, closed_book
from outlay.evals.factuality.scaling import (
    WAIT,
    ParallelPoint,
    Samples,
    SequentialPoint,
    draw,
    parallel_curve,
    request,
    sequential_curve,
)
from outlay.evals.factuality.tasks import Factuality
from outlay.models.base import Generation, Model, SamplingParams
from outlay.proofs.base import Progress
from outlay.records import Record

HOPS = (1, 2)
NEW_TOKENS = 40
CLOSED, PATH = "closed book", "path in the prompt"
TASKS = {CLOSED: Factuality(paths="closed", hops=HOPS), PATH: Factuality(paths="path", hops=HOPS)}
SAMPLING = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.7, top_p=0.8, top_k=20)

THINK_OPEN, THINK_CLOSE = "Let me think step by step.", "Final answer:"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Args:
        questions: for the comparison of prompts.
        scaled: of these, for budgets and samples.
        budgets: of thinking tokens; the prompt is not counted.
        waits: most waits per question.
        samples: n.
        full: whether changed prompts and semantic matches are run, too.
    """

    questions: int
    scaled: int
    budgets: tuple[int, ...]
    waits: int
    samples: int
    full: bool


@dataclass(frozen=True)
class Arm:
    """One prompt: greedy replies to all questions, and curves on some of them."""

    records: list[Record]
    replies: list[Generation]
    samples: list[Samples]
    parallel: list[ParallelPoint]
    sequential: list[SequentialPoint]


def examples(
    task: Factuality, seed: int, problems: Sequence[Problem], kinds: int = 1
) -> list[Problem]:
    """Worked questions: `kinds` per number of hops, with answers of different kinds, short ones.

    They are the same for every task, and none of them is asked itself.
    """
    known = {problem.id for problem in problems}
    pool = [p for p in TASKS[PATH].sample(seed + 1, 80) if p.id not in known]
    pool.sort(key=lambda p: (len(p.context), p.id))
    chosen = []
    for hops in HOPS:
        first: dict[str, Problem] = {}
        for problem in pool:
            if problem.meta["hops"] == hops:
                first.setdefault(problem.meta["kind"], problem)
        chosen += list(first.values())[:kinds]
    return [one if task.paths == "path" else replace(one, context="") for one in chosen]


def greedy(
    model: Model,
    task: Factuality,
    label: str,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    seed: int,
) -> tuple[list[Generation], list[Record]]:
    """Replies of at most 40 tokens, and their records."""
    prompts = [request(model, task, problem, examples) for problem in problems]
    replies = PlainDecoder(max_tokens=NEW_TOKENS).generate_many(model, prompts)
    budget = Budget(tokens=NEW_TOKENS)
    return replies, [
        Record(
            task.name,
            problem.id,
            label,
            budget,
            seed,
            task.verify(problem, reply.text),
            reply.ledger,
        )
        for problem, reply in zip(problems, replies, strict=True)
    ]


@dataclass(frozen=True)
class FactsFirst(Factuality):
    """The changed prompt: the facts come before the question."""

    def prompt(self, problem: Problem, context: str) -> str:
        """The facts where there are any, then the question and the instruction."""
        asked = closed_book(problem.question, self.instruction)
        return f"{INSPIRE}\n{context}\n\n{asked}" if context.strip() else asked


def run_arm(
    model: Model,
    name: str,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    size: Size,
    seed: int,
    progress: Progress,
) -> Arm:
    """Greedy replies to all questions, then samples and budgets on the first of them."""
    task = TASKS[name]
    progress(f"{name}: {len(problems)} questions")
    replies, records = greedy(model, task, name, problems, examples, seed)
    few = problems[: size.scaled]
    progress(f"{name}: {size.samples} samples of {len(few)} questions")
    sampling = replace(SAMPLING, seed=seed)
    samples = draw(model, task, few, n=size.samples, sampling=sampling, examples=examples)
    ks = [k for k in (1, 2, 4, 8, 16) if k <= size.samples]
    progress(f"{name}: budgets {size.budgets}")
    sequential = sequential_curve(
        model,
        task,
        few,
        size.budgets,
        decoder=forcing(size),
        counts_prompt=False,
        examples=examples,
    )
    return Arm(records, replies, samples, parallel_curve(samples, ks, seed=seed), sequential)


def forcing(size: Size) -> ThinkingBudget:
    """Budget forcing with plain-text markers, which need no training."""
    return ThinkingBudget(
        think_open=THINK_OPEN,
        think_close=THINK_CLOSE,
        answer_open="",
        overthink_prefix="",
        wait=WAIT,
        n_wait=size.waits,
        max_answer=NEW_TOKENS,
    )
