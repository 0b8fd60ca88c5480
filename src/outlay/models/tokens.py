"""Counting and rendering on the client: what a remote model's text is in tokens.

Any tokenizer will do: transformers, tokenizers, tiktoken, or an object with `encode` and `decode`.
Without one, a token is taken for four UTF-8 bytes, and whoever reads the number is told so.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from outlay.errors import CapabilityError, InputError
from outlay.models.base import Message

BYTES_PER_TOKEN = 4

Source = Literal["ids", "logprobs", "tokenizer", "bytes"]


@dataclass(frozen=True)
class Count:
    """A number of tokens, and where it comes from: the server's own ids or log-probabilities,
    the local tokenizer, or a guess from bytes."""

    tokens: int
    source: Source


@dataclass(frozen=True)
class ClientTokenizer:
    """One face for every kind of tokenizer, or for none.

    Args:
        tokenizer: an object with `encode(text)` and `decode(ids)`, or None.
    """

    tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            return
        missing = [m for m in ("encode", "decode") if not hasattr(self.tokenizer, m)]
        if missing:
            raise InputError(
                f"tokenizer={type(self.tokenizer).__name__} has no {' or '.join(missing)} method; "
                "give a transformers or tokenizers tokenizer, or an object with encode and decode"
            )

    @property
    def present(self) -> bool:
        """True where there is a tokenizer."""
        return self.tokenizer is not None

    @property
    def template(self) -> bool:
        """True where the tokenizer can render a chat."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def ids(self, text: str, *, start: bool = False) -> tuple[int, ...]:
        """Token ids of `text`; () without a tokenizer.

        Args:
            text: what to encode.
            start: True for the beginning of a prompt, where a server adds BOS if the model has it.
        """
        if self.tokenizer is None:
            return ()
        encode = self.tokenizer.encode
        try:
            known = set(inspect.signature(encode).parameters)
        except (TypeError, ValueError):  # compiled: tokenizers.Tokenizer takes the argument
            known = {"add_special_tokens"}
        if "add_special_tokens" in known:
            encoded = encode(text, add_special_tokens=start)
        elif "disallowed_special" in known:  # tiktoken refuses special text unless told otherwise
            encoded = encode(text, disallowed_special=())
        else:
            encoded = encode(text)
        return tuple(int(i) for i in getattr(encoded, "ids", encoded))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens kept; "" without a tokenizer."""
        if self.tokenizer is None:
            return ""
        decode = self.tokenizer.decode
        try:
            return str(decode(list(ids), skip_special_tokens=False))
        except TypeError:
            return str(decode(list(ids)))

    def count(self, text: str, *, start: bool = False) -> Count:
        """Tokens of `text`; `start` as in `ids`."""
        if self.tokenizer is None:
            return Count(-(-len(text.encode()) // BYTES_PER_TOKEN), "bytes")
        return Count(len(self.ids(text, start=start)), "tokenizer")

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text that ends where the assistant's answer begins, without its BOS."""
        if not self.template:
            raise CapabilityError(
                "rendering a chat on the client needs a tokenizer with a chat template; give "
                "tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        return self._without_bos(
            str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                )
            )
        )

    def text(self, ids: Sequence[int]) -> str:
        """A prompt of token ids as text, without its BOS."""
        return self._without_bos(self.decode(ids))

    def _without_bos(self, text: str) -> str:
        # The server adds a BOS of its own where the model has one; two change its answers.
        bos = getattr(self.tokenizer, "bos_token", None)
        if bos and text.startswith(bos):
            first = self.ids("a", start=True)[:1]
            if first == (getattr(self.tokenizer, "bos_token_id", None),):
                return text[len(bos) :]
        return text
