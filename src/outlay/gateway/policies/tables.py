"""The configuration of policies: what may run on a route's requests, and where local scoring runs.

[policies.zip]
prompt = "longcodezip"
above = 2000
keep = 0.4

[policies.vote]
reason = "self-consistency:n=4,wave=2"
decode = "m1:max_think=512"

[routes.code]
policy = "zip"                 # unless the request chooses another one
choose = ["zip", "vote", "none"]
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NONE = "none"
Kind = Literal["text", "number", "math", "choice"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Spec = Annotated[str, Field(min_length=1, max_length=1000)]
Offer = Literal["completions", "continue_final_message", "logprobs", "min_tokens"]
"""What an upstream can do beyond plain chats: `completions` continues text on /completions (it
needs the model's chat template, in `tokenizer_config`), `continue_final_message` continues an
assistant message (vLLM)."""


class Policy(BaseModel):
    """One way of answering: at most one method a slot.

    Args:
        prompt: a compressor of long texts of user messages.
        above: texts of at most this many tokens are left as they are.
        keep: part of a long text's tokens that is kept.
        scorer: spec of the local model that a compressor scores with.
        reason: a reason method; whole answers are voted on or judged.
        verifier: spec of the local step verifier that `reason` needs.
        answer: how answers are read and compared in a vote.
        decode: a decode method, of each answer.
        seconds: that reason and decode may take; then the plain request is sent.
        fallback: reserve the plain request beside the methods, so that it can be sent where they
            fail; without it their failure is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Spec | None = None
    above: int = Field(default=1024, ge=1)
    keep: float = Field(default=0.5, gt=0, lt=1)
    scorer: Spec = "embedded"
    reason: Spec | None = None
    verifier: Spec | None = None
    answer: Kind = "text"
    decode: Spec | None = None
    seconds: float = Field(default=120.0, gt=0)
    fallback: bool = True

    @model_validator(mode="after")
    def _some(self) -> Policy:
        if self.prompt is None and self.reason is None and self.decode is None:
            raise ValueError("a policy needs prompt, reason or decode")
        if self.verifier is not None and self.reason is None:
            raise ValueError("verifier is for a reason method; give reason as well")
        return self

    def kept(self, tokens: int) -> int | None:
        """Tokens to which a text of so many is shortened; None where it is left as it is."""
        if self.prompt is None or tokens <= self.above:
            return None
        return max(1, int(tokens * self.keep))


class Scoring(BaseModel):
    """Where compressors and verifiers run: processes of their own, beside each worker.

    Args:
        processes: how many.
        queue: requests that may wait for one; more go on without their policy.
        seconds: that one job may take; then its process is stopped and the request goes on as it
            was sent.
        start_seconds: that loading the models may take.
        threads: of each process.
        max_chars: longest text that is compressed; a longer one is left as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int = Field(default=1, ge=1, le=16)
    queue: int = Field(default=8, ge=0, le=1000)
    seconds: float = Field(default=20.0, gt=0)
    start_seconds: float = Field(default=120.0, gt=0)
    threads: int = Field(default=1, ge=1, le=64)
    max_chars: int = Field(default=400_000, ge=1)
