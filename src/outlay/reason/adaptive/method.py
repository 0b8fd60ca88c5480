"""Adaptive: one model, several formats of answering, and who chooses among them.

The inference modes of "ARM: Adaptive Reasoning Model" (Wu et al., arXiv 2505.20258, Section 3.3):

- `adaptive`: the model chooses; plain generation.
- `guided:<format>`: the response is opened with the format's tag, and continued.
- `consensus`: one response in every cheap format; where all have an answer and all answers agree,
  that is the answer, else the model is made to think long and has the last word.
- `maj@k`: k adaptive samples; the answer that agrees with most others.

Where it differs from the paper:

- The paper leaves open what "agree" means; here two answers are equal if the question's own
  equality says so both ways. Two missing answers never agree.
- The last complete answer block counts, not the span from the first tag to the last.
- Only completions are parsed, so a question that quotes a tag changes nothing.
- Generation stops at the closing answer tag, which a trained model writes last anyway.
- A budget that ends before the long answer leaves the answer that agrees with most of the cheap
  ones.
- Models that were not trained on tags are asked for the formats in words (`formats="prompted"`).
- Programs can be run instead of emulated (`execute_code`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.evals.answers import equivalent
from outlay.models.base import Branch, Message, Model, Prompt, SamplingParams
from outlay.reason.adaptive.execution import run_program
from outlay.reason.adaptive.formats import Detector, Formats, Parsed
from outlay.reason.adaptive.presets import PRESETS
from outlay.reason.base import Answer, Extend, Open, Question, Request, Session, Strategy
from outlay.reason.voting import Solving, draw
from outlay.sandbox import Sandbox

MAX_SAMPLES = 1024
_LAST_LINES = 5  # in which the paper looks for an answer without its tag
_MODE = re.compile(r"adaptive|consensus|guided:(?P<format>[\w-]+)|maj@(?P<k>\d{1,6})")

Rooted = Generator[Request, Any, Branch | None]
Sampled = Generator[Request, Any, list["Reading"]]


@dataclass(frozen=True)
class Reading:
    """One response as it was read.

    Args:
        branch: where it ends.
        text: the response; its answer replaced by the program's, where that was run.
        parsed: its format, parts and tags.
        value: the answer; None without one.
        executed: whether the answer is the program's.
    """

    branch: Branch
    text: str
    parsed: Parsed
    value: str | None
    executed: bool = False


@dataclass(frozen=True)
class Adaptive(Solving):
    """A model with several formats, used in one of ARM's modes.

    Args:
        mode: "adaptive", "guided:<format>", "consensus" or "maj@<k>".
        formats: "arm" (the published models' tags), "reasoner" (the testbed's), "prompted" (asked
            for in words; any chat model), or formats of your own.
        consensus_formats: asked in consensus mode; None takes all but the fallback.
        fallback_format: has the last word in consensus mode; None takes the last format.
        equal_fn: whether two answers are equal, asked both ways; None takes the question's own.
        detector: "strict" or "strip", see `Formats`; None keeps that of `formats`.
        loose: read an answer outside its block, too, in the last five lines (the paper does so on
            MATH and AIME).
        execute_code: run the programs of responses in the code format; their emulated answers
            stand where that fails.
        sandbox: where programs run; None starts one.

    Raises:
        InputError: for an unknown mode or format, fewer than two consensus formats, or a fallback
            among them.
        CapabilityError: if programs shall run and this machine has no sandbox.
    """

    mode: str = "adaptive"
    formats: str | Formats = "arm"
    consensus_formats: tuple[str, ...] | None = None
    fallback_format: str | None = None
    equal_fn: Callable[[str, str], bool] | None = None
    detector: Detector | None = None
    loose: bool = False
    execute_code: bool = False
    sandbox: Sandbox | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.formats, Formats) and self.formats not in PRESETS:
            raise InputError(
                f"formats={self.formats!r}; choose {', '.join(PRESETS)}, or give a Formats"
            )
        found = _MODE.fullmatch(self.mode)
        if found is None:
            raise InputError(
                f"mode={self.mode!r}; choose adaptive, consensus, guided:<format> or maj@<k>"
            )
        known = self.known
        if found["format"]:
            known[found["format"]]
        if found["k"] and not 1 <= int(found["k"]) <= MAX_SAMPLES:
            raise InputError(f"mode={self.mode!r}; k must be from 1 to {MAX_SAMPLES}")
        cheap, fallback = self.cheap, self.fallback
        for name in (*cheap, fallback):
            known[name]
        if self.mode == "consensus" or self.consensus_formats is not None:
            if len(cheap) < 2 or len(set(cheap)) < len(cheap):
                raise InputError(f"consensus_formats={cheap}; give two or more different formats")
            if fallback in cheap:
                raise InputError(
                    f"fallback_format={fallback!r} is one of consensus_formats; it is asked only "
                    "where they disagree, so leave it out there"
                )
        if self.execute_code and not known.code:
            raise InputError("execute_code=True, but no format holds programs; set Formats.code")
        if self.execute_code and self.sandbox is None:
            object.__setattr__(self, "sandbox", Sandbox())

    @property
    def known(self) -> Formats:
        """The formats, with this method's detector."""
        found = PRESETS[self.formats] if isinstance(self.formats, str) else self.formats
        return found if self.detector is None else replace(found, detector=self.detector)

    @property
    def fallback(self) -> str:
        """The format that has the last word."""
        return self.fallback_format or self.known.names[-1]

    @property
    def cheap(self) -> tuple[str, ...]:
        """The formats that are asked first in consensus mode."""
        if self.consensus_formats is not None:
            return self.consensus_formats
        return tuple(name for name in self.known.names if name != self.fallback)

    # -- plan -------------------------------------------------------------------------------------

    def plan(self, session: Session) -> Strategy:
        """The strategy for one question."""
        formats = self.known
        check_tags(session.model, formats)
        guided = self.mode == "consensus" or self.mode.startswith("guided:")
        if guided and not formats.ask:
            session.model.capabilities.require(
                f"arm with mode={self.mode!r}", "append", model=session.model.name
            )
        if self.mode == "consensus":
            return (yield from self._consensus(session, formats))
        kind, _, count = self.mode.partition("@")
        name = kind.partition(":")[2] or None
        try:
            start = _start(session, formats, name, (yield from _opened(session, formats)))
            sampled = _stopping(session, formats)
            branches = yield from draw(sampled, start, int(count or 1), None, 0)
        except BudgetError:
            return self._answer(session, [], None, "budget")
        readings = [self._read(session, formats, branch) for branch in branches]
        if count:
            return self._answer(session, readings, self._vote(session, readings), "voted")
        return self._answer(session, readings, 0, readings[0].branch.finish)

    def _consensus(self, session: Session, formats: Formats) -> Strategy:
        readings: list[Reading] = []
        try:
            root = yield from _opened(session, formats)
            readings += yield from self._guided(session, formats, self.cheap, root)
            if self._agree(session, readings):
                return self._answer(session, readings, 0, "agreed")
            readings += yield from self._guided(session, formats, (self.fallback,), root)
        except BudgetError:
            return self._answer(session, readings, self._vote(session, readings), "budget")
        last = readings[-1]
        if last.value is None and last.branch.finish == "budget":
            return self._answer(session, readings, self._vote(session, readings), "budget")
        return self._answer(session, readings, len(readings) - 1, "fallback")

    def _guided(
        self, session: Session, formats: Formats, names: Sequence[str], root: Branch | None
    ) -> Sampled:
        """One response in each format, sampled side by side."""
        starts = [_start(session, formats, name, root) for name in names]
        rows = yield Extend(starts, _stopping(session, formats).sampling)
        return [self._read(session, formats, row[0]) for row in rows]

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, session: Session, formats: Formats, branch: Branch) -> Reading:
        text, executed = branch.completion(), False
        if self.execute_code and (result := self._run(formats, text)) is not None:
            text, executed = formats.answered(text, result), True
        parsed = formats.parse(text)
        return Reading(branch, text, parsed, self._value(session.question, parsed, text), executed)

    def _run(self, formats: Formats, text: str) -> str | None:
        assert self.sandbox is not None
        try:
            program = formats.code_of(text)
        except InputError:  # a program in no language that we know
            return None
        return None if program is None else run_program(self.sandbox, program)

    def _value(self, question: Question, parsed: Parsed, text: str) -> str | None:
        if parsed.answer is None or not parsed.answer.strip():
            last = "\n".join(text.strip().splitlines()[-_LAST_LINES:])
            return question.answer(last) if self.loose and last else None
        # The question's own reader knows the tags of its model.
        return question.answer(text if question.kind == "custom" else parsed.answer)

    def _same(self, question: Question, one: str, other: str) -> bool:
        """Whether two answers are equal, asked both ways."""
        if self.equal_fn is not None:
            return bool(self.equal_fn(one, other) and self.equal_fn(other, one))
        if one == other and question.equal is None:
            return True
        custom = question.equal or operator.eq
        return equivalent(one, other, question.kind, custom=custom) and equivalent(
            other, one, question.kind, custom=custom
        )

    def _agree(self, session: Session, readings: Sequence[Reading]) -> bool:
        values = [reading.value for reading in readings]
        return all(
            one is not None and other is not None and self._same(session.question, one, other)
            for one, other in combinations(values, 2)
        )

    def _vote(self, session: Session, readings: Sequence[Reading]) -> int | None:
        if not readings:
            return None
        values = [reading.value for reading in readings]
        return most_agreed(values, partial(self._same, session.question))

    def _answer(
        self, session: Session, readings: Sequence[Reading], chosen: int | None, status: str
    ) -> Answer:
        ledger = session.account.ledger
        branches = tuple(reading.branch for reading in readings)
        calls = [
            {
                "format": reading.parsed.format,
                "answer": reading.value,
                "tokens": spent(session, reading.branch),
                "foreign": list(reading.parsed.foreign),
                "executed": reading.executed,
            }
            for reading in readings
        ]
        detail = {"mode": self.mode, "format": "", "calls": calls}
        if chosen is None:
            return Answer("", None, branches, ledger, status, detail=detail)
        picked = readings[chosen]
        ledger.deliver(picked.branch.ids())
        detail["format"] = picked.parsed.format
        return Answer(
            picked.text,
            picked.value,
            branches,
            ledger,
            status,
            detail=detail,
            chosen=picked.branch,
        )


def most_agreed(values: Sequence[str | None], same: Callable[[str, str], bool]) -> int:
    """Index of the answer that equals most others; the earliest of several such.

    A missing answer (None) wins only where all are missing.

    Args:
        values: answers, at least one.
        same: a symmetric comparison.
    """
    support = [0] * len(values)
    for i, j in combinations(range(len(values)), 2):
        one, other = values[i], values[j]
        if one is not None and other is not None and same(one, other):
            support[i] += 1
            support[j] += 1
    return min(range(len(values)), key=lambda i: (values[i] is None, -support[i], i))


def _opened(session: Session, formats: Formats) -> Rooted:
    """The prompt's branch; None where every format has a prompt of its own."""
    root: Branch | None = None
    if not formats.ask:
        root = yield Open()
    return root


def _start(session: Session, formats: Formats, name: str | None, root: Branch | None) -> Branch:
    """Where a response in format `name` starts; None lets the model choose."""
    forced = name is not None
    if root is None:
        prompt = asking(session.question.prompt, formats.request(name))
        root = session.model.open(prompt, account=session.account)
        forced = forced and session.model.capabilities.append
    return session.append(root, formats.prefix(name)) if name is not None and forced else root


def asking(prompt: Prompt, request: str) -> Prompt:
    """`prompt` with a request in words at its end (of the last user message, in a chat).

    Raises:
        InputError: for token ids, or a chat without a user message.
    """
    if isinstance(prompt, str):
        return f"{prompt}\n\n{request}\n"
    messages: list[Message] = []
    for part in prompt:
        if isinstance(part, int):
            raise InputError(
                "formats='prompted' adds words to the prompt; give text or messages, not token ids"
            )
        messages.append(part)
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise InputError("formats='prompted' needs a user message to add the request to")
    last = messages[users[-1]]
    content = f"{last['content']}\n\n{request}"
    messages[users[-1]] = Message(role=last["role"], content=content)
    return messages


def _stopping(session: Session, formats: Formats) -> Session:
    """The session with sampling that ends at the closing answer tag, where text must have it."""
    sampling: SamplingParams = session.sampling
    if not formats.open_end:
        stop = tuple(dict.fromkeys((*sampling.stop, formats.answer.closing)))
        sampling = replace(sampling, stop=stop, include_stop=True)
    return replace(session, sampling=sampling)


def spent(session: Session, branch: Branch) -> int:
    """Tokens sampled and forced on a response's path."""
    path = {part.id for part in branch.lineage()[1:]}
    entries = session.account.ledger.entries
    return sum(each.generated + each.forced for each in entries if each.branch in path)


def check_tags(model: Model, formats: Formats) -> None:
    """Make sure that tags survive the model's tokenizer.

    Raises:
        CapabilityError: if a tag is lost between tokens and text.
    """
    encode, decode = getattr(model, "encode", None), getattr(model, "decode", None)
    holder = getattr(model, "tokenizer", None)
    special = set(getattr(getattr(holder, "tokenizer", holder), "all_special_tokens", ()))
    for tag in formats.tags:
        if formats.open_end and tag == formats.answer.closing:
            continue  # may be lost: the end of the response says the same
        if encode is not None and decode is not None:  # special tokens are kept here
            lost = tag not in decode(encode(tag))
        else:
            lost = tag in special
        if lost:
            raise CapabilityError(
                f"{model.name} drops the tag {tag!r} when it decodes, so its format cannot be "
                "told; add it to the tokenizer as a token that is not special, or choose formats "
                "with other tags"
            )
