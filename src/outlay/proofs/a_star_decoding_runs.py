"""The runs behind the proof of A*-decoding: questions, sampled pools, searches, and their costs.

A *curve* is one method at several settings of its budget knob. Every point of it keeps, for each of
N questions, how often the answer was right and what it cost, so that curves can be compared by a
paired bootstrap over questions.

Shapes: N questions, B settings, S samples of one question, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from outlay.errors import InputError
from outlay.ledger import Ledger
from outlay.models.base import Account, SamplingParams
from outlay.models.local import LocalModel
from outlay.reason import Question, Reasoner, SelfConsistency, Verifier, solve_many
from outlay.reason.base import Answer
from outlay.stats import FloatArray, first_crossing, resample_means
from outlay.testbeds.reasoner import ChainArith, parse_question, render_prompt
from outlay.testbeds.reasoner.oracle import opened_by, verdicts

OPERATIONS = (6, 12)
LONGEST = 160  # tokens of a solution; the longest chain needs 77
TEMPERATURES = (0.7, 1.0, 1.3, 1.5, 1.6, 1.7, 1.8)
STEP_ACCURACY = 0.87  # what the temperature is chosen for: the middle third of 80-90 %
TOGETHER = 170
SUBSETS = 40  # of a pool, per size
AXES = ("computed", "billed", "generated", "passes")
Vote = Literal["majority", "weighted", "naive"]


@dataclass(frozen=True)
class Setting:
    """One method at one setting of its knob.

    Args:
        method: name of the curve.
        knob: k or N.
        right_N: share of right answers of each question, over subsets of a pool.
        cost_N: of each question, by axis. "computed": generated tokens, and those that the verifier
            had to compute. "billed": and those that it had in its cache. "generated": generated
            tokens alone. "passes": of the verifier.
    """

    method: str
    knob: int
    right_N: FloatArray
    cost_N: Mapping[str, FloatArray]
    answers: Sequence[Answer] = field(default=(), repr=False)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right_N.mean())

    def cost(self, axis: str) -> float:
        """Mean cost of a question."""
        return float(self.cost_N[axis].mean())


def questions(n: int, seed: int) -> list[Question]:
    """Held-out chains of 6 to 12 operations, thought about in the short format; all different."""
    task = ChainArith(operations=OPERATIONS)
    found: dict[str, Question] = {}
    for problem in task.sample(seed, 2 * n):
        if problem.question not in found and len(found) < n:
            found[problem.question] = Question(
                render_prompt(problem.question, "short"),
                problem.question,
                "custom",
                read=partial(task.read, problem),
                delimiter=task.delimiter,
                id=problem.id,
            )
    return list(found.values())


@dataclass(frozen=True)
class Group:
    """Questions of one seed, which is also that of their samples."""

    seed: int
    asked: Sequence[Question]


def groups(per_seed: int, seeds: Sequence[int]) -> list[Group]:
    """`per_seed` questions of every seed."""
    return [Group(seed, questions(per_seed, seed)) for seed in seeds]


def truth(question: Question) -> str:
    """The right answer."""
    return parse_question(question.text).answer


def sampling(temperature: float, seed: int) -> SamplingParams:
    """How everything here is sampled."""
    return SamplingParams(temperature=temperature, max_tokens=LONGEST, seed=seed * 10_000)


def step_accuracy(question: Question, completion: str) -> tuple[int, int]:
    """Right steps, and steps at which all was right before."""
    right = verdicts(parse_question(question.text), question.steps(completion), opened_by(question))
    reached = right.index(False) + 1 if False in right else len(right)
    return sum(right[:reached]), reached


def choose_temperature(model: LocalModel, asked: Sequence[Question]) -> tuple[float, float, float]:
    """The temperature whose step accuracy is nearest to `STEP_ACCURACY`.

    Returns:
        Temperature, step accuracy, and single-sample accuracy there.
    """
    found = []
    for temperature in TEMPERATURES:
        method = SelfConsistency(n=2, early_stop=False)
        answers = solve_many(
            method, model, asked, sampling=sampling(temperature, 99), together=TOGETHER
        )
        counts = np.zeros(2)
        right = []
        for question, answer in zip(asked, answers, strict=True):
            for branch in answer.branches:
                text = branch.completion()
                counts += step_accuracy(question, text)
                right.append(question.answer(text) == truth(question))
        found.append((temperature, float(counts[0] / counts[1]), float(np.mean(right))))
    return min(found, key=lambda row: abs(row[1] - STEP_ACCURACY))


@dataclass(frozen=True)
class Pool:
    """S samples of every question, judged.

    Args:
        right_NS: whether the answer is right.
        code_NS: answers as numbers, equal where they are equal; -1 for none.
        text_NS: whole solutions as numbers, likewise.
        score_NS: of the whole solution (its last step).
        tokens_NS: generated.
        read_NS: tokens of the solution that the verifier read.
        prompt_N: tokens of the prompt that it read.
    """

    right_NS: FloatArray
    code_NS: np.ndarray
    text_NS: np.ndarray
    score_NS: FloatArray
    tokens_NS: FloatArray
    read_NS: FloatArray
    prompt_N: FloatArray


def solved(
    method: Reasoner, model: LocalModel, some: Sequence[Group], temperature: float
) -> list[Answer]:
    """The answers to all questions, group by group."""
    return [
        answer
        for group in some
        for answer in solve_many(
            method,
            model,
            group.asked,
            sampling=sampling(temperature, group.seed),
            together=TOGETHER,
        )
    ]


def judge_pool(some: Sequence[Group], drawn: Sequence[Answer], verifier: Verifier) -> Pool:
    """Score all samples as best-of-N does, in one call a question with books of its own."""
    right, codes, same, scores, tokens, read, prompts = [], [], [], [], [], [], []
    asked = [question for group in some for question in group.asked]
    for question, answer in zip(asked, drawn, strict=True):
        texts = [branch.completion() for branch in answer.branches]
        paths = [question.steps(text) for text in texts]
        account = Account(Ledger(), role="verifier")
        rows = verifier.score(
            [question] * len(paths), paths, [()] * len(paths), accounts=[account] * len(paths)
        )
        values = [question.answer(text) for text in texts]
        whole = [entry.prompt_new + entry.prompt_cached for entry in account.ledger.entries]
        root = answer.branches[0].lineage()[0]
        prompt = len(root.token_ids) if any(whole) else 0
        right.append([value == truth(question) for value in values])
        codes.append(_numbered(values))
        same.append(_numbered(texts))
        scores.append([row[-1] for row in rows])
        tokens.append([len(branch.completion_ids()) for branch in answer.branches])
        read.append([total - prompt for total in whole])
        prompts.append(prompt)
    return Pool(
        np.array(right, dtype=float),
        np.array(codes),
        np.array(same),
        np.array(scores),
        np.array(tokens, dtype=float),
        np.array(read, dtype=float),
        np.array(prompts, dtype=float),
    )


def _numbered(values: Sequence[str | None]) -> list[int]:
    names = {value: at for at, value in enumerate(dict.fromkeys(values))}
    return [-1 if value is None else names[value] for value in values]


def vote(codes: Sequence[int], scores: Sequence[float], how: Vote) -> int:
    """Index of the sample that carries the winning answer; ties go to the earliest."""
    real = [at for at, code in enumerate(codes) if code >= 0]
    if not real:
        return 0
    if how == "naive":
        return max(real, key=lambda at: (scores[at], -at))
    sums: dict[int, float] = {}
    for at in real:
        sums[codes[at]] = sums.get(codes[at], 0.0) + (1.0 if how == "majority" else scores[at])
    best = max(sums.values())
    winner = next(code for code, total in sums.items() if total == best)
    return next(at for at in real if codes[at] == winner)


def pooled(pool: Pool, name: str, how: Vote, sizes: Sequence[int], seed: int) -> list[Setting]:
    """The curve of a vote over random subsets of the pool.

    Raises:
        InputError: for a size beyond the pool.
    """
    count, drawn = pool.right_NS.shape
    if max(sizes) > drawn:
        raise InputError(f"size {max(sizes)} exceeds the pool of {drawn}")
    rng = np.random.default_rng([seed, 0xB0])
    curve = []
    for size in sizes:
        right_N, tokens_N = np.zeros(count), np.zeros(count)
        new_N, read_N = np.zeros(count), np.zeros(count)  # computed, and read in all
        for _ in range(SUBSETS):
            for row in range(count):
                chosen = rng.permutation(drawn)[:size]
                codes, scores = pool.code_NS[row, chosen].tolist(), pool.score_NS[row, chosen]
                winner = chosen[vote(codes, scores.tolist(), how)]
                right_N[row] += pool.right_NS[row, winner]
                tokens_N[row] += pool.tokens_NS[row, chosen].sum()
                _, first = np.unique(pool.text_NS[row, chosen], return_index=True)
                new_N[row] += pool.read_NS[row, chosen[first]].sum()
                read_N[row] += pool.read_NS[row, chosen].sum()
        right_N, tokens_N = right_N / SUBSETS, tokens_N / SUBSETS
        judged = how != "majority"
        costs = {
            "computed": tokens_N + judged * (new_N / SUBSETS + pool.prompt_N),
            "billed": tokens_N + judged * (read_N / SUBSETS + size * pool.prompt_N),
            "generated": tokens_N,
            "passes": np.full(count, float(size * judged)),
        }
        curve.append(Setting(name, size, right_N, costs))
    return curve


def searched(
    model: LocalModel,
    some: Sequence[Group],
    temperature: float,
    name: str,
    knob: int,
    method: Reasoner,
) -> Setting:
    """One search at one setting."""
    asked = [question for group in some for question in group.asked]
    answers = solved(method, model, some, temperature)
    right = [float(a.value == truth(q)) for q, a in zip(asked, answers, strict=True)]
    cost_NA = np.array([spent(answer.ledger) for answer in answers], dtype=float)
    costs = {axis: cost_NA[:, at] for at, axis in enumerate(AXES)}
    return Setting(name, knob, np.array(right), costs, answers)


def spent(ledger: Ledger) -> tuple[float, float, float, float]:
    """What a question cost, on every axis of `AXES`."""
    read = ledger.totals(role="verifier")
    total = ledger.totals()
    made = total.generated + total.forced
    return made + read.prompt_new, made + read.prompt, made, read.calls


@dataclass(frozen=True)
class Ratio:
    """A's cost over B's at an equal accuracy.

    Args:
        value: the ratio; None where one of them never gets there.
        lo, hi: 95 % paired bootstrap over questions; None where a resample does not get there.
        ours, theirs: the costs.
        at: the accuracy.
        reached: share of resamples in which both get there.
    """

    value: float | None
    lo: float | None
    hi: float | None
    ours: float | None
    theirs: float | None
    at: float
    reached: float


def ratio_at(
    ours: Sequence[Setting],
    theirs: Sequence[Setting],
    axis: str,
    target: float | Setting,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Ratio:
    """What our curve costs against theirs at an accuracy.

    Costs are interpolated log-linearly between settings. A curve whose cheapest setting is better
    already is charged for that setting.

    Args:
        ours, theirs: curves over the same questions.
        axis: of the costs.
        target: an accuracy, or the setting of theirs whose accuracy is to be reached; then their
            cost is that setting's own.
    """
    parts = [setting.right_N for setting in (*ours, *theirs)]
    parts += [setting.cost_N[axis] for setting in (*ours, *theirs)]
    point = None
    if isinstance(target, Setting):
        point = len(parts)
        parts += [target.right_N, target.cost_N[axis]]
    values_NM = np.stack(parts, axis=1)
    means_RM = np.concatenate(
        [values_NM.mean(axis=0, keepdims=True), resample_means(values_NM, resamples, seed)]
    )
    a, both = len(ours), len(ours) + len(theirs)
    goal_R = means_RM[:, point] if point is not None else np.full(len(means_RM), float(target))  # type: ignore[arg-type]
    ours_R = _cost_to(means_RM[:, both : both + a], means_RM[:, :a], goal_R)
    if point is not None:
        theirs_R = means_RM[:, point + 1]
    else:
        theirs_R = _cost_to(means_RM[:, both + a : 2 * both], means_RM[:, a:both], goal_R)
    ratio_R = ours_R / theirs_R
    drawn = ratio_R[1:]
    there = ~np.isnan(drawn)
    # Where the accuracy is not reached the ratio has no bound, which the interval must show.
    ends = np.quantile(np.where(there, drawn, np.inf), (0.025, 0.975), method="higher")
    ends = np.where(np.isfinite(ends), ends, np.nan)
    return Ratio(
        _number(ratio_R[0]),
        _number(ends[0]),
        _number(ends[1]),
        _number(ours_R[0]),
        _number(theirs_R[0]),
        float(goal_R[0]),
        float(there.mean()),
    )


def _cost_to(cost_RB: FloatArray, right_RB: FloatArray, goal_R: FloatArray) -> FloatArray:
    gap_RB = right_RB - goal_R[:, None]
    found_R = first_crossing(cost_RB, gap_RB, 0.0, True, True)
    cheapest_R = cost_RB.argmin(axis=1)
    rows = np.arange(len(cost_RB))
    already_R = gap_RB[rows, cheapest_R] >= 0
    found_R[already_R] = cost_RB[rows, cheapest_R][already_R]
    return found_R


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
