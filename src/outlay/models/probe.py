"""What a server really does, found by asking it: it may answer 200 and ignore what was asked.

Each probe is one small request whose result shows whether a feature works: two choices for `n=2`,
a text that ends at the stop string, equal texts for equal seeds and another for another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from outlay.errors import CapabilityError
from outlay.models.base import Capabilities, SamplingParams
from outlay.models.wire import Api, Reply, body, parse_logprobs

PROMPT = "Once upon a time, in a small village by the sea, there lived"
TOKENS = 8
AGREE = 0.25  # nats a token: quantised kernels differ by batch shape, a wrong token by far more

ScoreBy = Literal["prompt_logprobs", "echo"]
Ask = Callable[[Api, Mapping[str, Any], SamplingParams, int, bool], Reply | None]


@dataclass(frozen=True)
class Probe:
    """What was found: capabilities, and by which means prompts can be scored."""

    capabilities: Capabilities
    score_by: ScoreBy | None
    completions: bool


def probe(ask: Ask, *, model: str, api: Api | Literal["auto"], limit_field: str) -> Probe:
    """Ask about ten times for a few tokens each.

    Args:
        ask: sends one request and gives the reply; a failure is None, or raised where the request
            must work.
        model: the model's name on the server.
        api: which API to look at; "auto" takes completions where they exist.
        limit_field: name of the token limit in chat requests.
    """
    greedy = SamplingParams(max_tokens=TOKENS)
    chosen: Api = "chat" if api == "chat" else "completions"

    def send(
        sampling: SamplingParams, n: int = 1, must: bool = False, **extra: object
    ) -> Reply | None:
        prompt: Any = extra.pop("prompt", PROMPT)
        if chosen == "chat":
            prompt = [{"role": "user", "content": PROMPT}]
        fields = body(
            chosen,
            model=model,
            prompt=prompt,
            sampling=sampling,
            limit=sampling.max_tokens,
            n=n,
            seed=sampling.seed,
            limit_field=limit_field,
        )
        return ask(chosen, {**fields, **extra}, sampling, n, must)

    try:
        plain = send(greedy, must=True)
    except CapabilityError:  # the server has the model, but no such API
        if api != "auto":
            raise
        chosen = "chat"
        plain = send(greedy, must=True)
    text = plain.ordered()[0].text if plain is not None else ""
    several = send(greedy, n=2)
    logged = send(replace(greedy, logprobs=True))
    warm = replace(greedy, temperature=1.5, seed=1)
    first, again, other = send(warm), send(warm), send(replace(warm, seed=2))
    stopping = replace(greedy, stop=(text[len(text) // 2 :][:2],)) if len(text) > 3 else None
    stopped = _size(send(stopping)) if stopping else None
    works = stopped is not None and stopped < len(text)
    minimal = _size(send(replace(stopping, min_tokens=TOKENS))) if stopping and works else None
    found = Capabilities(
        logprobs=logged is not None and any(c.logprobs for c in logged.ordered()),
        n=several is not None and len(several.choices) == 2,
        seed=_text(first) == _text(again) != _text(other) and _text(first) is not None,
        stop=works,
        min_tokens=minimal is not None and minimal >= len(text),
    )
    if chosen == "chat":
        return Probe(found, None, completions=False)
    ids = send(replace(greedy, max_tokens=1), prompt=[5, 6, 7])
    takes_ids = ids is not None and ids.usage is not None and ids.usage.prompt == 3
    score_by = _scoring(send, logged)
    found = replace(found, token_prompts=takes_ids, prompt_logprobs=score_by is not None)
    return Probe(found, score_by, completions=True)


def _scoring(send: Callable[..., Reply | None], logged: Reply | None) -> ScoreBy | None:
    """How the server scores given text: by a way whose numbers agree with those of sampling.

    Some servers shift an echoed prompt's log-probabilities by one token (llama-cpp-python does for
    models without BOS), so the text just sampled is scored again and must come out alike.
    """
    if logged is None or not logged.choices or not (sampled := logged.ordered()[0]).logprobs:
        return None
    one = SamplingParams(max_tokens=1)
    prompt = PROMPT + sampled.text
    ways: tuple[tuple[ScoreBy, dict[str, Any], SamplingParams], ...] = (
        ("prompt_logprobs", {"prompt_logprobs": 0}, one),
        # One token is sampled and thrown away: max_tokens=0 means "no limit" to some servers.
        ("echo", {"echo": True}, replace(one, logprobs=True)),
    )
    for way, fields, sampling in ways:
        reply = send(sampling, prompt=prompt, **fields)
        if reply is None or not reply.choices:
            continue
        tokens, values = prompt_scores(reply, way)
        size = covering(tokens, sampled.text)
        if size == len(sampled.logprobs) < len(values):
            pairs = zip(values[-size:], sampled.logprobs, strict=True)
            if sum(abs(again - before) for again, before in pairs) <= AGREE * size:
                return way
    return None


def covering(tokens: Sequence[str], text: str) -> int:
    """How many of the last `tokens` cover `text`; all of them where they do not suffice."""
    size, length = 0, 0
    while size < len(tokens) and length < len(text):
        size += 1
        length += len(tokens[-size])
    return size


def _text(reply: Reply | None) -> str | None:
    return None if reply is None or not reply.choices else reply.ordered()[0].text


def _size(reply: Reply | None) -> int | None:
    text = _text(reply)
    return None if text is None else len(text)


def prompt_scores(reply: Reply, score_by: ScoreBy) -> tuple[list[str], list[float]]:
    """Tokens of the prompt as text, and their log-probabilities: NaN for the first, and empty
    where the reply has none."""
    choice = reply.ordered()[0]
    if score_by == "echo":
        sampled = 1 if reply.usage is None else reply.usage.generated
        end = len(choice.logprobs) - min(sampled, 1)
        return choice.tokens[:end], choice.logprobs[:end]
    tokens, values = [], []
    for row in choice.prompt_logprobs or ():
        # The prompt's own token comes first, whether or not likelier ones follow.
        first = next(iter(row.values())) if isinstance(row, dict) and row else {}
        token, value, _ = parse_logprobs({"content": [first]})
        tokens.append(str(first.get("decoded_token", token[0])))
        values.append(value[0])
    return tokens, values
