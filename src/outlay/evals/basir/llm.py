"""The LLM route: the label list, the excerpt, and a JSON list of label numbers as the answer.

The labels come first and the excerpt last, so that any prefix cache pays for the list once. Numbers
that are not in the list are dropped and counted. A reply without a JSON list is asked for once
more; if that fails, too, the prediction is empty and counted as unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.evals.basir.labels import BoolArray, LabelSet
from outlay.evals.checks import check_whole
from outlay.ledger import Ledger
from outlay.models.base import Account, Message, Model, Prompt, SamplingParams

ROLE = "You tag excerpts of a policy speech with the topics that they touch."
AGAIN = "Reply with a JSON list of numbers only, such as [3, 17] or []."

_LIST = re.compile(r"\[[^\[\]]*\]")
_MAX_REPLY = 20_000  # characters of a reply that are searched


@dataclass(frozen=True)
class Parsed:
    """What a reply says.

    Args:
        labels: positions of the chosen labels, ascending.
        invalid: entries that name no offered label.
        found: whether there was a JSON list at all.
    """

    labels: tuple[int, ...]
    invalid: int
    found: bool


def label_list(labels: LabelSet, offered: Sequence[int], *, definitions: bool = True) -> str:
    """One line per offered label: its number in the label file, name and definition."""
    return "\n".join(
        f"{i + 1}. {labels[i].text if definitions else labels[i].name}" for i in offered
    )


def instruction(listed: str, excerpt: str) -> str:
    """The whole request for one excerpt."""
    return (
        f"{ROLE}\nTopics:\n{listed}\n\nChoose all topics that apply. Reply with a JSON list of "
        f"their numbers; an empty list is allowed.\n\nExcerpt: {excerpt.strip()}"
    )


def parse_reply(reply: str, labels: LabelSet, offered: Sequence[int] | None = None) -> Parsed:
    """The first JSON list of a reply; entries are numbers, ids, names or aliases.

    Args:
        reply: whatever a model wrote.
        labels: all labels.
        offered: positions that may be chosen; None for all.
    """
    allowed = set(range(len(labels)) if offered is None else offered)
    known = labels.names()
    for match in _LIST.finditer(reply[:_MAX_REPLY]):
        try:
            entries = json.loads(match.group())
        except (json.JSONDecodeError, ValueError):
            continue
        chosen: set[int] = set()
        invalid = 0
        for entry in entries:
            index = _position(entry, known)
            if index in allowed:
                chosen.add(index)
            else:
                invalid += 1
        return Parsed(tuple(sorted(chosen)), invalid, True)
    return Parsed((), 0, False)


def _position(entry: object, known: dict[str, int]) -> int:
    """The position that an entry of the list means, -1 for none."""
    if isinstance(entry, int) and not isinstance(entry, bool):
        return entry - 1
    if isinstance(entry, str):
        text = " ".join(entry.casefold().split())
        if text in known:
            return known[text]
        number = re.match(r"(\d{1,4})\b", text)
        return int(number.group(1)) - 1 if number else -1
    return -1


@dataclass(frozen=True)
class Tagged:
    """What a route with a model made of N excerpts.

    Args:
        chosen_NL: decisions.
        ledgers: what each excerpt cost.
        invalid: entries of replies that named no offered label.
        unread: replies without a JSON list, after one retry.
        skipped: excerpts that the model was not asked about.
    """

    chosen_NL: BoolArray
    ledgers: tuple[Ledger, ...]
    invalid: int = 0
    unread: int = 0
    skipped: int = 0

    @property
    def ledger(self) -> Ledger:
        """All excerpts' ledgers, in order."""
        total = Ledger()
        for ledger in self.ledgers:
            total.extend(ledger)
        return total


@dataclass(frozen=True)
class LLMRoute:
    """Ask a model for the sectors of an excerpt.

    Args:
        definitions: list definitions beside the names.
        answer_tokens: at most this many tokens of a reply.
        max_tokens_per_excerpt: limit on all tokens of one excerpt: prompt, reply and retry; None
            for no limit. An excerpt whose first prompt does not fit is an error before anything is
            spent; a retry that does not fit is not made.
        open_list: begin the reply with "[", where the model continues given text; small models
            that would chat then write a list. A list that the token limit cuts ends with its last
            whole entry.
        seed: of sampling; replies are greedy, the retry is sampled at temperature 0.7.

    Raises:
        InputError: for knobs out of range.
    """

    definitions: bool = True
    answer_tokens: int = 48
    max_tokens_per_excerpt: int | None = None
    open_list: bool = False
    seed: int = 0

    name: ClassVar[str] = "llm"

    def __post_init__(self) -> None:
        check_whole("answer_tokens", self.answer_tokens, least=1)
        check_whole("seed", self.seed)
        if self.max_tokens_per_excerpt is not None:
            check_whole("max_tokens_per_excerpt", self.max_tokens_per_excerpt, least=1)

    def tag(
        self,
        model: Model,
        texts: Sequence[str],
        labels: LabelSet,
        offered: Sequence[Sequence[int]] | None = None,
    ) -> Tagged:
        """Tag N excerpts.

        Args:
            model: any model that generates.
            texts: excerpts.
            labels: all labels.
            offered: per excerpt, the positions that are listed, ascending; None for all.

        Raises:
            InputError: for an empty excerpt.
            BudgetError: if a prompt is larger than `max_tokens_per_excerpt`.
        """
        chosen_NL = np.zeros((len(texts), len(labels)), dtype=bool)
        ledgers: list[Ledger] = []
        invalid = unread = 0
        for number, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"excerpt {number} is empty; remove it")
            positions = range(len(labels)) if offered is None else offered[number]
            parsed, ledger = self._ask(model, text, labels, positions)
            chosen_NL[number, list(parsed.labels)] = True
            ledgers.append(ledger)
            invalid += parsed.invalid
            unread += not parsed.found
        return Tagged(chosen_NL, tuple(ledgers), invalid, unread)

    def _ask(
        self, model: Model, text: str, labels: LabelSet, positions: Sequence[int]
    ) -> tuple[Parsed, Ledger]:
        limit = self.max_tokens_per_excerpt
        budget = None if limit is None else Budget(tokens=limit, counts="all")
        account = Account.open(budget, method=self.name)
        sampling = SamplingParams(max_tokens=self.answer_tokens, seed=self.seed)
        listed = label_list(labels, positions, definitions=self.definitions)
        request = instruction(listed, text)
        try:
            reply = self._reply(model, request, sampling, account)
        except BudgetError as error:
            raise BudgetError(
                f"an excerpt's prompt of about {model.count(request)} tokens does not fit "
                f"max_tokens_per_excerpt={limit}; raise it, lower shortlist=, or use "
                "definitions=False"
            ) from error
        parsed = parse_reply(reply, labels, positions)
        if parsed.found:
            return parsed, account.ledger
        again = replace(sampling, temperature=0.7, seed=self.seed + 1)
        try:
            reply = self._reply(model, f"{request}\n\n{AGAIN}", again, account)
        except BudgetError:
            return parsed, account.ledger
        return parse_reply(reply, labels, positions), account.ledger

    def _reply(self, model: Model, request: str, sampling: SamplingParams, account: Account) -> str:
        prompt = chat(model, request)
        if not self.open_list or isinstance(prompt, str) or not model.capabilities.append:
            return model.generate(prompt, None, sampling, account=account).text
        root = model.open(prompt, "[", account=account)
        try:
            ((branch,),) = model.extend([root], replace(sampling, stop=("]",)), account=account)
        finally:
            model.release(root)
        account.ledger.deliver(branch.ids())
        inside, closed, _ = branch.text.partition("]")
        if not closed:
            inside = inside.rpartition(",")[0]
        return f"[{inside}]"


def chat(model: Model, request: str) -> Prompt:
    """The request as a chat turn where the model takes chats, else as text with "Answer:"."""
    # A server renders chats itself unless it was told to take raw text.
    if model.takes_chat:
        return [Message(role="user", content=request)]
    return f"{request}\nAnswer:"
