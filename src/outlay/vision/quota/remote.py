"""Frames scored by a vision-language model behind an OpenAI-compatible server.

Each frame is one chat request of one token; the score is the probability of letter A among the
log-probabilities that come back. A letter that is not among them counts as 0.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from outlay.errors import CapabilityError, InputError
from outlay.models.base import Account
from outlay.models.retry import Retry, Timeouts, Tries
from outlay.models.transport import Transport, Wire
from outlay.models.wire import parse_usage
from outlay.vision.quota.checks import one_of, whole
from outlay.vision.quota.decoupling import Asked, Frames
from outlay.vision.quota.scorers import Normalise, picture


@dataclass
class EndpointScorer:
    """Asks a server about each frame; the score is the probability of the first letter.

    Args:
        base_url: of the server, usually ending in /v1.
        model: its name there.
        api_key: bearer token; None takes OPENAI_API_KEY.
        letters: of the choices.
        top: log-probabilities asked for, at most 20 on most servers.
        normalise: "vocabulary", or "letters" for the share of the two letters alone.
        detail: that servers may take to lower the price of an image.
        max_concurrency: requests in flight at once.
        timeouts: limits in seconds on one request.
        retry: when to try again.
        account: where tokens are booked.
        wire: carries the requests instead of a connection of its own.

    Raises:
        InputError: for a knob out of range, or a base_url that is none.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    letters: tuple[str, str] = ("A", "B")
    top: int = 20
    normalise: Normalise = "vocabulary"
    detail: Literal["auto", "low", "high"] = "auto"
    max_concurrency: int = 8
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: Retry = field(default_factory=Retry)
    account: Account = field(
        default_factory=lambda: Account(stage="vision", role="scorer", method="quota")
    )
    wire: Wire | None = None

    def __post_init__(self) -> None:
        one_of("normalise", self.normalise, get_args(Normalise))
        one_of("detail", self.detail, ("auto", "low", "high"))
        whole("top", self.top, 2, 1000)
        whole("max_concurrency", self.max_concurrency, 1, 1024)
        if not self.model:
            raise InputError("model is empty; name the model as the server does")
        if len({*self.letters}) != 2 or not all(self.letters):
            raise InputError(f"letters={self.letters}; give two different ones")
        if self.wire is None:
            self.wire = Transport(self.base_url, self.api_key, self.timeouts, self.retry)

    @property
    def name(self) -> str:
        """Names server and model, for stored scores."""
        return f"endpoint:{self._wire.shown}:{self.model}:{self.letters}:{self.normalise}"

    @property
    def _wire(self) -> Wire:
        assert self.wire is not None
        return self.wire

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def __call__(self, frames: Frames, asked: Asked) -> list[float]:
        """One probability a frame, in order.

        Raises:
            EndpointError: if the server fails.
            CapabilityError: if it gives no log-probabilities.
        """
        with ThreadPoolExecutor(min(self.max_concurrency, len(frames))) as pool:
            return list(pool.map(lambda frame: self._one(frame, asked.text), frames))

    def _one(self, frame: Any, text: str) -> float:
        started, tries = time.perf_counter(), Tries()
        image = {"url": _data_url(picture(frame)), "detail": self.detail}
        said = [{"type": "image_url", "image_url": image}, {"type": "text", "text": text}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": self.top,
        }
        answer = self._wire.post("/chat/completions", body, tries)
        usage = parse_usage(answer.get("usage"))
        account = self.account
        account.ledger.record(
            account.stage,
            account.role,
            prompt_new=0 if usage is None else usage.prompt - usage.cached,
            prompt_cached=0 if usage is None else usage.cached,
            generated=1 if usage is None else usage.generated,
            estimated=usage is None,
            method=account.method,
            seconds=time.perf_counter() - started,
        )
        return self._share(_first_token(answer, self._wire.shown))

    def _share(self, known: Mapping[str, float]) -> float:
        yes, no = (known.get(letter, 0.0) for letter in self.letters)
        if self.normalise == "vocabulary":
            return min(1.0, yes)
        return yes / (yes + no) if yes + no > 0 else 0.0


def _first_token(answer: Mapping[str, Any], shown: str) -> dict[str, float]:
    """Probability by word, of the first token; writings that differ in white space add up.

    Raises:
        CapabilityError: if the server gave none.
    """
    try:
        rows = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(row["token"]).strip(), float(row["logprob"])) for row in rows]
    except (KeyError, IndexError, TypeError, ValueError):
        pairs = []
    pairs = [(token, logprob) for token, logprob in pairs if logprob <= 1e-6]
    if not pairs:
        raise CapabilityError(
            f"{shown} answered without top_logprobs, from which frames are scored; use a server "
            "and a model that give them (vLLM does), or a local scorer"
        )
    found: dict[str, float] = {}
    for token, logprob in pairs:
        found[token] = found.get(token, 0.0) + math.exp(min(0.0, logprob))
    return found


def _data_url(shown: Any) -> str:
    data = io.BytesIO()
    shown.convert("RGB").save(data, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
