"""Planners: who takes a question apart.

A planner is any callable that takes the `Session` and gives a `Plan`, a list of steps (they get
equal credits), or a strategy that ends with a plan (a generator of requests, so that the calls of
many questions are batched). `ModelPlanner` is the paper's: three calls for level, sub-questions and
credits. A reply that cannot be read is asked for again; after `retries` the plan falls back and
says so in `note`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from outlay.errors import InputError
from outlay.models.base import Message, Model, Prompt, SamplingParams
from outlay.reason.base import Extend, Request, Session
from outlay.reason.plan_and_budget import parsing, prompts
from outlay.reason.plan_and_budget.plans import HARDEST, Plan, check_level, neutral, question_hash

Planning = Generator[Request, Any, Plan]
Planner = Callable[[Session], Plan | Sequence[str] | Planning]
T = TypeVar("T")


def prompt_for(model: Model, text: str, before: Sequence[Message] = ()) -> Prompt:
    """`text` as a chat, after the messages `before`, where the model takes chats."""
    if model.takes_chat:
        return [*before, Message(role="user", content=text)]
    return text + "\n"


@dataclass(frozen=True)
class ModelPlanner:
    """A language model that plans in up to three calls.

    Args:
        model: who plans; None is the model that answers.
        level: difficulty 1..5 where it is known; None asks for it (5 where the reply has none).
        weigh: ask for levels and credits of the sub-questions; False gives all the same.
        max_steps: most sub-questions asked for.
        retries: further tries after a reply that cannot be read.
        temperature, top_p, max_tokens: of the planner's sampling.
        json_mode: send `response_format` with the calls that want JSON, for servers that know it.

    Raises:
        InputError: for values out of range, or json_mode on a model that is no endpoint.
    """

    model: Model | None = None
    level: int | None = None
    weigh: bool = True
    max_steps: int = 5
    retries: int = 2
    temperature: float = 0.1
    top_p: float = 0.9
    max_tokens: int = 512
    json_mode: bool = False

    def __post_init__(self) -> None:
        if self.level is not None:
            check_level(self.level)
        if self.max_steps < 2:
            raise InputError(f"max_steps={self.max_steps}; a plan needs room for 2 or more")
        if self.retries < 0:
            raise InputError(f"retries={self.retries}; must be >= 0")
        if self.json_mode and not hasattr(self.model, "extra_body"):
            raise InputError("json_mode needs model=, an EndpointModel; other models ignore it")
        self._sampling(0)

    def _sampling(self, seed: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=seed
        )

    def id(self, session: Session) -> str:
        """Name in stored plans: what decides the plan."""
        name = (self.model or session.model).name
        return f"{name}/level={self.level}/weigh={self.weigh}/max_steps={self.max_steps}"

    def __call__(self, session: Session) -> Planning:
        """The plan of the session's question."""
        text = session.question.text
        level, notes = self.level, []
        if level is None:
            level = yield from self._ask(session, prompts.level_prompt(text), parsing.read_level)
            if level is None:
                level = HARDEST
                notes.append(f"no level in the planner's replies: {HARDEST} assumed")
        found = yield from self._ask(
            session, prompts.plan_prompt(text, level, self.max_steps), _steps, json=False
        )
        if found is None:
            notes.append("no list of sub-questions in the planner's replies: solved directly")
            note = "; ".join(notes)
            warnings.warn(f"{session.question.id or 'question'}: {note}", stacklevel=2)
            return neutral(text, level=level, planner_id=self.id(session), note=note)
        steps = [step for step, _ in found]
        weights: list[parsing.Weight] | None = None
        if self.weigh and len(steps) > 1:
            weights = yield from self._ask(
                session,
                prompts.weights_prompt(text, steps),
                lambda reply: parsing.read_weights(reply, len(steps)),
            )
            if weights is None:
                notes.append("no credits in the planner's replies: equal ones")
                warnings.warn(f"{session.question.id or 'question'}: {notes[-1]}", stacklevel=2)
        equal = [parsing.Weight(100 / len(steps), None)] * len(steps)
        return Plan(
            steps=tuple(steps),
            credits=tuple(weight.credit for weight in weights or equal),
            levels=tuple(weight.level or level for weight in weights or equal),
            level=level,
            hints=tuple(hint for _, hint in found),
            question_hash=question_hash(text),
            planner_id=self.id(session),
            note="; ".join(notes),
        )

    def _ask(
        self, session: Session, text: str, read: Callable[[str], T | None], *, json: bool = True
    ) -> Generator[Request, Any, T | None]:
        """One call, tried again with other seeds until its reply can be read."""
        for attempt in range(self.retries + 1):
            sampling = self._sampling(session.sampling.seed + attempt)
            place = session.account.at("think", "planner")
            if self.model is None:
                root = session.model.open(prompt_for(session.model, text), account=place)
                [[child]] = yield Extend([root], sampling, role="planner")
                reply = child.text
                session.model.release(child)
                session.model.release(root)
            else:
                model = self._json_view() if json and self.json_mode else self.model
                prompt = prompt_for(model, text)
                reply = model.generate(prompt, None, sampling, account=place).text
            if (found := read(reply)) is not None:
                return found
        return None

    def _json_view(self) -> Model:
        view: Any = copy.copy(self.model)
        view.extra_body = {**view.extra_body, "response_format": {"type": "json_object"}}
        return cast(Model, view)


def _steps(reply: str) -> list[tuple[str, str]] | None:
    return parsing.read_steps(reply) or None


@dataclass(frozen=True)
class NoPlanner:
    """The neutral plan: one step, "directly solve the problem".

    Args:
        level: of every question.

    Raises:
        InputError: for a level outside 1..5.
    """

    level: int = HARDEST

    def __post_init__(self) -> None:
        check_level(self.level)

    def id(self, session: Session) -> str:
        """Name in stored plans."""
        return "none"

    def __call__(self, session: Session) -> Plan:
        """The plan of any question."""
        return neutral(session.question.text, level=self.level)
