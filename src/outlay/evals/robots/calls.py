"""One model call of an episode: asked, booked and logged.

The ledger is the account's: role "planner" is the central planner (and, in the stage "prompt", the
call that shortens a dialogue), "verifier" a local reviewer, "target" a robot that takes part in a
dialogue. Beside it every call keeps the paper's count, tokens of all message contents plus tokens
of the reply, which leaves out a chat template's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from outlay.budget import Budget
from outlay.decode.base import Decoder
from outlay.errors import BudgetError, EndpointError, InputError
from outlay.ledger import Role, Stage
from outlay.models.base import Account, Capabilities, Generation, Message, Model, SamplingParams

SYSTEM = "You are a helpful assistant."


class OutOfTokensError(BudgetError):
    """The window, the token budget or the account's budget has no room for the next call."""


@dataclass(frozen=True)
class Call:
    """One logged call.

    Args:
        step: of the episode, from 1.
        speaker: "central", "summary", or a robot.
        role, stage: where it is booked.
        messages: (role, content) of the prompt.
        reply: what came back.
        prompt_tokens, reply_tokens: the paper's count.
        booked: prompt and generated tokens in the ledger.
    """

    step: int
    speaker: str
    role: Role
    stage: Stage
    messages: tuple[tuple[str, str], ...]
    reply: str
    prompt_tokens: int
    reply_tokens: int
    booked: int

    @property
    def tokens(self) -> int:
        """The paper's count."""
        return self.prompt_tokens + self.reply_tokens

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "messages": [list(pair) for pair in self.messages]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Call:
        """The inverse of `to_dict`.

        Raises:
            InputError: if the row was not written by `to_dict`.
        """
        try:
            messages = tuple((str(role), str(text)) for role, text in row["messages"])
            return cls(**{**row, "messages": messages})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a logged call ({error}); use what to_dict wrote") from error


@dataclass
class Caller:
    """Asks a model and keeps the books.

    Args:
        model: any backend, or a scripted one.
        account: where tokens are booked and whose budget they are taken from.
        sampling: temperature and so on.
        decode: a decoding method, None for the model's own.
        reply_tokens: most tokens of a reply.
        token_budget: stop once the paper's count would exceed this; None for no such limit.
    """

    model: Model
    account: Account
    sampling: SamplingParams
    decode: Decoder | None = None
    reply_tokens: int = 512
    token_budget: int | None = None
    step: int = 1
    calls: list[Call] = field(default_factory=list)
    tokens: int = 0

    def count(self, text: str) -> int:
        """Tokens of a text, as the model counts."""
        return self.model.count(text)

    def ask(
        self,
        messages: Sequence[Message],
        *,
        role: Role,
        speaker: str,
        stage: Stage = "answer",
        temperature: float | None = None,
        draw: int = 0,
    ) -> str:
        """The reply to a chat (the system message is put before it).

        Args:
            messages: user and assistant turns.
            role, stage, speaker: as in `Call`.
            temperature: None for the sampling's own.
            draw: tells samples of one prompt apart.

        Raises:
            OutOfTokensError: if the prompt and one reply token do not fit the window, or a budget
                is spent.
            EndpointError: if a server reports no usage and there is no tokenizer to count with.
        """
        chat = [Message(role="system", content=SYSTEM), *messages]
        size = sum(self.model.count(message["content"]) for message in chat)
        if size >= self.model.context_length:
            raise OutOfTokensError(
                f"the prompt of {speaker} has {size} tokens, the window of {self.model.name} "
                f"{self.model.context_length}; choose a shorter history"
            )
        limit = min(self.reply_tokens, self.model.context_length - size)
        if self.token_budget is not None:
            limit = min(limit, self.token_budget - self.tokens - size)
            if limit < 1:
                raise OutOfTokensError(
                    f"token_budget={self.token_budget}: {self.tokens} are spent and the next "
                    f"prompt has {size}; raise token_budget"
                )
        sampling = replace(
            self.sampling,
            max_tokens=limit,
            temperature=self.sampling.temperature if temperature is None else temperature,
            seed=(self.sampling.seed + draw) % 2**32,
        )
        account = self.account.at(stage=stage, role=role)
        before = len(account.ledger)
        reply, spent = "", OutOfTokensError()
        try:
            reply = self._generate(chat, sampling, account).text
        except BudgetError as error:
            spent = OutOfTokensError(str(error))
        entries = account.ledger.entries[before:]
        booked = sum(e.prompt_new + e.prompt_cached + e.generated + e.forced for e in entries)
        if any(entry.estimated and "bytes" in entry.note for entry in entries):
            raise EndpointError(
                f"{self.model.name} reports no usage and there is no tokenizer, so the ledger "
                "would be a guess; give EndpointModel(tokenizer=...)"
            )
        if reply or booked:
            generated = self.model.count(reply)
            self.calls.append(
                Call(
                    self.step,
                    speaker,
                    role,
                    stage,
                    tuple((m["role"], m["content"]) for m in chat),
                    reply,
                    size,
                    generated,
                    booked,
                )
            )
            self.tokens += size + generated
        if spent.args:
            raise spent
        return reply

    def _generate(
        self, chat: list[Message], sampling: SamplingParams, account: Account
    ) -> Generation:
        if self.decode is None:
            return self.model.generate(chat, None, sampling, account=account)
        budget = Budget(tokens=sampling.max_tokens)
        return self.decode.generate(self.model, chat, budget, sampling, account=account)


class LoggedModel:
    """Answers a second run from the log of a first one, and refuses any other prompt.

    Args:
        calls: of the first run, in order.
        model: counts tokens; its name and window are taken over.
    """

    def __init__(self, calls: Iterable[Call], model: Model) -> None:
        self._left = list(calls)[::-1]
        self._model = model
        self.name = f"logged:{model.name}"
        self.context_length = model.context_length
        self.capabilities = Capabilities()
        self.takes_chat = True

    def count(self, text: str) -> int:
        """Tokens of `text`, as the first run's model counts."""
        return self._model.count(text)

    def generate(
        self,
        prompt: Any,
        budget: Budget | None = None,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        account: Account | None = None,
    ) -> Generation:
        """The next logged reply.

        Raises:
            InputError: if the prompt is not the logged one, byte for byte.
        """
        account = account or Account.open(budget)
        if not self._left:
            raise InputError("the log has no further call; replay with the same settings")
        call = self._left.pop()
        if tuple((m["role"], m["content"]) for m in prompt) != call.messages:
            raise InputError(
                f"the prompt of {call.speaker} in step {call.step} differs from the log; replay "
                "with the same world, seed and settings"
            )
        hold = account.hold([call.reply_tokens], prompt=call.prompt_tokens)
        account.settle(hold, call.reply_tokens)
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=call.prompt_tokens,
            generated=call.reply_tokens,
            method=account.method,
        )
        return Generation(call.reply, (), "stop", account.ledger)
