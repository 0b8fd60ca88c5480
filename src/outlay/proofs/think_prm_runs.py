"""The runs behind the think-prm proof: solutions, students, and what verifiers do with them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from outlay.evals.base import Problem
from outlay.ledger import Ledger
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import Question, SelfConsistency, solve_many
from outlay.reason.base import Answer
from outlay.reason.think_prm.data import Chain, Source, sample
from outlay.reason.think_prm.discriminative import (
    DiscriminativePRM,
    DiscriminativeSettings,
    fit,
)
from outlay.reason.think_prm.filters import ChainFilter, Kept, Mode
from outlay.reason.think_prm.format import COMPACT
from outlay.reason.think_prm.templated import (
    TeacherNoise,
    TemplatedTeacher,
    label_solution,
    practice,
    split,
)
from outlay.reason.think_prm.train import (
    Example,
    TrainSettings,
    examples,
    fine_tune,
    said,
)
from outlay.reason.think_prm.verifier import Judgement, ThinkPRM
from outlay.stats import FloatArray
from outlay.testbeds.reasoner import ChainArith, checkpoint_path
from outlay.testbeds.reasoner.tokenizer import render_prompt

CHECKPOINT = "small"  # the reasoner that makes more mistakes
OPERATIONS = (2, 6)
FORMAT = "short"
LONGEST = 64  # tokens of a solution; six operations take 40
CHAIN = 200  # tokens of a critique that is trained on; a clean one takes at most 100
VERIFY = 160  # tokens of a critique and its verdict
N = 8  # solutions per question
HEAT = 0.8

PRACTICE = TrainSettings(epochs=1, batch=16, lr=2e-3, max_length=400)
CALM = 0.25  # share of the practice that follows at a quarter of the rate
TUNING = TrainSettings(epochs=4, batch=16, lr=5e-4, max_length=400)
# As many passes over 1K solutions as a critic gets; one pass, as in the paper, over more.
FEW = DiscriminativeSettings(epochs=4, batch=16, lr=5e-4)
MANY = DiscriminativeSettings(epochs=1, batch=16, lr=5e-4)


def questions(task: ChainArith, problems: Sequence[Problem]) -> list[Question]:
    """The questions that the policy answers in the format "short"."""
    return [
        Question(
            render_prompt(problem.question, FORMAT),
            text=problem.question,
            kind="custom",
            read=partial(task.read, problem),
            delimiter=task.delimiter,
            id=problem.id,
        )
        for problem in problems
    ]


def distinct(task: ChainArith, seed: int, n: int) -> list[Problem]:
    """`n` problems, each question once."""
    first: dict[str, Problem] = {}
    for problem in task.sample(seed, n + n // 2 + 20):
        first.setdefault(problem.question, problem)
    return list(first.values())[:n]


def solutions(
    policy: LocalModel, asked: Sequence[Question], n: int, heat: float, seed: int
) -> list[Answer]:
    """`n` sampled solutions of every question."""
    sampling = SamplingParams(temperature=heat, max_tokens=LONGEST, seed=seed)
    method = SelfConsistency(n=n, early_stop=False)
    return solve_many(method, policy, asked, sampling=sampling, together=128)


def sources(policy: LocalModel, problems: int, n: int, seed: int) -> list[Source]:
    """Labelled solutions to training questions, each once, as many wrong as right ones."""
    task = ChainArith(operations=OPERATIONS, split="train")
    drawn = distinct(task, seed, problems)
    answers = solutions(policy, questions(task, drawn), n, 1.0, seed)
    found: dict[tuple[str, tuple[str, ...]], Source] = {}
    for problem, answer in zip(drawn, answers, strict=True):
        for branch in answer.branches:
            steps = split(branch.completion())
            labels = label_solution(task.chain(problem), steps) if steps else None
            if labels is not None:
                key = (problem.question, steps)
                found.setdefault(key, Source(problem.question, steps, labels))
    wrong = [source for source in found.values() if source.bad]
    right = [source for source in found.values() if not source.bad]
    size = min(len(wrong), len(right))
    return [source for pair in zip(wrong[:size], right[:size], strict=True) for source in pair]


def critiques(
    chosen: Sequence[Source], seed: int, noise: TeacherNoise | None = None
) -> list[Chain]:
    """One chain of the templated teacher for every solution, with its usual faults or others."""
    return sample(chosen, TemplatedTeacher(noise or TeacherNoise(), seed), 1)


def keep(chains: Sequence[Chain], mode: Mode, count: int | None, model: LocalModel) -> Kept:
    """What one filter keeps."""
    chosen = ChainFilter(mode=mode, max_chain_tokens=CHAIN, num_samples=count)
    return chosen.apply(chains, COMPACT, model.count)


def practised(base: LocalModel, size: int, seed: int) -> LocalModel:
    """The base of every student: the reasoner, taught to read a solution; no labels are used."""
    rows = examples(practice(size, OPERATIONS, seed=seed), COMPACT, base.tokenizer)
    silent = [
        Example(row.prompt, row.completion[: -len(COMPACT.ask + COMPACT.labels[0])]) for row in rows
    ]
    cut = round(len(silent) * (1 - CALM))
    calm = replace(PRACTICE, lr=PRACTICE.lr / 4)
    network = fine_tune(copy.deepcopy(base.model), base.tokenizer, silent[:cut], PRACTICE)
    network = fine_tune(network, base.tokenizer, silent[cut:], calm)
    return LocalModel(network, base.tokenizer, "practised")


def critic(
    base: LocalModel,
    kept: Kept,
    mode: Mode,
    out: Path | None = None,
    *,
    settings: TrainSettings = TUNING,
) -> ThinkPRM:
    """A generative verifier trained on kept chains; without labels the verdict is the chain's."""
    verdict = partial(said, layout=COMPACT) if mode == "none" else None
    rows = examples(kept.chains, COMPACT, base.tokenizer, verdict=verdict)
    network = fine_tune(copy.deepcopy(base.model), base.tokenizer, rows, settings, out)
    return generative(LocalModel(network, base.tokenizer, f"critic {mode}"))


def generative(model: LocalModel) -> ThinkPRM:
    """A ThinkPRM of the testbed."""
    return ThinkPRM(model, layout="compact", max_verify_tokens=VERIFY)


def classifier(
    base: LocalModel, chosen: Sequence[Source], settings: DiscriminativeSettings
) -> DiscriminativePRM:
    """A discriminative verifier trained on labelled solutions."""
    model = LocalModel(copy.deepcopy(base.model), base.tokenizer, "classifier")
    prm = DiscriminativePRM(model, layout="compact")
    fit(prm, chosen, settings)
    return prm


@dataclass(frozen=True)
class Bench:
    """Test questions with their sampled solutions.

    Args:
        task: of the questions.
        problems: Q of them, held out.
        asked: as the policy got them.
        answers: more than `N` solutions each; the first N are judged.
    """

    task: ChainArith
    problems: Sequence[Problem]
    asked: Sequence[Question]
    answers: Sequence[Answer]

    @classmethod
    def draw(cls, policy: LocalModel, size: int, n: int, seed: int) -> Bench:
        """Sample it."""
        task = ChainArith(operations=OPERATIONS)
        drawn = distinct(task, seed, size)
        asked = questions(task, drawn)
        return cls(task, drawn, asked, solutions(policy, asked, n, HEAT, seed))

    def part(self, where: Sequence[int]) -> Bench:
        """Some of its questions."""
        problems, asked = [self.problems[q] for q in where], [self.asked[q] for q in where]
        return replace(
            self, problems=problems, asked=asked, answers=[self.answers[q] for q in where]
        )

    @cached_property
    def values(self) -> list[list[str | None]]:
        """Answers of every solution."""
        return [
            [question.answer(branch.completion()) for branch in answer.branches]
            for question, answer in zip(self.asked, self.answers, strict=True)
        ]

    @cached_property
    def steps(self) -> list[list[tuple[str, ...]]]:
        """The first N solutions of every question, cut into steps."""
        return [
            [question.steps(branch.completion()) for branch in answer.branches[:N]]
            for question, answer in zip(self.asked, self.answers, strict=True)
        ]

    @cached_property
    def labelled(self) -> list[list[Source | None]]:
        """The same with labels; None for what cannot be read as a chain's solution."""
        rows = []
        for problem, solved in zip(self.problems, self.steps, strict=True):
            row: list[Source | None] = []
            for steps in solved:
                labels = label_solution(self.task.chain(problem), steps) if steps else None
                row.append(None if labels is None else Source(problem.question, steps, labels))
            rows.append(row)
        return rows

    def right(self, chosen: Sequence[str | None]) -> FloatArray:
        """(Q,) 1 where the chosen answer is right."""
        pairs = zip(chosen, self.problems, strict=True)
        return np.array([float(value == problem.answer) for value, problem in pairs])

    def majority(self, n: int) -> FloatArray:
        """(Q,) whether the majority of the first n solutions is right."""
        chosen = []
        for question, values in zip(self.asked, self.values, strict=True):
            chosen.append(values[question.vote(values[:n]).index])
        return self.right(chosen)

    def policy_tokens(self, n: int) -> float:
        """Mean sampled tokens of the first n solutions of a question."""
        return float(
            np.mean([sum(len(b.completion_ids()) for b in a.branches[:n]) for a in self.answers])
        )


@dataclass(frozen=True)
class Verdicts:
    """What one verifier says about a bench.

    Args:
        bench: the questions and solutions.
        scores: of the first N solutions of each of Q questions.
        errors: index of the first step called wrong, in the same shape.
        valid: whether each critique was well formed; all true for classifiers.
        ledgers: the verifier's books, one per question.
    """

    bench: Bench
    scores: list[list[float]]
    errors: list[list[int | None]]
    valid: list[list[bool]]
    ledgers: list[Ledger]

    def part(self, where: Sequence[int]) -> Verdicts:
        """Those on some of the questions."""
        return Verdicts(
            self.bench.part(where),
            [self.scores[q] for q in where],
            [self.errors[q] for q in where],
            [self.valid[q] for q in where],
            [self.ledgers[q] for q in where],
        )

    def best(self, *, naive: bool = False) -> FloatArray:
        """(Q,) whether best-of-N is right: by the sum of scores, or by the best score alone."""
        chosen = []
        for question, all_values, scores in zip(
            self.bench.asked, self.bench.values, self.scores, strict=True
        ):
            values = all_values[:N]
            if naive:
                at = min(range(N), key=lambda i: (values[i] is None, -scores[i], i))
            else:
                at = question.vote(values, scores).index
            chosen.append(values[at])
        return self.bench.right(chosen)

    @cached_property
    def found(self) -> FloatArray:
        """(Q, 3) first errors found, false alarms, first errors missed."""
        counts = np.zeros((len(self.scores), 3))
        for q, (row, errors) in enumerate(zip(self.bench.labelled, self.errors, strict=True)):
            for source, error in zip(row, errors, strict=True):
                if source is not None:
                    hit = source.bad and error == source.first_error
                    counts[q, 0] += hit
                    counts[q, 1] += error is not None and not hit
                    counts[q, 2] += source.bad and not hit
        return counts

    @cached_property
    def exact(self) -> tuple[float, float]:
        """Share of wrong solutions whose first error is found, and of right ones left alone."""
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for row, errors in zip(self.bench.labelled, self.errors, strict=True):
            for source, error in zip(row, errors, strict=True):
                if source is not None:
                    hits[source.bad].append(error == source.first_error)
        return float(np.mean(hits[True])), float(np.mean(hits[False]))

    @property
    def invalid(self) -> float:
        """Share of ill-formed critiques."""
        return 1 - float(np.mean([flag for row in self.valid for flag in row]))

    @property
    def tokens(self) -> float:
        """Mean tokens that the verifier samples and is forced through, per question."""
        totals = [ledger.totals(role="verifier") for ledger in self.ledgers]
        return float(np.mean([total.generated + total.forced for total in totals]))

    @property
    def read(self) -> float:
        """Mean tokens that the verifier reads as prompts, per question."""
        totals = [ledger.totals(role="verifier") for ledger in self.ledgers]
        return float(np.mean([total.prompt for total in totals]))

    def calibration(self, bins: int = 10) -> tuple[float, float]:
        """Expected calibration error of the scores, and their share within 0.05 of 0 or 1."""
        pairs = [
            (score, not source.bad)
            for row, scores in zip(self.bench.labelled, self.scores, strict=True)
            for source, score in zip(row, scores, strict=True)
            if source is not None
        ]
        scores_N = np.array([score for score, _ in pairs])
        right_N = np.array([float(good) for _, good in pairs])
        bin_N = np.minimum((scores_N * bins).astype(int), bins - 1)
        error = math.fsum(
            abs(float((scores_N[bin_N == b] - right_N[bin_N == b]).sum())) for b in range(bins)
        ) / len(pairs)
        return error, float(np.mean((scores_N < 0.05) | (scores_N > 0.95)))


def judge(bench: Bench, verifier: ThinkPRM | DiscriminativePRM) -> Verdicts:
    """Let a verifier judge the first N solutions of every question."""
    accounts = [Account(stage="think", role="verifier") for _ in bench.problems]
    flat = [
        (question, steps, account)
        for question, solved, account in zip(bench.asked, bench.steps, accounts, strict=True)
        for steps in solved
    ]
    due = [entry for entry in flat if entry[1]]
    asked, paths, books = zip(*due, strict=True)
    scores, errors, valid = _verdicts(verifier, asked, paths, books)
    ready = iter(zip(scores, errors, valid, strict=True))
    cells = [next(ready) if steps else (0.0, None, True) for _, steps, _ in flat]
    rows = [cells[at : at + N] for at in range(0, len(cells), N)]
    return Verdicts(
        bench,
        [[cell[0] for cell in row] for row in rows],
        [[cell[1] for cell in row] for row in rows],
        [[cell[2] for cell in row] for row in rows],
        [account.ledger for account in accounts],
    )


def _verdicts(
    verifier: ThinkPRM | DiscriminativePRM,
    asked: Sequence[Question],
    paths: Sequence[tuple[str, ...]],
    books: Sequence[Account],
) -> tuple[list[float], list[int | None], list[bool]]:
    if isinstance(verifier, ThinkPRM):
        texts = [question.text for question in asked]
        found: list[Judgement] = verifier.judge(texts, paths, accounts=books)
        return (
            [one.score for one in found],
            [one.first_error for one in found],
            [one.valid for one in found],
        )
    rows = verifier.score(asked, paths, [()] * len(paths), accounts=books)
    firsts = [next((i for i, score in enumerate(row) if score < 0.5), None) for row in rows]
    # A solution is right if all its steps are.
    return [min(row) for row in rows], firsts, [True] * len(rows)


def several(verifier: ThinkPRM, chains: int) -> ThinkPRM:
    """The same verifier with several critiques in parallel."""
    return replace(verifier, chains=chains)


def constant_guess(bench: Bench) -> float:
    """First-error F1 of calling the same step wrong everywhere: the best such step's."""
    labelled = [source for row in bench.labelled for source in row if source is not None]
    counts: Mapping[int, int] = {
        at: sum(source.first_error == at for source in labelled) for at in range(OPERATIONS[1] + 1)
    }
    wrong = sum(source.bad for source in labelled)
    hits = max(counts.values())
    return 2 * hits / (len(labelled) + wrong)


def fingerprint() -> str:
    """The first 16 digits of the SHA-256 of the reasoner's weights."""
    data = (checkpoint_path(CHECKPOINT) / "model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
