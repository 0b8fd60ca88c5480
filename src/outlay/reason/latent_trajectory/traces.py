"""Traces: what calibration, replays and the methods share about one sampled solution.

A trace is sampled in two calls: the thinking, whose hidden states are kept, and the answer. The
signals are read in between, from the thinking alone: all tokens after the prompt, up to and
including the end-of-think marker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from outlay.decode.delimiters import resolve, tokenizer_of
from outlay.errors import InputError
from outlay.models.base import Branch, Float32Array, LatentModel, Model, SamplingParams, Trail
from outlay.reason.base import Answer, Extend, Open, Question, Request, Session, Strategy
from outlay.reason.engine import solve_many
from outlay.reason.latent_trajectory.signals import Normalise, Signals, signals
from outlay.reason.voting import Solving, answer_of

Layers = tuple[int, ...] | Literal["all", "last_third"]
METHOD = "latent-trajectory"
_SAMPLED = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=512)


@dataclass(frozen=True)
class Trace:
    """One sampled solution, as calibration sees it.

    Args:
        question: id of its question.
        index: place among the question's traces, in the order in which they were drawn.
        right: whether its answer is right.
        answer: None where it has none; equivalent answers of a question are written alike.
        tokens: sampled for its thinking.
        signals: of its thinking.
        logprob: mean log-probability of its thinking's tokens.
        extra: further values to compare with, by name.
    """

    question: str
    index: int
    right: bool
    answer: str | None
    tokens: int
    signals: Signals
    logprob: float = math.nan
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A trace that has just been drawn.

    Args:
        thought: end of its thinking.
        end: end of its answer; None until it is completed, or where thinking did not end.
        means_NLC: segment means of its thinking.
    """

    thought: Branch
    means_NLC: Float32Array | None = None
    end: Branch | None = None

    @property
    def tokens(self) -> int:
        """Tokens of its thinking."""
        return len(self.thought.completion_ids())


def latent(model: Model) -> LatentModel:
    """The model, checked to show hidden states.

    Raises:
        CapabilityError: if it does not.
    """
    model.capabilities.require(METHOD, "hidden_states", model=model.name)
    assert isinstance(model, LatentModel)
    return model


def closing(model: Model, think_close: str | None) -> str:
    """The end-of-think marker: the one given, else the one that the tokenizer knows.

    Raises:
        InputError: if none is given and none is known.
    """
    if think_close is not None:
        return think_close
    return resolve(tokenizer_of(model), None, None, None, None, name=model.name).close


Part = Generator[Request, Any, list[Drawn]]


def draw(
    session: Session,
    root: Branch,
    numbers: Sequence[int],
    trail: Trail,
    close: str,
    most: int | None = None,
) -> Part:
    """The thinking of the samples `numbers` of `root`; each has its own seed.

    Args:
        session: of the question.
        root: its prompt.
        numbers: of the samples.
        trail: kept.
        close: end-of-think marker; "" takes the whole completion for thinking.
        most: tokens of thinking to begin with; None is all that the sampling allows.
    """
    sampling = session.sampling
    stop = (*sampling.stop, close) if close else sampling.stop
    limit = sampling.max_tokens if most is None else min(most, sampling.max_tokens)
    each = [
        replace(sampling, seed=sampling.seed + i, stop=stop, max_tokens=limit, include_stop=True)
        for i in numbers
    ]
    rows = yield Extend([root] * len(each), each, trail=trail)
    return [Drawn(row[0]) for row in rows]


def read(session: Session, drawn: Sequence[Drawn]) -> list[Drawn]:
    """The traces with the segment means of what they have thought; none where nothing is."""
    model = latent(session.model)
    thinking = [each.thought for each in drawn if each.thought.token_ids]
    account = session.account.at("think")
    found = iter(model.hidden(thinking, account=account) if thinking else [])
    return [
        replace(each, means_NLC=next(found)) if each.thought.token_ids else each for each in drawn
    ]


def go_on(session: Session, drawn: Sequence[Drawn], close: str) -> Part:
    """Thinking that was interrupted at a limit of tokens goes on to its end."""
    rest = [
        i
        for i, each in enumerate(drawn)
        if each.thought.finish == "length" and each.tokens < session.sampling.max_tokens
    ]
    sampling = session.sampling
    stop = (*sampling.stop, close) if close else sampling.stop
    wants = [
        replace(
            sampling, stop=stop, include_stop=True, max_tokens=sampling.max_tokens - drawn[i].tokens
        )
        for i in rest
    ]
    whole = list(drawn)
    if rest:
        rows = yield Extend([drawn[i].thought for i in rest], wants)
        for i, row in zip(rest, rows, strict=True):
            whole[i] = replace(drawn[i], thought=row[0])
    return whole


def finish(session: Session, drawn: Sequence[Drawn], close: str) -> Part:
    """Write the answers of traces whose thinking has ended; the others' end with it."""
    sampling = session.sampling
    ended = [
        i
        for i, each in enumerate(drawn)
        if each.end is None
        and close
        and each.thought.finish == "stop"
        and each.tokens < sampling.max_tokens
    ]
    whole = [each if each.end is not None else replace(each, end=each.thought) for each in drawn]
    if ended:
        wants = [replace(sampling, max_tokens=sampling.max_tokens - drawn[i].tokens) for i in ended]
        rows = yield Extend([drawn[i].thought for i in ended], wants, stage="answer")
        for i, row in zip(ended, rows, strict=True):
            whole[i] = replace(drawn[i], end=row[0])
    return whole


def voted(session: Session, drawn: Sequence[Drawn], detail: dict[str, Any]) -> Answer:
    """The majority's answer among completed traces."""
    ends = [each.end or each.thought for each in drawn]
    vote = session.question.vote([session.question.answer(end.completion()) for end in ends])
    return answer_of(session, ends[vote.index], ends, status="voted", detail=detail)


Look = Callable[[Session, Sequence[Drawn]], Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class _Collector(Solving):
    """Draws R whole traces and puts what they say into `sink`; keeps no branches."""

    right: Callable[[Question, str], bool]
    R: int
    trail: Trail
    normalise: Normalise
    close: str
    look: Look | None
    sink: dict[str, list[Trace]]

    def plan(self, session: Session) -> Strategy:
        root = yield Open()
        drawn = yield from draw(session, root, range(self.R), self.trail, self.close)
        drawn = read(session, drawn)
        extra = [{}] * self.R if self.look is None else self.look(session, drawn)
        drawn = yield from finish(session, drawn, self.close)
        question = session.question
        given = [question.answer((d.end or d.thought).completion()) for d in drawn]
        vote = question.vote(given)
        alike = {i: given[members[0]] for members in vote.groups for i in members}
        traces = []
        for index, each in enumerate(drawn):
            text, logprobs = alike[index], each.thought.logprobs or ()
            traces.append(
                Trace(
                    question.id,
                    index,
                    text is not None and self.right(question, text),
                    text,
                    each.tokens,
                    read_signals(each, self.normalise),
                    sum(logprobs) / len(logprobs) if logprobs else math.nan,
                    dict(extra[index]),
                )
            )
        self.sink[question.id] = traces
        return Answer("", None, (), session.account.ledger)


def collect(
    model: Model,
    questions: Sequence[Question],
    right: Callable[[Question, str], bool],
    *,
    R: int = 5,
    k: int = 500,
    layers: Layers = "all",
    normalise: Normalise = "none",
    think_close: str | None = None,
    sampling: SamplingParams = _SAMPLED,
    together: int = 64,
    look: Look | None = None,
) -> list[Trace]:
    """Draw R traces of every question, with their signals and whether they are right.

    This is how calibration data are made; the methods draw the same way.

    Args:
        model: a local one.
        questions: with different ids.
        right: whether an answer (never None) is the right one.
        R, k, layers, normalise, think_close: as in the methods that are to be fitted.
        sampling: with the temperature of later use.
        together: questions in flight.
        look: further values of a question's traces by name, read before their answers are written.

    Raises:
        CapabilityError: if the model shows no hidden states.
        InputError: for questions without ids of their own, R < 1, or a trail that cannot be kept.
    """
    if R < 1:
        raise InputError(f"R={R}; at least one trace of a question")
    ids = [question.id for question in questions]
    if not all(ids) or len({*ids}) < len(ids):
        raise InputError("calibration needs questions with different ids; give Question(id=...)")
    latent(model)
    sink: dict[str, list[Trace]] = {}
    close = closing(model, think_close)
    method = _Collector(right, R, Trail(k, layers), normalise, close, look, sink)
    wanted = replace(sampling, logprobs=True)
    solve_many(method, model, questions, sampling=wanted, method=METHOD, together=together)
    return [trace for name in ids for trace in sink[name]]


def read_signals(drawn: Drawn, normalise: Normalise) -> Signals:
    """The signals of a trace whose means were read; all NaN where nothing was thought."""
    if drawn.means_NLC is None:
        nan = math.nan
        return Signals(nan, nan, nan, nan, nan, (), ())
    return signals(drawn.means_NLC, normalise)
