"""Where thinking begins and ends: delimiters found in a chat template or given, and checked.

Models write their thinking between a pair of tags, one special token each (`<think>`, `</think>`)
or plain text of several tokens. A pair is detected where the chat template or the vocabulary knows
it. Every piece of text that will be forced is checked to survive the tokenizer: tags that come back
changed could neither be forced nor found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from outlay.errors import InputError, OutlayError
from outlay.models.base import Message, Prompt

PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|im_start|>think", "<|im_start|>answer"),
)
PREFIX = "Final Answer:"  # as in s1 and m1
_PROBE: list[Message] = [{"role": "user", "content": "probe-6b1f"}]


@dataclass(frozen=True)
class Delimiters:
    """A pair of tags around thinking.

    Args:
        open: written before the thinking.
        close: written after it.
        answer: what opens the answer after a forced close.
        prefix: what then follows where thinking was cut.
        close_ids: token ids of `close`; () where there is no tokenizer at hand.
    """

    open: str
    close: str
    answer: str
    prefix: str
    close_ids: tuple[int, ...]

    @property
    def close_id(self) -> int | None:
        """The one token that closes thinking, None where it takes several."""
        return self.close_ids[0] if len(self.close_ids) == 1 else None


def tokenizer_of(model: Any) -> Any:
    """The tokenizer behind a model, whatever wraps it; None where there is none."""
    found = getattr(model, "tokenizer", None)
    # An endpoint keeps the user's tokenizer, if any, inside its own counter.
    return getattr(found, "tokenizer", found) if hasattr(found, "present") else found


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` without added special tokens."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
        ids = tokenizer.encode(text)
    return [int(i) for i in getattr(ids, "ids", ids)]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of `ids`, special tokens kept."""
    try:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))
    except TypeError:
        return str(tokenizer.decode(list(ids)))


def resolve(
    tokenizer: Any,
    think_open: str | None,
    think_close: str | None,
    answer_open: str | None,
    overthink_prefix: str | None,
    *,
    name: str,
) -> Delimiters:
    """The delimiters to use: those given, else those that the tokenizer knows.

    Args:
        tokenizer: of the model, None where there is none.
        think_open, think_close: the pair; None detects it.
        answer_open: forced between a forced close and the answer; None takes what the chat template
            writes there when thinking is turned off.
        overthink_prefix: forced after that where thinking was cut; None is "Final Answer:" unless
            a tag opens the answer already.
        name: of the model, for messages.

    Raises:
        InputError: if the pair is not known, or does not survive the tokenizer.
    """
    if (think_open is None) != (think_close is None):
        raise InputError("give both think_open= and think_close=, or neither to detect them")
    if think_open is None or think_close is None:
        think_open, think_close = _detect(tokenizer, name)
    if answer_open is None:
        answer_open = _template_answer(tokenizer, think_close)
    if overthink_prefix is None:
        overthink_prefix = "" if answer_open.strip() else PREFIX
    ids: tuple[int, ...] = ()
    if tokenizer is not None:
        ids = tuple(check(tokenizer, "think_close", think_close, name))
        check(tokenizer, "overthink_prefix", overthink_prefix, name)
        check(tokenizer, "think_open", think_open, name)
        check(tokenizer, "answer_open", answer_open, name)
    return Delimiters(think_open, think_close, answer_open, overthink_prefix, ids)


def check(tokenizer: Any, knob: str, text: str, name: str) -> list[int]:
    """Ids of a text that is to be forced.

    Raises:
        InputError: naming `knob`, if the text comes back from the tokenizer changed.
    """
    if not text:
        return []
    try:
        ids = encode(tokenizer, text)
        back = decode(tokenizer, ids)
    except OutlayError:
        raise
    except Exception as error:  # tokenizers raise bare Exceptions on unknown characters
        raise InputError(
            f"the tokenizer of {name} cannot write {knob}={text!r} ({error}); choose another text"
        ) from error
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Some tokenizers put a space before the first word of any text.
    if back.removeprefix(" ") != text.removeprefix(" ") or (unknown is not None and unknown in ids):
        raise InputError(
            f"{knob}={text!r} comes back from the tokenizer of {name} as {back!r}, so it could "
            "not be found in the output; choose another text"
        )
    return ids


def _detect(tokenizer: Any, name: str) -> tuple[str, str]:
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for opened, closed in PAIRS:
        if opened in template and closed in template:
            return opened, closed
    for opened, closed in PAIRS:
        if tokenizer is not None and all(_single(tokenizer, tag) for tag in (opened, closed)):
            return opened, closed
    raise InputError(
        f"neither the chat template nor the vocabulary of {name} has think tags; give "
        'think_open= and think_close=, for instance "<think>" and "</think>"'
    )


def _single(tokenizer: Any, tag: str) -> bool:
    try:
        ids = encode(tokenizer, tag)
        return len(ids) == 1 and decode(tokenizer, ids).strip() == tag
    except Exception:
        return False


def _template_answer(tokenizer: Any, close: str) -> str:
    """What the chat template writes after `close` when thinking is turned off; "" if nothing."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    tail = _after_last_message(tokenizer, _PROBE, enable_thinking=False)
    return tail.rsplit(close, 1)[1] if close in tail else ""


def _after_last_message(tokenizer: Any, messages: Sequence[Message], **knobs: Any) -> str:
    text = str(
        tokenizer.apply_chat_template(
            [{**m} for m in messages], tokenize=False, add_generation_prompt=True, **knobs
        )
    )
    content = messages[-1]["content"]
    at = text.rfind(content.strip())
    return text[at + len(content.strip()) :] if at >= 0 else text


def opened_by(tokenizer: Any, prompt: Prompt, delimiters: Delimiters) -> tuple[bool, str]:
    """Whether `prompt` leaves thinking open already, and the text after which thinking begins.

    Only what the template writes after the last message counts for a chat: a message may quote the
    tags.
    """
    if isinstance(prompt, str):
        tail = prompt
    elif prompt and isinstance(prompt[0], dict):
        if not getattr(tokenizer, "chat_template", None):
            return False, ""
        tail = _after_last_message(tokenizer, cast(Sequence[Message], prompt))
    else:
        tail = decode(tokenizer, cast(Sequence[int], prompt)) if tokenizer is not None else ""
    mark = delimiters.open.strip()
    at = tail.rfind(mark)
    return at >= 0 and delimiters.close not in tail[at + len(mark) :], tail
