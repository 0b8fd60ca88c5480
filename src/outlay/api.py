"""The two calls behind `outlay ask` and `outlay compress`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from outlay import registry
from outlay.budget import Budget
from outlay.errors import CapabilityError, InputError
from outlay.files import TextFile, read_text
from outlay.models.base import (
    Account,
    Generation,
    Message,
    Model,
    Prompt,
    SamplingParams,
    Scorer,
    Sees,
)
from outlay.prompt.base import Compressed
from outlay.stack import Stack

SEPARATOR = "# ===== {name} ====="


def ask(
    question: str,
    *,
    context: str = "",
    model: Model | str = "embedded",
    stack: Stack | str = "full",
    budget: Budget | None = None,
    context_budget: int | None = None,
    images: Sequence[Any] = (),
    vision_budget: int | None = None,
    sampling: SamplingParams | None = None,
    raw: bool = False,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Answer one question within a budget.

    Args:
        question: what is asked.
        context: material that the stack's prompt method may shorten; put before the question.
        model: a model or its spec.
        stack: a stack or its spec.
        budget: what may be spent; None is 256 generated tokens.
        context_budget: tokens of the context after the stack's prompt method; None takes the
            budget's stage "prompt".
        images: (H, W, 3) arrays of bytes to ask about; the model must see.
        vision_budget: visual tokens of each image, the mean over the decoder's layers, for the
            stack's vision method; None leaves it to the method's own knobs.
        sampling: temperature and so on; None is greedy, and 0.8 for a stack that reasons.
        raw: continue the text as it is, without a chat template.
        on_text: called with each piece of the answer as it is produced (plain decoding and cache
            methods stream; other decoders call it once).

    Returns:
        The answer; its `ledger` holds every stage's bill.

    Raises:
        InputError: for a context budget without a method that shortens.
        CapabilityError: for images and a model that sees none, or the other way round.
        BudgetError: if the budget leaves no room for an answer.
    """
    target = _model(model)
    chosen = _stack(stack, target)
    budget = budget or Budget(tokens=256)
    if images or chosen.vision is not None or vision_budget is not None:
        return _seen(chosen, target, question, images, budget, vision_budget, sampling, on_text)
    if not isinstance(target, Model):
        raise CapabilityError(f"{model} answers questions about images; give some (--image)")
    prompt_budget: Budget | None
    if context_budget is not None:
        if chosen.prompt is None:
            raise InputError(
                f"context_budget={context_budget} needs a method that shortens; add one to "
                f"{chosen.label()!r}, for instance longcodezip"
            )
        prompt_budget, run_budget = Budget(tokens=context_budget, counts="prompt"), budget
    else:
        prompt_budget, run_budget = chosen.budgets(budget)
    account = Account.open(run_budget, method=chosen.label())
    if prompt_budget is not None and context:
        shorter = chosen.prompt.compress(context, question, prompt_budget, count=target.count)
        account.ledger.extend(shorter.ledger)
        context = shorter.text
    text = f"{context.rstrip()}\n\n{question}" if context else question
    prompt: Prompt = text
    if not raw and target.takes_chat:
        prompt = [Message(role="user", content=text)]
    limit = run_budget.stage("answer") or 1024
    sampling = sampling or SamplingParams(max_tokens=limit, temperature=chosen.temperature)
    if chosen.reason is not None:
        answer = _reasoned(chosen, target, prompt, question, sampling, account)
        if on_text is not None:
            on_text(answer.text)
        return answer
    decoder = chosen.decoder()
    if decoder is not None and not hasattr(decoder, "stream"):
        answer = cast(
            Generation, decoder.generate(target, prompt, run_budget, sampling, account=account)
        )
        if on_text is not None:
            on_text(answer.text)
        return answer
    generation = None
    pieces = (
        target.stream(prompt, run_budget, sampling, account=account)
        if decoder is None
        else decoder.stream(target, prompt, run_budget, sampling, account=account)
    )
    for chunk in pieces:
        if on_text is not None and chunk.text:
            on_text(chunk.text)
        generation = chunk.generation
    assert generation is not None
    return generation


def _seen(
    stack: Stack,
    target: Any,
    question: str,
    images: Sequence[Any],
    budget: Budget,
    vision_budget: int | None,
    sampling: SamplingParams | None,
    on_text: Callable[[str], None] | None,
) -> Generation:
    if not images:
        raise InputError(f"{stack.label()} drops visual tokens, and there is no image; give some")
    if not isinstance(target, Sees):
        raise CapabilityError(
            f"{getattr(target, 'name', target)} sees no images; choose a vision-language model "
            "(a folder with a processor, or seer)"
        )
    slots = (stack.prompt, stack.decode, stack.cache, stack.reason)
    if others := [type(slot).__name__ for slot in slots if slot is not None]:
        raise CapabilityError(f"{', '.join(others)} cannot be combined with images yet; drop it")
    seen = Budget() if vision_budget is None else Budget(tokens=vision_budget, counts="vision")
    stack.budgets(seen)
    pruner = stack.pruner(seen, target.visual_tokens(images[0]), target.decoder_layers)
    account = Account.open(budget, method=stack.label())
    limit = budget.stage("answer") or 1024
    found = target.see(
        images,
        question,
        sampling or SamplingParams(max_tokens=limit),
        pruner=pruner,
        account=account,
    )
    if on_text is not None:
        on_text(found.text)
    return found


def compress(
    sources: str | Path | TextFile | Sequence[str | Path | TextFile],
    question: str = "",
    *,
    budget: int | Budget,
    method: str = "longcodezip",
    model: Model | str = "embedded",
    scorer: Scorer | str | None = None,
    language: str = "",
    encoding: str | None = None,
) -> Compressed:
    """Shorten source files to a token budget, keeping what the question needs.

    Args:
        sources: paths; several files are joined, each under a line with its name. To compress
            text that is already in memory, call the method's own `compress`.
        question: what will be asked about them.
        budget: target tokens of the result.
        method: a prompt method's spec.
        model: whose tokenizer counts.
        scorer: model that judges relevance; None is `model` where it can score.
        language: of the sources; "" takes it from the file names.
        encoding: of the files; None detects it.

    Raises:
        InputError: for files that cannot be read, and methods that do not compress.
    """
    target = _model(model)
    paths = [sources] if isinstance(sources, str | Path | TextFile) else list(sources)
    if not paths:
        raise InputError("nothing to compress; name at least one file")
    files = [p if isinstance(p, TextFile) else read_text(p, encoding=encoding) for p in paths]
    stack = _stack(method, target, scorer)
    if stack.prompt is None:
        raise InputError(f"{method} does not compress; choose a prompt method (outlay methods)")
    languages = {file.language for file in files}
    if not language and len(languages) == 1:
        language = languages.pop()
    text = files[0].text
    if len(files) > 1:
        text = "\n".join(f"{SEPARATOR.format(name=f.path.name)}\n{f.text}" for f in files)
    if not isinstance(budget, Budget):
        budget = Budget(tokens=budget, counts="prompt")
    return cast(
        Compressed,
        stack.prompt.compress(text, question, budget, count=target.count, language=language),
    )


def _reasoned(
    stack: Stack,
    model: Model,
    prompt: Prompt,
    question: str,
    sampling: SamplingParams,
    account: Account,
) -> Generation:
    from outlay.reason.base import Question

    asked = Question(prompt, text=question)
    found = stack.reason.solve(model, asked, sampling=sampling, account=account)
    if found.chosen is None:
        return Generation("", (), "budget", account.ledger)
    ids = tuple(found.chosen.completion_ids())
    return Generation(found.text, ids, found.chosen.finish, account.ledger)


def _model(model: Model | str) -> Model:
    if not isinstance(model, str):
        return model
    from outlay import models

    return models.load(model)


def _stack(spec: Stack | str, model: Model, scorer: Scorer | str | None = None) -> Stack:
    if isinstance(spec, Stack):
        return spec
    from outlay.comparison import needs

    given: dict[str, Any] = {}
    if needs(spec, "scorer"):
        judge: object = model if scorer is None else scorer
        if isinstance(judge, str):
            judge = _model(judge)
        elif scorer is None and not isinstance(judge, Scorer):
            judge = _model("embedded")
        if not isinstance(judge, Scorer):
            raise CapabilityError(f"{spec} needs a scorer that gives losses; use a local model")
        given["scorer"] = judge
    if needs(spec, "verifier"):
        given["verifier"] = registry.create("verifiers", "self", given={"model": model})
    return Stack.parse(spec, given=given)
