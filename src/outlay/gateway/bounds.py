"""What a request may cost at most: a bound of its prompt's tokens, its output, its choices.

With the model's tokenizer the text of a request is counted; without it every UTF-8 byte counts as a
token (a byte-level vocabulary never needs more). What a chat template adds is bounded by the
operator's constants. What has no bound is refused: images and audio without a constant, files,
references to text that the gateway does not see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outlay.errors import InputError
from outlay.gateway.config import PRICED, Endpoint, ModelTable, Route, explain
from outlay.gateway.problems import RequestError, invalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Counter = Callable[[str], int]
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text"})
_IMAGES = frozenset({"image_url", "input_image"})
_AUDIO = frozenset({"input_audio", "audio"})
_ITEMS = frozenset(
    {"message", "function_call", "function_call_output", "reasoning", "custom_tool_call"}
    | {"custom_tool_call_output"}
)
_TOOLS = frozenset({"function", "custom"})
_WEIGHED = frozenset({"model", "messages", "input", "tools", "functions", "prompt"})
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
"""Names of the limit on generated tokens; the gateway sends one, with what it reserved."""
_Limit = Annotated[int, Field(ge=1)]


class Choice(BaseModel):
    """The body's own field `outlay`: a policy of the route's list, and what the request asks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    policy: str | None = Field(default=None, max_length=64)
    question: str = Field(default="", max_length=20_000)


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    model: str = Field(min_length=1, max_length=200)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: _Limit | None = None
    best_of: _Limit | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=1024)
    functions: list[dict[str, Any]] | None = Field(default=None, max_length=1024)
    outlay: Choice | None = None


class ChatBody(_Body):
    """A body of /v1/chat/completions, as far as the gateway reads it."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None


class CompletionsBody(_Body):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = "<|endoftext|>"
    max_tokens: Annotated[int, Field(ge=0)] | None = None


class ResponsesBody(_Body):
    """A body of /v1/responses."""

    input: str | list[dict[str, Any]]
    max_output_tokens: _Limit | None = None


class EmbeddingsBody(_Body):
    """A body of /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]


BODIES: dict[Endpoint, type[_Body]] = {
    "chat": ChatBody,
    "completions": CompletionsBody,
    "responses": ResponsesBody,
    "embeddings": EmbeddingsBody,
}


@dataclass(frozen=True)
class Wanted:
    """A request that was read.

    Args:
        endpoint: which.
        fields: the body.
        model: that was asked for.
        stream: whether the answer is streamed.
        usage: whether the caller asked for the usage of a stream.
        prompt: bound of the prompt's tokens.
        output: most tokens per choice.
        choices: how many answers.
        fingerprint: of the body.
        chosen: the body's own field `outlay`, which is not sent on.
    """

    endpoint: Endpoint
    fields: Mapping[str, Any]
    model: str
    stream: bool
    usage: bool
    fingerprint: str
    prompt: int = 0
    output: int = 0
    choices: int = 1
    chosen: Choice | None = None


def parse(endpoint: Endpoint, raw: bytes, max_depth: int) -> Wanted:
    """Read a body; its cost is not bounded yet.

    Raises:
        RequestError: for what is no JSON object, too deep, or of the wrong types.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise invalid("the body is not a JSON object")
    if raw.count(b"[") + raw.count(b"{") > max_depth and _depth_exceeds(fields, max_depth):
        raise invalid(f"the body nests deeper than {max_depth} levels")
    try:
        body = BODIES[endpoint].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"][:1])
        raise invalid(explain(error)[:500], param=where or None) from error
    options = body.stream_options or {}
    fields.pop("outlay", None)
    return Wanted(
        endpoint=endpoint,
        fields=fields,
        model=body.model,
        stream=bool(body.stream),
        usage=options.get("include_usage") is True,
        fingerprint=hashlib.sha256(endpoint.encode() + b"\0" + raw).hexdigest(),
        chosen=body.outlay,
    )


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def bound(wanted: Wanted, model: ModelTable, route: Route, most: int) -> Wanted:
    """The request with its worst case.

    Args:
        wanted: from `parse`.
        model: of the request.
        route: of the request.
        most: the server's largest output.

    Raises:
        RequestError: for what has no bound, is refused by the route, or cannot fit the window.
    """
    fields = wanted.fields
    for name in PRICED:
        if fields.get(name) is not None and name not in route.allow:
            raise invalid(
                f"{name} can change what a request costs and this route does not allow it",
                name,
                "unsupported_parameter",
            )
    count = counter(model.tokenizer)
    weigh = _Weigher(model, count)
    output, choices = _output(wanted, route)
    prompt, prompts = _prompt(wanted, weigh)
    ceiling = min(most, most if route.max_output is None else route.max_output)
    if output > ceiling:
        raise invalid(
            f"{output} output tokens were asked for and {ceiling} is the most that is allowed",
            "max_tokens",
        )
    if choices > route.max_n:
        raise invalid(f"{choices} choices; this route allows {route.max_n}", "n")
    if model.context is not None and prompt // prompts + output > model.context:
        raise invalid(
            f"up to {prompt // prompts} prompt tokens and {output} output tokens exceed the window "
            f"of {model.context}",
            code="context_length_exceeded",
        )
    return replace(wanted, prompt=prompt, output=output, choices=choices * prompts)


def _output(wanted: Wanted, route: Route) -> tuple[int, int]:
    fields = wanted.fields
    choices = max(fields.get("n") or 1, fields.get("best_of") or 1)
    if wanted.endpoint == "embeddings":
        return 0, 1
    if wanted.endpoint == "chat":
        given = [fields.get("max_completion_tokens"), fields.get("max_tokens")]
    elif wanted.endpoint == "completions":
        given = [fields.get("max_tokens")]
    else:
        if choices > 1:
            raise invalid("this endpoint gives one answer", "n")
        given = [fields.get("max_output_tokens")]
    limits = [limit for limit in given if limit is not None]
    return min(limits, default=route.default_max_output), choices


def _prompt(wanted: Wanted, weigh: _Weigher) -> tuple[int, int]:
    """Bound of all prompts' tokens, and their number."""
    fields = wanted.fields
    total, prompts = weigh.model.template_tokens, 1
    if wanted.endpoint == "chat":
        total += sum(weigh.message(each) for each in fields["messages"])
    elif wanted.endpoint == "responses":
        given = fields["input"]
        if isinstance(given, str):
            total += weigh.count(given) + weigh.model.template_tokens
        else:
            total += sum(weigh.item(each) for each in given)
    else:
        name = "prompt" if wanted.endpoint == "completions" else "input"
        given = fields.get(name, "<|endoftext|>")
        many = given if isinstance(given, list) and given and not _is_ids(given) else [given]
        prompts = len(many)
        if not many or any(not each for each in many):
            raise invalid(f"{name} is empty", name)
        total = sum(
            weigh.model.template_tokens
            + (weigh.count(each) if isinstance(each, str) else len(each))
            for each in many
        )
        if wanted.endpoint == "embeddings":
            prompts = 1
    # Any other field may end up in a prompt: schemas, instructions, what a server adds of its own.
    rest = {name: value for name, value in fields.items() if name not in _WEIGHED}
    total += weigh.strings(rest) * prompts
    for name in ("tools", "functions"):
        legacy = name == "functions"
        total += sum(weigh.tool(each, legacy=legacy) for each in fields.get(name) or ())
    return total, prompts


def _is_ids(given: Sequence[Any]) -> bool:
    return isinstance(given[0], int)


@dataclass(frozen=True)
class _Weigher:
    """Adds up what the parts of a prompt can cost."""

    model: ModelTable
    count: Counter

    def message(self, message: Mapping[str, Any]) -> int:
        parts = ("content", "output") if "content" not in message else ("content",)
        total = self.model.template_tokens
        for name, value in message.items():
            total += self.content(value) if name in parts else self.strings(value)
        return total

    def item(self, item: Mapping[str, Any]) -> int:
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in _ITEMS:
            raise invalid(f"input items of type {kind!r:.60} have no bound on their size", "input")
        return self.message(item)

    def content(self, content: Any) -> int:
        if content is None or isinstance(content, str):
            return self.count(content or "")
        if not isinstance(content, list):
            raise invalid("content must be a string or a list of parts", "messages")
        return sum(self.part(part) for part in content)

    def part(self, part: Any) -> int:
        if isinstance(part, str):
            return self.count(part)
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise invalid("content parts need a type", "messages")
        if kind in _TEXTS:
            return self.strings(part)
        for kinds, constant, name in (
            (_IMAGES, self.model.image_tokens, "image_tokens"),
            (_AUDIO, self.model.audio_tokens, "audio_tokens"),
        ):
            if kind in kinds:
                if constant is None:
                    raise RequestError(
                        400,
                        f"parts of type {kind!r} have no declared bound; the operator can set "
                        f"{name} for this model",
                        code="unbounded_content",
                        param="messages",
                    )
                return constant
        raise invalid(f"content parts of type {kind!r:.60} have no bound on their size", "messages")

    def tool(self, tool: Mapping[str, Any], *, legacy: bool) -> int:
        kind = "function" if legacy else tool.get("type")
        if not isinstance(kind, str) or kind not in _TOOLS:
            raise invalid(
                f"tools of type {kind!r:.60} run at the provider and can change the price",
                "tools",
                "unsupported_parameter",
            )
        if self.model.tool_tokens is None:
            raise RequestError(
                400,
                "tools have no declared bound; the operator can set tool_tokens for this model",
                code="unbounded_content",
                param="tools",
            )
        return self.model.tool_tokens + self.strings(tool)

    def strings(self, value: Any) -> int:
        """Tokens of every string inside, keys and numbers included."""
        return sum(self.count(text) for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    open_ = [value]
    while open_:
        each = open_.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            yield from each
            open_ += each.values()
        elif isinstance(each, list):
            open_ += each
        elif each is not None:
            yield str(each)


def byte_count(text: str) -> int:
    """UTF-8 bytes: at least the tokens of a byte-level vocabulary."""
    return len(text.encode("utf-8", "surrogatepass"))


def counter(path: Path | None) -> Counter:
    """What counts a text's tokens: the tokenizer in `path`, or its bytes."""
    if path is None:
        return byte_count
    tokenizer = load_tokenizer(path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)) if text else 0


@cache
def load_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json`.

    Raises:
        InputError: if it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{path} is no tokenizer.json ({error})") from error
