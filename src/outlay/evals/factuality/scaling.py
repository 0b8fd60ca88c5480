"""Test-time scaling: many samples side by side, or one chain of thought with a longer budget.

fs1 (arXiv 2505.11140), sections on inference. *Parallel*: n samples per question; pass@k is the
upper bound that a perfect selector would reach, majority@k and best-of-k are what selectors without
the gold reach, each with the tokens that it costs. *Sequential*: budget forcing. The cap B counts
the prompt and everything generated and forced while thinking; where the model closes its thinking
earlier, " Wait," is appended; then the answer is forced open.

Sequential scaling is `outlay.decode.thinking_budget.ThinkingBudget` with one limit per question:
B minus its prompt. Differences from the published code: the marker is a stop string, so that no
token after it is paid for and thrown away; the prompt is computed once; questions run in one batch;
waits may be bounded; a wait is appended wherever it and one more token fit, not only where more
than 32 tokens are left; there is no repetition penalty, because samplers here have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from outlay.budget import Budget
from outlay.decode.base import ThinkResult
from outlay.decode.batching import sample
from outlay.decode.thinking_budget import ThinkingBudget
from outlay.errors import InputError
from outlay.evals.base import Problem, Task
from outlay.evals.checks import check_whole
from outlay.evals.factuality.answers import extract_answer, normalise
from outlay.evals.factuality.judge import as_chat
from outlay.evals.passk import majority_at_k, pass_at_k
from outlay.ledger import Ledger
from outlay.models.base import Account, Message, Model, Prompt, SamplingParams

Score = Callable[[Problem, str], float]

KS = (1, 2, 4, 8, 16)
MARKER = "<|im_start|>answer"
THINK = "<|im_start|>think\n"
WAIT = " Wait,"
MOST_SAMPLES = 1_024
FORCING = ThinkingBudget(
    think_open=THINK,
    think_close=MARKER,
    answer_open="\n",
    overthink_prefix="",
    wait=WAIT,
    n_wait=math.inf,
    max_answer=256,
)
"""The paper's budget forcing; plain-text markers do for tokenizers without ChatML tokens."""


@dataclass(frozen=True)
class Samples:
    """n replies to one question.

    Args:
        problem: what was asked.
        replies: as generated.
        correct: whether each is right.
        tokens: generated, per reply.
        prompt_tokens: of the prompt, which all share.
        scores: of a selector, where one was given.
    """

    problem: Problem
    replies: tuple[str, ...]
    correct: tuple[bool, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int
    scores: tuple[float, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The normalised answers that vote; "" abstains."""
        return tuple(normalise(extract_answer(reply).text) for reply in self.replies)


@dataclass(frozen=True)
class ParallelPoint:
    """What k samples are worth.

    Args:
        k: samples looked at.
        passed: pass@k: an upper bound, reached only by a selector that never errs.
        majority: accuracy of the most frequent answer.
        best: accuracy of the sample with the highest score; None without scores.
        tokens: mean tokens per question: the prompt once, and k replies.
        per_solved: all tokens over questions solved by the majority; infinite if there are none.
    """

    k: int
    passed: float
    majority: float
    best: float | None
    tokens: float
    per_solved: float


def draw(
    model: Model,
    task: Task,
    problems: Sequence[Problem],
    *,
    n: int = 16,
    sampling: SamplingParams = SamplingParams(temperature=0.7, top_p=0.8, top_k=20),  # noqa: B008
    score: Score | None = None,
    examples: Sequence[Problem] = (),
    ledger: Ledger | None = None,
) -> list[Samples]:
    """n samples per question, in one batch per question on one prefilled prompt.

    Args:
        model: local or an endpoint.
        task: gives prompts and judges.
        problems: of the task.
        n: samples per question.
        sampling: of every sample; seeds are spread over the samples.
        score: of (problem, reply), without the gold: what best-of-k chooses by.
        examples: worked problems before each question.
        ledger: gets the entries of all calls.

    Raises:
        InputError: for n out of range or no problems.
    """
    check_whole("n", n, least=1)
    if n > MOST_SAMPLES:
        raise InputError(f"n={n} samples, at most {MOST_SAMPLES} are drawn; the paper's is 16")
    if not problems:
        raise InputError("no questions to sample for; give at least one")
    made = []
    for problem in problems:
        prompt = request(model, task, problem, examples)
        account = Account(method="parallel")
        root = model.open(prompt, account=account.at("prompt"))
        wants = [replace(sampling, seed=sampling.seed * n + i) for i in range(n)]
        accounts = [Account(method="parallel") for _ in range(n)]
        grown = sample(model, [root] * n, wants, accounts, "answer")
        branches = [row[0] for row in grown if row is not None]
        for branch, place in zip(branches, accounts, strict=True):
            place.ledger.deliver(branch.ids())
            account.ledger.extend(place.ledger)
        model.release(root)
        replies = tuple(branch.text for branch in branches)
        made.append(
            Samples(
                problem,
                replies,
                tuple(task.verify(problem, reply) >= 1 for reply in replies),
                tuple(row[1] for row in grown if row is not None),
                _prompt_size(model, prompt),
                () if score is None else tuple(score(problem, reply) for reply in replies),
            )
        )
        if ledger is not None:
            ledger.extend(account.ledger)
    return made


def parallel_curve(
    samples: Sequence[Samples], ks: Sequence[int] = KS, *, seed: int = 0
) -> list[ParallelPoint]:
    """pass@k, majority@k and best-of-k, averaged over the questions.

    Args:
        samples: of all questions.
        ks: numbers of samples looked at.
        seed: of majority@k where its subsets are too many to enumerate.

    Raises:
        InputError: for no samples, or k outside 1..n.
    """
    if not samples or not ks:
        raise InputError("no samples or no ks; draw at least one sample and give ks=(1,)")
    least = min(len(one.replies) for one in samples)
    for k in ks:
        check_whole("ks", k, least=1)
        if k > least:
            raise InputError(f"k={k} is more than the n={least} samples drawn; lower ks or raise n")
    points = []
    for k in ks:
        passed = [pass_at_k(len(one.correct), sum(one.correct), k) for one in samples]
        voted = [majority_at_k(one.answers, one.correct, k, seed=seed) for one in samples]
        chosen = [best_of_k(one.scores, one.correct, k) for one in samples if one.scores]
        cost = [one.prompt_tokens + k * float(np.mean(one.tokens)) for one in samples]
        solved = math.fsum(voted)
        points.append(
            ParallelPoint(
                k=k,
                passed=float(np.mean(passed)),
                majority=float(np.mean(voted)),
                best=float(np.mean(chosen)) if len(chosen) == len(samples) else None,
                tokens=float(np.mean(cost)),
                per_solved=math.fsum(cost) / solved if solved else math.inf,
            )
        )
    return points


def best_of_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Chance that the best-scored of k random samples is right; ties go to the earlier sample.

    The sample of rank r (from 0) is the best of C(n - 1 - r, k - 1) of the C(n, k) subsets.

    Raises:
        InputError: unless there is one finite score per verdict and 1 <= k <= n.
    """
    n = len(scores)
    if n != len(correct) or not all(map(math.isfinite, scores)):
        raise InputError(f"{n} scores for {len(correct)} samples; give one finite score each")
    if not 1 <= k <= n:
        raise InputError(f"k={k} with n={n} samples; need 1 <= k <= n")
    order = sorted(range(n), key=lambda i: -scores[i])  # stable
    ways = sum(math.comb(n - 1 - r, k - 1) for r, i in enumerate(order) if correct[i])
    return ways / math.comb(n, k)


@dataclass(frozen=True)
class SequentialPoint:
    """One budget of thinking.

    Args:
        budget: B.
        accuracy: share of right answers.
        thinking: mean tokens of thinking, waits and dropped markers included.
        tokens: mean tokens per question: prompt, thinking and answer.
        waits: mean number of waits.
        per_solved: all tokens over the questions solved.
        warning: "" or why this budget is a doubtful one.
        results: one per question.
        correct: one per question.
    """

    budget: int
    accuracy: float
    thinking: float
    tokens: float
    waits: float
    per_solved: float
    warning: str = ""
    results: tuple[ThinkResult, ...] = field(repr=False, default=())
    correct: tuple[bool, ...] = field(repr=False, default=())


def sequential_curve(
    model: Model,
    task: Task,
    problems: Sequence[Problem],
    budgets: Sequence[int],
    *,
    decoder: ThinkingBudget = FORCING,
    counts_prompt: bool = True,
    examples: Sequence[Problem] = (),
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
) -> list[SequentialPoint]:
    """One run of budget forcing per budget.

    Args:
        model: one that can be continued.
        task: gives prompts and judges the answer part.
        problems: of the task.
        budgets: B, each; where B does not exceed a prompt, the answer follows at once.
        decoder: the markers, the wait, the number of waits and the answer's length.
        counts_prompt: whether B includes the prompt, as in the paper.
        examples: worked problems before each question.
        sampling: greedy in the paper.

    Raises:
        InputError: for no problems, or a budget that is not a whole number >= 1.
    """
    if not problems or not budgets:
        raise InputError("no questions or no budgets; give at least one of each")
    for budget in budgets:
        check_whole("budgets", budget, least=1)
    prompts = [request(model, task, problem, examples) for problem in problems]
    sizes = [_prompt_size(model, prompt, decoder.think_open or "") for prompt in prompts]
    points = []
    for budget in budgets:
        accounts = []
        for size in sizes:
            room = max(0, budget - size) if counts_prompt else budget
            stages = {"think": room, "answer": decoder.max_answer}
            limit = Budget(tokens=room + decoder.max_answer, stages=stages)
            accounts.append(Account.open(limit, method="thinking_budget"))
        waits = _affordable(model, decoder, accounts)
        results: list[ThinkResult | None] = [None] * len(problems)
        for allowed in dict.fromkeys(waits):
            rows = [i for i, wait in enumerate(waits) if wait == allowed]
            made = replace(decoder, n_wait=allowed).generate_many(
                model,
                [prompts[i] for i in rows],
                None,
                sampling,
                accounts=[accounts[i] for i in rows],
            )
            for i, result in zip(rows, made, strict=True):
                results[i] = result
        point = _point(task, problems, budget, [r for r in results if r is not None])
        points.append(replace(point, warning=_warning(budget, decoder.max_answer)))
    return points


def _warning(budget: int, allowance: int) -> str:
    if budget > allowance:
        return ""
    return (
        f"a budget of {budget} is not above the {allowance} tokens allowed for the answer; "
        "lower max_answer, or raise the budget"
    )


def request(model: Model, task: Task, problem: Problem, examples: Sequence[Problem] = ()) -> Prompt:
    """The prompt of a problem, after worked examples with their answers in a box.

    With a chat template each example is a turn of the user and one of the assistant; else all is
    one text.
    """
    shown = [(task.prompt(one, one.context), f"\\boxed{{{one.answer}}}") for one in examples]
    asked = task.prompt(problem, problem.context)
    last = as_chat(model, asked) if task.chat else asked
    if isinstance(last, str):
        return "\n\n".join([*(f"{before}\n{after}" for before, after in shown), last])
    turns: list[Message] = []
    for before, after in shown:
        turns.append(Message(role="user", content=before))
        turns.append(Message(role="assistant", content=after))
    return [*turns, *cast(Sequence[Message], last)]


def _prompt_size(model: Model, prompt: Prompt, opened: str = "") -> int:
    """Tokens of a prompt; exact for a local model, of its texts alone for a server."""
    exact = getattr(model, "prompt_ids", None)
    if exact is not None:
        return len(exact(prompt, opened))
    if not isinstance(prompt, str):
        prompt = "\n".join(cast(Message, part)["content"] for part in prompt)
    return model.count(prompt + opened)


def _affordable(model: Model, decoder: ThinkingBudget, accounts: Sequence[Account]) -> list[float]:
    """Waits that each question may use: none where its limit cannot hold one."""
    cost = model.count(decoder.wait) if decoder.n_wait else 0
    limits = [
        (account.meter.budget.stages or {}).get("think", 0) if account.meter is not None else 0
        for account in accounts
    ]
    return [decoder.n_wait if limit > cost else 0 for limit in limits]


def _point(
    task: Task, problems: Sequence[Problem], budget: int, results: Sequence[ThinkResult]
) -> SequentialPoint:
    correct = tuple(
        task.verify(problem, result.text) >= 1
        for problem, result in zip(problems, results, strict=True)
    )
    thinking = [
        (total := result.ledger.totals(stage="think")).generated + total.forced
        for result in results
    ]
    tokens = [result.ledger.totals().all for result in results]
    solved = sum(correct)
    return SequentialPoint(
        budget=budget,
        accuracy=solved / len(results),
        thinking=float(np.mean(thinking)),
        tokens=float(np.mean(tokens)),
        waits=float(np.mean([result.waits for result in results])),
        per_solved=sum(tokens) / solved if solved else math.inf,
        results=tuple(results),
        correct=correct,
    )
