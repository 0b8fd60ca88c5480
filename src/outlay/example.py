"""One example under one stack and budget: the inner step of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.evals.base import (
    Explains,
    Interactive,
    Mark,
    Marks,
    Problem,
    Reads,
    Task,
    continuations,
    pick,
)
from outlay.models.base import Account, Gauges, Message, Model, Prompt, SamplingParams, Scorer, Sees
from outlay.records import Record
from outlay.stack import Stack

MARKED = ("thinking", "answer", "transcript")  # texts in which a task may mark something


@dataclass(frozen=True)
class Outcome:
    """A record, the texts behind it, and what to mark in them, for the report's drill-down."""

    record: Record
    texts: Mapping[str, str]
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)


def run_example(
    model: Model,
    stack: Stack,
    task: Task,
    problem: Problem,
    budget: Budget,
    *,
    seed: int = 0,
    sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
    label: str | None = None,
    task_name: str | None = None,
) -> Outcome:
    """Answer one problem and judge the answer.

    Args:
        model: the target.
        stack: what runs.
        task: judges.
        problem: from `task.sample`.
        budget: see `Stack.budgets`.
        seed: of sampling; mixed with the example's id, so that examples differ.
        sampling: temperature and so on; its seed is replaced.
        label: name of the stack in the record; None for `stack.label()`.
        task_name: name of the task in the record; None for `task.name`.

    Raises:
        OutlayError: whatever a method raises for this example.
    """
    if task.kind == "vision":
        return _look(
            model,
            stack,
            task,
            problem,
            budget,
            seed=seed,
            sampling=sampling,
            label=label,
            task_name=task_name,
        )
    if not isinstance(model, Model):
        raise CapabilityError(
            f"{getattr(model, 'name', model)} answers questions about images; choose a task that "
            "has some (seer), or another model"
        )
    if stack.vision is not None:
        raise CapabilityError(
            f"{task.name} has no images; drop {type(stack.vision).__name__}, "
            "or choose a task that has some"
        )
    if stack.cache is not None and task.kind in ("likelihood", "choice"):
        raise CapabilityError(
            f"{task.name} scores given text and {type(stack.cache).__name__} generates; "
            "choose a task whose answers are generated"
        )
    prompt_budget, run_budget = stack.budgets(budget)
    method = label or stack.label()
    account = Account.open(run_budget, method=method)
    context = problem.context
    texts: dict[str, str] = {"question": problem.question}
    if prompt_budget is not None and context:
        shorter = stack.prompt.compress(
            context, problem.question, prompt_budget, count=model.count, language=problem.language
        )
        account.ledger.extend(shorter.ledger)
        context = shorter.text
        if shorter.warnings:
            texts["warnings"] = "\n".join(shorter.warnings)
    prompt = task.prompt(problem, context)
    texts["prompt"] = prompt
    sampling = _seeded(sampling, seed, problem)
    gauges = Gauges()
    if task.kind == "episode":
        quality = _play(model, stack, task, problem, run_budget, sampling, account, texts)
    elif task.kind == "likelihood":
        quality = _loss(model, prompt, problem.answer, account)
    elif task.kind == "choice":
        root = model.open(prompt, account=account)
        answer = pick(problem, model.score(root, continuations(problem), account=account))
        account.ledger.deliver(root.ids())
        texts["answer"] = answer
        quality = task.verify(problem, answer)
    else:
        answer, gauges = _generate(
            model, stack, task, problem, prompt, run_budget, sampling, account, texts
        )
        quality = task.verify(problem, answer)
    if isinstance(task, Explains) and "answer" in texts:
        texts.update(task.explain(problem, texts["answer"]))
    if problem.answer:
        texts["expected"] = problem.answer
    record = Record(
        task=task_name or task.name,
        example=problem.id,
        method_stack=method,
        budget=budget,
        seed=seed,
        quality=float(quality),
        ledger=account.ledger,
        kv_bytes=gauges.kv_bytes,
        ttft=gauges.ttft,
        tbt=gauges.tbt,
    )
    return Outcome(record, texts, _marks(task, problem, texts))


def _seeded(sampling: SamplingParams, seed: int, problem: Problem) -> SamplingParams:
    """Examples differ in their seed; methods do not."""
    key = hashlib.blake2b(f"{seed}:{problem.id}".encode(), digest_size=4).digest()
    return replace(sampling, seed=int.from_bytes(key, "big"))


def _look(
    model: Any,
    stack: Stack,
    task: Task,
    problem: Problem,
    budget: Budget,
    *,
    seed: int,
    sampling: SamplingParams,
    label: str | None,
    task_name: str | None,
) -> Outcome:
    """One question about images."""
    if not isinstance(model, Sees):
        raise CapabilityError(
            f"{task.name} shows images, and {getattr(model, 'name', model)} sees none; choose a "
            "vision-language model (for instance --model seer)"
        )
    taken = {name: getattr(stack, name) for name in ("prompt", "decode", "cache", "reason")}
    if others := [type(method).__name__ for method in taken.values() if method is not None]:
        raise CapabilityError(
            f"{', '.join(others)} cannot be combined with images yet; drop it from {stack.label()}"
        )
    _, run_budget = stack.budgets(budget)
    method = label or stack.label()
    account = Account.open(run_budget, method=method)
    total = model.visual_tokens(problem.images[0])
    pruner = stack.pruner(budget, total, model.decoder_layers)
    question = task.prompt(problem, problem.context)
    found = model.see(
        problem.images,
        question,
        _seeded(sampling, seed, problem),
        pruner=pruner,
        account=account,
    )
    record = Record(
        task=task_name or task.name,
        example=problem.id,
        method_stack=method,
        budget=budget,
        seed=seed,
        quality=float(task.verify(problem, found.text)),
        ledger=account.ledger,
        kv_bytes=found.gauges.kv_bytes,
        ttft=found.gauges.ttft,
        tbt=found.gauges.tbt,
    )
    texts = {"question": question, "answer": found.text, "finish": found.finish_reason}
    if isinstance(task, Explains):
        texts.update(task.explain(problem, found.text))
    if problem.answer:
        texts["expected"] = problem.answer
    return Outcome(record, texts, _marks(task, problem, texts))


def _marks(task: Task, problem: Problem, texts: Mapping[str, str]) -> dict[str, tuple[Mark, ...]]:
    if not isinstance(task, Marks):
        return {}
    found = {name: tuple(task.marks(problem, texts.get(name, ""))) for name in MARKED}
    return {name: marks for name, marks in found.items() if marks}


def _play(
    model: Model,
    stack: Stack,
    task: Task,
    problem: Problem,
    budget: Budget,
    sampling: SamplingParams,
    account: Account,
    texts: dict[str, str],
) -> float:
    if not isinstance(task, Interactive):
        raise InputError(f"{task.name} says that it is an episode task, but has no play()")
    if stack.prompt is not None or stack.reason is not None:
        other = type(stack.prompt or stack.reason).__name__
        raise CapabilityError(f"{task.name} writes many prompts by itself; drop {other}")
    episode = task.play(model, problem, budget, sampling, decode=stack.decoder(), account=account)
    del texts["prompt"]  # the first of many; the transcript has them all
    texts.update(episode.texts)
    return episode.quality


def _loss(model: Model, prompt: str, target: str, account: Account) -> float:
    """Mean loss of the target's tokens after the prompt, in nats."""
    if not isinstance(model, Scorer):
        raise CapabilityError(
            f"{model.name} cannot score given text; use a local model or a generation metric "
            "(code-completion:metric=edit_similarity)"
        )
    joined = prompt + target
    if (size := model.count(joined)) > model.context_length:
        raise InputError(
            f"prompt and target have {size} tokens, the window of {model.name} is "
            f"{model.context_length}; compress the prompt"
        )
    (losses,) = model.losses([joined], keep_from=[len(prompt)], account=account)
    nll = losses.nll[np.isfinite(losses.nll)]
    if not len(nll):
        raise InputError(f"the target {target!r} has no token to score")
    return float(nll.mean())


def _generate(
    model: Model,
    stack: Stack,
    task: Task,
    problem: Problem,
    text: str,
    budget: Budget,
    sampling: SamplingParams,
    account: Account,
    texts: dict[str, str],
) -> tuple[str, Gauges]:
    prompt: Prompt = text
    if task.chat and model.takes_chat:
        prompt = [Message(role="user", content=text)]
    if stack.reason is not None:
        answer = _solve(model, stack, task, problem, prompt, sampling, account, texts)
        return answer, Gauges()
    decoder = stack.decoder()
    if decoder is None:
        generation = model.generate(prompt, budget, sampling, account=account)
    else:
        generation = decoder.generate(model, prompt, budget, sampling, account=account)
    if thinking := getattr(generation, "thinking", ""):
        texts["thinking"] = thinking
    texts["answer"] = generation.text
    texts["finish"] = generation.finish_reason
    return generation.text, generation.gauges


def _solve(
    model: Model,
    stack: Stack,
    task: Task,
    problem: Problem,
    prompt: Prompt,
    sampling: SamplingParams,
    account: Account,
    texts: dict[str, str],
) -> str:
    from outlay.reason.base import Question

    reads = task if isinstance(task, Reads) else None
    question = Question(
        prompt,
        text=problem.question,
        kind="text" if reads is None else "custom",
        read=None if reads is None else partial(reads.read, problem),
        delimiter="\n\n" if reads is None else reads.delimiter,
        id=problem.id,
    )
    decoder = stack.decoder()
    if decoder is not None:
        from outlay.reason.decoded import Decoded

        model = Decoded(model, decoder)
    found = stack.reason.solve(model, question, sampling=sampling, account=account)
    texts["answer"] = found.text
    texts["finish"] = found.status
    texts["candidates"] = str(len(found.branches))
    return str(found.text)
